# SPDX-License-Identifier: Apache-2.0
"""Norms whose gain or residual is sharded over the tensor axis, with and without Oneshot.

The default sharding rules of MaxText, Tunix and others make such programs. Each arm runs in one
process of its own, which is this file as a script.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulation import environment
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

ROWS, HIDDEN, MLP = 4, 256, 512
# Both run in bf16 and round at the same places, but add in another order.
TOLERANCE = 3 * 2**-8
Step = Callable[..., tuple[jax.Array, ...]]


def rms_norm(h: jax.Array, gain: jax.Array) -> jax.Array:
    wide = h.astype(jnp.float32)
    scale = lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + 1e-5)
    return (wide * scale).astype(h.dtype) * gain


def layer_norm(h: jax.Array, gain: jax.Array) -> jax.Array:
    wide = h.astype(jnp.float32)
    centred = wide - jnp.mean(wide, -1, keepdims=True)
    scale = lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + 1e-5)
    return (centred * scale).astype(h.dtype) * gain + gain


def one_plus(h: jax.Array, gain: jax.Array) -> jax.Array:
    return rms_norm(h, 1 + gain)


def programs(mesh: Mesh) -> dict[str, Step]:
    """By name: (x, w, h, gains, (up, down)) -> outputs, each with two wide all-reduces."""

    def put(value: jax.Array, *axes: str | None) -> jax.Array:
        return lax.with_sharding_constraint(value, NamedSharding(mesh, P(*axes)))

    def block(norm: Callable, stream: tuple[str | None, ...]) -> Step:
        def step(x, w, h, gains, mlp):
            h = put(h + put(x @ w), *stream)
            y = jax.nn.silu(norm(h, gains[0]) @ mlp[0])
            h = put(h + put(y @ mlp[1]), *stream)
            return h, norm(h, gains[1]) @ mlp[0]

        return step

    def post_norm(x, w, h, gains, mlp):
        h = h + rms_norm(put(x @ w), gains[0])
        y = jax.nn.silu(rms_norm(h, gains[1]) @ mlp[0])
        h = h + rms_norm(put(y @ mlp[1]), gains[0])
        return h, rms_norm(h, gains[1]) @ mlp[0]

    return {
        "rms_norm": block(rms_norm, ()),
        "one_plus_gain": block(one_plus, ()),
        "layer_norm": block(layer_norm, ()),
        "post_norm": post_norm,
        "stream_by_columns": block(rms_norm, (None, "tp")),
        "layer_norm_of_stream_by_columns": block(layer_norm, (None, "tp")),
    }


NAMES = list(programs(Mesh(np.array(jax.devices("cpu")[:1]), ("tp",))))


def compute(folder: Path) -> None:
    """Runs all programs on a mesh of two axes and of one; writes outputs and collectives."""
    found = {}
    for shape, axes in (((2, 4), ("dp", "tp")), ((8,), ("tp",))):
        devices = np.array(jax.devices()).reshape(shape)
        mesh = Mesh(devices, axes, axis_types=(AxisType.Auto,) * len(axes))
        rng = np.random.default_rng(0)

        def array(shape: tuple[int, ...], *spec: str | None, mesh=mesh, rng=rng) -> jax.Array:
            value = jnp.asarray(rng.standard_normal(shape) / 2, jnp.bfloat16)
            return jax.device_put(value, NamedSharding(mesh, P(*spec)))

        for name, program in programs(mesh).items():
            stream = (None, "tp") if "columns" in name else ()
            arguments = (
                array((ROWS, HIDDEN), None, "tp"),
                array((HIDDEN, HIDDEN), "tp", None),
                array((ROWS, HIDDEN), *stream),
                [array((HIDDEN,), "tp"), array((HIDDEN,), "tp")],
                [array((HIDDEN, MLP), None, "tp"), array((MLP, HIDDEN), "tp", None)],
            )
            compiled = jax.jit(program).lower(*arguments).compile()
            key = f"{name}-{len(axes)}"
            outputs = [np.asarray(o, np.float32) for o in compiled(*arguments)]
            np.savez(folder / f"{key}.npz", *outputs)
            hlo = compiled.as_text()
            found[key] = {
                what: hlo.count(f" {what}(") for what in ("all-reduce", "all-gather", "custom-call")
            }
    (folder / "collectives.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Where outputs of stock XLA and of Oneshot are."""
    folders = []
    for variables in ({}, {"ONESHOT": "1"}):
        folder = tmp_path_factory.mktemp("arm")
        command = [sys.executable, __file__, str(folder)]
        subprocess.run(command, env=environment(**variables), check=True)
        folders.append(folder)
    return folders[0], folders[1]


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_one_call_for_each_norm(arms: tuple[Path, Path], name: str, axes: int) -> None:
    stock, ours = (
        json.loads((folder / "collectives.json").read_text())[f"{name}-{axes}"] for folder in arms
    )
    assert stock["all-reduce"] >= 4
    assert ours["all-reduce"] == 0
    assert ours["custom-call"] == 2
    gathers = 3 if "columns" in name else 2  # of the gains, and of the stream at its start
    assert ours["all-gather"] == gathers


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_outputs(arms: tuple[Path, Path], name: str, axes: int) -> None:
    stock, ours = (np.load(folder / f"{name}-{axes}.npz") for folder in arms)
    for key in stock:
        largest = np.abs(stock[key]).max()
        assert largest > 0
        np.testing.assert_allclose(ours[key], stock[key], rtol=0, atol=TOLERANCE * largest)


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
