# SPDX-License-Identifier: Apache-2.0
"""`oneshot.explain`, `python -m oneshot explain`, and the page with the pictures."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from emulation import environment
from oneshot import __main__ as command_line
from oneshot import explanation, hook, page, report
from program import HLO

PROGRAM = """
import functools
import jax
import numpy as np
import oneshot
from jax import lax
from jax.sharding import PartitionSpec as P

mesh = jax.sharding.Mesh(jax.devices(), ("a",))
x = np.arange(32, dtype=np.float32).reshape(8, 4)

@jax.jit
@functools.partial(jax.shard_map, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
def program(x):
    return x + lax.psum(x, "a") + lax.pmax(x, "a")

def state():
    return "fused" if "oneshot_all_reduce" in program.lower(x).compile().as_text() else "stock"
"""
LINES = [
    "jit_program (Host): 1 of 2 all-reduces fused with an epilogue (16 B); 0 replaced, sum alone; "
    "1 left (16 B)",
    "fused: residual",
    "left alone: reduction is not a sum",
]


def run_code(code: str, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs `code` after PROGRAM, with XLA's usual flags for CPU."""
    environ = environment(**variables) | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", PROGRAM + code]
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done


# ---------------------------------------------------------------------------
# A function


@pytest.mark.parametrize("on", [False, True], ids=["off", "on"])
def test_explain_changes_nothing(on: bool) -> None:
    done = run_code(
        "first = program(x)\n"
        "for argument in (x, jax.ShapeDtypeStruct(x.shape, x.dtype)):\n"
        "    print(oneshot.explain(program, argument))\n"
        "print(state(), oneshot.is_enabled(), np.array_equal(first, program(x)))",
        ONESHOT=str(int(on)),
    )
    for line in LINES:
        assert done.stdout.count(line) == 2
    assert done.stdout.splitlines()[-1] == ("fused True True" if on else "stock False True")
    assert not done.stderr


def test_explain_says_where_a_match_ended(tmp_path: Path) -> None:
    done = run_code(
        "import jax.numpy as jnp\n"
        "@jax.jit\n"
        "@functools.partial(jax.shard_map, mesh=mesh, in_specs=P('a'), out_specs=P('a'))\n"
        "def sorts(x): return jnp.sort(jnp.tanh(lax.psum(x, 'a')))\n"
        "(site,) = oneshot.explain(sorts, x)\n"
        "print(site.epilogue, [stop.opcode for stop in site.stopped]); print(site)",
        ONESHOT="1",
        ONESHOT_DUMP_TO=tmp_path,
    )
    assert done.stdout.startswith("tanh ['sort']\n")
    assert re.search(r"stopped at sort \S+ \(<string>:\d+\): \w", done.stdout)
    assert not list(tmp_path.iterdir())  # what is explained is dumped nowhere else


def test_explain_of_what_jax_has_lowered_or_compiled() -> None:
    done = run_code(
        "lowered = program.lower(x)\n"
        "print(oneshot.explain(lowered)); print(oneshot.explain(lowered.compile()))\n"
        "html = oneshot.explain(lowered)._repr_html_(); print(html[:16], html.count('<svg'))\n",
        ONESHOT="1",
    )
    assert all(line in done.stdout for line in LINES)
    assert "jit_program (Host, compiled before): " in done.stdout
    # XLA for CPU has put the residual into a fusion; why it was so is not known any more.
    assert "replaced, sum alone" in done.stdout.partition("compiled before")[2]
    assert done.stdout.splitlines()[-1] == '<iframe srcdoc=" 0'  # it is escaped


def test_explain_before_anything_is_compiled() -> None:
    done = run_code(
        "found = oneshot.explain(program, x)\n"
        "print(len(found), [site.fired for site in found], '<svg' in found.html())\n"
        "print(oneshot.explain(jax.jit(lambda x: x + 1), x))\n"
        "oneshot.enable(); print(state())"
    )
    assert done.stdout.splitlines() == [
        "2 [True, False] True",
        "no all-reduce: nothing to fuse",
        "fused",
    ]


def test_explain_neither_reads_nor_writes_the_persistent_cache(tmp_path: Path) -> None:
    cache = {
        "JAX_COMPILATION_CACHE_DIR": tmp_path,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    for _ in range(2):
        done = run_code("program(x); print(oneshot.explain(program, x))", **cache)
        assert LINES[0] in done.stdout
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("jit_program")]) == 1


def test_explain_wants_a_jitted_function() -> None:
    with pytest.raises(TypeError, match=r"explain\(jax.jit\(f\), ...\)"):
        explanation.explain(len)


# ---------------------------------------------------------------------------
# A file


@pytest.fixture(scope="module")
def hlo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """HLO as a file."""
    path = tmp_path_factory.mktemp("hlo") / "m.hlo"
    path.write_text(HLO)
    return path


def test_explain_file(hlo: Path) -> None:
    found = explanation.explain_file(hlo)
    assert [(site.name, site.group_size, site.bytes) for site in found] == [
        ("all-reduce", 2, 128),
        ("all-reduce.1", 4, 128),
    ]
    assert all(site.fired for site in found)
    assert [module.platform for module in found.modules] == ["CUDA"]


def test_explain_file_behind_comments(hlo: Path, tmp_path: Path) -> None:
    commented = tmp_path / "commented.hlo"
    commented.write_text(f"// One.\n\n  // Two.\n{hlo.read_text()}")
    assert len(list(explanation.explain_file(commented))) == 2


def test_explain_what_is_rewritten_already(hlo: Path, tmp_path: Path) -> None:
    before = explanation.explain_file(hlo)
    rewritten = tmp_path / "m.after.hlo"
    rewritten.write_text(before.modules[0].after.read_text())
    found = explanation.explain_file(rewritten)
    assert (before.calls, found.calls, len(found)) == (0, 2, 0)
    assert str(found).startswith("2 calls of Oneshot are in it already: ")
    # Or in part.
    call = f's = f32[4,8]{{1,0}} custom-call(r), custom_call_target="{hook.TARGET}"'
    text = HLO.replace("  all-reduce.1 =", f"  {call}\n  all-reduce.1 =")
    rewritten.write_text(text.replace("all-reduce(r)", "all-reduce(s)"))
    assert str(explanation.explain_file(rewritten)).splitlines()[-1].startswith("1 call of Oneshot")


def test_command_line(hlo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html = tmp_path / "page.html"
    arguments = ["explain", str(hlo), "--platform", "Host", "--html", str(html)]
    assert command_line.main(arguments) == 0
    counts = (
        "1 of 2 all-reduces fused with an epilogue (128 B); 1 replaced, sum alone (128 B); 0 left"
    )
    assert capsys.readouterr().out.startswith(f"m (Host): {counts}\n  all-reduce  f32[4,8]  128 B ")
    assert "<svg" in html.read_text()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"garbage", "neither HLO text nor a serialized HLO module"),
        (b"", "neither HLO text nor a serialized HLO module"),
        (HLO[:600].encode(), "parse"),
    ],
    ids=["garbage", "empty", "cut"],
)
def test_bad_file(
    data: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "bad.hlo"
    path.write_bytes(data)
    assert command_line.main(["explain", str(path)]) == 2
    assert message in capsys.readouterr().err


def test_reader_that_goes_away(hlo: Path) -> None:
    command = [sys.executable, "-m", "oneshot", "explain", str(hlo)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0


def test_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["explain", "missing.hlo"]) == 2
    assert "missing.hlo" in capsys.readouterr().err


def test_missing_xla(hlo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation.libraries, "find_xla", lambda _: None)
    with pytest.raises(explanation.ExplainError, match="install-xla"):
        explanation.explain_file(hlo)


def test_loading_xla_leaves_the_environment(hlo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    explanation.explain_file(hlo)
    assert os.environ["TF_ENABLE_ONEDNN_OPTS"] == "0"
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    explanation.explain_file(hlo)
    assert "TF_ENABLE_ONEDNN_OPTS" not in os.environ


# ---------------------------------------------------------------------------
# The page


def boxes(svg: str) -> dict[str, str]:
    """Class by name of each instruction in a picture."""
    found = re.findall(r'<g class="box ([a-z]*)"><title>([\w.-]+) = ', svg)
    return {name: kind for kind, name in found}


class Page(HTMLParser):
    """Collects what a page refers to, and checks that its elements are closed."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.summaries = 0
        self.text: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remembers it."""
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.summaries += tag == "summary"
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Nothing to close."""

    def handle_endtag(self, tag: str) -> None:
        """Must be the last that was opened."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Remembers it."""
        self.text.append(data)


def test_page_of_a_deep_model(tmp_path: Path) -> None:
    layers = "".join(
        f"  ar.{i} = f32[4,8]{{1,0}} all-reduce(h.{i}), channel_id={i + 1}, "
        "replica_groups={{0,1}}, "
        'use_global_device_ids=true, to_apply=add, metadata={op_name="jit(m)/<layer>&psum"}\n'
        f"  h.{i + 1} = f32[4,8]{{1,0}} add(ar.{i}, h.{i})\n"
        for i in range(64)
    )
    layout = "entry_computation_layout={(f32[4,8]{1,0})->f32[4,8]{1,0}}"
    add = (
        "add {\n  a = f32[] parameter(0)\n  b = f32[] parameter(1)\n  ROOT c = f32[] add(a, b)\n}\n"
    )
    text = (
        f"HloModule m, {layout}, num_partitions=2\n\n{add}\nENTRY main {{\n"
        f"  h.0 = f32[4,8]{{1,0}} parameter(0)\n{layers}"
        "  ROOT out = f32[4,8]{1,0} negate(h.64)\n}\n"
    )
    path = tmp_path / "m.hlo"
    path.write_text(text)
    found = explanation.explain_file(path)
    assert len(found) == 64
    parsed = Page(found.html())
    assert parsed.links == []
    kinds = {(site.epilogue, site.program) for site in found}
    assert parsed.summaries == len(kinds) + sum(bool(program) for _, program in kinds)
    # The text has one entry for each of them, too, and names the first.
    assert len(str(found).splitlines()) < 10 * len(kinds)
    assert re.search(r"(?m)^  ar\.\d+ and \d\d alike  f32\[4,8\]  128 B over 2 ranks", str(found))
    assert "jit(m)/<layer>&psum" in parsed.text
    counts = "64 of 64 all-reduces fused with an epilogue (8 KiB); 0 replaced, sum alone; 0 left"
    assert counts in parsed.text
    assert len(found.html()) < 100_000
    before, after = re.findall(r"(?s)<svg role.*?</svg>", found.html())[:2]
    assert boxes(before)["ar.0"] == "region"
    assert boxes(before)["h.0"] == ""
    assert "region" in boxes(after).values()
    assert "ar.0" not in boxes(after)


def test_page_shows_stops_and_needs_no_hlo(tmp_path: Path) -> None:
    stop = report.Stop("cumsum.1", "reduce-window", "m.py:9", "unknown <operation>")
    site = report.AllReduce(
        *("ar", "", "m.py:8", "f32[4]", 16, 2, True, "none", "", "call"),
        program="x f32; v0 = sum; out0 v0 f32",
        stopped=(stop,),
    )
    module = report.Module("m", "CUDA", None, (site,), tmp_path / "1-0000.m.report.json")
    text = page.write([module])
    assert "unknown &lt;operation&gt;" in text
    assert "stopped at reduce-window cumsum.1 (m.py:9): unknown <operation>" in str(site)
    assert "v0 = sum\n" in text
    assert "<svg role" not in text
    Page(text)
