#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds and tests everything, and ends with one line that counts the tests:
# those of GoogleTest and pytest, from the reports that Bazel collects.
set -uo pipefail
bazel=${1:-bazel}

"$bazel" build //... && "$bazel" test //...
status=$?
.venv/bin/python - "$("$bazel" info bazel-testlogs 2>/dev/null)" <<'EOF_PYTHON'
import sys
from pathlib import Path
from xml.etree import ElementTree

total = bad = 0
for path in Path(sys.argv[1]).rglob("test.xml"):
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        total += int(suite.get("tests", 0))
        bad += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
print(f"{total - bad} passed, {bad} failed")
EOF_PYTHON
exit $status
