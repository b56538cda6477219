# SPDX-License-Identifier: Apache-2.0
"""The environment in which a fresh process sees eight emulated devices, for tests and the demo."""

import os
from pathlib import Path

import oneshot.emulation

# Machine code that is not optimized takes a third of the time to compile.
XLA_FLAGS = (
    "--xla_force_host_platform_device_count=8 "
    f"--xla_backend_optimization_level=0 {oneshot.emulation.FLAGS}"
)


def environment(**variables: str | Path) -> dict[str, str]:
    """The environment with nothing of Oneshot's but where XLA is, and `variables`."""
    environ = {
        name: value
        for name, value in os.environ.items()
        if name == "ONESHOT_XLA_DIR" or not name.startswith(("ONESHOT", "JAX_"))
    }
    environ |= {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": XLA_FLAGS}
    return environ | {name: str(value) for name, value in variables.items()}
