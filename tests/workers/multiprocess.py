# SPDX-License-Identifier: Apache-2.0
"""One process of a program that runs over several: tensor-parallel layers, checked at the end.

WORKER_STEPS: how many steps (default 500). WORKER_LATE_S: the last process begins its steps that
many seconds late, and is late again in the middle.
"""

import hashlib
import os
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
import process_group
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ROWS, LAYERS = 4, 3
HIDDEN = 1680  # can be divided between two to eight


def norm(h, gain):
    """RMSNorm."""
    return h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True) + 1e-6) * gain


@jax.jit
def step(h, layers):
    """Goes once through all layers; `h` is [ROWS, HIDDEN] and comes back as it was normalised."""
    for gain, up, down in layers:
        h = norm(h + jnp.tanh(h @ up) @ down, gain)
    return h


def reference(h, layers, steps):
    """The same in float64."""
    for _ in range(steps):
        for gain, up, down in layers:
            h = h + np.tanh(h @ up) @ down
            h = h / np.sqrt(np.mean(h * h, -1, keepdims=True) + 1e-6) * gain
    return h


def main() -> None:
    """Runs the steps and compares the first ten with the reference."""
    process_group.join()
    steps = int(os.environ.get("WORKER_STEPS", "500"))
    late = float(os.environ.get("WORKER_LATE_S", "0"))
    late *= jax.process_index() == jax.process_count() - 1
    jax.config.update("jax_default_matmul_precision", "highest")

    mesh = Mesh(np.array(jax.devices()), ("tp",))
    random = np.random.default_rng(0)

    def place(array, spec):
        sharding = NamedSharding(mesh, spec)
        array = array.astype(np.float32)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    scale = HIDDEN**-0.5
    arrays = [
        (
            random.uniform(0.5, 1.5, HIDDEN),
            random.normal(0, scale, (HIDDEN, HIDDEN)),
            random.normal(0, scale, (HIDDEN, HIDDEN)),
        )
        for _ in range(LAYERS)
    ]
    specs = (P(), P(None, "tp"), P("tp", None))
    layers = [tuple(map(place, layer, specs)) for layer in arrays]
    start = random.normal(0, 1, (ROWS, HIDDEN))

    h = place(start, P())
    for _ in range(10):
        h = step(h, layers)
    got = np.asarray(h.addressable_data(0))
    want = reference(start, arrays, 10)
    error = np.max(np.abs(got - want)) / np.max(np.abs(want))
    assert error < 1e-3, error

    time.sleep(late)
    for i in range(steps):
        h = step(h, layers)
        if i == steps // 2:
            time.sleep(late)
        if i % 100 == 0:
            h.block_until_ready()
            print("step", i, flush=True)
    for shard in h.addressable_shards:
        bits = np.asarray(shard.data)
        assert np.isfinite(bits).all()
        print("bits", hashlib.sha256(bits.tobytes()).hexdigest()[:16])
    print(f"right, error {error:.1e}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        traceback.print_exc()
        # At a regular exit JAX waits for the other processes, and one may be gone.
        sys.stderr.flush()
        os._exit(1)
