# SPDX-License-Identifier: Apache-2.0
"""A short run of workers/soak.py on emulated devices; gpu/run.py has the long ones."""

import json
import subprocess
import sys
from pathlib import Path

from emulation import environment

WORKER = Path(__file__).parent / "workers" / "soak.py"
SECONDS, REPLAYS = 10, 20


def test_random_programs() -> None:
    done = subprocess.run(
        [sys.executable, WORKER, str(SECONDS), str(REPLAYS)],
        env=environment(ONESHOT="1"),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["wrong"] == 0, done.stdout
    assert counts["fused"] == counts["programs"] >= 8
