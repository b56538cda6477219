# SPDX-License-Identifier: Apache-2.0
"""Looks at everything that Oneshot needs, and says what is missing and what to do about it.

Makes no backend: JAX's plugins are only opened. Where there are GPUs it times copies between them,
so it should run while nothing else does.
"""

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oneshot import config as config_lib
from oneshot import explanation, hook, libraries, native
from oneshot.version import __version__
from oneshot.versions import distribution as distribution_version
from oneshot.versions import driver as driver_version

OK = "ok"
NOTE = "note"
PROBLEM = "PROBLEM"
"""Keeps Oneshot off."""

_OLDEST_JAX = ".".join(map(str, hook.OLDEST_JAXLIB))
_XLA_TRANSFORM_BYTES = 40  # size of the PJRT extension, version 1


@dataclass(frozen=True)
class Check:
    """What one look has found.

    Attributes:
      name: what was looked at.
      status: OK, NOTE (fine, but worth knowing) or PROBLEM.
      text: what is there.
      advice: what to do about it; empty if nothing.
      lines: more, for people.
      data: more, for programs.
    """

    name: str
    status: str
    text: str
    advice: str = ""
    lines: tuple[str, ...] = ()
    data: Any = field(default=None)


def examine() -> list[Check]:
    """Runs all checks. What goes wrong in one is its finding; the others go on."""
    gpus = gpu_facts()
    checks: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("python", _python),
        ("jax", _jax),
        ("plugin", lambda: _plugins(has_driver=bool(gpus.get("driver")))),
        ("oneshot", _own_libraries),
        ("XLA", _xla),
        ("GPU", lambda: _gpus(gpus)),
        ("NVRTC", lambda: _nvrtc(gpus)),
        ("cache", _cache),
        ("environment", _environment),
    ]
    found = []
    for name, check in checks:
        try:
            found += check()
        except Exception as error:  # a diagnosis that stops half-way helps nobody
            found.append(Check(name, PROBLEM, f"{type(error).__name__}: {error}"))
    return found


def to_text(checks: list[Check]) -> str:
    """One line for each check, and a last one that sums up."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:8}{check.name:{width}}  {check.text}")
        indent = " " * (8 + width + 2)
        lines += [indent + line for line in check.lines]
        if check.advice:
            lines.append(f"{indent}-> {check.advice}")
    problems = sum(check.status == PROBLEM for check in checks)
    lines.append(f"{problems} problem{'s' * (problems != 1)}" if problems else "all is well")
    return "\n".join(lines)


def to_json(checks: list[Check]) -> str:
    """The same for programs."""
    healthy = not any(check.status == PROBLEM for check in checks)
    return json.dumps({"ok": healthy, "checks": [asdict(check) for check in checks]}, indent=1)


def gpu_facts() -> dict[str, Any]:
    """What liboneshot_cuda.so says about the GPUs; with the reason in `error` if it can't."""
    try:
        gpu = native.Gpu()
        facts = json.loads(gpu.doctor(libraries.find_nvrtc()))
        return facts | {"why_not": (gpu.probe(2) if facts["driver"] else None) or ""}
    except (OSError, AttributeError) as error:
        return {"error": f"liboneshot_cuda.so: {error}"}


def _python() -> Iterator[Check]:
    text = f"{platform.python_version()}, {platform.platform(terse=True)}"
    yield Check("python", OK, text, data={"python": platform.python_version()})


def _jax() -> Iterator[Check]:
    for name in ("jax", "jaxlib"):
        version = distribution_version(name)
        if version is None:
            yield Check(name, PROBLEM, "not installed", "pip install 'jax[cuda13]'")
        elif hook.too_old(version):
            advice = f"pip install --upgrade 'jax[cuda13]>={_OLDEST_JAX}'"
            text = f"{version} is too old: {_OLDEST_JAX} or later is needed"
            yield Check(name, PROBLEM, text, advice)
        else:
            yield Check(name, OK, version)
    if missing := hook.missing_names():
        advice = "install the jax that this version of Oneshot is made for"
        yield Check("interfaces", PROBLEM, f"JAX's {missing} is gone", advice)


def _plugins(has_driver: bool) -> Iterator[Check]:
    import jaxlib._xla

    # Whether it has the function says nothing of an old one.
    if hook.too_old(distribution_version("jaxlib") or "0"):
        yield Check("plugin cpu", PROBLEM, "part of jaxlib, which is too old")
    elif hasattr(jaxlib._xla, "register_xla_transform"):
        yield Check("plugin cpu", OK, "part of jaxlib, takes passes")
    else:
        yield Check("plugin cpu", PROBLEM, "this jaxlib takes no passes", "install another jaxlib")
    files = libraries.plugin_files()
    for file in files:
        yield _plugin(file)
    if has_driver and not files:
        advice = "pip install 'jax[cuda13]'"
        yield Check("plugin cuda", PROBLEM, "JAX has no CUDA plugin and runs on CPU", advice)
    versions = {
        distribution.name: distribution.version
        for distribution in importlib.metadata.distributions()
        if (distribution.name or "").startswith("jax-cuda")
    }
    if versions:
        text = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
        if set(versions.values()) == {distribution_version("jaxlib")}:
            yield Check("packages", OK, text)
        else:
            yield Check("packages", NOTE, text, "use the versions that fit jaxlib")


def _plugin(file: Path) -> Check:
    name = f"plugin {file.parent.name}"
    try:
        version, size = native.inspect_plugin(file)
    except (OSError, AttributeError) as error:
        return Check(name, PROBLEM, f"can't be opened: {error}", "reinstall 'jax[cuda13]'")
    text = f"PJRT {version}, {file}"
    advice = f"install the plugin of jax {_OLDEST_JAX} or later"
    if not size:
        return Check(name, PROBLEM, f"{text} has no XlaTransform extension", advice)
    text += f", takes passes (XlaTransform, {size} bytes)"
    if size < _XLA_TRANSFORM_BYTES:
        return Check(name, PROBLEM, f"{text}: {_XLA_TRANSFORM_BYTES} are needed", advice)
    return Check(name, OK, text)


def _own_libraries() -> Iterator[Check]:
    for name in ("liboneshot_hook.so", "liboneshot_host.so", "liboneshot_cuda.so"):
        try:
            native.load(name)
        except OSError as error:
            yield Check("oneshot", PROBLEM, str(error), "reinstall oneshot")
            return
    points = importlib.metadata.entry_points(group="jax_plugins", name="oneshot")
    if not points:
        text = "JAX won't find it: there is no entry point `oneshot` in the group jax_plugins"
        yield Check("oneshot", PROBLEM, text, "install the wheel; a copy of its files won't do")
        return
    yield Check("oneshot", OK, f"{__version__}, {native.LIBRARIES}")


def _xla() -> Iterator[Check]:
    try:
        found = libraries.find_xla(config_lib.read().xla_dir)
    except config_lib.ConfigError:
        return  # the environment is a check of its own
    if found is None:
        lines = tuple(f"not in {place}" for place in libraries.xla_places())
        advice = "python -m oneshot install-xla, with --environment for other users, too"
        yield Check("XLA", PROBLEM, "libraries not found", advice, lines)
        return
    size = sum((found / name).stat().st_size for name in libraries.XLA_LIBRARIES)
    text = f"{found}, {size / 1e6:.0f} MB"
    try:
        explanation.load_pass()
    except explanation.ExplainError as error:
        advice = "python -m oneshot install-xla, and unset ONESHOT_XLA_DIR"
        yield Check("XLA", PROBLEM, f"{text}: {error}", advice)
    else:
        yield Check("XLA", OK, f"{text}, the pass loads")


def _gpus(facts: dict[str, Any]) -> Iterator[Check]:
    if facts["error"] == "there is no CUDA driver":
        yield Check("GPU", NOTE, "no NVIDIA driver: CPU emulation only")
        return
    if facts["error"]:
        yield Check("GPU", PROBLEM, facts["error"], "look at nvidia-smi and at dmesg")
        return
    driver = f"{version}, " if (version := driver_version()) else ""
    version = facts["driver"]
    text = f"{driver}up to CUDA {_cuda(version)}"
    yield Check("driver", OK, text, data={"driver": version})
    devices = facts["devices"]
    lines = tuple(
        f"{i}: {device['name']}, compute capability {device['compute_capability']}, "
        f"{device['bytes'] / 2**30:.0f} GiB"
        for i, device in enumerate(devices)
    )
    text = f"{len(devices)} visible"
    if facts["why_not"]:
        advice = "stock XLA runs; see docs/troubleshooting.md"
        yield Check("GPU", PROBLEM, f"{text}: {facts['why_not']}", advice, lines, devices)
    else:
        yield Check("GPU", OK, text, lines=lines, data=devices)
    if facts["links"]:
        yield _links(facts["links"], len(devices))


def _links(links: list[dict[str, Any]], count: int) -> Check:
    cells = {(link["from"], link["to"]): link for link in links}

    def table(title: str, cell: Callable[[dict[str, Any]], str]) -> Iterator[str]:
        yield f"{title:24}" + "".join(f"{f'to {j}':>9}" for j in range(count))
        for i in range(count):
            row = (cell(cells[i, j]) if (i, j) in cells else "" for j in range(count))
            yield f"  {f'from {i}':22}" + "".join(f"{text:>9}" for text in row)

    lines = [
        *table("copy of 16 bytes, us", lambda link: f"{link['microseconds']:.1f}"),
        *table("copy of 64 MiB, GB/s", lambda link: f"{link['gigabytes_per_second']:.0f}"),
    ]
    names = [f"{link['from']} to {link['to']}" for link in links if not link["peer_access"]]
    errors = {link["error"] for link in links if link["error"]}
    if names or errors:
        parts = [f"no peer access from {', '.join(names)}"] if names else []
        advice = "NVLink, or a PCIe system without ACS; in a container: all GPUs in one"
        return Check("links", PROBLEM, "; ".join([*parts, *errors]), advice, tuple(lines), links)
    text = "each GPU reaches each other" if count > 1 else "the GPU reaches its own memory"
    return Check("links", OK, text, lines=tuple(lines), data=links)


def _nvrtc(facts: dict[str, Any]) -> Iterator[Check]:
    if not (nvrtc := facts.get("nvrtc")):
        return  # the library that would look for it is another check
    if nvrtc["error"]:
        if not facts["driver"]:
            yield Check("NVRTC", NOTE, "not found; only GPUs need it")
            return
        advice = "install the jax[cuda12] or jax[cuda13] that fits the driver"
        yield Check("NVRTC", PROBLEM, nvrtc["error"], advice)
        return
    plugin = libraries.plugin_cuda()
    text = f"{_cuda(nvrtc['version'])}, {nvrtc['file']}"
    if plugin and facts["driver"]:
        text += (
            f"; JAX's plugin is of CUDA {plugin}, the driver takes up to {_cuda(facts['driver'])}"
        )
    yield Check("NVRTC", OK, text, data=nvrtc | {"plugin": plugin})


def _cuda(version: int) -> str:
    """A version of CUDA's, of which the driver says 12040 for 12.4."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _cache() -> Iterator[Check]:
    import jax

    directory = jax.config.jax_compilation_cache_dir
    if not directory or not jax.config.jax_enable_compilation_cache:
        yield Check("cache", OK, "JAX's persistent compilation cache is off")
        return
    text = f"{directory}; programs with and without Oneshot are kept apart"
    yield Check("cache", OK, text)


def _environment() -> Iterator[Check]:
    variables = {k: v for k, v in sorted(os.environ.items()) if k.startswith("ONESHOT")}
    text = " ".join(f"{k}={v}" for k, v in variables.items()) or "no ONESHOT variables"
    try:
        enabled = config_lib.switch()
        warnings = config_lib.read().warnings
    except config_lib.ConfigError as error:
        first, *rest = str(error).splitlines()
        yield Check("environment", PROBLEM, first, lines=tuple(rest))
        return
    status, advice = (OK, "") if enabled else (NOTE, "ONESHOT=1 switches it on")
    if warnings:
        status = NOTE
    yield Check("environment", status, text, advice, warnings, variables)
    flags = os.environ.get("XLA_FLAGS", "")
    if concurrent := hook.concurrent_flag(flags):
        advice = f"remove {concurrent}"
        yield Check("XLA_FLAGS", PROBLEM, "asks for concurrent command buffers", advice)
    elif flags:
        yield Check("XLA_FLAGS", OK, flags)
