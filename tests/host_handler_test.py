# SPDX-License-Identifier: Apache-2.0
"""The CPU handler, called directly through JAX's FFI.

Needs liboneshot_host.so; its path is taken from the environment variable
ONESHOT_HOST_LIBRARY or from the installed package.
"""

import ctypes
import functools
import importlib.util
import math
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


def _rounded(dtype: str) -> str:
    """The suffix of an operation whose result has this type."""
    return "" if dtype == "f32" else f".{dtype}"


def _sum(dtype: str = "f32") -> str:
    """A plain all-reduce."""
    return f"x {dtype}; v0 = sum{_rounded(dtype)}; out0 v0 {dtype}"


def _attributes(hidden: int, devices: int, group: int, program: str, /, **changes):
    """Attributes of an all-reduce over consecutive groups."""
    values = {
        "abi": np.int64(2),
        "group_mode": "flattened_id",
        "group_size": np.int64(group),
        "hidden": np.int64(hidden),
        "num_partitions": np.int64(devices),
        "program": program,
        "replica_groups": np.arange(devices, dtype=np.int64),
        "site": "test/psum",
    }
    values.update(changes)
    return {name: value for name, value in values.items() if value is not None}


def _run(x, operands, results, attributes, loop: int = 0):
    """Runs the call on as many devices as `x` has leading entries.

    `x` is sharded over its first axis, the other operands are replicated; the
    results are returned with one leading entry for every device.
    """
    devices = x.shape[0]
    mesh = Mesh(jax.devices()[:devices], ("d",))
    rows = x[0].size // max(1, int(attributes["hidden"]))
    attributes = {"rows": np.int64(rows)} | attributes

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
    attributes = _attributes(7, devices, group_size, _sum(dtype))
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
    attributes = _attributes(1, 8, 4, _sum(), replica_groups=groups)
    (got,) = _run(x, [], [_shape((1, 1), "f32")], attributes)
    np.testing.assert_array_equal(got.ravel(), [12, 16] * 4)


@pytest.mark.parametrize("out", list(DTYPES))
@pytest.mark.parametrize("wire", list(DTYPES))
def test_bias_residual_and_rms_norm(wire, out):
    rng = np.random.default_rng(1)
    rows, hidden = 3, 40
    x = _random(rng, (4, rows, hidden), wire)
    bias = _random(rng, (hidden,), "f32")
    residual = _random(rng, (rows, hidden), "bf16")
    gain = _random(rng, (hidden,), "f16")
    program = (
        f"x {wire}; in0 column f32; in1 element bf16; in2 column f16; "
        f"v0 = sum{_rounded(wire)}; v1 = in0; v2 = add v0 v1; v3 = in1; v4 = add.bf16 v2 v3; "
        f"v5 = multiply v4 v4; v6 = reduce_sum v5; v7 = constant {(1 / 64).hex()}; "
        f"v8 = multiply v6 v7; v9 = constant {float(np.float32(1e-6)).hex()}; v10 = add v8 v9; "
        f"v11 = rsqrt v10; v12 = multiply.bf16 v4 v11; v13 = in2; v14 = multiply v12 v13; "
        f"out0 v4 {out}; out1 v14 {out}"
    )
    got_sum, got_norm = _run(
        x,
        [bias, residual, gain],
        [_shape((rows, hidden), out)] * 2,
        _attributes(hidden, 4, 4, program),
    )

    h = x[0].astype(np.float32)
    for rank in range(1, 4):
        h = h + x[rank].astype(np.float32)
    h = h.astype(DTYPES[wire]).astype(np.float32)
    h = (h + bias) + residual.astype(np.float32)
    h = h.astype(DTYPES["bf16"]).astype(np.float32)
    wide = h.astype(np.float64)
    norm = wide / np.sqrt((wide**2).sum(-1, keepdims=True) / 64 + 1e-6) * gain.astype(np.float64)
    for rank in range(4):
        np.testing.assert_array_equal(got_sum[rank], h.astype(DTYPES[out]))
        np.testing.assert_array_equal(got_norm[rank], got_norm[0])
        tolerance = TOLERANCE["bf16"] + TOLERANCE[out]
        np.testing.assert_allclose(got_norm[rank].astype(np.float64), norm, rtol=tolerance)


def test_layer_norm_with_its_statistics():
    rng = np.random.default_rng(2)
    rows, hidden = 5, 64
    x = _random(rng, (2, rows, hidden), "f32") + np.float32(3)
    gain, offset = (_random(rng, (hidden,), "f32") for _ in range(2))
    program = (
        "x f32; in0 column f32; in1 column f32; v0 = sum; v1 = reduce_sum v0; "
        "v2 = constant 0x1p-6; v3 = multiply v1 v2; v4 = subtract v0 v3; v5 = multiply v4 v4; "
        "v6 = reduce_sum v5; v7 = multiply v6 v2; v8 = rsqrt v7; v9 = multiply v4 v8; v10 = in0; "
        "v11 = multiply v9 v10; v12 = in1; v13 = add v11 v12; "
        "out0 v13 f32; out1 v3 f32; out2 v8 bf16"
    )
    norm, mean, scale = _run(
        x,
        [gain, offset],
        [_shape((rows, hidden), "f32"), _shape((rows, 1), "f32"), _shape((rows,), "bf16")],
        _attributes(hidden, 2, 2, program),
    )
    h = x.astype(np.float64).sum(0)
    want_scale = 1 / h.std(-1)
    want = (h - h.mean(-1, keepdims=True)) * want_scale[:, None] * gain + offset
    for rank in range(2):
        np.testing.assert_allclose(norm[rank], want, atol=5e-6)
        np.testing.assert_allclose(mean[rank, :, 0], h.mean(-1), rtol=1e-6)
        np.testing.assert_allclose(scale[rank].astype(np.float64), want_scale, rtol=2**-8)


def test_operand_of_every_extent():
    rows, hidden = 3, 4
    element = np.arange(12, dtype=np.float32).reshape(3, 4)
    row = np.arange(3, dtype=np.float32) * 100
    column = np.arange(4, dtype=np.float32) * 1000
    scalar = np.float32(0.5)
    program = (
        "x f32; in0 element f32; in1 row f32; in2 column f32; in3 scalar f32; v0 = sum; v1 = in0; "
        "v2 = in1; v3 = in2; v4 = in3; v5 = add v1 v2; v6 = add v3 v4; v7 = add v5 v6; "
        "v8 = add v0 v7; v9 = multiply v2 v4; out0 v8 f32; out1 v9 f32"
    )
    got, got_row = _run(
        np.zeros((2, rows, hidden), np.float32),
        [element, row[:, None], column, scalar],
        [_shape((rows, hidden), "f32"), _shape((rows,), "f32")],
        _attributes(hidden, 2, 2, program),
    )
    for rank in range(2):
        np.testing.assert_array_equal(got[rank], element + row[:, None] + column + scalar)
        np.testing.assert_array_equal(got_row[rank], row * scalar)


@pytest.mark.parametrize("index,chosen", [(-(2**31), 0), (-1, 0), (1, 1), (2, 2), (2**31 - 1, 2)])
def test_slice_of_an_operand(index, chosen):
    stacked = np.arange(12, dtype=np.float16).reshape(3, 4)
    other = np.arange(2, dtype=np.float32) * 100
    program = (
        "x f32; in0 column f16 slice 3 at i1; in1 scalar f32 slice 2 at i0; v0 = sum; v1 = in0; "
        "v2 = in1; v3 = add v0 v1; v4 = add v3 v2; out0 v4 f32"
    )
    (got,) = _run(
        np.zeros((2, 2, 4), np.float32),
        [stacked, other, np.int32(1), np.int32(index)],
        [_shape((2, 4), "f32")],
        _attributes(4, 2, 2, program),
    )
    np.testing.assert_array_equal(
        got, np.broadcast_to(stacked[chosen] + np.float32(100), got.shape)
    )


# Neither these nor what the operations make of them is subnormal: whether XLA
# flushes those to zero is its own affair.
_FINITE = [0, -0.0, 0.3, -0.3, 0.5, -0.5, 1, -1, 1.5, 2.5, -2.5, 7, 30, -60, 1e-3, 1e30]
SPECIAL = np.array([*_FINITE, np.inf, -np.inf, np.nan], np.float32)


def _maximum(a, b):
    return np.where(a == b, np.where(np.signbit(a), b, a), np.maximum(a, b))


def _minimum(a, b):
    return np.where(a == b, np.where(np.signbit(a), a, b), np.minimum(a, b))


ONE = {
    "abs": np.abs,
    "cbrt": np.cbrt,
    "ceil": np.ceil,
    "convert": lambda a: a,
    "cos": np.cos,
    "erf": np.vectorize(math.erf),
    "exp": np.exp,
    "expm1": np.expm1,
    "floor": np.floor,
    "is_finite": np.isfinite,
    "log": np.log,
    "log1p": np.log1p,
    "logistic": lambda a: 1 / (1 + np.exp(-a)),
    "negate": np.negative,
    "round_nearest_afz": lambda a: np.trunc(a + np.copysign(0.5, a)),
    "round_nearest_even": np.rint,
    "rsqrt": lambda a: 1 / np.sqrt(a),
    "sign": lambda a: np.where(a == 0, a, np.sign(a)),
    "sin": np.sin,
    "sqrt": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
}
TWO = {
    "add": np.add,
    "atan2": np.arctan2,
    "divide": np.divide,
    "eq": np.equal,
    "ge": np.greater_equal,
    "gt": np.greater,
    "le": np.less_equal,
    "lt": np.less,
    "maximum": _maximum,
    "minimum": _minimum,
    "multiply": np.multiply,
    "ne": np.not_equal,
    "power": np.power,
    "remainder": np.fmod,
    "subtract": np.subtract,
}
LOGIC = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}
PREDICATES = {"is_finite", "eq", "ge", "gt", "le", "lt", "ne"}


def _evaluate(first, others, body: str, result: str):
    """What the program makes of a sum that is `first` and of element operands v1, v2, ..."""
    x = np.stack([first, np.full_like(first, -0.0)])[:, None, :]
    declared = "".join(f"in{i} element f32; " for i in range(len(others)))
    loaded = "".join(f"v{i + 1} = in{i}; " for i in range(len(others)))
    program = f"x f32; {declared}v0 = sum; {loaded}{body}; out0 {result} f32"
    (got,) = _run(
        x, others, [_shape((1, first.size), "f32")], _attributes(first.size, 2, 2, program)
    )
    return got[1, 0]


def _assert_close(got, operation, *inputs):
    """Compares with `operation` in float64, zeros with their signs."""
    with np.errstate(all="ignore"):
        want = operation(*[np.asarray(v, np.float64) for v in inputs]).astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=6e-7)
    zero = want == 0
    np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(want[zero]))


@pytest.mark.parametrize("op", list(ONE))
def test_operation_of_one(op):
    to_number = "; v2 = convert v1" if op in PREDICATES else ""
    result = "v2" if op in PREDICATES else "v1"
    _assert_close(_evaluate(SPECIAL, [], f"v1 = {op} v0{to_number}", result), ONE[op], SPECIAL)


@pytest.mark.parametrize("op", list(TWO))
def test_operation_of_two(op):
    a, b = (v.ravel() for v in np.meshgrid(SPECIAL, SPECIAL))
    to_number = "; v3 = convert v2" if op in PREDICATES else ""
    result = "v3" if op in PREDICATES else "v2"
    _assert_close(_evaluate(a, [b], f"v2 = {op} v0 v1{to_number}", result), TWO[op], a, b)


@pytest.mark.parametrize("op", [*LOGIC, "not"])
def test_logic(op):
    a, b = np.float32([0, 0, 1, 1]), np.float32([0, 1, 0, 1])
    compare = "v2 = constant 0x1p-1; v3 = gt v0 v2; v4 = gt v1 v2; "
    inputs = "v3" if op == "not" else "v3 v4"
    got = _evaluate(a, [b], f"{compare}v5 = {op} {inputs}; v6 = convert v5", "v6")
    want = np.logical_not(a) if op == "not" else LOGIC[op](a, b)
    np.testing.assert_array_equal(got, want)


def test_operations_of_three():
    a, b, c = (v.ravel() for v in np.meshgrid(SPECIAL, SPECIAL, SPECIAL))
    _assert_close(
        _evaluate(a, [b, c], "v3 = clamp v0 v1 v2", "v3"),
        lambda low, value, high: _minimum(_maximum(low, value), high),
        a,
        b,
        c,
    )
    select = "v3 = constant 0x1p+0; v4 = lt v0 v3; v5 = select v4 v1 v2"
    _assert_close(
        _evaluate(a, [b, c], select, "v5"), lambda a, b, c: np.where(a < 1, b, c), a, b, c
    )


@pytest.mark.parametrize(
    "op,operation", [("sum", np.sum), ("max", np.max), ("min", np.min)], ids=lambda p: str(p)[:3]
)
def test_reduction(op, operation):
    x = _random(np.random.default_rng(3), (2, 4, 33), "f32")
    x[0, 1, 5] = np.nan
    x[0, 2, 6] = np.inf
    program = f"x f32; v0 = sum; v1 = reduce_{op} v0; out0 v1 f32"
    (got,) = _run(x, [], [_shape((4,), "f32")], _attributes(33, 2, 2, program))
    want = operation((x[0] + x[1]).astype(np.float64), axis=-1)
    np.testing.assert_allclose(got, np.stack([want, want]), rtol=6e-7)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_operation_is_rounded_to_its_type(dtype):
    a, b = (_random(np.random.default_rng(seed), (200,), "f32") for seed in (4, 5))
    body = f"v2 = multiply{_rounded(dtype)} v0 v1; v3 = subtract v2 v0"
    rounded = (a * b).astype(DTYPES[dtype]).astype(np.float32)
    np.testing.assert_array_equal(_evaluate(a, [b], body, "v3"), rounded - a)


def test_special_values_pass():
    special = np.array([-0.0, np.inf, -np.inf, np.nan, 3e38], np.float32)
    x = np.stack([special, special])[:, None, :]
    (got,) = _run(x, [], [_shape((1, 5), "f32")], _attributes(5, 2, 2, _sum()))
    want = [-0.0, np.inf, -np.inf, np.nan, np.inf]
    np.testing.assert_array_equal(got[0, 0], want)
    assert np.signbit(got[0, 0, 0]), "-0 + -0 is -0"
    np.testing.assert_array_equal(got[0].view(np.uint32), got[1].view(np.uint32))


def test_call_in_a_loop_and_again():
    x = np.ones((8, 2, 3), np.float32)
    attributes = _attributes(3, 8, 2, _sum())
    for _ in range(20):
        (got,) = _run(x, [], [_shape((2, 3), "f32")], attributes, loop=10)
        np.testing.assert_array_equal(got, np.full_like(x, 2.0**10))


def _error(operands=(), results=None, **changes) -> str:
    x = np.ones((2, 3, 4), np.float32)
    attributes = _attributes(4, 2, 2, _sum(), **changes)
    with pytest.raises(Exception) as info:
        _run(x, list(operands), results or [_shape((3, 4), "f32")], attributes)
    message = str(info.value)
    assert "oneshot_all_reduce (test/psum): " in message, message
    return message


@pytest.mark.parametrize(
    "changes,expected",
    [
        ({"abi": np.int64(1)}, "attribute 'abi': expected 2"),
        ({"abi": None}, "attribute 'abi' is missing"),
        ({"hidden": np.int64(0)}, "attribute 'hidden': expected 1 to 16777216, got 0"),
        ({"hidden": np.int32(4)}, "attribute 'hidden': Wrong scalar data type"),
        ({"rows": np.int64(-1)}, "attribute 'rows': expected at least 0"),
        ({"rows": np.int64(2**62)}, "attribute 'rows': expected at least 0 and no more"),
        ({"program": None}, "attribute 'program' is missing"),
        ({"program": np.int64(1)}, "attribute 'program': Wrong"),
        ({"program": "x f32; v0 = sum"}, "attribute 'program': no results"),
        (
            {"program": "x f32; v0 = sum; v1 = sort v0; out0 v1 f32"},
            "attribute 'program': 'v1 = sort v0': unknown operation 'sort'",
        ),
        (
            {
                "program": "x bf16; v0 = sum; v1 = reduce_sum v0; out0 v1 f32",
                "hidden": np.int64(2**15 + 1),
            },
            "attribute 'hidden': expected at most 32768 because rows are reduced, got 32769",
        ),
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
    add = "v0 = sum; v1 = in0; v2 = add v0 v1; out0 v2 f32"
    bias = {"program": f"x f32; in0 column f32; {add}"}
    rows = {"program": f"x f32; in0 row f32; {add}"}
    scalar = {"program": f"x f32; in0 scalar f32; {add}"}
    assert "expected 3 operands, got 4" in _error([row])
    assert "expected 4 operands, got 3" in _error(**bias)
    assert "in0: expected 4 elements, got 5" in _error([np.ones(5, np.float32)], **bias)
    assert "in0: expected 3 elements, got 4" in _error([row], **rows)
    assert "in0: expected 1 elements, got 4" in _error([row], **scalar)
    assert "in0: expected F32, got S32" in _error([row.astype(np.int32)], **bias)
    assert "x: expected BF16, got F32" in _error(program=_sum("bf16"))
    assert "x: expected 10 elements, got 12" in _error(hidden=np.int64(5))
    assert "x: expected 16 elements, got 12" in _error(rows=np.int64(4))
    assert "expected 1 results, got 2" in _error(results=[_shape((3, 4), "f32")] * 2)
    assert "out0: expected 12 elements, got 15" in _error(results=[_shape((3, 5), "f32")])
    assert "out0: expected F32, got BF16" in _error(results=[_shape((3, 4), "bf16")])
    mean = "x f32; v0 = sum; v1 = reduce_sum v0; out0 v1 f32"
    assert "out0: expected 3 elements, got 12" in _error(program=mean)


def test_bad_slices():
    def sliced(slices):
        return (
            f"x f32; in0 column f32 slice {slices} at i0; v0 = sum; v1 = in0; v2 = add v0 v1; "
            "out0 v2 f32"
        )

    stacked = np.ones((3, 4), np.float32)
    index = np.int32(0)
    expected = "in0: expected {} slices of 4 elements, got 12 elements"
    for slices in (2, 4, 2**30, 2**59):
        assert expected.format(slices) in _error([stacked, index], program=sliced(slices))
    assert "i0: expected S32, got F32" in _error([stacked, np.float32(0)], program=sliced(3))
    pair = np.zeros(2, np.int32)
    assert "i0: expected 1 elements, got 2" in _error([stacked, pair], program=sliced(3))
    assert "expected 5 operands, got 4" in _error([stacked], program=sliced(3))


def test_device_outside_the_groups():
    groups = np.array([4, 5], np.int64)
    assert "is not in any of the replica groups" in _error(replica_groups=groups)
