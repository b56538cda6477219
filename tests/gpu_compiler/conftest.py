# SPDX-License-Identifier: Apache-2.0
"""XLA's compiler for GPUs with Oneshot: from JAX to machine code, without a GPU.

Nothing can be run so. But it is the module, the hook, the verifier and the
passes behind them that programs of users meet.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from gpu_compiler import devices
from oneshot import config, hook

AllReduces = Callable[[jax.stages.Compiled], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def all_reduces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AllReduces]:
    """The all-reduces of the program that was compiled last; they became what the report says.

    Oneshot is on, as if there were GPUs and NVRTC.
    """
    dump = tmp_path_factory.mktemp("dump")
    with pytest.MonkeyPatch.context() as patch:
        jax.config.update("jax_platforms", "cpu")
        patch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
        patch.setattr(hook, "_why_not_cuda", lambda: None)
        patch.setattr(hook, "kernel_compiler", lambda: None)
        hook.enable(dataclasses.replace(config.read(), dump_to=dump))
        devices.mesh()  # loads XLA, which reads its flags
        yield lambda compiled: _checked(compiled, dump)


def _checked(compiled: jax.stages.Compiled, dump: Path) -> list[dict[str, Any]]:
    (path,) = dump.glob("*.report.json")
    sites = json.loads(path.read_text())["all_reduces"]
    for path in dump.iterdir():
        path.unlink()
    fired = sum(site["fired"] for site in sites)
    hlo = compiled.as_text()
    assert len(re.findall('custom_call_target="oneshot_all_reduce', hlo)) == fired
    # XLA does not make fusions of them: not all can be compiled, and some are run twice.
    for computation in hlo.split("\n\n"):
        assert not ("dynamic-slice-fusion" in computation and "oneshot" in computation)
    return sites
