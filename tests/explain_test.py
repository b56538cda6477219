# SPDX-License-Identifier: Apache-2.0
"""`oneshot.explain` and `python -m oneshot doctor`."""

import json
import subprocess
import sys
from pathlib import Path

from emulation import environment

PROGRAM = """
import functools
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
import oneshot

mesh = jax.sharding.Mesh(jax.devices(), ("a",))

@jax.jit
@functools.partial(jax.shard_map, mesh=mesh, in_specs=P(None, "a"), out_specs=P())
def program(x):
    h = lax.psum(x, "a")
    return jnp.sort(jnp.tanh(h)), lax.pmax(x, "a")

x = jax.ShapeDtypeStruct((4, 64), jnp.float32)
before = oneshot.is_enabled()
for _ in range(2):
    explanation = oneshot.explain(program, x)
    print([(site.fired, site.epilogue, site.reason) for site in explanation])
print([stop.opcode for site in explanation for stop in site.stopped])
print(explanation)
"""


def run(*command: str, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs Python in a fresh process."""
    return subprocess.run(
        [sys.executable, *command],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
    )


def test_explain(tmp_path: Path) -> None:
    for variables in ({}, {"ONESHOT": "1", "ONESHOT_DUMP_TO": tmp_path}):
        done = run("-c", PROGRAM, **variables)
        assert done.returncode == 0, done.stderr
        first, second, stops, *text = done.stdout.splitlines()
        expected = [(True, "tanh", ""), (False, "", "reduction is not a sum")]
        assert sorted(eval(first)) == sorted(eval(second)) == sorted(expected)
        assert "sort" in stops
        assert any("1 of 2 all-reduces fused" in line for line in text)
        assert any("<string>:" in line for line in text)
    # What is explained is dumped nowhere else.
    assert not list(tmp_path.iterdir())


def test_explain_without_an_all_reduce() -> None:
    done = run("-c", "import jax, oneshot; print(oneshot.explain(jax.jit(lambda x: x + 1), 1.0))")
    assert done.stdout.strip() == "no all-reduce", done.stderr


def test_doctor() -> None:
    done = run("-m", "oneshot", "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    found = json.loads(run("-m", "oneshot", "doctor", "--json").stdout)
    assert {entry["what"] for entry in found} >= {"python", "jax", "jaxlib", "XLA's libraries"}
    assert not [entry for entry in found if entry["state"] == "problem"]


def test_doctor_says_what_is_wrong() -> None:
    done = run("-m", "oneshot", "doctor", ONESHOT_NONSENSE="1")
    assert done.returncode == 1
    assert any(
        line.startswith("problem") and "ONESHOT_NONSENSE" in line
        for line in done.stdout.splitlines()
    )
    flags = "--xla_gpu_command_buffer_scheduling_mode=CONCURRENT"
    done = run("-m", "oneshot", "doctor", XLA_FLAGS=flags)
    assert done.returncode == 1
    assert "remove concurrent command buffers" in done.stdout
