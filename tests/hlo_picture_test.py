# SPDX-License-Identifier: Apache-2.0
"""Pictures of HLO: what is shown, what went with an all-reduce, and where boxes stand."""

import itertools
import re

from oneshot import hlo_picture, hlo_text
from program import HLO

BEFORE = """
HloModule module

ENTRY main {
  x = f32[8] parameter(0)
  bias = f32[8] parameter(1)
  unread = f32[8] negate(x)
  first = f32[8] all-reduce(x), to_apply=add
  wide = f32[8] exponential(bias)
  biased = f32[8] add(first, wide)
  second = f32[8] all-reduce(biased), to_apply=add
  both = f32[8] multiply(second, biased)
  ROOT result = f32[8] tanh(both)
}
"""
(MAIN,) = hlo_text.parse(BEFORE)


def test_around_shows_operands_and_readers() -> None:
    view = hlo_picture.around(MAIN, ["first"])
    assert view.neighbours == {"x", "biased"}
    assert hlo_picture.around(MAIN, ["first"], hops=2).neighbours == {
        *("x", "biased", "second", "both")
    }


def test_replaced_takes_what_reads_it_and_what_only_that_reads() -> None:
    remaining = {"x", "bias", "result"}
    found = hlo_picture.replaced(MAIN, remaining, ["first", "second"])
    # What reads both went with the last one.
    assert found == {"first": {"first", "wide", "biased"}, "second": {"second", "both"}}


def boxes(svg: str) -> dict[str, str]:
    """Class by name of each instruction in a picture."""
    found = re.findall(r'<g class="box ([a-z]*)"><title>([\w.-]+) = ', svg)
    return {name: kind for kind, name in found}


def test_view_and_marks() -> None:
    _, main = hlo_text.parse(HLO)
    view = hlo_picture.around(main, {"all-reduce", "sum"})
    svg = hlo_picture.svg(view, {"sine": "no <such> operation"}, "a & b")
    assert boxes(svg) == {
        "x": "",
        "r": "",
        "all-reduce": "region",
        "sum": "region",
        "sine": "stop",
    }
    assert svg.count('class="edge"') == 4
    assert "no &lt;such&gt; operation" in svg
    assert "<title>a &amp; b</title>" in svg


def test_operands_are_above_and_nothing_overlaps() -> None:
    lines = [f"  v{i} = f32[] add(v{max(0, i - 1)}, v{i // 2})" for i in range(1, 30)]
    text = "\n".join(["main {", "  v0 = f32[] parameter(0)", *lines, "}"])
    (main,) = hlo_text.parse(text)
    svg = hlo_picture.svg(hlo_picture.around(main, set(main.instructions)), {}, "")
    pattern = r"<title>(\w+) = .*?\s*</title><rect x=\"([\d.-]+)\" y=\"(\d+)\" width=\"([\d.]+)\""
    found = {name: tuple(map(float, rest)) for name, *rest in re.findall(pattern, svg)}
    assert len(found) == 30
    for instruction in main.instructions.values():
        for operand in instruction.operands:
            assert found[operand][1] < found[instruction.name][1]
    rows: dict[float, list[tuple[float, float]]] = {}
    for x, y, width in found.values():
        assert x >= 0
        rows.setdefault(y, []).append((x, x + width))
    for row in rows.values():
        row.sort()
        assert all(a[1] < b[0] for a, b in itertools.pairwise(row))
