# SPDX-License-Identifier: Apache-2.0
"""What Oneshot does to one function, or to one HLO module, and where each match ends.

Nothing has to be switched on for that, and nothing is afterwards: the pass gets a copy of the
module, and what it makes of it is only looked at.
"""

import contextlib
import html
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oneshot import cached, hlo_text, libraries, native, page, report
from oneshot import config as config_lib

# On CPU, XLA fuses before a pass can look at the module; on GPU, after.
_CPU_OPTIONS = {"xla_disable_hlo_passes": "fusion,fusion-wrapper,tree_reduction_rewriter"}

_lock = threading.Lock()


class ExplainError(RuntimeError):
    """A module that can't be read, or something that is missing. The message says what."""


class Explanation:
    """What happens to each all-reduce; iterate over it, print it, or write it as a page.

    Attributes:
      modules: the modules with all-reduces, as `oneshot.report` has them.
      calls: how many calls of Oneshot were in the modules before; more than 0 if what is explained
        has already been rewritten.
    """

    def __init__(self, directory: tempfile.TemporaryDirectory, calls: int = 0):
        self._directory = directory  # exists as long as this object
        self.calls = calls
        loaded = report.load(directory.name)
        self.modules = tuple(m for m in loaded if m.all_reduces or m.declined_module)

    def _repr_html_(self) -> str:
        """The page, for notebooks: in a frame, so that its style stays its own."""
        return (
            f'<iframe srcdoc="{html.escape(self.html())}" '
            'style="width: 100%; height: 40rem; border: 0"></iframe>'
        )

    def __iter__(self) -> Iterator[report.AllReduce]:
        return (site for module in self.modules for site in module.all_reduces)

    def __len__(self) -> int:
        return sum(len(module.all_reduces) for module in self.modules)

    def __str__(self) -> str:
        lines = [report.text(self.modules)] if self.modules else []
        if self.calls:
            number = (
                "1 call of Oneshot is" if self.calls == 1 else f"{self.calls} calls of Oneshot are"
            )
            lines.append(f"{number} in it already: this is a module that Oneshot has rewritten")
        return "\n".join(lines) or "no all-reduce: nothing to fuse"

    __repr__ = __str__

    def html(self) -> str:
        """Returns a page with the HLO around each all-reduce, before and after."""
        return page.write(self.modules)


def explain(jitted: Any, *args: Any, **kwargs: Any) -> Explanation:
    """Compiles a jitted function for these arguments and says what Oneshot does to it.

    The function is not run, and the program keeps what it has compiled. Modules that other threads
    compile meanwhile are explained too. On CPU, XLA's own fusion is off for this compilation, as it
    would hide from the pass what it sees on GPU.

    Args:
      jitted: what `jax.jit` returns; or what its `lower` returns, without arguments; or what
        `compile` has made of that, which says what is in it, but not why something was left alone.
      *args: its arguments; a `jax.ShapeDtypeStruct` will do.
      **kwargs: the same, by name.

    Raises:
      ExplainError: the pass can't be loaded, or does not understand the module.
      TypeError: it is none of these.
    """
    import jax

    from oneshot import hook

    if isinstance(jitted, jax.stages.Compiled):
        return _explain_compiled(jitted)
    lowered = jitted
    if not isinstance(jitted, jax.stages.Lowered):
        if not hasattr(jitted, "lower"):
            raise TypeError(f"{jitted!r} is not jitted: explain(jax.jit(f), ...)")
        lowered = jitted.lower(*args, **kwargs)
    on_cpu = _platforms(lowered) == ("cpu",)
    # No two compilations with other options share an executable. This one only filters dumps.
    options = {"xla_dump_hlo_module_re": f"oneshot-explain-{os.urandom(8).hex()}"}
    options |= _CPU_OPTIONS if on_cpu else {}
    with _lock, _no_cache(), _captured("cpu" if on_cpu else "cuda") as modules:
        lowered.compile(compiler_options=options)
    if not modules or any(hook.TARGET.encode() in module for module in modules):
        raise ExplainError("XLA has not shown this compilation to Oneshot")
    modules = [module for module in modules if b"all-reduce" in module]
    if on_cpu:
        return _explain(modules, "Host")
    return _explain(modules, "CUDA", hook.kernel_compiler())


def _platforms(lowered: Any) -> tuple[str, ...]:
    """What it is lowered for: "cpu", "cuda"."""
    import jax

    # A private name; without it, what JAX would use by itself.
    platforms = getattr(lowered._lowering, "_platforms", None)
    return tuple(platforms) if platforms else (jax.default_backend(),)


def _explain_compiled(compiled: Any) -> Explanation:
    directory = tempfile.TemporaryDirectory(prefix="oneshot-explain-")
    cached.look(compiled.runtime_executable(), Path(directory.name), counted=False)
    return Explanation(directory)


def explain_file(path: Path | str, platform: str = "CUDA") -> Explanation:
    """Says what Oneshot does to a module in a file.

    Args:
      path: HLO text, also behind comments, a serialized HloModuleProto, or an HloProto as XLA
        dumps it.
      platform: "CUDA" or "Host", for which it is to be rewritten. Kernels are not compiled: that
        needs the GPU.

    Raises:
      ExplainError: the pass can't be loaded, or does not understand the module.
      OSError: the file can't be read.
    """
    data = Path(path).read_bytes()
    text = re.match(rb"(?:\s*//[^\n]*\n)*\s*(?=HloModule)", data)
    if text:
        data = hlo_text.without_meshes(data[text.end() :].decode(errors="replace")).encode()
    return _explain([data], platform)


def _explain(
    modules: list[bytes], platform: str, compiler: native.KernelCompiler | None = None
) -> Explanation:
    from oneshot import hook

    directory = tempfile.TemporaryDirectory(prefix="oneshot-explain-")
    if modules:
        loaded = load_pass()
        skip = config_lib.read().skip
        for module in modules:
            if error := loaded.explain(platform, directory.name, module, skip, compiler):
                raise ExplainError(error)
    return Explanation(directory, sum(module.count(hook.TARGET.encode()) for module in modules))


def load_pass() -> native.Pass:
    """Loads XLA and the pass.

    Raises:
      ExplainError: a library is missing or can't be loaded.
    """
    xla = libraries.find_xla(config_lib.read().xla_dir)
    if xla is None:
        raise ExplainError(libraries.XLA_MISSING)
    try:
        return native.Pass([xla / name for name in libraries.XLA_LIBRARIES])
    except (OSError, AttributeError) as error:
        raise ExplainError(f"a library can't be loaded: {error}") from error


@contextlib.contextmanager
def _captured(platform: str) -> Iterator[list[bytes]]:
    """Collects the modules that are compiled meanwhile, as the pass would see them."""
    from jax.extend import xla as jax_xla

    from oneshot import hook

    modules: list[bytes] = []
    name = "oneshot-explain"

    def see(module: bytes) -> None:
        modules.append(bytes(module))

    jax_xla.register_hlo_module_transformation(see, name=name, platforms=platform)
    try:
        with hook.paused():
            yield modules
    finally:
        jax_xla.clear_hlo_module_transformation(name, platforms=platform)


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Keeps this thread away from JAX's persistent cache, which would answer instead of XLA."""
    from jax._src import cache_key
    from jax._src import config as jax_config

    previous = cache_key.custom_hook
    thread = threading.get_ident()

    def key() -> str:
        ours = f"/explain/{os.urandom(16).hex()}" if threading.get_ident() == thread else ""
        return previous() + ours

    cache_key.custom_hook = key  # not to read from it
    try:
        with jax_config.persistent_cache_min_compile_time_secs(float("inf")):  # nor to write to it
            yield
    finally:
        cache_key.custom_hook = previous
