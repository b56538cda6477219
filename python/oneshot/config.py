# SPDX-License-Identifier: Apache-2.0
"""Every environment variable that Oneshot reads, and nothing else reads one."""

import difflib
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oneshot.libraries import XLA_LIBRARIES, missing_xla

_SWITCH = {
    "1": True,
    "true": True,
    "on": True,
    "require": True,
    "0": False,
    "false": False,
    "off": False,
    "": None,
}
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

# What Kubernetes sets in the pods of a namespace with a service that is called oneshot.
_KUBERNETES = re.compile(r"ONESHOT_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\w+)?)")

VARIABLES = {
    "ONESHOT": "1 (or true, on) to rewrite; require to rewrite or else fail; 0 (or false, off, or "
    "unset) for stock XLA",
    "ONESHOT_DUMP_TO": "directory for the HLO before and after, and for reports",
    "ONESHOT_LOG": f"lowest level that is logged: {', '.join(_LEVELS)} (default warning)",
    "ONESHOT_SKIP": "regular expression: all-reduces whose name in the program holds a match stay "
    "with stock XLA",
    "ONESHOT_TIMEOUT_S": "seconds that a GPU waits for another before the run fails (default 600)",
    "ONESHOT_XLA_DIR": f"directory that holds {' and '.join(XLA_LIBRARIES)}",
}
"""Name and meaning of each variable."""


class ConfigError(ValueError):
    """A variable has a value that makes no sense."""


@dataclass(frozen=True)
class Config:
    """What the environment asks for, once Oneshot is on.

    Attributes:
      dump_to: where HLO and reports go; None for no dump.
      required: whether a program that can't be rewritten has to fail.
      skip: regular expression for the op names of all-reduces to leave alone; empty for none.
      log_level: a level of the `logging` module; None if the environment names none.
      timeout: how long a GPU waits for another before the run fails, in seconds.
      xla_dir: where XLA's libraries are said to be; None to look for them.
      warnings: what is wrong and does not matter enough to stay off.
    """

    dump_to: Path | None = None
    required: bool = False
    skip: str = ""
    log_level: int | None = None
    timeout: float = 600.0
    xla_dir: Path | None = None
    warnings: tuple[str, ...] = ()


def _choice[T](name: str, value: str, choices: Mapping[str, T]) -> T:
    try:
        return choices[value.strip().lower()]
    except KeyError:
        valid = ", ".join(choice for choice in choices if choice)
        raise ConfigError(f"{name}={value!r}: must be one of {valid}") from None


def _seconds(name: str, value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigError(f"{name}={value!r}: must be a number of seconds, more than 0")
    return seconds


def switch(environ: Mapping[str, str] = os.environ) -> bool | None:
    """Returns what ONESHOT says: on, off, or nothing.

    Raises:
      ConfigError: it says something else.
    """
    return _choice("ONESHOT", environ.get("ONESHOT", ""), _SWITCH)


def required(environ: Mapping[str, str] = os.environ) -> bool:
    """Returns whether ONESHOT says that a program has to fail rather than run with stock XLA."""
    return environ.get("ONESHOT", "").strip().lower() == "require"


def read(environ: Mapping[str, str] = os.environ) -> Config:
    """Reads all but ONESHOT itself.

    Args:
      environ: name and value of each variable.

    Returns:
      The configuration that they describe.

    Raises:
      ConfigError: a variable that decides what is computed, where or for how long has a bad value.
    """
    warnings = _unknown(environ)
    log_level = None
    try:
        if level := environ.get("ONESHOT_LOG"):
            log_level = _choice("ONESHOT_LOG", level, _LEVELS)
    except ConfigError as error:
        log_level = logging.WARNING
        warnings.append(f"{error}; taken for warning")
    dump_to = environ.get("ONESHOT_DUMP_TO")
    if dump_to and (reason := _why_no_dumps(dump_to)):
        warnings.append(f"ONESHOT_DUMP_TO={dump_to!r}: {reason}; nothing is dumped")
        dump_to = None
    skip = environ.get("ONESHOT_SKIP", "")
    try:
        re.compile(skip)
    except re.error as error:
        raise ConfigError(f"ONESHOT_SKIP={skip!r}: no regular expression: {error}") from error
    xla_dir = environ.get("ONESHOT_XLA_DIR")
    if xla_dir and (missing := missing_xla(Path(xla_dir))):
        raise ConfigError(f"ONESHOT_XLA_DIR={xla_dir!r}: no {' and no '.join(missing)} there")
    return Config(
        dump_to=Path(dump_to).absolute() if dump_to else None,
        required=required(environ),
        skip=skip,
        log_level=log_level,
        timeout=_seconds("ONESHOT_TIMEOUT_S", environ.get("ONESHOT_TIMEOUT_S") or "600"),
        xla_dir=Path(xla_dir).absolute() if xla_dir else None,
        warnings=tuple(warnings),
    )


def _why_no_dumps(directory: str) -> str | None:
    """Makes a directory; returns what is wrong with it, or None."""
    try:
        Path(directory).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return error.strerror
    return None if os.access(directory, os.W_OK | os.X_OK) else "not writable"


def _unknown(environ: Mapping[str, str]) -> list[str]:
    """Returns a warning about variables that Oneshot does not know, if there are any."""
    guesses = [
        f"{name} (nearest: {difflib.get_close_matches(name, VARIABLES, 1, 0)[0]})"
        for name in sorted(environ)
        if name.startswith("ONESHOT_") and name not in VARIABLES and not _KUBERNETES.fullmatch(name)
    ]
    return [f"unknown variables are ignored: {', '.join(guesses)}"] if guesses else []
