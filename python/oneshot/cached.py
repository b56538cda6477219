# SPDX-License-Identifier: Apache-2.0
"""What is in programs that JAX takes from its persistent compilation cache.

No pass runs for them. Names and attributes of the custom-calls that they hold say what was fused
when they were compiled; why something was left alone, only the report of that compilation knows.
"""

import itertools
import json
import logging
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oneshot import hlo_text, report
from oneshot.log import logger

_LEFT = ("all-reduce", "all-reduce-start")
_WIDTHS = {"f32": 4, "bf16": 2, "f16": 2}  # of what ranks send, in bytes
_REASON = "left when it was compiled; the report of that compilation says why"

_lock = threading.Lock()
_counts = [0] * 4
_numbers = itertools.count()


def counts() -> list[int]:
    """Modules from the cache with all-reduces, and these: fused, replaced alone, left."""
    with _lock:
        return list(_counts)


def watch(dump_to: Path | None) -> None:
    """Looks at what JAX reads from its cache from now on; logs and dumps as the pass does.

    Uses a private name of JAX, without which programs from the cache are not reported.
    """
    from jax._src import compilation_cache

    read = getattr(compilation_cache, "get_executable_and_time", None)
    if read is None:
        return

    def read_and_look(*args: Any, **kwargs: Any) -> Any:
        found = read(*args, **kwargs)
        try:
            if found[0] is not None:
                look(found[0], dump_to)
        except Exception as error:  # nothing of the program depends on it
            logger.warning("a program from JAX's cache is not reported: %s", error)
        return found

    compilation_cache.get_executable_and_time = read_and_look


def look(executable: Any, dump_to: Path | None, counted: bool = True) -> None:
    """Counts, logs and dumps the all-reduces of one loaded executable; or only dumps them."""
    for module in executable.hlo_modules():
        # Most modules have none; text is large.
        proto = module.as_serialized_hlo_module_proto()
        if report.CALL_PREFIX.encode() not in proto and b"all-reduce" not in proto:
            continue
        text = module.to_string()
        sites = list(all_reduces(text))
        if not sites:
            continue
        if counted:
            _count([site.outcome for site in sites])
            if logger.isEnabledFor(logging.INFO):
                logger.info("%s, from JAX's cache: %s", module.name, report.tally(sites))
        if dump_to:
            _dump(dump_to, module.name, executable.client.platform, sites, text)


def _count(outcomes: list[report.Outcome]) -> None:
    with _lock:
        _counts[0] += 1
        for i, outcome in enumerate(report.Outcome, 1):
            _counts[i] += outcomes.count(outcome)


def all_reduces(text: str) -> Iterator[report.AllReduce]:
    """Reads the all-reduces of a compiled module, replaced or not, from its HLO text."""
    lines = (
        line for line in text.splitlines() if report.CALL_PREFIX in line or " all-reduce" in line
    )
    for instruction in hlo_text.instructions(lines):
        if instruction.custom_call_target.startswith(report.CALL_PREFIX):
            yield _replaced(instruction)
        elif instruction.opcode in _LEFT:
            yield report.AllReduce(
                name=instruction.name,
                site=instruction.op_name,
                source="",
                shape=instruction.shape,
                bytes=0,
                group_size=0,
                fired=False,
                epilogue="",
                reason=_REASON,
                custom_call="",
                program="",
                stopped=(),
            )


def _replaced(call: hlo_text.Instruction) -> report.AllReduce:
    def attribute(name: str, pattern: str) -> str:
        found = re.search(rf"\b{name} = {pattern}", call.attributes)
        return found[1] if found else ""

    rows, hidden, ranks = (
        int(attribute(name, r"(\d+)") or 0) for name in ("rows", "hidden", "group_size")
    )
    program = attribute("program", r'\\?"([^"\\]*)')
    dtype = program[2:].partition(";")[0]
    # As profilers show it: between the words of an epilogue is what is within them.
    epilogue = re.sub(r"\.\d+$", "", call.name).removeprefix(report.CALL_PREFIX).removeprefix("_")
    return report.AllReduce(
        name=call.name,
        site=call.op_name,
        source="",
        shape=f"{dtype}[{rows},{hidden}]",
        bytes=rows * hidden * _WIDTHS.get(dtype, 0),
        group_size=ranks,
        fired=True,
        epilogue=epilogue or "none",
        reason="",
        custom_call=call.name,
        program=program,
        stopped=(),
    )


def _dump(
    directory: Path, name: str, platform: str, sites: list[report.AllReduce], text: str
) -> None:
    safe = re.sub(r"[^\w.-]", "_", name[:128], flags=re.ASCII)
    prefix = f"{os.getpid()}-{next(_numbers):04}c.{safe}"
    module = report.Module(
        module=name,
        platform={"cpu": "Host"}.get(platform, "CUDA"),
        declined_module=None,
        all_reduces=tuple(sites),
        path=directory / f"{prefix}.report.json",
        cached=True,
    )
    module.after.write_text(text)
    module.path.write_text(json.dumps(report.to_dict(module)))
