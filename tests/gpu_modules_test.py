# SPDX-License-Identifier: Apache-2.0
"""Every way to write an epilogue, through XLA's compiler for GPUs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from gpu_compiler import all_reduces, with_oneshot
from gpu_modules import PROGRAMS, Program, compile_program


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where reports go; Oneshot is on."""
    directory = tmp_path_factory.mktemp("dump")
    with with_oneshot(directory):
        yield directory


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_compiles(program: Program, dump: Path) -> None:
    compiled = compile_program(program)
    sites = all_reduces(compiled, dump)
    found = [site["epilogue"] or site["reason"] for site in sites]
    assert found == [site.split(", read by")[0] for site in program.sites]
    # XLA makes an all-reduce asynchronous or not.
    left = len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text()))
    assert left == sum(not site["fired"] for site in sites)
