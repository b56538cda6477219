# SPDX-License-Identifier: Apache-2.0
"""Tensor parallelism by hand: `shard_map`, and a `psum` where the partial sums meet.

One residual block of attention and one of an MLP, for one new token of each sequence. Each device
has some of the heads and some of the MLP's columns; the residual stream is on all of them. The two
sums over the devices, with the residual and the norm behind each, become one kernel each.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

BATCH, LENGTH, HIDDEN, HEADS, HEAD_SIZE, MLP = 4, 16, 256, 8, 32, 512

# How each array is split over the devices: by heads, or by columns of the MLP.
SPECS = {
    "norms": P(),
    "qkv": P(None, None, "tp"),
    "out": P("tp"),
    "up": P(None, "tp"),
    "down": P("tp"),
}
CACHE = P(None, None, None, "tp")


def rms_norm(x: jax.Array, gain: jax.Array) -> jax.Array:
    """Over the last dimension."""
    return x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * gain


def block(weights: dict, cache: jax.Array, x: jax.Array, position: jax.Array) -> tuple:
    """What one device does: x is whole, heads and columns are its own."""
    normed = rms_norm(x, weights["norms"][0])
    q, k, v = jnp.einsum("bd,pdhe->pbhe", normed, weights["qkv"])
    cache = lax.dynamic_update_index_in_dim(cache, jnp.stack([k, v]), position, axis=2)
    scores = jnp.einsum("bhe,bshe->bhs", q, cache[0]) * HEAD_SIZE**-0.5
    scores = jnp.where(jnp.arange(LENGTH) <= position, scores, -jnp.inf)
    mixed = jnp.einsum("bhs,bshe->bhe", jax.nn.softmax(scores), cache[1])

    with jax.named_scope("attention"):  # for profilers and reports
        x = x + lax.psum(jnp.einsum("bhe,hed->bd", mixed, weights["out"]), "tp")
    with jax.named_scope("mlp"):
        normed = rms_norm(x, weights["norms"][1])
        x = x + lax.psum(jax.nn.gelu(normed @ weights["up"]) @ weights["down"], "tp")
    return cache, rms_norm(x, weights["norms"][2])


def main() -> None:
    """Feeds the output back in, step by step."""
    mesh = jax.make_mesh((jax.device_count(),), ("tp",))
    rng = np.random.default_rng(0)
    shapes = {
        "norms": (3, HIDDEN),
        "qkv": (3, HIDDEN, HEADS, HEAD_SIZE),
        "out": (HEADS, HEAD_SIZE, HIDDEN),
        "up": (HIDDEN, MLP),
        "down": (MLP, HIDDEN),
    }
    weights = {
        name: jax.device_put(
            rng.standard_normal(shape, np.float32) * 0.06, NamedSharding(mesh, SPECS[name])
        )
        for name, shape in shapes.items()
    }
    cache = jnp.zeros((2, BATCH, LENGTH, HEADS, HEAD_SIZE), device=NamedSharding(mesh, CACHE))
    x = jax.device_put(rng.standard_normal((BATCH, HIDDEN), np.float32), NamedSharding(mesh, P()))

    step = jax.jit(
        functools.partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=(SPECS, CACHE, P(), P()),
            out_specs=(CACHE, P()),
        )(block),
        donate_argnums=1,
    )
    for position in range(LENGTH):
        cache, x = step(weights, cache, x, position)
    print("rms", f"{np.sqrt(np.mean(np.square(x))):.5f}")


if __name__ == "__main__":
    main()
