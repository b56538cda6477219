# SPDX-License-Identifier: Apache-2.0
"""What is read from the environment."""

from pathlib import Path

import pytest
from oneshot import config, libraries


@pytest.mark.parametrize(
    ("value", "enabled"),
    [("1", True), ("true", True), ("ON", True), ("0", False), ("False", False), ("", False)],
)
def test_switch(value: str, enabled: bool) -> None:
    assert config.read({"ONESHOT": value}).enabled is enabled


def test_all_variables(tmp_path: Path) -> None:
    for name in libraries.XLA_LIBRARIES:
        (tmp_path / name).touch()
    dump = tmp_path / "new" / "dump"
    assert config.read(
        {
            "ONESHOT": "1",
            "ONESHOT_DUMP_TO": str(dump),
            "ONESHOT_LOG": "debug",
            "ONESHOT_XLA_DIR": str(tmp_path),
            "ONESHOTGUN": "somebody else's",
        }
    ) == config.Config(enabled=True, dump_to=dump, log_level=10, xla_dir=tmp_path)
    assert dump.is_dir()
    assert config.read({}) == config.Config()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ONESHOT": "2"}, "ONESHOT='2'.*1, true, on, 0, false, off"),
        ({"ONESHOT_LOG": "all"}, "ONESHOT_LOG='all'.*debug, info, warning, error"),
        ({"ONESHOT_DUMP_TO": "/dev/null/x"}, "ONESHOT_DUMP_TO='/dev/null/x'"),
        ({"ONESHOT_XLA_DIR": "/"}, "no libtensorflow_framework.so.2 and no libtensorflow_cc.so.2"),
        ({"ONESHOT_A": "1", "ONESHOT_B": "1"}, "unknown variable ONESHOT_A, ONESHOT_B"),
    ],
)
def test_bad_environment(environ: dict[str, str], message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.read(environ)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_bad_timeout(value: str) -> None:
    with pytest.raises(config.ConfigError, match=r"ONESHOT_TIMEOUT_S=.*more than 0"):
        config.read({"ONESHOT_TIMEOUT_S": value})


def test_timeout() -> None:
    assert config.read({}).timeout == 30
    assert config.read({"ONESHOT_TIMEOUT_S": "2.5"}).timeout == 2.5
