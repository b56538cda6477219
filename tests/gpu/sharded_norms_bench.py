# SPDX-License-Identifier: Apache-2.0
"""Times decode layers whose norm gains are sharded over the tensor axis, without and with Oneshot.

  python tests/gpu/sharded_norms_bench.py [--rounds N] [--batch N]

Needs two GPUs or more with peer access, and `oneshot` on the path. A layer has the sizes that each
of eight GPUs would have of Llama-3-8B: hidden 4096, 1024 columns of attention, 3584 of the MLP.
Each arm is a process of its own, in turns; a sample is the median of 15 loops on the device, of 100
steps of 8 layers. Prints a line per sample: microseconds per layer, and the collectives of the
program.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time

LAYERS, STEPS, SAMPLES = 8, 100, 15
HIDDEN, ATTENTION, MLP = 4096, 1024, 3584
ARMS = {
    "stock": {},
    "nccl": {"XLA_FLAGS": "--xla_gpu_experimental_use_collective_kernels=-ALL_REDUCE"},
    "oneshot": {"ONESHOT": "1"},
}
# Of the gains: how they lie, and whether one is added to them, as in Gemma.
PROGRAMS = ("sharded", "sharded_plus_one", "replicated", "replicated_plus_one")


def measure(program: str, batch: int) -> dict[str, object]:
    """Microseconds per layer of one program on all GPUs, and what it was compiled to."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax import lax
    from jax.sharding import Mesh, NamedSharding
    from jax.sharding import PartitionSpec as P

    mesh = Mesh(np.array(jax.devices()), ("tp",))
    ranks = len(jax.devices())
    rng = np.random.default_rng(0)

    def put(shape: tuple[int, ...], *spec: str | None) -> jax.Array:
        value = jnp.asarray(rng.standard_normal(shape) * 0.02, jnp.bfloat16)
        return jax.device_put(value, NamedSharding(mesh, P(*spec)))

    gain = ("tp",) if program.startswith("sharded") else ()
    layers = [
        {
            "qkv": put((HIDDEN, ATTENTION * ranks), None, "tp"),
            "out": put((ATTENTION * ranks, HIDDEN), "tp", None),
            "up": put((HIDDEN, MLP * ranks), None, "tp"),
            "down": put((MLP * ranks, HIDDEN), "tp", None),
            "gains": [put((HIDDEN,), *gain), put((HIDDEN,), *gain)],
        }
        for _ in range(LAYERS)
    ]

    def rms_norm(h: jax.Array, gain: jax.Array) -> jax.Array:
        wide = h.astype(jnp.float32)
        scale = lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-6)
        gain = 1 + gain if program.endswith("plus_one") else gain
        return (wide * scale).astype(h.dtype) * gain

    def whole(value: jax.Array) -> jax.Array:
        return lax.with_sharding_constraint(value, NamedSharding(mesh, P()))

    def step(_: int, h: jax.Array) -> jax.Array:
        for layer in layers:
            h = h + whole(jnp.tanh(rms_norm(h, layer["gains"][0]) @ layer["qkv"]) @ layer["out"])
            mlp = jax.nn.silu(rms_norm(h, layer["gains"][1]) @ layer["up"])
            h = h + whole(mlp @ layer["down"])
        return h * jnp.bfloat16(0.5)

    h = put((batch, HIDDEN))
    loop = jax.jit(lambda h: lax.fori_loop(0, STEPS, step, h)).lower(h).compile()
    for _ in range(4):
        loop(h).block_until_ready()
    times = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        loop(h).block_until_ready()
        times.append(time.perf_counter() - start)
    hlo = loop.as_text()
    return {
        "us_per_layer": round(float(np.median(times)) / STEPS / LAYERS * 1e6, 2),
        "all_reduces": len(re.findall(r" all-reduce(?:-start)?\(", hlo)),
        "all_gathers": len(re.findall(r" all-gather(?:-start)?\(", hlo)),
        "calls": hlo.count('custom_call_target="oneshot_all_reduce'),
    }


def main() -> None:
    """Runs all arms in turns, or as one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--measure", choices=PROGRAMS, help="as one arm")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.batch)))
        return
    for number in range(arguments.rounds):
        for program in PROGRAMS:
            for arm, variables in ARMS.items():
                command = [sys.executable, __file__, "--measure", program]
                command += ["--batch", str(arguments.batch)]
                environ = {**os.environ, "ONESHOT": "0", **variables}
                done = subprocess.run(
                    command, env=environ, capture_output=True, text=True, check=True
                )
                sample = json.loads(done.stdout.splitlines()[-1])
                line = {"round": number, "program": program, "arm": arm, **sample}
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
