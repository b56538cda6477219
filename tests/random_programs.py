# SPDX-License-Identifier: Apache-2.0
"""Random tensor-parallel programs, each made from a seed.

They are for shard_map and for GSPMD, some of them the body of a scan: sums over ranks, and behind
them random trees of elementwise operations, broadcasts and row reductions, with what looks like an
epilogue and is none: reductions over other dimensions, transposes, slices, integers, other
collectives, values that several read, sums of sums, results that depend on each other. Some hold
infinities and NaN.
"""

import functools
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

PROGRAMS = 120
# In one module: compiling is what takes time.
BATCH = 20
# Of a scan.
STEPS = 3
# Where numbers come from that XLA doesn't know when it compiles.
UNKNOWN = ((np.arange(4096) * 37 + 11) % 1009 % 7 - 3.0).astype(np.float32)
# Of programs: the number of each rank, and `UNKNOWN`.
ARGUMENTS = (np.arange(8, dtype=np.int32), UNKNOWN)
SPECS = (P(("a", "b")), P())
# What the matcher knows, operations and types of results, by the names of epilogue_program.h, but
# for what XLA for CPU expands before.
# Everything is to be fused in some program, or this test wouldn't test it.
OPERATIONS = """
convert abs cbrt ceil cos erf exp expm1 floor is_finite log log1p negate not
round_nearest_afz round_nearest_even rsqrt sign sin sqrt tan tanh add and atan2 divide eq ge gt le
lt maximum minimum multiply ne or power remainder subtract xor clamp select reduce_max reduce_min
reduce_sum f8e4m3fn f8e5m2 s8
"""


class Value(NamedTuple):
    """A value of a program.

    Attributes:
      array: what JAX traces.
      exact: no rounding depends on the order of a sum, or on the last bit of a library function:
        then jumps, as of a comparison, are the same in both arms.
    """

    array: jax.Array
    exact: bool


# Continuous and tame; the argument is kept small before.
SMOOTH: list[Callable] = [
    jnp.tanh,
    jax.nn.sigmoid,
    jnp.sin,
    jnp.cos,
    jax.nn.silu,
    jax.nn.gelu,
    lambda x: jnp.exp(-jnp.abs(x)),
    lambda x: jnp.sqrt(jnp.abs(x) + 1),
    lambda x: lax.rsqrt(jnp.abs(x) + 1),
    lambda x: jnp.log1p(jnp.abs(x)),
    lambda x: jnp.expm1(-jnp.abs(x)),
    lambda x: jnp.log(jnp.abs(x) + 2),
    lambda x: (jnp.abs(x) + 1) ** -0.5,
    lax.erf,
    lambda x: lax.cbrt(jnp.abs(x) + 1),
    lambda x: jnp.arctan2(x, jnp.abs(x) + 1),
    lambda x: jnp.tan(jnp.tanh(x)),
    lambda x: x / (jnp.abs(x) + 2),
]
EXACT: list[Callable] = [jnp.negative, jnp.abs, lambda x: x * 2, lambda x: x + 1, lambda x: x - 3]
JUMPS: list[Callable] = [
    jnp.floor,
    jnp.ceil,
    jnp.round,
    lambda x: lax.round(x / 2, lax.RoundingMethod.AWAY_FROM_ZERO),
    jnp.sign,
    lambda x: jnp.where(x > 1, x, -x),
    lambda x: jnp.where(jnp.isfinite(x) & ~(x == 2), x, 0),
    lambda x: jnp.clip(x, -2, 3),
    lambda x: x.astype(jnp.int32).astype(x.dtype),
    lambda x: (x >= 0).astype(x.dtype),
    lambda x: jnp.where((x < -1) ^ (x <= 1) | (x != 2), x + 1, 2 * x),
    lambda x: jnp.fmod(x, 3),
    lambda x: x.astype(jnp.int8).astype(x.dtype) + x,
    lambda x: jnp.where(jnp.isfinite((x * 99).astype(jnp.float8_e4m3fn)), x, -x),
]
QUANTIZED = [jnp.int8, jnp.float8_e4m3fn, jnp.float8_e5m2]
# Each has something that no epilogue has, and keeps the shape.
NEAR_MISSES: list[Callable] = [
    lambda x: jnp.swapaxes(jnp.swapaxes(x, 0, -1) + 1, 0, -1),
    lambda x: jnp.concatenate([x[..., 1:], -x[..., :1]], axis=-1),
    lambda x: jnp.flip(x, 0),
    lambda x: x + x[..., :1],
    lambda x: x + x.reshape(x.shape[::-1]).transpose() if x.ndim == 2 else jnp.flip(x),
    lambda x: jnp.pad(x[..., :-1], [(0, 0)] * (x.ndim - 1) + [(1, 0)], constant_values=2),
    lambda x: x - jnp.max(x),
    lambda x: x + lax.reduce(x.astype(jnp.float32), 1.0, lax.add, (x.ndim - 1,))[..., None],
    lambda x: x - jnp.min(x, axis=0),
    lambda x: x + jnp.argmax(x, axis=-1, keepdims=True).astype(x.dtype),
    lambda x: jnp.sort(x, axis=-1),
    lambda x: jnp.where(jnp.arange(x.shape[-1]) % 2 == 0, x, 1),
    lambda x: jnp.tile(x, 2).reshape(2, *x.shape)[1],
]
# The same on ranks, over some axes of the mesh.
COLLECTIVES: list[Callable] = [
    lax.pmax,
    lambda x, axes: lax.psum(x.astype(jnp.int32) % 5, axes).astype(x.dtype),
    lambda x, axes: lax.all_gather(x, axes)[1],
    lambda x, axes: lax.psum((x, x + 1), axes)[1],
    lambda x, _: lax.ppermute(x, "b", [(i, (i + 1) % 4) for i in range(4)]),
]
DTYPES = [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float16]


class Maker:
    """Makes one program, while it is traced: on each rank of a shard_map, or for all with GSPMD."""

    def __init__(self, seed: int, mesh: Mesh, unknown: jax.Array, shaken: bool):
        """All of the program depends on the seed alone.

        Args:
          seed: which program.
          mesh: with axes "a" and "b".
          unknown: `UNKNOWN`, as an argument of the program that is traced.
          shaken: whether results are moved by about their last bit.
        """
        self.random = random.Random(seed)
        self.mesh = mesh
        self.unknown = unknown
        self.shaken = shaken
        self.by_rank = self.random.random() < 0.7
        self.looped = self.random.random() < 0.2
        self.special = self.random.random() < 0.1
        self.rank = self.step = jnp.int32(0)
        hidden = self.random.choice([2, 7, 16, 33, 64])
        lead = self.random.choice([(), (1,), (3,), (4,), (2, 3), (1, 5), (3, 1)])
        self.shape = (*lead, hidden)
        self.dtype = self.random.choice(DTYPES)
        self.pool: list[Value] = []

    def numbers(self, shape: tuple[int, ...], by_rank: bool = False) -> jax.Array:
        """Small whole numbers: their sums are exact in every type."""
        count = int(np.prod(shape))
        a, b = self.random.randrange(1, 50), self.random.randrange(50)
        if self.random.random() < 0.5:
            whole = (jnp.arange(count) * a + b) % 7 - 3
        else:
            whole = self.unknown[b * 31 : b * 31 + count].astype(jnp.int32)
        if by_rank:
            whole = (whole + 3 + self.rank * 3 + self.step) % 7 - 3
        return whole.reshape(shape).astype(self.dtype)

    def axes(self) -> str | tuple[str, ...]:
        """Of the mesh."""
        return self.random.choice(["a", "b", ("a", "b")])

    def sum(self) -> Value:
        """A sum over ranks, of something new or of a value that is there."""
        axes = self.axes()
        if not self.by_rank:
            return Value(self.product(axes), True)
        x = self.numbers(self.shape, by_rank=True)
        exact = True
        if self.pool and self.random.random() < 0.3:
            old = self.pick()
            if old.array.shape == x.shape:
                exact = old.exact
                x = x + old.array
        elif self.special:
            element = self.random.randrange(x.size)
            value = self.random.choice([np.inf, -np.inf, np.nan])
            here = (jnp.arange(x.size) == element).reshape(x.shape) & (self.rank == 5)
            x = jnp.where(here, jnp.asarray(value, x.dtype), x)
        if self.random.random() < 0.2:
            x = x.astype(jnp.float32)
        value = Value(lax.psum(x, axes), exact)
        # Terms may cancel, but not the rounding of what was added up before.
        return value if exact else self.shake(value, lax.psum(jnp.abs(x), axes))

    def product(self, axes: str | tuple[str, ...]) -> jax.Array:
        """A product over a sharded dimension, which makes GSPMD sum over ranks."""

        def place(x: jax.Array, *spec: str | tuple[str, ...] | None) -> jax.Array:
            return lax.with_sharding_constraint(x, NamedSharding(self.mesh, P(*spec)))

        rows = int(np.prod(self.shape[:-1]))
        x = place(self.numbers((rows, 8)), None, axes)
        if self.pool and self.random.random() < 0.3:
            old = self.pick()
            if old.exact and old.array.size == rows * self.shape[-1] and not self.special:
                x = place(jnp.clip(old.array.reshape(rows, -1)[:, :1], -3, 3).astype(x.dtype) + x)
        weights = place(self.numbers((8, self.shape[-1])), axes, None)
        return place(x @ weights).reshape(self.shape)

    def pick(self) -> Value:
        """One of the values, rather a late one."""
        return self.pool[-1 - min(int(self.random.expovariate(0.7)), len(self.pool) - 1)]

    def operand(self) -> jax.Array:
        """Something that does not depend on a sum, spread in one of many ways."""
        shape = self.shape
        kinds = [(), shape[-1:], shape, (*shape[:-1], 1)]
        if len(shape) == 3:
            kinds += [shape[1:], (shape[0], 1, shape[2])]
        chosen = self.random.choice(kinds)
        if chosen and self.random.random() < 0.4:
            stack = self.numbers((STEPS + 1, *chosen))
            # Out of range too. A negative index would count from the end, so it is not left to JAX.
            index = self.step + self.random.randrange(-2, 4) + self.unknown[0].astype(jnp.int32)
            starts = (index, *[jnp.int32(0)] * len(chosen))
            return lax.dynamic_slice(stack, starts, (1, *chosen)).reshape(chosen)
        return self.numbers(chosen)

    def norm(self, value: Value) -> Value:
        """A norm, in one of the ways that models write it, or nearly."""
        way = self.random.randrange(7)
        axis = -1 if self.random.random() < 0.85 or len(self.shape) == 1 else 0
        x = value.array.astype(jnp.float32)
        if way <= 1:
            scale = lax.rsqrt(jnp.mean(x * x, axis=axis, keepdims=True) + 1)
            out = x * scale if way else x * (scale * self.operand())
        elif way == 2:
            centred = x - jnp.mean(x, axis=axis, keepdims=True)
            out = centred / jnp.sqrt(jnp.mean(centred**2, axis=axis, keepdims=True) + 1)
        elif way == 3:
            mean = jnp.mean(x, axis=axis, keepdims=True)
            variance = jnp.maximum(jnp.mean(x * x, axis=axis, keepdims=True) - mean**2, 0)
            out = (x - mean) * lax.rsqrt(variance + 1)
        elif way == 4:
            out = jax.nn.softmax(x, axis=axis) * 4
        elif way == 5:
            out = x / (jnp.sum(jnp.abs(x), axis=axis, keepdims=True) + 1)
        else:
            out = x - jnp.min(x, axis=axis, keepdims=True)
            return Value(out, value.exact)
        if self.random.random() < 0.6:
            out = out.astype(self.dtype)
        if self.random.random() < 0.6:
            out = out * self.operand()
        return Value(out, False)

    def combine(self, value: Value) -> Value:
        """A value with another one, or with an operand."""
        x, exact = value
        if self.random.random() < 0.6:
            pair = [x, self.operand()]
            self.random.shuffle(pair)
            operation = self.random.choice(
                [jnp.add, jnp.subtract, jnp.multiply, jnp.maximum, jnp.minimum]
            )
            return Value(operation(*pair), exact)
        other = self.pick()
        if other.array.shape != x.shape:
            return Value(-x, exact)
        return Value(x + other.array, exact and other.exact)

    def grow(self) -> Value:
        """A value from earlier ones."""
        value = self.pick()
        x, exact = value
        ways = {"combine": 40, "norm": 15, "smooth": 15, "jump": 16, "convert": 6, "miss": 6}
        way = self.random.choices([*ways, "exact"], [*ways.values(), 8])[0]
        if way == "combine":
            grown = self.combine(value)
        elif way == "norm" and x.ndim:
            grown = self.norm(value)
        elif way == "smooth":
            small = x / jnp.asarray(8, x.dtype) if exact else jnp.tanh(x)
            grown = Value(self.random.choice(SMOOTH)(small), False)
        elif way == "jump" and exact:
            grown = Value(self.random.choice(JUMPS)(x), exact)
        elif way == "convert":
            grown = Value(x.astype(self.random.choice(DTYPES)), False)
        elif way == "miss" and exact and x.shape == self.shape:
            grown = Value(self.miss(x), exact)
        else:
            grown = Value(self.random.choice(EXACT)(x), exact)
        # Numbers stay small, so that no type overflows.
        if self.random.random() < 0.3 and not grown.exact:
            grown = Value(jnp.tanh(grown.array), False)
        return self.shake(grown)

    def miss(self, x: jax.Array) -> jax.Array:
        """Something that is not to be fused."""
        if self.by_rank and self.random.random() < 0.4:
            return self.random.choice(COLLECTIVES)(x, self.axes())
        return self.random.choice(NEAR_MISSES)(x).astype(x.dtype)

    def shake(self, value: Value, largest: jax.Array | None = None) -> Value:
        """Moves what may be moved by rounding, if this is to be done.

        Args:
          value: what is moved.
          largest: what was rounded on the way, if that may be larger.
        """
        x, exact = value
        if exact or not self.shaken:
            return value
        signs = (jnp.arange(x.size) * 5 % 7 % 2 * 2 - 1).reshape(x.shape).astype(x.dtype)
        by = signs * jnp.finfo(x.dtype).eps * (x if largest is None else largest)
        return Value(x + by, exact)

    def body(self) -> list[jax.Array]:
        """The outputs, which are some values of the pool."""
        self.pool.append(self.sum())
        steps = self.random.randrange(1, 40 if self.random.random() < 0.1 else 14)
        for _ in range(steps):
            self.pool.append(self.sum() if self.random.random() < 0.08 else self.grow())
        outputs = self.random.sample(self.pool, min(len(self.pool), self.random.randrange(1, 4)))
        return [*map(self.stored, outputs), self.pool[-1].array]

    def stored(self, value: Value) -> jax.Array:
        """An output; quantized now and then, where both arms have to agree."""
        if value.exact and self.random.random() < 0.3:
            return value.array.astype(self.random.choice(QUANTIZED))
        return value.array

    def make(self, rank: jax.Array) -> list[jax.Array]:
        """The outputs, with a dimension in front where there are steps."""
        self.rank = rank
        if not self.looped:
            return self.body()

        def step(carry: jax.Array, index: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            self.step = index
            self.pool = [Value(carry, False)]
            outputs = self.body()
            last = outputs[-1]
            return jnp.tanh(last).astype(
                self.dtype
            ) if last.shape == carry.shape else carry, outputs

        start = self.numbers(self.shape)
        return lax.scan(step, start, jnp.arange(STEPS, dtype=jnp.int32))[1]


def batch(
    seeds: Iterable[int], mesh: Mesh, shaken: bool = False
) -> Callable[..., list[list[jax.Array]]]:
    """Programs as one: from `ARGUMENTS` to the outputs of all ranks."""

    def run(ranks: jax.Array, unknown: jax.Array) -> list[list[jax.Array]]:
        makers = [Maker(seed, mesh, unknown, shaken) for seed in seeds]

        @functools.partial(
            jax.shard_map,
            mesh=mesh,
            in_specs=SPECS,
            out_specs=P(("a", "b")),
            check_vma=False,
        )
        def local(ranks: jax.Array, unknown: jax.Array) -> list[list[jax.Array]]:
            outputs = []
            for maker in makers:
                if maker.by_rank:
                    maker.unknown = unknown
                    outputs.append([out[None] for out in maker.make(ranks[0])])
            return outputs

        by_rank = iter(local(ranks, unknown))
        zero = jnp.int32(0)
        return [next(by_rank) if maker.by_rank else maker.make(zero) for maker in makers]

    return run
