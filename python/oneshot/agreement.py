# SPDX-License-Identifier: Apache-2.0
"""The processes of a program agree whether they rewrite."""

from typing import Any

_VOTE_SECONDS = 60


def vote(client: Any, process: int, processes: int, version: str, reason: str | None) -> str | None:
    """Agrees with the other processes of a jax.distributed program: all rewrite, or none does.

    A process that rewrites and one that does not would wait for each other for ever.

    Args:
      client: of JAX's coordination service.
      process: number of this process.
      processes: how many there are.
      version: of what rewrites; has to be the same everywhere.
      reason: why this process can't, or None.

    Returns:
      None if all rewrite, else the reason of the first that can't.
    """
    client.key_value_set(f"oneshot/{process}", f"{version}\n{reason or ''}")
    for other in range(processes):
        try:
            answer = client.blocking_key_value_get(f"oneshot/{other}", _VOTE_SECONDS * 1000)
        except Exception as error:
            return f"process {other} has not said within {_VOTE_SECONDS} s that it is on ({error})"
        other_version, _, other_reason = answer.partition("\n")
        if other_reason:
            return other_reason if other == process else f"process {other}: {other_reason}"
        if other_version != version:
            return f"process {other} has another version, {other_version}, than {version}"
    return None
