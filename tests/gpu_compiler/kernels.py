# SPDX-License-Identifier: Apache-2.0
"""How many kernels a layer of a decode step is, by XLA's compiler for GPUs, without a GPU.

  PYTHONPATH=bazel-bin/python/site:tests:.deps/xla_gpu .venv/bin/python -m gpu_compiler.kernels

prints a JSON object: the version of JAX, and for each program the number of kernels per layer
[with stock XLA, with Oneshot]. compare_versions.py makes docs/kernels_per_layer.md of it.

XLA chooses the tiles of products without measuring here, so a product that is split on a GPU may be
whole, or the other way round.
"""

import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from gpu_compiler.devices import RANKS, absent
from jax.sharding import NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from oneshot import hlo_text, hook
from oneshot.bench import models

LAYERS = 4
"""Of the programs of the benchmark's models."""

BATCH = 8

TABLE = Path(__file__).parents[2] / "docs" / "kernels_per_layer.md"
"""One line for each program and version."""

# What XLA launches something for: a kernel, or a copy by the driver.
_LAUNCHES = {
    "all-gather",
    "all-gather-start",
    "all-reduce",
    "all-reduce-start",
    "copy",
    "copy-start",
    "custom-call",
    "fusion",
    "reduce-scatter",
    "sort",
}


def shapes(tree: Any, shardings: Any) -> Any:
    """What stands for arrays on GPUs that are not there."""
    if isinstance(shardings, Sharding):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=shardings), tree
        )
    return jax.tree.map(shapes, tree, shardings)


def bench_step(model: str) -> jax.stages.Compiled:
    """Compiles a decode step of `LAYERS` layers of one of the benchmark's models."""
    config = models.MODELS[model]
    mesh = absent((min(RANKS, config.kv_heads),), ("tp",))

    def array(shape: tuple[int, ...], spec: P, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    layers = [
        {name: array(*parameter) for name, parameter in models.specs(config).items()}
        for _ in range(LAYERS)
    ]
    cache = array((BATCH, config.kv_heads, models.CACHE_LENGTH, config.head_size), P(None, "tp"))

    def step(layers, h, caches, position):
        return *models.step(config, layers, h, caches, position), position + 1

    return (
        jax.jit(step, donate_argnums=(1, 2, 3))
        .lower(
            layers,
            array((BATCH, config.hidden), P()),
            [(cache, cache)] * LAYERS,
            array((), P(), jnp.int32),
        )
        .compile()
    )


def kernels(compiled: jax.stages.Compiled, computation: str = "ENTRY") -> int:
    """Counts what is launched for one run of a computation of a program, without loops inside."""
    launched = [
        instruction
        for instruction in _computation(compiled.as_text(), computation).instructions.values()
        if instruction.opcode in _LAUNCHES
    ]
    return len(launched)


def per_layer(compiled: jax.stages.Compiled, *, scan: bool) -> float:
    """Kernels per layer: of the body of the only loop, or of an unrolled step of `LAYERS`."""
    if not scan:
        return kernels(compiled) / LAYERS
    (loop,) = (
        instruction
        for instruction in _computation(compiled.as_text(), "ENTRY").instructions.values()
        if instruction.opcode == "while"
    )
    body = next(
        part.removeprefix("body=").removeprefix("%")
        for part in loop.attributes.split(", ")
        if part.startswith("body=")
    )
    return float(kernels(compiled, body))


def _computation(text: str, name: str) -> hlo_text.Computation:
    computations = hlo_text.parse(text)
    if name == "ENTRY":
        entry = next(line for line in text.splitlines() if line.startswith("ENTRY "))
        name = entry.split()[1].removeprefix("%")
    return next(computation for computation in computations if computation.name == name)


def documented(name: str) -> tuple[float, float] | None:
    """Kernels per layer that `TABLE` has for this JAX: with stock XLA, with Oneshot."""
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[:2] == [name, jax.__version__]:
            return float(cells[2]), float(cells[3])
    return None


def programs() -> Iterator[tuple[str, Any, bool]]:
    """Name, what compiles it, and whether its layers are scanned."""
    for model in models.MODELS:
        yield model, lambda model=model: bench_step(model), False
    if importlib.util.find_spec("flax") is None:
        return
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    import families

    for run in families.RUNS:
        if run.scan and not run.prefill:
            mesh = absent((2, 4), ("data", "model"))
            yield run.name, lambda run=run, mesh=mesh: run.compile(mesh, jnp.bfloat16)[0], True


def main() -> None:
    """Counts them all."""
    from oneshot import config

    jax.config.update("jax_platforms", "cpu")
    os.environ["XLA_FLAGS"] = "--xla_gpu_autotune_level=0"
    jax.device_put = shapes
    hook._why_not_cuda = lambda: None
    hook.kernel_compiler = lambda: None
    counts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as dump:
        hook.enable(dataclasses.replace(config.read(), dump_to=Path(dump)))
        for name, compile_program, scan in programs():
            with hook.paused():
                stock = per_layer(compile_program(), scan=scan)
            counts[name] = [stock, per_layer(compile_program(), scan=scan)]
    json.dump({"jax": jax.__version__, "kernels": counts}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
