# SPDX-License-Identifier: Apache-2.0
"""Every call of C: Oneshot's own libraries, and what is read of PJRT plugins.

Importing this file loads none of them. A library that is missing or lacks a function raises OSError
or AttributeError.
"""

import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

LIBRARIES = Path(__file__).parent / "lib"
"""Oneshot's own shared libraries."""

KernelCompiler = ctypes.c_void_p
"""The address of a OneshotCompile (see pass_library.h)."""

LogFunction = ctypes.c_void_p
"""The address of a OneshotLog (see fault.h)."""

_TEXT = ctypes.c_char_p
_ADDRESS = ctypes.c_void_p
_XLA_TRANSFORM = 24  # type of the PJRT extension


def can_load(library: Path | str) -> bool:
    """Returns whether the linker finds and loads a library."""
    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


def load(library: str) -> ctypes.CDLL:
    """Loads one of our libraries."""
    return ctypes.CDLL(str(LIBRARIES / library))


def handlers(library: str, prefix: str, stages: Sequence[str]) -> dict[str, Any]:
    """Returns the functions of one of our libraries that are called prefix + stage."""
    functions = load(library)
    return {stage.lower(): getattr(functions, prefix + stage) for stage in stages}


class Hook:
    """liboneshot_hook.so; see hook.h."""

    def __init__(self) -> None:
        library = load("liboneshot_hook.so")
        library.oneshot_hook_configure.argtypes = [*(_TEXT,) * 4, ctypes.c_int]
        library.oneshot_hook_configure.restype = ctypes.c_int
        library.oneshot_hook_register.argtypes = [_ADDRESS, KernelCompiler]
        library.oneshot_hook_register.restype = _TEXT
        library.oneshot_hook_transform.argtypes = [
            _TEXT,
            _TEXT,
            ctypes.c_size_t,
            ctypes.POINTER(_ADDRESS),
            ctypes.POINTER(ctypes.c_size_t),
        ]
        library.oneshot_hook_free.argtypes = [_ADDRESS]
        library.oneshot_hook_free.restype = None
        library.oneshot_hook_pause.argtypes = [ctypes.c_int]
        library.oneshot_hook_pause.restype = None
        library.oneshot_hook_counts.argtypes = [ctypes.POINTER(ctypes.c_int64)]
        library.oneshot_hook_counts.restype = None
        library.oneshot_hook_set_machines.argtypes = [ctypes.POINTER(ctypes.c_int), ctypes.c_size_t]
        library.oneshot_hook_set_machines.restype = None
        library.oneshot_log_set_rank.argtypes = [ctypes.c_int, ctypes.c_int]
        library.oneshot_log_set_rank.restype = None
        library.oneshot_log_close.restype = None
        self._library = library

    def configure(self, xla_dir: Path, dump_to: Path | None, skip: str, log_level: int) -> None:
        """Says where the pass and XLA are, where dumps go, what to leave, what to log. Once.

        Raises:
          RuntimeError: that has been said before. It stays as it was.
        """
        if self._library.oneshot_hook_configure(
            os.fsencode(LIBRARIES / "liboneshot_pass.so"),
            os.fsencode(xla_dir),
            os.fsencode(dump_to or ""),
            skip.encode(),
            log_level // 10 - 1,
        ):
            raise RuntimeError("this process has configured liboneshot_hook.so before")

    def register(self, pjrt_api: int, compiler: KernelCompiler | None) -> str | None:
        """Registers the pass with a PJRT plugin; returns what is wrong, or None."""
        error = self._library.oneshot_hook_register(pjrt_api, compiler)
        return error.decode() if error else None

    def transform(self, platform: str, module: bytes) -> bytes | None:
        """Runs the pass on a serialized module, without the GIL; None if it stays as it is."""
        out = _ADDRESS()
        size = ctypes.c_size_t()
        if not self._library.oneshot_hook_transform(
            platform.encode(), module, len(module), ctypes.byref(out), ctypes.byref(size)
        ):
            return None
        try:
            return ctypes.string_at(out, size.value)
        finally:
            self._library.oneshot_hook_free(out)

    def pause(self, paused: bool) -> None:
        """Leaves the modules that this thread compiles from now on as they are, or no longer."""
        self._library.oneshot_hook_pause(int(paused))

    def counts(self) -> list[int]:
        """Modules that the pass has seen, and all-reduces fused, replaced alone, and left."""
        counts = (ctypes.c_int64 * 4)()
        self._library.oneshot_hook_counts(counts)
        return list(counts)

    def set_machines(self, machines: Sequence[int]) -> None:
        """Says on which machine each rank of the modules is that this thread compiles from now on.

        Args:
          machines: a number for the machine of each rank; empty if all are on one.
        """
        array = (ctypes.c_int * len(machines))(*machines)
        self._library.oneshot_hook_set_machines(array, len(machines))

    @property
    def log(self) -> LogFunction:
        """What other libraries hand their lines for the log to."""
        return ctypes.cast(self._library.oneshot_log, LogFunction)

    def lines(self) -> Iterator[tuple[int, str]]:
        """Yields lines of C++ and their `logging` levels, until `close_log`. For one thread.

        Whoever writes a line waits, for a second at most, until the next one is asked for.
        """
        # With the GIL: a line that is taken will be logged.
        take = ctypes.PyDLL(self._library._name).oneshot_log_take
        take.argtypes = [ctypes.POINTER(ctypes.c_int)]
        take.restype = _ADDRESS
        level = ctypes.c_int()
        while self._library.oneshot_log_wait():
            text = _ADDRESS(take(ctypes.byref(level)))
            if text.value:
                yield 10 * (level.value + 1), _take_string(text)

    def close_log(self) -> None:
        """Lets lines of C++ go to stderr from now on."""
        self._library.oneshot_log_close()

    def set_rank(self, rank: int, ranks: int) -> None:
        """Says what lines on stderr say of this process: its number, and how many there are."""
        self._library.oneshot_log_set_rank(rank, ranks)


class Gpu:
    """liboneshot_cuda.so, which loads without a driver."""

    def __init__(self) -> None:
        library = load("liboneshot_cuda.so")
        library.oneshot_gpu_probe.argtypes = [ctypes.c_int]
        library.oneshot_gpu_probe.restype = _TEXT
        library.oneshot_gpu_doctor.argtypes = []
        library.oneshot_gpu_doctor.restype = _ADDRESS
        library.oneshot_gpu_set_timeout.argtypes = [ctypes.c_double]
        library.oneshot_gpu_set_timeout.restype = None
        library.oneshot_gpu_set_log.argtypes = [LogFunction]
        library.oneshot_gpu_set_log.restype = None
        library.oneshot_gpu_set_nvrtc.argtypes = [_TEXT]
        library.oneshot_gpu_set_nvrtc.restype = None
        self._library = library

    def probe(self, gpus: int) -> str | None:
        """Returns why Oneshot can't run here, where `gpus` are needed, or None."""
        reason = self._library.oneshot_gpu_probe(gpus)
        return reason.decode() if reason else None

    def doctor(self, nvrtc: Path | None) -> str:
        """Returns what is known of the GPUs, and of NVRTC as `compiler` would take it, as JSON."""
        self._library.oneshot_gpu_set_nvrtc(os.fsencode(nvrtc or ""))
        return _take_string(_ADDRESS(self._library.oneshot_gpu_doctor()))

    def set_timeout(self, seconds: float) -> None:
        """Says how long a GPU waits for another."""
        self._library.oneshot_gpu_set_timeout(seconds)

    def set_log(self, log: LogFunction) -> None:
        """Says where lines for the log go."""
        self._library.oneshot_gpu_set_log(log)

    def compiler(self, nvrtc: Path | None) -> KernelCompiler:
        """Returns what compiles kernels, with NVRTC from a directory, or else the linker's."""
        self._library.oneshot_gpu_set_nvrtc(os.fsencode(nvrtc or ""))
        return ctypes.cast(self._library.oneshot_gpu_compile, KernelCompiler)


class Pass:
    """liboneshot_pass.so, with the libraries of XLA that it is linked with."""

    def __init__(self, xla: Sequence[Path]) -> None:
        # XLA prints advice about its CPU kernels while it loads, unless this is set; none runs
        # here.
        quiet = "TF_ENABLE_ONEDNN_OPTS"
        ours = quiet not in os.environ
        os.environ.setdefault(quiet, "0")
        try:
            for path in xla:
                ctypes.CDLL(str(path))
            library = load("liboneshot_pass.so")
        finally:
            if ours:
                del os.environ[quiet]
        library.OneshotExplain.argtypes = [
            _TEXT,
            _TEXT,
            _TEXT,
            KernelCompiler,
            _TEXT,
            ctypes.c_size_t,
            ctypes.POINTER(_ADDRESS),
        ]
        self._library = library

    def explain(
        self,
        platform: str,
        dump_to: str,
        module: bytes,
        skip: str = "",
        compiler: KernelCompiler | None = None,
    ) -> str | None:
        """Writes what becomes of a module into a directory; returns what is wrong, or None."""
        message = _ADDRESS()
        if self._library.OneshotExplain(
            platform.encode(),
            os.fsencode(dump_to),
            skip.encode(),
            compiler,
            module,
            len(module),
            ctypes.byref(message),
        ):
            return _take_string(message) or "out of memory"
        return None


def _take_string(text: ctypes.c_void_p) -> str:
    """Returns a string that a C function has malloc'ed, and frees it; empty if it is null."""
    if not text.value:
        return ""
    taken = ctypes.string_at(text.value).decode(errors="replace")
    ctypes.CDLL(None).free(text)
    return taken


def pjrt_api(capsule: Any) -> int:
    """Returns the address of the PJRT_Api inside a capsule of JAX."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    get_pointer.restype = _ADDRESS
    return get_pointer(capsule, b"pjrt_c_api")


class _Extension(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("type", ctypes.c_int), ("next", _ADDRESS))


class _Api(ctypes.Structure):
    _fields_ = (
        ("size", ctypes.c_size_t),
        ("extensions", _ADDRESS),
        ("version_size", ctypes.c_size_t),
        ("version_extensions", _ADDRESS),
        ("major", ctypes.c_int),
        ("minor", ctypes.c_int),
    )


def inspect_plugin(file: Path) -> tuple[str, int]:
    """Opens a PJRT plugin, without initializing it.

    Returns:
      Its version of PJRT, and the size of its XlaTransform extension; 0 if it has none.
    """
    get = ctypes.CDLL(str(file)).GetPjrtApi
    get.restype = ctypes.POINTER(_Api)
    api = get().contents
    address = api.extensions
    size = 0
    while address and not size:
        extension = _Extension.from_address(address)
        if extension.type == _XLA_TRANSFORM:
            size = extension.size
        address = extension.next
    return f"{api.major}.{api.minor}", size
