# SPDX-License-Identifier: Apache-2.0
"""Random all-reduces with epilogues, many times each; for soak_test.py and gpu/run.py.

  python workers/soak.py SECONDS REPLAYS

Every result is compared on the device with what XLA makes of the same epilogue behind a sum that
needs no other rank, since all ranks know what each of them adds. Numbers are small integers, so
sums are exact in whatever order they are added; norms may differ by few steps of their type.

Begins programs until SECONDS have passed, but at least LEAST, and stops in front of some for a
while, each process at other times. At the end it prints one line of JSON, which has the same `bits`
in all processes.
"""

import functools
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import process_group
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

DTYPES = {"f32": jnp.float32, "bf16": jnp.bfloat16, "f16": jnp.float16}
LEAST = 8  # with this many, one has a collective over a single device
MOST_BYTES = 1 << 20
# A block of a kernel has 128 threads of 16 bytes each. Where ranks share a GPU, the blocks of all
# of them together are no more than it has multiprocessors.
BLOCK_BYTES, PLACES = 2048, 128
LATE_S = 0.2  # on average, where a rank is late
# Of the type of the result: XLA's reciprocal square root and division are not those of NVRTC, and
# what is rounded twice may fall to the other side twice.
MOST_STEPS = 4
Epilogue = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]


def rms(x: jax.Array) -> jax.Array:
    """RMSNorm in f32, without a gain."""
    wide = x.astype(jnp.float32)
    return (wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-5)).astype(x.dtype)


def layer(x: jax.Array) -> jax.Array:
    """LayerNorm in f32, without gain and shift."""
    wide = x.astype(jnp.float32)
    wide = wide - jnp.mean(wide, -1, keepdims=True)
    return (wide * lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-5)).astype(x.dtype)


# Of the sum, [rows, hidden], a residual of the same shape and a gain, [hidden].
EPILOGUES: dict[str, Epilogue] = {
    "nothing": lambda x, h, g: (x,),
    "bias": lambda x, h, g: (x + g,),
    "residual": lambda x, h, g: (x + h,),
    "maximum": lambda x, h, g: (jnp.maximum(x * g, h),),
    "RMSNorm": lambda x, h, g: (rms(x) * g,),
    "residual, RMSNorm": lambda x, h, g: (x + h, rms(x + h) * g),
    "bias, residual, LayerNorm": lambda x, h, g: (x + g + h, layer(x + g + h)),
    "RMSNorm, residual": lambda x, h, g: (rms(x) + h,),
}


def noise(shape: tuple[int, ...], dtype: jnp.dtype, *seeds: jax.Array | int) -> jax.Array:
    """Integers from -3 to 3."""
    bits = lax.iota(jnp.uint32, int(np.prod(shape))).reshape(shape)
    for seed in seeds:
        bits = (bits ^ jnp.asarray(seed).astype(jnp.uint32)) * jnp.uint32(0x9E3779B1)
        bits ^= bits >> 15
    return ((bits >> 3) % 7).astype(jnp.int32).astype(dtype) - jnp.asarray(3, dtype)


def steps(x: jax.Array) -> jax.Array:
    """The number of representable values between 0 and each element: int32, bits and order kept.

    No epilogue has these operations, so the comparison does not become a part of the kernel.
    """
    wide = x.dtype.itemsize == 4
    bits = lax.bitcast_convert_type(x, jnp.uint32 if wide else jnp.uint16).astype(jnp.uint32)
    sign = jnp.uint32(1 << (31 if wide else 15))
    magnitude = (bits & ~sign).astype(jnp.int32)
    return jnp.where((bits & sign) != 0, -1 - magnitude, magnitude)


def program(chance: random.Random) -> tuple[str, Callable[[jax.Array], tuple], int]:
    """A random program of the number of replays; its description; how many all-reduces it fuses.

    It returns, for each rank, how many elements were wrong, and a checksum of all bits.
    """
    devices = np.array(jax.devices())
    sizes = [size for size in range(2, devices.size + 1) if devices.size % size == 0]
    ranks = chance.choice(sizes)
    grid = devices.reshape((-1, ranks) if chance.random() < 0.5 else (ranks, -1))
    axis = "ab"[grid.shape[1] == ranks]
    other = "ba"[axis == "b"]
    mesh = Mesh(grid, ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    dtype = jnp.dtype(DTYPES[chance.choice(list(DTYPES))])
    hidden = chance.choice([chance.randint(2, 2000), 128 * chance.randint(1, 64)])
    most = min(128, MOST_BYTES // hidden // dtype.itemsize)
    sharers = process_group.sharers()
    if sharers > 1:
        blocks = -(-hidden * dtype.itemsize // BLOCK_BYTES)  # of a row
        most = min(most, max(1, PLACES // sharers // blocks))
    shape = (int(most ** chance.random()), hidden)
    kind = chance.choice(list(EPILOGUES))
    exact = "Norm" not in kind
    salt = chance.getrandbits(30)

    def body(i: jax.Array, state: tuple) -> tuple:
        wrong, bits = state
        group = lax.axis_index(other)
        residual = noise(shape, dtype, salt, i, group, 77)
        gain = noise(shape[1:], dtype, salt, i, group, 78)
        mine = noise(shape, dtype, salt, i, group, lax.axis_index(axis))
        every = [noise(shape, dtype, salt, i, group, rank) for rank in range(ranks)]
        got = EPILOGUES[kind](lax.psum(mine, axis), residual, gain)
        want = EPILOGUES[kind](functools.reduce(jnp.add, every), residual, gain)
        for left, right in zip(map(steps, got), map(steps, want), strict=True):
            far = jnp.abs(left - right) > (0 if exact else MOST_STEPS)
            wrong += jnp.sum(far, dtype=jnp.int32)
            bits = (bits ^ jnp.sum(left.astype(jnp.uint32))) * jnp.uint32(0x9E3779B1)
        return wrong, bits

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=P(), out_specs=P(("a", "b")), check_vma=False
    )
    def run(replays: jax.Array) -> tuple:
        first = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.uint32)
        wrong, bits = lax.fori_loop(0, replays, body, first)
        # Groups have numbers of their own.
        everyone = lax.all_gather(bits, other)
        return wrong[None], jnp.bitwise_xor.reduce(everyone)[None]

    compiled = run.lower(jax.ShapeDtypeStruct((), jnp.int32)).compile()
    fused = compiled.as_text().count('custom_call_target="oneshot_all_reduce')
    name = f"{dtype.name}[{shape[0]},{hidden}] over {axis} of {grid.shape}: {kind}"
    return name, compiled, fused


def main() -> None:
    """Runs programs until the time is over."""
    process_group.join()
    seconds, replays = float(sys.argv[1]), int(sys.argv[2])
    start = time.monotonic()
    late = random.Random(jax.process_index())
    digest = hashlib.sha256()
    counts = dict.fromkeys(("programs", "fused", "all-reduces", "wrong", "late"), 0)

    def go_on() -> bool:
        """The first process says for all when it is enough."""
        more = counts["programs"] < LEAST or time.monotonic() - start < seconds
        return bool(multihost_utils.broadcast_one_to_all(np.int32(more)))

    while go_on():
        name, run, fused = program(random.Random(counts["programs"]))
        if late.random() < 0.3:
            counts["late"] += 1
            time.sleep(late.expovariate(1 / LATE_S))
        wrong, bits = run(np.int32(replays))
        wrong = sum(int(shard.data[0]) for shard in wrong.addressable_shards)
        for shard in bits.addressable_shards:
            assert np.array_equal(shard.data, bits.addressable_shards[0].data), name
        digest.update(np.asarray(bits.addressable_shards[0].data).tobytes())
        if wrong:
            print(f"{name}: {wrong} wrong", flush=True)
        counts["programs"] += 1
        counts["fused"] += fused
        counts["all-reduces"] += fused * replays
        counts["wrong"] += wrong
    print(json.dumps(counts | {"bits": digest.hexdigest()[:16]}), flush=True)


if __name__ == "__main__":
    main()
