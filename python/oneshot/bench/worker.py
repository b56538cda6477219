# SPDX-License-Identifier: Apache-2.0
"""The process of one arm. Reads requests from stdin, one JSON object a line, and answers likewise.

prepare: compiles the program of a case and runs it once.
sample: measures it once.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from oneshot.bench import models

STEPS = 64
"""Steps of a sample."""

OP_HIDDEN = 8192
OPS = 16
"""All-reduces in a row of the "op" case."""


class Program:
    """A compiled case.

    Attributes:
      layers: per step.
      fused: replaced all-reduces and all of them, as text.
    """

    def __init__(self, layers: int, sample: Callable[[], None], text: str):
        self.layers = layers
        self._sample = sample
        calls = text.count('custom_call_target="oneshot_all_reduce"')
        left = text.count(" all-reduce(") + text.count(" all-reduce-start(")
        self.fused = f"{calls} of {calls + left}"
        sample()

    def sample(self) -> float:
        """Microseconds per step."""
        start = time.perf_counter()
        self._sample()
        return (time.perf_counter() - start) * 1e6 / STEPS


def filled(mesh: Mesh, shape: tuple[int, ...], spec: P, scale: float) -> jax.Array:
    """A bf16 array made on the devices."""
    key = jax.random.key(len(shape) * 1000 + shape[-1])

    def make() -> jax.Array:
        return (jax.random.normal(key, shape) * scale).astype(jnp.bfloat16)

    return jax.jit(make, out_shardings=NamedSharding(mesh, spec))()


def decode(mesh: Mesh, model: str, batch: int, loop: str) -> Program:
    """A decode step of a model."""
    config = models.MODELS[model]
    layers = [
        {
            name: filled(mesh, shape, spec, shape[0] ** -0.5)
            for name, (shape, spec) in models.specs(config).items()
        }
        for _ in range(config.layers)
    ]
    cache_shape = (batch, config.kv_heads, models.CACHE_LENGTH, config.head_size)
    caches = [
        tuple(filled(mesh, cache_shape, P(None, "tp"), 1.0) for _ in range(2))
        for _ in range(config.layers)
    ]
    h = filled(mesh, (batch, config.hidden), P(), 1.0)

    if loop == "python":

        def one(layers, h, caches, position):
            out, caches = models.step(config, layers, h, caches, position)
            return lax.with_sharding_constraint(out, NamedSharding(mesh, P())), caches

        state = [caches]
        positions = [jnp.int32(position) for position in range(STEPS)]
        compiled = jax.jit(one, donate_argnums=2).lower(layers, h, caches, positions[0]).compile()

        def sample() -> None:
            out = h
            for position in positions:
                out, state[0] = compiled(layers, out, state[0], position)
            out.block_until_ready()

    else:

        def many(layers, h, caches):
            def body(position, carry):
                return models.step(config, layers, *carry, position)

            return lax.fori_loop(0, STEPS, body, (h, caches))[0]

        compiled = jax.jit(many).lower(layers, h, caches).compile()

        def sample() -> None:
            compiled(layers, h, caches).block_until_ready()

    return Program(config.layers, sample, compiled.as_text())


def op(mesh: Mesh, batch: int) -> Program:
    """All-reduce, residual and RMSNorm, again and again."""
    gain = filled(mesh, (OP_HIDDEN,), P(), 1.0)
    x = filled(mesh, (mesh.size, batch, OP_HIDDEN), P("tp"), 1.0)
    h = filled(mesh, (batch, OP_HIDDEN), P(), 1.0)

    def local(x, h, gain):
        def body(_, carry):
            x, h = carry
            for _ in range(OPS):
                h = h + lax.psum(x[0], "tp")
                f = h.astype(jnp.float32)
                f = f * lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + 1e-6)
                x = (f.astype(h.dtype) * gain)[None]
            return x, h

        return lax.fori_loop(0, STEPS, body, (x, h))[0]

    program = jax.shard_map(
        local, mesh=mesh, in_specs=(P("tp"), P(), P()), out_specs=P("tp"), check_vma=False
    )
    compiled = jax.jit(program).lower(x, h, gain).compile()

    def sample() -> None:
        compiled(x, h, gain).block_until_ready()

    return Program(OPS, sample, compiled.as_text())


def main() -> None:
    """Answers requests until stdin ends."""
    mesh = Mesh(np.array(jax.devices()[: int(sys.argv[1])]), ("tp",))
    program = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if request["do"] == "sample":
                answer = {"us": program.sample()}
            else:
                program = None  # frees its memory first
                batch, loop = int(request["batch"]), request["loop"]
                if request["model"] == "op":
                    program = op(mesh, batch)
                else:
                    program = decode(mesh, request["model"], batch, loop)
                answer = {"layers": program.layers, "fused": program.fused}
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
