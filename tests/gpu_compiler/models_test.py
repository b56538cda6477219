# SPDX-License-Identifier: Apache-2.0
"""Models and random programs, through XLA's compiler for GPUs."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import random_programs
from gpu_compiler.devices import absent
from jax.sharding import NamedSharding, Sharding

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import families
import families_linen

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


@pytest.mark.parametrize("first", range(0, random_programs.PROGRAMS, random_programs.BATCH))
def test_random_programs_compile(first: int, all_reduces: Any) -> None:
    mesh = absent((2, 4), ("a", "b"))
    shardings = tuple(NamedSharding(mesh, spec) for spec in random_programs.SPECS)
    run = random_programs.batch(range(first, first + random_programs.BATCH), mesh)
    compiled = jax.jit(run).lower(*shapes(random_programs.ARGUMENTS, shardings)).compile()
    fired = [site["fired"] for site in all_reduces(compiled)]
    assert sum(fired) > random_programs.BATCH // 2
