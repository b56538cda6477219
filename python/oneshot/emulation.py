# SPDX-License-Identifier: Apache-2.0
"""The environment in which JAX sees emulated CPU devices, and Oneshot what there is on GPUs."""

from collections.abc import Mapping

# On CPU XLA fuses before a pass can look at the module, and splits large sums; on GPU neither. Its
# simplifications after layout assignment count on the fusions: on bare instructions they drop
# copies that change a layout, and results are wrong, with Oneshot and without.
FLAGS = (
    "--xla_disable_hlo_passes='fusion,fusion-wrapper,tree_reduction_rewriter,"
    "simplification after layout assignment'"
)
"""What XLA must not do."""


def environment(devices: int, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns what to add to an environment, before JAX is used."""
    count = f"--xla_force_host_platform_device_count={devices}"
    flags = filter(None, (environ.get("XLA_FLAGS"), count, FLAGS))
    return {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": " ".join(flags)}
