# SPDX-License-Identifier: Apache-2.0
"""Decode steps with and without Oneshot: `python -m oneshot bench`.

Every arm is a process of its own with all GPUs, which lives as long as the benchmark. For each case
the arms take turns: one sample each, as often as there are rounds. A sample is the time of many
steps, so the arms see the same clocks and temperatures. What counts is the ratio to the best arm of
stock XLA.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

# Takes away XLA's own one-shot kernel.
_NCCL = "--xla_gpu_experimental_use_collective_kernels=-ALL_REDUCE"
# Memory that NCCL's kernels of lowest latency can use.
_SYMMETRIC = "--xla_gpu_experimental_enable_nccl_symmetric_buffers=true"

# Lets CUDA graphs hold calls of NCCL, too.
_IN_GRAPH = "--xla_gpu_enable_command_buffer=+COLLECTIVES"

ARMS = {
    "stock": {"ONESHOT": "0"},
    "nccl": {"ONESHOT": "0", "XLA_FLAGS": _NCCL},
    "nccl in graph": {"ONESHOT": "0", "XLA_FLAGS": f"{_NCCL} {_IN_GRAPH}"},
    "nccl symmetric": {"ONESHOT": "0", "XLA_FLAGS": f"{_NCCL} {_SYMMETRIC}"},
    "oneshot": {"ONESHOT": "1"},
}
"""Name of each arm and what it adds to the environment."""

DTYPES = {"bf16": "bfloat16", "f16": "float16", "f32": "float32"}
"""JAX's name of each type that "op" may have."""


@dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
      model: a name of `oneshot.bench.models.MODELS`, or "op" for the bare sequence of all-reduce,
        residual and RMSNorm.
      layers: of the model; the times are per layer.
      batch: sequences, with one new token each.
      loop: "device" (many steps in one program), "python" (a call a step, its state donated),
        "wait" (the same, but each step is waited for, as by a server that sends every token) or
        "moving" (a call a step, but only caches are donated, so that other buffers move).
      hidden: elements of a row, of "op"; models have their own.
      dtype: one of `DTYPES`, of "op"; models are in bf16.
    """

    model: str
    layers: int
    batch: int
    loop: str
    hidden: int = 8192
    dtype: str = "bf16"

    @property
    def name(self) -> str:
        """What the table calls the program."""
        return f"op, {self.dtype} of {self.hidden}" if self.model == "op" else self.model


def environment(arm: str, autotuned: str) -> dict[str, str]:
    """What the process of an arm sees.

    Args:
      arm: its name.
      autotuned: a directory for what one of them has found out about a GEMM; otherwise they might
        differ in what is the same for all.
    """
    flags = [
        os.environ.get("XLA_FLAGS", ""),  # the user's are for all arms
        ARMS[arm].get("XLA_FLAGS", ""),
        f"--xla_gpu_per_fusion_autotune_cache_dir={autotuned}",
        # Else a profile shows another program than the one that was timed.
        "--xla_enable_command_buffers_during_profiling=true",
    ]
    return (
        os.environ
        | ARMS[arm]
        | {
            # The arms share the GPUs.
            "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{0.9 / len(ARMS):.2f}",
            "XLA_FLAGS": " ".join(filter(None, flags)),
        }
    )


class Arm:
    """The process of an arm."""

    def __init__(self, name: str, devices: int, autotuned: str):
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", "oneshot.bench.worker", str(devices)],
            env=environment(name, autotuned),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: object) -> dict[str, Any]:
        """Sends a request and waits for the answer.

        Raises:
          RuntimeError: the process has ended, or says that it can't.
        """
        print(json.dumps(request), file=self._process.stdin, flush=True)
        for line in iter(self._process.stdout.readline, ""):
            # Libraries print to stdout too.
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    raise RuntimeError(f"{self.name}: {answer['error']}")
                return answer
        raise RuntimeError(f"{self.name}: ended with {self._process.wait()}")

    def close(self) -> None:
        """Ends the process."""
        self._process.stdin.close()
        self._process.wait()


@dataclass(frozen=True)
class Row:
    """What was measured for one case.

    Attributes:
      case: the case.
      layers: what the times are divided by.
      times: by arm, microseconds per layer, one of each round.
      compile_s: by arm, seconds of the compilation; the first arm's includes what the others take
        from its autotuning.
      fused: all-reduces that Oneshot has replaced, and all of them.
      profiles: by arm, see `oneshot.bench.profile`; empty if none were asked for.
      versions: by arm, see `oneshot.versions`.
    """

    case: Case
    layers: int
    times: dict[str, list[float]]
    compile_s: dict[str, float]
    fused: str
    profiles: dict[str, dict[str, object]]
    versions: dict[str, dict[str, str]]

    def median(self, arm: str) -> float:
        """Microseconds per layer."""
        return statistics.median(self.times[arm])

    @property
    def ratio(self) -> float:
        """How many times faster Oneshot is than the best arm of stock XLA."""
        stock = min(self.median(arm) for arm in self.times if arm != "oneshot")
        return stock / self.median("oneshot")


def run(
    cases: Sequence[Case],
    devices: int,
    rounds: int,
    profiled: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> Iterator[Row]:
    """Measures each case in all arms.

    Args:
      cases: what to measure.
      devices: how many GPUs to use; tensor parallelism over all of them.
      rounds: how many samples of each arm.
      profiled: whether each arm runs once more under JAX's profiler.
      progress: is told what happens next.

    Yields:
      A row for each case, as soon as it has been measured.

    Raises:
      RuntimeError: nothing could be fused here, an arm has ended, or can't run a case.
    """
    autotuned = tempfile.mkdtemp(prefix="oneshot-bench-")
    arms = [Arm(name, devices, autotuned) for name in ARMS]
    try:
        facts = {arm.name: arm.ask(do="facts") for arm in arms}
        if reason := _why_meaningless(facts["oneshot"], devices):
            raise RuntimeError(reason)
        versions = {name: answer["versions"] for name, answer in facts.items()}
        for case in cases:
            name = f"{case.name}, batch {case.batch}, {case.loop} loop"
            progress(f"{name}: compiling")
            prepared = {arm.name: arm.ask(do="prepare", **asdict(case)) for arm in arms}
            layers = prepared["oneshot"]["layers"]
            if prepared["oneshot"]["fused"].startswith("0 of "):
                raise RuntimeError(f"{name}: no all-reduce was replaced, a ratio would say nothing")
            times: dict[str, list[float]] = {arm.name: [] for arm in arms}
            for i in range(rounds):
                progress(f"{name}: round {i + 1} of {rounds}")
                for arm in arms:
                    times[arm.name].append(arm.ask(do="sample")["us"] / layers)
            yield Row(
                case,
                layers,
                times,
                {name: answer["compile_s"] for name, answer in prepared.items()},
                prepared["oneshot"]["fused"],
                {arm.name: arm.ask(do="profile") for arm in arms} if profiled else {},
                versions,
            )
    finally:
        for arm in arms:
            arm.close()
        shutil.rmtree(autotuned, ignore_errors=True)


def _why_meaningless(facts: dict[str, Any], devices: int) -> str | None:
    """Why a ratio would say nothing, from what the arm with Oneshot has said."""
    emulated = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if facts["platform"] == "cpu" and not emulated:
        return "JAX has no GPU here: there is nothing to compare; see `python -m oneshot doctor`"
    if not facts["enabled"]:
        return f"nothing would be fused, Oneshot is off: {facts['why_not']}"
    if facts["devices"] < devices:
        return f"{devices} devices are asked for (--devices), JAX has {facts['devices']}"
    return None


def notes(row: Row) -> Iterator[str]:
    """What the arms ran with, each combination once."""
    arms: dict[str, list[str]] = {}
    for arm, found in row.versions.items():
        text = ", ".join(f"{name} {version}" for name, version in found.items())
        arms.setdefault(text + ("" if "GPU" in found else ", emulated on CPU"), []).append(arm)
    for text, names in arms.items():
        yield f"{'all arms' if len(arms) == 1 else ', '.join(names)}: {text}"


def header() -> Iterator[str]:
    """The head of the table."""
    yield "| model | batch | loop | " + " | ".join(ARMS) + " | best stock / oneshot | fused |"
    yield "|" + "---|" * (len(ARMS) + 5)


def line(row: Row) -> str:
    """A row of the table: microseconds per layer."""
    cells = " | ".join(f"{row.median(arm):.1f}" for arm in ARMS)
    case = row.case
    return f"| {case.name} | {case.batch} | {case.loop} | {cells} | {row.ratio:.2f} | {row.fused} |"


def profile_lines(row: Row) -> Iterator[str]:
    """What each arm does in a step: microseconds of the first GPU."""
    for arm, profile in row.profiles.items():
        yield (
            f"  {arm}: {profile['graph_launches']:.1f} graph launches and "
            f"{profile['launches']:.1f} others a step, graph updates "
            f"{profile['graph_updates_us']:.0f} us; kernels {profile['kernels_us']:.0f} us:"
        )
        for name, count, time in profile["kernels"]:
            yield f"    {time:8.1f} us {count:6.1f} x {name[:70]}"
