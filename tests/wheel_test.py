# SPDX-License-Identifier: Apache-2.0
"""The wheel: what is in it, that it is reproducible, and that it installs."""

import base64
import csv
import email
import hashlib
import importlib.metadata
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from oneshot import __version__, libraries

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / "python"
LICENSES = ("LICENSE", "THIRD_PARTY_NOTICES.md")
LIBRARIES = ("liboneshot_hook.so", "liboneshot_pass.so")
INFO = f"oneshot_xla-{__version__}.dist-info"
FILENAME = f"oneshot_xla-{__version__}-py3-none-manylinux_2_34_x86_64.whl"
# What the entry point is, and whether JAX's way to find it works; without JAX.
DISCOVER = """
import importlib, importlib.metadata
(entry,) = importlib.metadata.entry_points(group="jax_plugins", name="oneshot")
module = importlib.import_module(entry.value)
module.initialize()
print(entry.value, module.__file__)
"""


# What each library of the real package is called for; all else is its own business.
EXPORTS = {
    "liboneshot_cuda.so": {
        "OneshotGpuExecute",
        "OneshotGpuInitialize",
        "OneshotGpuInstantiate",
        "OneshotGpuPrepare",
        "oneshot_gpu_compile",
        "oneshot_gpu_doctor",
        "oneshot_gpu_probe",
        "oneshot_gpu_set_log",
        "oneshot_gpu_set_nvrtc",
        "oneshot_gpu_set_timeout",
    },
    "liboneshot_hook.so": {
        "oneshot_hook_configure",
        "oneshot_hook_counts",
        "oneshot_hook_free",
        "oneshot_hook_pause",
        "oneshot_hook_set_machines",
        "oneshot_hook_register",
        "oneshot_hook_transform",
        "oneshot_log",
        "oneshot_log_close",
        "oneshot_log_set_rank",
        "oneshot_log_take",
        "oneshot_log_wait",
    },
    "liboneshot_host.so": {"OneshotHostExecute", "OneshotHostInstantiate"},
    "liboneshot_pass.so": {"OneshotExplain", "OneshotRunPass"},
}
needs_binutils = pytest.mark.skipif(
    not (shutil.which("nm") and shutil.which("readelf")), reason="no binutils"
)


NEEDED, RUNPATH = 1, 29


def elf(dynamic: dict[int, int], data: bytes) -> bytes:
    """What the builder looks at in a library: a header and a dynamic section."""
    entries = [(NEEDED, 0), *dynamic.items(), (NEEDED, 7), (0, 0)]
    section = b"".join(struct.pack("<QQ", *entry) for entry in entries)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF", 3, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return (
        header + struct.pack("<IIQQQQQQ", 2, 6, 120, 0, 0, *[len(section)] * 2, 8) + section + data
    )


class Built(NamedTuple):
    """A wheel, and the same files in a directory."""

    wheel: Path
    site: Path


def build(directory: Path) -> Built:
    """Builds a wheel of the package, with stand-ins for the libraries."""
    directory.mkdir(exist_ok=True)
    libraries = [directory / name for name in LIBRARIES]
    for library in libraries:
        library.write_bytes(elf({RUNPATH: 1}, library.name.encode() * 1000))
    built = Built(directory / FILENAME, directory / "site")
    modules = sorted((PYTHON / "oneshot").glob("*.py"))
    subprocess.run(
        [
            *(sys.executable, PYTHON / "build_wheel.py"),
            *("--wheel", built.wheel, "--site", built.site),
            *("--modules", *modules, "--libraries", *libraries),
            *("--readme", ROOT / "README.md"),
            *("--licenses", *(ROOT / name for name in LICENSES)),
        ],
        check=True,
    )
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """One wheel for all tests."""
    return build(tmp_path_factory.mktemp("first"))


def discover(path: Path) -> list[str]:
    """Finds the entry point with `path` as the only addition to Python's own."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ONESHOT")}
    return subprocess.run(
        [sys.executable, "-c", DISCOVER],
        env=environ | {"PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()


def test_reproducible(built: Built, tmp_path: Path) -> None:
    again = build(tmp_path / "second")
    assert again.wheel.read_bytes() == built.wheel.read_bytes()


def test_record(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        assert wheel.testzip() is None
        names = wheel.namelist()
        rows = list(csv.reader(wheel.read(f"{INFO}/RECORD").decode().splitlines()))
        assert [row[0] for row in rows] == names
        assert rows[-1] == [f"{INFO}/RECORD", "", ""]
        for name, digest, size in rows[:-1]:
            data = wheel.read(name)
            expected = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
            assert (digest, size) == (f"sha256={expected.rstrip('=')}", str(len(data)))
    assert {f"oneshot/lib/{name}" for name in LIBRARIES} < set(names)
    assert "oneshot/jax_plugin.py" in names


def test_site_has_the_same_files(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        inside = {name: wheel.read(name) for name in wheel.namelist()}
    files = [path for path in built.site.rglob("*") if path.is_file()]
    assert {str(path.relative_to(built.site)): path.read_bytes() for path in files} == inside


def test_metadata(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        metadata = email.message_from_bytes(wheel.read(f"{INFO}/METADATA"))
        tags = wheel.read(f"{INFO}/WHEEL").decode().splitlines()
        licenses = {name: wheel.read(f"{INFO}/licenses/{name}") for name in LICENSES}
    assert metadata["Version"] == __version__
    assert metadata["Requires-Python"] == ">=3.12"
    assert metadata["Name"] == "oneshot-xla"
    cudas = ["cuda12", "cuda13"]
    assert metadata.get_all("Requires-Dist") == [
        f'jax[{cuda}]>=0.11.2; extra == "{cuda}"' for cuda in cudas
    ]
    assert metadata.get_all("Provides-Extra") == cudas
    assert metadata.get_all("License-File") == list(licenses)
    assert licenses == {name: (ROOT / name).read_bytes() for name in LICENSES}
    description = metadata.get_payload(decode=True).decode()
    assert "# Oneshot" in description
    assert re.findall(r"\]\((?!https?:)", description) == []  # would lead nowhere
    assert "docs/install.md has what they cost" in description
    assert "Tag: py3-none-manylinux_2_34_x86_64" in tags


def test_libraries_lose_their_runpath_and_nothing_else(built: Built) -> None:
    for name in LIBRARIES:
        before = elf({RUNPATH: 1}, name.encode() * 1000)
        after = (built.site / "oneshot" / "lib" / name).read_bytes()
        runpath, rest = struct.pack("<QQ", RUNPATH, 1), struct.pack("<QQQQ", NEEDED, 7, 0, 0)
        assert runpath + rest in before
        assert after == before.replace(runpath + rest, rest + bytes(len(runpath)))


def test_site_on_the_path_is_found(built: Built) -> None:
    value, file = discover(built.site)
    assert value == "oneshot.jax_plugin"
    assert Path(file).is_relative_to(built.site)


def test_pip_installs_it(built: Built, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--target", tmp_path]
    subprocess.run([*command, *options, built.wheel], check=True)
    for name in LIBRARIES:
        assert (tmp_path / "oneshot" / "lib" / name).is_file()
    value, file = discover(tmp_path)
    assert value == "oneshot.jax_plugin"
    assert Path(file).is_relative_to(tmp_path)
    assert "oneshot.__main__ import main" in (tmp_path / "bin" / "oneshot").read_text()


# ---------------------------------------------------------------------------
# The package that the tests run with


def library(name: str) -> Path:
    """Path of a library of the package."""
    distribution = importlib.metadata.distribution("oneshot-xla")
    return Path(str(distribution.locate_file(f"oneshot/lib/{name}")))


def test_package_is_complete_and_as_recorded() -> None:
    distribution = importlib.metadata.distribution("oneshot-xla")
    assert distribution.version == __version__
    (entry,) = distribution.entry_points.select(group="jax_plugins")
    assert callable(entry.load().initialize)
    recorded = distribution.files or []
    assert {file.name for file in recorded if file.suffix == ".so"} == set(EXPORTS)
    for file in recorded:
        data = file.read_binary()
        if file.name == "RECORD":
            continue
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode()
        assert file.hash
        assert (file.hash.value, file.size) == (digest.rstrip("="), len(data)), file


@needs_binutils
@pytest.mark.parametrize("name", EXPORTS)
def test_exports(name: str) -> None:
    command = ["nm", "--dynamic", "--defined-only", "--format=posix", library(name)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # Weak ones are what C++ instantiates everywhere.
    strong = {row[0] for row in map(str.split, symbols.splitlines()) if row[1] not in "VWu"}
    assert strong == EXPORTS[name]


@needs_binutils
@pytest.mark.parametrize("name", EXPORTS)
def test_needs_only_the_system_and_xla(name: str) -> None:
    command = ["readelf", "--dynamic", "--wide", library(name)]
    dynamic = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic))
    system = {"ld-linux-x86-64.so.2", "libc.so.6", "libgcc_s.so.1", "libm.so.6", "libstdc++.so.6"}
    xla = set(libraries.XLA_LIBRARIES) if name == "liboneshot_pass.so" else set()
    assert needed - system == xla
    assert "(RUNPATH)" not in dynamic
    assert "(RPATH)" not in dynamic


@pytest.mark.parametrize("name", EXPORTS)
def test_has_no_cuda_runtime(name: str) -> None:
    # Linked statically it would show in no list of needed libraries.
    assert not re.search(rb"cudart|cuda(Malloc|GetLastError)", library(name).read_bytes())


# What manylinux_2_34 has.
NEWEST = {"GLIBC": (2, 34), "GLIBCXX": (3, 4, 29), "CXXABI": (1, 3, 13), "GCC": (12, 0, 0)}


@needs_binutils
@pytest.mark.parametrize("name", EXPORTS)
def test_fits_the_platform_tag(name: str) -> None:
    command = ["readelf", "--version-info", "--wide", library(name)]
    versions = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.findall(r"Name: (GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)", versions)
    assert found
    for kind, version in found:
        assert tuple(map(int, version.split("."))) <= NEWEST[kind], f"{kind}_{version}"
