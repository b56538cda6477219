#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds and tests everything, and ends with one line that counts the tests:
# those of GoogleTest and pytest, from the reports that Bazel collects.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bazel=${1:-bazel}

"$bazel" test //... # builds what is no test, too
status=$?
((status == 0 || status == 3)) || exit $status # 3: built, but tests have failed

"$bazel" query 'tests(//...)' 2>/dev/null |
  .venv/bin/python -c '
import sys
from pathlib import Path
from xml.etree import ElementTree

total = bad = skipped = 0
for label in sys.stdin.read().split():
    report = Path("bazel-testlogs", *label.removeprefix("//").split(":"), "test.xml")
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        total += int(suite.get("tests", 0))
        bad += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
print(f"{total - bad - skipped} passed, {bad} failed, {skipped} skipped")
'
((status == 0 && PIPESTATUS[1] == 0))
