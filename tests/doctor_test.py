# SPDX-License-Identifier: Apache-2.0
"""`python -m oneshot doctor`, with stand-ins for what this machine lacks, and `install-xla`."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from emulation import environment
from jax._src import xla_bridge
from oneshot import __main__ as command_line
from oneshot import doctor, explanation, libraries, native, xla_wheel

LINK = {"peer_access": True, "microseconds": 1.87, "gigabytes_per_second": 391.2, "error": ""}
OWN = LINK | {"microseconds": 1.22, "gigabytes_per_second": 2101.0}
DEVICE = {"name": "NVIDIA H200", "compute_capability": "9.0", "bytes": 150 << 30}
TWO_GPUS = {
    "driver": 13010,
    "nvrtc": {"file": "/cu13/lib/libnvrtc.so.13", "version": 13000, "error": ""},
    "error": "",
    "why_not": "",
    "devices": [DEVICE, DEVICE],
    "links": [
        {"from": 0, "to": 0} | OWN,
        {"from": 0, "to": 1} | LINK,
        {"from": 1, "to": 0} | LINK,
        {"from": 1, "to": 1} | OWN,
    ],
}


def find(checks: list[doctor.Check], name: str) -> doctor.Check:
    """The only check of that name."""
    (found,) = [check for check in checks if check.name == name]
    return found


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with two GPUs on which all is well, to be spoilt."""
    monkeypatch.setattr(doctor, "gpu_facts", lambda: TWO_GPUS)
    monkeypatch.setattr(libraries, "plugin_files", lambda: [Path("/p/xla_cuda13/plugin.so")])
    monkeypatch.setattr(doctor, "_plugin", lambda file: doctor.Check("plugin cuda", doctor.OK, ""))
    for name in [name for name in os.environ if name.startswith("ONESHOT")]:
        if name != "ONESHOT_XLA_DIR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("ONESHOT", "1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return monkeypatch


def test_on_this_machine() -> None:
    command = [sys.executable, "-m", "oneshot", "doctor", "--json"]
    done = subprocess.run(
        command, env=environment(ONESHOT="1"), capture_output=True, text=True, check=False
    )
    found = json.loads(done.stdout)
    names = {check["name"] for check in found["checks"]}
    assert {"python", "jax", "jaxlib", "plugin cpu", "oneshot", "XLA", "GPU"} <= names
    assert done.returncode == (0 if found["ok"] else 1)
    if not Path("/proc/driver/nvidia").exists():
        assert found["ok"], done.stdout
        (gpu,) = [check for check in found["checks"] if check["name"] == "GPU"]
        assert gpu["status"] == doctor.NOTE
        assert gpu["text"] == "no NVIDIA driver: CPU emulation only"


def test_healthy(healthy: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("all is well\n")
    assert (
        "13.0, /cu13/lib/libnvrtc.so.13; JAX's plugin is of CUDA 13, the driver takes up to 13.1"
        in out
    )
    assert "1: NVIDIA H200, compute capability 9.0, 150 GiB" in out
    table = [line.split() for line in out.splitlines() if line.strip().startswith("from ")]
    assert table == [
        *(["from", "0", "1.2", "1.9"], ["from", "1", "1.9", "1.2"]),
        *(["from", "0", "2101", "391"], ["from", "1", "391", "2101"]),
    ]


def test_one_gpu(healthy: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    one = {"devices": [DEVICE], "links": TWO_GPUS["links"][:1], "why_not": "fewer than two"}
    healthy.setattr(doctor, "gpu_facts", lambda: TWO_GPUS | one)
    assert command_line.main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "the GPU reaches its own memory" in out
    table = [line.split() for line in out.splitlines() if line.strip().startswith("from ")]
    assert table == [["from", "0", "1.2"], ["from", "0", "2101"]]


def without(name: str) -> Any:
    """importlib.metadata.version for a machine that lacks one distribution."""
    installed = doctor.importlib.metadata.version

    def version(asked: str) -> str:
        if asked == name:
            raise doctor.importlib.metadata.PackageNotFoundError(asked)
        return installed(asked)

    return version


NO_PEER = TWO_GPUS | {
    "why_not": "GPU 0 has no peer access to GPU 1",
    "links": [{"from": 0, "to": 1} | LINK | {"peer_access": False}],
}
TOO_NEW = TWO_GPUS | {
    "driver": 12040,
    "nvrtc": {"file": "", "version": 0, "error": "NVRTC 13.0 is too new for the driver, which …"},
}
SPOILS = {
    "jaxlib": (
        (doctor.importlib.metadata, "version", without("jaxlib")),
        "not installed",
    ),
    "jax": (
        (doctor.importlib.metadata, "version", lambda _: "0.11.1"),
        "0.11.1 is too old: 0.11.2 or later is needed",
    ),
    "plugin cuda": ((libraries, "plugin_files", list), "runs on CPU"),
    "oneshot": (
        (doctor.importlib.metadata, "entry_points", lambda **_: ()),
        "JAX won't find it",
    ),
    "XLA": ((libraries, "find_xla", lambda _: None), "libraries not found"),
    "GPU": ((doctor, "gpu_facts", lambda: NO_PEER), "no peer access to GPU 1"),
    "links": ((doctor, "gpu_facts", lambda: NO_PEER), "no peer access from 0 to 1"),
    "NVRTC": ((doctor, "gpu_facts", lambda: TOO_NEW), "is too new for the driver"),
    "interfaces": (
        (xla_bridge, "register_plugin_callbacks"),
        "jax._src.xla_bridge.register_plugin_callbacks is gone",
    ),
    "python": ((doctor.platform, "python_version", lambda: 1 / 0), "ZeroDivisionError"),
}


@pytest.mark.parametrize("name", SPOILS)
def test_problem(
    name: str, healthy: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, text = SPOILS[name]
    (healthy.setattr if len(spoil) == 3 else healthy.delattr)(*spoil)
    check = find(doctor.examine(), name)
    assert check.status == doctor.PROBLEM
    assert text in check.text
    assert command_line.main(["doctor"]) == 1
    assert " problem" in capsys.readouterr().out.splitlines()[-1]


def test_old_jax_is_said_to_be_old_everywhere(healthy: pytest.MonkeyPatch) -> None:
    healthy.setattr(doctor.importlib.metadata, "version", lambda _: "0.11.1")
    for name in ("jax", "jaxlib", "plugin cpu"):
        check = find(doctor.examine(), name)
        assert check.status == doctor.PROBLEM
        assert "too old" in check.text


def test_missing_libraries(healthy: pytest.MonkeyPatch, tmp_path: Path) -> None:
    healthy.undo()
    healthy.setattr(native, "LIBRARIES", tmp_path)
    checks = doctor.examine()
    assert find(checks, "oneshot").status == doctor.PROBLEM
    assert "liboneshot_cuda.so" in find(checks, "GPU").text
    assert find(checks, "GPU").status == doctor.PROBLEM


def test_wrong_xla(healthy: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise explanation.ExplainError("undefined symbol")

    healthy.setattr(explanation, "load_pass", fail)
    check = find(doctor.examine(), "XLA")
    assert check.status == doctor.PROBLEM
    assert "undefined symbol" in check.text


@pytest.mark.parametrize(
    ("variable", "value", "name", "text"),
    [
        ("ONESHOT_TIMEOUT_S", "soon", "environment", "ONESHOT_TIMEOUT_S='soon'"),
        (
            *("XLA_FLAGS", "--xla_gpu_command_buffer_scheduling_mode=CONCURRENT"),
            *("XLA_FLAGS", "concurrent"),
        ),
    ],
)
def test_environment(
    variable: str, value: str, name: str, text: str, healthy: pytest.MonkeyPatch
) -> None:
    healthy.setenv(variable, value)
    checks = doctor.examine()
    assert find(checks, name).status == doctor.PROBLEM
    assert text in find(checks, name).text
    assert sum(check.status == doctor.PROBLEM for check in checks) == 1


def test_unknown_variable_is_worth_a_note(healthy: pytest.MonkeyPatch) -> None:
    healthy.setenv("ONESHOT_DUMP", "x")
    check = find(doctor.examine(), "environment")
    assert check.status == doctor.NOTE
    assert check.lines == (
        "unknown variables are ignored: ONESHOT_DUMP (nearest: ONESHOT_DUMP_TO)",
    )


def test_off_is_no_problem(healthy: pytest.MonkeyPatch) -> None:
    healthy.delenv("ONESHOT")
    check = find(doctor.examine(), "environment")
    assert check.status == doctor.NOTE
    assert "ONESHOT=1" in check.advice


@pytest.mark.parametrize(
    ("version", "status"),
    [(importlib.metadata.version("jaxlib"), doctor.OK), ("0.1", doctor.NOTE)],
)
def test_versions_of_plugins(
    version: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / f"jax_cuda13_pjrt-{version}.dist-info"
    info.mkdir()
    text = f"Metadata-Version: 2.1\nName: jax-cuda13-pjrt\nVersion: {version}\n"
    (info / "METADATA").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    check = find(doctor.examine(), "packages")
    assert (check.status, check.text) == (status, f"jax-cuda13-pjrt {version}")


# A PJRT plugin: its API is a struct that starts with its size and a list of extensions.
PLUGIN = """
#include <stddef.h>
struct extension { size_t size; int type; struct extension* next; };
static struct extension last = {SIZE, TYPE, NULL}, first = {24, 3, &last};
static struct { size_t size; struct extension* extensions; size_t version_size; void* none;
                int major, minor; } api = {4096, &first, 24, NULL, 0, 115};
void* GetPjrtApi(void) { return &api; }
"""


def plugin(kind: int, size: int) -> str:
    """The source of a plugin with an extension of that type and size."""
    return PLUGIN.replace("TYPE", str(kind)).replace("SIZE", str(size))


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
@pytest.mark.parametrize(
    ("source", "status", "text"),
    [
        (plugin(24, 40), doctor.OK, "PJRT 0.115, {file}, takes passes (XlaTransform, 40 bytes)"),
        (plugin(24, 24), doctor.PROBLEM, "24 bytes): 40 are needed"),
        (plugin(23, 40), doctor.PROBLEM, "no XlaTransform extension"),
        ("int other;", doctor.PROBLEM, "can't be opened"),
    ],
    ids=["new", "other", "old", "none"],
)
def test_plugin(
    source: str, status: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "xla_cuda13" / "xla_cuda_plugin.so"
    file.parent.mkdir()
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(file)]
    subprocess.run(command, input=source, text=True, check=True)
    monkeypatch.setattr(libraries, "plugin_files", lambda: [file])
    check = find(doctor.examine(), "plugin xla_cuda13")
    assert check.status == status
    assert text.format(file=file) in check.text


# ---------------------------------------------------------------------------
# XLA's libraries


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with stand-ins that install-xla takes for the right one."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    path = tmp_path / "tensorflow_cpu.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tensorflow/python/__init__.py", "")
        needed: list[str] = []
        for name in ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2"):
            library = tmp_path / name
            command = ["cc", "-g", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-Wl,--no-as-needed"]
            command += ["-x", "c", "-", "-x", "none", *needed, "-o", str(library)]
            subprocess.run(command, input="int answer(void) { return 42; }", text=True, check=True)
            archive.write(library, f"tensorflow/{name}")
            needed = [str(library)]
    monkeypatch.setattr(xla_wheel, "_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return path


def test_install_xla(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["install-xla", "--wheel", str(wheel)]) == 0
    home = libraries.xla_home()
    assert str(home) in capsys.readouterr().out
    assert libraries.find_xla(None) == home
    assert {path.name for path in home.iterdir()} == set(libraries.XLA_LIBRARIES)
    assert list(home.parent.iterdir()) == [home]  # nothing temporary stays
    framework, cc = libraries.XLA_LIBRARIES
    # Cut, and still a library.
    assert (home / cc).stat().st_size < (wheel.parent / "libtensorflow_cc.so.2").stat().st_size
    code = (
        "import ctypes, sys\n"
        "libraries = [ctypes.CDLL(path) for path in sys.argv[1:]]\n"
        "print(libraries[-1].answer(), open('/proc/self/maps').read())"
    )

    def load(*paths: Path) -> str:
        command = [sys.executable, "-c", code, *map(str, paths)]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        return done.stdout if done.returncode == 0 else done.stderr

    # Each is bound to its own, whichever the process has loaded before.
    originals = [
        wheel.parent / "libtensorflow_framework.so.2",
        wheel.parent / "libtensorflow_cc.so.2",
    ]
    assert f"{framework}: cannot open shared object" in load(home / cc)
    assert f"{framework}: cannot open shared object" in load(*originals, home / cc)
    found = load(*originals, home / framework, home / cc)
    assert found.startswith("42")
    assert all(str(path) in found for path in (*originals, home / framework, home / cc))
    wheel.unlink()
    assert command_line.main(["install-xla"]) == 0  # there already: nothing to fetch


def test_install_another_wheel(wheel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with wheel.open("ab") as file:
        file.write(b"more")
    assert command_line.main(["install-xla", "--wheel", str(wheel)]) == 2
    assert "SHA-256" in capsys.readouterr().err
    assert not list(libraries.xla_home().iterdir())


def test_install_over_half_of_it(wheel: Path) -> None:
    home = libraries.xla_home()
    home.mkdir(parents=True)
    (home / libraries.XLA_LIBRARIES[0]).write_text("")
    (home / "libtensorflow_cc.so.2").write_text("as earlier versions called it")
    assert xla_wheel.install(wheel) == home
    assert libraries.find_xla(None) == home
    assert {path.name for path in home.iterdir()} == set(libraries.XLA_LIBRARIES)


def test_install_for_all_users(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "environment"))
    assert command_line.main(["install-xla", "--environment", "--wheel", str(wheel)]) == 0
    assert "ONESHOT_XLA_DIR" not in capsys.readouterr().out
    found = libraries.find_xla(None)
    assert found == libraries.xla_environment()
    assert found.is_relative_to(tmp_path / "environment")


def test_install_into_a_directory(
    wheel: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "a place"
    target.mkdir()
    for name in ("notes", "libtensorflow_cc.so.2"):
        (target / name).write_text("somebody's")
    arguments = ["install-xla", "--target", str(target), "--wheel", str(wheel)]
    assert command_line.main(arguments) == 0
    assert f"ONESHOT_XLA_DIR='{target}'" in capsys.readouterr().out
    assert libraries.find_xla(None) is None
    assert libraries.find_xla(target) == target
    for name in ("notes", "libtensorflow_cc.so.2"):
        assert (target / name).read_text() == "somebody's"


def test_install_where_nothing_can_be_written(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    assert command_line.main(["install-xla", "--wheel", str(wheel)]) == 2
    assert capsys.readouterr().err == (
        f"oneshot: {libraries.xla_home()} can't be written (Not a directory): "
        "--environment and --target name other places\n"
    )


def test_install_without_room(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(wheel.parent)._replace(free=5 << 20)
    monkeypatch.setattr(xla_wheel.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(xla_wheel.InstallError, match="5 MiB free"):
        xla_wheel.install(wheel)


def test_install_without_a_download(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(command: list[str], check: bool) -> subprocess.CompletedProcess:
        assert "--no-deps" in command
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(xla_wheel.subprocess, "run", fail)
    with pytest.raises(xla_wheel.InstallError, match="--wheel"):
        xla_wheel.install()
    assert not list(libraries.xla_home().iterdir())
