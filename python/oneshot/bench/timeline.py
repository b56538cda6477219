# SPDX-License-Identifier: Apache-2.0
"""A picture of some consecutive fused calls, and of what runs between them, from a profile.

`python -m oneshot timeline` writes it.
"""

import bisect
import dataclasses
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from oneshot import report

CALLS = 3
WIDTH, LEFT, TOP, ROW, BAR = 960, 72, 34, 44, 26
FUSED, OTHER = "#2f6f4f", "#cbd2d9"


@dataclasses.dataclass(frozen=True)
class Event:
    """What ran on a device.

    Attributes:
      device: its name for people.
      name: of the kernel, or of the HLO instruction on CPU.
      start: in microseconds.
      duration: in microseconds.
      op_name: where in the program it stands, e.g. "jit(step)/layer_0/mlp/dot_general"; or empty.
    """

    device: str
    name: str
    start: float
    duration: float
    op_name: str = ""

    @property
    def end(self) -> float:
        """In microseconds."""
        return self.start + self.duration

    @property
    def fused(self) -> bool:
        """Whether it is one of Oneshot's."""
        return self.name.startswith(report.CALL_PREFIX)

    @property
    def layer(self) -> str:
        """Its named scopes, or what there is of a place in the program."""
        return report.scopes(self.op_name) or self.op_name


def load(directories: Sequence[Path], modules: Iterable[report.Module] = ()) -> list[Event]:
    """Reads what has run on the devices, by start.

    Args:
      directories: what `jax.profiler.trace` has written, in each process; the newest profile
        counts. Devices of several processes are called "0: GPU 0", "1: GPU 0" and so on.
      modules: reports, for the layers of fused calls that the profile does not know.

    Raises:
      FileNotFoundError: there is no profile.
    """
    sites = {
        (module.module, site.custom_call): site.site
        for module in modules
        for site in module.all_reduces
    }
    with warnings.catch_warnings():
        # About how ProfileData is bound to C++.
        warnings.simplefilter("ignore", DeprecationWarning)
        profiles = [_newest(directory) for directory in directories]
        first = min(map(_start, profiles))
        events = []
        for process, profile in enumerate(profiles):
            prefix = f"{process}: " if len(profiles) > 1 else ""
            later = (_start(profile) - first) / 1e3
            for device, event, stats in _on_devices(profile):
                events.append(_event(prefix + device, later, event, stats, sites))
    return sorted(events, key=lambda event: event.start)


def _newest(directory: Path) -> Any:
    from jax.profiler import ProfileData

    files = sorted(directory.rglob("*.xplane.pb"))
    if not files:
        raise FileNotFoundError(f"{directory} has no profile")
    return ProfileData.from_file(str(files[-1]))


def _start(profile: Any) -> int:
    """When the profile began, in nanoseconds since 1970: its events count from there."""
    task = next((plane for plane in profile.planes if plane.name == "Task Environment"), None)
    return dict(task.stats).get("profile_start_time", 0) if task else 0


def _on_devices(profile: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Device, event and its statistics: kernels of GPUs, and HLO instructions of CPUs."""
    for plane in profile.planes:
        gpu = re.fullmatch(r"/device:(GPU:\d+)", plane.name)
        for line in plane.lines:
            if gpu and not line.name.startswith("Stream"):
                continue  # the same again, by operation
            for event in line.events:
                stats = dict(event.stats)
                if gpu:
                    yield gpu[1].replace(":", " "), event, stats
                elif "device_ordinal" in stats and "hlo_op" in stats:
                    yield f"CPU {stats['device_ordinal']}", event, stats


def _event(device: str, later: float, event: Any, stats: dict[str, Any], sites: dict) -> Event:
    site = sites.get((stats.get("hlo_module"), stats.get("hlo_op")))
    places = (re.search(r"jit\(.*", str(value)) for value in stats.values())
    op_name = site or next((place[0] for place in places if place), "")
    start = later + event.start_ns / 1e3
    return Event(device, event.name, start, event.duration_ns / 1e3, op_name)


def excerpt(events: list[Event], calls: int = CALLS) -> list[Event]:
    """What runs from the first to the last of some fused calls: those that are closest together.

    No device waits long for another there: a call that does is as long as its wait.

    Raises:
      ValueError: there are fewer fused calls on a device.
    """
    devices = list(_fused(events).values())
    fused = devices[0] if devices else []
    if len(fused) < calls:
        raise ValueError(f"{len(fused)} fused calls on a device, {calls} are needed")
    runs = [fused[i : i + calls] for i in range(len(fused) - calls + 1)]
    first, *_, last = min(runs, key=lambda run: _length(run, devices))
    window = [event for event in events if event.end > first.start and event.start < last.end]
    origin = min(event.start for event in window)
    return [dataclasses.replace(event, start=event.start - origin) for event in window]


def _length(run: list[Event], devices: list[list[Event]]) -> float:
    """From the first start to the last end of all devices' fused calls that overlap a run."""
    begin, end = run[0].start, run[-1].end
    met = []
    for calls in devices:
        low = bisect.bisect_right(calls, begin, key=lambda call: call.end)
        met += calls[low : bisect.bisect_left(calls, end, key=lambda call: call.start)]
    return max(call.end for call in met) - min(call.start for call in met)


def _fused(events: list[Event]) -> dict[str, list[Event]]:
    """The fused calls of each device, by its name."""
    devices = sorted({event.device for event in events})
    return {d: [event for event in events if event.fused and event.device == d] for d in devices}


def to_json(events: list[Event]) -> str:
    """For Perfetto, chrome://tracing, and `from_json`."""
    devices = sorted({event.device for event in events})
    names = [
        {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": device}}
        for pid, device in enumerate(devices)
    ]
    complete = [
        {
            "ph": "X",
            "pid": devices.index(event.device),
            "tid": 0,
            "name": event.name,
            "ts": round(event.start, 3),
            "dur": round(event.duration, 3),
            "args": {"op_name": event.op_name},
        }
        for event in events
    ]
    return json.dumps({"traceEvents": [*names, *complete]}, indent=1)


def from_json(text: str) -> list[Event]:
    """The inverse of `to_json`."""
    events = json.loads(text)["traceEvents"]
    devices = {event["pid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    return [
        Event(devices[e["pid"]], e["name"], e["ts"], e["dur"], e["args"]["op_name"])
        for e in events
        if e["ph"] == "X"
    ]


def svg(events: list[Event]) -> Iterator[str]:
    """Lines of an SVG: a row for each device, and below them what the fused calls are."""
    fused = _fused(events)
    listed = max(fused.values(), key=len)
    end = max(event.end for event in events)
    scale = (WIDTH - LEFT - 10) / end
    height = TOP + ROW * len(fused) + 20 * len(listed) + 10
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">'
    )
    yield f'<rect width="{WIDTH}" height="{height}" fill="white"/>'
    yield from _axis(scale, end)
    for row, (device, calls) in enumerate(fused.items()):
        top = TOP + row * ROW
        yield f'<text x="{LEFT - 8}" y="{top + 18}" text-anchor="end">{device}</text>'
        for event in (event for event in events if event.device == device):
            label = str(_number(event, calls, listed)) if event.fused else event.name
            yield from _box(event, label, scale, top)
    top = TOP + ROW * len(fused)
    for i, event in enumerate(listed):
        yield (
            f'<text x="{LEFT}" y="{top + 20 * i + 8}"><tspan fill="{FUSED}" font-weight="bold">'
            f"{i + 1}  {escape(event.name)}</tspan>  {escape(event.layer)}  "
            f"({event.duration:.1f} us on {event.device})</text>"
        )
    yield "</svg>"


def _number(event: Event, calls: list[Event], listed: list[Event]) -> int:
    """Which of the listed calls this is: by its place in the program, if that is known."""
    places = [(other.name, other.op_name) for other in listed]
    place = event.name, event.op_name
    known = place in places and len(set(places)) == len(places)
    return 1 + (places.index(place) if known else calls.index(event))


def _box(event: Event, label: str, scale: float, top: float) -> Iterator[str]:
    x, width = LEFT + event.start * scale, max(event.duration * scale, 0.5)
    text = escape("\n".join(filter(None, (event.name, event.op_name, f"{event.duration:.1f} us"))))
    yield (
        f'<rect x="{x:.1f}" y="{top}" width="{width:.1f}" height="{BAR}" '
        f'fill="{FUSED if event.fused else OTHER}" stroke="white" stroke-width="0.5">'
        f"<title>{text}</title></rect>"
    )
    if len(label) * 7 < width:
        yield (
            f'<text x="{x + width / 2:.1f}" y="{top + 18}" text-anchor="middle" '
            f'fill="{"white" if event.fused else "#3e4c59"}">{escape(label)}</text>'
        )


def _axis(scale: float, end: float) -> Iterator[str]:
    steps = [10**power * digit for power in range(9) for digit in (1, 2, 5)]
    step = next(step for step in steps if step * 12 > end)
    for i in range(int(end / step) + 1):
        x = LEFT + i * step * scale
        yield f'<text x="{x:.1f}" y="22" text-anchor="middle" fill="#7b8794">{i * step}</text>'
    yield f'<text x="{LEFT - 24}" y="22" text-anchor="end" fill="#7b8794">us</text>'
