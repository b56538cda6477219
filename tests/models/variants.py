# SPDX-License-Identifier: Apache-2.0
"""Norms, residuals and biases behind an all-reduce, in the ways in which models write them."""

import functools
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

RANKS, ROWS, HIDDEN, LAYERS = 8, 4, 64, 3
EPSILON = 1e-6

Program = Callable[[dict[str, jax.Array]], jax.Array | tuple[jax.Array, ...]]
VARIANTS: dict[str, tuple[Program, tuple[str, ...]]] = {}
"""By name: the program, and what is to be fused into each of its all-reduces.

A program gets what one rank has, as bf16: "x" and "y" [ROWS, HIDDEN], different on each rank; "h"
[ROWS, HIDDEN], "g", "b" and "c" [HIDDEN], "gs" [LAYERS, HIDDEN] and "ids" s32[ROWS], the same on
all.
"""


def variant(*epilogues: str) -> Callable[[Program], Program]:
    """Adds a program, under its name, with the epilogues that are to be fused."""

    def add(program: Program) -> Program:
        VARIANTS[program.__name__] = (program, epilogues)
        return program

    return add


def total(x: jax.Array) -> jax.Array:
    """The sum over the ranks."""
    return lax.psum(x, "a")


def wide(x: jax.Array) -> jax.Array:
    """As float32."""
    return x.astype(jnp.float32)


def inverse(f: jax.Array) -> jax.Array:
    """1 / sqrt(mean(f^2) + epsilon), [..., 1]."""
    return lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + EPSILON)


# ---------------------------------------------------------------------------
# RMSNorm


@variant("residual+rms_norm")
def rms_cast_at_the_end(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    return h, (f * inverse(f) * wide(v["g"])).astype(h.dtype)


@variant("residual+rms_norm")
def rms_cast_before_the_gain(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


@variant("residual+rms_norm")
def rms_gain_times_inverse(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    return h, (f * (inverse(f) * wide(v["g"]))).astype(h.dtype)


@variant("residual+rms_norm")
def rms_einsum_gain(v):
    h = (v["h"] + total(v["x"])).reshape(2, ROWS // 2, HIDDEN)
    f = wide(h)
    return h, jnp.einsum("...k,k->...k", (f * inverse(f)).astype(h.dtype), v["g"])


@variant("residual+rms_norm")
def rms_without_gain(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype)


@variant("residual+rms_norm")
def rms_gain_of_one(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * jnp.ones(HIDDEN, h.dtype)


@variant("residual+rms_norm")
def rms_gemma_float32(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    return h, (f * inverse(f) * (1 + wide(v["g"]))).astype(h.dtype)


@variant("residual+rms_norm")
def rms_gemma_bfloat16(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * (v["g"] + 1)


@variant("residual+rms_norm")
def rms_one_over_sqrt(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    return h, (f * (1 / jnp.sqrt(jnp.mean(f * f, -1, keepdims=True) + EPSILON))).astype(h.dtype)


@variant("residual+rms_norm")
def rms_divide_by_sqrt(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    return h, (f / jnp.sqrt(jnp.mean(f * f, -1, keepdims=True) + EPSILON)).astype(h.dtype)


@variant("residual+rms_norm")
def rms_power(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    return h, (f * (jnp.mean(f * f, -1, keepdims=True) + EPSILON) ** -0.5).astype(h.dtype)


@variant("residual+rms_norm")
def rms_mean_by_division(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    mean = jnp.sum(f * f, -1, keepdims=True) / HIDDEN
    return h, (f * lax.rsqrt(mean + EPSILON)).astype(h.dtype)


@variant("residual+rms_norm")
def rms_mean_by_multiplication(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    mean = jnp.sum(f * f, -1, keepdims=True) * (1 / HIDDEN)
    return h, (f * lax.rsqrt(mean + EPSILON)).astype(h.dtype)


@variant("residual+rms_norm")
def rms_integer_power(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    mean = jnp.mean(lax.integer_pow(f, 2), -1, keepdims=True)
    return h, (f * lax.rsqrt(mean + EPSILON)).astype(h.dtype)


@variant("residual+rms_norm")
def rms_square_by_power(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    mean = jnp.mean(lax.pow(f, 2.0), -1, keepdims=True)
    return h, (f * lax.rsqrt(mean + EPSILON)).astype(h.dtype)


# ---------------------------------------------------------------------------
# LayerNorm


@variant("residual+layer_norm")
def layer_norm_in_two_passes(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    centered = f - jnp.mean(f, -1, keepdims=True)
    return h, (centered * inverse(centered) * wide(v["g"]) + wide(v["b"])).astype(h.dtype)


@variant("residual+layer_norm")
def layer_norm_without_scale_and_bias(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    centered = f - jnp.mean(f, -1, keepdims=True)
    return h, (centered * inverse(centered)).astype(h.dtype)


@variant("residual+layer_norm")
def layer_norm_fast_variance(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    mean = jnp.mean(f, -1, keepdims=True)
    variance = jnp.mean(f * f, -1, keepdims=True) - mean * mean
    out = (f - mean) * (lax.rsqrt(variance + EPSILON) * wide(v["g"])) + wide(v["b"])
    return h, out.astype(h.dtype)


@variant("residual+layer_norm")
def layer_norm_clamped_variance(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    mean = jnp.mean(f, -1, keepdims=True)
    variance = jnp.maximum(0.0, jnp.mean(f * f, -1, keepdims=True) - mean * mean)
    out = (f - mean) * lax.rsqrt(variance + EPSILON) * wide(v["g"]) + wide(v["b"])
    return h, out.astype(h.dtype)


@variant("residual+layer_norm")
def layer_norm_folded(v):
    h = v["h"] + total(v["x"])
    f = wide(h)
    mean = jnp.mean(f, -1, keepdims=True)
    variance = jnp.mean(jnp.square(f - mean), -1, keepdims=True)
    scale = lax.rsqrt(variance + EPSILON) * wide(v["g"])
    return h, (f * scale + (wide(v["b"]) - mean * scale)).astype(h.dtype)


# ---------------------------------------------------------------------------
# What stands around the norm


@variant("bias+residual+rms_norm")
def bias_behind(v):
    h = v["h"] + (total(v["x"]) + v["c"])
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


@variant("residual+rms_norm")
def bias_before(v):
    h = v["h"] + total(v["x"] + v["c"] / RANKS)
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


@variant("residual+rms_norm")
def residual_on_the_right(v):
    h = total(v["x"]) + v["h"]
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


@variant("residual+rms_norm")
def residual_scaled(v):
    h = v["h"] * 0.5 + total(v["x"])
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


@variant("multiply+residual+rms_norm")
def sum_scaled(v):
    h = v["h"] + total(v["x"]) * 0.25
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


@variant("residual+rms_norm")
def residual_in_float32(v):
    h = wide(v["h"]) + wide(total(v["x"]))
    return h, (h * inverse(h)).astype(v["h"].dtype) * v["g"]


@variant("rms_norm+residual")
def post_norm(v):
    f = wide(total(v["x"]))
    return v["h"] + (f * inverse(f)).astype(v["h"].dtype) * v["g"]


@variant("rms_norm+residual+rms_norm")
def post_norm_and_norm(v):
    f = wide(total(v["x"]))
    h = v["h"] + (f * inverse(f) * (1 + wide(v["g"]))).astype(v["h"].dtype)
    f = wide(h)
    return h, (f * inverse(f) * (1 + wide(v["b"]))).astype(h.dtype)


# On CPU XLA has combined the two by now.
@variant("residual+residual+rms_norm", "none")
def parallel_block_in_float32(v):
    h = wide(v["h"]) + total(wide(v["x"]) * 2) + total(wide(v["y"]) * 3)
    return h, h * inverse(h)


@variant("residual+residual+rms_norm", "none")
def parallel_block(v):
    h = v["h"] + total(jnp.tanh(v["x"])) + total(jnp.tanh(v["y"]))
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


@variant("multiply+rms_norm")
def embedding_scaled(v):
    rank = lax.axis_index("a")
    here = (v["ids"] // ROWS == rank)[:, None]
    h = total(jnp.where(here, v["x"][v["ids"] % ROWS], 0)) * 8.0
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


@variant("residual+rms_norm")
def scan_over_gains(v):
    def body(carry, gain):
        h, x = carry
        h = h + total(x)
        f = wide(h)
        return (h, (f * inverse(f)).astype(h.dtype) * gain), None

    return lax.scan(body, (v["h"], v["x"]), v["gs"])[0]


# ---------------------------------------------------------------------------
# Shapes


@variant("residual+rms_norm")
def one_row(v):
    h = v["h"][:1] + total(v["x"][:1])
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


# Nothing tells a gain from an activation here.
@variant("residual+rms_norm+multiply")
def one_dimension(v):
    h = v["h"][0] + total(v["x"][0])
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


@variant("residual+rms_norm")
def three_dimensions(v):
    shape = (2, ROWS // 2, HIDDEN)
    h = v["h"].reshape(shape) + total(v["x"].reshape(shape))
    f = wide(h)
    return h, (f * inverse(f)).astype(h.dtype) * v["g"]


@variant("residual+rms_norm")
def reshaped_between(v):
    h = v["h"].reshape(2, ROWS // 2, HIDDEN) + total(v["x"]).reshape(2, ROWS // 2, HIDDEN)
    f = wide(h)
    return h, ((f * inverse(f)).astype(h.dtype) * v["g"]).reshape(ROWS, HIDDEN)


# ---------------------------------------------------------------------------


def inputs() -> dict[str, np.ndarray]:
    """What a program gets; "x" and "y" are [RANKS, ROWS, HIDDEN]."""

    def random(name: str, *shape: int) -> np.ndarray:
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        return rng.standard_normal(shape).astype(jnp.bfloat16)

    return {
        "x": random("x", RANKS, ROWS, HIDDEN),
        "y": random("y", RANKS, ROWS, HIDDEN),
        "h": random("h", ROWS, HIDDEN),
        "g": random("g", HIDDEN),
        "b": random("b", HIDDEN),
        "c": random("c", HIDDEN),
        "gs": random("gs", LAYERS, HIDDEN),
        "ids": np.arange(ROWS, dtype=np.int32) * 7,
    }


def run(name: str) -> list[jax.Array]:
    """Runs a variant on eight devices; each result is [RANKS, ...]."""
    program, _ = VARIANTS[name]
    mesh = Mesh(np.array(jax.devices()[:RANKS]), ("a",))
    values = inputs()

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=({key: P("a") if key in "xy" else P() for key in values},),
        out_specs=P("a"),
        check_vma=False,
    )
    def sharded(v):
        own = program(v | {"x": v["x"][0], "y": v["y"][0]})
        return jax.tree.map(lambda out: out[None], own)

    sharded.__name__ = name
    return jax.tree.leaves(jax.jit(sharded)(values))
