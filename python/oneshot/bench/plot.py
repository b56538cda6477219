# SPDX-License-Identifier: Apache-2.0
"""A bar chart of what `python -m oneshot bench --json` has written.

python -m oneshot.bench.plot bench.json --models op --title "..." >chart.svg
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from oneshot.bench import ARMS

COLORS = {
    "stock": "#7b8794",
    "nccl": "#9aa5b1",
    "nccl in graph": "#b5bfc9",
    "nccl symmetric": "#cbd2d9",
    "oneshot": "#2f6f4f",
}
NAMES = {
    "stock": "stock XLA",
    "nccl": "stock, NCCL",
    "nccl in graph": "stock, NCCL in graph",
    "nccl symmetric": "stock, NCCL symmetric",
    "oneshot": "Oneshot",
}
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 900, 320, 50, 60, 50


def chart(groups: dict[tuple[str, int], dict[str, float]], title: str) -> Iterator[str]:
    """Lines of an SVG.

    Args:
      groups: microseconds by arm, by the model and the batch of a group of bars; an arm that a
        group lacks is left out.
      title: what is shown.
    """
    arms = [arm for arm in ARMS if all(arm in times for times in groups.values())]
    largest = max(max(times.values()) for times in groups.values())
    height = HEIGHT - TOP - BOTTOM
    slot = (WIDTH - LEFT - 10) / len(groups)
    bar = slot / (len(arms) + 1)
    digits = min(11, bar / 2)  # three and a half of them beside each other in a bar
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="Arial, Helvetica, Liberation Sans, sans-serif" font-size="12">'
    )
    yield f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
    yield f'<text x="{LEFT}" y="22" font-size="15" font-weight="bold">{escape(title)}</text>'
    for i, arm in enumerate(arms):
        x = LEFT + i * 165
        yield f'<rect x="{x}" y="34" width="12" height="12" fill="{COLORS[arm]}"/>'
        yield f'<text x="{x + 18}" y="44">{NAMES[arm]}</text>'
    centers: dict[str, list[float]] = {}
    for g, ((model, batch), times) in enumerate(groups.items()):
        for i, arm in enumerate(arms):
            size = times[arm] / largest * height
            x, y = LEFT + g * slot + i * bar, HEIGHT - BOTTOM - size
            yield (
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar * 0.92:.1f}" height="{size:.1f}" '
                f'fill="{COLORS[arm]}"/>'
            )
            yield (
                f'<text x="{x + bar * 0.46:.1f}" y="{y - 4:.1f}" text-anchor="middle" '
                f'font-size="{digits:.1f}">{times[arm]:.{1 if times[arm] < 100 else 0}f}</text>'
            )
        middle = LEFT + g * slot + bar * len(arms) / 2
        centers.setdefault(model, []).append(middle)
        yield f'<text x="{middle:.1f}" y="{HEIGHT - 32}" text-anchor="middle">{batch}</text>'
    for model, middles in centers.items():
        name = "tokens" if model == "op" else f"sequences, {model}"
        middle = statistics.mean(middles)
        yield f'<text x="{middle:.1f}" y="{HEIGHT - 12}" text-anchor="middle">{name}</text>'
    yield f'<text x="{LEFT - 8}" y="{TOP - 4}" text-anchor="end">us</text>'
    yield "</svg>"


def main() -> None:
    """Writes the chart of one kind of loop to stdout: a group for each model and batch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--models", nargs="+", default=["op"])
    parser.add_argument("--layers", type=int, default=8, help="of models")
    parser.add_argument("--loop", default="device")
    parser.add_argument("--hidden", type=int, default=8192, help="of op")
    parser.add_argument("--dtype", default="bf16", help="of op")
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    rows = [json.loads(line) for line in arguments.file.read_text().splitlines()]
    groups = {}
    for model in arguments.models:
        wanted = {"model": model, "loop": arguments.loop}
        if model == "op":
            wanted |= {"hidden": arguments.hidden, "dtype": arguments.dtype}
        else:
            wanted |= {"layers": arguments.layers}
        for row in sorted(rows, key=lambda row: row["case"]["batch"]):
            if row["case"].items() >= wanted.items():
                times = {arm: statistics.median(times) for arm, times in row["times"].items()}
                groups[model, row["case"]["batch"]] = times
    if not groups:
        sys.exit(f"{arguments.file} has no {arguments.models[0]} in a {arguments.loop} loop")
    print("\n".join(chart(groups, arguments.title or ", ".join(arguments.models))))


if __name__ == "__main__":
    main()
