# SPDX-License-Identifier: Apache-2.0
"""Whole programs through JAX on eight emulated CPU devices, with and without Oneshot.

Each arm runs in one process of its own, which is this file as a script: it computes all cases and
writes their outputs and the names of their reports. The tests compare the two.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest
from emulation import environment

sys.path.insert(0, str(Path(__file__).parent / "models"))
import llama_reference
from numerics_cases import CASES, DTYPES, MODELS, Case, Model


class Arm(NamedTuple):
    """What one process computed: outputs of each case as f32, and its reports."""

    outputs: dict[str, list[np.ndarray]]
    reports: dict[str, list[dict]]


def run_arm(directory: Path, enabled: bool) -> Arm:
    """Runs all cases in a fresh process."""
    switch = {"ONESHOT": "1", "ONESHOT_DUMP_TO": directory} if enabled else {}
    command = [sys.executable, __file__, str(directory)]
    done = subprocess.run(
        command, env=environment(**switch), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "oneshot:" not in done.stderr, done.stderr[-4000:]
    index = json.loads((directory / "index.json").read_text())
    with np.load(directory / "outputs.npz") as arrays:
        outputs = {
            name: [arrays[f"{name}/{i}"] for i in range(entry["outputs"])]
            for name, entry in index.items()
        }
    reports = {
        name: [json.loads((directory / report).read_text()) for report in entry["reports"]]
        for name, entry in index.items()
    }
    return Arm(outputs, reports)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    """All cases without Oneshot."""
    return run_arm(tmp_path_factory.mktemp("stock"), enabled=False)


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Arm:
    """All cases with Oneshot."""
    return run_arm(tmp_path_factory.mktemp("fused"), enabled=True)


@pytest.mark.parametrize(
    "case", [*CASES, *(model.case for model in MODELS)], ids=lambda case: case.name
)
def test_sites(case: Case, stock: Arm, fused: Arm) -> None:
    assert not stock.reports[case.name]
    sites = [site for report in fused.reports[case.name] for site in report["all_reduces"]]
    found = [site["epilogue"] if site["fired"] else None for site in sites]
    assert tuple(found) == case.sites, [site["reason"] for site in sites]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_numbers(case: Case, stock: Arm, fused: Arm) -> None:
    for expected, out in zip(stock.outputs[case.name], fused.outputs[case.name], strict=True):
        # Infinities must be the same, and NaN where NaN was.
        largest = np.max(np.abs(expected), where=np.isfinite(expected), initial=0)
        np.testing.assert_allclose(out, expected, rtol=0, atol=case.tolerance * largest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("epilogue", ["none", "residual"])
def test_sign_of_zero(epilogue: str, dtype: str, fused: Arm) -> None:
    # Held against IEEE 754, not XLA on CPU: that begins its sum with 0.0, which is lost on -0.0.
    (out,) = fused.outputs[f"special-{epilogue}-{dtype}"]
    zeros = out[..., 5:8]
    assert not zeros.any()
    assert (np.signbit(zeros) == [True, False, False]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_ranks_agree(dtype: str, fused: Arm) -> None:
    for out in fused.outputs[f"psum-8-a-{dtype}"]:
        bits = out.view(np.uint32)
        assert (bits == bits[0]).all()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_model(model: Model, stock: Arm, fused: Arm) -> None:
    (expected,), (out,) = stock.outputs[model.name], fused.outputs[model.name]
    error = llama_reference.relative_error(out, expected)
    assert error <= model.case.tolerance
    # And no farther from the truth than stock XLA is.
    reference = llama_reference.reference_logits(model.config)
    errors = [llama_reference.relative_error(logits, reference) for logits in (out, expected)]
    assert errors[0] <= 1.1 * errors[1] + 1e-6


# ---------------------------------------------------------------------------
# One arm


def compute(directory: Path) -> None:
    """Runs all cases and writes outputs.npz and index.json."""
    outputs: dict[str, np.ndarray] = {}
    index: dict[str, dict] = {}
    seen: set[str] = set()
    for case in [*CASES, *(model.case for model in MODELS)]:
        results = [np.asarray(out).astype(np.float32) for out in jax.device_get(case.run())]
        outputs |= {f"{case.name}/{i}": out for i, out in enumerate(results)}
        reports = {path.name for path in directory.glob("*.report.json")} - seen
        seen |= reports
        index[case.name] = {"outputs": len(results), "reports": sorted(reports)}
    np.savez(directory / "outputs.npz", **outputs)
    (directory / "index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    compute(Path(sys.argv[1]))
