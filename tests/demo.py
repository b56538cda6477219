# SPDX-License-Identifier: Apache-2.0
"""Shows what Oneshot does to an unmodified decode model, on eight emulated CPU devices.

Runs models/llama_decode.py without and with ONESHOT=1, each in a process of its own; prints which
all-reduces were replaced and the HLO of one of them before and after, and holds the logits of both
runs against a float64 reference. Exits with 0 if something was replaced and the numbers are right.
"""

import difflib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from emulation import environment
from oneshot import report

MODELS = Path(__file__).parent / "models"
MODEL_FLAGS = ("--tp", "8", "--layers", "2", "--dtype", "bf16")
# Sums in another order round differently, for better or worse.
ERROR_RATIO, ERROR_SLACK = 1.1, 1e-6


class DemoError(Exception):
    """What went wrong, for people."""


def run(script: str, *flags: str, **variables: str) -> str:
    """Runs a script of the models in a fresh process; returns what it prints."""
    command = [sys.executable, str(MODELS / script), *flags, *MODEL_FLAGS]
    done = subprocess.run(
        command, env=environment(**variables), capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DemoError(f"{script} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    sys.stderr.write("".join(re.findall(r"(?m)^oneshot\[.*\n", done.stderr)))
    return done.stdout


def instructions(path: Path) -> dict[str, str]:
    """Name and text of each HLO instruction, without layouts and all that follows the operands."""
    found = {}
    for line in path.read_text().splitlines():
        if match := re.match(r"  (?:ROOT )?([\w.-]+) = (.+? [\w-]+\([^()]*\))", line):
            text = re.sub(r"(?<=\])\{[\d,]*\}|/\*.*?\*/", "", match[2])
            found[match[1]] = f"{match[1]} = {text}"
    return found


def operands(text: str) -> set[str]:
    """Names that an instruction reads."""
    return set(re.findall(r"[\w.-]+", text[text.rindex("(") :]))


def diff(module: report.Module, site: report.AllReduce) -> list[str]:
    """What the rewrite of one all-reduce took out and put in, as a unified diff."""
    before, after = instructions(module.before), instructions(module.after)
    # What is gone and reads an all-reduce, directly or not, went with the last one that it reads.
    all_reduces = [reduced.name for reduced in module.all_reduces]
    owner = {name: i for i, name in enumerate(all_reduces)}
    for name, text in before.items():
        owners = [owner[operand] for operand in operands(text) if operand in owner]
        if owners and name not in after and name not in owner:
            owner[name] = max(owners)
    old = [text for name, text in before.items() if owner.get(name) == owner[site.name]]
    elements = (text for text in after.values() if f"get-tuple-element({site.custom_call})" in text)
    new = [after[site.custom_call], *elements]
    return list(difflib.unified_diff(old, new, "before", "after", lineterm=""))


def demo(directory: Path) -> None:
    """Runs everything; raises DemoError if something is not as it should be."""
    print(f"llama_decode.py {' '.join(MODEL_FLAGS)}, on 8 emulated CPU devices\n")
    files = {"stock": directory / "stock.npz", "oneshot": directory / "oneshot.npz"}
    run("llama_decode.py", "--save", str(files["stock"]), ONESHOT="0")
    dump = directory / "dump"
    dump.mkdir()
    variables = {"ONESHOT": "1", "ONESHOT_DUMP_TO": str(dump)}
    run("llama_decode.py", "--save", str(files["oneshot"]), **variables)

    modules = report.load(dump)
    print(report.text(modules), end="\n\n")
    fired = [(module, site) for module in modules for site in module.all_reduces if site.fired]
    if not fired:
        raise DemoError("no all-reduce was replaced; is oneshot installed for this Python?")
    print("\n".join(diff(*fired[0])), end="\n\n")

    printed = run("llama_reference.py", *map(str, files.values())).splitlines()
    errors = {name: float(line.split()[-1]) for name, line in zip(files, printed, strict=True)}
    logits = {name: np.load(file)["logits"] for name, file in files.items()}
    difference = float(np.abs(logits["stock"] - logits["oneshot"]).max())
    print("relative error against float64")
    for name, error in errors.items():
        print(f"  {name:8} {error:.3e}")
    print(f"largest difference between the two: {difference:.3e}\n")
    # Written so that NaN fails.
    if not errors["oneshot"] <= ERROR_RATIO * errors["stock"] + ERROR_SLACK:
        raise DemoError("the numbers are wrong")


def main() -> int:
    """Returns the exit code."""
    try:
        with tempfile.TemporaryDirectory() as directory:
            demo(Path(directory))
    except DemoError as error:
        print(f"{error}\nFAIL")
        return 1
    print("PASS")
    return 0


if __name__ == "__main__":
    sys.exit(main())
