# SPDX-License-Identifier: Apache-2.0
"""How Oneshot gets into an unmodified program, and how it stays out; each in a fresh process."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import process_group
import pytest
from emulation import XLA_FLAGS, environment
from oneshot import config, hook

# Prints "fused" or "stock" after what XLA made of it, and fails if the numbers are wrong.
PROGRAM = """
import functools, sys
import jax
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

def compiled():
    mesh = jax.sharding.Mesh(jax.devices(), ("a",))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    def program(x):
        return x + lax.psum(x, "a")

    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    assert np.array_equal(program(x), x + x.sum(axis=0))
    text = program.lower(x).compile().as_text()
    assert ("all-reduce(" in text) != ("oneshot_all_reduce" in text)
    return "stock" if "all-reduce(" in text else "fused"

def libraries():
    maps = open("/proc/self/maps").read()
    return [name for name in ("liboneshot_hook", "libtensorflow_cc") if name in maps]
"""
SHOW = "print(compiled())"


class Done:
    """What a program printed.

    Attributes:
      code: its exit code.
      out: lines on stdout.
      lines: lines on stderr from Oneshot, without the prefix.
      err: all of stderr.
    """

    def __init__(self, done: subprocess.CompletedProcess[str]):
        self.code = done.returncode
        self.out = done.stdout.splitlines()
        self.err = done.stderr
        self.lines = re.findall(r"(?m)^oneshot: (.*)$", done.stderr)


def run(*arguments: str | Path, **variables: str | Path) -> Done:
    """Runs Python with these arguments."""
    command = [sys.executable, *map(str, arguments)]
    return Done(
        subprocess.run(
            command,
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    )


def run_code(code: str, **variables: str | Path) -> Done:
    """Runs `code` after PROGRAM."""
    done = run("-c", PROGRAM + code, **variables)
    assert done.code == 0, done.err
    return done


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
        "['liboneshot_hook', 'libtensorflow_cc']",
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
    assert "jit_program: 1 of 1 all-reduces fused" in done.lines


@pytest.mark.parametrize(
    ("variables", "names"),
    [
        ({"ONESHOT": "maybe"}, ["ONESHOT='maybe'", "true", "false"]),
        ({"ONESHOT": "1", "ONESHOT_DUMP": "x"}, ["ONESHOT_DUMP;", *config.VARIABLES]),
        ({"ONESHOT_DUMP": "x"}, ["ONESHOT_DUMP;", *config.VARIABLES]),
        ({"ONESHOT": "1", "ONESHOT_LOG": "loud"}, ["ONESHOT_LOG='loud'", "debug", "error"]),
        ({"ONESHOT": "1", "ONESHOT_DUMP_TO": "/dev/null/x"}, ["'/dev/null/x'"]),
        ({"ONESHOT": "1", "ONESHOT_XLA_DIR": "/"}, ["'/'", *config.XLA_LIBRARIES]),
    ],
    ids=["value", "name", "name-and-off", "log", "dump", "xla"],
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
    ("breakage", "reason"),
    [
        ("config.find_xla = lambda _: None", "ONESHOT_XLA_DIR"),
        ("config.LIBRARIES = config.LIBRARIES / 'gone'", "can't be loaded"),
        (
            "from jax._src import xla_bridge; del xla_bridge.register_plugin_callbacks",
            "another interface",
        ),
    ],
    ids=["xla", "library", "jax"],
)
def test_something_is_missing(breakage: str, reason: str) -> None:
    done = run_code(
        f"from oneshot import config\n{breakage}\n{SHOW}\n"
        "from jax._src import cache_key; print(repr(cache_key.custom_hook()))",
        ONESHOT="1",
    )
    assert done.out == ["stock", "''"]
    assert len(done.lines) == 1
    assert done.lines[0].startswith("off, all stays with stock XLA: ")
    assert reason in done.lines[0]


# ---------------------------------------------------------------------------
# enable()


def test_enable_after_the_first_compilation() -> None:
    done = run_code(
        "import oneshot\n"
        "for _ in range(3):\n"
        "    print(compiled(), oneshot.is_enabled())\n"
        "    oneshot.enable()\n",
        ONESHOT="0",
    )
    assert done.out == ["stock False", "fused True", "fused True"]


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
    assert done.lines == ["on for cpu", "jit__lambda: 1 of 1 all-reduces fused"]


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
        ONESHOT_LOG="loud",
    )
    assert done.out[0].startswith("ONESHOT_LOG='loud': must be one of debug, info")
    assert done.out[1:] == ["stock"]


def test_importing_oneshot_does_not_import_jax() -> None:
    done = run("-c", "import oneshot, sys; print('jax' in sys.modules)", ONESHOT="1")
    assert done.out == ["False"]


# ---------------------------------------------------------------------------
# JAX's persistent compilation cache


# Other builds of Oneshot, as code that comes before anything is compiled.
OTHERS = {
    "version": "import oneshot.version; oneshot.version.__version__ += '.1'\n",
    "library": "import shutil; from oneshot import config\n"
    "config.LIBRARIES = type(config.LIBRARIES)(shutil.copytree(config.LIBRARIES, directory))\n"
    "with (config.LIBRARIES / 'liboneshot_host.so').open('ab') as file: file.write(b'other')\n",
}


class Cache:
    """A directory for JAX's cache, and one for what passes write: a hit runs none."""

    def __init__(self, directory: Path):
        self.entries, self.dumps = directory / "cache", directory / "dump"

    def run(self, switch: str, code: str = "") -> tuple[str, int, int]:
        """Runs PROGRAM after `code`; returns what became of it, and all entries and passes yet."""
        done = run_code(
            code + SHOW,
            ONESHOT=switch,
            ONESHOT_DUMP_TO=self.dumps,
            JAX_COMPILATION_CACHE_DIR=self.entries,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        )
        (shown,) = done.out
        entries = self.entries.glob("jit_program-*-cache")
        return shown, len(list(entries)), len(list(self.dumps.glob("*.report.json")))


@pytest.mark.parametrize("switches", ["1010", "0110"])
def test_cache_keeps_on_and_off_apart(switches: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for count, switch in enumerate(switches, 1):
        before = switches[:count]
        shown = "fused" if switch == "1" else "stock"
        # One entry for each, and every later run finds its own: no third one, and no second pass.
        assert cache.run(switch) == (shown, len(set(before)), int("1" in before))


@pytest.mark.parametrize("other", OTHERS)
def test_cache_keeps_builds_apart(other: str, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    code = f"directory = {str(tmp_path / 'libraries')!r}\n{OTHERS[other]}"
    assert cache.run("1") == ("fused", 1, 1)
    assert cache.run("1", code) == ("fused", 2, 2)
    assert cache.run("1") == ("fused", 2, 2)


def test_cache_after_a_repair(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    broken = tmp_path / "xla"
    broken.mkdir()
    for name in config.XLA_LIBRARIES:
        (broken / name).write_bytes(b"cut short")
    with_broken = f"from oneshot import config\nconfig.find_xla = lambda _: Path({str(broken)!r})\n"
    assert cache.run("1", f"from pathlib import Path\n{with_broken}") == ("stock", 1, 0)
    assert cache.run("1") == ("fused", 2, 1)


def test_serialized_executable(tmp_path: Path) -> None:
    file = tmp_path / "executable"
    code = (
        "import pickle\n"
        "from pathlib import Path\n"
        "from jax.experimental import serialize_executable\n"
        f"file = Path({str(file)!r})\n"
        "x = np.arange(8, dtype=np.float32)\n"
    )
    save = (
        "f = jax.jit(jax.shard_map(lambda x: x + lax.psum(x, 'a'),\n"
        "    mesh=jax.sharding.Mesh(jax.devices(), ('a',)), in_specs=P('a'), out_specs=P('a')))\n"
        "file.write_bytes(pickle.dumps(serialize_executable.serialize(f.lower(x).compile())))\n"
    )
    load = (
        "try: f = serialize_executable.deserialize_and_load(*pickle.loads(file.read_bytes()))\n"
        "except Exception as error: print(error)\n"
        "else: print('oneshot_all_reduce' in f.as_text(), np.array_equal(f(x), x + 28))\n"
    )
    run_code(code + save, ONESHOT="1")
    assert run_code(code + load, ONESHOT="1").out == ["True True"]
    assert run_code("import oneshot; oneshot.enable()\n" + code + load).out == ["True True"]
    # Nothing of Oneshot is loaded that could say more; docs/troubleshooting.md has this message.
    (line,) = run_code(code + load).out
    assert "No FFI handler registered for oneshot_all_reduce (needs ONESHOT=1)" in line


def test_key_says_what_is_on() -> None:
    done = run_code(
        "import oneshot; oneshot.enable()\n"
        "from jax._src import cache_key, distributed\n"
        "print(cache_key.custom_hook())\n"
        "distributed.global_state.num_processes = 2\n"
        "print(cache_key.custom_hook())\n"
    )
    one, two = done.out
    version = re.escape(importlib.metadata.version("oneshot"))
    assert re.fullmatch(rf"/oneshot/{version}/[0-9a-f]{{16}}/1/cpu", one)
    assert two == one.replace("/1/cpu", "/2/cpu")


def test_key_keeps_what_others_put_there() -> None:
    done = run_code(
        "from jax._src import cache_key\n"
        "cache_key.custom_hook = lambda: 'theirs'\n"
        "import oneshot; oneshot.enable()\n"
        "print(cache_key.custom_hook())\n"
    )
    assert done.out[0].startswith("theirs/oneshot/")


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
        for process in processes:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            # Gloo prints too.
            assert "28.0" in out.splitlines()
            assert err.count("oneshot: off for cpu") == 1


class Coordinator:
    """JAX's coordination service, for votes that happen one after the other."""

    def __init__(self, answers: dict[int, str]):
        self.answers = {f"oneshot/{process}": answer for process, answer in answers.items()}

    def key_value_set(self, key: str, value: str) -> None:
        """As in jaxlib."""
        self.answers[key] = value

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        """As in jaxlib, but does not wait."""
        assert timeout_in_ms > 0
        if key not in self.answers:
            raise RuntimeError("DEADLINE_EXCEEDED")
        return self.answers[key]


@pytest.mark.parametrize(
    ("others", "mine", "verdict"),
    [
        ({1: "v1\n"}, None, None),
        ({1: "v1\nno peer access"}, None, "process 1: no peer access"),
        ({1: "v1\n"}, "no driver", "no driver"),
        ({1: "v2\n"}, None, "process 1 has another version, v2, than v1"),
        ({}, None, "process 1 has not said within 60 s that it is on (DEADLINE_EXCEEDED)"),
    ],
)
def test_vote(others: dict[int, str], mine: str | None, verdict: str | None) -> None:
    assert hook.vote(Coordinator(others), 0, 2, "v1", mine) == verdict


def test_processes_vote_over_the_coordination_service(tmp_path: Path) -> None:
    script = tmp_path / "vote.py"
    script.write_text(
        "import sys\n"
        "import jax\n"
        "from jax._src import distributed\n"
        "from oneshot import hook\n"
        "rank, port = int(sys.argv[1]), sys.argv[2]\n"
        "jax.distributed.initialize(f'localhost:{port}', 2, rank)\n"
        "client = distributed.global_state.client\n"
        "print(hook.vote(client, rank, 2, 'v1', 'it rains' if rank else None))\n"
    )
    port = str(process_group.free_port())
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), port],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    with process_group.killed(processes):
        for process, verdict in zip(processes, ["process 1: it rains", "it rains"], strict=True):
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert verdict in out.splitlines()


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_bad_timeout(value: str) -> None:
    with pytest.raises(config.ConfigError, match=r"ONESHOT_TIMEOUT_S=.*more than 0"):
        config.read({"ONESHOT_TIMEOUT_S": value})


def test_timeout() -> None:
    assert config.read({}).timeout == 30
    assert config.read({"ONESHOT_TIMEOUT_S": "2.5"}).timeout == 2.5


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
    monkeypatch.setattr(config, "find_nvrtc", lambda: None)
    monkeypatch.setattr(config, "_NVRTC", ("libnone.so",))
    assert hook._why_not_cuda() == config.NVRTC_MISSING


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
        "print(cache_key.custom_hook())\n",
        ONESHOT_LOG="info",
    )
    assert done.out[0].endswith(key)
    assert done.lines == ["on for cpu", line]


def test_cuda_library_loads_without_a_driver() -> None:
    reason = hook._why_not_cuda()
    if reason is None:
        pytest.skip("the GPUs of this machine can run Oneshot")
    assert reason


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
# python -m oneshot run


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program in two files, which prints its arguments."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "beside.py").write_text("HERE = 'beside'\n")
    path = folder / "script.py"
    path.write_text(
        f"{PROGRAM}\nfrom beside import HERE\n"
        "print(compiled(), HERE, __name__, *sys.argv)\nsys.exit(int(sys.argv[1]))\n"
    )
    return path


def test_run_script(script: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(script)
    for path in (script, link):
        # Options after the script are the script's.
        done = run("-m", "oneshot", "run", path, "3", "-m", "--save", ONESHOT="0")
        assert done.code == 3, done.err
        assert done.out == [f"fused beside __main__ {path} 3 -m --save"]


def test_run_module(script: Path) -> None:
    path = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    done = run("-m", "oneshot", "run", "-m", "script", "0", "--save", PYTHONPATH=path)
    assert done.code == 0, done.err
    assert done.out == [f"fused beside __main__ {script} 0 --save"]


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["run"], {}, "a script is required"),
        (["run", "missing.py"], {}, "no such file: missing.py"),
        (["run", "x.py"], {"ONESHOT_DUMP": "x"}, "unknown variable ONESHOT_DUMP"),
        (["run", "x.py"], {"ONESHOT_XLA_DIR": "/"}, "no libtensorflow_framework.so.2"),
        (["jog", "x.py"], {}, "invalid choice"),
    ],
)
def test_run_refuses(arguments: list[str], variables: dict[str, str], message: str) -> None:
    done = run("-m", "oneshot", *arguments, **variables)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


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


@pytest.mark.parametrize(
    "logging",
    ["import logging; logging.basicConfig(level='INFO')", "import absl.logging"],
    ids=["logging", "absl"],
)
def test_each_line_is_printed_once_and_with_the_prefix(logging: str) -> None:
    done = run("-c", f"{logging}\n{PROGRAM}{SHOW}", ONESHOT="1", ONESHOT_LOG="info")
    assert done.code == 0, done.err
    assert sorted(done.lines) == ["jit_program: 1 of 1 all-reduces fused", "on for cpu"]
    assert done.err.count("on for cpu") == 1


# ---------------------------------------------------------------------------
# The environment


@pytest.mark.parametrize(
    ("value", "enabled"),
    [("1", True), ("true", True), ("ON", True), ("0", False), ("False", False), ("", False)],
)
def test_switch(value: str, enabled: bool) -> None:
    assert config.read({"ONESHOT": value}).enabled is enabled


def test_all_variables(tmp_path: Path) -> None:
    for name in config.XLA_LIBRARIES:
        (tmp_path / name).touch()
    dump = tmp_path / "new" / "dump"
    assert config.read(
        {
            "ONESHOT": "1",
            "ONESHOT_DUMP_TO": str(dump),
            "ONESHOT_LOG": "debug",
            "ONESHOT_XLA_DIR": str(tmp_path),
            "ONESHOTGUN": "somebody else's",
        }
    ) == config.Config(enabled=True, dump_to=dump, log_level=10, xla_dir=tmp_path)
    assert dump.is_dir()
    assert config.read({}) == config.Config()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ONESHOT": "2"}, "ONESHOT='2'.*1, true, on, 0, false, off"),
        ({"ONESHOT_LOG": "all"}, "ONESHOT_LOG='all'.*debug, info, warning, error"),
        ({"ONESHOT_DUMP_TO": "/dev/null/x"}, "ONESHOT_DUMP_TO='/dev/null/x'"),
        ({"ONESHOT_XLA_DIR": "/"}, "no libtensorflow_framework.so.2 and no libtensorflow_cc.so.2"),
        ({"ONESHOT_A": "1", "ONESHOT_B": "1"}, "unknown variable ONESHOT_A, ONESHOT_B"),
    ],
)
def test_bad_environment(environ: dict[str, str], message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.read(environ)


def test_find_xla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Tensorflow:
        """An installed distribution."""

        version = "2.20.0"

        def __init__(self, name: str):
            if name != "tensorflow":
                raise importlib.metadata.PackageNotFoundError

        @staticmethod
        def locate_file(path: str) -> Path:
            return tmp_path / "site" / path

    monkeypatch.setattr(config.importlib.metadata, "distribution", Tensorflow)
    monkeypatch.setattr(config, "LIBRARIES", tmp_path / "lib")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    named = config.Config(xla_dir=tmp_path / "named")
    assert config.find_xla(named) is None
    # The last of those that are there wins, from the least to the most specific place.
    home = f"data/oneshot/xla-{config.XLA_VERSION}"
    for place in ("site/tensorflow", home, "lib/xla", "named"):
        directory = tmp_path / place
        directory.mkdir(parents=True)
        for name in config.XLA_LIBRARIES:
            assert config.find_xla(named) != directory
            (directory / name).touch()
        if place == "site/tensorflow":
            assert config.find_xla(named) is None  # of another version
            Tensorflow.version = config.XLA_VERSION
        assert config.find_xla(named) == directory
