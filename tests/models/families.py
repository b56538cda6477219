# SPDX-License-Identifier: Apache-2.0
"""Published model families in flax.nnx, as their users write them, at small sizes.

Tensor parallelism is GSPMD's: `SHARDING` says by name how each parameter is split over the mesh
axis "model", the batch over "data", and XLA derives every all-reduce. What differs between the
families is what follows an all-reduce: which norm, where the casts are, biases, where the residual
is added, and whether attention and MLP share one.

Shapes: B batch, T new tokens, S cache length, D hidden, N heads, K KV heads, H head size, F MLP
size, V vocabulary.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

B, S, D, N, H, F, V, LAYERS = 2, 16, 64, 8, 16, 128, 256, 2

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
      gated: a gated MLP; otherwise two matrices.
      bias: on all projections, on those of the MLP ("mlp"), or none.
      qk_norm: RMSNorm of queries and keys by head.
      soft_cap: of attention scores and logits.
      scaled_embedding: multiplied by sqrt(D), as Gemma does.
    """

    norm: str
    block: str = "pre"
    kv_heads: int = 4
    gated: bool = True
    bias: str = ""
    qk_norm: bool = False
    soft_cap: float = 0.0
    scaled_embedding: bool = False


FAMILIES = {
    "Llama-3": Family("rms_cast"),
    "Mistral": Family("rms_flax"),
    "Qwen-3": Family("rms_cast", qk_norm=True),
    "Gemma-2": Family("rms_gemma", "sandwich", soft_cap=50.0, scaled_embedding=True),
    "Gemma-3": Family("rms_gemma", "sandwich", qk_norm=True, scaled_embedding=True),
    "OLMo-2": Family("rms_cast", "post", qk_norm=True),
    "GPT-2": Family("layer", kv_heads=N, gated=False, bias="all"),
    "GPT-J": Family("layer_two_pass", "parallel", kv_heads=N, gated=False, bias="mlp"),
    "Falcon": Family("layer", "parallel", kv_heads=1, gated=False),
}

Cache = tuple[jax.Array, jax.Array]
Linear = functools.partial(nnx.Linear, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16)


class CastRMSNorm(nnx.Module):
    """Llama's: normalises in float32, casts, then multiplies by the gain."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.ones((features,), jnp.bfloat16))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D]."""
        f = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(f), axis=-1, keepdims=True)
        return self.scale * (f * lax.rsqrt(variance + 1e-5)).astype(x.dtype)


class GemmaRMSNorm(nnx.Module):
    """Gemma's: a gain of one plus the parameter, and the cast at the end."""

    def __init__(self, features: int):
        self.scale = nnx.Param(jnp.zeros((features,), jnp.bfloat16))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., D] to [..., D]."""
        f = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(f), axis=-1, keepdims=True)
        normed = f * lax.rsqrt(variance + 1e-6)
        return (normed * (1 + self.scale.astype(jnp.float32))).astype(x.dtype)


def make_norm(family: Family, features: int, rngs: nnx.Rngs) -> nnx.Module:
    """The norm of a family."""
    if family.norm == "rms_cast":
        return CastRMSNorm(features)
    if family.norm == "rms_gemma":
        return GemmaRMSNorm(features)
    arguments = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "rngs": rngs}
    if family.norm == "rms_flax":
        return nnx.RMSNorm(features, epsilon=1e-5, **arguments)
    fast = family.norm == "layer"
    return nnx.LayerNorm(features, epsilon=1e-5, use_fast_variance=fast, **arguments)


class Attention(nnx.Module):
    """Grouped-query attention over a KV cache."""

    def __init__(self, family: Family, rngs: nnx.Rngs):
        self.family = family
        bias = family.bias == "all"
        self.q = Linear(D, N * H, use_bias=bias, rngs=rngs)
        self.k = Linear(D, family.kv_heads * H, use_bias=bias, rngs=rngs)
        self.v = Linear(D, family.kv_heads * H, use_bias=bias, rngs=rngs)
        self.o = Linear(N * H, D, use_bias=bias, rngs=rngs)
        if family.qk_norm:
            self.q_norm = CastRMSNorm(H)
            self.k_norm = CastRMSNorm(H)

    def __call__(self, x: jax.Array, cache: Cache, position: jax.Array) -> tuple[jax.Array, Cache]:
        """[B, T, D] to [B, T, D]; the cache is [B, K, S, H] twice."""
        family = self.family
        batch, length, _ = x.shape
        heads = (batch, length, family.kv_heads, -1, H)
        q = self.q(x).reshape(heads)
        k = self.k(x).reshape(batch, length, family.kv_heads, H)
        v = self.v(x).reshape(batch, length, family.kv_heads, H)
        if family.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        keys = lax.dynamic_update_slice(cache[0], k.swapaxes(1, 2), (0, 0, position, 0))
        values = lax.dynamic_update_slice(cache[1], v.swapaxes(1, 2), (0, 0, position, 0))
        scores = jnp.einsum("btkgh,bksh->bkgts", q, keys).astype(jnp.float32) * H**-0.5
        if family.soft_cap:
            scores = family.soft_cap * jnp.tanh(scores / family.soft_cap)
        visible = jnp.arange(S) <= position + jnp.arange(length)[:, None]
        weights = jax.nn.softmax(jnp.where(visible, scores, -1e30)).astype(x.dtype)
        out = jnp.einsum("bkgts,bksh->btkgh", weights, values)
        return self.o(out.reshape(batch, length, N * H)), (keys, values)


class MLP(nnx.Module):
    """The feed-forward half of a block."""

    def __init__(self, family: Family, rngs: nnx.Rngs):
        self.gated = family.gated
        bias = family.bias in ("all", "mlp")
        if family.gated:
            self.gate = Linear(D, F, use_bias=bias, rngs=rngs)
        self.up = Linear(D, F, use_bias=bias, rngs=rngs)
        self.down = Linear(F, D, use_bias=bias, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, T, D] to [B, T, D]."""
        if self.gated:
            return self.down(nnx.silu(self.gate(x)) * self.up(x))
        return self.down(nnx.gelu(self.up(x)))


class Block(nnx.Module):
    """One layer."""

    def __init__(self, family: Family, rngs: nnx.Rngs):
        self.block = family.block
        self.attention = Attention(family, rngs)
        self.mlp = MLP(family, rngs)
        names = {
            "pre": ["attention_norm", "mlp_norm"],
            "sandwich": ["attention_norm", "post_attention_norm", "mlp_norm", "post_mlp_norm"],
            "post": ["post_attention_norm", "post_mlp_norm"],
            "parallel": ["norm"],
        }[family.block]
        for name in names:
            setattr(self, name, make_norm(family, D, rngs))

    def __call__(self, h: jax.Array, cache: Cache, position: jax.Array) -> tuple[jax.Array, Cache]:
        """[B, T, D] to [B, T, D]."""
        if self.block == "parallel":
            x = self.norm(h)
            attended, cache = self.attention(x, cache, position)
            return h + attended + self.mlp(x), cache
        x = h if self.block == "post" else self.attention_norm(h)
        x, cache = self.attention(x, cache, position)
        h = h + (x if self.block == "pre" else self.post_attention_norm(x))
        x = self.mlp(h if self.block == "post" else self.mlp_norm(h))
        return h + (x if self.block == "pre" else self.post_mlp_norm(x)), cache


class Model(nnx.Module):
    """The whole model, without the layers, which are kept apart so that they can be scanned."""

    def __init__(self, family: Family, rngs: nnx.Rngs):
        self.embed = nnx.Embed(V, D, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=rngs)
        self.final_norm = make_norm(family, D, rngs)


@dataclasses.dataclass(frozen=True)
class Run:
    """A program: a family, how its layers are written, and what it is given.

    Attributes:
      family: a name of `FAMILIES`.
      scan: the layers are scanned; otherwise unrolled.
      prefill: eight tokens at once instead of one.
    """

    family: str
    scan: bool
    prefill: bool

    @property
    def name(self) -> str:
        """For people and files."""
        layers = "scan" if self.scan else "unrolled"
        return f"{self.family} {layers} {'prefill' if self.prefill else 'decode'}"

    def compile(self, mesh: Mesh) -> tuple[jax.stages.Compiled, tuple]:
        """Compiles the program.

        Returns:
          The program, which returns logits [B, T, V] and the caches, and its arguments.
        """
        family = FAMILIES[self.family]
        rngs = nnx.Rngs(0)
        model_def, rest = nnx.split(Model(family, rngs))
        blocks = [nnx.split(Block(family, rngs)) for _ in range(LAYERS)]
        block_def = blocks[0][0]
        layers = [state for _, state in blocks]
        empty = jnp.zeros((B, family.kv_heads, S, H), jnp.bfloat16)
        caches = [(empty, empty)] * LAYERS
        if self.scan:
            layers, caches = (
                jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
                for trees in (layers, caches)
            )

        def forward(rest, layers, caches, tokens, position):
            model = nnx.merge(model_def, rest)
            h = model.embed(tokens)
            if family.scaled_embedding:
                h = h * jnp.asarray(D**0.5, h.dtype)

            def body(h, layer):
                state, cache = layer
                return nnx.merge(block_def, state)(h, cache, position)

            if self.scan:
                h, caches = lax.scan(body, h, (layers, caches))
            else:
                updated = []
                for layer in zip(layers, caches, strict=True):
                    h, cache = body(h, layer)
                    updated.append(cache)
                caches = updated
            logits = model.embed.attend(model.final_norm(h)).astype(jnp.float32)
            if family.soft_cap:
                logits = jnp.tanh(logits / 30.0) * 30.0
            return logits, caches

        tokens = (jnp.arange(B * (8 if self.prefill else 1)) * 37 % V).reshape(B, -1)
        arguments = (
            shard(mesh, family, rest, stacked=False),
            shard(mesh, family, layers, stacked=self.scan),
            shard(mesh, family, caches, stacked=self.scan),
            jax.device_put(tokens, NamedSharding(mesh, P("data"))),
            jnp.int32(0 if self.prefill else 5),
        )
        return jax.jit(forward).lower(*arguments).compile(), arguments


def shard(mesh: Mesh, family: Family, tree: object, *, stacked: bool) -> object:
    """Places parameters or caches; with `stacked`, each has one more dimension in front."""
    splits = family.kv_heads % mesh.shape["model"] == 0

    def spec(path: tuple) -> P:
        names = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
        names = [name for name in names if name not in ("", "value")]
        if not names:  # of a cache
            return P("data", "model" if splits else None)
        if names[-2] in ("k", "v") and not splits:
            return P()
        return SHARDING.get(tuple(names[-2:]), P())

    def sharding(path: tuple, _: jax.Array) -> NamedSharding:
        return NamedSharding(mesh, P(None, *spec(path)) if stacked else spec(path))

    return jax.device_put(tree, jax.tree_util.tree_map_with_path(sharding, tree))


RUNS = [
    Run(family, scan, prefill)
    for family in FAMILIES
    for scan, prefill in ((False, False), (True, False), (False, True))
]
"""What is tested: decode unrolled and scanned, prefill unrolled."""
