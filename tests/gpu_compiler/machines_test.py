# SPDX-License-Identifier: Apache-2.0
"""Groups of ranks that are on several machines stay with stock XLA."""

from typing import Any

import jax
import numpy as np
import pytest
from gpu_compiler import devices
from jax import lax
from jax.experimental import topologies
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P


@pytest.mark.parametrize(
    ("topology", "across"),
    [("1x1x4", None), ("2x1x2", "its ranks are on several machines")],
    ids=["one machine", "two machines"],
)
def test_groups(topology: str, across: str | None, all_reduces: Any) -> None:
    four = topologies.get_topology_desc(
        platform="cuda", topology=topology, target_config=devices.TARGET
    ).devices
    # In another order than the one of the devices' numbers: 0 and 1 share a machine.
    mesh = Mesh(np.array(four)[[2, 3, 0, 1]].reshape(2, 2), ("across", "within"))

    def f(x: jax.Array) -> jax.Array:
        return lax.tanh(lax.psum(lax.tanh(lax.psum(x, "within")), "across"))

    program = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("across", "within"), out_specs=P()))
    sites = all_reduces(program.lower(jax.ShapeDtypeStruct((16, 512), np.float32)).compile())
    assert [site["reason"] for site in sites] == ["", across or ""]
    assert [site["fired"] for site in sites] == [True, across is None]
