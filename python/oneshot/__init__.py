# SPDX-License-Identifier: Apache-2.0
"""Fused single-shot all-reduce for unmodified JAX programs.

Set ONESHOT=1 and run the program; nothing has to be imported. `enable` is for programs that can't
set an environment variable.
"""

from typing import TYPE_CHECKING, Any

from oneshot.version import __version__ as __version__

if TYPE_CHECKING:
    from oneshot.explanation import Explanation


def enable() -> None:
    """Rewrites programs that are compiled from now on, as ONESHOT=1 does.

    Other ONESHOT_* variables are read as usual. Programs that JAX has compiled before are compiled
    again when they are next called.

    Raises:
      oneshot.config.ConfigError: an ONESHOT_* variable is unknown or has a bad value.
      oneshot.hook.UnavailableError: something that Oneshot needs is missing.
    """
    import jax

    from oneshot import config, hook

    if not hook.is_enabled():
        hook.enable(config.read())
        jax.clear_caches()


def explain(jitted: Any, *args: Any, **kwargs: Any) -> "Explanation":
    """Says what Oneshot does to each all-reduce of a jitted function, whether it is on or not.

    Compiles it for these arguments, without running it. Print the result, or iterate over it.

    Raises:
      oneshot.explanation.ExplainError: the pass can't be loaded, or does not understand the module.
    """
    from oneshot.explanation import explain as explain_function

    return explain_function(jitted, *args, **kwargs)


def is_enabled() -> bool:
    """Returns whether programs that are compiled from now on are rewritten."""
    from oneshot import hook

    return hook.is_enabled()
