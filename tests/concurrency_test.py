# SPDX-License-Identifier: Apache-2.0
"""Several executables, threads and meshes at once; executables that come and go.

Each part of workers/concurrency.py runs in a process without Oneshot and in one with it; what they
compute has to be the same, bit by bit. gpu/run.py does the same on GPUs.

Stock XLA on CPU hangs, too, when many runs are under way; the worker stays below that, so that what
hangs here is Oneshot.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from emulation import XLA_FLAGS, environment

WORKER = Path(__file__).parent / "workers" / "concurrency.py"
# A hang ends after this time, not a minute.
FLAGS = f"{XLA_FLAGS} --xla_cpu_collective_call_terminate_timeout_seconds=30"
CYCLES = 32
# Of memory, a cycle. JAX itself keeps some 35 KiB, without Oneshot as with it.
MOST_KIB = 128


def run(part: str, out: Path, switch: str, *arguments: str) -> tuple[dict[str, np.ndarray], str]:
    """Returns what a part computed and printed."""
    done = subprocess.run(
        [sys.executable, WORKER, part, out, *arguments],
        env=environment(ONESHOT=switch, XLA_FLAGS=FLAGS),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(f"{out}.0") as results:
        return dict(results), done.stdout


@pytest.mark.parametrize("part", ["threads", "ahead", "meshes"])
def test_same_as_stock(part: str, tmp_path: Path) -> None:
    want, _ = run(part, tmp_path / "stock", "0")
    got, _ = run(part, tmp_path / "oneshot", "1")
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
    assert len(np.unique(np.concatenate([array.ravel() for array in want.values()]))) > 24


def test_executables_leave_nothing_behind(tmp_path: Path) -> None:
    _, out = run("cycles", tmp_path / "out", "1", str(CYCLES))
    first, end = (json.loads(line) for line in out.splitlines())
    assert (first["cycle"], end["cycle"]) == (0, CYCLES)
    assert end["files"] == first["files"]
    # Of these XLA and the C library may keep a few more or less; one a cycle would be too many.
    for what in ("threads", "mappings"):
        assert end[what] - first[what] < CYCLES // 2, what
    assert end["resident KiB"] - first["resident KiB"] < CYCLES * MOST_KIB
