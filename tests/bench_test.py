# SPDX-License-Identifier: Apache-2.0
"""The benchmark on emulated devices: that it runs and what it writes; not how fast anything is."""

import gzip
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import emulation
import pytest
from oneshot import bench
from oneshot.bench import profile


def test_op(tmp_path: Path) -> None:
    samples = tmp_path / "bench.json"
    command = [sys.executable, "-m", "oneshot", "bench", "--models", "op", "--batches", "1"]
    options = ["--loops", "device", "moving", "--rounds", "2", "--profile", "--json", str(samples)]
    options += ["--hidden", "256", "--dtypes", "f32"]
    done = subprocess.run(
        [*command, *options],
        env=emulation.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| op, f32 of 256 | 1 | device |" in done.stdout
    assert "| 16 of 16 |" in done.stdout
    jax, jaxlib = (importlib.metadata.version(name) for name in ("jax", "jaxlib"))
    first = done.stdout.splitlines()[0]
    assert first.startswith("all arms: oneshot ")
    assert f"jax {jax}, jaxlib {jaxlib}" in first
    assert "  oneshot: 0.0 graph launches" in done.stdout  # there are none without a GPU
    assert "| op, f32 of 256 | 1 | moving |" in done.stdout
    row, _ = [json.loads(line) for line in samples.read_text().splitlines()]
    assert row["layers"] == 16
    assert {arm: found["jax"] for arm, found in row["versions"].items()} == dict.fromkeys(
        row["times"], jax
    )
    assert {arm: len(times) for arm, times in row["times"].items()} == {
        "stock": 2,
        "nccl": 2,
        "nccl in graph": 2,
        "nccl symmetric": 2,
        "oneshot": 2,
    }
    assert all(time > 0 for times in row["times"].values() for time in times)

    shape = ["--hidden", "256", "--dtype", "f32"]
    drawn = subprocess.run(
        [sys.executable, "-m", "oneshot.bench.plot", str(samples), *shape, "--title", "a < b"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert drawn.startswith("<svg") and "a &lt; b" in drawn


def test_the_users_flags_are_for_all_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    flags = {arm: bench.environment(arm, "/tmp")["XLA_FLAGS"].split() for arm in bench.ARMS}
    assert all(flag[0] == "--xla_a=1" for flag in flags.values())
    assert set(flags["nccl"]) > set(flags["stock"]) == set(flags["oneshot"])


def test_unknown_model() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "oneshot", "bench", "--models", "gpt-9"],
        env=emulation.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no model 'gpt-9'" in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"XLA_FLAGS": ""}, "JAX has no GPU here"),
        ({"ONESHOT_XLA_DIR": "/"}, "Oneshot is off: ONESHOT_XLA_DIR='/'"),
        (
            {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
            "2 devices are asked for (--devices), JAX has 1",
        ),
        ({"ONESHOT_SKIP": "."}, "no all-reduce was replaced, a ratio would say nothing"),
    ],
    ids=["gpu", "xla", "devices", "fused"],
)
def test_refuses_where_nothing_can_be_fused(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in emulation.environment(**variables).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bench, "ARMS", {name: bench.ARMS[name] for name in ("stock", "oneshot")})
    case = bench.Case("op", 1, 1, "device", 256, "f32")
    with pytest.raises(RuntimeError, match=re.escape(message)):
        next(bench.run([case], 2, 1))


def test_versions_are_told_apart() -> None:
    case = bench.Case("op", 1, 1, "device")
    found = {"stock": {"jax": "1", "GPU": "2 x A"}, "oneshot": {"jax": "2", "GPU": "2 x A"}}
    row = bench.Row(case, 1, {}, {}, "", {}, found)
    assert list(bench.notes(row)) == ["stock: jax 1, GPU 2 x A", "oneshot: jax 2, GPU 2 x A"]


def test_profile_counts_per_gpu_and_step(tmp_path: Path) -> None:
    def named(pid: int, name: str) -> dict[str, object]:
        return {"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}

    def span(pid: int, name: str, dur: float) -> dict[str, object]:
        return {"ph": "X", "pid": pid, "tid": 1, "ts": 0, "name": name, "dur": dur}

    events = [
        *[named(1, "/device:GPU:0"), named(2, "/device:GPU:1"), named(3, "/host:CPU")],
        *[span(pid, "oneshot_all_reduce", 3.0) for pid in (1, 1, 1, 1, 2, 2, 2, 2)],
        *[span(1, "gemm", 8.0), span(1, "gemm", 9.0)],
        *[span(3, f"cuGraphLaunch (CudaGraph:{graph})", 5.0) for graph in (7, 7, 9, 9)],
        *[span(3, "command_buffer::update", 10.0), span(3, "cuLaunchKernel", 2.0)],
    ]
    path = tmp_path / "plugins" / "host.trace.json.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))

    summary = profile.summary(str(tmp_path), steps=2)

    assert summary["kernels"] == [["gemm", 1.0, 8.5], ["oneshot_all_reduce", 2.0, 6.0]]
    assert summary["kernels_us"] == 14.5
    assert summary["graph_launches"] == 1.0
    assert summary["launches"] == 0.25
    assert summary["graph_updates_us"] == pytest.approx(2.5)
