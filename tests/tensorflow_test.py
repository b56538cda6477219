# SPDX-License-Identifier: Apache-2.0
"""TensorFlow in the same process: its C++ libraries, as `import tensorflow` loads them."""

import shutil

import pytest
from oneshot import config, libraries, xla_wheel
from program import run_code

ORIGINALS = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")

LOAD = """
import ctypes
def load_tensorflow():
    for path in %r:
        ctypes.CDLL(path, ctypes.RTLD_GLOBAL)
"""


@pytest.fixture(scope="module")
def tensorflow(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The libraries as the wheel has them, under their first names."""
    directory = tmp_path_factory.mktemp("tensorflow")
    xla_dir = libraries.find_xla(config.read().xla_dir)
    names = dict(zip(libraries.XLA_LIBRARIES, ORIGINALS, strict=True))
    for ours, original in names.items():
        shutil.copyfile(xla_dir / ours, directory / original)
        xla_wheel.rename_sonames(directory / original, names)
    return [str(directory / original) for original in ORIGINALS]


@pytest.mark.parametrize(
    "program",
    ["load_tensorflow(); print(compiled())", "print(compiled()); load_tensorflow()"],
    ids=["first", "afterwards"],
)
def test_tensorflow_in_the_process(tensorflow: list[str], program: str) -> None:
    done = run_code(LOAD % tensorflow + program + "; print(compiled())", ONESHOT="1")
    assert done.out == ["fused", "fused"]
    assert not done.lines
