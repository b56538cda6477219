# SPDX-License-Identifier: Apache-2.0
"""Loads the libraries into JAX. Never initializes a backend, never raises into JAX.

These private names of JAX are used, all in this file. When one is gone, Oneshot says so and stays
off:

* `jax._src.xla_bridge.register_plugin_callbacks`: to see a plugin before its client is created;
  the public `jax.extend.xla` would create the backends.
* `jax._src.xla_bridge.backends_are_initialized`: to ask for the backend only when there is one.
* `jax._src.xla_bridge._init_backend`: to let JAX fail where ONESHOT=require can't be met.
* `jax._src.cache_key.custom_hook`: made for additions to the key of the persistent cache.
* `jax._src.compiler.backend_compile_and_load`: which device each rank of a module is, and so which
  ranks are on one machine. Modules name ranks by numbers alone.
* `jax._src.distributed.global_state`: whether there are several processes, and to reach them.
* `jaxlib._jax.get_pjrt_plugin`, `jaxlib._xla.register_xla_transform`: what `jax.extend.xla` uses.
* `jaxlib._jax.register_custom_call_target`: the public `jax.ffi.register_ffi_target` keeps handlers
  for CPU until JAX makes the backend. A jaxlib with another FFI would refuse them there, and JAX
  could not start.
"""

import contextlib
import functools
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from oneshot import agreement, cached, libraries, log, native
from oneshot import config as config_lib
from oneshot.log import logger
from oneshot.version import __version__

# What XLA says is missing, where an executable is loaded without Oneshot.
TARGET = "oneshot_all_reduce (needs ONESHOT=1)"
"""Target name of the custom-call."""

# As XLA splits XLA_FLAGS: a value may be in quotes.
_FLAG = re.compile(r"""(--[^\s=]+)(?:=("(?:\\.|[^"\\])*"|'[^']*'|\S*))?""")
# Flags by which XLA makes command buffers concurrent, with all values that do not.
_SEQUENTIAL = {
    "--xla_gpu_command_buffer_scheduling_mode": ("SERIALIZE", "LHS"),
    "--xla_gpu_graph_enable_concurrent_region": ("FALSE", "0"),
}
_SEVERAL_PROCESSES = "more than one process"
_COMMAND_BUFFER_COMPATIBLE = 1  # XLA_FFI_HANDLER_TRAITS_COMMAND_BUFFER_COMPATIBLE
_PRE_SCHEDULER = 0

_lock = threading.Lock()
_enabled = False
# Why it is off for a platform, of "cpu" and "cuda"; None where it is on. For which platforms there
# is what it takes, is known only when JAX makes its backends.
_why_off: dict[str, str | None] = {}
_thread = threading.local()  # paused: how often
# Of each process, if there are several, as the vote has found.
_machines: tuple[str, ...] = ()

OLDEST_JAXLIB = (0, 11, 2)
"""The first that lets a pass in."""


class UnavailableError(RuntimeError):
    """Oneshot can't run here. The message says why, and what to do."""


def is_enabled() -> bool:
    """Returns whether programs for JAX's default backend are rewritten from now on.

    Until JAX has made its backends, that one of them lacks something is not known.
    """
    if not _enabled:
        return False
    from jax._src import xla_bridge

    if not xla_bridge.backends_are_initialized():
        return True
    platform = xla_bridge.get_backend().platform
    return platforms().get({"gpu": "cuda"}.get(platform, platform), "not supported") is None


def platforms() -> dict[str, str | None]:
    """Returns why it is off for each platform that has been looked at, None where it is on."""
    cpu = {"cpu": _SEVERAL_PROCESSES} if _enabled and _processes() > 1 else {}
    return _why_off | cpu


def enable(config: config_lib.Config) -> bool:
    """Registers the pass and the handlers with JAX; does nothing the second time.

    Args:
      config: where things are and what to write.

    Returns:
      Whether this was the first time.

    Raises:
      UnavailableError: something that Oneshot needs is missing, or JAX is too old or too new.
    """
    global _enabled
    with _lock:
        if _enabled:
            return False
        log.show(config.log_level)
        for warning in config.warnings:
            logger.warning(warning)
        try:
            _register(config)
        except OSError as error:
            raise UnavailableError(f"a library can't be loaded: {error}") from error
        except (AttributeError, ImportError) as error:
            import jax

            raise UnavailableError(
                f"this jax ({jax.__version__}) has another interface than the one "
                f"Oneshot {__version__} knows: {error}"
            ) from error
        _enabled = True
        if config.required and (reason := _why_off.get("cuda")):
            raise UnavailableError(f"ONESHOT=require, and it is off for cuda: {reason}")
        return True


def was_enabled() -> bool:
    """Returns whether `enable` has gone well."""
    return _enabled


def refuse(reason: str) -> None:
    """Lets JAX fail, with a reason, whenever it is to make a backend.

    What JAX calls while it looks for plugins can't: JAX logs exceptions there, and goes on.
    """
    from jax._src import xla_bridge

    def fail(platform: str) -> None:
        raise UnavailableError(f"ONESHOT=require, and it is off: {reason}")

    xla_bridge._init_backend = fail


def missing_names() -> str | None:
    """Returns the first of JAX's private names that is gone, or None."""
    import importlib

    for module, name in (
        ("jax._src.xla_bridge", "register_plugin_callbacks"),
        ("jax._src.xla_bridge", "backends_are_initialized"),
        ("jax._src.xla_bridge", "_init_backend"),
        ("jax._src.cache_key", "custom_hook"),
        ("jax._src.compiler", "backend_compile_and_load"),
        ("jax._src.distributed", "global_state"),
        ("jaxlib._jax", "get_pjrt_plugin"),
        ("jaxlib._jax", "register_custom_call_target"),
        ("jaxlib._xla", "register_xla_transform"),
    ):
        try:
            getattr(importlib.import_module(module), name)
        except (AttributeError, ImportError):
            return f"{module}.{name}"
    return None


def too_old(jaxlib_version: str) -> str | None:
    """Returns what is to be said of a jaxlib that lets no pass in, or None."""
    if tuple(map(int, re.findall(r"\d+", jaxlib_version)[:3])) >= OLDEST_JAXLIB:
        return None
    oldest = ".".join(map(str, OLDEST_JAXLIB))
    return f"jaxlib {jaxlib_version} is too old: {oldest} or later is needed"


def _register(config: config_lib.Config) -> None:
    import jax
    import jaxlib

    # Some of them have all names, but no hook, and another FFI.
    if reason := too_old(jaxlib.__version__):
        raise UnavailableError(reason)
    import jaxlib._jax
    import jaxlib._xla
    from jax._src import cache_key, compiler, xla_bridge

    register_plugin_callbacks = xla_bridge.register_plugin_callbacks
    register_cpu = jaxlib._xla.register_xla_transform
    previous_key = cache_key.custom_hook
    compile_and_load = compiler.backend_compile_and_load
    _processes()  # If this name is gone, it has to fail here, not inside a compilation.

    xla_dir = libraries.find_xla(config.xla_dir)
    if xla_dir is None:
        raise UnavailableError(libraries.XLA_MISSING)
    if config.required:  # else when the first all-reduce comes
        native.Pass([xla_dir / name for name in libraries.XLA_LIBRARIES])
    hook = native.Hook()
    bundle = _bundle(jax, "liboneshot_host.so", "OneshotHost", ["Instantiate", "Execute"])
    try:
        jaxlib._jax.register_custom_call_target(TARGET, bundle, "Host", 1, 0)
    except (RuntimeError, TypeError) as error:
        raise UnavailableError(
            f"jaxlib {jaxlib.__version__} does not take the handlers of Oneshot {__version__}: "
            f"{error}"
        ) from error
    # Last of what may fail: it can't be taken back.
    try:
        hook.configure(xla_dir, config.dump_to, config.skip, logger.level)
    except RuntimeError as error:
        raise UnavailableError(f"{error}: start another process") from error
    log.take_lines(hook)
    _why_off["cpu"] = None
    suffix = f"oneshot/{__version__}/{libraries.fingerprint(xla_dir)}"
    cache_key.custom_hook = functools.partial(_cache_key, previous_key, suffix, config.skip)
    compiler.backend_compile_and_load = _tell_machines(hook, compile_and_load)

    register_cpu("oneshot", _PRE_SCHEDULER, functools.partial(_transform, hook, config.required))
    cached.watch(config.dump_to)
    logger.info("on for cpu")

    def on_plugin(c_api: Any) -> None:
        # JAX does not guard its callbacks: nothing may leave this one.
        try:
            if not _is_cuda(jaxlib._jax, c_api):
                return
            reason = _register_cuda(jax, hook, c_api, config, suffix)
        except Exception as error:
            reason = str(error)
        _why_off["cuda"] = reason
        if reason is None:
            logger.info("on for cuda")
        else:
            logger.warning("off for cuda, it stays with stock XLA: %s", reason)
            if config.required:
                refuse(f"for cuda: {reason}")

    register_plugin_callbacks(on_plugin)


def _cache_key(previous_key: Callable[[], str], version: str, skip: str) -> str:
    """What tells programs apart that are compiled with the pass, and those without it.

    Also if, with the same libraries, the machine lacks what one platform needs. That is known only
    when backends exist, so JAX asks for the key whenever it needs one.
    """
    if is_paused():
        return previous_key() + "/oneshot disabled"
    on = [platform for platform, reason in _why_off.items() if reason is None]
    skipped = [f"skip {skip}"] if skip else []
    machines = map(str, _numbered(_machines))
    return "/".join([previous_key(), version, str(_processes()), *machines, *on, *skipped])


def is_paused() -> bool:
    """Returns whether modules that this thread compiles stay as they are."""
    return getattr(_thread, "paused", 0) > 0


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Leaves the modules that this thread compiles meanwhile as they are."""
    hook = native.Hook()
    _thread.paused = getattr(_thread, "paused", 0) + 1
    hook.pause(True)
    try:
        yield
    finally:
        _thread.paused -= 1
        hook.pause(is_paused())


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """The same, and what was compiled with Oneshot does not count meanwhile, nor the reverse."""
    if not (_enabled or config_lib.switch()):
        yield
        return
    with _disabled_context()(True), paused():
        yield


def _disabled_context() -> Any:
    with _lock:
        return _make_disabled_context()


@functools.cache
def _make_disabled_context() -> Any:
    import jax

    return jax.make_user_context(default_value=False)


def counts() -> list[int]:
    """Modules that the pass has seen, and all-reduces fused, replaced alone, and left."""
    return native.Hook().counts() if _enabled else [0] * 4


def _transform(hook: native.Hook, required: bool, module: bytes) -> bytes | None:
    """Runs the pass on a serialized module for CPU."""
    # The handler lets ranks meet in memory: those of another process would never come. Asked here,
    # as jax.distributed may be initialized after Oneshot.
    if _processes() > 1:
        if required and b"all-reduce" in module:
            raise UnavailableError(f"ONESHOT=require, and it is off for cpu: {_SEVERAL_PROCESSES}")
        log.warn_once(f"off for cpu, it stays with stock XLA: {_SEVERAL_PROCESSES}")
        return None
    return hook.transform("Host", module)


def _tell_machines[T](hook: native.Hook, compile_and_load: Callable[..., T]) -> Callable[..., T]:
    """Returns JAX's function that compiles a module, so that it tells the hook of machines."""

    @functools.wraps(compile_and_load)
    def told(backend: Any, module: Any, executable_devices: Any, *args: Any, **kwargs: Any) -> T:
        hook.set_machines(_machine_of_ranks(list(executable_devices)))
        try:
            return compile_and_load(backend, module, executable_devices, *args, **kwargs)
        finally:
            hook.set_machines([])

    return told


def _machine_of_ranks(devices: Sequence[Any]) -> list[int]:
    """Returns a number for the machine of each of a program's devices; none if all are on one.

    A topology without devices says which host has which; devices that are there say which process,
    and processes of one machine share it.
    """
    hosts = [(getattr(device, "slice_index", 0), device.process_index) for device in devices]
    if _machines and not _is_topology(devices):
        return _numbered([_machines[process] for _, process in hosts])
    return _numbered(hosts)


def _is_topology(devices: Sequence[Any]) -> bool:
    """Returns whether programs can be compiled for devices, but not run on them."""
    from jaxlib import _jax

    return isinstance(devices[0].client, _jax.CompileOnlyPyClient)


def _numbered(names: Sequence[Any]) -> list[int]:
    """Returns the same number for the same name; nothing if all are the same."""
    numbers: dict[Any, int] = {}
    result = [numbers.setdefault(name, len(numbers)) for name in names]
    return result if len(numbers) > 1 else []


def _bundle(jax: Any, library: str, prefix: str, stages: list[str]) -> dict[str, Any]:
    """Returns the functions of a library that are called prefix + stage, as JAX takes them."""
    functions = native.handlers(library, prefix, stages)
    return {stage: jax.ffi.pycapsule(function) for stage, function in functions.items()}


def _is_cuda(jaxlib_jax: Any, c_api: Any) -> bool:
    """Returns whether `c_api` belongs to JAX's CUDA plugin."""
    if not jaxlib_jax.pjrt_plugin_loaded("cuda"):
        return False
    return native.pjrt_api(c_api) == native.pjrt_api(jaxlib_jax.get_pjrt_plugin("cuda"))


def _register_cuda(
    jax: Any, hook: native.Hook, c_api: Any, config: config_lib.Config, version: str
) -> str | None:
    """Returns None if it is on, else why not."""
    global _machines
    from jax._src import distributed

    reason = _why_not_cuda()
    if _processes() > 1:
        state = distributed.global_state
        process = state.process_id
        machine = agreement.this_machine(process)
        decision = agreement.vote(
            state.client, process, _processes(), version, machine=machine, reason=reason
        )
        reason, _machines = decision.why_not, decision.machines
    if reason:
        return reason
    # Not kept for later: the plugin is there.
    stages = ["Instantiate", "Prepare", "Initialize", "Execute"]
    jax.ffi.register_ffi_target(
        TARGET,
        _bundle(jax, "liboneshot_cuda.so", "OneshotGpu", stages),
        platform="CUDA",
        api_version=1,
        traits=_COMMAND_BUFFER_COMPATIBLE,
    )
    native.Gpu().set_timeout(config.timeout)
    native.Gpu().set_log(hook.log)
    return hook.register(native.pjrt_api(c_api), kernel_compiler())


def kernel_compiler() -> native.KernelCompiler:
    """Returns the C function that the pass has kernels compiled by (OneshotCompile)."""
    return native.Gpu().compiler(libraries.find_nvrtc())


def _processes() -> int:
    """Returns how many processes jax.distributed runs; before it is initialized, 1."""
    from jax._src import distributed

    return getattr(distributed.global_state, "num_processes", None) or 1


def concurrent_flag(flags: str) -> str | None:
    """Finds what must not be in XLA_FLAGS.

    With it XLA may run independent nodes of a CUDA graph at the same time, and with them two calls
    that share a workspace.

    Args:
      flags: the value of XLA_FLAGS, which may name a file of flags.

    Returns:
      The flag, or None.
    """
    if flags and not flags.lstrip().startswith("-"):
        try:
            flags = Path(flags).read_text(errors="replace")
        except OSError:
            return None  # XLA says so itself
    last = {flag[1]: flag for flag in _FLAG.finditer(flags)}  # as in XLA, the last one counts
    for name, values in _SEQUENTIAL.items():
        if (flag := last.get(name)) and (flag[2] or "").strip("'\"").upper() not in values:
            return flag[0]
    return None


def _why_not_cuda() -> str | None:
    if concurrent_flag(os.environ.get("XLA_FLAGS", "")):
        return "XLA_FLAGS asks for concurrent command buffers"
    if libraries.nvrtc() is None:
        return libraries.NVRTC_MISSING
    # Groups need two GPUs, but with several processes each may see one only.
    return native.Gpu().probe(2 if _processes() == 1 else 1)
