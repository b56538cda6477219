# SPDX-License-Identifier: Apache-2.0
"""The logger `oneshot`, for lines of Python and of C++.

Where the program has set up logging, its handlers get the records, and nothing else is printed;
each record has the pid as `process`, as all records of Python have, and the number of this process
among those of jax.distributed as `rank`. Without, lines go to stderr and begin with both.
"""

import atexit
import functools
import logging
import sys
import threading

from oneshot import native

logger = logging.getLogger("oneshot")


def rank() -> tuple[int, int]:
    """Returns the number of this process and how many there are; before they have met, 0 and 1."""
    # Not imported: whoever is distributed has done that.
    distributed = sys.modules.get("jax._src.distributed")
    state = getattr(distributed, "global_state", None)
    ranks = getattr(state, "num_processes", None) or 1
    return (getattr(state, "process_id", None) or 0, ranks)


class _Rank(logging.Filter):
    """Adds to each record which process it is from."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.rank, ranks = rank()
        several = f"rank {record.rank} of {ranks}, " if ranks > 1 else ""
        record.oneshot_process = f"{several}pid {record.process}"
        return True


class _Stderr(logging.StreamHandler):
    """Prints where nobody else does: the program may set up logging later than we do."""

    def __init__(self) -> None:
        super().__init__()
        # As log.cc prints what comes when Python does not answer.
        self.setFormatter(logging.Formatter("oneshot[%(oneshot_process)s]: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        others = logger.handlers + (logging.root.handlers if logger.propagate else [])
        if others == [self]:
            super().emit(record)


def show(level: int | None) -> None:
    """Shows messages from `level` on; None: as the program has said, or else warnings."""
    if level is not None or logger.level == logging.NOTSET:
        logger.setLevel(logging.WARNING if level is None else level)
    if not any(isinstance(handler, _Stderr) for handler in logger.handlers):
        logger.addFilter(_Rank())
        logger.addHandler(_Stderr())


def take_lines(hook: native.Hook) -> None:
    """Logs lines of C++ from now on, in a thread that ends with the program."""

    def take() -> None:
        for level, text in hook.lines():
            hook.set_rank(*rank())
            logger.log(level, "%s", text)

    def end() -> None:
        hook.set_rank(*rank())
        hook.close_log()
        thread.join(1)

    thread = threading.Thread(target=take, name="oneshot log", daemon=True)
    thread.start()
    atexit.register(end)


@functools.cache
def warn_once(message: str) -> None:
    """Warns, the first time."""
    logger.warning(message)
