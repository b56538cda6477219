# SPDX-License-Identifier: Apache-2.0
"""The process of one arm. Reads requests from stdin, one JSON object a line, and answers likewise.

facts: says what it runs with.
prepare: compiles the program of a case and runs it once.
sample: measures it once.
profile: runs it once under JAX's profiler.
"""

import functools
import itertools
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import oneshot
from oneshot import bench, versions
from oneshot.bench import models, profile

STEPS = 64
"""Steps of a sample."""

OPS = 16
"""All-reduces in a row of the "op" case."""


class Program:
    """A compiled case.

    Attributes:
      layers: per step.
      compile_s: seconds that the compilation took.
      fused: replaced all-reduces and all of them, as text.
    """

    def __init__(
        self,
        layers: int,
        step: Callable[..., tuple[jax.Array, ...]],
        weights: object,
        state: tuple[jax.Array, ...],
        loop: str,
        *,
        caches: tuple[int, ...] = (),
    ):
        """Compiles and runs it.

        Args:
          layers: per step.
          step: from weights and the parts of a state to those of the next.
          weights: what steps only read.
          state: what the first step begins with.
          loop: see `oneshot.bench.Case`.
          caches: which parts of the state any server would donate.
        """

        def many(weights, *state):
            return lax.fori_loop(0, STEPS, lambda _, state: step(weights, *state), state)

        self.layers = layers
        self._weights = weights
        self._state = state
        self._calls = 1 if loop == "device" else STEPS
        self._waits = loop == "wait"
        shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
        # Usually all is donated: caches and everything else stay where they are.
        donated = caches if loop == "moving" else range(len(state))
        program = jax.jit(
            many if loop == "device" else step,
            donate_argnums=[1 + i for i in donated],
            out_shardings=shardings,
        )
        lowered = program.lower(weights, *state)
        start = time.perf_counter()
        self._compiled = lowered.compile()
        self.compile_s = time.perf_counter() - start
        text = self._compiled.as_text()
        calls = text.count('custom_call_target="oneshot_all_reduce')
        left = text.count(" all-reduce(") + text.count(" all-reduce-start(")
        self.fused = f"{calls} of {calls + left}"
        self.sample()

    def sample(self) -> float:
        """Microseconds per step."""
        state = jax.block_until_ready(jax.tree.map(jnp.copy, self._state))
        start = time.perf_counter()
        for _ in range(self._calls):
            state = self._compiled(self._weights, *state)
            if self._waits:
                jax.block_until_ready(state)
        jax.block_until_ready(state)
        return (time.perf_counter() - start) * 1e6 / STEPS

    def profile(self) -> dict[str, object]:
        """Where a step spends its time."""
        with tempfile.TemporaryDirectory() as directory:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0
            with jax.profiler.trace(directory, profiler_options=options):
                self.sample()
            return profile.summary(directory, STEPS)


@functools.cache
def maker(
    mesh: Mesh, shape: tuple[int, ...], spec: P, dtype: str = "bf16"
) -> Callable[..., jax.Array]:
    """A compiled function that makes arrays of a shape on the devices."""

    def make(seed, scale):
        return (jax.random.normal(jax.random.key(seed), shape) * scale).astype(bench.DTYPES[dtype])

    return jax.jit(make, out_shardings=NamedSharding(mesh, spec))


def decode(mesh: Mesh, model: str, layers: int, batch: int, loop: str) -> Program:
    """A decode step of a model."""
    config = models.MODELS[model]
    seeds = itertools.count()

    def filled(shape: tuple[int, ...], spec: P, scale: float) -> jax.Array:
        return maker(mesh, shape, spec)(next(seeds), scale)

    weights = [
        {
            name: filled(shape, spec, shape[0] ** -0.5)
            for name, (shape, spec) in models.specs(config).items()
        }
        for _ in range(layers)
    ]
    cache_shape = (batch, config.kv_heads, models.CACHE_LENGTH, config.head_size)
    caches = [
        tuple(filled(cache_shape, P(None, "tp"), 1.0) for _ in range(2)) for _ in range(layers)
    ]
    h = filled((batch, config.hidden), P(), 1.0)
    position = jax.device_put(np.int32(0), NamedSharding(mesh, P()))

    def step(weights, h, caches, position):
        h, caches = models.step(config, weights, h, caches, position)
        return h, caches, position + 1

    return Program(layers, step, weights, (h, caches, position), loop, caches=(1,))


def op(mesh: Mesh, batch: int, loop: str, hidden: int, dtype: str) -> Program:
    """All-reduce, residual and RMSNorm, again and again."""
    gain = maker(mesh, (hidden,), P(), dtype)(0, 1.0)
    x = maker(mesh, (mesh.size, batch, hidden), P("tp"), dtype)(1, 1.0)
    h = maker(mesh, (batch, hidden), P(), dtype)(2, 1.0)

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P("tp"), P()),
        out_specs=(P("tp"), P()),
        check_vma=False,
    )
    def blocks(gain, x, h):
        for _ in range(OPS):
            h = h + lax.psum(x[0], "tp")
            f = h.astype(jnp.float32)
            f = f * lax.rsqrt(jnp.mean(f * f, axis=-1, keepdims=True) + 1e-6)
            x = (f.astype(h.dtype) * gain)[None]
        return x, h

    return Program(OPS, blocks, gain, (x, h), loop)


def facts() -> dict[str, object]:
    """Versions, devices, and whether Oneshot is on."""
    platform = jax.default_backend()  # lets Oneshot look what there is
    status = oneshot.status()
    off = status.platforms.get({"gpu": "cuda"}.get(platform, platform))
    return {
        "versions": versions.facts(),
        "platform": platform,
        "devices": jax.device_count(),
        "enabled": status.enabled,
        "why_not": status.reason or off or "JAX has no CUDA plugin that Oneshot knows",
    }


def main() -> None:
    """Answers requests until stdin ends."""
    mesh = None
    program = None
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            if do == "facts":
                answer = facts()
            elif do == "sample":
                answer = {"us": program.sample()}
            elif do == "profile":
                answer = program.profile()
            else:
                program = None  # frees its memory first
                mesh = mesh or Mesh(np.array(jax.devices()[: int(sys.argv[1])]), ("tp",))
                case = bench.Case(**request)
                if case.model == "op":
                    program = op(mesh, case.batch, case.loop, case.hidden, case.dtype)
                else:
                    program = decode(mesh, case.model, case.layers, case.batch, case.loop)
                answer = {
                    "layers": program.layers,
                    "compile_s": program.compile_s,
                    "fused": program.fused,
                }
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
