# SPDX-License-Identifier: Apache-2.0
"""python -m oneshot run."""

import os
from pathlib import Path

import pytest
from program import PROGRAM, run


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program in two files, which prints its arguments."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "beside.py").write_text("HERE = 'beside'\n")
    path = folder / "script.py"
    path.write_text(
        f"{PROGRAM}\nfrom beside import HERE\n"
        "print(compiled(), HERE, __name__, *sys.argv)\nsys.exit(int(sys.argv[1]))\n"
    )
    return path


def test_run_script(script: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.py"
    link.symlink_to(script)
    for path in (script, link):
        # Options after the script are the script's.
        done = run("-m", "oneshot", "run", path, "3", "-m", "--save")
        assert done.code == 3, done.err
        assert done.out == [f"fused beside __main__ {path} 3 -m --save"]


def test_run_module(script: Path) -> None:
    path = os.pathsep.join([str(script.parent), os.environ.get("PYTHONPATH", "")])
    done = run("-m", "oneshot", "run", "-m", "script", "0", "--save", PYTHONPATH=path)
    assert done.code == 0, done.err
    assert done.out == [f"fused beside __main__ {script} 0 --save"]


def test_emulate(script: Path) -> None:
    text = script.read_text().replace("print(compiled()", "print(len(jax.devices()), compiled()")
    # Fused with what follows, which XLA for CPU would hide.
    text = text.replace("sys.exit(", "import oneshot; print(oneshot.status().compiled); sys.exit(")
    script.write_text(text)
    done = run(
        "-m", "oneshot", "run", "--emulate", "8", script, "0", XLA_FLAGS="", JAX_PLATFORMS=""
    )
    assert done.code == 0, done.err
    assert done.out[0].startswith("8 fused beside")
    assert done.out[1] == "Counts(modules=1, fused=1, alone=0, left=0)"


def test_off_wins(script: Path) -> None:
    done = run("-m", "oneshot", "run", script, "0", ONESHOT="0")
    assert done.code == 0, done.err
    assert done.out == [f"stock beside __main__ {script} 0"]
    assert len(done.lines) == 1
    assert "ONESHOT=0 wins over" in done.lines[0]


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        (["run"], {}, "a script is required"),
        (["run", "--emulate", "0", "x.py"], {}, "--emulate: at least one device"),
        (["run", "missing.py"], {}, "no such file: missing.py"),
        (["run", "x.py"], {"ONESHOT": "maybe"}, "ONESHOT='maybe': must be one of"),
        (["run", "x.py"], {"ONESHOT_XLA_DIR": "/"}, "no liboneshot_xla_framework.so"),
        (["jog", "x.py"], {}, "invalid choice"),
    ],
)
def test_run_refuses(arguments: list[str], variables: dict[str, str], message: str) -> None:
    done = run("-m", "oneshot", *arguments, **variables)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
