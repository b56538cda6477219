# SPDX-License-Identifier: Apache-2.0
"""Pictures of the HLO around an all-reduce, as SVG: layered from operands to users."""

import html
import itertools
import statistics
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from oneshot.hlo_text import Computation, Instruction

_CHARACTER = 7.3  # width of one, in the page's monospaced 12 px
_LONGEST = 34  # characters of a label
_HEIGHT = 38
_GAP = 18
_LAYER = 62
_MARGIN = 8
_SWEEPS = 8
# With more than this around it, a region can't be read any more.
_MOST_NEIGHBOURS = 24


@dataclass(frozen=True)
class View:
    """A part of a computation.

    Attributes:
      region: what was matched, or what replaces it.
      neighbours: what stands around that.
    """

    computation: Computation
    region: frozenset[str]
    neighbours: frozenset[str]


def around(computation: Computation, region: Collection[str], hops: int = 1) -> View:
    """Returns `region` with what it reads, and what reads it in up to `hops` steps."""
    users = computation.users()
    found: dict[str, None] = {}
    for name in region:
        found |= dict.fromkeys(computation.instructions[name].operands)
    edge: Iterable[str] = region
    for _ in range(hops):
        edge = [user for name in edge for user in users[name]]
        found |= dict.fromkeys(edge)
    names = [name for name in found if name in computation.instructions and name not in region]
    return View(computation, frozenset(region), frozenset(names[:_MOST_NEIGHBOURS]))


def replaced(
    before: Computation, remaining: Collection[str], all_reduces: list[str]
) -> dict[str, set[str]]:
    """Finds what each replaced all-reduce took with it.

    Args:
      before: the computation as it was.
      remaining: names of the instructions of the module as it is.
      all_reduces: names of the module's all-reduces in its order.

    Returns:
      By all-reduce: itself, what is gone and reads it, and what is gone and only they read.
    """
    order = {name: i for i, name in enumerate(all_reduces)}
    # What reads several of them went with the last one.
    owner: dict[str, int] = {}
    for instruction in before.instructions.values():
        if instruction.name in remaining:
            continue
        read = [owner[operand] for operand in instruction.operands if operand in owner]
        if instruction.name in order:
            owner[instruction.name] = order[instruction.name]
        elif read:
            owner[instruction.name] = max(read)
    for name in reversed(before.instructions):
        if name in owner:
            for operand in before.instructions[name].operands:
                if operand not in remaining:
                    owner.setdefault(operand, owner[name])
    found: dict[str, set[str]] = {}
    for name, index in owner.items():
        found.setdefault(all_reduces[index], set()).add(name)
    return found


def svg(view: View, marks: Mapping[str, str], title: str) -> str:
    """Draws a view.

    Args:
      view: what to draw.
      marks: reasons, by the names of instructions to mark with them.
      title: what the picture shows, for those who can't see it.

    Returns:
      An <svg> element. Its classes are styled by the page: `box`, with `region` or `stop`, and
      `edge`.
    """
    graph = _Graph(view)
    graph.order()
    graph.place()
    width = max(node.x + node.width / 2 for node in graph.nodes.values()) + _MARGIN
    height = len(graph.layers) * _LAYER - (_LAYER - _HEIGHT) + 2 * _MARGIN
    parts = [
        f'<svg role="img" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}">',
        f"<title>{html.escape(title)}</title>",
    ]
    parts += [f'<path class="edge" d="{path}" marker-end="url(#arrow)"/>' for path in graph.paths()]
    for name in graph.real:
        instruction = view.computation.instructions[name]
        parts.append(_box(instruction, graph.nodes[name], name in view.region, marks.get(name)))
    return "".join([*parts, "</svg>"])


def _shorten(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _labels(instruction: Instruction) -> tuple[str, str]:
    head = instruction.custom_call_target or instruction.opcode
    if instruction.literal:
        head += f"({instruction.literal})"
    return _shorten(head), _shorten(instruction.shape)


def _box(instruction: Instruction, node: "_Node", in_region: bool, mark: str | None) -> str:
    kind = "stop" if mark is not None else "region" if in_region else ""
    lines = [f"{instruction.name} = {instruction.shape} {instruction.opcode}"]
    lines += filter(None, (instruction.op_name, mark))
    left, top = node.x - node.width / 2, node.layer * _LAYER + _MARGIN
    head, shape = map(html.escape, _labels(instruction))
    return (
        f'<g class="box {kind}"><title>{html.escape(chr(10).join(lines))}</title>'
        f'<rect x="{left:.1f}" y="{top}" width="{node.width:.1f}" height="{_HEIGHT}" rx="5"/>'
        f'<text x="{node.x:.1f}" y="{top + 16}">{head}</text>'
        f'<text class="shape" x="{node.x:.1f}" y="{top + 31}">{shape}</text></g>'
    )


@dataclass
class _Node:
    """A box, or a point where an edge passes a layer.

    Attributes:
      layer: its row, from the top.
      width: of the box.
      x: its centre.
    """

    layer: int
    width: float = 0
    x: float = 0


class _Graph:
    """Boxes in layers, with the usual three steps: layers, order in a layer, coordinates."""

    def __init__(self, view: View):
        shown = view.region | view.neighbours
        instructions = view.computation.instructions
        self.real = [name for name in instructions if name in shown]
        # How neighbours hang together says nothing about a match, but does about an all-reduce
        # that was left alone.
        alone = len(view.region) == 1
        edges = [
            (operand, name)
            for name in self.real
            for operand in dict.fromkeys(instructions[name].operands)
            if operand in shown and (alone or operand in view.region or name in view.region)
        ]
        layer = dict.fromkeys(self.real, 0)
        for operand, name in edges:  # in the order of the text: operands come first
            layer[name] = max(layer[name], layer[operand] + 1)
        # What nothing leads to goes right above its first user.
        targets = {name for _, name in edges}
        for name in self.real:
            below = [layer[user] for operand, user in edges if operand == name]
            if name not in targets and below:
                layer[name] = min(below) - 1
        self.nodes: dict[str, _Node] = {}
        for name in self.real:
            longest = max(map(len, _labels(instructions[name])))
            self.nodes[name] = _Node(layer[name], longest * _CHARACTER + 16)
        self.routes = [self._route(*edge) for edge in edges]
        self.above: dict[str, list[str]] = {name: [] for name in self.nodes}
        self.below: dict[str, list[str]] = {name: [] for name in self.nodes}
        for route in self.routes:
            for upper, lower in itertools.pairwise(route):
                self.below[upper].append(lower)
                self.above[lower].append(upper)
        self.layers: list[list[str]] = [[] for _ in range(max(layer.values(), default=0) + 1)]
        for name, node in self.nodes.items():
            self.layers[node.layer].append(name)

    def _route(self, operand: str, name: str) -> list[str]:
        """Makes a point in each layer between two boxes."""
        route = [operand]
        for layer in range(self.nodes[operand].layer + 1, self.nodes[name].layer):
            route.append(f"{operand} {name} {layer}")  # no name of an instruction has a space
            self.nodes[route[-1]] = _Node(layer)
        return [*route, name]

    def order(self) -> None:
        """Orders each layer by where its neighbours are, from above and from below in turn."""
        position = {name: i for layer in self.layers for i, name in enumerate(layer)}
        for sweep in range(_SWEEPS):
            down = sweep % 2 == 0
            neighbours = self.above if down else self.below
            for layer in self.layers if down else reversed(self.layers):
                means = {
                    name: statistics.fmean(position[other] for other in neighbours[name])
                    if neighbours[name]
                    else position[name]
                    for name in layer
                }
                layer.sort(key=means.__getitem__)
                position |= {name: i for i, name in enumerate(layer)}

    def place(self) -> None:
        """Puts each box as near to the middle of its neighbours as those beside it let it."""
        for layer in self.layers:
            self._spread(layer, dict.fromkeys(layer, 0.0))
        for sweep in range(_SWEEPS):
            down = sweep % 2 == 0
            neighbours = self.above if down else self.below
            for layer in self.layers if down else reversed(self.layers):
                wanted = {
                    name: statistics.fmean(self.nodes[other].x for other in neighbours[name])
                    if neighbours[name]
                    else self.nodes[name].x
                    for name in layer
                }
                self._spread(layer, wanted)
        left = min(node.x - node.width / 2 for node in self.nodes.values())
        for node in self.nodes.values():
            node.x += _MARGIN - left

    def _spread(self, layer: list[str], wanted: Mapping[str, float]) -> None:
        """Keeps order and distance: the mean of pushing to the right and pushing to the left."""
        nodes = [self.nodes[name] for name in layer]
        right = [wanted[name] for name in layer]
        left = list(right)
        for i in range(1, len(nodes)):
            distance = (nodes[i - 1].width + nodes[i].width) / 2 + _GAP
            right[i] = max(right[i], right[i - 1] + distance)
        for i in reversed(range(1, len(nodes))):
            distance = (nodes[i - 1].width + nodes[i].width) / 2 + _GAP
            left[i - 1] = min(left[i - 1], left[i] - distance)
        for node, a, b in zip(nodes, right, left, strict=True):
            node.x = (a + b) / 2

    def paths(self) -> list[str]:
        """SVG path data of each edge, from the lower side of a box to the upper side of one."""
        found = []
        for route in self.routes:
            points = []
            for name in route:
                node = self.nodes[name]
                top = node.layer * _LAYER + _MARGIN
                points.append((node.x, top, top + _HEIGHT))
            x, _, y = points[0]
            data = f"M{x:.1f} {y}"
            for end, top, bottom in points[1:]:
                bend = (y + top) / 2
                data += f"C{x:.1f} {bend} {end:.1f} {bend} {end:.1f} {top}"
                x, y = end, bottom
                if (end, top, bottom) != points[-1]:
                    data += f"V{bottom}"
            found.append(data)
        return found
