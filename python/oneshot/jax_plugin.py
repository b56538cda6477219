# SPDX-License-Identifier: Apache-2.0
"""Entry point of the `jax_plugins` group: JAX calls `initialize` before it makes backends."""


def initialize() -> None:
    """Turns Oneshot on if ONESHOT asks for it. Never raises: JAX goes on with stock XLA."""
    import logging
    import os

    if not os.environ.get("ONESHOT"):
        return
    from oneshot import config as config_lib
    from oneshot import log

    try:
        if config_lib.switch():
            from oneshot import hook

            hook.enable(config_lib.read())
    except Exception as error:
        log.show(logging.WARNING)
        log.logger.error("off, all stays with stock XLA: %s", error)
