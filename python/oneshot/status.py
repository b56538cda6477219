# SPDX-License-Identifier: Apache-2.0
"""What Oneshot has done in this process so far."""

import os
from dataclasses import dataclass

from oneshot import cached, config, hook, jax_plugin
from oneshot.report import Outcome


@dataclass(frozen=True)
class Counts:
    """Modules with all-reduces, and what became of these.

    Attributes:
      modules: how many.
      fused: all-reduces with an epilogue.
      alone: all-reduces that are replaced, and nothing is fused into them.
      left: all-reduces that stay with stock XLA.
    """

    modules: int
    fused: int
    alone: int
    left: int

    @property
    def outcomes(self) -> str:
        """What became of the all-reduces, in words."""
        return (
            f"{self.fused} {Outcome.FUSED}; {self.alone} {Outcome.ALONE}; "
            f"{self.left} {Outcome.LEFT}"
        )


@dataclass(frozen=True)
class Status:
    """See `oneshot.status`; `dataclasses.asdict` makes of it what a server can export.

    Attributes:
      enabled: whether programs for JAX's default backend are rewritten from now on.
      reason: why Oneshot as a whole is off; empty if it is on.
      platforms: "on", or "off: " and the reason, for "cpu" and "cuda". Before JAX has made its
        backends, and on a machine without JAX's CUDA plugin, "cuda" is missing.
      compiled: of the modules that were compiled in this process.
      cached: of the modules that JAX took from its persistent compilation cache.
    """

    enabled: bool
    reason: str
    platforms: dict[str, str]
    compiled: Counts
    cached: Counts

    def __str__(self) -> str:
        lines = [f"{name}: {state}" for name, state in self.platforms.items()]
        lines += [f"off: {self.reason}"] if self.reason else []
        for what, counts in (("compiled", self.compiled), ("from JAX's cache", self.cached)):
            lines.append(f"{what}: {counts.modules} modules with all-reduces; {counts.outcomes}")
        return "\n".join(lines)


def status() -> Status:
    """Returns what is on and what has been done; makes no backend."""
    platforms = {
        name: "on" if reason is None else f"off: {reason}"
        for name, reason in hook.platforms().items()
    }
    return Status(
        enabled=hook.is_enabled(),
        reason=_reason(),
        platforms=platforms,
        compiled=Counts(*hook.counts()),
        cached=Counts(*cached.counts()),
    )


def _reason() -> str:
    if hook.was_enabled():
        return ""
    if jax_plugin.failure:
        return jax_plugin.failure
    try:
        on = config.switch()
    except config.ConfigError as error:
        return str(error)
    if on:
        return "JAX has not been used yet"
    return f"ONESHOT={os.environ['ONESHOT']}" if on is False else "ONESHOT is not set"
