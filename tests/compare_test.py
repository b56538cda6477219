# SPDX-License-Identifier: Apache-2.0
"""`oneshot compare` on emulated devices: what it finds and refuses; not how fast anything is."""

import re
from pathlib import Path

import jax
import numpy as np
import oneshot
import pytest
from oneshot import compare, steps
from program import run

PROGRAM = """
import functools, sys
import jax
import numpy as np
import oneshot
from jax import lax
from jax.sharding import PartitionSpec as P

@functools.partial(jax.jit, donate_argnums=0)
@functools.partial(jax.shard_map, mesh=jax.sharding.Mesh(jax.devices(), ("a",)), in_specs=P("a"),
    out_specs=P("a"))
def step(x):
    return x / 2 + REDUCE(x, "a") / 16

@jax.jit
def rarely(x):
    return x + 1

mesh = jax.sharding.Mesh(jax.devices(), ("a",))
x = jax.device_put(np.arange(8, dtype=np.float32), jax.sharding.NamedSharding(mesh, P("a")))
x = rarely(x)
for i in range(int(sys.argv[1])):
    x = step(x)
"""


def program(directory: Path, reduce: str = "lax.psum") -> Path:
    """Writes a program."""
    path = directory / "program.py"
    path.write_text(PROGRAM.replace("REDUCE", reduce))
    return path


def test_steps_are_timed_and_outputs_compared(tmp_path: Path) -> None:
    command = ["compare", "--rounds", "2", "--emulate", "8", program(tmp_path), "9"]
    done = run("-m", "oneshot", *command)
    assert done.code == 0, done.err
    assert "emulated on CPU: times say nothing of GPUs" in done.out[0]
    assert done.out[1].startswith("step: step, 9 a run, 2 runs each")
    assert done.out[2] == "all-reduces: 1 fused with an epilogue; 0 replaced, sum alone; 0 left"
    times = re.search(r"(\S+) us off, (\S+) us on: (\S+) us", done.out[3])
    off, on, saved = map(float, times.groups())
    assert min(off, on) > 0
    assert saved == pytest.approx(off - on, abs=0.2)
    assert done.out[4].startswith("outputs (1 arrays): largest difference ")


@pytest.mark.parametrize(
    ("count", "reduce", "options", "message"),
    [
        ("9", "lax.pmax", ["--emulate", "8"], "no all-reduce was replaced (1 left)"),
        ("x", "lax.psum", ["--emulate", "8"], "invalid literal for int()"),
        ("9", "lax.psum", ["--rounds", "1"], "--rounds: two at least"),
    ],
    ids=["replaced", "fails", "rounds"],
)
def test_refuses(count: str, reduce: str, options: list[str], message: str, tmp_path: Path) -> None:
    path = program(tmp_path, reduce=reduce)
    done = run("-m", "oneshot", "compare", *options, path, count, XLA_FLAGS="")
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"platform": "cpu"}, "JAX has no GPU here"),
        ({"processes": 2}, "the program has several processes"),
        ({"step": None}, "no step was run more than 3 times"),
        ({"enabled": False}, "nothing would be fused, Oneshot is off: no peers"),
        ({}, None),
    ],
    ids=["gpu", "processes", "steps", "off", "good"],
)
def test_refuses_a_run(
    changes: dict[str, object], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    found = {"platform": "gpu", "processes": 1, "step": {"name": "f"}} | changes
    counts = {"modules": 1, "fused": 1, "alone": 0, "left": 0}
    found["status"] = {
        "enabled": changes.get("enabled", True),
        "reason": "no peers",
        "compiled": counts,
        "cached": counts,
    }
    said = compare._why_meaningless(compare._Run("on", found, []))
    assert said == reason or said.startswith(reason)


def test_marked_steps_count_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with oneshot.step() as step:  # outside of `compare`
        step.result(1)
    monkeypatch.setattr(steps, "recorder", steps.Recorder())
    f = steps.recorder.wrap(jax.jit)(lambda x: x + 1)
    for i in range(5):
        with oneshot.step() as step:
            step.result(f(jax.numpy.bfloat16(i)))
    found = steps.recorder.step()
    assert (found.name, found.steps, len(found.seconds)) == ("marked", 5, 2)
    assert [(array.dtype, float(array)) for array in found.outputs] == [(np.float32, 3.0)]
    # Calls of jitted functions are recorded too, but not those that are traced.
    assert [record.steps for record in steps.recorder.jitted] == [5]
    jax.grad(f)(1.0)
    assert [record.steps for record in steps.recorder.jitted] == [5]


def test_difference() -> None:
    one = np.array([1.0, -4.0], np.float32)
    assert compare._difference([one], [one.copy()]) == 0
    assert compare._difference([one, one], [one, one + np.float32(1)]) == 0.25
    assert compare._difference([np.arange(4)], [np.array([0, 1, 2, 9])]) == 0.25
    nan = np.array([np.nan, 1.0], np.float32)
    assert compare._difference([nan], [nan]) == 0
    assert not compare._difference([one], [nan]) < 1e9
    with pytest.raises(compare.CompareError, match="other shapes"):
        compare._difference([one], [one[:1]])


def test_the_step_is_what_takes_longest() -> None:
    recorder = steps.Recorder()
    assert recorder.step() is None
    for name, count, seconds in (("often", 100, 0.001), ("long", 10, 0.1), ("once", 3, 9.0)):
        record = steps.Record(name)
        for _ in range(count):
            record.add(seconds, ())
        recorder.jitted.append(record)
    assert recorder.step().name == "long"
