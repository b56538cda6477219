# SPDX-License-Identifier: Apache-2.0
"""Programs for XLA's compiler for GPUs, one for each way to write an epilogue.

  PYTHONPATH=.deps/xla_gpu:tests .venv/bin/python -m gpu_compiler.spellings

writes into xla_plugin/testdata the modules that it hands to the pass; spellings_test.cc reads them.
The compiler comes with JAX's plugin, and needs no GPU, only to be told of one (devices.py).
"""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gpu_compiler.devices import RANKS, mesh
from jax import Array, lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxlib import _hlo

DIRECTORY = Path(__file__).parents[2] / "xla_plugin" / "testdata" / "spellings"
D = 256
LAYERS = 3
VOCABULARY = 512
EPSILON = 1e-5
# The pass that runs next after the hook.
NEXT_PASS = "legalize-collective-domain"


class Operands(NamedTuple):
    """What programs compute with; the same on every device but for what is said to be sharded."""

    x: Array  # [..., D], by columns
    w: Array  # [D, D], by rows
    other_x: Array
    other_w: Array
    h: Array  # [..., D]
    gain: Array  # [D], as the next three
    other_gain: Array
    bias: Array
    other_bias: Array
    up: Array  # [D, 4 * D], by columns
    table: Array  # [VOCABULARY, D], by rows
    tokens: Array  # [...]
    layers: tuple[Array, Array, Array]  # up and down [LAYERS, D, D], as above, and a gain


Norm = Callable[[Array, Array], Array]
Run = Callable[[Operands], tuple[Array, ...]]


class Program(NamedTuple):
    """One program, which becomes one module.

    Attributes:
      name: of the file.
      run: computes it.
      sites: for each all-reduce what has to be fused, and the operations that read it then; or
        why it has to stay.
      rows: the dimensions of activations before the last one.
      dtype: of all floats, but for gains and biases.
      parameters: the type of those.
    """

    name: str
    run: Run
    sites: tuple[str, ...] = ("residual+rms_norm, read by dot, tuple",)
    rows: tuple[int, ...] = (4,)
    dtype: str = "bfloat16"
    parameters: str = "bfloat16"


# ---------------------------------------------------------------------------
# Norms


def mean_square(f: Array) -> Array:
    """[..., D] -> [..., 1]."""
    return jnp.mean(f * f, axis=-1, keepdims=True)


def rms_norm(h: Array, gain: Array) -> Array:
    """In f32, cast, then times the gain."""
    f = h.astype(jnp.float32)
    return (f * lax.rsqrt(mean_square(f) + EPSILON)).astype(h.dtype) * gain.astype(h.dtype)


def cast_at_end(h: Array, gain: Array) -> Array:
    """All in f32."""
    f = h.astype(jnp.float32)
    return (f * lax.rsqrt(mean_square(f) + EPSILON) * gain).astype(h.dtype)


def gain_first(h: Array, gain: Array) -> Array:
    """The gain goes to the scale."""
    f = h.astype(jnp.float32)
    return (f * (lax.rsqrt(mean_square(f) + EPSILON) * gain)).astype(h.dtype)


def one_plus_gain(h: Array, gain: Array) -> Array:
    """As in Gemma, in the gain's type."""
    f = h.astype(jnp.float32)
    normed = f * lax.rsqrt(mean_square(f) + EPSILON)
    return (normed.astype(gain.dtype) * (1 + gain)).astype(h.dtype)


def divided_by_sqrt(h: Array, gain: Array) -> Array:
    """Divides each element."""
    f = h.astype(jnp.float32)
    return (f / jnp.sqrt(mean_square(f) + EPSILON)).astype(h.dtype) * gain


def gain_by_einsum(h: Array, gain: Array) -> Array:
    """As in MaxText."""
    f = h.astype(jnp.float32)
    normed = (f * lax.rsqrt(mean_square(f) + EPSILON)).astype(h.dtype)
    return jnp.einsum("...k,k->...k", normed, gain)


def scaled(scale: Callable[[Array], Array]) -> Norm:
    """Another way to write 1 / sqrt(v)."""

    def norm(h: Array, gain: Array) -> Array:
        f = h.astype(jnp.float32)
        return (f * scale(mean_square(f) + EPSILON)).astype(h.dtype) * gain

    return norm


def squared(mean_square: Callable[[Array], Array]) -> Norm:
    """Another way to write the mean of the squares, [..., D] -> [...]."""

    def norm(h: Array, gain: Array) -> Array:
        f = h.astype(jnp.float32)
        return (f * lax.rsqrt(mean_square(f)[..., None] + EPSILON)).astype(h.dtype) * gain

    return norm


def layer_norm(
    h: Array, gain: Array | float, bias: Array | float, *, fast: bool = False, clamp: bool = False
) -> Array:
    """In f32. The variance is of the deviations, or, if fast, the squares' mean less the mean's."""
    f = h.astype(jnp.float32)
    mean = jnp.mean(f, axis=-1, keepdims=True)
    if fast:
        variance = mean_square(f) - mean * mean
        variance = jnp.maximum(variance, 0.0) if clamp else variance
    else:
        variance = mean_square(f - mean)
    return ((f - mean) * (lax.rsqrt(variance + EPSILON) * gain) + bias).astype(h.dtype)


# ---------------------------------------------------------------------------
# Programs


def product(o: Operands) -> Array:
    """What the all-reduce sums."""
    return replicated(o.x @ o.w)


def replicated(array: Array) -> Array:
    """Asks for the whole of it on every device."""
    return lax.with_sharding_constraint(array, NamedSharding(mesh(), P()))


def stream_and_norm(
    stream: Callable[[Operands], Array], norm: Callable[[Array, Operands], Array]
) -> Run:
    """The residual stream, and the next product, of its norm."""

    def run(o: Operands) -> tuple[Array, ...]:
        h = stream(o)
        return h, norm(h, o) @ o.up

    return run


def normed(norm: Norm) -> Run:
    """Residual and a norm with a gain."""
    return stream_and_norm(lambda o: o.h + product(o), lambda h, o: norm(h, o.gain))


def layer_normed(*, plain: bool = False, fast: bool = False, clamp: bool = False) -> Run:
    """Residual and a LayerNorm, with gain and bias or without."""

    def norm(h: Array, o: Operands) -> Array:
        gain, bias = (1.0, 0.0) if plain else (o.gain, o.bias)
        return layer_norm(h, gain, bias, fast=fast, clamp=clamp)

    return stream_and_norm(lambda o: o.h + product(o), norm)


def with_stream(stream: Callable[[Operands], Array]) -> Run:
    """Something else before the norm."""
    return stream_and_norm(stream, lambda h, o: rms_norm(h, o.gain))


def post_norm(o: Operands) -> Array:
    """A norm of the sum before it is added."""
    return o.h + one_plus_gain(product(o), o.other_gain)


def parallel(o: Operands) -> Array:
    """Attention and MLP side by side."""
    return o.h + (product(o) + replicated(o.other_x @ o.other_w))


def parallel_with_biases(o: Operands) -> Array:
    """The same with something in between, as in GPT-J."""
    return o.h + (product(o) + o.bias) + (replicated(o.other_x @ o.other_w) + o.other_bias)


def embedding(o: Operands) -> Array:
    """Rows of a table whose parts are on different devices, scaled as in Gemma."""
    return replicated(o.table[o.tokens]) * D**0.5


def embedding_take(o: Operands) -> Array:
    """As in flax: what is out of range becomes NaN."""
    return replicated(jnp.take(o.table, o.tokens, axis=0)) * D**0.5


def by_shard(o: Operands) -> Array:
    """By hand."""
    total = jax.shard_map(
        lambda x, w: lax.psum(x @ w, "model"),
        mesh=mesh(),
        in_specs=(P(None, "model"), P("model")),
        out_specs=P(),
    )
    return o.h + total(o.x, o.w)


def scan(o: Operands) -> tuple[Array, ...]:
    """Layers of two blocks; the norm behind the second one is in the next iteration."""

    def body(h: Array, layer: tuple[Array, Array, Array]) -> tuple[Array, None]:
        up, down, gain = layer
        for _ in range(2):
            h = h + replicated(jnp.tanh(rms_norm(h, gain) @ up) @ down)
        return h, None

    return (lax.scan(body, o.h, o.layers)[0],)


def added_up(o: Operands) -> tuple[Array, ...]:
    """A sum over a loop that nobody reads before its end, as of the gradients of micro-batches."""

    def body(total: Array, layer: tuple[Array, Array, Array]) -> tuple[Array, None]:
        return total + replicated(o.x @ layer[1]), None

    return (lax.scan(body, jnp.zeros_like(o.h), o.layers)[0],)


def kept_together(o: Operands) -> tuple[Array, ...]:
    """Parameters of all layers in one array, without a loop."""
    h = o.h + product(o)
    middle = jnp.tanh(rms_norm(h, o.layers[2][1]) @ o.layers[0][1]) @ o.layers[1][1]
    return (rms_norm(h + replicated(middle), o.layers[2][2]) @ o.up,)


def part_of_a_bias(o: Operands) -> tuple[Array, ...]:
    """A slice that is not one of a stack."""
    biases = jnp.concatenate([o.bias, o.other_bias])
    return ((product(o) + biases[D // 2 : D // 2 + D]) @ o.up,)


def scan_outputs(o: Operands) -> tuple[Array, ...]:
    """A loop that keeps what comes out of each layer."""

    def body(h: Array, layer: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        up, down, gain = layer
        h = h + replicated(jnp.tanh(rms_norm(h, gain) @ up) @ down)
        return h, h

    return lax.scan(body, o.h, o.layers)


def quantized(o: Operands) -> tuple[Array, ...]:
    """FP8 by a scale that is known before, for a product of FP8."""
    y = rms_norm(o.h + product(o), o.gain)
    scale = jnp.abs(o.bias[0]) / 64 + 1 / 128
    q = jnp.clip(y / scale, -448, 448).astype(jnp.float8_e4m3fn)
    up = o.up.astype(jnp.float8_e4m3fn)
    return (lax.dot(q, up, preferred_element_type=jnp.float32) * scale,)


def quantized_by_rows(o: Operands) -> tuple[Array, ...]:
    """Eight bits, by the largest of each token."""
    h = o.h + product(o)
    y = rms_norm(h, o.gain).astype(jnp.float32)
    scale = jnp.max(jnp.abs(y), axis=-1, keepdims=True) / 127
    q = jnp.round(y / scale).astype(jnp.int8)
    up = jnp.round(o.up.astype(jnp.float32) * 16).astype(jnp.int8)
    return lax.dot(q, up, preferred_element_type=jnp.int32) * scale, h


LAYER_NORM = ("residual+layer_norm, read by dot, tuple",)

PROGRAMS = [
    Program("none", lambda o: (product(o) @ o.up,), ("none, read by dot",)),
    Program("rms_norm", normed(rms_norm)),
    Program("rms_norm_f32", normed(rms_norm), dtype="float32", parameters="float32"),
    Program("rms_norm_f16", normed(rms_norm), dtype="float16", parameters="float16"),
    Program("rms_norm_f32_gain", normed(rms_norm), parameters="float32"),
    # XLA multiplies a matrix by one token without a dot.
    Program(
        "rms_norm_one_token",
        normed(rms_norm),
        ("residual+rms_norm, read by multiply, tuple",),
        rows=(1,),
    ),
    Program("rms_norm_batch", normed(rms_norm), rows=(2, 3)),
    Program("rms_norm_batch_of_one", normed(rms_norm), rows=(1, 4)),
    Program("rms_norm_one_token_each", normed(rms_norm), rows=(4, 1)),
    Program("rms_norm_cast_at_end", normed(cast_at_end), parameters="float32"),
    Program("rms_norm_gain_first", normed(gain_first), parameters="float32"),
    Program("rms_norm_gain_by_einsum", normed(gain_by_einsum), rows=(2, 3)),
    Program("rms_norm_one_plus_gain", normed(one_plus_gain)),
    Program("rms_norm_one_plus_gain_f32", normed(one_plus_gain), parameters="float32"),
    Program("rms_norm_gain_of_ones", normed(lambda h, _: rms_norm(h, jnp.ones(D, h.dtype)))),
    Program("rms_norm_divided_by_sqrt", normed(divided_by_sqrt)),
    Program("rms_norm_one_over_sqrt", normed(scaled(lambda v: 1 / jnp.sqrt(v)))),
    Program("rms_norm_power", normed(scaled(lambda v: v**-0.5))),
    Program("rms_norm_square_integer_pow", normed(squared(lambda f: jnp.mean(f**2, -1)))),
    Program("rms_norm_square_power", normed(squared(lambda f: jnp.mean(jnp.power(f, 2.0), -1)))),
    Program("rms_norm_sum_by_count", normed(squared(lambda f: jnp.sum(f * f, -1) / D))),
    Program("rms_norm_sum_times_inverse", normed(squared(lambda f: jnp.sum(f * f, -1) * (1 / D)))),
    Program("layer_norm", layer_normed(), LAYER_NORM, parameters="float32"),
    Program("layer_norm_plain", layer_normed(plain=True), LAYER_NORM),
    Program("layer_norm_fast", layer_normed(fast=True), LAYER_NORM, parameters="float32"),
    Program("layer_norm_fast_plain", layer_normed(plain=True, fast=True), LAYER_NORM),
    Program("layer_norm_fast_clamp", layer_normed(fast=True, clamp=True), LAYER_NORM),
    Program(
        "bias_before_residual",
        with_stream(lambda o: o.h + (product(o) + o.bias)),
        ("bias+residual+rms_norm, read by dot, tuple",),
    ),
    Program(
        "bias_after_residual",
        with_stream(lambda o: o.h + product(o) + o.bias),
        ("residual+bias+rms_norm, read by dot, tuple",),
    ),
    Program("residual_on_the_right", with_stream(lambda o: product(o) + o.h)),
    Program(
        "residual_scaled",
        with_stream(lambda o: o.h + product(o) * 0.22),
        ("multiply+residual+rms_norm, read by dot, tuple",),
    ),
    Program(
        "post_norm", with_stream(post_norm), ("rms_norm+residual+rms_norm, read by dot, tuple",)
    ),
    Program("parallel", with_stream(parallel)),
    Program(
        "parallel_with_biases",
        with_stream(parallel_with_biases),
        (
            "bias+residual+residual+rms_norm, read by dot, tuple",
            "bias, read by custom-call",
        ),
    ),
    Program("embedding", with_stream(embedding), ("multiply+rms_norm, read by dot, tuple",)),
    Program(
        "embedding_take",
        with_stream(embedding_take),
        ("select+multiply+rms_norm, read by dot, tuple",),
    ),
    Program("shard_map", with_stream(by_shard)),
    Program(
        "scan", scan, ("residual+rms_norm, read by custom-call, dot", "residual, read by tuple")
    ),
    Program(
        "kept_together",
        kept_together,
        ("residual+rms_norm, read by custom-call, dot", "residual+rms_norm, read by dot"),
    ),
    Program("part_of_a_bias", part_of_a_bias, ("bias, read by dot",)),
    Program(
        "quantized",
        quantized,
        ("residual+rms_norm+divide+clamp+f8e4m3fn, read by dot",),
    ),
    Program(
        "quantized_by_rows",
        quantized_by_rows,
        (
            "residual+rms_norm+abs+row_max+multiply+divide+round_nearest_even+s8, "
            "read by dot, multiply, tuple",
        ),
    ),
    Program("scan_outputs", scan_outputs, ("residual, read by opt-barrier",)),
    Program("added_up", added_up, ("a loop only adds it up; XLA moves it behind the loop",)),
]


# ---------------------------------------------------------------------------
# XLA


def operands(program: Program, array: Callable[..., Any]) -> Operands:
    """What a program gets.

    Args:
      program: the program.
      array: makes an array of a shape, dtype and sharding over the mesh, or what stands for it.
    """
    rows, dtype = program.rows, program.dtype
    x = array((*rows, D), dtype, P(*[None] * len(rows), "model"))
    w = array((D, D), dtype, P("model"))
    parameter = array((D,), program.parameters, P())
    return Operands(
        x=x,
        w=w,
        other_x=x,
        other_w=w,
        h=array((*rows, D), dtype, P()),
        gain=parameter,
        other_gain=parameter,
        bias=parameter,
        other_bias=parameter,
        up=array((D, 4 * D), dtype, P(None, "model")),
        table=array((VOCABULARY, D), dtype, P("model")),
        tokens=array(rows, "int32", P()),
        layers=(
            array((LAYERS, D, D), dtype, P(None, None, "model")),
            array((LAYERS, D, D), dtype, P(None, "model")),
            array((LAYERS, D), program.parameters, P()),
        ),
    )


def random_operands(program: Program) -> Operands:
    """Operands with numbers, on the devices of `devices.use`."""
    rng = np.random.default_rng(0)

    def array(shape: tuple[int, ...], dtype: str, spec: P) -> Array:
        if dtype == "int32":
            values = rng.integers(0, VOCABULARY, shape)
        else:
            values = rng.standard_normal(shape) / (8 if len(shape) > 1 else 1)
        values = values.astype(dtype)
        sharding = NamedSharding(mesh(), spec)
        return jax.make_array_from_callback(shape, sharding, lambda index: values[index])

    return operands(program, array)


def compile_program(program: Program) -> jax.stages.Compiled:
    """Compiles one program."""

    def array(shape: tuple[int, ...], dtype: str, spec: P) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh(), spec))

    return jax.jit(program.run).lower(operands(program, array)).compile()


def shortened(text: str) -> str:
    """HLO without what the pass does not look at, and as the XLA that it is built with reads it."""
    options = _hlo.HloPrintOptions.short_parsable()
    text = _hlo.hlo_module_from_text(text).to_string(options)
    groups = ",".join(map(str, range(RANKS)))
    for pattern, replacement in (
        (r", sharding=\{.*?\}(?=\n)", ""),
        (r", entry_computation_layout=.*(?=, num_partitions)", ""),
        # The name of a mesh has no other form in text there.
        (r"replica_groups=mesh\[.*?\] \{.*?\}", f"replica_groups={{{{{groups}}}}}"),
    ):
        text = re.sub(pattern, replacement, text)
    return text.strip() + "\n"


def main() -> None:
    """Writes all modules anew."""
    for path in DIRECTORY.glob("*.hlo"):
        path.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        # Read when the plugin is loaded. Without GPUs nothing can be tuned.
        jax.config.update("jax_platforms", "cpu")
        os.environ["XLA_FLAGS"] = (
            f"--xla_dump_to={scratch} --xla_dump_hlo_pass_re={NEXT_PASS} --xla_gpu_autotune_level=0"
        )
        for program in PROGRAMS:
            compile_program(program)
            (dump,) = Path(scratch).glob(f"*.before_{NEXT_PASS}.txt")
            lines = [f"// {site}\n" for site in program.sites]
            text = shortened(dump.read_text())
            (DIRECTORY / f"{program.name}.hlo").write_text("".join(lines) + text)
            for path in Path(scratch).iterdir():
                path.unlink()


if __name__ == "__main__":
    main()
