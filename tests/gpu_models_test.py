# SPDX-License-Identifier: Apache-2.0
"""Models and random programs, through XLA's compiler for GPUs."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import oracle_test
import pytest
from gpu_modules import absent
from jax.sharding import NamedSharding, Sharding

sys.path.insert(0, str(Path(__file__).parent / "models"))
import families
import families_linen

pytest_plugins = ["gpu_compiler"]

DECODING = [run for run in [*families.RUNS, *families_linen.RUNS] if not run.prefill]


def shapes(tree: Any, shardings: Any) -> Any:
    """What stands for arrays on GPUs that are not there."""
    if isinstance(shardings, Sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings), tree
        )
    return jax.tree.map(shapes, tree, shardings)


@pytest.mark.parametrize("run", DECODING, ids=lambda run: run.name)
def test_families_compile(run: Any, all_reduces: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_put", shapes)
    compiled, _ = run.compile(absent((2, 4), ("data", "model")), jnp.bfloat16)
    assert any(site["fired"] for site in all_reduces(compiled))


@pytest.mark.parametrize("first", range(0, oracle_test.PROGRAMS, oracle_test.BATCH))
def test_random_programs_compile(first: int, all_reduces: Any) -> None:
    mesh = absent((2, 4), ("a", "b"))
    shardings = tuple(NamedSharding(mesh, spec) for spec in oracle_test.SPECS)
    run = oracle_test.batch(range(first, first + oracle_test.BATCH), mesh)
    compiled = jax.jit(run).lower(*shapes(oracle_test.ARGUMENTS, shardings)).compile()
    fired = [site["fired"] for site in all_reduces(compiled)]
    assert sum(fired) > oracle_test.BATCH // 2
