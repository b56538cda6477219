# SPDX-License-Identifier: Apache-2.0
"""Values that XLA:CPU updates in place, with its default flags: copies protect what is still read.

Each program runs in a process of its own, which is this file as a script, because XLA may end it.
"""

import functools
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulation import environment
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from oneshot import report

SHAPES = {"3d": (5, 1, 5), "1d": (5,)}


@pytest.mark.parametrize("enabled", ["0", "1"])
@pytest.mark.parametrize("name", SHAPES)
def test_sum_and_update(name: str, enabled: str, tmp_path: Path) -> None:
    environ = environment(ONESHOT=enabled, ONESHOT_DUMP_TO=tmp_path)
    environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, __file__, name], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert any(module.fired == 1 for module in report.load(tmp_path)) == (enabled == "1")


def sum_and_update(shape: tuple[int, ...]) -> None:
    """A sum, a copy of it with one column replaced, and the latter also in bf16: all are results.

    XLA:CPU fuses update and convert, and lets the fusion write into its operand.
    """
    mesh = Mesh(np.array(jax.devices()), ("a",))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("a"), P()), out_specs=P("a"))
    def program(x, index):
        y = lax.psum(x[0], "a")
        z = lax.dynamic_update_slice(y, y[..., :1] + 1, (0,) * (len(shape) - 1) + (index,))
        return lax.pcast((y[None], z[None], z.astype(jnp.bfloat16)[None]), "a", to="varying")

    one = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    y, z, narrow = program(np.tile(one, (8,) + (1,) * len(shape)), np.int32(2))
    updated = 8 * one
    updated[..., 2] = updated[..., 0] + 1
    for rank in range(8):
        np.testing.assert_array_equal(y[rank], 8 * one)
        np.testing.assert_array_equal(z[rank], updated)
        np.testing.assert_array_equal(narrow[rank], updated.astype(jnp.bfloat16))


if __name__ == "__main__":
    sum_and_update(SHAPES[sys.argv[1]])
