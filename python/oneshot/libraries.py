# SPDX-License-Identifier: Apache-2.0
"""Where the libraries are that Oneshot needs, and which ones: XLA's, NVIDIA's, its own."""

import hashlib
import importlib.metadata
import os
import re
import sys
from pathlib import Path

from oneshot import native

XLA_LIBRARIES = ("liboneshot_xla_framework.so", "liboneshot_xla_cc.so")
"""XLA, as `xla_wheel` takes it out of the tensorflow wheel; the first is loaded first."""

XLA_VERSION = "2.21.0"
"""Of the tensorflow wheel: the pass fits no other."""

XLA_MISSING = (
    "XLA's libraries are missing: run `python -m oneshot install-xla`, with --environment for all "
    "users of this Python, or name the directory that holds them in ONESHOT_XLA_DIR"
)
"""What to say where `find_xla` finds nothing."""

NVRTC_MISSING = "NVRTC is missing: pip install 'jax[cuda13]' or 'jax[cuda12]', which bring it"
"""What to say where `nvrtc` finds nothing."""

_NVRTC = ("libnvrtc.so.13", "libnvrtc.so.12")
_NVRTC_PACKAGES = {13: "nvidia-cuda-nvrtc", 12: "nvidia-cuda-nvrtc-cu12"}
_PLUGIN = re.compile(r"/xla_cuda(\d+)/[^/\n]*plugin\.so")


def xla_home() -> Path | None:
    """The directory of the user's own copy of XLA's libraries, shared by all environments.

    None for a user without a home directory.
    """
    data = os.environ.get("XDG_DATA_HOME")
    if not data:
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError:
            return None
    return Path(data) / "oneshot" / f"xla-{XLA_VERSION}"


def xla_environment() -> Path:
    """The directory of XLA's libraries for all users of this Python or virtual environment."""
    return Path(sys.prefix) / "share" / "oneshot" / f"xla-{XLA_VERSION}"


def missing_xla(directory: Path) -> list[str]:
    """Returns which of XLA_LIBRARIES a directory lacks, or has and does not let this user read."""
    return [
        name
        for name in XLA_LIBRARIES
        if not (os.path.isfile(directory / name) and os.access(directory / name, os.R_OK))
    ]


def xla_places() -> list[Path]:
    """Where XLA's libraries are looked for, in this order, if nobody names a directory."""
    home = xla_home()
    return [native.LIBRARIES / "xla", xla_environment(), *([home] if home else [])]


def find_xla(named: Path | None) -> Path | None:
    """Finds the directory with XLA's libraries.

    Args:
      named: what ONESHOT_XLA_DIR says, which is looked at before `xla_places`, or None.

    Returns:
      The directory, or None when there is none.
    """
    places = [*([named] if named else []), *xla_places()]
    return next((place for place in places if not missing_xla(place)), None)


def nvrtc() -> str | None:
    """Where NVIDIA's run-time compiler is: the directory, or the name that the linker knows.

    None if there is none.
    """
    return str(find_nvrtc() or "") or next(filter(native.can_load, _NVRTC), None)


def plugin_files() -> list[Path]:
    """The PJRT plugins in the `jax_plugins` package, where JAX's own are."""
    try:
        import jax_plugins
    except ImportError:
        return []
    return sorted(so for path in jax_plugins.__path__ for so in Path(path).glob("*/*plugin.so"))


def plugin_cuda() -> int | None:
    """The major version of the CUDA that JAX's plugin is made for.

    Of several plugins, that of the one that is loaded. None if that is not known.
    """
    loaded = _PLUGIN.findall(Path("/proc/self/maps").read_text(errors="replace"))
    majors = set(loaded or _PLUGIN.findall("\n".join(map(str, plugin_files()))))
    return int(majors.pop()) if len(majors) == 1 else None


def find_nvrtc() -> Path | None:
    """Finds the directory with NVIDIA's run-time compiler among the installed packages.

    Returns:
      The directory of the package that jax[cuda13] or jax[cuda12] has installed: of both, the one
      that is for the CUDA of JAX's plugin. None if there is neither; the dynamic linker may know
      another.
    """
    first = _NVRTC_PACKAGES.get(plugin_cuda() or 0)
    for name in sorted(_NVRTC_PACKAGES.values(), key=lambda name: name != first):
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for file in distribution.files or ():
            if file.name.startswith("libnvrtc.so."):
                return Path(str(distribution.locate_file(file))).parent
    return None


def fingerprint(xla_dir: Path) -> str:
    """Returns a hash of the libraries that decide what a program becomes.

    Of XLA's, which are large, only the sizes: what was compiled when one was cut short, and so
    without the pass, must not be found again when it is whole.
    """
    digest = hashlib.sha256()
    for name in XLA_LIBRARIES:
        digest.update(str((xla_dir / name).stat().st_size).encode())
    for path in sorted(native.LIBRARIES.glob("liboneshot_*.so")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
