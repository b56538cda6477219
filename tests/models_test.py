# SPDX-License-Identifier: Apache-2.0
"""Every all-reduce of the model families: fused, with which epilogue, or left alone and why.

  python models_test.py --write    writes the table that the documentation has

Emulated CPU devices, a mesh of 2 x 4 ("data", "model"). Each program runs three times: without
Oneshot, with it, and as XLA compiles it for CPU when nothing is switched off to show it to Oneshot.
In float32 the last is what the others must be equal to; in bfloat16, what they round.
"""

import collections
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from emulation import XLA_FLAGS, environment
from jax.sharding import Mesh

sys.path.insert(0, str(Path(__file__).parent / "models"))
import families
import families_linen

TABLE = Path(__file__).parent.parent / "docs" / "models.md"
RUNS = [*families.RUNS, *families_linen.RUNS]
# The types that each arm computes in.
ARMS = {"reference": ["float32"], "stock": ["bfloat16"], "fused": ["bfloat16", "float32"]}
# Relative to the largest logit: sums in another order, two layers deep.
TOLERANCE = 2e-5
# How much larger than stock XLA's the errors of bfloat16 may be. They are as many and as large, but
# others: sums are rounded after another order of additions.
RATIO = 1.3


def run_all(arm: str, directory: Path) -> None:
    """Compiles and runs everything; saves logits, and the reports that belong to each run."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
    logits, reports = {}, {}
    seen: set[Path] = set()
    for dtype in ARMS[arm]:
        for run in RUNS:
            compiled, arguments = run.compile(mesh, jnp.dtype(dtype))
            logits[f"{run.name} {dtype}"] = np.asarray(compiled(*arguments)[0])
            new = set(directory.glob("*.report.json")) - seen
            seen |= new
            reports[f"{run.name} {dtype}"] = [
                site
                for path in sorted(new)
                for report in [json.loads(path.read_text())]
                if report["module"] == "jit_forward"
                for site in report["all_reduces"]
            ]
    np.savez(directory / "logits.npz", **logits)
    (directory / "reports.json").write_text(json.dumps(reports))


def start(arm: str, directory: Path) -> subprocess.Popen[str]:
    """Begins to run everything in a fresh process."""
    variables: dict[str, str | Path] = {
        "reference": {"XLA_FLAGS": XLA_FLAGS.split("--xla_disable_hlo_passes")[0]},
        "stock": {},
        "fused": {"ONESHOT": "1", "ONESHOT_DUMP_TO": directory},
    }[arm]
    return subprocess.Popen(
        [sys.executable, __file__, "--run", arm, str(directory)],
        env=environment(**variables),
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for an arm."""
    _, err = process.communicate()
    assert process.returncode == 0, err[-4000:]
    assert "oneshot:" not in err, err


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The directory of each arm's results."""
    directories = {arm: tmp_path_factory.mktemp(arm) for arm in ARMS}
    started = [start(arm, directory) for arm, directory in directories.items()]
    for process in started:
        finish(process)
    return directories


@pytest.fixture(scope="module")
def sites(arms: dict[str, Path]) -> dict[str, list[dict]]:
    """The all-reduces of each run, in the type that models have."""
    reports = json.loads((arms["fused"] / "reports.json").read_text())
    return {run.name: reports[f"{run.name} bfloat16"] for run in RUNS}


def error(a: np.ndarray, b: np.ndarray) -> float:
    """Of a, relative to b, as a whole."""
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_logits(run: families.Run, arms: dict[str, Path]) -> None:
    def logits(arm: str, dtype: str) -> np.ndarray:
        return np.load(arms[arm] / "logits.npz")[f"{run.name} {dtype}"]

    exact = logits("reference", "float32")
    assert np.isfinite(exact).all()
    assert exact.std() > 0.1
    np.testing.assert_allclose(
        logits("fused", "float32"), exact, rtol=0, atol=TOLERANCE * np.abs(exact).max()
    )
    rounded = error(logits("stock", "bfloat16"), exact)
    assert 1e-4 < rounded < 0.05
    assert error(logits("fused", "bfloat16"), exact) < RATIO * rounded


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_every_all_reduce_is_fused(run: families.Run, sites: dict[str, list[dict]]) -> None:
    layers = 1 if run.scan else families.LAYERS
    # Attention and MLP of each layer, and the embedding. Those of one number a token, which norms
    # over sharded heads have, come on top.
    found = [site for site in sites[run.name] if site["shape"].endswith(f",{families.D}]")]
    assert len(found) == 2 * layers + 1
    assert [site["reason"] for site in sites[run.name] if not site["fired"]] == []


def test_table_is_current(sites: dict[str, list[dict]]) -> None:
    assert TABLE.read_text() == table(sites), "run: python tests/models_test.py --write"


def counted(items: Iterable[str]) -> str:
    """For example "2 x a, 1 x b"."""
    return ", ".join(f"{count} x {item}" for item, count in collections.Counter(items).items())


def table(runs: dict[str, list[dict]]) -> str:
    """The table of the documentation."""
    lines = [
        "# Model families",
        "",
        "Written by `python tests/models_test.py --write`, and checked by that test: small models",
        "of published families, in flax.nnx ([families.py](../tests/models/families.py)) and in",
        "flax.linen ([families_linen.py](../tests/models/families_linen.py)), bfloat16,",
        "tensor-parallel by GSPMD over a mesh of 2 x 4, without any change for Oneshot.",
        "",
        "The devices are emulated: this is what the CPU backend of XLA makes of the models. On",
        "GPUs modules differ: fewer conversions, other layouts, no combined all-reduces.",
        "",
        "| program | all-reduces | fused | with this behind them | left alone |",
        "|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        fused = [site for site in found if site["fired"]]
        cells = (
            name,
            str(len(found)),
            str(len(fused)),
            counted(site["epilogue"] for site in fused),
            counted(site["reason"] for site in found if not site["fired"]),
        )
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "* The first all-reduce is the embedding's. Where a selection comes next, an index out of",
        "  range gives NaN.",
        "* In a scan the norm at the head of a layer is in another iteration than the all-reduce",
        "  before it, so that the last one of a layer has only its residual.",
        "* Where attention and MLP are parallel, the CPU backend has combined their all-reduces;",
        "  Oneshot takes them apart again. The second adds up with what the first has made.",
        "* OLMo-2 normalises queries and keys over all heads, which are sharded: those all-reduces",
        "  are of one number a token, and end where that is spread over the heads.",
        "* A gain that is an einsum (Llama-3 in linen) is a multiplication of transposed tensors",
        "  when there are several tokens: the norm is fused without its gain. Not so on GPUs:",
        "  nothing is transposed there.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        run_all(sys.argv[2], Path(sys.argv[3]))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            finish(start("fused", Path(scratch)))
            reports = json.loads((Path(scratch) / "reports.json").read_text())
        TABLE.write_text(table({run.name: reports[f"{run.name} bfloat16"] for run in RUNS}))
