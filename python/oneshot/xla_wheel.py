# SPDX-License-Identifier: Apache-2.0
"""Fetches the two libraries that the pass is linked with, out of a TensorFlow wheel.

Only they are kept, without what the loader never looks at, and under names of their own: the
process may import TensorFlow, too. Nothing of TensorFlow is installed.
"""

import hashlib
import mmap
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from oneshot import libraries

# The libraries are the same for every Python.
_DOWNLOAD = (
    *("--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", "3.12"),
    *("--abi", "cp312", "--platform", "manylinux_2_27_x86_64"),
    f"tensorflow-cpu=={libraries.XLA_VERSION}",
)
# As they are called there: by file, by soname, and by what needs them.
_ORIGINALS = dict(
    zip(
        libraries.XLA_LIBRARIES,
        ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2"),
        strict=True,
    )
)
_SHA256 = "dcc8afd32930e42d5296b6ee19078b773706830af4ea97fbe503b9f5e0f820cb"
_NEEDED_BYTES = 2 << 30  # the wheel, and the libraries before they are cut


class InstallError(RuntimeError):
    """The libraries could not be installed. The message says why."""


def install(wheel: Path | None = None, target: Path | None = None) -> Path:
    """Puts XLA's libraries into a directory, which is made if there is none.

    Args:
      wheel: the wheel, if it is already here; else pip downloads it.
      target: the directory; None for that of the user.

    Returns:
      The directory. Nothing happens if it has them already.

    Raises:
      InstallError: there is no such wheel, it is another one, or there is no room for it.
    """
    elsewhere = "--environment and --target name other places"
    target = target or libraries.xla_home()
    if target is None:
        raise InstallError(f"there is no home directory: {elsewhere}")
    if not libraries.missing_xla(target):
        return target
    try:
        target.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(dir=target, prefix=".install-")
    except OSError as error:
        raise InstallError(f"{target} can't be written ({error.strerror}): {elsewhere}") from error
    with scratch:
        free = shutil.disk_usage(target).free
        if free < _NEEDED_BYTES:
            raise InstallError(
                f"{target} has {free >> 20} MiB free, {_NEEDED_BYTES >> 20} are needed: {elsewhere}"
            )
        made = Path(scratch.name) / "xla"
        try:
            wheel = wheel or _download(Path(scratch.name))
            _verify(wheel)
            made.mkdir()
            _extract(wheel, made)
            for name in libraries.XLA_LIBRARIES:
                (made / name).replace(target / name)
            if target in libraries.xla_places():
                # As earlier versions called them.
                for name in _ORIGINALS.values():
                    (target / name).unlink(missing_ok=True)
        except OSError as error:
            raise InstallError(str(error)) from error
    return target


def _download(directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check"]
    done = subprocess.run([*command, "-d", str(directory), *_DOWNLOAD], check=False)
    found = list(directory.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise InstallError(
            f"pip could not download tensorflow-cpu=={libraries.XLA_VERSION}; where it can, "
            "download the wheel of Python 3.12 and name it with --wheel"
        )
    return found[0]


def _verify(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SHA256:
        raise InstallError(f"{wheel.name} has SHA-256 {found}, not {_SHA256}: not used")


def _extract(wheel: Path, directory: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for original in _ORIGINALS.values():
            target = directory / original
            with archive.open(f"tensorflow/{original}") as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    rename(directory)
    for name in libraries.XLA_LIBRARIES:
        cut(directory / name)


def rename(directory: Path) -> None:
    """Gives the wheel's two libraries in a directory the names of libraries.XLA_LIBRARIES."""
    for new, old in _ORIGINALS.items():
        (directory / old).rename(directory / new)
        rename_sonames(directory / new, {old: new for new, old in _ORIGINALS.items()})


def rename_sonames(library: Path, names: Mapping[str, str]) -> None:
    """Gives an ELF file, and those that it needs, the sonames that `names` has for theirs.

    The linker takes a library that is loaded for another of the same soname. With its own, it
    would bind Oneshot's XLA to the one that TensorFlow has brought along, of whatever version,
    or TensorFlow to ours.
    """
    with library.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        for old, new in names.items():
            # A name in the table of strings lies between zeros; more of them after it are as good.
            length = max(len(old), len(new))
            wanted, given = (b"\0%s\0" % name.encode().ljust(length, b"\0") for name in (old, new))
            at = content.find(wanted)
            while at >= 0:
                content[at : at + len(wanted)] = given
                at = content.find(wanted, at + len(wanted) - 1)


def cut(library: Path) -> None:
    """Cuts off what follows the last segment of an ELF file: symbols for debuggers, sections."""
    with library.open("r+b") as file:
        header = bytearray(file.read(64))
        segments, count = (
            struct.unpack_from("<Q", header, 32)[0],
            struct.unpack_from("<H", header, 56)[0],
        )
        end = 0
        for i in range(count):
            file.seek(segments + 56 * i)
            _, _, offset, _, _, size = struct.unpack("<IIQQQQ", file.read(40))
            end = max(end, offset + size)
        struct.pack_into("<Q", header, 40, 0)  # e_shoff
        struct.pack_into("<HHH", header, 58, 0, 0, 0)  # e_shentsize, e_shnum, e_shstrndx
        file.seek(0)
        file.write(header)
        file.truncate(end)
