# SPDX-License-Identifier: Apache-2.0
"""The examples run, say the same with and without Oneshot, and are fused as the table says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from emulation import environment
from oneshot import report

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
# By file: the epilogues in the order of the program.
FUSED = {
    "gemma_post_norms.py": ["rms_norm+residual+rms_norm"] * 3 + ["rms_norm+residual"],
    "nnx_server.py": ["residual+rms_norm"] * 4,
    "scan_layers.py": ["bias+residual+layer_norm"] * 2,
    "shard_map_decode.py": ["residual+rms_norm"] * 2,
}


def run(name: str, **variables: str | Path) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def test_all_are_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(FUSED)
    rows = dict(
        re.findall(r"(?m)^\| \[(.+?)\].*\| `(.+?)` \|$", (EXAMPLES / "README.md").read_text())
    )
    assert rows == {name: epilogues[0] for name, epilogues in FUSED.items()}


@pytest.mark.parametrize("name", FUSED)
def test_example(name: str, tmp_path: Path) -> None:
    assert "oneshot" not in (EXAMPLES / name).read_text().lower()
    stock, on = run(name), run(name, ONESHOT="1", ONESHOT_DUMP_TO=tmp_path)
    numbers = [list(map(float, re.findall(r"[-\d.]+", text))) for text in (stock, on)]
    assert len(numbers[0]) > 0
    assert numbers[1] == pytest.approx(numbers[0], rel=5e-3)
    (module,) = report.load(tmp_path)
    assert [site.epilogue for site in module.all_reduces] == FUSED[name]
