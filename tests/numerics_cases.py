# SPDX-License-Identifier: Apache-2.0
"""Programs on eight devices, whose numbers numerics_test.py compares."""

import functools
import itertools
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from gpu_compiler import devices, spellings
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

sys.path.insert(0, str(Path(__file__).parent / "models"))
import llama_decode

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}
EXACT = 0.0
# What two runs may differ by, relative to the largest element of an output. They round at the same
# places, but add in another order.
TOLERANCE = {
    # Eight terms, a row of squares, a few operations: some tens of 2^-24.
    "f32": 1e-5,
    # Both add in f32. A sum that falls on the other side of a rounding boundary is off by one unit
    # in the last place (2^-8 relative to the largest), in up to three roundings in a row.
    "bf16": 3 * 2**-8,
    # XLA on CPU adds f16 in f16: up to seven more roundings of 2^-11 than Oneshot, then as above.
    "f16": 10 * 2**-11,
}
# The same for the logits of the decode model, as a relative error of the norms. Either run is one
# unit in the last place (2^-7, 2^-10) from the exact result; two runs differ by at most two.
MODEL_TOLERANCE = {"f32": 1e-5, "bf16": 2**-6, "f16": 2**-9}
EPSILON = 1e-5


@dataclass(frozen=True)
class Case:
    """One program.

    Attributes:
      name: what the test is called.
      run: computes it; returns its outputs.
      sites: for each all-reduce the epilogue that is to be fused, or None if it is to stay.
      tolerance: how far outputs may differ, relative to the largest element.
    """

    name: str
    run: Callable[[], list[jax.Array]]
    sites: tuple[str | None, ...]
    tolerance: float


def random(name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Standard normal numbers that only depend on the arguments."""
    rng = np.random.default_rng(zlib.crc32(f"{name}{shape}".encode()))
    return rng.standard_normal(shape).astype(DTYPES[dtype])


def rms_norm(h: jax.Array, gain: jax.Array) -> jax.Array:
    """[rows, hidden], [hidden] -> [rows, hidden]; in f32, cast, then times gain."""
    wide = h.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + EPSILON)
    return (wide * scale).astype(h.dtype) * gain


def mesh(*shape: int) -> Mesh:
    """A mesh of the first devices, with axes "a", "b" and so on."""
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return Mesh(devices, tuple("ab"[: len(shape)]), axis_types=(AxisType.Auto,) * len(shape))


# ---------------------------------------------------------------------------
# Programs


def gspmd(epilogue: str, dtype: str, rows: int, hidden: int) -> list[jax.Array]:
    """A product whose inner dimension is sharded, and what follows it, in the order of `epilogue`.

    [rows, 8 * 16] times [8 * 16, hidden]. Returns the sum and the norm, or what there is of them;
    of a bare norm only itself.
    """
    devices = mesh(8)
    inputs = {
        "x": (random("x", (rows, 128), dtype), P(None, "a")),
        "w": (random("w", (128, hidden), dtype) / 8, P("a", None)),
        "bias": (random("bias", (hidden,), dtype), P()),
        "residual": (random("residual", (rows, hidden), dtype), P()),
        "gain": (random("gain", (hidden,), dtype), P()),
    }
    arguments = {
        name: jax.device_put(value.astype(DTYPES[dtype]), NamedSharding(devices, spec))
        for name, (value, spec) in inputs.items()
    }
    steps = epilogue.split("+")

    @functools.partial(jax.jit, out_shardings=NamedSharding(devices, P()))
    def program(x, w, bias, residual, gain):
        h = lax.with_sharding_constraint(x @ w, NamedSharding(devices, P()))
        for step in steps:
            if step in ("bias", "residual"):
                h = h + {"bias": bias, "residual": residual}[step]
        if "rms_norm" not in steps:
            return [h]
        return [rms_norm(h, gain)] if steps == ["rms_norm"] else [h, rms_norm(h, gain)]

    return program(**arguments)


def scan(dtype: str, norm_in_body: bool) -> list[jax.Array]:
    """Five layers of x + f(x) @ w; the norm follows the sum in the body, or the loop's boundary.

    x is [4, 64]; of two stacked matrices [5, 64, 64] the first is sharded by columns, the second by
    rows.
    """
    devices = mesh(8)
    x = jax.device_put(random("x", (4, 64), dtype), NamedSharding(devices, P()))
    gain = jax.device_put(random("gain", (5, 64), dtype), NamedSharding(devices, P()))
    up, down = (
        jax.device_put(
            (random(name, (5, 64, 64), dtype) / 8).astype(DTYPES[dtype]),
            NamedSharding(devices, spec),
        )
        for name, spec in (("up", P(None, None, "a")), ("down", P(None, "a", None)))
    )

    @functools.partial(jax.jit, out_shardings=NamedSharding(devices, P()))
    def program(x, layers):
        def body(carry, layer):
            x, normed = carry
            up, down, gain = layer
            if not norm_in_body:
                normed = rms_norm(x, gain)
            product = lax.with_sharding_constraint(
                jnp.tanh(normed @ up) @ down, NamedSharding(devices, P())
            )
            x = x + product
            return (x, rms_norm(x, gain) if norm_in_body else normed), None

        return list(lax.scan(body, (x, x), layers)[0])

    return program(x, (up, down, gain))


def by_shard(
    program: Callable[..., jax.Array | tuple[jax.Array, ...]],
    shape: tuple[int, ...],
    x: np.ndarray,
    *replicated: np.ndarray,
) -> list[jax.Array]:
    """Runs `program` on each device of a mesh of `shape` with its own part of x.

    x is [*shape, ...]. Returns every device's own results, [*shape, ...].
    """
    devices = mesh(*shape)
    axes = devices.axis_names

    @jax.jit
    @functools.partial(
        jax.shard_map,
        mesh=devices,
        in_specs=(P(*axes), *(P() for _ in replicated)),
        out_specs=P(*axes),
        check_vma=False,
    )
    def sharded(x, *replicated):
        own = program(x.reshape(x.shape[len(shape) :]), *replicated)
        return jax.tree.map(lambda out: out.reshape((1,) * len(shape) + out.shape), own)

    return jax.tree.leaves(sharded(x, *replicated))


def psum(shape: tuple[int, ...], axes: str | tuple[str, ...], dtype: str) -> list[jax.Array]:
    """Residual and norm after a sum over some axes of a mesh; rows of 40 elements."""
    x = random("x", (*shape, 3, 40), dtype)
    residual, gain = random("residual", (3, 40), dtype), random("gain", (40,), dtype)

    def program(x, residual, gain):
        h = residual + lax.psum(x, axes)
        return h, rms_norm(h, gain)

    return by_shard(program, shape, x, residual, gain)


def special_values(dtype: str, add_residual: bool) -> list[jax.Array]:
    """NaN, infinities and zeros of either sign; all finite sums are exact in each type."""
    nan, inf = float("nan"), float("inf")
    columns = [
        [1, nan, 2, 3, 4, 5, 6, 7],
        [inf, 1, 2, 3, 4, 5, 6, 7],
        [1, 2, 3, 4, 5, 6, 7, -inf],
        [inf, 1, 2, 3, 4, 5, 6, -inf],
        [nan, inf, -inf, nan, 0.0, -0.0, 1, 2],
        [-0.0] * 8,
        [0.0, *[-0.0] * 7],
        [1, -1, *[-0.0] * 6],
        [1, 2, 3, 4, 5, 6, 7, 8],
    ]
    x = np.array(columns).T.astype(DTYPES[dtype])
    # A NaN of ones only, which means "not there yet" to the protocol between GPUs.
    x[3, 8] = np.full(1, -1, f"i{x.itemsize}").view(x.dtype)[0]
    x = np.stack([x, np.roll(x, 3, axis=0)], axis=1)
    residual = np.array([1, 1, 1, inf, 1, -0.0, -0.0, -0.0, 1], DTYPES[dtype])
    residual = np.stack([residual, residual])

    def program(x, residual):
        total = lax.psum(x, "a")
        return residual + total if add_residual else total

    return by_shard(program, (8,), x, residual)


def special_rows() -> list[jax.Array]:
    """Norms of rows with a NaN, with an infinity, of zeros, and of a usual one; f32[4, 32]."""
    x = np.zeros((8, 4, 32), np.float32)
    x[2, 0, 5] = np.nan
    x[7, 1, 9] = np.inf
    x[:, 2] = -0.0
    x[:, 3] = np.arange(32) - 16
    gain = np.ones(32, np.float32)
    return by_shard(lambda x, gain: rms_norm(lax.psum(x, "a"), gain), (8,), x, gain)


def plain(
    program: Callable[[jax.Array], jax.Array | tuple[jax.Array, ...]],
    shape: tuple[int, ...] = (3, 40),
    dtype: type[np.number] = np.float32,
) -> list[jax.Array]:
    """A program of one input of `shape` a device, with small integers, which add exactly."""
    x = np.arange(8 * np.prod(shape)).reshape(8, *shape) % 7 - 3
    return by_shard(program, (8,), x.astype(dtype))


def overwritten_state(convert: bool) -> list[jax.Array]:
    """A loop whose new state is known before the all-reduce that depends on the old one.

    With `convert`, only through a conversion; otherwise of two all-reduces, which XLA combines, one
    makes the new state, and the other needs the old one. The new state takes the place of the old
    one in memory.
    """

    def body(state: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        if not convert:
            return lax.psum(x, "a") + 1, lax.psum(x + state, "a")
        wide = state.astype(jnp.float32)
        for _ in range(6):  # the sum comes late
            x = jnp.abs(jnp.sign(x) - 2)
        return (2 - wide).astype(state.dtype), jnp.square(lax.psum(x, "a") + wide)

    state = jnp.zeros((3, 40), jnp.bfloat16 if convert else jnp.float32)
    return plain(lambda x: lax.scan(body, state, x)[1], (4, 3, 40))


def as_on_gpus(program: spellings.Program) -> list[jax.Array]:
    """A program whose module XLA for GPUs has made, too, on CPU devices."""
    devices.use(jax.devices())
    return jax.tree.leaves(jax.jit(program.run)(spellings.random_operands(program)))


# ---------------------------------------------------------------------------
# All cases


def cases() -> Iterator[Case]:
    """Yields every case. Nothing is computed yet."""
    epilogues = [
        "none",
        "bias",
        "residual",
        "rms_norm",
        "bias+residual",
        "residual+bias",
        "bias+rms_norm",
        "residual+rms_norm",
        "bias+residual+rms_norm",
    ]
    # A row that is a whole number of packets, and one that is not.
    for epilogue, (dtype, hidden) in itertools.product(
        epilogues, [("f32", 96), ("bf16", 96), ("bf16", 37), ("f16", 96)]
    ):
        yield Case(
            f"gspmd-{epilogue}-{dtype}-{hidden}",
            functools.partial(gspmd, epilogue, dtype, 4, hidden),
            (epilogue,),
            TOLERANCE[dtype],
        )
    for dtype in DTYPES:
        for inside, sites in ((True, ("residual+rms_norm",)), (False, ("residual",))):
            yield Case(
                f"scan-{'norm' if inside else 'carry'}-{dtype}",
                functools.partial(scan, dtype, inside),
                sites,
                # Errors of five layers add up.
                5 * TOLERANCE[dtype],
            )
    # Consecutive and strided groups of 8, 4, 2 and 3 ranks; the last with 6 of the 8 devices.
    meshes = [
        ((8,), "a"),
        ((4, 2), "a"),
        ((4, 2), "b"),
        ((2, 4), "a"),
        ((2, 4), "b"),
        ((2, 4), ("a", "b")),
        ((2, 3), "a"),
        ((2, 3), "b"),
    ]
    for dtype in DTYPES:
        # Groups have nothing to do with the type.
        for shape, axes in meshes if dtype == "f32" else (meshes[0], meshes[-1]):
            yield Case(
                f"psum-{'x'.join(map(str, shape))}-{''.join(axes)}-{dtype}",
                functools.partial(psum, shape, axes, dtype),
                ("residual+rms_norm",),
                TOLERANCE[dtype],
            )
        for add_residual in (False, True):
            yield Case(
                f"special-{'residual' if add_residual else 'none'}-{dtype}",
                functools.partial(special_values, dtype, add_residual),
                ("residual" if add_residual else "none",),
                EXACT,
            )
    # What XLA for CPU has done before the hook: combined two sums; inverted a divisor and converted
    # both sides of a product of FP8 back.
    others = {
        "parallel": ("residual+residual+rms_norm", "none"),
        "quantized": ("residual+rms_norm+multiply+clamp",),
    }
    for program in spellings.PROGRAMS:
        sites = (site.split(", read by ") for site in program.sites)
        dtype = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[program.dtype]
        yield Case(
            f"as-on-gpus-{program.name}",
            functools.partial(as_on_gpus, program),
            others.get(program.name) or tuple(s[0] if s[1:] else None for s in sites),
            4 * TOLERANCE[dtype],
        )
    yield Case("special-rows", special_rows, ("rms_norm",), TOLERANCE["f32"])

    def shared(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        total = lax.psum(x, "a")
        return total + 1, total * x

    def quantized(dtype: str) -> Callable[[jax.Array], jax.Array]:
        scales = np.float32(2.0) ** np.arange(-20, 20)
        return lambda x: (lax.psum(x, "a") * scales).astype(dtype)

    def twice(x: jax.Array) -> jax.Array:
        return lax.psum(lax.psum(x, "a") * x, "a")

    alone: list[tuple[str, Callable[[], list[jax.Array]], tuple[str | None, ...]]] = [
        # Two readers.
        ("shared", lambda: plain(shared), ("add+multiply",)),
        ("twice", lambda: plain(twice), ("multiply", "none")),
        ("overwritten-split", lambda: overwritten_state(False), ("add", "none")),
        ("overwritten-convert", lambda: overwritten_state(True), ("residual+multiply",)),
        # Half way between two of them, subnormal, and too large.
        ("f8e4m3fn", lambda: plain(quantized("float8_e4m3fn")), ("multiply+f8e4m3fn",)),
        ("f8e5m2", lambda: plain(quantized("float8_e5m2")), ("multiply+f8e5m2",)),
        ("s8", lambda: plain(quantized("int8")), ("multiply+s8",)),
        # Not ours.
        ("maximum", lambda: plain(lambda x: lax.pmax(x, "a")), (None,)),
        ("integers", lambda: plain(lambda x: lax.psum(x, "a"), dtype=np.int32), (None,)),
        # 3 MiB from each of eight ranks.
        ("large", lambda: plain(lambda x: lax.psum(x, "a"), (768, 1024)), (None,)),
    ]
    for name, run, sites in alone:
        yield Case(name, run, sites, EXACT)


class Model(NamedTuple):
    """One way to run the decode model."""

    dtype: str
    scan: bool

    @property
    def name(self) -> str:
        """What the case is called."""
        return f"llama-{self.dtype}-{'scan' if self.scan else 'unrolled'}"

    @property
    def config(self) -> llama_decode.Config:
        """Two layers, four steps; with the scan, the loop over steps is on the device too."""
        loop = "device" if self.scan else "python"
        return llama_decode.Config(ffn=256, vocab=256, steps=4, loop=loop, **self._asdict())

    @property
    def case(self) -> Case:
        """The case that runs it; compared by the relative error of the norms."""
        # Each norm follows a sum, except that in a scan the first one of the next layer is on the
        # other side of the loop's boundary.
        both = "residual+rms_norm"
        return Case(
            self.name,
            lambda: [llama_decode.Decoder(self.config).logits()],
            (both, "residual") if self.scan else (both,) * 4,
            MODEL_TOLERANCE[self.dtype],
        )


CASES = list(cases())
MODELS = [Model(dtype, scan) for dtype in DTYPES for scan in (False, True)]
