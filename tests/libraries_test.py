# SPDX-License-Identifier: Apache-2.0
"""Where libraries of XLA and NVIDIA are looked for, and what of them is in the cache key."""

import importlib.metadata
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

    def __init__(self, name: str):
        if name != "nvidia-cuda-nvrtc":
            raise importlib.metadata.PackageNotFoundError
        self.files = [Path("nvidia/README"), Path("nvidia/lib/libnvrtc.so.13")]

    @staticmethod
    def locate_file(path: Path) -> Path:
        """As in importlib.metadata."""
        return "/site" / path


def test_find_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries.importlib.metadata, "distribution", Nvrtc)
    assert libraries.find_nvrtc() == Path("/site/nvidia/lib")
    assert libraries.nvrtc() == "/site/nvidia/lib"


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
