# SPDX-License-Identifier: Apache-2.0
"""What ONESHOT_DUMP_TO leaves behind, and what reads it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulation import environment
from oneshot import __main__ as command_line
from oneshot import page, report

# A module with one fused all-reduce, one with a fused and a declined one, one with only a declined
# one, and one without any.
PROGRAM = """
import functools
import jax
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

mesh = jax.sharding.Mesh(jax.devices(), ("a",))
shard = functools.partial(jax.shard_map, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
x = np.ones((8, 4), np.float32)

@jax.jit
@shard
def fused(x):
    return x + lax.psum(x, "a")

@jax.jit
@shard
def both(x):
    return x + lax.psum(lax.pmax(x, "a") * x, "a")

@jax.jit
@shard
def declined(x):
    return lax.pmax(x, "a") * x

for f in (fused, both, declined, jax.jit(lambda x: x + 1)):
    f(x)
"""


def run(program: str, directory: Path) -> str:
    """Runs a program on eight emulated devices that dumps to `directory`; returns its stderr."""
    environ = environment(ONESHOT="1", ONESHOT_DUMP_TO=directory)
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dump of PROGRAM, in a directory that did not exist."""
    directory = tmp_path_factory.mktemp("run") / "new" / "dump"
    run(PROGRAM, directory)
    return directory


def test_files(dump: Path) -> None:
    suffixes: dict[str, set[str]] = {}
    for path in dump.iterdir():
        _, module, suffix = path.name.split(".", 2)
        suffixes.setdefault(module, set()).add(suffix)
    always = {"before.hlo", "report.json"}
    assert suffixes == {
        "jit_fused": always | {"after.hlo"},
        "jit_both": always | {"after.hlo"},
        "jit_declined": always,
    }


def test_reports(dump: Path) -> None:
    modules = report.load(dump)
    assert [module.module for module in modules] == ["jit_fused", "jit_both", "jit_declined"]
    assert [module.fired for module in modules] == [1, 1, 0]
    assert {module.platform for module in modules} == {"Host"}
    assert not any(module.declined_module for module in modules)

    (site,) = modules[0].all_reduces
    assert site.fired
    assert not site.reason
    assert site.epilogue == "residual"
    assert (site.shape, site.bytes, site.group_size) == ("f32[1,4]", 16, 8)
    assert site.site.startswith("jit(fused)/")
    # A `python -c` program has no file, but it has lines.
    line = PROGRAM.splitlines().index('    return x + lax.psum(x, "a")') + 1
    assert site.source.endswith(f":{line}")

    declined = [site for module in modules for site in module.all_reduces if not site.fired]
    assert [site.custom_call for site in declined] == ["", ""]
    assert all(site.reason for site in declined)


def test_hlo(dump: Path) -> None:
    for module in report.load(dump):
        before = module.before.read_text()
        assert before.count(" all-reduce(") == len(module.all_reduces)
        assert "oneshot_all_reduce" not in before
        if not module.fired:
            continue
        after = module.after.read_text()
        assert after.count('custom_call_target="oneshot_all_reduce') == module.fired
        for site in module.all_reduces:
            mentions = re.findall(rf"(?<![\w.-]){re.escape(site.name)}(?![\w.-])", after)
            if site.fired:
                assert f"{site.custom_call} = " in after
                assert not mentions
            else:
                assert len(mentions) > 1


def test_odd_names(tmp_path: Path) -> None:
    names = ["a/b", "../up", "..", "c:\\d", "'quo\"te'", "new\nline", "$(x) *", "ü€"]
    functions = f"""
for name in {names}:
    def f(x):
        return x + lax.psum(x, "a")
    f.__name__ = name
    jax.jit(shard(f))(x)
"""
    directory = tmp_path / "run" / "du mp"
    run(PROGRAM.partition("@jax.jit")[0] + functions, directory)
    modules = report.load(directory)
    sites = [module.all_reduces[0].site.split("/shard_map")[0] for module in modules]
    assert sites == [f"jit({name})" for name in names]
    assert all(module.before.is_file() and module.after.is_file() for module in modules)
    assert all(str(module).startswith(f"{module.module} (Host): 1 of 1 ") for module in modules)
    # Nothing has left the directory.
    assert list(tmp_path.iterdir()) == [directory.parent]
    assert list(directory.parent.iterdir()) == [directory]
    assert len(list(directory.iterdir())) == 3 * len(names)


def test_command_line(dump: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["report", str(dump)]) == 0
    out = capsys.readouterr().out
    for module in report.load(dump):
        assert str(module) in out
        for site in module.all_reduces:
            assert site.name in str(module)
            assert site.reason in str(module)
    assert out.splitlines()[-1] == (
        "3 modules with all-reduces; 2 of 4 all-reduces fused with an epilogue (32 B); "
        "0 replaced, sum alone; 2 left (32 B)"
    )


def site(name: str, epilogue: str = "residual", reason: str = "") -> report.AllReduce:
    """An all-reduce of 2 KiB between two ranks."""
    return report.AllReduce(
        name=name,
        site="jit(step)/dot_general",
        source="m.py:7",
        shape="f32[1,512]",
        bytes=2048,
        group_size=2,
        fired=not reason,
        epilogue=epilogue,
        reason=reason,
        custom_call="call",
        program="",
        stopped=(report.Stop("fusion.1", "fusion", "", "unknown"),) * (epilogue == "none"),
    )


def test_text_has_each_kind_once() -> None:
    sites = (site("a"), site("b", "none"), site("c"), site("d", "", "is empty"), site("e"))
    step = report.Module("jit_step", "CUDA", None, sites, Path())
    again = report.Module("jit_step", "CUDA", None, sites[2:] + sites[:2], Path())
    assert report.text([step, again, step]).splitlines() == [
        "jit_step (CUDA, 2 times): 3 of 5 all-reduces fused with an epilogue (6 KiB); "
        "1 replaced, sum alone (2 KiB); 1 left (2 KiB)",
        "  a and 2 alike  f32[1,512]  2 KiB over 2 ranks  fused: residual",
        "      jit(step)/dot_general  m.py:7",
        "  b  f32[1,512]  2 KiB over 2 ranks  replaced, sum alone",
        "      jit(step)/dot_general  m.py:7",
        "      stopped at fusion fusion.1: unknown",
        "  d  f32[1,512]  2 KiB over 2 ranks  left alone: is empty",
        "      jit(step)/dot_general  m.py:7",
        *str(again).splitlines(),
    ]


def test_bare_sums_on_cpu_hint_at_flags() -> None:
    sites = (site("a"), site("b", "none"))
    for platform, count in (("CUDA", 0), ("Host", 1)):
        module = report.Module("jit_step", platform, None, sites, Path("x.report.json"))
        assert str(module).count("with the XLA_FLAGS of docs/environment.md") == count
        assert page.write([module]).count("with the XLA_FLAGS of docs/environment.md") == count
    assert not report.Module("jit_step", "Host", None, sites[:1], Path()).hint


def test_empty_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report.load(tmp_path) == []
    assert command_line.main(["report", str(tmp_path)]) == 0
    assert "0 modules" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", json.dumps({"schema": 1}), json.dumps({"schema": 2, "module": "m"})],
)
def test_no_report(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "1-0000.m.report.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"m\.report\.json is no report"):
        report.load(tmp_path)
    assert command_line.main(["report", str(tmp_path)]) == 2
    assert path.name in capsys.readouterr().err


def test_dump_that_can_not_be_written(tmp_path: Path) -> None:
    # The directory goes after it was looked at, and a file has its name.
    directory = tmp_path / "dump"
    code = f"import pathlib\npathlib.Path({str(directory)!r}).rmdir()\n"
    code += f"pathlib.Path({str(directory)!r}).write_text('')\n"
    program = PROGRAM.replace("x = np.ones", f"{code}x = np.ones")
    assert "]: can't write" in run(program, directory)


def test_order(tmp_path: Path) -> None:
    names = ["9-0000.a", "9-9999.b", "9-10000.c", "10-0000.d", "10-0001.a"]
    for name in names:
        data = {"schema": 2, "module": name, "platform": "CUDA", "declined_module": None}
        (tmp_path / f"{name}.report.json").write_text(json.dumps(data | {"all_reduces": []}))
    assert [module.module for module in report.load(tmp_path)] == names


@pytest.mark.parametrize(
    ("kib", "ranks", "platform", "epilogue", "microseconds"),
    [
        (2, 2, "CUDA", "residual+rms_norm", "12"),
        (320, 2, "CUDA", "layer_norm", "10"),  # half-way between two that were measured
        (8192, 2, "CUDA", "rms_norm", "23"),
        (8193, 2, "CUDA", "rms_norm", None),
        (16, 4, "CUDA", "rms_norm", None),
        (16, 2, "Host", "rms_norm", None),
        (16, 2, "CUDA", "residual", None),
    ],
)
def test_expected_saving(
    kib: int, ranks: int, platform: str, epilogue: str, microseconds: str | None
) -> None:
    site = report.AllReduce(
        *("ar", "jit(step)/layer_3/mlp/dot", "", "", kib << 10, ranks, True, epilogue, "", "call"),
        program="",
        stopped=(),
    )
    found = report.Module("m", platform, None, (site,), Path()).expected_saving(site)
    assert found.startswith(f"about {microseconds} us") if microseconds else not found
    assert site.layer == "layer_3/mlp"


def test_no_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["report", str(tmp_path / "missing")]) == 2
    assert "missing" in capsys.readouterr().err
