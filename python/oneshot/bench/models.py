# SPDX-License-Identifier: Apache-2.0
"""Decode steps of published model families, at their real widths, as users write them for GSPMD.

Weights and KV cache are sharded over the mesh axis "tp"; nothing here knows of Oneshot. Shapes: B
batch, S cache length, D hidden, H heads, K KV heads, E head size, F MLP size.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

CACHE_LENGTH = 512

Layer = dict[str, jax.Array]
Cache = tuple[jax.Array, jax.Array]


@dataclass(frozen=True)
class Config:
    """The width of a model.

    Attributes:
      hidden: D.
      heads: H.
      kv_heads: K.
      head_size: E.
      ffn: F.
      gemma: Gemma-2's block: norms with a gain of one plus the parameter before and after each
        half, tanh-GELU, and soft-capped attention. Otherwise Llama's.
    """

    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    gemma: bool = False


MODELS = {
    "llama-3-8b": Config(4096, 32, 8, 128, 14336),
    "llama-3-70b": Config(8192, 64, 8, 128, 28672),
    "gemma-2-9b": Config(3584, 16, 8, 256, 14336, gemma=True),
    # On two GPUs, what each of eight would have of the same model: a quarter of heads and MLP.
    "llama-3-8b /4": Config(4096, 8, 2, 128, 3584),
    "llama-3-70b /4": Config(8192, 16, 2, 128, 7168),
    "gemma-2-9b /4": Config(3584, 4, 2, 256, 3584, gemma=True),
}
"""By the name of the command line."""


def specs(config: Config) -> dict[str, tuple[tuple[int, ...], P]]:
    """Shape and sharding of each parameter of a layer."""
    width = config.heads * config.head_size
    kv_width = config.kv_heads * config.head_size
    result = {
        "wq": ((config.hidden, width), P(None, "tp")),
        "wk": ((config.hidden, kv_width), P(None, "tp")),
        "wv": ((config.hidden, kv_width), P(None, "tp")),
        "wo": ((width, config.hidden), P("tp", None)),
        "gate": ((config.hidden, config.ffn), P(None, "tp")),
        "up": ((config.hidden, config.ffn), P(None, "tp")),
        "down": ((config.ffn, config.hidden), P("tp", None)),
        "attention_norm": ((config.hidden,), P()),
        "mlp_norm": ((config.hidden,), P()),
    }
    if config.gemma:
        result["post_attention_norm"] = ((config.hidden,), P())
        result["post_mlp_norm"] = ((config.hidden,), P())
    return result


def norm(config: Config, x: jax.Array, gain: jax.Array) -> jax.Array:
    """RMSNorm as the family writes it; [B, D] and [D] to [B, D]."""
    f = x.astype(jnp.float32)
    f = f * lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + 1e-6)
    if config.gemma:
        return (f * (1 + gain.astype(jnp.float32))).astype(x.dtype)
    return f.astype(x.dtype) * gain


def attention(
    config: Config, layer: Layer, x: jax.Array, cache: Cache, position: jax.Array
) -> tuple[jax.Array, Cache]:
    """Attention of one new token over the cache: [B, D] to [B, D]; the cache is [B, K, S, E]."""
    batch = x.shape[0]
    heads = (batch, config.kv_heads, config.heads // config.kv_heads, config.head_size)
    q = (x @ layer["wq"]).reshape(heads)
    k = (x @ layer["wk"]).reshape(batch, config.kv_heads, 1, config.head_size)
    v = (x @ layer["wv"]).reshape(batch, config.kv_heads, 1, config.head_size)
    keys = lax.dynamic_update_slice(cache[0], k, (0, 0, position, 0))
    values = lax.dynamic_update_slice(cache[1], v, (0, 0, position, 0))
    scores = jnp.einsum("bkge,bkse->bkgs", q, keys).astype(jnp.float32)
    scores = scores * config.head_size**-0.5
    if config.gemma:
        scores = 50.0 * jnp.tanh(scores / 50.0)
    scores = jnp.where(jnp.arange(keys.shape[2]) <= position, scores, -jnp.inf)
    weights = jax.nn.softmax(scores).astype(x.dtype)
    out = jnp.einsum("bkgs,bkse->bkge", weights, values).reshape(batch, -1)
    return out @ layer["wo"], (keys, values)


def mlp(config: Config, layer: Layer, x: jax.Array) -> jax.Array:
    """Gated MLP: [B, D] to [B, D]."""
    gate = x @ layer["gate"]
    gate = jax.nn.gelu(gate, approximate=True) if config.gemma else jax.nn.silu(gate)
    return (gate * (x @ layer["up"])) @ layer["down"]


def block(
    config: Config, layer: Layer, h: jax.Array, cache: Cache, position: jax.Array
) -> tuple[jax.Array, Cache]:
    """One layer: [B, D] to [B, D]."""
    x = norm(config, h, layer["attention_norm"])
    x, cache = attention(config, layer, x, cache, position)
    if config.gemma:
        x = norm(config, x, layer["post_attention_norm"])
    h = h + x
    x = mlp(config, layer, norm(config, h, layer["mlp_norm"]))
    if config.gemma:
        x = norm(config, x, layer["post_mlp_norm"])
    return h + x, cache


def step(
    config: Config, layers: list[Layer], h: jax.Array, caches: list[Cache], position: jax.Array
) -> tuple[jax.Array, list[Cache]]:
    """All layers for one token of each sequence."""
    updated = []
    for layer, cache in zip(layers, caches, strict=True):
        h, new = block(config, layer, h, cache, position)
        updated.append(new)
    return h, updated
