# SPDX-License-Identifier: Apache-2.0
"""Programs that run as several processes, each with GPUs of its own or all with the same ones.

Processes that share a GPU run on it side by side, if CUDA's Multi-Process Service is there: kernels
of different ranks meet as they do on as many GPUs, over memory instead of NVLink. Without it they
take turns of some milliseconds, so an all-reduce takes that long; what it computes is the same.

A kernel that waits keeps its place on the GPU. So side by side there has to be place for all ranks
but one to wait, and on some multiprocessor for any kernel of XLA's that the last one runs before
it joins them: a program with larger all-reduces may wait for ever.

  python process_group.py PROGRAM [ARGUMENT...]

runs a program as a part of the group that it was started for, if it was started for one.
"""

import contextlib
import functools
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
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


def sharers() -> int:
    """How many processes of the group have this process's GPU."""
    return int(os.environ[_VARIABLE].split()[0]) if _VARIABLE in os.environ else 1


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
def side_by_side() -> Iterator[dict[str, str]]:
    """The environment in which processes use a GPU at the same time, if there is such a thing.

    The service changes nothing about the GPU, and is one for each group, as an error of one of its
    clients is an error of all.
    """
    control = shutil.which("nvidia-cuda-mps-control")
    if control is None:
        yield {}
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        environ = {"CUDA_MPS_PIPE_DIRECTORY": directory, "CUDA_MPS_LOG_DIRECTORY": directory}
        everything = os.environ | environ
        subprocess.run([control, "-d"], env=everything, check=True)
        try:
            yield environ
        finally:
            subprocess.run([control], input="quit -t 5\n", env=everything, text=True, check=False)


@contextlib.contextmanager
def started(
    command: Sequence[str], layout: Layout, environ: dict[str, str]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Runs a program that calls `join` in as many processes; in the end, kills what is left."""
    port = free_port()
    used = [gpu for gpus in layout for gpu in gpus]
    most = max(map(used.count, used))
    processes: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:
        if most > 1:
            environ = environ | stack.enter_context(side_by_side())
        stack.enter_context(killed(processes))
        for rank, gpus in enumerate(layout):
            own = {}
            if len(layout) > 1:
                own[_VARIABLE] = f"{most} {port} {len(layout)} {rank} {','.join(map(str, gpus))}"
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

    _, port, count, rank, gpus = os.environ[_VARIABLE].split()
    jax.distributed.initialize(
        f"localhost:{port}",
        int(count),
        int(rank),
        local_device_ids=[int(gpu) for gpu in gpus.split(",")],
    )


if __name__ == "__main__":
    join()
    sys.argv.pop(0)
    runpy.run_path(sys.argv[0], run_name="__main__")
