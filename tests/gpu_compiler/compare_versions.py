# SPDX-License-Identifier: Apache-2.0
"""Compares what two versions of JAX make of decode steps, without a GPU.

  .venv/bin/python tests/gpu_compiler/compare_versions.py [--write]

runs kernels.py with the oldest and the newest JAX that Oneshot is tested with, in the environments
that `make setup` makes, and prints one table; --write puts it into docs/kernels_per_layer.md. To be
run, after `bazel build //python:site`, for each release of JAX.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

ENVIRONMENTS = {".venv": ".deps/xla_gpu", ".deps/newest": ".deps/newest_xla_gpu"}
"""Of Python, and the folder with XLA's compiler for GPUs."""

DOCUMENT = """# Kernels per layer

Written by `python tests/gpu_compiler/compare_versions.py --write`; a test beside it,
`models_test.py`, holds the compiler against it.

How many kernels XLA launches for one layer of a decode step, with stock XLA and with Oneshot:
counted in the scheduled module that XLA's compiler for GPUs makes, without a GPU, for four H100.

* Models in lower case are the benchmark's, at batch 8 and with all widths as published: kernels of
  a step of four layers, divided by four. "/4": a quarter of heads and MLP on two GPUs.
* The others are small models of published families ([models.md](models.md)), scanned: kernels of
  the body of the loop. Not all versions are tested with flax.
* Products are tiled as XLA does without measuring (`--xla_gpu_autotune_level=0`). On a GPU it may
  split a product whose result is an all-reduce's message, or leave it whole.

| program | JAX | stock | Oneshot |
|---|---|---|---|
"""


def measure(environment: str) -> dict[str, Any]:
    """What kernels.py prints in an environment."""
    site = ROOT / "bazel-bin" / "python" / "site"
    path = [site, ROOT / "tests", ROOT / ENVIRONMENTS[environment]]
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, path)),
        "ONESHOT_XLA_DIR": str(ROOT / ".deps" / "xla" / "tensorflow"),
        "XLA_FLAGS": "",
    }
    output = subprocess.run(
        [ROOT / environment / "bin" / "python", "-m", "gpu_compiler.kernels"],
        env=variables,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout
    return json.loads(output)


def table(measured: list[dict[str, Any]]) -> str:
    """One line for each program and version."""
    names = dict.fromkeys(name for version in measured for name in version["kernels"])
    return "".join(
        f"| {name} | {version['jax']} | {stock:g} | {fused:g} |\n"
        for name in names
        for version in measured
        for stock, fused in [version["kernels"].get(name, [None, None])]
        if stock is not None
    )


def main() -> int:
    """Compares, and fails where Oneshot has more kernels than stock XLA."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write docs/kernels_per_layer.md")
    arguments = parser.parse_args()
    measured = [measure(environment) for environment in ENVIRONMENTS]
    lines = table(measured)
    print(lines, end="")
    if arguments.write:
        (ROOT / "docs" / "kernels_per_layer.md").write_text(DOCUMENT + lines)
    more = [
        f"{name} with JAX {version['jax']}"
        for version in measured
        for name, (stock, fused) in version["kernels"].items()
        if fused > stock
    ]
    for name in more:
        print(f"more kernels than stock: {name}")
    return 1 if more else 0


if __name__ == "__main__":
    sys.exit(main())
