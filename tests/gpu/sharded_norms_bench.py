# SPDX-License-Identifier: Apache-2.0
"""Times decode layers whose norm gains are sharded over the tensor axis, without and with Oneshot.

  python tests/gpu/sharded_norms_bench.py [--rounds N] [--batch N] [--arms ...] [--programs ...]

Needs two GPUs or more with peer access, and `oneshot` on the path. A layer has the sizes that each
of eight GPUs would have of Llama-3-8B: hidden 4096, 1024 columns of attention, 3584 of the MLP.
The arms are those of `oneshot bench` and share what XLA's autotuning finds. Each sample is a
process of its own, in turns: the median of 15 loops on the device, of 100 steps of 8 layers. Prints
a line per sample: microseconds per layer, the collectives of the program, device and versions.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from oneshot import bench

LAYERS, STEPS, SAMPLES = 8, 100, 15
HIDDEN, ATTENTION, MLP = 4096, 1024, 3584
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

    def step(h: jax.Array, layers: list[dict[str, Any]]) -> jax.Array:
        for layer in layers:
            h = h + whole(jnp.tanh(rms_norm(h, layer["gains"][0]) @ layer["qkv"]) @ layer["out"])
            mlp = jax.nn.silu(rms_norm(h, layer["gains"][1]) @ layer["up"])
            h = h + whole(mlp @ layer["down"])
        return h * jnp.bfloat16(0.5)

    h = put((batch, HIDDEN))

    @jax.jit
    def decode(h: jax.Array, layers: list[dict[str, Any]]) -> jax.Array:
        return lax.fori_loop(0, STEPS, lambda _, h: step(h, layers), h)

    loop = decode.lower(h, layers).compile()
    for _ in range(4):
        loop(h, layers).block_until_ready()
    times = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        loop(h, layers).block_until_ready()
        times.append(time.perf_counter() - start)
    hlo = loop.as_text()
    return {
        "us_per_layer": round(float(np.median(times)) / STEPS / LAYERS * 1e6, 2),
        "all_reduces": len(re.findall(r" all-reduce(?:-start)?\(", hlo)),
        "all_gathers": len(re.findall(r" all-gather(?:-start)?\(", hlo)),
        "reduce_scatters": len(re.findall(r" reduce-scatter(?:-start)?\(", hlo)),
        "calls": hlo.count('custom_call_target="oneshot_all_reduce'),
        "ranks": ranks,
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "platform": jax.devices()[0].client.platform_version.replace("\n", " "),
    }


def main() -> None:
    """Runs all arms in turns, or as one of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--arms", nargs="+", choices=bench.ARMS, default=list(bench.ARMS))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--measure", choices=PROGRAMS, help="as one arm")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.batch)))
        return
    with tempfile.TemporaryDirectory(prefix="oneshot-bench-") as autotuned:
        for number in range(arguments.rounds):
            for program in arguments.programs:
                for arm in arguments.arms:
                    command = [sys.executable, __file__, "--measure", program]
                    command += ["--batch", str(arguments.batch)]
                    done = subprocess.run(
                        command,
                        env=bench.environment(arm, autotuned),
                        capture_output=True,
                        text=True,
                        check=False,
                    )
                    # An arm may be more than its NCCL can do.
                    sample = (
                        json.loads(done.stdout.splitlines()[-1])
                        if done.returncode == 0
                        else {"failed": done.stderr.splitlines()[-1:]}
                    )
                    line = {"round": number, "program": program, "arm": arm, **sample}
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
