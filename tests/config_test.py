# SPDX-License-Identifier: Apache-2.0
"""What is read from the environment."""

import logging
import re
from pathlib import Path

import pytest
from oneshot import config, libraries


@pytest.mark.parametrize(
    ("value", "enabled"),
    [("1", True), ("true", True), ("ON", True), ("0", False), ("False", False), ("", None)],
)
def test_switch(value: str, enabled: bool | None) -> None:
    assert config.switch({"ONESHOT": value}) is enabled
    assert config.switch({}) is None


def test_bad_switch() -> None:
    with pytest.raises(
        config.ConfigError, match=r"ONESHOT='2'.*1, true, on, require, 0, false, off"
    ):
        config.switch({"ONESHOT": "2"})


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
    ) == config.Config(dump_to=dump, log_level=10, xla_dir=tmp_path)
    assert dump.is_dir()
    assert config.read({}) == config.Config()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"ONESHOT_XLA_DIR": "/"}, "no liboneshot_xla_framework.so and no liboneshot_xla_cc.so"),
    ],
)
def test_bad_environment(environ: dict[str, str], message: str) -> None:
    with pytest.raises(config.ConfigError, match=message):
        config.read(environ)


@pytest.mark.parametrize(
    ("environ", "warnings"),
    [
        (
            {"ONESHOT_TIMEOUT": "1", "ONESHOT_LOGS": "1"},
            ["ONESHOT_LOGS .*ONESHOT_LOG.*, ONESHOT_TIMEOUT .*ONESHOT_TIMEOUT_S"],
        ),
        ({"ONESHOT_LOG": "all"}, ["ONESHOT_LOG='all'.*debug, info, warning, error"]),
        (
            {"ONESHOT_DUMP_TO": "/dev/null/x"},
            ["ONESHOT_DUMP_TO='/dev/null/x': Not a directory; nothing is dumped"],
        ),
        ({"ONESHOT_LOG": "all", "ONESHOT_X": ""}, ["ONESHOT_X", "ONESHOT_LOG"]),
        (
            # Of a service in Kubernetes that is called oneshot.
            {
                "ONESHOT_SERVICE_HOST": "10.0.0.1",
                "ONESHOT_SERVICE_PORT": "80",
                "ONESHOT_SERVICE_PORT_HTTP": "80",
                "ONESHOT_PORT": "tcp://10.0.0.1:80",
                "ONESHOT_PORT_80_TCP": "tcp://10.0.0.1:80",
                "ONESHOT_PORT_80_TCP_ADDR": "10.0.0.1",
            },
            [],
        ),
        ({"ONESHOT_PORTS": "80"}, ["ONESHOT_PORTS"]),
    ],
)
def test_warnings(environ: dict[str, str], warnings: list[str]) -> None:
    found = config.read(environ)
    assert found.log_level == (logging.WARNING if "ONESHOT_LOG" in environ else None)
    assert found.dump_to is None
    assert len(found.warnings) == len(warnings)
    for text, pattern in zip(found.warnings, warnings, strict=True):
        assert re.search(pattern, text)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_bad_timeout(value: str) -> None:
    with pytest.raises(config.ConfigError, match=r"ONESHOT_TIMEOUT_S=.*more than 0"):
        config.read({"ONESHOT_TIMEOUT_S": value})


def test_timeout() -> None:
    assert config.read({}).timeout == 600
    assert config.read({"ONESHOT_TIMEOUT_S": "2.5"}).timeout == 2.5
