# SPDX-License-Identifier: Apache-2.0
"""The processes of a program agree whether they rewrite: all of them, or none.

A process that rewrites and one that does not would wait for each other, one in Oneshot's kernel and
one in NCCL's. So there is one decision, which JAX's coordination service keeps under a key that can
be written once. Each process says what it can do, waits until all have, and proposes a decision.
The first proposal stands, and all processes follow it, whatever they have seen themselves: so does
one that comes when the others have stopped waiting, and one that is started again under the same
service.
"""

import contextlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DECISION = "oneshot/decision"
_VOTE_SECONDS = 60


@dataclass(frozen=True)
class Decision:
    """What all processes do.

    Attributes:
      why_not: why none rewrites, or None if all do.
      machines: where each process is. Processes are on one machine if theirs are the same.
    """

    why_not: str | None
    machines: tuple[str, ...] = ()


def this_machine(process: int) -> str:
    """Returns what the kernel calls this boot of this machine; containers of one share it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"unknown-{process}"


def vote(
    client: Any, process: int, processes: int, version: str, *, machine: str, reason: str | None
) -> Decision:
    """Agrees with the other processes of a jax.distributed program.

    Args:
      client: of JAX's coordination service.
      process: number of this process.
      processes: how many there are.
      version: of what rewrites; has to be the same everywhere.
      machine: that this process is on.
      reason: why this process can't, or None.

    Returns:
      The decision, the same everywhere.
    """
    # A process that is started again before the decision votes again, and its last vote counts.
    own_vote = f"{version}\n{machine}\n{reason or ''}"
    client.key_value_set(_key(process), own_vote, allow_overwrite=True)
    decision = _decided(client)
    if decision is None:
        own = reason and f"process {process}: {reason}"
        found: list[str] = []
        why_not = own or _why_not(client, process, processes, version, found)
        # Of this moment: a process may be started again, on another machine.
        machines = "" if why_not else " ".join(found)
        # Raises if another process was first: then its proposal is what is read next.
        with contextlib.suppress(Exception):
            client.key_value_set(_DECISION, f"{version}\n{machines}\n{why_not or ''}")
        decision = client.blocking_key_value_get(_DECISION, _VOTE_SECONDS * 1000)
    decided_version, named, why_not = decision.split("\n", 2)
    if why_not:
        return Decision(why_not)
    of_processes = tuple(named.split())
    # Only in a process that was started again: the others run what they have compiled.
    if decided_version != version:
        reason = f"another version, {version}, than {decided_version}"
    elif of_processes[process] != machine:
        reason = f"another machine, {machine}, than {of_processes[process]}"
    if reason:
        return Decision(f"process {process}, unlike the others, which rewrite: {reason}")
    return Decision(None, of_processes)


def _key(process: int) -> str:
    return f"oneshot/vote/{process}"


def _decided(client: Any) -> str | None:
    try:
        return client.key_value_try_get(_DECISION)
    except Exception:  # NOT_FOUND; what else is wrong, the next call says
        return None


def _why_not(
    client: Any, process: int, processes: int, version: str, machines: list[str]
) -> str | None:
    """Waits for all votes; returns why not all can rewrite, or None if they can.

    Appends to `machines` where each process is.
    """
    deadline = time.monotonic() + _VOTE_SECONDS
    for other in range(processes):
        left = max(1, int(1000 * (deadline - time.monotonic())))
        try:
            answer = client.blocking_key_value_get(_key(other), left)
        except Exception as error:
            return f"process {other} has not said within {_VOTE_SECONDS} s that it is on ({error})"
        other_version, machine, other_reason = answer.split("\n", 2)
        machines.append(machine)
        if other_reason:
            return f"process {other}: {other_reason}"
        if other_version != version:
            return (
                f"process {other} has another version, {other_version}, "
                f"than process {process}, {version}"
            )
    return None
