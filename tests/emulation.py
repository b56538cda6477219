# SPDX-License-Identifier: Apache-2.0
"""The environment in which a fresh process sees eight emulated devices, for tests and the demo."""

import os
from pathlib import Path

# On CPU XLA fuses before a pass can look at the module, and splits large sums; on GPU neither. Its
# simplifications after layout assignment count on the fusions: on bare instructions they drop
# copies that change a layout, and results are wrong, with Oneshot and without. Machine code that is
# not optimized takes a third of the time to compile.
XLA_FLAGS = (
    "--xla_force_host_platform_device_count=8 "
    "--xla_backend_optimization_level=0 "
    "--xla_disable_hlo_passes='fusion,fusion-wrapper,tree_reduction_rewriter,"
    "simplification after layout assignment'"
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
