# SPDX-License-Identifier: Apache-2.0
"""A program with and without Oneshot: its steps' times and outputs. `oneshot compare`."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oneshot import steps
from oneshot.status import Counts

ARMS = {"off": "0", "on": "1"}
"""Name of each arm and what ONESHOT is in it."""


class CompareError(RuntimeError):
    """A comparison that would say nothing. The message says why."""


@dataclass(frozen=True)
class Comparison:
    """What was found.

    Attributes:
      step: which steps were timed: "marked", or the name of a jitted function.
      steps: of each run.
      times: by arm, the median of each run, in microseconds.
      counts: what became of all-reduces with Oneshot; see `oneshot.status.Counts`.
      difference: largest difference of outputs between the arms, relative to the largest value of
        the array; of integers the share that differs.
      noise: the same between two runs without Oneshot.
      arrays: how many arrays were compared.
      versions: see `oneshot.versions`.
    """

    step: str
    steps: int
    times: dict[str, list[float]]
    counts: dict[str, int]
    difference: float
    noise: float
    arrays: int
    versions: dict[str, str]

    def median(self, arm: str) -> float:
        """Microseconds of a step."""
        return statistics.median(self.times[arm])

    def __str__(self) -> str:
        off, on = self.median("off"), self.median("on")
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        emulated = "" if "GPU" in self.versions else ", emulated on CPU: times say nothing of GPUs"
        runs = len(self.times["on"])
        compared = f"{self.arrays} arrays" if self.arrays else "nothing to compare"
        return "\n".join(
            [
                f"{versions}{emulated}",
                f"step: {self.step}, {self.steps} a run, {runs} runs each, in turns; every step is "
                "waited for",
                f"all-reduces: {Counts(**self.counts).outcomes}",
                f"median step: {off:.1f} us off, {on:.1f} us on: {off - on:.1f} us saved, "
                f"{off / on:.2f} times as fast",
                f"outputs ({compared}): largest difference {self.difference:.2g} of the largest "
                f"value; between two runs without Oneshot {self.noise:.2g}",
            ]
        )


def compare(program: Path, arguments: Sequence[str], rounds: int = 3) -> Comparison:
    """Runs a program off and on in turns, each time in a process of its own.

    Args:
      program: a Python script of one process; see `oneshot.step` for what is timed.
      arguments: its arguments.
      rounds: runs of each arm, two at least.

    Raises:
      CompareError: the comparison would say nothing: the program fails, nothing was replaced, or
        there are no steps to time.
    """
    runs: dict[str, list[_Run]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory(prefix="oneshot-compare-") as directory:
        for number in range(rounds):
            for arm in reversed(ARMS) if number % 2 else ARMS:
                result = Path(directory, f"{arm}-{number}")
                run = _run(arm, program, arguments, result)
                if reason := _why_meaningless(run):
                    raise CompareError(reason)
                runs[arm].append(run)
    first = {arm: several[0] for arm, several in runs.items()}
    if {(run.step["name"], run.step["steps"]) for run in first.values()} != {
        (first["on"].step["name"], first["on"].step["steps"])
    }:
        raise CompareError("the program does not make the same steps with Oneshot and without")
    counts = first["on"].counts
    return Comparison(
        step=first["on"].step["name"],
        steps=first["on"].step["steps"],
        times={
            arm: [1e6 * statistics.median(run.step["seconds"]) for run in several]
            for arm, several in runs.items()
        },
        counts=counts,
        difference=_difference(first["off"].outputs, first["on"].outputs),
        noise=_difference(first["off"].outputs, runs["off"][-1].outputs),
        arrays=len(first["on"].outputs),
        versions=first["on"].found["versions"],
    )


@dataclass(frozen=True)
class _Run:
    arm: str
    found: dict[str, Any]
    outputs: list[np.ndarray]

    @property
    def step(self) -> dict[str, Any]:
        return self.found["step"]

    @property
    def counts(self) -> dict[str, int]:
        """What became of all-reduces, compiled or from JAX's cache."""
        status = self.found["status"]
        return {name: count + status["cached"][name] for name, count in status["compiled"].items()}


def _run(arm: str, program: Path, arguments: Sequence[str], result: Path) -> _Run:
    done = subprocess.run(
        [sys.executable, "-m", "oneshot.compare_worker", str(result), str(program), *arguments],
        env=os.environ | {"ONESHOT": ARMS[arm]},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not result.exists():
        end = "\n".join((done.stderr or done.stdout).splitlines()[-20:])
        raise CompareError(f"with Oneshot {arm}, {program} ends with {done.returncode}:\n{end}")
    outputs: list[np.ndarray] = []
    arrays = result.with_name(f"{result.name}.npz")
    if arrays.exists():
        with np.load(arrays) as loaded:
            outputs = [loaded[name] for name in loaded.files]
    return _Run(arm, json.loads(result.read_text()), outputs)


def _why_meaningless(run: _Run) -> str | None:
    found = run.found
    emulated = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if found["platform"] == "cpu" and not emulated:
        return "JAX has no GPU here: there is nothing to compare; see `python -m oneshot doctor`"
    if found["processes"] > 1:
        return "the program has several processes: run it by hand, with ONESHOT=0 and ONESHOT=1"
    if run.step is None:
        return (
            f"no step was run more than {steps.WARM_UP} times: let the program make more, or mark "
            "them with oneshot.step()"
        )
    if run.arm == "on":
        if not found["status"]["enabled"]:
            why = found["status"]["reason"] or found["status"]["platforms"]
            return f"nothing would be fused, Oneshot is off: {why}"
        if not run.counts["fused"] + run.counts["alone"]:
            return f"no all-reduce was replaced ({run.counts['left']} left): see ONESHOT_DUMP_TO"
    return None


def _difference(one: list[np.ndarray], other: list[np.ndarray]) -> float:
    if [array.shape for array in one] != [array.shape for array in other]:
        raise CompareError("outputs have other shapes with Oneshot than without")
    return max(map(_of_array, one, other), default=0.0)


def _of_array(one: np.ndarray, other: np.ndarray) -> float:
    if not one.size or np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"):
        return 0.0
    if one.dtype.kind not in "fc":
        return float(np.mean(one != other))
    largest = float(np.max(np.abs(one)))
    # NaN on one side only is a difference, and stays one.
    return float(np.max(np.abs(one - other))) / (largest or 1.0)
