#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs what a new machine lacks, into .venv and .deps. Does nothing where
# everything is in place. Says in one line what is missing if it cannot go on.
# Only `setup.sh nvcc` sees to nvcc, which GPU tests and benchmarks need alone.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source bazel/versions.sh

say() { echo "setup: $*" >&2; }
stop() { say "$*"; exit 1; }

# Runs `step DIRECTORY WANTED COMMAND...`, which makes the directory, unless it
# holds what is WANTED. The note of that is in the directory itself, so that
# nothing believes in one that has been removed.
step() {
  local stamp=$1/.setup wanted=$2
  shift 2
  [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
  "$@"
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
  local installed missing=() package
  installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${DEBIAN_PACKAGES[@]}" \
    2>/dev/null || true)
  for package in "${DEBIAN_PACKAGES[@]}"; do
    grep -qx "$package installed" <<<"$installed" || missing+=("$package")
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

venv() { # DIRECTORY PACKAGE...
  local python directory=$1
  shift
  python=$(find_python)
  say "making $directory with $("$python" -V) and $# packages"
  need_disk 4 # in all
  rm -rf "$directory"
  "$python" -m venv "$directory"
  "$directory/bin/python" -m pip install -q --disable-pip-version-check "$@" ||
    stop "pip could not install the packages of bazel/versions.sh"
}

gpu() {
  say "there is an NVIDIA driver: adding ${GPU_PACKAGES[*]} to .venv"
  need_disk 8
  mkdir -p .venv/gpu
  .venv/bin/python -m pip install -q --disable-pip-version-check "${GPU_PACKAGES[@]}" ||
    stop "pip could not install ${GPU_PACKAGES[*]}"
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
  PYTHONPATH=python .venv/bin/python -c \
    'import pathlib, oneshot.xla_wheel as wheel; wheel.rename(pathlib.Path(".deps/xla/tensorflow"))'
}

# Wheels alone, into a folder of their own: fetch_into FOLDER PACKAGE...
fetch_into() {
  local folder=$1
  shift
  rm -rf "$folder"
  .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps \
    --only-binary=:all: --target "$folder" "$@" || stop "pip could not install $*"
}

xla_gpu() { # FOLDER PACKAGE...
  say "fetching XLA's compiler for GPUs: ${*:2} (140 MB, 400 MB unpacked)"
  need_disk 1
  fetch_into "$@"
}

# The same question as in cuda.bzl: is it there, and from CUDA 12.8 on?
usable_nvcc() { [[ $("$1" --list-gpu-arch 2>/dev/null) == *compute_100* ]]; }

cuda() {
  say "no nvcc of CUDA 12.8 or later on PATH or in CUDA_HOME: fetching ${CUDA_PACKAGES[0]}"
  need_disk 1
  fetch_into .deps/cuda "${CUDA_PACKAGES[@]}"
}

nvidia() { # FOLDER PACKAGE
  say "fetching $2"
  fetch_into "$@"
}

[[ $(uname -sm) == "Linux x86_64" ]] || stop "needs Linux on x86-64, this is $(uname -sm)"
command -v dpkg-query >/dev/null || stop "needs Debian or a system like it (dpkg, apt)"
debian_packages
[[ -x .venv/bin/python ]] || rm -rf .venv
# An environment holds its own path: in a copy of the tree it is useless.
step .venv "$PWD ${VENV_PACKAGES[*]}" venv .venv "${VENV_PACKAGES[@]}"
step .deps/newest "$PWD ${NEWEST_PACKAGES[*]}" venv .deps/newest "${NEWEST_PACKAGES[@]}"
! nvidia-smi -L >/dev/null 2>&1 || step .venv/gpu "${GPU_PACKAGES[*]}" gpu
step .deps/xla "$XLA_PACKAGE, renamed" xla
step .deps/xla_gpu "${XLA_GPU_PACKAGES[*]}" xla_gpu .deps/xla_gpu "${XLA_GPU_PACKAGES[@]}"
step .deps/newest_xla_gpu "${NEWEST_XLA_GPU_PACKAGES[*]}" \
  xla_gpu .deps/newest_xla_gpu "${NEWEST_XLA_GPU_PACKAGES[@]}"
step .deps/cuda_driver "$CUDA_DRIVER_PACKAGE" nvidia .deps/cuda_driver "$CUDA_DRIVER_PACKAGE"
step .deps/nvrtc "$NVRTC_PACKAGE" nvidia .deps/nvrtc "$NVRTC_PACKAGE"
step .deps/nvrtc_oldest "$OLDEST_NVRTC_PACKAGE" nvidia .deps/nvrtc_oldest "$OLDEST_NVRTC_PACKAGE"
[[ ${1:-} != nvcc ]] || usable_nvcc nvcc || usable_nvcc "${CUDA_HOME:-}/bin/nvcc" ||
  step .deps/cuda "${CUDA_PACKAGES[*]}" cuda
