# SPDX-License-Identifier: Apache-2.0
"""One process that uses Oneshot as servers do; for concurrency_test.py and gpu/run.py.

  python workers/concurrency.py threads|ahead|meshes OUT
  python workers/concurrency.py cycles OUT COUNT

Runs on all devices that there are, of any kind, and does the same without Oneshot and with it, when
each sum of floats has to be fused. All numbers are small integers, so that sums are exact in
whatever order they are added, and what is written to OUT has to be the same, bit by bit. `cycles`
compares by itself; it says what the process holds at the beginning, every 1,000 cycles and at the
end.

All but `threads` also run as a group of processes. Each writes what its own devices have computed,
to a file whose name ends with its number.
"""

import concurrent.futures
import functools
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import process_group
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

STEPS = 64
MODULUS = 31.0  # a prime: with others, numbers soon repeat themselves
# With 64 runs under way XLA on CPU hung every time, without Oneshot as with it; with up to 36 not.
MOST_AHEAD_ON_CPU = 24
WARM_UP = 8  # cycles; by then pools and caches have their size
Results = dict[str, np.ndarray]


def layer(h: jax.Array, axis: str, factor: float) -> jax.Array:
    """An all-reduce with an epilogue, and next to it two collectives that stay with stock XLA."""
    rank = lax.axis_index(axis).astype(h.dtype)
    total = lax.psum(h * (factor + rank), axis)
    h = lax.rem(total + h + rank, MODULUS)
    h = lax.rem(h + jnp.max(h, axis=-1, keepdims=True), MODULUS)
    integers = lax.psum(h[:, :1].astype(jnp.int32), axis)
    gathered = lax.all_gather(h[:, 1:2], axis)
    return lax.rem(h + integers.astype(h.dtype) + gathered.sum(axis=0), MODULUS)


def layer_on_host(h: np.ndarray, ranks: int, factor: float) -> np.ndarray:
    """The same of all ranks, in float64."""
    h = h.reshape(ranks, -1, h.shape[-1]).astype(np.float64)
    rank = np.arange(ranks)[:, None, None]
    h = ((h * (factor + rank)).sum(0) + h + rank) % MODULUS
    h = (h + h.max(-1, keepdims=True)) % MODULUS
    h = (h + h[..., :1].sum(0) + h[..., 1:2].sum(0)) % MODULUS
    return h.reshape(-1, h.shape[-1])


def wait_on_cpu(step: int, arrays: Sequence[jax.Array], *, programs: int) -> None:
    """Waits for what has been dispatched, if it is as much as XLA on CPU can cope with."""
    if jax.default_backend() == "cpu" and step % (MOST_AHEAD_ON_CPU // programs) == 0:
        jax.block_until_ready(arrays)


class Program:
    """A compiled function of one array, whose rows are spread over a mesh."""

    def __init__(
        self,
        mesh: Mesh,
        axes: Sequence[str],
        factor: float,
        shape: tuple[int, int],
        *,
        donate: bool = False,
    ):
        spec = P(mesh.axis_names)
        rows, hidden = shape
        start = np.arange(rows * mesh.size * hidden, dtype=np.float32) % MODULUS
        self.on_host = start.reshape(rows * mesh.size, hidden)
        self.start = jax.make_array_from_callback(
            self.on_host.shape, NamedSharding(mesh, spec), lambda index: self.on_host[index]
        )

        @functools.partial(jax.jit, donate_argnums=(0,) if donate else ())
        @functools.partial(jax.shard_map, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
        def program(h: jax.Array) -> jax.Array:
            for axis in axes:
                h = layer(h, axis, factor)
            return h

        self.call: Callable[[jax.Array], jax.Array] = program.lower(self.start).compile()
        fused = self.call.as_text().count('custom_call_target="oneshot_all_reduce')
        assert fused == (len(axes) if os.environ["ONESHOT"] == "1" else 0), fused


def mesh_of(devices: Sequence[jax.Device], *shape: int) -> Mesh:
    """A mesh with axes "a", "b"."""
    names = tuple("ab"[: len(shape)])
    array = np.array(devices).reshape(shape)
    return Mesh(array, names, axis_types=(AxisType.Auto,) * len(shape))


def rows_here(name: str, h: jax.Array) -> Results:
    """The rows of an array that are on this process's devices."""
    return {
        f"{name}, row {s.index[0].start or 0}": np.asarray(s.data) for s in h.addressable_shards
    }


def threads() -> Results:
    """Two executables on the same devices, each dispatched from a thread of its own."""
    devices = jax.devices()
    mesh = mesh_of(devices, len(devices))
    programs = [Program(mesh, "a", 3, (4, 64)), Program(mesh, "a", 5, (1, 256))]

    def run(i: int) -> Results:
        h = programs[i].start
        for step in range(STEPS):
            h = programs[i].call(h)
            wait_on_cpu(step, [h], programs=len(programs))
        return rows_here(f"program {i}", h)

    with concurrent.futures.ThreadPoolExecutor(len(programs)) as pool:
        first, second = pool.map(run, range(len(programs)))
    return first | second


def ahead() -> Results:
    """Steps that are all dispatched before anybody waits, each in the memory of the last one."""
    devices = jax.devices()
    program = Program(mesh_of(devices, len(devices)), "a", 3, (4, 64), donate=True)
    h = program.start
    for step in range(STEPS):
        previous, h = h, program.call(h)
        assert previous.is_deleted()
        wait_on_cpu(step, [h], programs=1)
    return rows_here("last", h)


def meshes() -> Results:
    """Groups of several forms and sizes, within a program and in programs that take turns."""
    devices = jax.devices()
    count = len(devices)
    meshes = [mesh_of(devices, count), mesh_of(devices[::-1], count)]
    meshes += [mesh_of(devices, a, count // a) for a in (2, 4) if count % a == 0 and count > a]
    # Parts of the devices; a process runs those that its own have a part in.
    meshes += [mesh_of(devices[:size], size) for size in range(2, count)]
    meshes += [mesh_of(devices[-size:], size) for size in range(2, count, 3)]
    programs = {
        f"program {i} on {mesh.devices.shape}": Program(mesh, mesh.axis_names, 3 + i, (1 + i, 32))
        for i, mesh in enumerate(meshes)
        if mesh.local_devices
    }
    states = {name: program.start for name, program in programs.items()}
    # Where processes share a GPU, a step takes seconds.
    for step in range(STEPS if jax.process_count() == 1 else STEPS // 8):
        states = {name: programs[name].call(h) for name, h in states.items()}
        wait_on_cpu(step, list(states.values()), programs=len(programs))
    results: Results = {}
    for name, h in states.items():
        results |= rows_here(name, h)
    return results


def resources() -> dict[str, int]:
    """What this process holds."""
    usage = {
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "mappings": Path("/proc/self/maps").read_text().count("\n"),
        "resident KiB": int(Path("/proc/self/statm").read_text().split()[1]) * 4,
    }
    if jax.default_backend() == "gpu":
        usage["bytes of JAX"] = jax.local_devices()[0].memory_stats()["bytes_in_use"]
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        usage["MiB of all GPUs"] = sum(map(int, subprocess.check_output(query).split()))
    return usage


def cycles(count: int) -> Results:
    """Compiles, runs and deletes; no program is like another, so none comes from a cache."""
    ranks = len(jax.devices())
    mesh = mesh_of(jax.devices(), ranks)
    for cycle in range(-WARM_UP, count):
        # What differs is in front of the all-reduce: kernels, which depend on what follows it, are
        # kept as long as the process lives.
        factor = 50 + cycle
        program = Program(mesh, "a", factor, (1 + cycle % 4, 64))
        want = layer_on_host(program.on_host, ranks, factor)
        # XLA makes a CUDA graph of the second run.
        for _ in range(3):
            for shard in program.call(program.start).addressable_shards:
                np.testing.assert_array_equal(shard.data, want[shard.index])
        del program
        jax.clear_caches()
        gc.collect()
        done = cycle + 1
        if done >= 0 and (done % 1000 == 0 or done == count):
            print(json.dumps({"cycle": done} | resources()), flush=True)
    return {}


def main() -> None:
    """Runs one part."""
    process_group.join()
    part, out = sys.argv[1], sys.argv[2]
    with Path(f"{out}.{jax.process_index()}").open("wb") as file:
        np.savez(file, **globals()[part](*map(int, sys.argv[3:])))


if __name__ == "__main__":
    main()
