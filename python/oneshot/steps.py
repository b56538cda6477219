# SPDX-License-Identifier: Apache-2.0
"""Times the steps of a program and keeps what they give, for `oneshot compare`."""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, Self

WARM_UP = 3
"""First steps that are not timed: they compile, and outputs are copied from them."""

_MOST_BYTES = 64 << 20  # of outputs that are kept


@dataclasses.dataclass
class Record:
    """What is known of one kind of step.

    Attributes:
      name: of the jitted function, or "marked".
      seconds: of each step behind the first ones.
      steps: how many there were.
      outputs: arrays that the last of the first steps has given, on the host.
    """

    name: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    steps: int = 0
    outputs: list[Any] = dataclasses.field(default_factory=list)

    def add(self, seconds: float, outputs: Any) -> None:
        """Adds a step that has given `outputs`, a tree of arrays that are there."""
        self.steps += 1
        if self.steps > WARM_UP:
            self.seconds.append(seconds)
        else:
            self.outputs = _on_host(outputs)


class Recorder:
    """Collects the steps of a process: those that are marked, or else calls of jitted functions."""

    def __init__(self) -> None:
        self.marked = Record("marked")
        self.jitted: list[Record] = []

    def step(self) -> Record | None:
        """The step of the program: what is marked, or else the jitted function that took longest.

        None if nothing was run more often than `WARM_UP` times.
        """
        if self.marked.steps:
            return self.marked if self.marked.seconds else None
        often = [record for record in self.jitted if record.seconds]
        return max(often, key=lambda record: sum(record.seconds), default=None)

    def wrap(self, jit: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a `jax.jit` whose functions are recorded."""

        @functools.wraps(jit)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            made = jit(*args, **kwargs)
            # Without a function, it is a decorator that waits for one.
            return _Jitted(made, self) if hasattr(made, "lower") else self.wrap(made)

        return recorded


recorder: Recorder | None = None
"""Of this process, if it is one of `oneshot compare`."""


class Step:
    """See `oneshot.step`."""

    def __init__(self) -> None:
        self._outputs: Any = ()

    def result(self, outputs: Any) -> None:
        """Says what the step gives, a tree of arrays: what is waited for, and compared."""
        self._outputs = outputs

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if recorder and kind is None:
            import jax

            jax.block_until_ready(self._outputs)
            recorder.marked.add(time.perf_counter() - self._start, self._outputs)


class _Jitted:
    """A jitted function whose calls are recorded, but for those inside of others."""

    def __init__(self, function: Any, owner: Recorder):
        functools.update_wrapper(self, function)
        self._function = function
        self._record = Record(getattr(function, "__name__", "function"))
        owner.jitted.append(self._record)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        import jax

        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((args, kwargs))):
            return self._function(*args, **kwargs)
        start = time.perf_counter()
        outputs = self._function(*args, **kwargs)
        leaves = jax.tree.leaves(outputs)
        if not any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            jax.block_until_ready(outputs)
            self._record.add(time.perf_counter() - start, outputs)
        return outputs

    def __get__(self, instance: Any, owner: type) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._function, name)


def _on_host(outputs: Any) -> list[Any]:
    """Copies numbers, of as many arrays as fit; narrow floats become float32."""
    import jax
    import numpy as np

    kept = []
    room = _MOST_BYTES
    for leaf in jax.tree.leaves(outputs):
        if not isinstance(leaf, jax.Array) or jax.dtypes.issubdtype(
            leaf.dtype, jax.dtypes.extended
        ):
            continue
        room -= leaf.nbytes
        if room < 0:
            break
        array = np.asarray(leaf)
        narrow = jax.numpy.issubdtype(array.dtype, jax.numpy.floating) and array.itemsize < 4
        kept.append(array.astype(np.float32) if narrow else array)
    return kept
