# SPDX-License-Identifier: Apache-2.0
"""Every all-reduce of the model families: fused, with which epilogue, or left alone and why.

  python models_test.py --write ../docs/models.md     writes the table that the documentation has

Emulated CPU devices, a mesh of 2 x 4 ("data", "model"). What XLA makes of a model on GPUs differs
in conversions that the CPU adds, and in that the CPU combines all-reduces before Oneshot sees them.
"""

import collections
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from emulation import environment
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).parent / "models"))
import families

TABLE = Path(__file__).parent.parent / "docs" / "models.md"
# Relative to the largest logit: bf16 activations, whose last bit a different order of a sum may
# change, several layers deep.
TOLERANCE = 0.03


def run_all(directory: Path) -> None:
    """Compiles and runs everything; saves logits, and which reports belong to which run."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    logits, reports = {}, {}
    seen: set[Path] = set()
    for run in families.RUNS:
        compiled, arguments = run.compile(mesh)
        logits[run.name] = np.asarray(compiled(*arguments)[0])
        new = set(directory.glob("*.report.json")) - seen
        seen |= new
        reports[run.name] = [
            site
            for path in sorted(new)
            for report in [json.loads(path.read_text())]
            if report["module"] == "jit_forward"
            for site in report["all_reduces"]
        ]
    np.savez(directory / "logits.npz", **logits)
    (directory / "reports.json").write_text(json.dumps(reports))


def start(directory: Path, enabled: bool) -> subprocess.Popen[str]:
    """Begins to run everything in a fresh process."""
    switch = {"ONESHOT": "1", "ONESHOT_DUMP_TO": directory} if enabled else {}
    return subprocess.Popen(
        [sys.executable, __file__, "--run", str(directory)],
        env=environment(**switch),
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A directory of results without Oneshot ("stock") and with it ("fused")."""
    directories = {name: tmp_path_factory.mktemp(name) for name in ("stock", "fused")}
    started = {
        name: start(directory, enabled=name == "fused") for name, directory in directories.items()
    }
    for process in started.values():
        _, err = process.communicate()
        assert process.returncode == 0, err[-4000:]
        assert "oneshot:" not in err, err
    return directories


def sites(arms: dict[str, Path]) -> dict[str, list[dict]]:
    """The all-reduces of each run."""
    return json.loads((arms["fused"] / "reports.json").read_text())


@pytest.mark.parametrize("run", families.RUNS, ids=lambda run: run.name)
def test_logits(run: families.Run, arms: dict[str, Path]) -> None:
    stock, fused = (np.load(arms[name] / "logits.npz")[run.name] for name in ("stock", "fused"))
    assert np.isfinite(stock).all()
    assert stock.std() > 0
    np.testing.assert_allclose(fused, stock, rtol=0, atol=TOLERANCE * np.abs(stock).max())


@pytest.mark.parametrize("run", families.RUNS, ids=lambda run: run.name)
def test_every_all_reduce_is_fused(run: families.Run, arms: dict[str, Path]) -> None:
    found = sites(arms)[run.name]
    halves = families.LAYERS if not run.scan else 1
    # Attention and MLP of each layer, and the embedding.
    assert len(found) == 2 * halves + 1
    assert [site["reason"] for site in found] == [""] * len(found)


def test_table_is_current(arms: dict[str, Path]) -> None:
    assert TABLE.read_text() == table(sites(arms)), "run: python tests/models_test.py --write"


def table(runs: dict[str, list[dict]]) -> str:
    """The table of the documentation."""
    lines = [
        "# Model families",
        "",
        "Written by `tests/models_test.py`, which also checks it: blocks of published families in",
        "flax.nnx ([families.py](../tests/models/families.py)), tensor-parallel by GSPMD over a",
        "mesh of 2 x 4 emulated CPU devices, without any change for Oneshot.",
        "",
        "| program | all-reduces | fused | with this behind them | left alone |",
        "|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        epilogues = collections.Counter(site["epilogue"] for site in found if site["fired"])
        reasons = collections.Counter(site["reason"] for site in found if not site["fired"])
        cells = (
            name,
            str(len(found)),
            str(sum(epilogues.values())),
            ", ".join(f"{count} x {epilogue}" for epilogue, count in epilogues.items()),
            ", ".join(f"{count} x {reason}" for reason, count in reasons.items()),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "`none` is the embedding's, behind which comes a selection by a mask that is no float",
        "tensor. In a scan the norm at the head of a layer is in another iteration than the",
        "all-reduce before it, so that the last one of a layer has only its residual. Where",
        "attention and MLP are parallel, the CPU backend has combined their all-reduces; Oneshot",
        "takes them apart again.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        run_all(Path(sys.argv[2]))
    else:
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            process = start(Path(scratch), enabled=True)
            assert process.wait() == 0
            TABLE.write_text(table(json.loads((Path(scratch) / "reports.json").read_text())))
