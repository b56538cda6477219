# SPDX-License-Identifier: Apache-2.0

.PHONY: setup nvcc build install lint format test demo gpu clean

BAZEL ?= bazel
SITE = bazel-bin/python/site
CXX_FILES = $(shell git ls-files --cached --others --exclude-standard '*.h' '*.cc' '*.cu' '*.cuh')

# Downloads and installs what is missing; see bazel/setup.sh.
setup:
	@bazel/setup.sh

# What GPU tests and benchmarks are compiled with, beyond that.
nvcc:
	@bazel/setup.sh nvcc

build: nvcc
	@$(BAZEL) build //...

# Puts the package into .venv: then `ONESHOT=1 .venv/bin/python program.py`.
install: setup
	@$(BAZEL) build //:wheel
	@.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps \
	  --force-reinstall bazel-bin/python/oneshot_xla-*.whl
	@ln -sfn "$(CURDIR)/.deps/xla/tensorflow" \
	  "$$(.venv/bin/python -c 'import oneshot; print(oneshot.__path__[0])')/lib/xla"

lint: setup
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/clang-format --dry-run -Werror $(CXX_FILES)

format: setup
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format
	@.venv/bin/clang-format -i $(CXX_FILES)

# Everything that needs no GPU.
test: lint nvcc
	@bazel/test.sh $(BAZEL)

# An unmodified decode model on eight emulated devices, without and with Oneshot.
demo: install
	@.venv/bin/python tests/demo.py

# Everything that needs GPUs, on a machine with at least two of them.
gpu: build
	@PYTHONPATH=$(SITE) ONESHOT_XLA_DIR=.deps/xla/tensorflow \
	  .venv/bin/python tests/gpu/run.py --kernels bazel-bin/cuda

clean:
	@$(BAZEL) clean
