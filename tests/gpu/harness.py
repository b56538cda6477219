# SPDX-License-Identifier: Apache-2.0
"""What the parts of run.py share: a log, and programs that run as several processes."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from oneshot import bench as bench_lib

sys.path.insert(0, str(Path(__file__).parents[1]))
import process_group

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
MODELS = TESTS / "models"
EXAMPLES = ROOT / "docs" / "examples"

# Those of the benchmark, but Oneshot says what it does.
ARMS = bench_lib.ARMS | {"oneshot": bench_lib.ARMS["oneshot"] | {"ONESHOT_LOG": "info"}}


def xla_flags(more: str) -> dict[str, str]:
    """The environment with flags in addition to those that are set."""
    return {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {more}".strip()}


class Log:
    """Prints, and keeps what it prints in a file."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")
        self.failures: list[str] = []

    def write(self, text: str) -> None:
        """Writes a line or more."""
        print(text, flush=True)
        print(text, file=self._file, flush=True)

    def check(self, what: str, passed: bool) -> None:
        """Writes and remembers whether a check passed."""
        self.write(f"{'PASS' if passed else 'FAIL'} {what}")
        if not passed:
            self.failures.append(what)

    def command(self, command: Sequence[str], environ: dict[str, str], where: str = "") -> None:
        """Writes what is about to run."""
        shown = " ".join([*(f"{k}={v!r}" for k, v in environ.items()), *command])
        # What anybody could run, not where this machine keeps it.
        shown = shown.replace(sys.executable, "python").replace(f"{ROOT}/", "")
        self.write(f"$ {shown}{where}")

    def run(self, command: list[str], environ: dict[str, str] | None = None) -> tuple[int, str]:
        """Runs a command; returns its exit code and what it printed, which is also written."""
        self.command(command, environ or {})
        done = subprocess.run(
            command,
            env=os.environ | (environ or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        self.write(done.stdout.rstrip())
        return done.returncode, done.stdout


def wait_for(process: subprocess.Popen[str], text: str) -> bool:
    """Reads what a process prints until a line has `text`; false if it ends before."""
    return any(text in line for line in iter(process.stdout.readline, ""))


def worker(name: str) -> str:
    """Where a program of several processes is."""
    return str(TESTS / "workers" / f"{name}.py")


def group(
    log: Log,
    what: str,
    command: list[str],
    layout: process_group.Layout,
    environ: dict[str, str],
) -> list[str]:
    """Runs a program in several processes; what each has printed, or nothing if one has failed."""
    log.command(["python", *command], environ, f" on GPUs {[list(gpus) for gpus in layout]}")
    with process_group.started(command, layout, environ) as workers:
        ends = ["".join(process.communicate(timeout=300)) for process in workers]
        codes = [process.returncode for process in workers]
    log.write("\n".join(ends))
    log.check(f"{what}: all processes end well", not any(codes))
    return [] if any(codes) else ends


def unmodified(log: Log, what: str, environ: dict[str, str], *program: str) -> list[str]:
    """Runs a program that knows nothing of process groups, on two ranks or more; as `group`."""
    return group(log, what, [process_group.__file__, *program], process_group.together(2), environ)


def llama(log: Log, what: str, environ: dict[str, str], *arguments: str) -> list[str]:
    """Runs the decode model; as `group`."""
    return unmodified(log, what, environ, str(MODELS / "llama_decode.py"), *arguments)
