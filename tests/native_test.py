# SPDX-License-Identifier: Apache-2.0
"""Oneshot's libraries, through ctypes."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from emulation import environment
from oneshot import explanation, hook, native


def test_importing_loads_nothing() -> None:
    code = "import oneshot.native; print('liboneshot' in open('/proc/self/maps').read())"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_can_load() -> None:
    assert native.can_load("libc.so.6")
    assert native.can_load(native.LIBRARIES / "liboneshot_hook.so")
    assert not native.can_load("libnone.so")


def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LIBRARIES", tmp_path)
    for load in (native.Hook, native.Gpu, lambda: native.Pass([])):
        with pytest.raises(OSError, match="liboneshot_"):
            load()


def test_library_that_lacks_a_function() -> None:
    with pytest.raises(AttributeError, match="OneshotHostFly"):
        native.handlers("liboneshot_host.so", "OneshotHost", ["Fly"])


def test_handlers() -> None:
    found = native.handlers("liboneshot_host.so", "OneshotHost", ["Instantiate", "Execute"])
    assert list(found) == ["instantiate", "execute"]
    assert all(jax.ffi.pycapsule(function) for function in found.values())


def test_hook_leaves_a_module_without_all_reduce() -> None:
    lowered = jax.jit(lambda x: x + 1).lower(1.0)
    module = lowered.compiler_ir("hlo").as_serialized_hlo_module_proto()
    assert native.Hook().transform("Host", module) is None


def test_hook_that_is_not_configured() -> None:
    assert native.Hook().register(0, None) == "oneshot_hook_configure was not called"


def test_gpu_loads_without_a_driver() -> None:
    facts = json.loads(native.Gpu().doctor(nvrtc=None))
    if facts["driver"]:
        pytest.skip("this machine has a driver")
    assert native.Gpu().probe(2) == "there is no CUDA driver"
    assert hook._why_not_cuda()


def test_gpu_compiler() -> None:
    assert native.Gpu().compiler(None).value


def test_pass_says_what_is_wrong(tmp_path: Path) -> None:
    loaded = explanation.load_pass()
    error = loaded.explain("CUDA", str(tmp_path), b"no module")
    assert error == "neither HLO text nor a serialized HLO module"
    assert not list(tmp_path.iterdir())
