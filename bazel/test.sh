#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds and tests everything, some tests once more with sanitizers, and ends
# with one line that counts the tests: those of GoogleTest and pytest, from the
# reports that Bazel collects.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bazel=${1:-bazel}

if [[ -n $("$bazel" query 'filter("^@cuda//", deps(//:wheel))' 2>/dev/null) ]]; then
  echo "//:wheel needs nvcc, which only GPU tests may" >&2
  exit 1
fi

reports=$(mktemp)
trap 'rm -f "$reports"' EXIT
failed=0

# Runs tests and notes where their reports are: run LOGS ARGUMENT... PATTERN
run() {
  local logs=$1 status=0
  shift
  "$bazel" test "$@" || status=$?
  ((status == 0 || status == 3)) || exit $status # 3: built, but tests have failed
  ((status == 0)) || failed=1
  "$bazel" query "tests(${!#})" 2>/dev/null | sed "s|^//|$logs/|; s|:|/|; s|$|/test.xml|" >>"$reports"
}

run bazel-testlogs //... # builds what is no test, too
for sanitizer in asan tsan; do
  run "bazel-$sanitizer-testlogs" --config="$sanitizer" "//:$sanitizer"
done

.venv/bin/python - "$reports" "$failed" <<'END' && ((failed == 0))
import sys
from pathlib import Path
from xml.etree import ElementTree

total = bad = skipped = 0
for report in Path(sys.argv[1]).read_text().split():
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        total += int(suite.get("tests", 0))
        bad += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
# A sanitizer may have the last word, when all test cases have passed.
bad = max(bad, int(sys.argv[2]))
print(f"{total - bad - skipped} passed, {bad} failed, {skipped} skipped")
END
