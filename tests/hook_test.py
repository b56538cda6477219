# SPDX-License-Identifier: Apache-2.0
"""How Oneshot gets into an unmodified program, and how it stays out; each in a fresh process."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import process_group
import pytest
from emulation import XLA_FLAGS, environment
from oneshot import hook, libraries
from program import PROGRAM, SHOW, run, run_code

FUSED = (
    "jit_program: 1 of 1 all-reduces fused with an epilogue (16 B); 0 replaced, sum alone; 0 left"
)
"""What the log says of PROGRAM."""

BROKEN = "import os, jax\nfrom oneshot import hook, libraries\n"
"""What comes before something that breaks Oneshot."""

# ---------------------------------------------------------------------------
# The switch


def test_on_loads_xla_for_the_first_all_reduce() -> None:
    done = run_code(
        "jax.jit(lambda x: x + 1)(1); print(libraries()); print(compiled()); print(libraries())",
        ONESHOT="1",
    )
    assert done.out == [
        "['liboneshot_hook']",
        "fused",
        "['liboneshot_hook', 'liboneshot_xla_cc']",
    ]
    assert not done.lines


@pytest.mark.parametrize("variables", [{}, {"ONESHOT": "0"}], ids=["unset", "0"])
def test_off_loads_nothing(variables: dict[str, str]) -> None:
    done = run_code(
        "print(compiled(), libraries(), 'oneshot.hook' in sys.modules)\n"
        "from jax._src import cache_key; print(repr(cache_key.custom_hook()))",
        **variables,
    )
    assert done.out == ["stock [] False", "''"]
    assert not done.lines


def test_info_says_once_that_it_is_on_and_what_fired() -> None:
    done = run_code(SHOW, ONESHOT="1", ONESHOT_LOG="info")
    assert done.out == ["fused"]
    assert done.lines.count("on for cpu") == 1
    assert FUSED in done.lines


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"ONESHOT": "maybe"}, ["ONESHOT='maybe'", "true", "false"]),
        ({"ONESHOT": "1", "ONESHOT_TIMEOUT_S": "soon"}, ["ONESHOT_TIMEOUT_S='soon'"]),
        ({"ONESHOT": "1", "ONESHOT_XLA_DIR": "/"}, ["'/'", *libraries.XLA_LIBRARIES]),
    ],
    ids=["value", "timeout", "xla"],
)
def test_refused_environment_stays_stock_and_says_why(
    variables: dict[str, str], names: list[str]
) -> None:
    done = run_code(SHOW + "; print(libraries())", **variables)
    assert done.out == ["stock", "[]"]
    assert len(done.lines) == 1
    assert done.lines[0].startswith("off, all stays with stock XLA")
    assert all(name in done.err for name in names)


@pytest.mark.parametrize(
    ("variables", "warning"),
    [
        (
            {"ONESHOT_DUMP": "x", "ONESHOT_PORT": "tcp://10.0.0.1:80"},
            "unknown variables are ignored: ONESHOT_DUMP (nearest: ONESHOT_DUMP_TO)",
        ),
        (
            {"ONESHOT_LOG": "loud"},
            "ONESHOT_LOG='loud': must be one of debug, info, warning, error; taken for warning",
        ),
        (
            {"ONESHOT_DUMP_TO": "/dev/null/x"},
            "ONESHOT_DUMP_TO='/dev/null/x': Not a directory; nothing is dumped",
        ),
    ],
    ids=["name", "log", "dump"],
)
def test_slips_cost_a_warning(variables: dict[str, str], warning: str) -> None:
    done = run_code(SHOW, ONESHOT="1", **variables)
    assert done.out == ["fused"]
    assert done.lines == [warning]
    for off in ({}, {"ONESHOT": "0"}):
        done = run_code(SHOW, **off, **variables)
        assert done.out == ["stock"]
        assert not done.lines


@pytest.mark.parametrize(
    ("breakage", "reason"),
    [
        ("libraries.find_xla = lambda _: None", "ONESHOT_XLA_DIR"),
        ("native.LIBRARIES = native.LIBRARIES / 'gone'", "can't be loaded"),
        (
            "from jax._src import xla_bridge; del xla_bridge.register_plugin_callbacks",
            "another interface",
        ),
        (
            "import jaxlib; jaxlib.__version__ = '0.11.0'",
            "jaxlib 0.11.0 is too old: 0.11.2 or later",
        ),
        (
            "from oneshot import hook; from jaxlib import _jax\n"
            "hook._bundle = lambda *_: {'execute': _jax.get_pjrt_plugin}",
            "does not take the handlers of Oneshot",
        ),
    ],
    ids=["xla", "library", "jax", "old", "ffi"],
)
def test_something_is_missing(breakage: str, reason: str) -> None:
    done = run_code(
        f"from oneshot import libraries, native\n{breakage}\n{SHOW}\n"
        "from jax._src import cache_key; print(repr(cache_key.custom_hook()))",
        ONESHOT="1",
    )
    assert done.out == ["stock", "''"]
    assert len(done.lines) == 1
    assert done.lines[0].startswith("off, all stays with stock XLA: ")
    assert reason in done.lines[0]


# ---------------------------------------------------------------------------
# require, disabled() and ONESHOT_SKIP


@pytest.mark.parametrize(
    ("breakage", "reason"),
    [
        ("libraries.find_xla = lambda _: None", "XLA's libraries are missing"),
        ("hook._processes = lambda: 2", "ONESHOT=require, and it is off for cpu: more than one"),
        ("os.environ['ONESHOT_TIMEOUT_S'] = 'soon'", "ONESHOT_TIMEOUT_S='soon'"),
    ],
    ids=["start", "platform", "config"],
)
def test_require_fails_with_the_reason(breakage: str, reason: str) -> None:
    done = run("-c", f"{BROKEN}{breakage}\n{PROGRAM}{SHOW}", ONESHOT="require")
    assert done.code == 1
    assert not done.out
    assert reason in done.err.splitlines()[-1] or reason in done.err.rpartition("Error: ")[2]


def test_require_is_met() -> None:
    # The pass is loaded at once, not for the first all-reduce.
    done = run_code("jax.devices(); print(libraries()); print(compiled())", ONESHOT="require")
    assert done.out == ["['liboneshot_hook', 'liboneshot_xla_cc']", "fused"]
    assert not done.lines


def test_require_of_a_plugin() -> None:
    done = run(
        "-c",
        f"{BROKEN}from jax._src import xla_bridge\n"
        "callbacks = []\n"
        "xla_bridge.register_plugin_callbacks = callbacks.append\n"
        "hook._is_cuda = lambda *_: True\n"
        "hook._register_cuda = lambda *_: 'no peers'\n"
        "import oneshot; oneshot.enable(); callbacks[0](c_api=None); jax.devices()\n",
        ONESHOT="require",
    )
    assert done.code == 1
    assert "ONESHOT=require, and it is off: for cuda: no peers" in done.err


# A function that is compiled before, inside and after, with what is in its program.
DISABLED = """
import oneshot
mesh = jax.sharding.Mesh(jax.devices(), ("a",))
f = jax.jit(jax.shard_map(lambda x: x + lax.psum(x, "a"), mesh=mesh, in_specs=P("a"),
    out_specs=P("a")))
x = np.arange(8, dtype=np.float32)
def run():
    assert np.array_equal(f(x), x + 28)
    return "fused" if "oneshot_all_reduce" in f.lower(x).compile().as_text() else "stock"
print(run())
with oneshot.disabled():
    print(run())
    with oneshot.disabled(): pass
    print(run())
print(run(), oneshot.disabled()(run)(), run())
print(oneshot.status().compiled)
"""


def test_disabled(tmp_path: Path) -> None:
    # The second process finds all of it in JAX's cache, and what is there are two programs.
    for compiled in (1, 0):
        done = run_code(
            DISABLED,
            ONESHOT="1",
            JAX_COMPILATION_CACHE_DIR=tmp_path,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        )
        assert done.out == [
            *("fused", "stock", "stock", "fused stock fused"),
            f"Counts(modules={compiled}, fused={compiled}, alone=0, left=0)",
        ]
    assert len(list(tmp_path.glob("jit__lambda*-cache"))) == 2


def test_disabled_where_it_is_off() -> None:
    done = run_code(DISABLED + "print(libraries())")
    assert done.out[:4] == ["stock", "stock", "stock", "stock stock stock"]
    assert done.out[-1] == "[]"


def test_skip() -> None:
    done = run_code(
        "mesh = jax.sharding.Mesh(jax.devices(), ('a',))\n"
        "def step(x):\n"
        "    for i in range(3):\n"
        "        with jax.named_scope(f'layer_{i}'): x = jax.numpy.tanh(lax.psum(x, 'a'))\n"
        "    return x\n"
        "f = jax.jit(jax.shard_map(step, mesh=mesh, in_specs=P('a'), out_specs=P('a'),\n"
        "    check_vma=False))\n"
        "print(np.asarray(f(np.ones(8, np.float32)))[0])\n"
        "from jax._src import cache_key; print(cache_key.custom_hook())\n",
        ONESHOT="1",
        ONESHOT_SKIP="layer_[01]/",
        ONESHOT_LOG="info",
    )
    expected = np.tanh(8 * np.tanh(8 * np.tanh(np.float32(8))))
    assert float(done.out[0]) == pytest.approx(expected, rel=1e-6)
    assert done.out[1].endswith("/skip layer_[01]/")
    line = done.lines[-1]
    assert line.startswith("jit_step: 1 of 3 all-reduces fused")
    assert line.count("left alone: has frontend attribute ONESHOT_SKIP") == 2


# ---------------------------------------------------------------------------
# enable()


def test_enable_after_the_first_compilation() -> None:
    done = run_code(
        "import oneshot\n"
        "for _ in range(3):\n"
        "    print(compiled(), oneshot.is_enabled())\n"
        "    oneshot.enable()\n",
    )
    assert done.out == ["stock False", "fused True", "fused True"]


@pytest.mark.parametrize("value", ["0", "off"])
def test_off_wins_over_enable(value: str) -> None:
    done = run_code(
        "import oneshot\n"
        "for _ in range(3):\n"
        "    oneshot.enable()\n"
        "    print(compiled(), oneshot.is_enabled())\n",
        ONESHOT=value,
    )
    assert done.out == ["stock False"] * 3
    assert done.lines == [
        f"off, all stays with stock XLA: ONESHOT={value} wins over oneshot.enable() and "
        "`oneshot run`"
    ]


def test_is_enabled_is_about_the_default_backend() -> None:
    done = run_code(
        "import oneshot\n"
        "from jax._src import distributed, xla_bridge\n"
        "print(oneshot.is_enabled())\n"
        "oneshot.enable(); print(oneshot.is_enabled(), xla_bridge.backends_are_initialized())\n"
        "jax.devices(); print(oneshot.is_enabled())\n"
        "distributed.global_state.num_processes = 2; print(oneshot.is_enabled())\n"
    )
    assert done.out == ["False", "True False", "True", "False"]


def test_enable_compiles_a_function_again() -> None:
    done = run_code(
        "import oneshot\n"
        "mesh = jax.sharding.Mesh(jax.devices(), ('a',))\n"
        "f = jax.jit(jax.shard_map(lambda x: x + lax.psum(x, 'a'),\n"
        "    mesh=mesh, in_specs=P('a'), out_specs=P('a')))\n"
        "x = np.arange(8, dtype=np.float32)\n"
        "for _ in range(3):\n"
        "    assert np.array_equal(f(x), x + 28)\n"
        "    oneshot.enable()\n",
        ONESHOT_LOG="info",
    )
    assert done.lines == ["on for cpu", FUSED.replace("program", "_lambda").replace("16 B", "4 B")]


def test_enable_makes_no_backend() -> None:
    done = run_code(
        "import oneshot; oneshot.enable()\n"
        "from jax._src import xla_bridge; print(xla_bridge.backends_are_initialized())\n" + SHOW
    )
    assert done.out == ["False", "fused"]


def test_enable_from_many_threads_registers_once() -> None:
    done = run_code(
        "import oneshot\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(8) as pool:\n"
        "    for done in [pool.submit(oneshot.enable) for _ in range(8)]: done.result()\n" + SHOW,
        ONESHOT_LOG="info",
    )
    assert done.out == ["fused"]
    assert done.lines.count("on for cpu") == 1


def test_threads_compile_at_once() -> None:
    # All of them meet where XLA is loaded.
    done = run_code(
        "import threading\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "mesh = jax.sharding.Mesh(jax.devices(), ('a',))\n"
        "start = threading.Barrier(4)\n"
        "x = np.arange(8, dtype=np.float32)\n"
        "def make(factor):\n"
        "    f = jax.jit(jax.shard_map(lambda x: factor * x + lax.psum(x, 'a'),\n"
        "        mesh=mesh, in_specs=P('a'), out_specs=P('a'))).lower(x)\n"
        "    start.wait()\n"
        "    return f.compile()\n"
        "with ThreadPoolExecutor(4) as pool: programs = list(pool.map(make, range(4)))\n"
        "for factor, f in enumerate(programs):\n"
        "    assert np.array_equal(f(x), factor * x + 28)\n"
        "    print('oneshot_all_reduce' in f.as_text())\n",
        ONESHOT="1",
    )
    assert done.out == ["True"] * 4
    assert not done.lines


def test_enable_raises() -> None:
    done = run_code(
        "import oneshot, oneshot.config\n"
        "try: oneshot.enable()\n"
        "except oneshot.config.ConfigError as error: print(str(error).splitlines()[0])\n" + SHOW,
        ONESHOT_TIMEOUT_S="soon",
    )
    assert done.out[0].startswith("ONESHOT_TIMEOUT_S='soon': must be a number of seconds")
    assert done.out[1:] == ["stock"]


def test_what_is_configured_stays() -> None:
    done = run_code(
        "import oneshot\n"
        "from oneshot import hook\n"
        "oneshot.enable(); hook._enabled = False\n"
        "try: oneshot.enable()\n"
        "except hook.UnavailableError as error: print(error)\n" + SHOW
    )
    assert done.out == [
        "this process has configured liboneshot_hook.so before: start another process",
        "fused",
    ]


def test_importing_oneshot_does_not_import_jax() -> None:
    done = run("-c", "import oneshot, sys; print('jax' in sys.modules)", ONESHOT="1")
    assert done.out == ["False"]


# ---------------------------------------------------------------------------
# Several processes, and CUDA


@pytest.mark.parametrize("entry", [[], ["-m", "oneshot", "run"]], ids=["ONESHOT", "run"])
def test_several_processes_stay_stock(entry: list[str], tmp_path: Path) -> None:
    script = tmp_path / "distributed.py"
    # Where the ranks of a sum are in two processes, a fused one would wait forever.
    script.write_text(
        PROGRAM
        + "from jax.sharding import NamedSharding\n"
        + "jax.config.update('jax_cpu_collectives_implementation', 'gloo')\n"
        + "jax.distributed.initialize(f'localhost:{sys.argv[2]}', 2, int(sys.argv[1]))\n"
        + "mesh = jax.sharding.Mesh(jax.devices(), ('a',))\n"
        + "f = jax.jit(jax.shard_map(lambda x: lax.psum(x, 'a'), mesh=mesh,"
        + " in_specs=P('a'), out_specs=P()))\n"
        + "x = np.arange(8, dtype=np.float32)\n"
        + "x = jax.make_array_from_callback(x.shape, NamedSharding(mesh, P('a')), lambda i: x[i])\n"
        + "print(f(x).addressable_data(0)[0])\n"
    )
    environ = environment(
        ONESHOT="1", XLA_FLAGS="--xla_force_host_platform_device_count=4", PYTHONUNBUFFERED="1"
    )
    port = str(process_group.free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, *entry, script, str(rank), port],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    with process_group.killed(processes):
        for rank, process in enumerate(processes):
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            # Gloo prints too.
            assert "28.0" in out.splitlines()
            prefix = f"oneshot[rank {rank} of 2, pid {process.pid}]: "
            assert err.count(f"{prefix}off for cpu") == 1


@pytest.mark.parametrize(
    ("flags", "concurrent"),
    [
        ("", False),
        ("--xla_gpu_command_buffer_scheduling_mode=CONCURRENT", True),
        ("--xla_gpu_autotune_level=0 --xla_gpu_command_buffer_scheduling_mode=concurrent", True),
        ("--xla_gpu_command_buffer_scheduling_mode=LHS", False),
        ("--xla_gpu_graph_enable_concurrent_region", True),
        ("--xla_gpu_graph_enable_concurrent_region=true", True),
        ("--xla_gpu_graph_enable_concurrent_region=false", False),
        ("--xla_gpu_graph_enable_concurrent_region='False'", False),
        ('--xla_gpu_graph_enable_concurrent_region="1"', True),
        ("--xla_gpu_command_buffer_scheduling_mode=CONCURRENT_REGIONS", True),
        ("--xla_gpu_command_buffer_scheduling_mode='CONCURRENT'", True),
        ('--xla_gpu_command_buffer_scheduling_mode="CONCURRENT_REGIONS"', True),
        ("--xla_gpu_command_buffer_scheduling_mode='SERIALIZE'", False),
        # Nothing that is unknown is taken for sequential.
        ("--xla_gpu_command_buffer_scheduling_mode=3", True),
        # The last one counts.
        (
            "--xla_gpu_command_buffer_scheduling_mode=CONCURRENT"
            "\n--xla_gpu_command_buffer_scheduling_mode=LHS",
            False,
        ),
        (
            "--xla_gpu_command_buffer_scheduling_mode=LHS"
            " --xla_gpu_command_buffer_scheduling_mode=CONCURRENT",
            True,
        ),
        # Part of another flag's value.
        ("--xla_dump_to='a --xla_gpu_graph_enable_concurrent_region b'", False),
    ],
)
@pytest.mark.parametrize("in_a_file", [False, True], ids=["variable", "file"])
def test_cuda_refuses_concurrent_command_buffers(
    flags: str, concurrent: bool, in_a_file: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "flags"
    file.write_text(flags)
    monkeypatch.setenv("XLA_FLAGS", str(file) if in_a_file else flags)
    assert ("concurrent command buffers" in (hook._why_not_cuda() or "")) == concurrent


def test_cuda_needs_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(libraries, "find_nvrtc", lambda: None)
    monkeypatch.setattr(libraries, "_NVRTC", ("libnone.so",))
    assert hook._why_not_cuda() == libraries.NVRTC_MISSING


@pytest.mark.parametrize(
    ("register", "key", "line"),
    [
        ("return None", "/1/cpu/cuda", "on for cuda"),
        ("return 'no peers'", "/1/cpu", "off for cuda, it stays with stock XLA: no peers"),
        ("raise OSError('no file')", "/1/cpu", "off for cuda, it stays with stock XLA: no file"),
    ],
    ids=["on", "off", "error"],
)
def test_cuda_plugin(register: str, key: str, line: str) -> None:
    # A stand-in for the plugin: JAX calls back with it, and does not expect exceptions.
    done = run_code(
        "import oneshot\n"
        "from oneshot import hook\n"
        "from jax._src import cache_key, xla_bridge\n"
        "callbacks = []\n"
        "xla_bridge.register_plugin_callbacks = callbacks.append\n"
        "hook._is_cuda = lambda *_: True\n"
        f"def register(*_): {register}\n"
        "hook._register_cuda = register\n"
        "oneshot.enable()\n"
        "callbacks[0](c_api=None)\n"
        "print(cache_key.custom_hook())\n"
        "class Gpu: platform = 'gpu'\n"
        "jax.devices(); xla_bridge.get_backend = Gpu\n"
        "print(oneshot.is_enabled())\n",
        ONESHOT_LOG="info",
    )
    assert done.out[0].endswith(key)
    assert done.out[1] == str(key.endswith("cuda"))
    assert done.lines == ["on for cpu", line]


def test_machines_of_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    def ranks(*processes: int) -> list[int]:
        return hook._machine_of_ranks([SimpleNamespace(process_index=i) for i in processes])

    monkeypatch.setattr(hook, "_is_topology", lambda _: False)
    assert ranks(0, 0) == []
    monkeypatch.setattr(hook, "_machines", ("a", "b", "a"))
    assert ranks(0, 0, 2) == []
    assert ranks(1, 0, 2, 1) == [0, 1, 1, 0]
    # A topology is another set of processes.
    monkeypatch.setattr(hook, "_is_topology", lambda _: True)
    assert ranks(0, 2, 0) == [0, 1, 0]


# ---------------------------------------------------------------------------
# Beside stock XLA


def test_stock_collective_after_a_fused_one() -> None:
    done = run_code(
        "f = jax.jit(jax.shard_map(lambda x: lax.pmax(lax.psum(x, 'a') + x, 'a'),\n"
        "    mesh=jax.sharding.Mesh(jax.devices(), ('a',)), in_specs=P('a'), out_specs=P()))\n"
        "x = np.arange(8, dtype=np.float32)\n"
        "for _ in range(20): assert f(x)[0] == 35\n"
        "print(f.lower(x).compile().as_text().count('target=\"oneshot_all_reduce'))\n",
        ONESHOT="1",
        # A deadlock ends after this time, not a minute.
        XLA_FLAGS=f"{XLA_FLAGS} --xla_cpu_collective_call_terminate_timeout_seconds=5",
    )
    assert done.out == ["1"]


# ---------------------------------------------------------------------------
# What is printed


@pytest.mark.parametrize(
    "logging",
    ["", "import logging; logging.basicConfig(level='INFO');", "import absl.logging;"],
    ids=["none", "logging", "absl"],
)
def test_prints_nothing_by_itself(logging: str) -> None:
    stock, on = (run("-c", logging + PROGRAM + SHOW, ONESHOT=switch) for switch in "01")
    assert (stock.code, on.code) == (0, 0), on.err
    assert (stock.out, on.out) == (["stock"], ["fused"])
    # Whatever JAX itself says is the same.
    assert on.err == stock.err


LINES = ["on for cpu", FUSED]


@pytest.mark.parametrize("logging", ["", "import absl.logging"], ids=["none", "absl"])
def test_each_line_is_printed_once_and_with_the_pid(logging: str) -> None:
    done = run_code(
        f"{logging}\nimport os; print(os.getpid())\n{SHOW}", ONESHOT="1", ONESHOT_LOG="info"
    )
    assert done.lines == LINES
    for line in LINES:
        assert done.err.count(f"oneshot[pid {done.out[0]}]: {line}\n") == 1


# Of Python and of C++; set up before and after Oneshot is.
@pytest.mark.parametrize("early", [True, False], ids=["before", "after"])
def test_lines_go_where_the_program_logs(early: bool) -> None:
    setup = (
        "import logging, os\n"
        "logging.basicConfig(format='{%(name)s %(levelname)s %(process)d %(rank)s %(message)s}')\n"
        "logging.getLogger('jax').propagate = False\n"
    )
    enable = "import oneshot; oneshot.enable()\n"
    level = "import logging; logging.getLogger('oneshot').setLevel('INFO')\n"
    done = run_code(
        level + (setup + enable if early else enable + setup) + SHOW + "; print(os.getpid())"
    )
    assert done.out[0] == "fused"
    assert done.lines == ([] if early else LINES[:1])
    for line in LINES if early else LINES[1:]:
        assert f"{{oneshot INFO {done.out[1]} 0 {line}}}" in done.err.splitlines()


def test_a_line_that_python_does_not_take_is_printed() -> None:
    # Who holds the GIL waits for the line to be written.
    done = run_code(
        "import ctypes, oneshot\n"
        "from oneshot import native\n"
        "oneshot.enable()\n"
        "held = ctypes.PyDLL(str(native.LIBRARIES / 'liboneshot_hook.so'))\n"
        "held.oneshot_log(3, b'a line')\n"
        "held.oneshot_log(0, b'not shown')\n"
    )
    assert done.lines == ["a line"]
