# SPDX-License-Identifier: Apache-2.0
#
# Every version that the project is built and tested with; read by setup.sh.
# shellcheck shell=bash disable=SC2034

# Into .venv, with what they need.
VENV_PACKAGES=(
  jax==0.11.2
  jaxlib==0.11.2
  numpy==2.5.5
  absl-py==2.5.1
  ml_dtypes==0.6.0
  opt_einsum==3.4.0
  scipy==1.18.1
  pytest==9.2.0
  flax==0.12.12
  ruff==0.17.6
  clang-format==19.1.7
)

# Into .deps/newest: the newest jax that Oneshot is known to work with.
NEWEST_PACKAGES=(
  jax==0.12.0.1
  jaxlib==0.12.0.1
  numpy==2.5.5
  ml_dtypes==0.6.0
  pytest==9.2.0
)

# Into .venv too, on machines with an NVIDIA driver.
GPU_PACKAGES=("jax[cuda13]==0.11.2")

# XLA: headers and libraries are unpacked into .deps/xla, nothing is installed.
XLA_PACKAGE=tensorflow-cpu==2.21.0

# XLA's compiler for GPUs, which needs none: unpacked into .deps/xla_gpu.
XLA_GPU_PACKAGES=(jax-cuda13-pjrt==0.11.2 jax-cuda13-plugin==0.11.2)
# And that of the newest jax, into .deps/newest_xla_gpu.
NEWEST_XLA_GPU_PACKAGES=(jax-cuda13-pjrt==0.12.0.1 jax-cuda13-plugin==0.12.0.1)

# cuda.h, which is all of CUDA that the product is built with: unpacked into .deps/cuda_driver.
CUDA_DRIVER_PACKAGE=nvidia-cuda-runtime==13.0.96

# nvcc for GPU tests, for machines that have none: unpacked into .deps/cuda.
CUDA_PACKAGES=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
)

# The run-time compiler, to test what it is given: unpacked into .deps/nvrtc and .deps/nvrtc_oldest.
NVRTC_PACKAGE=nvidia-cuda-nvrtc==13.0.88
OLDEST_NVRTC_PACKAGE=nvidia-cuda-nvrtc-cu12==12.4.127

# Debian 12.
DEBIAN_PACKAGES=(
  bazel-bootstrap
  bazel-platforms
  bazel-rules-java
  bazel-rules-proto
  g++
  libgmock-dev
  libgtest-dev
  unzip
)
