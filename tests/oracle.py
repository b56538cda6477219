# SPDX-License-Identifier: Apache-2.0
"""Compares what random programs compute with Oneshot and without.

  python oracle.py --programs 5000 [--first SEED]

Outputs agree if they differ by no more than rounding may explain. Where they differ by more, the
program runs once again, without Oneshot but with every result moved by about its last bit: a
program that is that sensitive proves nothing.
"""

import argparse
import collections
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from emulation import environment
from jax.sharding import Mesh
from random_programs import ARGUMENTS, BATCH, OPERATIONS, PROGRAMS, batch

# Of an output, relative to its largest element: what an order of summation and the last bits of a
# transcendental function usually grow to in a dozen operations.
TOLERANCE = {"float32": 1e-5, "float16": 0.01, "bfloat16": 0.05}
# And what they may grow to in any case, in terms of the effect of one last bit in every result.
SENSITIVITY = 16


def run_programs(seeds: list[int], shaken: bool) -> list[list[np.ndarray]]:
    """Outputs of all ranks of each program."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("a", "b"))
    results = []
    for start in range(0, len(seeds), BATCH):
        run = batch(seeds[start : start + BATCH], mesh, shaken)
        outputs = jax.jit(run)(*ARGUMENTS)
        results += [[np.asarray(out) for out in outs] for outs in outputs]
    return results


def save(path: Path, seeds: list[int], results: list[list[np.ndarray]]) -> None:
    """Writes outputs as "seed/output/type", types that NumPy does not know as float32."""
    np.savez(
        path,
        **{
            f"{seed}/{o}/{out.dtype}": out.astype(np.float32)
            for seed, outs in zip(seeds, results, strict=True)
            for o, out in enumerate(outs)
        },
    )


def start(arm: str, path: Path, seeds: Iterable[int]) -> subprocess.Popen[str]:
    """Begins to run one arm in a fresh process."""
    switch = {"ONESHOT": "1", "ONESHOT_DUMP_TO": path.parent} if arm == "fused" else {}
    command = [sys.executable, __file__, "--arm", arm, str(path)]
    command += ["--seeds", ",".join(map(str, seeds))]
    return subprocess.Popen(command, env=environment(**switch), stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Waits for an arm."""
    _, err = process.communicate()
    assert process.returncode == 0, err[-4000:]


class Comparison(NamedTuple):
    """Of programs with and without Oneshot.

    Attributes:
      wrong: what differs.
      total: all-reduces.
      fired: how many of them were fused.
      sensitive: outputs that differ by more than `TOLERANCE`, and may.
      operations: how often each operation was fused, and each type was that of a result.
    """

    wrong: list[str]
    total: int
    fired: int
    sensitive: int
    operations: collections.Counter[str]


def compare(seeds: list[int]) -> Comparison:
    """Runs both arms, and what differs once more."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = {arm: Path(scratch, f"{arm}.npz") for arm in ("stock", "fused", "shaken")}
        for process in [start(arm, paths[arm], seeds) for arm in ("stock", "fused")]:
            finish(process)
        with np.load(paths["stock"]) as arrays:
            stock = dict(arrays)
        with np.load(paths["fused"]) as arrays:
            fused = dict(arrays)
        assert stock.keys() == fused.keys()
        errors = {name: difference(stock[name], fused[name]) for name in stock}
        differ = [
            name for name in stock if not errors[name] <= TOLERANCE.get(name.split("/")[2], 0)
        ]
        wrong = []
        if differ:
            finish(
                start(
                    "shaken", paths["shaken"], sorted({int(name.split("/")[0]) for name in differ})
                )
            )
            with np.load(paths["shaken"]) as shaken:
                wrong = [
                    f"program {name}: {errors[name]:.3g}"
                    for name in differ
                    if not errors[name] <= SENSITIVITY * difference(stock[name], shaken[name])
                ]
        sites = [
            site
            for path in Path(scratch).glob("*.report.json")
            for site in json.loads(path.read_text())["all_reduces"]
        ]
    # Of an instruction the operation, of a result the type.
    statements = [
        statement.split()[2].partition(".")[0]
        for site in sites
        for statement in site["program"].split("; ")
        if " = " in statement or statement.startswith("out")
    ]
    return Comparison(
        wrong=wrong,
        total=len(sites),
        fired=sum(site["fired"] for site in sites),
        sensitive=len(differ) - len(wrong),
        operations=collections.Counter(statements),
    )


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference, relative to the largest element; infinite if other values are special."""
    special = ~np.isfinite(a)
    if not np.array_equal(np.where(special, a, 0), np.where(np.isfinite(b), 0, b), equal_nan=True):
        return np.inf
    a, b = a[~special], b[~special]
    return float(np.max(np.abs(a - b), initial=0)) / max(1.0, float(np.max(np.abs(a), initial=0)))


def main() -> int:
    """One arm, or a comparison of many programs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--programs", type=int, default=PROGRAMS)
    parser.add_argument("--arm", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--seeds", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.arm:
        arm, path = arguments.arm
        seeds = [int(seed) for seed in arguments.seeds.split(",")]
        save(Path(path), seeds, run_programs(seeds, shaken=arm == "shaken"))
        return 0
    result = compare(list(range(arguments.first, arguments.first + arguments.programs)))
    print(
        f"{arguments.programs} programs, {result.fired} of {result.total} all-reduces fused, "
        f"{result.sensitive} outputs too sensitive to compare, {len(result.wrong)} wrong"
    )
    print("operations:", ", ".join(f"{count} {name}" for name, count in result.operations.items()))
    print(
        "never fused:",
        ", ".join(sorted(set(OPERATIONS.split()) - result.operations.keys())) or "none",
    )
    for line in result.wrong:
        print(line)
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
