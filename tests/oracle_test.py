# SPDX-License-Identifier: Apache-2.0
"""Random tensor-parallel programs compute the same with Oneshot as without.

Programs are made from a seed: sums over ranks, and behind them random trees of elementwise
operations, broadcasts and row reductions, with what looks like an epilogue and is none: reductions
over other dimensions, transposes, integers, values that several read, sums of sums, results that
depend on each other. A few hundred by default; thousands with

  python oracle_test.py --programs 5000 [--first SEED]
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from emulation import environment
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

PROGRAMS = 160
# In one module: compiling is what takes time.
BATCH = 20
# Of an output, relative to its largest element: what an order of summation and the last bits of a
# transcendental function may grow to in a dozen operations. By the coarsest type of a program, as
# the last bit may decide where a value is rounded to.
TOLERANCE = {"float32": 1e-4, "float16": 0.02, "bfloat16": 0.1}


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
]
EXACT: list[Callable] = [jnp.negative, jnp.abs, lambda x: x * 2, lambda x: x + 1, lambda x: x - 3]
JUMPS: list[Callable] = [
    jnp.floor,
    jnp.ceil,
    jnp.round,
    jnp.sign,
    lambda x: jnp.where(x > 1, x, -x),
    lambda x: jnp.where(jnp.isfinite(x) & ~(x == 2), x, 0),
    lambda x: jnp.clip(x, -2, 3),
    lambda x: x.astype(jnp.int32).astype(x.dtype),
    lambda x: (x >= 0).astype(x.dtype),
    lambda x: jnp.fmod(x, 3),
]
DTYPES = [jnp.float32, jnp.float32, jnp.bfloat16, jnp.float16]


class Maker:
    """Makes one program, while it is traced on each rank."""

    def __init__(self, seed: int, rank: jax.Array):
        self.random = random.Random(seed)
        self.rank = rank
        hidden = self.random.choice([2, 7, 16, 33, 64])
        lead = self.random.choice([(), (1,), (3,), (4,), (2, 3), (1, 5)])
        self.shape = (*lead, hidden)
        self.dtype = self.random.choice(DTYPES)
        self.dtypes = {np.dtype(self.dtype).name}
        self.pool: list[Value] = []

    def numbers(self, shape: tuple[int, ...], by_rank: bool = False) -> jax.Array:
        """Small whole numbers: their sums are exact in every type."""
        count = int(np.prod(shape))
        a, b = self.random.randrange(1, 50), self.random.randrange(50)
        whole = (jnp.arange(count) * a + b + (self.rank * 3 if by_rank else 0)) % 7 - 3
        return whole.reshape(shape).astype(self.dtype)

    def sum(self, axes: str | tuple[str, ...]) -> Value:
        """A sum over ranks, of something new or of a value that is there."""
        x = self.numbers(self.shape, by_rank=True)
        exact = True
        if self.pool and self.random.random() < 0.3:
            old = self.pick()
            exact = old.exact
            x = x + old.array
        if self.random.random() < 0.2:
            x = x.astype(jnp.float32)
        return Value(lax.psum(x, axes), exact)

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
        x = self.numbers(chosen)
        if chosen == shape[-1:] and self.random.random() < 0.4:
            stack = self.numbers((4, *shape[-1:]))
            # Out of range too.
            index = jnp.int32(self.random.randrange(-2, 6)) + self.rank * 0
            x = lax.dynamic_index_in_dim(stack, jnp.clip(index, -1, 5), keepdims=False)
        return x

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
            operation = self.random.choice([jnp.add, jnp.subtract, jnp.multiply, jnp.maximum])
            return Value(operation(*pair), exact)
        other = self.pick()
        if other.array.shape != x.shape:
            return Value(-x, exact)
        return Value(x + other.array, exact and other.exact)

    def grow(self) -> Value:
        """A value from earlier ones."""
        value = self.pick()
        x, exact = value
        choice = self.random.random()
        if choice < 0.4:
            grown = self.combine(value)
        elif choice < 0.55:
            grown = self.norm(value)
        elif choice < 0.7:
            small = x / jnp.asarray(8, x.dtype) if exact else jnp.tanh(x)
            grown = Value(self.random.choice(SMOOTH)(small), False)
        elif choice < 0.8 and exact:
            grown = Value(self.random.choice(JUMPS)(x), exact)
        elif choice < 0.86:
            grown = Value(x.astype(self.random.choice(DTYPES)), False)
            self.dtypes.add(grown.array.dtype.name)
        elif choice < 0.9 and len(self.shape) > 1:
            grown = Value(jnp.flip(x, 0), exact)
        else:
            grown = Value(self.random.choice(EXACT)(x), exact)
        # Numbers stay small, so that no type overflows.
        if self.random.random() < 0.3 and not grown.exact:
            return Value(jnp.tanh(grown.array), False)
        return grown

    def make(self) -> list[jax.Array]:
        """The outputs."""
        axes = self.random.choice(["a", "b", ("a", "b")])
        self.pool.append(self.sum(axes))
        for _ in range(self.random.randrange(1, 14)):
            if self.random.random() < 0.08:
                self.pool.append(self.sum(self.random.choice(["a", ("a", "b")])))
            else:
                self.pool.append(self.grow())
        outputs = self.random.sample(self.pool, min(len(self.pool), self.random.randrange(1, 4)))
        return [value.array for value in [*outputs, self.pool[-1]]]


class Outputs(NamedTuple):
    """What a program has computed on all ranks.

    Attributes:
      arrays: the outputs.
      coarsest: the type in it with the fewest bits.
    """

    arrays: list[np.ndarray]
    coarsest: str


def run_programs(first: int, count: int) -> list[Outputs]:
    """Runs programs with consecutive seeds."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    results = []
    for start in range(first, first + count, BATCH):
        seeds = range(start, min(start + BATCH, first + count))

        coarsest: list[str] = []

        def local(
            ranks: jax.Array, seeds: range = seeds, coarsest: list[str] = coarsest
        ) -> list[list[jax.Array]]:
            makers = [Maker(seed, ranks[0]) for seed in seeds]
            outputs = [[out[None] for out in maker.make()] for maker in makers]
            coarsest[:] = [max(maker.dtypes, key=TOLERANCE.get) for maker in makers]
            return outputs

        program = jax.jit(
            jax.shard_map(
                local,
                mesh=mesh,
                in_specs=P(("a", "b")),
                out_specs=P(("a", "b")),
                check_vma=False,
            )
        )
        outputs = program(np.arange(8, dtype=np.int32))
        results += [
            Outputs([np.asarray(out) for out in arrays], name)
            for arrays, name in zip(outputs, coarsest, strict=True)
        ]
    return results


def save(path: Path, results: list[Outputs]) -> None:
    """Writes outputs, with the types that NumPy does not know as float32."""
    np.savez(
        path,
        **{
            f"{program}/{output}/{outputs.coarsest}": array.astype(np.float32)
            for program, outputs in enumerate(results)
            for output, array in enumerate(outputs.arrays)
        },
    )


def compare(first: int, count: int) -> tuple[list[str], int, int]:
    """Runs both arms.

    Returns:
      What differs, how many all-reduces were fused, and how many there were.
    """
    with tempfile.TemporaryDirectory() as scratch:
        started = []
        for arm in ("stock", "fused"):
            switch = {"ONESHOT": "1", "ONESHOT_DUMP_TO": scratch} if arm == "fused" else {}
            command = [sys.executable, __file__, "--arm", f"{scratch}/{arm}.npz"]
            command += ["--first", str(first), "--programs", str(count)]
            started.append(
                subprocess.Popen(
                    command, env=environment(**switch), stderr=subprocess.PIPE, text=True
                )
            )
        for process in started:
            _, err = process.communicate()
            assert process.returncode == 0, err[-4000:]
        reports = [json.loads(path.read_text()) for path in Path(scratch).glob("*.report.json")]
        wrong = []
        with np.load(f"{scratch}/stock.npz") as stock, np.load(f"{scratch}/fused.npz") as fused:
            assert stock.files == fused.files
            for name in stock.files:
                program, output, dtype = name.split("/")
                error = difference(stock[name], fused[name])
                if not error <= TOLERANCE[dtype]:
                    wrong.append(f"program {first + int(program)} output {output}: {error}")
    fired = sum(report["fired"] for report in reports)
    return wrong, fired, sum(len(report["all_reduces"]) for report in reports)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, relative to the largest element; infinite if other values are special."""
    finite = np.isfinite(a)
    if (
        not np.array_equal(a[~finite], b[~finite], equal_nan=True)
        or not np.isfinite(b[finite]).all()
    ):
        return np.inf
    return float(np.max(np.abs(a - b), where=finite, initial=0)) / max(
        1.0, float(np.max(np.abs(a), where=finite, initial=0))
    )


def test_random_programs() -> None:
    wrong, fired, total = compare(first=0, count=PROGRAMS)
    assert not wrong
    # Otherwise this would test nothing.
    assert total >= PROGRAMS / 2
    assert fired >= total / 2


def main() -> int:
    """One arm, or a comparison of many programs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--programs", type=int, default=PROGRAMS)
    parser.add_argument("--arm", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        save(arguments.arm, run_programs(arguments.first, arguments.programs))
        return 0
    wrong, fired, total = compare(arguments.first, arguments.programs)
    print(
        f"{arguments.programs} programs, {fired} of {total} all-reduces fused, {len(wrong)} wrong"
    )
    for line in wrong:
        print(line)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
