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
from typing import Any

_DECISION = "oneshot/decision"
_VOTE_SECONDS = 60


def vote(client: Any, process: int, processes: int, version: str, reason: str | None) -> str | None:
    """Agrees with the other processes of a jax.distributed program.

    Args:
      client: of JAX's coordination service.
      process: number of this process.
      processes: how many there are.
      version: of what rewrites; has to be the same everywhere.
      reason: why this process can't, or None.

    Returns:
      None if all rewrite, else why none does, in the same words everywhere.
    """
    # A process that is started again before the decision votes again, and its last vote counts.
    client.key_value_set(_key(process), f"{version}\n{reason or ''}", allow_overwrite=True)
    decision = _decided(client)
    if decision is None:
        own = reason and f"process {process}: {reason}"
        why_not = own or _why_not(client, process, processes, version)
        # Raises if another process was first: then its proposal is what is read next.
        with contextlib.suppress(Exception):
            client.key_value_set(_DECISION, f"{version}\n{why_not or ''}")
        decision = client.blocking_key_value_get(_DECISION, _VOTE_SECONDS * 1000)
    decided_version, _, why_not = decision.partition("\n")
    if why_not:
        return why_not
    # Only in a process that was started again: the others run what they have compiled.
    if decided_version != version:
        reason = f"another version, {version}, than {decided_version}"
    return f"process {process}, unlike the others, which rewrite: {reason}" if reason else None


def _key(process: int) -> str:
    return f"oneshot/vote/{process}"


def _decided(client: Any) -> str | None:
    try:
        return client.key_value_try_get(_DECISION)
    except Exception:  # NOT_FOUND; what else is wrong, the next call says
        return None


def _why_not(client: Any, process: int, processes: int, version: str) -> str | None:
    """Waits for all votes; returns why not all can rewrite, or None if they can."""
    deadline = time.monotonic() + _VOTE_SECONDS
    for other in range(processes):
        left = max(1, int(1000 * (deadline - time.monotonic())))
        try:
            answer = client.blocking_key_value_get(_key(other), left)
        except Exception as error:
            return f"process {other} has not said within {_VOTE_SECONDS} s that it is on ({error})"
        other_version, _, other_reason = answer.partition("\n")
        if other_reason:
            return f"process {other}: {other_reason}"
        if other_version != version:
            return (
                f"process {other} has another version, {other_version}, "
                f"than process {process}, {version}"
            )
    return None
