# SPDX-License-Identifier: Apache-2.0
"""Processes agree whether they rewrite."""

import subprocess
import sys
from pathlib import Path

import process_group
import pytest
from emulation import environment
from oneshot import agreement


class Coordinator:
    """JAX's coordination service, for votes that happen one after the other."""

    def __init__(self, answers: dict[int, str]):
        self.answers = {f"oneshot/{process}": answer for process, answer in answers.items()}

    def key_value_set(self, key: str, value: str) -> None:
        """As in jaxlib."""
        self.answers[key] = value

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        """As in jaxlib, but does not wait."""
        assert timeout_in_ms > 0
        if key not in self.answers:
            raise RuntimeError("DEADLINE_EXCEEDED")
        return self.answers[key]


@pytest.mark.parametrize(
    ("others", "mine", "verdict"),
    [
        ({1: "v1\n"}, None, None),
        ({1: "v1\nno peer access"}, None, "process 1: no peer access"),
        ({1: "v1\n"}, "no driver", "no driver"),
        ({1: "v2\n"}, None, "process 1 has another version, v2, than v1"),
        ({}, None, "process 1 has not said within 60 s that it is on (DEADLINE_EXCEEDED)"),
    ],
)
def test_vote(others: dict[int, str], mine: str | None, verdict: str | None) -> None:
    assert agreement.vote(Coordinator(others), 0, 2, "v1", mine) == verdict


def test_processes_vote_over_the_coordination_service(tmp_path: Path) -> None:
    script = tmp_path / "vote.py"
    script.write_text(
        "import sys\n"
        "import jax\n"
        "from jax._src import distributed\n"
        "from oneshot import agreement\n"
        "rank, port = int(sys.argv[1]), sys.argv[2]\n"
        "jax.distributed.initialize(f'localhost:{port}', 2, rank)\n"
        "client = distributed.global_state.client\n"
        "print(agreement.vote(client, rank, 2, 'v1', 'it rains' if rank else None))\n"
    )
    port = str(process_group.free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), port],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    with process_group.killed(processes):
        for process, verdict in zip(processes, ["process 1: it rains", "it rains"], strict=True):
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert verdict in out.splitlines()
