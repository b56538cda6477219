# SPDX-License-Identifier: Apache-2.0
"""Processes agree whether they rewrite: all, or none."""

import threading
import time
from collections.abc import Callable, Iterator

import process_group
import pytest
from jaxlib import _jax
from oneshot import agreement


class Coordinator:
    """JAX's coordination service, for votes that happen one after the other."""

    def __init__(self, votes: dict[int, str], decision: str | None = None):
        self.values = {f"oneshot/vote/{process}": vote for process, vote in votes.items()}
        if decision is not None:
            self.values["oneshot/decision"] = decision

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        """As in jaxlib."""
        if key in self.values and not allow_overwrite:
            raise RuntimeError("ALREADY_EXISTS")
        self.values[key] = value

    def key_value_try_get(self, key: str) -> str:
        """As in jaxlib."""
        if key not in self.values:
            raise RuntimeError("NOT_FOUND")
        return self.values[key]

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        """As in jaxlib, but does not wait."""
        assert timeout_in_ms > 0
        if key not in self.values:
            raise RuntimeError("DEADLINE_EXCEEDED")
        return self.values[key]


@pytest.mark.parametrize(
    ("others", "mine", "verdict"),
    [
        ({1: "v1\nm1\n"}, None, None),
        ({1: "v1\nm1\nno peer access"}, None, "process 1: no peer access"),
        ({1: "v1\nm1\n"}, "no driver", "process 0: no driver"),
        ({}, "no driver", "process 0: no driver"),
        ({1: "v2\nm1\n"}, None, "process 1 has another version, v2, than process 0, v1"),
        ({}, None, "process 1 has not said within 60 s that it is on (DEADLINE_EXCEEDED)"),
    ],
)
def test_vote(others: dict[int, str], mine: str | None, verdict: str | None) -> None:
    coordinator = Coordinator(others)
    decision = agreement.Decision(verdict, () if verdict else ("m0", "m1"))
    assert agreement.vote(coordinator, 0, 2, "v1", machine="m0", reason=mine) == decision
    # Whoever comes later reads the same, though it can rewrite and sees that the others can.
    coordinator.values |= {"oneshot/vote/0": "v1\nm0\n"}
    assert agreement.vote(coordinator, 1, 2, "v1", machine="m1", reason=None) == decision


@pytest.mark.parametrize(
    ("decision", "mine", "verdict"),
    [
        ("v1\nm0 m1\n", None, None),
        ("v1\n\nprocess 1: it rains", None, "process 1: it rains"),
        (
            "v1\nm2 m1\n",
            None,
            "process 0, unlike the others, which rewrite: another machine, m0, than m2",
        ),
        ("v1\nm0 m1\n", "no driver", "process 0, unlike the others, which rewrite: no driver"),
        (
            "v0\nm0 m1\n",
            None,
            "process 0, unlike the others, which rewrite: another version, v1, than v0",
        ),
    ],
)
def test_vote_after_the_decision(decision: str, mine: str | None, verdict: str | None) -> None:
    # Process 1 has gone: nobody waits for it.
    decided = agreement.vote(Coordinator({}, decision), 0, 2, "v1", machine="m0", reason=mine)
    assert decided == agreement.Decision(verdict, () if verdict else ("m0", "m1"))


def test_proposal_that_comes_second() -> None:
    class Late(Coordinator):
        """Others decide between this process's look and its proposal."""

        def key_value_try_get(self, key: str) -> str:
            self.values["oneshot/decision"] = "v1\n\nprocess 1 has not said"
            raise RuntimeError("NOT_FOUND")

    late = Late({1: "v1\nm1\n"})
    assert (
        agreement.vote(late, 0, 2, "v1", machine="m0", reason=None).why_not
        == "process 1 has not said"
    )


@pytest.fixture
def clients() -> Iterator[list[_jax.DistributedRuntimeClient]]:
    """Two clients of a service of JAX's own."""
    port = process_group.free_port()
    service = _jax.get_distributed_runtime_service(f"[::]:{port}", 2)
    made = [_jax.get_distributed_runtime_client(f"localhost:{port}", i) for i in range(2)]
    in_parallel(*[client.connect for client in made])
    yield made
    in_parallel(*[client.shutdown for client in made])
    service.shutdown()


def in_parallel(*functions: Callable[[], object]) -> None:
    """Runs functions in threads, and waits for them."""
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize(
    ("reason", "verdict"), [(None, None), ("it rains", "process 1: it rains")], ids=["on", "off"]
)
def test_service(
    clients: list[_jax.DistributedRuntimeClient], reason: str | None, verdict: str | None
) -> None:
    decisions: dict[int, agreement.Decision] = {}

    def vote(process: int, mine: str | None) -> None:
        machine = f"m{process}"
        decisions[process] = agreement.vote(
            clients[process], process, 2, "v1", machine=machine, reason=mine
        )

    in_parallel(lambda: vote(0, None), lambda: vote(1, reason))
    # Each knows where the other is.
    decision = agreement.Decision(verdict, () if verdict else ("m0", "m1"))
    assert decisions == {0: decision, 1: decision}
    vote(1, None)  # started again under the same service
    assert decisions[1] == decision


def test_one_comes_when_the_other_has_stopped_waiting(
    clients: list[_jax.DistributedRuntimeClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "_VOTE_SECONDS", 1)
    start = time.monotonic()
    early = agreement.vote(clients[0], 0, 2, "v1", machine="m0", reason=None).why_not
    assert time.monotonic() - start < 10
    assert early is not None
    assert early.startswith("process 1 has not said within 1 s that it is on")
    assert agreement.vote(clients[1], 1, 2, "v1", machine="m1", reason=None).why_not == early


def test_processes_of_a_machine_share_it() -> None:
    assert agreement.this_machine(0) == agreement.this_machine(1) != ""
