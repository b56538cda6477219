# SPDX-License-Identifier: Apache-2.0
"""Reads HLO text as far as a picture of it needs; what it does not understand it skips."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+)(?: \(.*\) -> .*)? \{$")
_ASSIGNMENT = re.compile(r"\s+(?P<root>ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.+)$")
_OPCODE = re.compile(r"(?P<opcode>[a-z][\w\-]*)\(")
_NAME_AT_THE_END = re.compile(r"%?([\w.\-]+)$")
_COMMENT = re.compile(r"/\*.*?\*/")
_LAYOUT = re.compile(r"(?<=\])\{[^{}]*\}")
_SHARDING = re.compile(r", sharding=(?=\{)")
_MESH_GROUPS = re.compile(r"replica_groups=(?:@mesh<([^>]*)>|mesh\[([^\]]*)\]) \{([^{}]*)\}")
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: its name, without %.
      shape: its shape, without layouts.
      opcode: e.g. "all-reduce".
      operands: names of the instructions that it reads; of a constant or parameter none.
      literal: what stands in the parentheses of a constant or parameter.
      attributes: what follows the operands.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str

    @property
    def custom_call_target(self) -> str:
        """Whom a custom-call calls; empty for others."""
        found = re.search(r'custom_call_target="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def op_name(self) -> str:
        """Where it stands in the program, from its metadata; may be empty."""
        found = re.search(r'op_name="((?:[^"\\]|\\.)*)"', self.attributes)
        return found[1] if found else ""


@dataclass(frozen=True)
class Computation:
    """Instructions by name, in the order of the text."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def users(self) -> dict[str, list[str]]:
        """Who reads each instruction."""
        found: dict[str, list[str]] = {name: [] for name in self.instructions}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                if operand in found:
                    found[operand].append(instruction.name)
        return found


def parse(text: str) -> list[Computation]:
    """Reads a module's computations.

    Args:
      text: what HloModule::ToString writes, with or without % before names.

    Returns:
      The computations in the order of the text; lines that are none of its instructions are left
      out.
    """
    computations: list[Computation] = []
    inside = False
    for line in text.splitlines():
        if line.startswith("}"):
            inside = False
        elif found := _COMPUTATION.match(line):
            computations.append(Computation(found["name"]))
            inside = True
        elif inside:
            for instruction in instructions([line]):
                computations[-1].instructions[instruction.name] = instruction
    return computations


def instructions(lines: Iterable[str]) -> Iterator[Instruction]:
    """Reads the instructions among some lines of a module."""
    for line in lines:
        if found := _ASSIGNMENT.match(line):
            instruction = _instruction(found["name"], _COMMENT.sub("", found["rest"]))
            if instruction:
                yield instruction


def without_meshes(text: str) -> str:
    """Rewrites what only the newest XLA's parser reads.

    Replica groups by the axes of a mesh become lists, and shardings go: in a partitioned module
    they have no meaning left. Axes that are split and meshes of renumbered devices stay.
    """
    parts = []
    end = 0
    for found in _SHARDING.finditer(text):
        if found.start() >= end:
            parts.append(text[end : found.start()])
            end = _closing(text, found.end()) + 1
    text = "".join([*parts, text[end:]])
    return _MESH_GROUPS.sub(
        lambda found: _groups(found[1] or found[2] or "", found[3]) or found[0], text
    )


def _groups(mesh: str, axes: str) -> str | None:
    """The text of replica groups; the devices of a mesh are numbered with the last axis fastest."""
    # XLA and jaxlib write the same, but for quotes around the names.
    mesh, axes = mesh.replace("'", ""), axes.replace("'", "")
    sizes = dict(re.findall(r"([\w.]+)=(\d+)(?:,|$)", mesh))
    reduced = [axis.strip() for axis in axes.split(",") if axis.strip()]
    if mesh != ",".join(f"{axis}={size}" for axis, size in sizes.items()):
        return None
    if not set(reduced) <= set(sizes):
        return None
    extents = [int(size) for size in sizes.values()]
    strides = {axis: math.prod(extents[i + 1 :]) for i, axis in enumerate(sizes)}

    def offsets(some: list[str]) -> list[int]:
        steps = [[i * strides[axis] for i in range(int(sizes[axis]))] for axis in some]
        return [sum(step) for step in itertools.product(*steps)]

    kept = [axis for axis in sizes if axis not in reduced]
    groups = [[first + offset for offset in offsets(reduced)] for first in offsets(kept)]
    texts = ("{" + ",".join(map(str, group)) + "}" for group in groups)
    return "replica_groups={" + ",".join(texts) + "}"


def find(computations: list[Computation], name: str) -> Computation | None:
    """Finds the computation that has an instruction of that name."""
    return next((c for c in computations if name in c.instructions), None)


def _instruction(name: str, rest: str) -> Instruction | None:
    # A tuple shape has parentheses too: the opcode is what stands before one that is at the start
    # of a word outside all brackets.
    start = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    found = _OPCODE.search(rest, start) if start > 0 else None
    if not found:
        return None
    end = _closing(rest, found.end() - 1)
    if end < 0:
        return None
    inside = rest[found.end() : end]
    literal = inside if found["opcode"] in ("constant", "parameter", "iota") else ""
    operands = [] if literal else [_NAME_AT_THE_END.search(part) for part in _split(inside)]
    return Instruction(
        name=name,
        shape=_LAYOUT.sub("", rest[: found.start()].strip()),
        opcode=found["opcode"],
        operands=tuple(operand[1] for operand in operands if operand),
        literal=literal,
        attributes=rest[end + 1 :].lstrip(", "),
    )


def _closing(text: str, opening: int) -> int:
    """Returns where the bracket at `opening` is closed, or -1."""
    for position, depth in _depths(text, opening):
        if depth == 0:
            return position
    return -1


def _split(text: str) -> list[str]:
    """Splits at the commas outside all brackets."""
    cuts = [i for i, depth in _depths(text, 0) if depth == 0 and text[i] == ","]
    parts = [text[a + 1 : b] for a, b in zip([-1, *cuts], [*cuts, len(text)], strict=True)]
    return [part.strip() for part in parts if part.strip()]


def _depths(text: str, start: int) -> Iterator[tuple[int, int]]:
    """Yields each position outside strings and how many brackets are open after it."""
    depth = 0
    quoted = False
    for i in range(start, len(text)):
        if text[i] == '"' and text[i - 1] != "\\":
            quoted = not quoted
        if quoted:
            continue
        if text[i] in _BRACKETS:
            depth += 1
        elif text[i] in _BRACKETS.values():
            depth -= 1
        yield i, depth
