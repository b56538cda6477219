# SPDX-License-Identifier: Apache-2.0
"""Programs through XLA's compiler for GPUs, with Oneshot: from JAX to machine code, without a GPU.

Nothing can be run so. But it is the module, the hook, the verifier and the passes behind them that
programs of users meet.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracle_test
import pytest
from gpu_modules import PROGRAMS, Program, absent, compile_program, mesh
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from oneshot import config, hook

sys.path.insert(0, str(Path(__file__).parent / "models"))
import families
import families_linen

FAMILIES = [*families.RUNS, *families_linen.RUNS]


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where reports go; Oneshot is on, as if there were GPUs and NVRTC."""
    directory = tmp_path_factory.mktemp("dump")
    with pytest.MonkeyPatch.context() as patch:
        jax.config.update("jax_platforms", "cpu")
        patch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
        patch.setattr(hook, "_why_not_cuda", lambda: None)
        patch.setattr(hook, "kernel_compiler", lambda: None)
        hook.enable(dataclasses.replace(config.read(), dump_to=directory))
        mesh()  # loads XLA, which reads its flags
        yield directory


@pytest.fixture(autouse=True)
def no_reports(dump: Path) -> None:
    """Before a test."""
    for path in dump.iterdir():
        path.unlink()


def all_reduces(dump: Path, compiled: jax.stages.Compiled) -> list[dict[str, Any]]:
    """Those of the only module, as the report has them; they become what it says."""
    (path,) = dump.glob("*.report.json")
    sites = json.loads(path.read_text())["all_reduces"]
    fired = sum(site["fired"] for site in sites)
    hlo = compiled.as_text()
    assert len(re.findall('custom_call_target="oneshot_all_reduce', hlo)) == fired
    # XLA does not make fusions of them: not all can be compiled, and some are run twice.
    for computation in hlo.split("\n\n"):
        assert not ("dynamic-slice-fusion" in computation and "oneshot" in computation)
    return sites


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_compiles(program: Program, dump: Path) -> None:
    compiled = compile_program(program)
    sites = all_reduces(dump, compiled)
    found = [site["epilogue"] or site["reason"] for site in sites]
    assert found == [site.split(", read by")[0] for site in program.sites]
    # XLA makes an all-reduce asynchronous or not.
    left = len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text()))
    assert left == sum(not site["fired"] for site in sites)


def shapes(tree: Any, shardings: Any) -> Any:
    """What stands for arrays on GPUs that are not there."""
    if isinstance(shardings, Sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings), tree
        )
    return jax.tree.map(shapes, tree, shardings)


@pytest.mark.parametrize("run", FAMILIES, ids=lambda run: run.name)
def test_families_compile(run: Any, dump: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "device_put", shapes)
    compiled, _ = run.compile(absent((2, 4), ("data", "model")), jnp.bfloat16)
    assert any(site["fired"] for site in all_reduces(dump, compiled))


@pytest.mark.parametrize("first", range(0, oracle_test.PROGRAMS, oracle_test.BATCH))
def test_random_programs_compile(first: int, dump: Path) -> None:
    mesh = absent((2, 4), ("a", "b"))

    def argument(x: np.ndarray, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    ranks = argument(np.arange(8, dtype=np.int32), P(("a", "b")))
    unknown = argument(oracle_test.UNKNOWN.astype(np.float32), P())
    run = oracle_test.batch(range(first, first + oracle_test.BATCH), mesh)
    compiled = jax.jit(run).lower(ranks, unknown).compile()
    assert sum(site["fired"] for site in all_reduces(dump, compiled)) > oracle_test.BATCH // 2
