# SPDX-License-Identifier: Apache-2.0
"""Where libraries of XLA and NVIDIA are looked for, and what of them is in the cache key."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from oneshot import libraries, native, xla_wheel


def test_find_xla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LIBRARIES", tmp_path / "lib")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(libraries.sys, "prefix", str(tmp_path / "environment"))
    named = tmp_path / "named"
    assert libraries.find_xla(named) is None
    # The last of those that are there wins, from the least to the most specific place.
    folder = f"oneshot/xla-{libraries.XLA_VERSION}"
    for place in (f"data/{folder}", f"environment/share/{folder}", "lib/xla", "named"):
        directory = tmp_path / place
        directory.mkdir(parents=True)
        for name in libraries.XLA_LIBRARIES:
            assert libraries.find_xla(named) != directory
            (directory / name).touch()
        assert libraries.find_xla(named) == directory


def test_no_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert libraries.xla_home() is None
    libraries.find_xla(None)
    with pytest.raises(xla_wheel.InstallError, match="no home directory: --environment"):
        xla_wheel.install()


class Nvrtc:
    """An installed distribution of NVRTC, with files that do not matter and one that does."""

    installed = ("nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12")

    def __init__(self, name: str):
        if name not in self.installed:
            raise importlib.metadata.PackageNotFoundError
        self.files = [Path("nvidia/README"), Path(name, "lib/libnvrtc.so.1x")]

    @staticmethod
    def locate_file(path: Path) -> Path:
        """As in importlib.metadata."""
        return "/site" / path


def test_find_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries.importlib.metadata, "distribution", Nvrtc)
    old, new = Path("/site/nvidia-cuda-nvrtc-cu12/lib"), Path("/site/nvidia-cuda-nvrtc/lib")
    for plugins, found in [
        ([], new),
        ([Path("/p/xla_cuda13/xla_cuda_plugin.so")], new),
        ([Path("/p/xla_cuda12/xla_cuda_plugin.so")], old),
    ]:
        monkeypatch.setattr(libraries, "plugin_files", lambda plugins=plugins: plugins)
        assert libraries.find_nvrtc() == found
        assert libraries.nvrtc() == str(found)
    # Better that of another CUDA than none: a driver may take what both make.
    monkeypatch.setattr(Nvrtc, "installed", ("nvidia-cuda-nvrtc",))
    assert libraries.find_nvrtc() == new


LOAD = """
import ctypes, sys
from pathlib import Path
from oneshot import libraries
files = [Path(file) for file in sys.argv[1:]]
libraries.plugin_files = lambda: files
print(libraries.plugin_cuda())
ctypes.CDLL(files[0])
print(libraries.plugin_cuda())
"""


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
def test_the_cuda_of_the_plugin_that_is_loaded(tmp_path: Path) -> None:
    files = [tmp_path / f"xla_cuda{major}" / "xla_cuda_plugin.so" for major in (12, 13)]
    for file in files:
        file.parent.mkdir()
        command = ["cc", "-shared", "-x", "c", "/dev/null", "-o", str(file)]
        subprocess.run(command, check=True)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, files)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "12"]


def test_nvrtc_of_the_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "find_nvrtc", lambda: None)
    monkeypatch.setattr(libraries, "_NVRTC", ("libnone.so", "libc.so.6"))
    assert libraries.nvrtc() == "libc.so.6"
    monkeypatch.setattr(libraries, "_NVRTC", ("libnone.so",))
    assert libraries.nvrtc() is None


def test_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xla = tmp_path / "xla"
    xla.mkdir()
    monkeypatch.setattr(native, "LIBRARIES", tmp_path)
    ours, theirs = tmp_path / "liboneshot_a.so", xla / libraries.XLA_LIBRARIES[0]
    for path in (ours, *(xla / name for name in libraries.XLA_LIBRARIES)):
        path.write_bytes(b"same")
    first = libraries.fingerprint(xla)
    assert libraries.fingerprint(xla) == first
    theirs.write_bytes(b"emas")  # of XLA's, only the sizes count
    assert libraries.fingerprint(xla) == first
    theirs.write_bytes(b"sam")
    second = libraries.fingerprint(xla)
    ours.write_bytes(b"emas")
    assert len({first, second, libraries.fingerprint(xla)}) == 3
