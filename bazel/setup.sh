#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what a new machine lacks, into .venv and .deps. Does nothing where
# everything is in place. Says in one line what is missing if it cannot go on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source bazel/versions.sh

say() { echo "setup: $*" >&2; }
stop() { say "$*"; exit 1; }

# Runs `step NAME WANTED COMMAND...` unless it has been done for this WANTED.
step() {
  local stamp=.deps/stamps/$1 wanted=$2
  shift 2
  [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
  "$@"
  mkdir -p .deps/stamps
  echo "$wanted" >"$stamp"
}

need_disk() { # GiB
  local free
  free=$(df --output=avail -BG . | tail -n 1 | tr -dc 0-9)
  ((free >= $1)) || stop "needs $1 GiB of free disk in $PWD, there are $free"
}

find_python() {
  local python
  for python in python3 python3.{12..15} "$HOME"/.pyenv/versions/3.1[2-9]*/bin/python3; do
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' \
      2>/dev/null; then
      echo "$python"
      return
    fi
  done
  stop "needs Python 3.12 or later with venv: put one on PATH as python3.12, or 'pyenv install 3.12'"
}

debian_packages() {
  local missing=() package
  for package in "${DEBIAN_PACKAGES[@]}"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
      missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  local sudo=()
  if ((EUID != 0)); then
    sudo -n true 2>/dev/null || stop "needs Debian packages: sudo apt-get install ${missing[*]}"
    sudo=(sudo -n)
  fi
  say "installing Debian packages: ${missing[*]}"
  mkdir -p .deps
  {
    "${sudo[@]}" apt-get update -q &&
      "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -q -y --no-install-recommends "${missing[@]}"
  } >.deps/apt.log 2>&1 || stop "apt-get failed (.deps/apt.log): apt-get install ${missing[*]}"
}

venv() {
  local python
  python=$(find_python)
  say "making .venv with $("$python" -V) and ${#VENV_PACKAGES[@]} packages"
  need_disk 2
  [[ -x .venv/bin/python ]] || "$python" -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check "${VENV_PACKAGES[@]}" ||
    stop "pip could not install the packages of bazel/versions.sh"
}

# The wheel is the same for every Python: only its C++ is used.
xla() {
  say "fetching XLA: headers and libraries of $XLA_PACKAGE (270 MB, 1.2 GB unpacked)"
  need_disk 3
  mkdir -p .deps/downloads
  .venv/bin/python -m pip download -q --disable-pip-version-check --no-deps \
    --only-binary=:all: --implementation cp --python-version 3.12 --abi cp312 \
    --platform manylinux_2_27_x86_64 -d .deps/downloads "$XLA_PACKAGE" ||
    stop "pip could not download $XLA_PACKAGE"
  rm -rf .deps/xla
  mkdir -p .deps/xla
  unzip -q .deps/downloads/tensorflow_cpu-"${XLA_PACKAGE#*==}"-*.whl -d .deps/xla \
    'tensorflow/include/*' 'tensorflow/libtensorflow_*.so.2'
}

cuda() {
  command -v nvcc >/dev/null || [[ -x ${CUDA_HOME:-/nonexistent}/bin/nvcc ]] && return
  say "no nvcc on PATH or in CUDA_HOME: fetching ${CUDA_PACKAGES[0]}"
  need_disk 2
  rm -rf .deps/cuda
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps \
    --only-binary=:all: --target .deps/cuda "${CUDA_PACKAGES[@]}" ||
    stop "pip could not install ${CUDA_PACKAGES[*]}"
}

[[ $(uname -sm) == "Linux x86_64" ]] || stop "needs Linux on x86-64, this is $(uname -sm)"
command -v dpkg-query >/dev/null || stop "needs Debian or a system like it (dpkg, apt)"
step debian "${DEBIAN_PACKAGES[*]}" debian_packages
step venv "${VENV_PACKAGES[*]}" venv
step xla "$XLA_PACKAGE" xla
step cuda "${CUDA_PACKAGES[*]} $(command -v nvcc || true) ${CUDA_HOME:-}" cuda
