# SPDX-License-Identifier: Apache-2.0
"""Programs through XLA's compiler for GPUs, with Oneshot: from JAX to machine code, without a GPU.

Nothing can be run so. But it is the module, the hook, the verifier and the passes behind them that
programs of users meet.
"""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from gpu_modules import PROGRAMS, Program, compile_program, mesh
from oneshot import config, hook


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


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_compiles(program: Program, dump: Path) -> None:
    for path in dump.iterdir():
        path.unlink()
    hlo = compile_program(program).as_text()
    (path,) = dump.glob("*.report.json")
    sites = json.loads(path.read_text())["all_reduces"]
    found = [site["epilogue"] or site["reason"] for site in sites]
    assert found == [site.split(", read by")[0] for site in program.sites]
    fired = sum(site["fired"] for site in sites)
    assert len(re.findall('custom_call_target="oneshot_all_reduce', hlo)) == fired
    # XLA does not make fusions of them.
    assert "dynamic-slice-fusion" not in hlo
    # XLA makes an all-reduce asynchronous or not.
    assert len(re.findall(r" all-reduce(?:-start)?\(", hlo)) == len(sites) - fired
