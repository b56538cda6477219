# SPDX-License-Identifier: Apache-2.0
"""`python -m oneshot doctor`: what Oneshot needs, whether it is there, and what to do if not."""

import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from oneshot import config, hook


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
      what: its name.
      state: "ok", "problem" (keeps Oneshot off) or "note".
      text: what was found.
      advice: what to do about a problem.
    """

    what: str
    state: str
    text: str
    advice: str = ""


def examine() -> list[Finding]:
    """Looks at everything. Starts no backend of JAX and makes no context on a GPU."""
    findings: list[Finding] = []
    for check in (_python, _jax, _plugins, _libraries, _xla, _gpus, _nvrtc, _environment, _cache):
        try:
            findings += check()
        except Exception as error:
            name = check.__name__.strip("_")
            findings.append(Finding(name, "problem", f"can't be looked at: {error!r}"))
    return findings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _python() -> Iterator[Finding]:
    # An older one has not come as far as here.
    yield Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))


def _jax() -> Iterator[Finding]:
    for name in ("jax", "jaxlib"):
        version = _version(name)
        if version is None:
            yield Finding(name, "problem", "not installed", f"pip install {name}==0.11.2")
        elif tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < (0, 11, 2):
            yield Finding(name, "problem", version, "has no compiler hook: use 0.11.2 or later")
        else:
            yield Finding(name, "ok", version)
    missing = hook.missing_names()
    if missing:
        yield Finding("jax's interfaces", "problem", f"{missing} is gone", "use jax 0.11.2")
    else:
        yield Finding("jax's interfaces", "ok", "all that Oneshot uses are there")


def _plugins() -> Iterator[Finding]:
    found = [
        f"{distribution.name} {distribution.version}"
        for distribution in importlib.metadata.distributions()
        if (distribution.name or "").startswith("jax-cuda") and "plugin" in distribution.name
    ]
    text = ", ".join(sorted(found))
    if text:
        yield Finding("CUDA plugin", "ok", text)
    else:
        yield Finding("CUDA plugin", "note", "not installed: CPU emulation only")


def _libraries() -> Iterator[Finding]:
    for name in ("hook", "host", "cuda"):
        file = config.LIBRARIES / f"liboneshot_{name}.so"
        try:
            ctypes.CDLL(str(file))
        except OSError as error:
            yield Finding(file.name, "problem", str(error), "reinstall Oneshot")
        else:
            yield Finding(file.name, "ok", f"{file.stat().st_size / 2**20:.1f} MiB")


def _xla() -> Iterator[Finding]:
    directory = config.find_xla(config.read())
    if directory is None:
        advice = "pip install --no-deps tensorflow-cpu==2.21.0, or set ONESHOT_XLA_DIR"
        yield Finding("XLA's libraries", "problem", "not found", advice)
        return
    size = sum((directory / name).stat().st_size for name in config.XLA_LIBRARIES)
    yield Finding("XLA's libraries", "ok", f"{directory}, {size / 2**20:.0f} MiB")


def _gpus() -> Iterator[Finding]:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        yield Finding("NVIDIA driver", "note", "none: CPU emulation only")
        return
    version, count = ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        yield Finding("NVIDIA driver", "problem", "does not start", "see nvidia-smi")
        return
    driver.cuDriverGetVersion(ctypes.byref(version))
    yield Finding(
        "NVIDIA driver", "ok", f"CUDA {version.value // 1000}.{version.value % 1000 // 10}"
    )
    name, major, minor = ctypes.create_string_buffer(96), ctypes.c_int(), ctypes.c_int()
    for i in range(count.value):
        driver.cuDeviceGetName(name, len(name), i)
        driver.cuDeviceGetAttribute(ctypes.byref(major), 75, i)
        driver.cuDeviceGetAttribute(ctypes.byref(minor), 76, i)
        text = f"{name.value.decode()}, compute capability {major.value}.{minor.value}"
        old = major.value < 8
        advice = "needs 8.0 or later" if old else ""
        yield Finding(f"GPU {i}", "problem" if old else "ok", text, advice)
    yield from _peers(driver.cuDeviceCanAccessPeer, count.value)


def _peers(can_access: Callable[..., int], count: int) -> Iterator[Finding]:
    possible = ctypes.c_int()
    if count < 2:
        yield Finding("peer access", "note", "there is one GPU: nothing to reduce with")
        return
    refused = []
    for i in range(count):
        for j in range(count):
            if i != j and (can_access(ctypes.byref(possible), i, j) or not possible.value):
                refused.append(f"{i} to {j}")
    if refused:
        advice = "needs NVLink between the GPUs of a group: see nvidia-smi topo -m"
        yield Finding("peer access", "problem", f"none from {', '.join(refused)}", advice)
    else:
        yield Finding("peer access", "ok", f"between all {count} GPUs")


def _nvrtc() -> Iterator[Finding]:
    directory = config.find_nvrtc()
    if directory is not None:
        yield Finding("NVRTC", "ok", str(directory))
        return
    for name in ("libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        yield Finding("NVRTC", "ok", name)
        return
    yield Finding("NVRTC", "note", "not found: needed on GPUs; pip install nvidia-cuda-nvrtc")


def _environment() -> Iterator[Finding]:
    try:
        config.read()
    except config.ConfigError as error:
        yield Finding("ONESHOT_*", "problem", str(error), "unset or correct it")
        return
    values = " ".join(f"{n}={v}" for n, v in sorted(os.environ.items()) if n.startswith("ONESHOT"))
    yield Finding("ONESHOT_*", "ok", values or "none set: Oneshot is off")
    flags = os.environ.get("XLA_FLAGS", "")
    if hook.CONCURRENT in flags.upper():
        yield Finding("XLA_FLAGS", "problem", flags, "remove concurrent command buffers")
    elif flags:
        yield Finding("XLA_FLAGS", "note", flags)


def _cache() -> Iterator[Finding]:
    directory = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    text = f"{directory}; its keys tell programs with Oneshot apart" if directory else "off"
    yield Finding("compilation cache", "ok", text)
