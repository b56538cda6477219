# SPDX-License-Identifier: Apache-2.0
"""The logger: one prefix for Python and C++, on stderr, whatever the program does with logging."""

import functools
import logging

logger = logging.getLogger("oneshot")


def show(level: int) -> None:
    """Shows messages from `level` on, a level of the `logging` module."""
    logger.setLevel(level)
    if not logger.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("oneshot: %(message)s"))
        logger.addHandler(handler)
        logger.propagate = False


@functools.cache
def warn_once(message: str) -> None:
    """Warns, the first time."""
    logger.warning(message)
