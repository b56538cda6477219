# SPDX-License-Identifier: Apache-2.0
"""Published model families in flax.nnx, as their users write them, at small sizes.

Tensor parallelism is GSPMD's: `SHARDING` says by name how each parameter is split over the mesh
axis "model", the batch over "data", and XLA derives every all-reduce. What differs between the
families is what follows an all-reduce: which norm, where the casts are, biases, where the residual
is added, and whether attention and MLP share one. OLMo-2 has two all-reduces more in each layer,
of one number a token: it normalises queries and keys over all heads, and those are sharded.

Shapes: B batch, T new tokens, S cache length, D hidden, N heads, K KV heads, G query heads of one
KV head, H head size, F MLP size, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

B, S, D, N, H, F, V, LAYERS = 2, 16, 64, 8, 16, 128, 256, 2
# Tokens of a prefill; and in how many positions a decode step finds the cache filled.
PROMPT = 8

# Parameter by the last parts of its path. Everything else is replicated.
SHARDING = {
    ("q", "kernel"): P(None, "model"),
    ("k", "kernel"): P(None, "model"),
    ("v", "kernel"): P(None, "model"),
    ("q", "bias"): P("model"),
    ("k", "bias"): P("model"),
    ("v", "bias"): P("model"),
    ("o", "kernel"): P("model", None),
    ("gate", "kernel"): P(None, "model"),
    ("up", "kernel"): P(None, "model"),
    ("up", "bias"): P("model"),
    ("down", "kernel"): P("model", None),
    ("embed", "embedding"): P("model", None),
    ("head", "kernel"): P(None, "model"),
    ("head", "bias"): P("model"),
}


@dataclasses.dataclass(frozen=True)
class Family:
    """How a family differs from the others.

    Attributes:
      norm: "rms_cast" (Llama: cast, then gain), "rms_flax" (flax.nnx.RMSNorm: rsqrt times gain
        first), "rms_gemma" (one plus gain, all in float32, cast at the end), "layer"
        (flax.nnx.LayerNorm) or "layer_two_pass" (variance of the centred values).
      block: "pre" (norm before each half), "sandwich" (before and after), "post" (after) or
        "parallel" (attention and MLP of the same norm, one sum).
      kv_heads: K.
      activation: of the MLP.
      gated: a gated MLP; otherwise two matrices.
      bias: on all projections, on those of the MLP ("mlp"), or none.
      qk_norm: of queries and keys: by head ("head"), over all heads ("all"), or none.
      learned_positions: added to the embedding; otherwise rotary ones.
      windows: how far back attention looks; layers take turns.
      soft_cap: of attention scores.
      logit_soft_cap: of logits.
      scaled_embedding: multiplied by sqrt(D).
      tied: logits are products with the embedding; otherwise of a matrix of their own.
    """

    norm: str
    block: str = "pre"
    kv_heads: int = 4
    activation: Callable[[jax.Array], jax.Array] = nnx.silu
    gated: bool = True
    bias: str = ""
    qk_norm: str = ""
    learned_positions: bool = False
    windows: tuple[int, ...] = (S,)
    soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    scaled_embedding: bool = False
    tied: bool = False


gelu_tanh = functools.partial(nnx.gelu, approximate=True)
gelu_erf = functools.partial(nnx.gelu, approximate=False)
gemma = functools.partial(
    Family,
    "rms_gemma",
    "sandwich",
    activation=gelu_tanh,
    windows=(S // 4, S),
    scaled_embedding=True,
    tied=True,
)
plain = functools.partial(Family, gated=False, activation=gelu_tanh)

FAMILIES = {
    "Llama-3": Family("rms_cast"),
    "Mistral": Family("rms_flax", windows=(S // 2,)),
    "Qwen-3": Family("rms_cast", qk_norm="head", tied=True),
    "Gemma-2": gemma(soft_cap=50.0, logit_soft_cap=30.0),
    "Gemma-3": gemma(qk_norm="head"),
    "OLMo-2": Family("rms_cast", "post", kv_heads=N, qk_norm="all"),
    "GPT-2": plain("layer", kv_heads=N, bias="all", learned_positions=True, tied=True),
    "GPT-J": plain("layer_two_pass", "parallel", kv_heads=N, bias="mlp"),
    "Falcon": plain("layer", "parallel", kv_heads=1, activation=gelu_erf, tied=True),
}

Cache = tuple[jax.Array, jax.Array]


class CastRMSNorm(nnx.Module):
    """Llama's: normalises in float32, casts, then multiplies by the gain."""

    def __init__(self, features: int, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones((features,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D]."""
        f = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(f), axis=-1, keepdims=True)
        return self.scale * (f * lax.rsqrt(variance + 1e-5)).astype(x.dtype)


class GemmaRMSNorm(nnx.Module):
    """Gemma's: a gain of one plus the parameter, and the cast at the end."""

    def __init__(self, features: int, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.zeros((features,), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D]."""
        f = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(f), axis=-1, keepdims=True)
        normed = f * lax.rsqrt(variance + 1e-6)
        return (normed * (1 + self.scale.astype(jnp.float32))).astype(x.dtype)


def make_norm(family: Family, features: int, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
    """The norm of a family."""
    if family.norm == "rms_cast":
        return CastRMSNorm(features, dtype)
    if family.norm == "rms_gemma":
        return GemmaRMSNorm(features, dtype)
    arguments = {"epsilon": 1e-5, "dtype": dtype, "param_dtype": dtype, "rngs": rngs}
    if family.norm == "rms_flax":
        return nnx.RMSNorm(features, **arguments)
    fast = family.norm == "layer"
    return nnx.LayerNorm(features, use_fast_variance=fast, **arguments)


def rotate(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotary embedding of [B, T, heads, H] at positions [T], in float32."""
    angle = positions[:, None, None] / 1e4 ** (jnp.arange(H // 2) / (H // 2))
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention over a KV cache."""

    def __init__(self, family: Family, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.family = family
        linear = functools.partial(
            nnx.Linear, use_bias=family.bias == "all", dtype=dtype, param_dtype=dtype, rngs=rngs
        )
        self.q = linear(D, N * H)
        self.k = linear(D, family.kv_heads * H)
        self.v = linear(D, family.kv_heads * H)
        self.o = linear(N * H, D)
        if family.qk_norm:
            heads = (N, family.kv_heads) if family.qk_norm == "all" else (1, 1)
            self.q_norm, self.k_norm = (make_norm(family, n * H, dtype, rngs) for n in heads)

    def __call__(
        self, x: jax.Array, cache: Cache, position: jax.Array, window: int | jax.Array
    ) -> tuple[jax.Array, Cache]:
        """[B, T, D] to [B, T, D]; the cache is [B, K, S, H] twice."""
        family = self.family
        batch, length, _ = x.shape
        q, k, v = self.q(x), self.k(x), self.v(x)
        if family.qk_norm == "all":
            q, k = self.q_norm(q), self.k_norm(k)
        q = q.reshape(batch, length, N, H)
        k, v = (part.reshape(batch, length, family.kv_heads, H) for part in (k, v))
        if family.qk_norm == "head":
            q, k = self.q_norm(q), self.k_norm(k)
        positions = position + jnp.arange(length)
        if not family.learned_positions:
            q, k = rotate(q, positions), rotate(k, positions)
        keys = lax.dynamic_update_slice(cache[0], k.swapaxes(1, 2), (0, 0, position, 0))
        values = lax.dynamic_update_slice(cache[1], v.swapaxes(1, 2), (0, 0, position, 0))
        q = q.reshape(batch, length, family.kv_heads, -1, H)
        scores = jnp.einsum("btkgh,bksh->bkgts", q, keys).astype(jnp.float32) * H**-0.5
        if family.soft_cap:
            scores = family.soft_cap * jnp.tanh(scores / family.soft_cap)
        back = positions[:, None] - jnp.arange(S)
        scores = jnp.where((back >= 0) & (back < window), scores, -1e30)
        weights = jax.nn.softmax(scores).astype(x.dtype)
        out = jnp.einsum("bkgts,bksh->btkgh", weights, values)
        return self.o(out.reshape(batch, length, N * H)), (keys, values)


class MLP(nnx.Module):
    """The feed-forward half of a block."""

    def __init__(self, family: Family, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.activation = family.activation
        linear = functools.partial(
            nnx.Linear, use_bias=bool(family.bias), dtype=dtype, param_dtype=dtype, rngs=rngs
        )
        self.gate = linear(D, F) if family.gated else None
        self.up = linear(D, F)
        self.down = linear(F, D)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        if self.gate is not None:
            return self.down(self.activation(self.gate(x)) * self.up(x))
        return self.down(self.activation(self.up(x)))


class Block(nnx.Module):
    """One layer."""

    def __init__(self, family: Family, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.block = family.block
        self.attention = Attention(family, dtype, rngs)
        self.mlp = MLP(family, dtype, rngs)
        names = {
            "pre": ["attention_norm", "mlp_norm"],
            "sandwich": ["attention_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm"],
            "post": ["post_attention_norm", "post_mlp_norm"],
            "parallel": ["norm"],
        }[family.block]
        for name in names:
            setattr(self, name, make_norm(family, D, dtype, rngs))

    def __call__(
        self, h: jax.Array, cache: Cache, position: jax.Array, window: int | jax.Array
    ) -> tuple[jax.Array, Cache]:
        """[B, T, D] to [B, T, D]."""
        if self.block == "parallel":
            x = self.norm(h)
            attended, cache = self.attention(x, cache, position, window)
            return attended + self.mlp(x) + h, cache
        x = h if self.block == "post" else self.attention_norm(h)
        x, cache = self.attention(x, cache, position, window)
        h = h + (x if self.block == "pre" else self.post_attention_norm(x))
        x = self.mlp(h if self.block == "post" else self.mlp_norm(h))
        return h + (x if self.block == "pre" else self.post_mlp_norm(x)), cache


class Model(nnx.Module):
    """The whole model, without the layers, which are kept apart so that they can be scanned."""

    def __init__(self, family: Family, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.family = family
        arguments = {"dtype": dtype, "param_dtype": dtype, "rngs": rngs}
        self.embed = nnx.Embed(V, D, **arguments)
        self.positions = nnx.Embed(S, D, **arguments) if family.learned_positions else None
        self.final_norm = make_norm(family, D, dtype, rngs)
        bias = family.block == "parallel"  # as GPT-J
        self.head = None if family.tied else nnx.Linear(D, V, use_bias=bias, **arguments)

    def start(self, tokens: jax.Array, position: jax.Array) -> jax.Array:
        """Tokens [B, T] to [B, T, D]."""
        h = self.embed(tokens)
        if self.positions is not None:
            h = h + self.positions(position + jnp.arange(tokens.shape[1]))
        return h * jnp.asarray(D**0.5, h.dtype) if self.family.scaled_embedding else h

    def end(self, h: jax.Array) -> jax.Array:
        """[B, T, D] to logits [B, T, V]."""
        h = self.final_norm(h)
        logits = (self.embed.attend(h) if self.head is None else self.head(h)).astype(jnp.float32)
        cap = self.family.logit_soft_cap
        return jnp.tanh(logits / cap) * cap if cap else logits


@dataclasses.dataclass(frozen=True)
class Run:
    """A program: a family, how its layers are written, and what it is given.

    Attributes:
      family: a name of `FAMILIES`.
      scan: the layers are scanned; otherwise unrolled.
      prefill: a prompt at once, instead of one token.
    """

    family: str
    scan: bool
    prefill: bool

    @property
    def name(self) -> str:
        """For people and files."""
        layers = "scan" if self.scan else "unrolled"
        return f"{self.family} {layers} {'prefill' if self.prefill else 'decode'}"

    def compile(self, mesh: Mesh, dtype: jnp.dtype) -> tuple[jax.stages.Compiled, tuple]:
        """Compiles the program, with parameters and activations of a type.

        Returns:
          The program, which returns logits [B, T, V] and the caches, and its arguments.
        """
        family = FAMILIES[self.family]
        model_def, rest = nnx.split(nnx.eval_shape(lambda: Model(family, dtype, nnx.Rngs(0))))
        block_def, block = nnx.split(nnx.eval_shape(lambda: Block(family, dtype, nnx.Rngs(0))))
        empty = jax.ShapeDtypeStruct((B, family.kv_heads, S, H), dtype)
        rest, *layers = (fill(tree, seed) for seed, tree in enumerate([rest] + [block] * LAYERS))
        caches = [fill((empty, empty), seed) for seed in range(LAYERS)]
        windows: object = [family.windows[i % len(family.windows)] for i in range(LAYERS)]
        if self.scan:
            layers, caches = (
                jax.tree.map(lambda *leaves: np.stack(leaves), *trees) for trees in (layers, caches)
            )
            windows = np.array(windows, np.int32)

        def forward(rest, layers, caches, tokens, position):
            model = nnx.merge(model_def, rest)

            def body(h, layer):
                state, cache, window = layer
                return nnx.merge(block_def, state)(h, cache, position, window)

            h = model.start(tokens, position)
            if self.scan:
                h, caches = lax.scan(body, h, (layers, caches, windows))
            else:
                updated = []
                for layer in zip(layers, caches, windows, strict=True):
                    h, cache = body(h, layer)
                    updated.append(cache)
                caches = updated
            return model.end(h), caches

        arguments = (
            shard(mesh, family, rest, stacked=False),
            shard(mesh, family, layers, stacked=self.scan),
            shard(mesh, family, caches, stacked=self.scan),
            *inputs(mesh, self.prefill),
        )
        return jax.jit(forward).lower(*arguments).compile(), arguments


def inputs(mesh: Mesh, prefill: bool) -> tuple[jax.Array, jax.Array]:
    """Tokens [B, T], and the position of the first of them."""
    tokens = (np.arange(B * (PROMPT if prefill else 1), dtype=np.int32) * 37 % V).reshape(B, -1)
    return (
        jax.device_put(tokens, NamedSharding(mesh, P("data"))),
        jnp.int32(0 if prefill else PROMPT),
    )


def fill(tree: object, seed: int) -> object:
    """Numbers for a tree of shapes: no gain is one and no bias is zero, as they are in training.

    They are those of bfloat16 in any type, so that runs in several types can be compared.
    """
    rng = np.random.default_rng(seed)

    def numbers(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = "".join(path_names(path)[-1:])
        spread = 0.1 if name in ("kernel", "w", "bias", "scale") else 1.0
        value = spread * rng.standard_normal(leaf.shape) + (0.5 if name == "scale" else 0.0)
        return value.astype(jnp.bfloat16).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(numbers, tree)


def path_names(path: tuple) -> list[str]:
    """The names along a path of a tree; none of a cache's."""
    names = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
    return [name for name in names if name not in ("", "value")]


def shard(mesh: Mesh, family: Family, tree: object, *, stacked: bool) -> object:
    """Places parameters or caches; with `stacked`, each has one more dimension in front."""
    splits = family.kv_heads % mesh.shape["model"] == 0

    def spec(path: tuple) -> P:
        names = path_names(path)
        if not names:  # of a cache
            return P("data", "model" if splits else None)
        if names[-2] in ("k", "v") and not splits:
            return P()
        return SHARDING.get(tuple(names[-2:]), P())

    def sharding(path: tuple, _: np.ndarray) -> NamedSharding:
        return NamedSharding(mesh, P(None, *spec(path)) if stacked else spec(path))

    return jax.device_put(tree, jax.tree_util.tree_map_with_path(sharding, tree))


RUNS = [
    Run(family, scan, prefill)
    for family in FAMILIES
    for scan in (False, True)
    for prefill in (False, True)
]
