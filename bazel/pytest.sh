#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs one pytest file inside a Bazel test: pytest.sh ENVIRONMENT FILE
set -eu
python=../python/$1
shift
export PYTHONPATH="$PWD/python/site:$PWD/tests"
export ONESHOT_XLA_DIR="$PWD/../xla/lib"
export PYTHONDONTWRITEBYTECODE=1
exec "$python" -m pytest -q -p no:cacheprovider --durations=5 \
  --junitxml="$XML_OUTPUT_FILE" "$@"
