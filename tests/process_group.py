# SPDX-License-Identifier: Apache-2.0
"""Programs that run as several processes, each with GPUs of its own or all with the same ones.

Processes that share a GPU take turns of some milliseconds on it, so an all-reduce between them
takes that long; what it computes is what it would be on as many GPUs.
"""

import contextlib
import functools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence

_VARIABLE = "PROCESS_GROUP"

Layout = Sequence[Sequence[int]]
"""The GPUs of each process, by their numbers on the machine."""


@functools.cache
def count_gpus() -> int:
    """How many GPUs this machine has."""
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return listed.stdout.count("GPU ")


def one_each(processes: int) -> Layout:
    """One GPU a process; shared, where there are fewer."""
    gpus = max(1, count_gpus())
    return [[rank % gpus] for rank in range(processes)]


def together(ranks: int) -> Layout:
    """One process with all GPUs, or as many processes as ranks, where there are not enough."""
    gpus = count_gpus()
    return [range(gpus)] if gpus >= ranks else one_each(ranks)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def killed(processes: list[subprocess.Popen[str]]) -> Iterator[None]:
    """Leaves no process behind: jax.distributed catches SIGTERM."""
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def started(
    command: Sequence[str], layout: Layout, environ: dict[str, str]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Runs a program that calls `join` in as many processes; in the end, kills what is left."""
    port = free_port()
    used = [gpu for gpus in layout for gpu in gpus]
    most = max(map(used.count, used))
    processes: list[subprocess.Popen[str]] = []
    with killed(processes):
        for rank, gpus in enumerate(layout):
            own = {}
            if len(layout) > 1:
                own[_VARIABLE] = f"{port} {len(layout)} {rank} {','.join(map(str, gpus))}"
                own["TF_CPP_MIN_LOG_LEVEL"] = "2"  # whoever ends last misses the others
            if most > 1:
                own["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{0.8 / most:.2f}"
                # NCCL takes ranks that share a GPU for a mistake, unless it believes them to be on
                # different machines; so it goes through sockets.
                own |= {"NCCL_HOSTID": f"rank{rank}", "NCCL_SOCKET_IFNAME": "lo"}
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command],
                    env=os.environ | environ | own,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        yield processes


def join() -> None:
    """Makes the process one of a group, if it was started as such."""
    if _VARIABLE not in os.environ:
        return
    import jax

    port, count, rank, gpus = os.environ[_VARIABLE].split()
    jax.distributed.initialize(
        f"localhost:{port}",
        int(count),
        int(rank),
        local_device_ids=[int(gpu) for gpu in gpus.split(",")],
    )
