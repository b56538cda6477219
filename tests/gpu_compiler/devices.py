# SPDX-License-Identifier: Apache-2.0
"""What programs are compiled for: GPUs that are not there, or devices that are."""

import functools
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

RANKS = 4
# What XLA wants to know of a GPU, here an H100.
TARGET = """
  platform_name: "CUDA"
  device_description_str: "H100"
  dnn_version_info { major: 9 minor: 10 }
  gpu_device_info {
    cuda_compute_capability { major: 9 }
    core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
    threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
    block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
    registers_per_block_limit: 65536 registers_per_core_limit: 65536
    shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
    shared_memory_per_core: 233472 l2_cache_size: 52428800
    memory_bandwidth: 3352320000000 device_memory_size: 84942979072
  }
"""

_devices: list[jax.Device] = []


@functools.cache
def mesh() -> Mesh:
    """Of the devices of `use`, otherwise of GPUs that are not there, to compile for only."""
    if _devices:
        return Mesh(np.array(_devices), ("model",), axis_types=(AxisType.Auto,))
    return absent((RANKS,), ("model",))


def absent(shape: tuple[int, ...], axes: tuple[str, ...]) -> Mesh:
    """A mesh of GPUs that are not there."""
    topology = topologies.get_topology_desc(
        platform="cuda", topology=f"1x1x{math.prod(shape)}", target_config=TARGET
    )
    return topologies.make_mesh(topology, shape, axes)


def use(devices: Sequence[jax.Device]) -> None:
    """Lets programs run, on the first of these devices."""
    _devices[:] = devices[:RANKS]
    mesh.cache_clear()
