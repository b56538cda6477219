# SPDX-License-Identifier: Apache-2.0
"""What a profiler shows of fused calls, and the picture of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulation import environment
from oneshot import report
from oneshot.bench import timeline

ROOT = Path(__file__).parent.parent
EPILOGUE = "oneshot_all_reduce_residual_rms_norm"


def profile(trace: Path, **variables: Path) -> Path:
    """Runs a program with named layers under the profiler."""
    program = ROOT / "docs" / "examples" / "nnx_server.py"
    command = [sys.executable, ROOT / "tests" / "profiled.py", trace, program]
    environ = environment(ONESHOT="1", **variables)
    environ["XLA_FLAGS"] = environ["XLA_FLAGS"].replace("count=8", "count=2")
    subprocess.run(command, env=environ, check=True, timeout=120, stdout=subprocess.DEVNULL)
    return trace


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The profile of a program with named layers, and its dump."""
    directory = tmp_path_factory.mktemp("run")
    profile(directory / "trace", ONESHOT_DUMP_TO=directory / "dump")
    return directory


def test_layer_and_epilogue(run: Path) -> None:
    events = timeline.load([run / "trace"], report.load(run / "dump"))
    fused = [event for event in events if event.fused]
    assert {event.device for event in fused} == {"CPU 0", "CPU 1"}
    assert all(event.name.startswith(EPILOGUE) for event in fused)
    halves = {f"layer_{i}/{half}" for i in range(2) for half in ("attention", "mlp")}
    assert {event.layer for event in fused} == halves
    assert len(events) > len(fused)


def test_processes_have_one_clock(run: Path) -> None:
    first = timeline.load([run / "trace"])
    assert [event.start for event in first] == sorted(event.start for event in first)
    with_another = timeline.load([run / "trace", profile(run / "another")])
    devices = [event.device for event in with_another]
    # The other ran when the first had ended.
    assert set(devices[: len(first)]) == {"0: CPU 0", "0: CPU 1"}
    assert set(devices[len(first) :]) == {"1: CPU 0", "1: CPU 1"}


def test_command_line(run: Path) -> None:
    layer = run / "layer.json"

    def draw(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "oneshot", "timeline", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout

    drawn = draw(run / "trace", "--dump", run / "dump", "--json", layer)
    assert "3  oneshot_all_reduce" in drawn
    assert re.search(r"layer_[01]/(attention|mlp)", drawn)
    assert draw(layer) == drawn


def test_excerpt_is_the_densest_part() -> None:
    def event(device: str, start: float, name: str = "gemm") -> timeline.Event:
        return timeline.Event(device, name, start, 2.0)

    starts = [0, 100, 110, 120, 200]
    fused = [event(gpu, start, EPILOGUE) for gpu in ("GPU 0", "GPU 1") for start in starts]
    between = [event("GPU 0", 105), event("GPU 1", 116), event("GPU 0", 150)]
    found = timeline.excerpt([*fused, *between])
    assert sorted(e.start for e in found if e.fused) == [0, 0, 10, 10, 20, 20]
    assert sorted(e.start for e in found if not e.fused) == [5, 16]
    assert timeline.from_json(timeline.to_json(found)) == sorted(found, key=found.index)
    with pytest.raises(ValueError, match="1 fused calls on a device, 3 are needed"):
        timeline.excerpt(fused[:1])


def test_excerpt_is_not_where_a_device_waits() -> None:
    def call(device: str, start: float, end: float) -> timeline.Event:
        return timeline.Event(device, EPILOGUE, start, end - start)

    punctual = [call("GPU 0", start, start + 2) for start in (500, 505, 510, 900, 910, 920)]
    waiting = [call("GPU 1", 0, 502), call("GPU 1", 504, 507), call("GPU 1", 509, 512)]
    soon = [call("GPU 1", start - 1, start + 2) for start in (900, 910, 920)]
    found = timeline.excerpt([*punctual, *waiting, *soon])
    assert [e.end for e in found] == [3, 13, 23] * 2
