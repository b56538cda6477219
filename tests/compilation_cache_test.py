# SPDX-License-Identifier: Apache-2.0
"""JAX's persistent compilation cache keeps programs with and without Oneshot apart."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from oneshot import libraries, report
from program import SHOW, run_code

# Other builds of Oneshot, as code that comes before anything is compiled.
OTHERS = {
    "version": "import oneshot.version; oneshot.version.__version__ += '.1'\n",
    "library": "import shutil; from oneshot import native\n"
    "native.LIBRARIES = type(native.LIBRARIES)(shutil.copytree(native.LIBRARIES, directory))\n"
    "with (native.LIBRARIES / 'liboneshot_host.so').open('ab') as file: file.write(b'other')\n",
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
        modules = report.load(self.dumps) if self.dumps.exists() else []
        compiled = [module for module in modules if not module.cached]
        return shown, len(list(entries)), len(compiled)


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
    for name in libraries.XLA_LIBRARIES:
        (broken / name).write_bytes(b"cut short")
    with_broken = (
        f"from oneshot import libraries\nlibraries.find_xla = lambda _: Path({str(broken)!r})\n"
    )
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
    version = re.escape(importlib.metadata.version("oneshot-xla"))
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
