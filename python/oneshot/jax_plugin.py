# SPDX-License-Identifier: Apache-2.0
"""Entry point of the `jax_plugins` group: JAX calls `initialize` before it makes backends."""

failure = ""
"""Why `initialize` has left Oneshot off, if it was to be on."""


def initialize() -> None:
    """Turns Oneshot on if ONESHOT asks for it. Never raises: JAX goes on with stock XLA.

    With ONESHOT=require JAX fails instead, when it makes a backend.
    """
    global failure
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
        failure = str(error)
        log.show(logging.WARNING)
        if config_lib.required():
            from oneshot import hook

            log.logger.error("off, and ONESHOT=require: %s", error)
            hook.refuse(failure)
        else:
            log.logger.error("off, all stays with stock XLA: %s", error)
