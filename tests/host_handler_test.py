# SPDX-License-Identifier: Apache-2.0
"""The CPU handler, called directly through JAX's FFI.

Needs liboneshot_host.so; its path is taken from the environment variable
ONESHOT_HOST_LIBRARY or from the installed package.
"""

import ctypes
import functools
import importlib.util
import os
import pathlib

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

# Its own name: the package registers the product's name for the same handler.
TARGET = "oneshot_all_reduce_under_test"

DTYPES = {"f32": np.float32, "bf16": ml_dtypes.bfloat16, "f16": np.float16}
TOLERANCE = {"f32": 2e-6, "bf16": 2**-8, "f16": 2**-11}


def _library_path() -> pathlib.Path:
    if path := os.environ.get("ONESHOT_HOST_LIBRARY"):
        return pathlib.Path(path).resolve()
    spec = importlib.util.find_spec("oneshot")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("neither ONESHOT_HOST_LIBRARY nor the package is there")
    return pathlib.Path(spec.submodule_search_locations[0]) / "lib" / "liboneshot_host.so"


@functools.cache
def _register() -> None:
    library = ctypes.CDLL(str(_library_path()))
    handlers = {
        "instantiate": jax.ffi.pycapsule(library.OneshotHostInstantiate),
        "execute": jax.ffi.pycapsule(library.OneshotHostExecute),
    }
    jax.ffi.register_ffi_target(TARGET, handlers, platform="cpu")


@pytest.fixture(autouse=True)
def registered() -> None:
    """Registers the handler."""
    _register()


def _attributes(row: int, devices: int, group: int, **changes):
    """Attributes of a plain all-reduce over consecutive groups."""
    values = {
        "abi": np.int64(1),
        "addend_rounds": "",
        "addends": "",
        "emit": "sum",
        "epsilon": np.float32(0),
        "gain": False,
        "group_mode": "flattened_id",
        "group_size": np.int64(group),
        "hidden": np.int64(row),
        "mean_scale": np.float32(0),
        "norm": "none",
        "norm_round": "f32",
        "num_partitions": np.int64(devices),
        "replica_groups": np.arange(devices, dtype=np.int64),
        "site": "test/psum",
        "sum_round": "f32",
    }
    values.update(changes)
    return {name: value for name, value in values.items() if value is not None}


def _rms(hidden: int, epsilon: float = 1e-6, **changes):
    return {
        "emit": "norm",
        "norm": "rms",
        "epsilon": np.float32(epsilon),
        "mean_scale": np.float32(1 / hidden),
        **changes,
    }


def _run(x, operands, results, attributes, loop: int = 0):
    """Runs the call on as many devices as `x` has leading entries.

    `x` is sharded over its first axis, the other operands are replicated; the
    results are returned with one leading entry for every device.
    """
    devices = x.shape[0]
    mesh = Mesh(jax.devices()[:devices], ("d",))

    def body(x, *operands):
        def call(x):
            ids = [jnp.uint32(0), jax.lax.axis_index("d").astype(jnp.uint32)]
            return jax.ffi.ffi_call(TARGET, results)(x, *operands, *ids, **attributes)

        x = x[0]
        if loop:  # sum of sums: each iteration is one more meeting of all ranks
            return [jax.lax.fori_loop(0, loop, lambda _, x: call(x)[0], x)[None]]
        return [result[None] for result in call(x)]

    mapped = jax.shard_map(
        body,
        mesh=mesh,
        in_specs=(P("d"), *[P()] * len(operands)),
        out_specs=[P("d")] * len(results),
        check_vma=False,
    )
    return [np.asarray(r) for r in jax.jit(mapped)(x, *operands)]


def _random(rng, shape, dtype):
    return rng.standard_normal(shape).astype(DTYPES[dtype])


def _shape(shape, dtype):
    return jax.ShapeDtypeStruct(shape, DTYPES[dtype])


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("devices,group_size", [(2, 2), (3, 3), (8, 8), (8, 2), (6, 3)])
def test_sum_is_that_of_each_group_in_order(dtype, devices, group_size):
    x = _random(np.random.default_rng(0), (devices, 5, 7), dtype)
    attributes = _attributes(7, devices, group_size, sum_round=dtype)
    (got,) = _run(x, [], [_shape((5, 7), dtype)], attributes)
    for first in range(0, devices, group_size):
        want = x[first].astype(np.float32)
        for rank in range(first + 1, first + group_size):
            want = want + x[rank].astype(np.float32)
        for rank in range(first, first + group_size):
            np.testing.assert_array_equal(got[rank], want.astype(DTYPES[dtype]))


def test_groups_need_not_be_consecutive():
    x = np.arange(8, dtype=np.float32).reshape(8, 1, 1)
    groups = np.array([0, 2, 4, 6, 7, 5, 3, 1], np.int64)
    attributes = _attributes(1, 8, 4, replica_groups=groups)
    (got,) = _run(x, [], [_shape((1, 1), "f32")], attributes)
    np.testing.assert_array_equal(got.ravel(), [12, 16] * 4)


@pytest.mark.parametrize("order", ["bias,residual", "residual,bias"])
@pytest.mark.parametrize("out", list(DTYPES))
@pytest.mark.parametrize("wire", list(DTYPES))
def test_addends_norm_and_gain(wire, out, order):
    rng = np.random.default_rng(1)
    rows, hidden = 3, 40
    x = _random(rng, (4, rows, hidden), wire)
    bias = _random(rng, (hidden,), "f32")
    residual = _random(rng, (rows, hidden), "bf16")
    gain = _random(rng, (hidden,), "f16")
    attributes = _attributes(
        hidden,
        4,
        4,
        sum_round=wire,
        addends=order,
        addend_rounds="f32,bf16",
        gain=True,
        **_rms(hidden, emit="sum,norm", norm_round="bf16"),
    )
    got_sum, got_norm = _run(
        x, [bias, residual, gain], [_shape((rows, hidden), out)] * 2, attributes
    )

    h = x[0].astype(np.float32)
    for rank in range(1, 4):
        h = h + x[rank].astype(np.float32)
    h = h.astype(DTYPES[wire]).astype(np.float32)
    first, second = (bias, residual) if order == "bias,residual" else (residual, bias)
    h = (h + first.astype(np.float32)) + second.astype(np.float32)
    h = h.astype(DTYPES["bf16"]).astype(np.float32)
    wide = h.astype(np.float64)
    norm = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * gain.astype(np.float64)
    for rank in range(4):
        np.testing.assert_array_equal(got_sum[rank], h.astype(DTYPES[out]))
        np.testing.assert_array_equal(got_norm[rank], got_norm[0])
        tolerance = TOLERANCE["bf16"] + TOLERANCE[out]
        np.testing.assert_allclose(got_norm[rank].astype(np.float64), norm, rtol=tolerance)


def test_special_values_pass():
    special = np.array([-0.0, np.inf, -np.inf, np.nan, 3e38], np.float32)
    x = np.stack([special, special])[:, None, :]
    (got,) = _run(x, [], [_shape((1, 5), "f32")], _attributes(5, 2, 2))
    want = [-0.0, np.inf, -np.inf, np.nan, np.inf]
    np.testing.assert_array_equal(got[0, 0], want)
    assert np.signbit(got[0, 0, 0]), "-0 + -0 is -0"
    np.testing.assert_array_equal(got[0].view(np.uint32), got[1].view(np.uint32))


def test_call_in_a_loop_and_again():
    x = np.ones((8, 2, 3), np.float32)
    attributes = _attributes(3, 8, 2)
    for _ in range(20):
        (got,) = _run(x, [], [_shape((2, 3), "f32")], attributes, loop=10)
        np.testing.assert_array_equal(got, np.full_like(x, 2.0**10))


def _error(operands=(), results=None, x=None, **changes) -> str:
    if x is None:
        x = np.ones((2, 3, 4), np.float32)
    attributes = _attributes(4, 2, 2, **changes)
    with pytest.raises(Exception) as info:
        _run(x, list(operands), results or [_shape((3, 4), "f32")], attributes)
    message = str(info.value)
    assert "oneshot_all_reduce (test/psum): " in message, message
    return message


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"abi": np.int64(2)}, "attribute 'abi': expected 1"),
        ({"hidden": np.int64(0)}, "attribute 'hidden': expected at least 1, got 0"),
        ({"hidden": np.int32(4)}, "attribute 'hidden': Wrong scalar data type"),
        ({"sum_round": None}, "attribute 'sum_round' is missing"),
        ({"sum_round": "f64"}, "attribute 'sum_round': expected f32, bf16 or f16, got 'f64'"),
        ({"addends": "bias"}, "attribute 'addend_rounds': expected 1 items"),
        ({"addends": "gain", "addend_rounds": "f32"}, "attribute 'addends': expected '', 'bias'"),
        ({"addends": "bias,bias", "addend_rounds": "f32,f32"}, "attribute 'addends': expected"),
        ({"emit": "nothing"}, "attribute 'emit': expected 'sum', 'norm' or 'sum,norm'"),
        ({"emit": "norm"}, "attribute 'norm': expected 'rms' because a norm is emitted"),
        ({"norm": "rms"}, "attribute 'norm': expected 'none' because no norm is emitted"),
        ({"gain": True}, "attribute 'gain': expected false"),
        ({"epsilon": np.float32(-1)}, "attribute 'epsilon': expected a finite value >= 0"),
        ({"group_mode": "cross_replica"}, "attribute 'group_mode': expected 'flattened_id'"),
        ({"group_size": np.int64(9)}, "attribute 'group_size': expected 2 to 8, got 9"),
        (
            {"replica_groups": np.arange(3, dtype=np.int64)},
            "attribute 'replica_groups': expected groups of 2 ids, got 3 ids",
        ),
        (
            {"replica_groups": np.array([0, 0], np.int64)},
            "attribute 'replica_groups': expected distinct ids >= 0, got id 0",
        ),
        ({"num_partitions": np.int64(-1)}, "attribute 'num_partitions': expected at least 0"),
        ({"num_partitions": np.int64(0)}, "attribute 'num_partitions': expected at least 1"),
    ],
)
def test_bad_attribute(changes, expected):
    assert expected in _error(**changes)


def test_bad_buffers():
    row = np.ones((4,), np.float32)
    bias = {"addends": "bias", "addend_rounds": "f32"}
    assert "expected 3 operands, got 4" in _error([row])
    assert "expected 4 operands, got 3" in _error(**bias)
    assert "bias: expected 4 elements, got 5" in _error([np.ones(5, np.float32)], **bias)
    assert "bias: expected F32, BF16 or F16, got S32" in _error([row.astype(np.int32)], **bias)
    assert "expected 1 results, got 2" in _error(results=[_shape((3, 4), "f32")] * 2)
    assert "sum result: expected 12 elements, got 15" in _error(results=[_shape((3, 5), "f32")])
    assert "x: expected rows of 5 elements, got 12" in _error(hidden=np.int64(5))


def test_device_outside_the_groups():
    groups = np.array([4, 5], np.int64)
    assert "is not in any of the replica groups" in _error(replica_groups=groups)
