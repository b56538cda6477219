# SPDX-License-Identifier: Apache-2.0
"""Pictures of HLO: what is shown, what went with an all-reduce, and where boxes stand."""

import itertools
import re
from xml.etree import ElementTree

from oneshot import hlo_picture, hlo_text

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


def test_svg_stands_in_layers_and_marks_where_a_match_ended() -> None:
    view = hlo_picture.around(MAIN, ["second", "both"])
    drawn = hlo_picture.svg(view, {"result": "has a <reason>"}, "title & more")
    picture = ElementTree.fromstring(drawn)
    assert picture.findtext("title") == "title & more"
    boxes = {
        box.findtext("title").split(" = ")[0]: box
        for box in picture.iter("g")
        if box.get("class").startswith("box")
    }
    assert set(boxes) == {"biased", "second", "both", "result"}
    assert "has a <reason>" in boxes["result"].findtext("title")
    assert "stop" in boxes["result"].get("class")
    assert "region" in boxes["second"].get("class")
    assert boxes["biased"].get("class").split() == ["box"]
    tops = [float(boxes[name].find("rect").get("y")) for name in boxes]
    assert tops == sorted(set(tops))  # each reads the one above it


def test_boxes_of_a_layer_do_not_overlap() -> None:
    lines = [f"  p{i} = f32[8] parameter({i})" for i in range(9)]
    text = "\n".join(["HloModule m", "ENTRY main {", *lines])
    text += f"\n  ROOT t = (f32[8]) tuple({', '.join(f'p{i}' for i in range(9))})\n}}\n"
    (computation,) = hlo_text.parse(text)
    drawn = hlo_picture.svg(hlo_picture.around(computation, ["t"]), {}, "")
    boxes = re.findall(r'<rect x="([\d.-]+)" y="(\d+)" width="([\d.]+)"', drawn)
    top = min(float(y) for _, y, _ in boxes)
    row = sorted((float(x), float(width)) for x, y, width in boxes if float(y) == top)
    assert len(row) == 9
    assert all(x + width <= after for (x, width), (after, _) in itertools.pairwise(row))
