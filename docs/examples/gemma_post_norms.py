# SPDX-License-Identifier: Apache-2.0
"""Norms on both sides, as in Gemma 2: what a block adds to the residual stream is normed first.

Behind each all-reduce stand a norm, the residual and the next block's norm, with gains of
`1 + weight`. All of that becomes one kernel: two row reductions, the second of a value that the
first one is part of.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

BLOCKS, BATCH, HIDDEN, MLP = 4, 4, 256, 512


def rms_norm(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Gemma's: in float32, times one plus the weight, then cast."""
    wide = x.astype(jnp.float32)
    normed = wide * lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + 1e-6)
    return (normed * (1 + weight.astype(jnp.float32))).astype(x.dtype)


@jax.jit
def model(blocks: list[dict], x: jax.Array) -> jax.Array:
    """Blocks of one MLP each; attention would stand in the same place."""
    for i, block in enumerate(blocks):
        with jax.named_scope(f"block_{i}"):
            normed = rms_norm(x, block["before"])
            hidden = jax.nn.gelu(normed @ block["gate"]) * (normed @ block["up"])
            x = x + rms_norm(hidden @ block["down"], block["after"])
    return x


def main() -> None:
    """Runs it once."""
    mesh = jax.make_mesh((jax.device_count(),), ("tp",), (jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)

    def draw(spec: P, *shape: int) -> jax.Array:
        value = rng.standard_normal(shape, np.float32) * shape[0] ** -0.5
        return jax.device_put(value.astype(jnp.bfloat16), NamedSharding(mesh, spec))

    blocks = [
        {
            "before": draw(P(), HIDDEN),
            "gate": draw(P(None, "tp"), HIDDEN, MLP),
            "up": draw(P(None, "tp"), HIDDEN, MLP),
            "down": draw(P("tp", None), MLP, HIDDEN),
            "after": draw(P(), HIDDEN),
        }
        for _ in range(BLOCKS)
    ]
    x = draw(P(), BATCH, HIDDEN)
    print("rms", f"{np.sqrt(np.mean(np.square(model(blocks, x).astype(np.float32)))):.3f}")


if __name__ == "__main__":
    main()
