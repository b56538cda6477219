# SPDX-License-Identifier: Apache-2.0
"""Every way to write an epilogue, through XLA's compiler for GPUs."""

import re
from typing import Any

import pytest
from gpu_compiler.spellings import PROGRAMS, Program, compile_program


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_compiles(program: Program, all_reduces: Any) -> None:
    compiled = compile_program(program)
    sites = all_reduces(compiled)
    found = [site["epilogue"] or site["reason"] for site in sites]
    assert found == [site.split(", read by")[0] for site in program.sites]
    # XLA makes an all-reduce asynchronous or not.
    left = len(re.findall(r" all-reduce(?:-start)?\(", compiled.as_text()))
    assert left == sum(not site["fired"] for site in sites)
