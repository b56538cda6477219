# SPDX-License-Identifier: Apache-2.0
"""Fused single-shot all-reduce for unmodified JAX programs.

Set ONESHOT=1 and run the program; nothing has to be imported. `enable` is for programs that can't
set an environment variable.
"""

from typing import TYPE_CHECKING, Any

from oneshot.version import __version__ as __version__

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from oneshot.explanation import Explanation
    from oneshot.status import Status
    from oneshot.steps import Step


def enable() -> None:
    """Rewrites programs that are compiled from now on, as ONESHOT=1 does.

    Where ONESHOT=0 is set, it says so and does nothing. Other variables are read as usual. Programs
    that JAX has compiled before are compiled again when they are next called.

    Raises:
      oneshot.config.ConfigError: an ONESHOT_* variable has a bad value.
      oneshot.hook.UnavailableError: something that Oneshot needs is missing.
    """
    import logging
    import os

    import jax

    from oneshot import config, hook, log

    if config.switch() is False:
        log.show(logging.WARNING)
        log.warn_once(
            f"off, all stays with stock XLA: ONESHOT={os.environ['ONESHOT']} wins over "
            "oneshot.enable() and `oneshot run`"
        )
    elif hook.enable(config.read()):
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
    """Returns whether programs for JAX's default backend are rewritten from now on.

    Until JAX has made its backends, that one of them lacks something is not known.
    """
    from oneshot import hook

    return hook.is_enabled()


def disabled() -> "AbstractContextManager[None]":
    """Leaves what this thread compiles meanwhile to stock XLA; also a decorator.

    A jitted function is compiled once for inside and once for outside, as its arguments ask for;
    JAX's persistent cache keeps both apart, too. What is compiled ahead of time (`lower` and
    `compile`) goes by where `compile` is called. Does nothing where Oneshot is off.
    """
    from oneshot import hook

    return hook.disabled()


def status() -> "Status":
    """Returns where Oneshot is on, where it is off and why, and what it has fused so far."""
    from oneshot.status import status as status_now

    return status_now()


def step() -> "Step":
    """Marks a step for `oneshot compare`; elsewhere it does nothing.

    A context manager. Tell it what the step gives, which is waited for and compared:

        with oneshot.step() as step:
            tokens, cache = decode(weights, tokens, cache)
            step.result(tokens)
    """
    from oneshot.steps import Step

    return Step()
