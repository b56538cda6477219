# SPDX-License-Identifier: Apache-2.0
"""Every environment variable that Oneshot reads, and nothing else reads one."""

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from oneshot.libraries import XLA_LIBRARIES

_SWITCH = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False, "": False}
_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

VARIABLES = {
    "ONESHOT": "1 (or true, on) to rewrite; 0 (or false, off, or unset) for stock XLA",
    "ONESHOT_DUMP_TO": "directory for the HLO before and after, and for reports",
    "ONESHOT_LOG": f"lowest level that is logged: {', '.join(_LEVELS)} (default warning)",
    "ONESHOT_TIMEOUT_S": "seconds that a GPU waits for another before the run fails (default 30)",
    "ONESHOT_XLA_DIR": f"directory that holds {' and '.join(XLA_LIBRARIES)}",
}
"""Name and meaning of each variable."""


class ConfigError(ValueError):
    """A variable that does not exist, or a value that makes no sense."""


@dataclass(frozen=True)
class Config:
    """What the environment asks for.

    Attributes:
      enabled: whether to rewrite at all.
      dump_to: where HLO and reports go; None for no dump.
      log_level: a level of the `logging` module.
      timeout: how long a GPU waits for another before the run fails, in seconds.
      xla_dir: where XLA's libraries are said to be; None to look for them.
    """

    enabled: bool = False
    dump_to: Path | None = None
    log_level: int = logging.WARNING
    timeout: float = 30.0
    xla_dir: Path | None = None


def _choice(name: str, value: str, choices: Mapping[str, object]) -> object:
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


def read(environ: Mapping[str, str] = os.environ) -> Config:
    """Reads the configuration.

    Args:
      environ: name and value of each variable.

    Returns:
      The configuration that they describe.

    Raises:
      ConfigError: a variable that starts with ONESHOT_ is unknown, or has a bad value. The message
        lists what is valid.
    """
    unknown = sorted(
        name for name in environ if name.startswith("ONESHOT_") and name not in VARIABLES
    )
    if unknown:
        valid = "\n".join(f"  {name}: {meaning}" for name, meaning in VARIABLES.items())
        raise ConfigError(f"unknown variable {', '.join(unknown)}; valid are:\n{valid}")

    dump_to = environ.get("ONESHOT_DUMP_TO")
    if dump_to:
        try:
            Path(dump_to).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"ONESHOT_DUMP_TO={dump_to!r}: {error.strerror}") from error
        if not os.access(dump_to, os.W_OK):
            raise ConfigError(f"ONESHOT_DUMP_TO={dump_to!r}: not writable")
    xla_dir = environ.get("ONESHOT_XLA_DIR")
    if xla_dir:
        missing = [name for name in XLA_LIBRARIES if not (Path(xla_dir) / name).is_file()]
        if missing:
            raise ConfigError(f"ONESHOT_XLA_DIR={xla_dir!r}: no {' and no '.join(missing)} there")
    return Config(
        enabled=bool(_choice("ONESHOT", environ.get("ONESHOT", ""), _SWITCH)),
        dump_to=Path(dump_to).absolute() if dump_to else None,
        log_level=int(
            str(_choice("ONESHOT_LOG", environ.get("ONESHOT_LOG") or "warning", _LEVELS))
        ),
        timeout=_seconds("ONESHOT_TIMEOUT_S", environ.get("ONESHOT_TIMEOUT_S") or "30"),
        xla_dir=Path(xla_dir).absolute() if xla_dir else None,
    )
