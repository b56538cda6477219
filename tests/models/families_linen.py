# SPDX-License-Identifier: Apache-2.0
"""Two model families in flax.linen, in the two dialects that its large code bases have.

Llama-3 is written with logical axes: rules map the names of a parameter's dimensions to the mesh,
activations are constrained, and the gain of a norm is an einsum. Gemma-2 is written with einsums
over heads, mesh axes beside each parameter, and a norm without casts. Both keep the KV cache in a
collection and scan with nn.scan. Shapes as in families.py.
"""

from collections.abc import Callable
from typing import ClassVar

import families
import jax
import jax.numpy as jnp
from families import LAYERS, B, D, F, H, N, S, V, fill, inputs, rotate
from flax import linen as nn
from jax import lax
from jax.sharding import Mesh, NamedSharding

KV_HEADS = 4
RULES = (
    ("batch", "data"),
    ("embed", None),
    ("heads", "model"),
    ("mlp", "model"),
    ("vocab", "model"),
    ("layers", None),
    # Axes of the mesh stand for themselves.
    ("data", "data"),
    ("model", "model"),
)


def cached(
    module: nn.Module, name: str, new: jax.Array, position: jax.Array, axes: tuple[str | None, ...]
) -> jax.Array:
    """Keys or values [B, S, K, H] of a module, once new ones [B, T, K, H] are in the cache."""
    shape = (B, S, *new.shape[2:])
    cache = module.variable("cache", name, nn.with_partitioning(jnp.zeros, axes), shape, new.dtype)
    cache.value = lax.dynamic_update_slice(cache.value, new, (0, position, 0, 0))
    return cache.value


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, position: jax.Array, cap: float = 0.0
) -> jax.Array:
    """[B, T, N, H], [B, S, K, H] twice, to [B, T, N, H]."""
    groups = q.reshape(*q.shape[:2], KV_HEADS, -1, H)
    scores = jnp.einsum("btkgh,bskh->bkgts", groups, k).astype(jnp.float32) * H**-0.5
    if cap:
        scores = cap * jnp.tanh(scores / cap)
    visible = jnp.arange(S) <= position + jnp.arange(q.shape[1])[:, None]
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e30)).astype(v.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(q.shape)


# ---------------------------------------------------------------------------
# Llama-3, with logical axes


class LogicalRMSNorm(nn.Module):
    """Normalises in float32, casts, and multiplies by the gain in an einsum."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("embed",))
        scale = self.param("scale", ones, (x.shape[-1],), x.dtype)
        f = jnp.asarray(x, jnp.float32)
        mean_square = jnp.mean(lax.square(f), axis=-1, keepdims=True)
        y = jnp.asarray(f * lax.rsqrt(mean_square + 1e-5), x.dtype)
        return jnp.einsum("...k,k->...k", y, scale)


class LogicalDense(nn.Module):
    """A product over the last dimensions, as many as `axes` has besides those of the output."""

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    contracted: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *contracted] to [..., *output]."""
        init = nn.with_logical_partitioning(nn.initializers.normal(), self.axes)
        kernel = self.param("kernel", init, self.shape, x.dtype)
        last = tuple(range(x.ndim - self.contracted, x.ndim))
        return lax.dot_general(x, kernel, ((last, tuple(range(self.contracted))), ((), ())))


class LlamaBlock(nn.Module):
    """One layer."""

    @nn.compact
    def __call__(self, h: jax.Array, position: jax.Array) -> tuple[jax.Array, None]:
        """[B, T, D] to [B, T, D]."""
        replicated = ("batch", None, "embed")
        h = nn.with_logical_constraint(h, replicated)
        x = LogicalRMSNorm(name="pre_attention_norm")(h)
        positions = position + jnp.arange(h.shape[1])
        shape, axes = (D, KV_HEADS, H), ("embed", "heads", None)
        q = rotate(LogicalDense((D, N, H), axes, name="query")(x), positions)
        k = rotate(LogicalDense(shape, axes, name="key")(x), positions)
        v = LogicalDense(shape, axes, name="value")(x)
        axes = ("data", None, "model", None)
        k = cached(self, "cached_key", k, position, axes)
        v = cached(self, "cached_value", v, position, axes)
        mixed = nn.with_logical_constraint(
            attend(q, k, v, position), ("batch", None, "heads", None)
        )
        x = LogicalDense((N, H, D), ("heads", None, "embed"), contracted=2, name="out")(mixed)
        h = h + nn.with_logical_constraint(x, replicated)
        x = LogicalRMSNorm(name="post_attention_norm")(h)
        gate = LogicalDense((D, F), ("embed", "mlp"), name="wi_0")(x)
        up = LogicalDense((D, F), ("embed", "mlp"), name="wi_1")(x)
        x = nn.with_logical_constraint(nn.silu(gate) * up, ("batch", None, "mlp"))
        x = LogicalDense((F, D), ("mlp", "embed"), name="wo")(x)
        return h + nn.with_logical_constraint(x, replicated), None


class Llama(nn.Module):
    """The model; the embedding is a product with one-hot tokens."""

    scan: bool
    dtype: jnp.dtype
    block: ClassVar = LlamaBlock

    @nn.compact
    def __call__(self, tokens: jax.Array, position: jax.Array) -> jax.Array:
        """Tokens [B, T] to logits [B, T, V]."""
        init = nn.with_logical_partitioning(nn.initializers.normal(), ("vocab", "embed"))
        embedding = self.param("embedding", init, (V, D), self.dtype)
        h = jax.nn.one_hot(tokens, V, dtype=self.dtype) @ embedding
        h = layers(self)(nn.with_logical_constraint(h, ("batch", None, "embed")), position)
        h = LogicalRMSNorm(name="final_norm")(h)
        return LogicalDense((D, V), ("embed", "vocab"), name="head")(h).astype(jnp.float32)


# ---------------------------------------------------------------------------
# Gemma-2, with einsums


class GemmaNorm(nn.Module):
    """Statistics in the type of x, as its author wrote it; one plus the gain."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],), x.dtype)
        variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
        return x * lax.rsqrt(variance + 1e-6) * (1 + scale)


class Einsum(nn.Module):
    """A product with a parameter."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]

    @nn.compact
    def __call__(self, equation: str, x: jax.Array) -> jax.Array:
        """As the equation says."""
        init = nn.with_partitioning(nn.initializers.normal(), self.axes)
        return jnp.einsum(equation, x, self.param("w", init, self.shape, x.dtype))


class GemmaBlock(nn.Module):
    """One layer."""

    @nn.compact
    def __call__(self, h: jax.Array, position: jax.Array) -> tuple[jax.Array, None]:
        """[B, T, D] to [B, T, D]."""
        x = GemmaNorm(name="pre_attention_norm")(h)
        positions = position + jnp.arange(h.shape[1])
        by_head = (None, "model", None, None)
        q = Einsum((N, D, H), by_head[1:], name="q_einsum")("BTD,NDH->BTNH", x)
        k, v = Einsum((2, KV_HEADS, D, H), by_head, name="kv_einsum")("BTD,CKDH->CBTKH", x)
        axes = ("data", None, "model", None)
        k = cached(self, "cached_key", rotate(k, positions), position, axes)
        v = cached(self, "cached_value", v, position, axes)
        x = attend(rotate(q, positions), k, v, position, cap=50.0)
        x = Einsum((N, H, D), by_head[1:], name="attn_vec_einsum")("BTNH,NHD->BTD", x)
        h = GemmaNorm(name="post_attention_norm")(x) + h
        x = GemmaNorm(name="pre_ffw_norm")(h)
        columns = (None, None, "model")
        gate, up = Einsum((2, D, F), columns, name="gating_einsum")("BTD,CDF->CBTF", x)
        x = Einsum((F, D), ("model", None), name="linear")("BTF,FD->BTD", nn.gelu(gate) * up)
        return GemmaNorm(name="post_ffw_norm")(x) + h, None


class Gemma(nn.Module):
    """The model; the embedding is indexed."""

    scan: bool
    dtype: jnp.dtype
    block: ClassVar = GemmaBlock

    @nn.compact
    def __call__(self, tokens: jax.Array, position: jax.Array) -> jax.Array:
        """Tokens [B, T] to logits [B, T, V]."""
        init = nn.with_partitioning(nn.initializers.normal(), ("model", None))
        embedding = self.param("embedding", init, (V, D), self.dtype)
        h = embedding[tokens] * jnp.sqrt(D).astype(self.dtype)
        h = GemmaNorm(name="final_norm")(layers(self)(h, position))
        logits = jnp.dot(h, embedding.T).astype(jnp.float32)
        return jnp.tanh(logits / 30.0) * 30.0


# ---------------------------------------------------------------------------
# Running them


def layers(model: nn.Module) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """All layers of a model, scanned or one after the other."""

    def scanned(h: jax.Array, position: jax.Array) -> jax.Array:
        stack = nn.scan(
            model.block,
            variable_axes={"params": 0, "cache": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=LAYERS,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return stack(name="layers")(h, position)[0]

    def unrolled(h: jax.Array, position: jax.Array) -> jax.Array:
        for i in range(LAYERS):
            h, _ = model.block(name=f"layer_{i}")(h, position)
        return h

    return scanned if model.scan else unrolled


MODELS = {"Llama-3 (linen)": Llama, "Gemma-2 (linen)": Gemma}


class Run(families.Run):
    """As there, with a name of `MODELS`."""

    def compile(self, mesh: Mesh, dtype: jnp.dtype) -> tuple[jax.stages.Compiled, tuple]:
        """Compiles the program, with parameters and activations of a type.

        Returns:
          The program, which returns logits [B, T, V] and the caches, and its arguments.
        """
        model = MODELS[self.family](self.scan, dtype)
        tokens, position = inputs(mesh, self.prefill)

        def forward(params, cache, tokens, position):
            with mesh, nn.logical_axis_rules(RULES):
                variables = {"params": params, "cache": cache}
                return model.apply(variables, tokens, position, mutable="cache")

        boxed = jax.eval_shape(model.init, jax.random.key(0), tokens, position)
        shardings = jax.tree.map(
            lambda spec: NamedSharding(mesh, nn.logical_to_mesh_axes(spec, RULES)),
            nn.get_partition_spec(boxed),
        )
        values = jax.device_put(fill(nn.meta.unbox(boxed), seed=0), shardings)
        arguments = (values["params"], values["cache"], tokens, position)
        return jax.jit(forward).lower(*arguments).compile(), arguments


RUNS = [
    Run(family, scan, prefill)
    for family in MODELS
    for scan in (False, True)
    for prefill in (False, True)
]
