# SPDX-License-Identifier: Apache-2.0
"""What Oneshot makes of one function: `oneshot.explain`."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot import report


@dataclass(frozen=True)
class Explanation:
    """The all-reduces of a program. Prints as text; iterates over `oneshot.report.AllReduce`.

    Attributes:
      modules: those with an all-reduce, usually one.
    """

    modules: tuple[report.Module, ...]

    def __iter__(self) -> Iterator[report.AllReduce]:
        """All all-reduces, in the order of the modules."""
        return (site for module in self.modules for site in module.all_reduces)

    def __str__(self) -> str:
        """The reports, one after the other."""
        if not self.modules:
            return "no all-reduce"
        return "\n".join("\n".join(lines(module)) for module in self.modules)


def lines(module: report.Module) -> Iterator[str]:
    """A module's report for people."""
    total = len(module.all_reduces)
    yield f"{module.module} ({module.platform}): {module.fired} of {total} all-reduces fused"
    if module.declined_module:
        yield f"  module left alone: {module.declined_module}"
    for site in module.all_reduces:
        ranks = f"  over {site.group_size} ranks" if site.group_size else ""
        end = f"fused: {site.epilogue}" if site.fired else f"left alone: {site.reason}"
        yield f"  {site.name}  {site.shape}{ranks}  {end}"
        if site.site or site.source:
            yield f"      {site.site}  {site.source}"
        if site.program:
            yield f"      {site.program}"
        for stop in site.stopped:
            source = f" at {stop.source}" if stop.source else ""
            yield f"      up to {stop.instruction} ({stop.opcode}){source}: {stop.reason}"


def explain(function: Any, /, *arguments: Any, **keywords: Any) -> Explanation:
    """Compiles a jitted function and says what becomes of each of its all-reduces.

    Turns Oneshot on if it is not, as `oneshot.enable` does. Does not run the function.

    Args:
      function: what `jax.jit` returns.
      *arguments: as for a call of it; `jax.ShapeDtypeStruct` will do.
      **keywords: likewise.

    Raises:
      oneshot.config.ConfigError: an ONESHOT_* variable is unknown or has a bad value.
      oneshot.hook.UnavailableError: something that Oneshot needs is missing.
    """
    import jax

    import oneshot
    from oneshot import config, hook

    oneshot.enable()
    was_cached = jax.config.jax_enable_compilation_cache
    with tempfile.TemporaryDirectory() as directory:
        hook.set_dump_dir(Path(directory))
        jax.config.update("jax_enable_compilation_cache", False)
        # JAX would not compile again what it has; with an option of its own it does.
        options = {"xla_dump_to": f"{directory}/xla"}
        try:
            function.lower(*arguments, **keywords).compile(compiler_options=options)
        finally:
            jax.config.update("jax_enable_compilation_cache", was_cached)
            hook.set_dump_dir(config.read().dump_to)
        return Explanation(tuple(report.load(directory)))
