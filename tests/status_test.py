# SPDX-License-Identifier: Apache-2.0
"""`oneshot.status`, and what is said of programs from JAX's compilation cache."""

import dataclasses
import json
from pathlib import Path

import pytest
from oneshot import cached, report
from program import SHOW, run_code

# A fused all-reduce, a bare one, and one that is no sum.
PROGRAM = """
mesh = jax.sharding.Mesh(jax.devices(), ("a",))
def three(x):
    with jax.named_scope("mlp"):
        return lax.pmax(lax.psum(jax.numpy.sort(lax.psum(x, "a")), "a") + x, "a")
f = jax.jit(jax.shard_map(three, mesh=mesh, in_specs=P("a"), out_specs=P("a"), check_vma=False))
x = np.arange(16, dtype=np.float32)
assert np.isfinite(f(x)).all()
"""
STATUS = "import oneshot; print(oneshot.status())"


@pytest.mark.parametrize(
    ("code", "variables", "lines"),
    [
        (STATUS, {}, ["off: ONESHOT is not set"]),
        (STATUS, {"ONESHOT": "0"}, ["off: ONESHOT=0"]),
        (STATUS, {"ONESHOT": "1"}, ["off: JAX has not been used yet"]),
        (f"{SHOW}; {STATUS}", {"ONESHOT": "1"}, ["fused", "cpu: on"]),
        (
            f"{SHOW}; {STATUS}",
            {"ONESHOT": "1", "ONESHOT_XLA_DIR": "/"},
            ["stock", "off: ONESHOT_XLA_DIR='/': no liboneshot_xla_framework.so"],
        ),
    ],
    ids=["unset", "0", "early", "on", "failed"],
)
def test_status_says_where_it_is_on(code: str, variables: dict[str, str], lines: list[str]) -> None:
    done = run_code(code, **variables)
    counts = int(lines[0] == "fused")
    assert len(done.out) == len(lines) + 2
    assert all(line.startswith(start) for line, start in zip(done.out, lines, strict=False))
    assert done.out[-2:] == [
        f"compiled: {counts} modules with all-reduces; {counts} fused with an epilogue; "
        "0 replaced, sum alone; 0 left",
        "from JAX's cache: 0 modules with all-reduces; 0 fused with an epilogue; "
        "0 replaced, sum alone; 0 left",
    ]


def test_programs_from_the_cache(tmp_path: Path) -> None:
    def run(dump: str) -> tuple[dict, list[str]]:
        done = run_code(
            f"{PROGRAM}\nimport dataclasses, json, oneshot\n"
            "print(json.dumps(dataclasses.asdict(oneshot.status())))\n",
            ONESHOT="1",
            ONESHOT_LOG="info",
            ONESHOT_DUMP_TO=tmp_path / dump,
            JAX_COMPILATION_CACHE_DIR=tmp_path / "cache",
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        )
        return json.loads(done.out[0]), done.lines

    none = {"modules": 0, "fused": 0, "alone": 0, "left": 0}
    three = {"modules": 1, "fused": 1, "alone": 1, "left": 1}
    cold, _ = run("cold")
    assert (cold["compiled"], cold["cached"]) == (three, none)
    warm, lines = run("warm")
    assert (warm["compiled"], warm["cached"]) == (none, three)
    assert lines[-1] == (
        "jit_three, from JAX's cache: 1 of 3 all-reduces fused with an epilogue (8 B); "
        "1 replaced, sum alone (8 B); 1 left"
    )

    (before,) = report.load(tmp_path / "cold")
    (module,) = report.load(tmp_path / "warm")
    assert str(module).startswith("jit_three (Host, compiled before): 1 of 3 ")
    assert not module.before.exists()
    assert "oneshot_all_reduce" in module.after.read_text()

    def facts(module: report.Module) -> set[tuple]:
        return {
            (site.custom_call, site.site, site.bytes, site.group_size, site.epilogue, site.program)
            for site in module.all_reduces
            if site.fired
        }

    assert facts(module) == facts(before)


def test_reads_what_xla_for_gpus_writes() -> None:
    text = (
        "  %oneshot_all_reduce_residual_rms_norm.3 = (bf16[4,8]{1,0}, bf16[4,8]{1,0}) custom-call("
        '%a, %b), custom_call_target="oneshot_all_reduce (needs ONESHOT=1)", '
        'metadata={op_name="jit(f)/mlp/dot_general"}, backend_config={abi = 2 : i64, '
        'group_size = 2 : i64, hidden = 8 : i64, program = "x bf16; v0 = sum", rows = 4 : i64}\n'
        "  %all-reduce-start = f32[4]{0} all-reduce-start(%c), replica_groups={{0,1}}\n"
        "  %done = f32[4]{0} all-reduce-done(%all-reduce-start)\n"
    )
    fused, left = cached.all_reduces(text)
    assert dataclasses.astuple(fused)[:9] == (
        *("oneshot_all_reduce_residual_rms_norm.3", "jit(f)/mlp/dot_general", "", "bf16[4,8]"),
        *(64, 2, True, "residual_rms_norm", ""),
    )
    assert (left.name, left.outcome) == ("all-reduce-start", report.Outcome.LEFT)
