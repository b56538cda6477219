# SPDX-License-Identifier: Apache-2.0
"""`lax.scan` over stacked layers: one body is compiled, however deep the model.

The kernel takes the gains and biases out of the stack itself, at the iteration that is running.
What starts a layer, here a LayerNorm, is in another iteration than the all-reduce that ends the one
before it: write the norm at the end of the body, as below, and both all-reduces have one behind
them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

LAYERS, BATCH, HIDDEN, MLP = 16, 8, 256, 512

SPECS = {
    "mix_in": P(None, None, "tp"),
    "mix_out": P(None, "tp", None),
    "mlp_in": P(None, None, "tp"),
    "mlp_out": P(None, "tp", None),
    "biases": P(),
    "gains": P(),
    "shifts": P(),
}


def layer_norm(x: jax.Array, gain: jax.Array, shift: jax.Array) -> jax.Array:
    """Over the last dimension."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * lax.rsqrt(variance + 1e-5) * gain + shift


def body(state: tuple[jax.Array, jax.Array], layer: dict) -> tuple[tuple, None]:
    """One layer: what comes in is the residual stream, and the same normed."""
    x, normed = state
    gains, shifts, biases = layer["gains"], layer["shifts"], layer["biases"]
    x = x + (jnp.tanh(normed @ layer["mix_in"]) @ layer["mix_out"] + biases[0])
    normed = layer_norm(x, gains[0], shifts[0])
    x = x + (jax.nn.gelu(normed @ layer["mlp_in"]) @ layer["mlp_out"] + biases[1])
    return (x, layer_norm(x, gains[1], shifts[1])), None


@jax.jit
def model(layers: dict, x: jax.Array) -> jax.Array:
    """All layers."""
    (_, normed), _ = lax.scan(body, (x, x), layers)
    return normed


def main() -> None:
    """Runs it once."""
    mesh = jax.make_mesh((jax.device_count(),), ("tp",), (jax.sharding.AxisType.Auto,))
    rng = np.random.default_rng(0)
    shapes = {
        "mix_in": (HIDDEN, MLP),
        "mix_out": (MLP, HIDDEN),
        "mlp_in": (HIDDEN, MLP),
        "mlp_out": (MLP, HIDDEN),
        "biases": (2, HIDDEN),
        "gains": (2, HIDDEN),
        "shifts": (2, HIDDEN),
    }
    layers = {
        name: jax.device_put(
            rng.standard_normal((LAYERS, *shape), np.float32) * shape[0] ** -0.5,
            NamedSharding(mesh, SPECS[name]),
        )
        for name, shape in shapes.items()
    }
    x = jax.device_put(rng.standard_normal((BATCH, HIDDEN), np.float32), NamedSharding(mesh, P()))
    print("rms", f"{np.sqrt(np.mean(np.square(model(layers, x)))):.5f}")


if __name__ == "__main__":
    main()
