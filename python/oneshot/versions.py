# SPDX-License-Identifier: Apache-2.0
"""What a program runs with: for reports and benchmarks, where figures need it."""

import ctypes
import importlib.metadata
import re
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/version")
_GPUS = Path("/proc/driver/nvidia/gpus")


def facts() -> dict[str, str]:
    """Versions of oneshot, jax, jaxlib, NCCL and the driver, and which GPUs there are.

    Initializes neither JAX nor CUDA. What is not there is left out.
    """
    from oneshot.version import __version__

    found = {
        "oneshot": __version__,
        "jax": distribution("jax"),
        "jaxlib": distribution("jaxlib"),
        "NCCL": nccl(),
        "driver": driver(),
        "GPU": gpus(),
    }
    return {name: version for name, version in found.items() if version}


def distribution(name: str) -> str | None:
    """Version of an installed distribution."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def driver() -> str | None:
    """Version of the NVIDIA driver."""
    found = re.search(r"\d+\.\d+(\.\d+)?", _DRIVER.read_text() if _DRIVER.exists() else "")
    return found[0] if found else None


def gpus() -> str | None:
    """Names of the GPUs of this machine, those that the process may not use included."""
    texts = [file.read_text() for file in sorted(_GPUS.glob("*/information"))]
    names = [found[1] for text in texts if (found := re.search(r"Model:\s*(.+)", text))]
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or None


def nccl() -> str | None:
    """Version of the NCCL that this process uses, or else would."""
    files = ["libnccl.so.2"]  # the one that is loaded, or that the linker finds
    for name in ("nvidia-nccl-cu13", "nvidia-nccl-cu12"):
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        files += [
            str(package.locate_file(file))
            for file in package.files or ()
            if file.name == "libnccl.so.2"
        ]
    for file in files:
        try:
            get_version = ctypes.CDLL(file).ncclGetVersion
        except (OSError, AttributeError):
            continue
        number = ctypes.c_int()
        if get_version(ctypes.byref(number)) == 0:
            return f"{number.value // 10000}.{number.value // 100 % 100}.{number.value % 100}"
    return None
