# SPDX-License-Identifier: Apache-2.0
"""Reads the reports that ONESHOT_DUMP_TO collects."""

import bisect
import dataclasses
import enum
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = ".report.json"

# Microseconds that an all-reduce with residual and RMSNorm takes less than with the better of stock
# XLA's two ways, by what a rank sends, in bytes: docs/benchmarks/2026-11-23-2xH200-2.
_MEASURED_SAVING = (
    *((16 << 10, 11.9), (128 << 10, 9.9), (512 << 10, 11.0), (1 << 20, 12.2)),
    *((2 << 20, 17.2), (4 << 20, 20.1), (8 << 20, 22.7)),
)


CALL_PREFIX = "oneshot_all_reduce"
"""How the names of fused calls start, of HLO instructions, their targets and kernels.

In names the epilogue follows.
"""


class Outcome(enum.StrEnum):
    """What became of an all-reduce."""

    FUSED = "fused with an epilogue"
    ALONE = "replaced, sum alone"
    LEFT = "left"


@dataclass(frozen=True)
class Stop:
    """An instruction at the edge of a match: looked at, and not absorbed.

    Attributes:
      instruction: its HLO name.
      opcode: its HLO opcode.
      source: "file:line", or empty.
      reason: why it was not absorbed.
    """

    instruction: str
    opcode: str
    source: str
    reason: str

    def __str__(self) -> str:
        where = f" ({self.source})" if self.source else ""
        return f"stopped at {self.opcode} {self.instruction}{where}: {self.reason}"


_CPU_HINT = (
    "XLA for CPU has fused what follows: with the XLA_FLAGS of docs/environment.md, emulated "
    "devices show what there is on GPUs"
)


@dataclass(frozen=True)
class AllReduce:
    """One all-reduce of a module.

    Attributes:
      name: its HLO name.
      site: where it stands in the program, e.g. "jit(step)/mlp/dot_general".
      source: "file:line", or empty.
      shape: HLO text of its shape.
      bytes: what one rank sends.
      group_size: ranks that sum together; 0 if that was not looked at.
      fired: whether it was replaced.
      epilogue: what was fused into it, e.g. "residual+rms_norm".
      reason: why it was left alone; empty if it was replaced.
      custom_call: HLO name of the replacement.
      program: what the replacement computes, as its attribute `program` says it.
      stopped: where the match ended, and why there.
    """

    name: str
    site: str
    source: str
    shape: str
    bytes: int
    group_size: int
    fired: bool
    epilogue: str
    reason: str
    custom_call: str
    program: str
    stopped: tuple[Stop, ...]

    @property
    def layer(self) -> str:
        """Its named scopes, e.g. "layer_3/mlp"; or empty."""
        return scopes(self.site)

    @property
    def outcome(self) -> Outcome:
        """What became of it."""
        if not self.fired:
            return Outcome.LEFT
        return Outcome.ALONE if self.epilogue == "none" else Outcome.FUSED

    @property
    def verdict(self) -> str:
        """What became of it, with the epilogue or the reason."""
        if self.outcome is Outcome.ALONE:
            return self.outcome
        return f"fused: {self.epilogue}" if self.fired else f"left alone: {self.reason}"

    @property
    def kind(self) -> tuple:
        """The same for all-reduces that differ in nothing but their names: of layers in a row."""
        place = (self.site, self.source, self.shape, self.bytes, self.group_size)
        return (*place, self.verdict, self.program)

    def __str__(self) -> str:
        return "\n".join(self.lines(1))

    def lines(self, count: int) -> list[str]:
        """The text for `count` of a kind, of which this is the first."""
        head = f"{self.name}{f' and {count - 1} alike' if count > 1 else ''}  {self.shape}"
        if self.group_size:
            head += f"  {size(self.bytes)} over {self.group_size} ranks"
        where = "  ".join(filter(None, (self.site, self.source)))
        lines = [f"{head}  {self.verdict}", f"    {where}" if where else ""]
        return [*filter(None, lines), *(f"    {stop}" for stop in self.stopped)]


@dataclass(frozen=True)
class Module:
    """What the pass did to one module.

    Attributes:
      module: its HLO name.
      platform: "CUDA" or "Host".
      declined_module: why the module was left alone as a whole, or None.
      all_reduces: all of them, in the order of the module.
      path: the report file; `before` and `after` are beside it.
      cached: whether it was read from a program that had been compiled before, as those in JAX's
        persistent cache; then `after` is that program, and there is no `before`.
    """

    module: str
    platform: str
    declined_module: str | None
    all_reduces: tuple[AllReduce, ...]
    path: Path
    cached: bool = False

    @property
    def fired(self) -> int:
        """How many all-reduces were replaced."""
        return sum(site.fired for site in self.all_reduces)

    @property
    def before(self) -> Path:
        """HLO text of the module as XLA gave it to the pass."""
        return self._sibling(".before.hlo")

    @property
    def after(self) -> Path:
        """HLO text of the module as XLA got it back; exists if something fired."""
        return self._sibling(".after.hlo")

    @property
    def kind(self) -> tuple:
        """The same for modules of which the same became: of a function that was compiled again."""
        sites = tuple(site.kind for site in self.all_reduces)
        return (self.module, self.platform, self.cached, self.declined_module, sites)

    @property
    def kinds(self) -> list[list[AllReduce]]:
        """The all-reduces, those of a kind together, in the order of the first of each."""
        return by_kind(self.all_reduces)

    @property
    def hint(self) -> str:
        """What to do about XLA:CPU, if it has fused what follows a sum; else empty."""
        stops = (stop.opcode for site in self.all_reduces for stop in site.stopped)
        return _CPU_HINT if self.platform == "Host" and "fusion" in stops else ""

    def origin(self, count: int) -> str:
        """Platform, and where `count` of a kind come from."""
        cached = ", compiled before" if self.cached else ""
        return f"{self.platform}{cached}" + (f", {count} times" if count > 1 else "")

    def __str__(self) -> str:
        return "\n".join(self.lines(1))

    def lines(self, count: int) -> list[str]:
        """The text for `count` of a kind, of which this is the first."""
        lines = [f"{self.module} ({self.origin(count)}): {tally(self.all_reduces)}"]
        if self.declined_module:
            lines.append(f"  module left alone: {self.declined_module}")
        for sites in self.kinds:
            lines += [f"  {line}" for line in sites[0].lines(len(sites))]
            if saving := self.expected_saving(sites[0]):
                lines.append(f"      expected to save {saving}")
        return [*lines, *([f"  {self.hint}"] if self.hint else [])]

    def expected_saving(self, site: AllReduce) -> str:
        """What one call should save, if something like it has been measured; else empty.

        That is between two H200, with a norm behind the sum.
        """
        alike = site.fired and "norm" in site.epilogue and site.group_size == 2
        sizes, savings = zip(*_MEASURED_SAVING, strict=True)
        if self.platform != "CUDA" or not alike or site.bytes > sizes[-1]:
            return ""
        i = bisect.bisect_left(sizes, site.bytes)
        saving = savings[i]
        if i > 0:
            share = (site.bytes - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
            saving = savings[i - 1] + share * (saving - savings[i - 1])
        return f"about {saving:.0f} us a call, by measurements between two H200"

    def _sibling(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name.removesuffix(_SUFFIX) + suffix)


def tally(sites: Iterable[AllReduce]) -> str:
    """Counts what became of all-reduces, and what one rank sends in each case.

    Returns:
      "3 of 5 all-reduces fused with an epilogue (24 KiB); 2 replaced, sum alone (64 B); 0 left", as
      the log has it.
    """
    sites = list(sites)

    def count(outcome: Outcome) -> tuple[int, str]:
        found = [site.bytes for site in sites if site.outcome is outcome]
        return len(found), f" ({size(sum(found))})" if sum(found) else ""

    (fused, of_fused), (alone, of_alone), (left, of_left) = map(count, Outcome)
    return (
        f"{fused} of {len(sites)} all-reduces {Outcome.FUSED}{of_fused}; "
        f"{alone} {Outcome.ALONE}{of_alone}; {left} {Outcome.LEFT}{of_left}"
    )


def text(modules: Sequence[Module]) -> str:
    """The report for people: modules of a kind once, and all-reduces of a kind, too."""
    lines = itertools.chain.from_iterable(alike[0].lines(len(alike)) for alike in by_kind(modules))
    return "\n".join(lines)


def by_kind[T: (AllReduce, Module)](several: Iterable[T]) -> list[list[T]]:
    """Those of a kind together, in the order of the first of each."""
    kinds: dict[tuple, list[T]] = {}
    for one in several:
        kinds.setdefault(one.kind, []).append(one)
    return list(kinds.values())


def size(count: int) -> str:
    """Bytes for people."""
    if count < 1 << 10:
        return f"{count} B"
    return f"{count / 1024:.3g} KiB" if count < 1 << 20 else f"{count / 1024 / 1024:.3g} MiB"


def scopes(op_name: str) -> str:
    """The named scopes of "jit(step)/layer_3/mlp/dot_general": "layer_3/mlp"."""
    return "/".join(op_name.split("/")[1:-1])


def load(directory: Path | str) -> list[Module]:
    """Reads all reports of a dump directory, by process and in the order of compilation.

    Raises:
      FileNotFoundError: the directory does not exist.
      ValueError: a file is no report, or of another version.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory} is no directory")
    modules = []
    for path in sorted(directory.glob(f"*{_SUFFIX}"), key=_order):
        try:
            modules.append(_module(path))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no report: {error}") from error
    return modules


def _order(path: Path) -> list[tuple[int, str]]:
    """Sorts the numbers of "PID-SEQUENCE.module" as numbers: 10000 comes after 9999."""
    numbers = re.match(r"(\d+)-(\d+)c?\.", path.name)
    return [(int(number), "") for number in numbers.groups()] if numbers else [(0, path.name)]


def _module(path: Path) -> Module:
    data = json.loads(path.read_text())
    if data["schema"] != 2:
        raise ValueError(f"schema {data['schema']}, not 2")
    return Module(
        module=data["module"],
        platform=data["platform"],
        declined_module=data["declined_module"],
        all_reduces=tuple(_all_reduce(site) for site in data["all_reduces"]),
        path=path,
        cached=data.get("cached", False),
    )


def to_dict(module: Module) -> dict:
    """What `load` reads."""
    fields = dataclasses.asdict(module)
    del fields["path"]
    return {"schema": 2, **fields}


def _all_reduce(data: dict) -> AllReduce:
    stopped = tuple(Stop(**stop) for stop in data["stopped"])
    return AllReduce(**(data | {"stopped": stopped}))
