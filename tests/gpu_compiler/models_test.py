# SPDX-License-Identifier: Apache-2.0
"""Models and random programs, through XLA's compiler for GPUs."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import random_programs
from gpu_compiler import kernels
from gpu_compiler.devices import absent
from gpu_compiler.kernels import shapes
from jax.sharding import NamedSharding

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import families
import families_linen

DECODING = [run for run in [*families.RUNS, *families_linen.RUNS] if not run.prefill]


@pytest.mark.parametrize("run", DECODING, ids=lambda run: run.name)
def test_families_compile(run: Any, all_reduces: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_put", shapes)
    compiled, _ = run.compile(absent((2, 4), ("data", "model")), jnp.bfloat16)
    assert any(site["fired"] for site in all_reduces(compiled))
    documented = kernels.documented(run.name)
    if documented:
        check_kernels(compiled, documented, scan=True)


@pytest.mark.parametrize("model", ["llama-3-8b", "gemma-2-9b"])
def test_kernels_per_layer(model: str, all_reduces: Any) -> None:
    compiled = kernels.bench_step(model)
    assert all(site["fired"] for site in all_reduces(compiled))
    documented = kernels.documented(model)
    assert documented, f"{kernels.TABLE.name} does not have it"
    check_kernels(compiled, documented, scan=False)


def check_kernels(
    compiled: jax.stages.Compiled, documented: tuple[float, float], *, scan: bool
) -> None:
    """They are as many as the table says, and never more than with stock XLA."""
    stock, fused = documented
    assert kernels.per_layer(compiled, scan=scan) == fused
    assert fused <= stock


# Fewer than tests/oracle_test.py runs: XLA's compiler for GPUs takes its time.
@pytest.mark.parametrize("first", range(0, random_programs.PROGRAMS // 2, random_programs.BATCH))
def test_random_programs_compile(first: int, all_reduces: Any) -> None:
    mesh = absent((2, 4), ("a", "b"))
    shardings = tuple(NamedSharding(mesh, spec) for spec in random_programs.SPECS)
    run = random_programs.batch(range(first, first + random_programs.BATCH), mesh)
    compiled = jax.jit(run).lower(*shapes(random_programs.ARGUMENTS, shardings)).compile()
    fired = [site["fired"] for site in all_reduces(compiled)]
    assert sum(fired) > random_programs.BATCH // 2
