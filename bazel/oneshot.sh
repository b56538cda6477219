#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Oneshot's command line with what Bazel has built: bazel run //:oneshot -- bench
set -eu
export PYTHONPATH="$PWD/python/site"
export ONESHOT_XLA_DIR="$PWD/../xla/lib"
runfiles=$PWD
cd "${BUILD_WORKING_DIRECTORY:-.}" # files are named from where the user is
exec "$runfiles/../python/python" -m oneshot "$@"
