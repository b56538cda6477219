# SPDX-License-Identifier: Apache-2.0
"""The process of one run of `oneshot compare`: RESULT PROGRAM [ARGUMENTS]."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np

import oneshot
from oneshot import steps, versions


def main() -> None:
    """Runs a program and writes what its steps were, as JSON and beside it the outputs."""
    result, program, *arguments = sys.argv[1:]
    steps.recorder = steps.Recorder()
    jax.jit = steps.recorder.wrap(jax.jit)
    sys.argv = [program, *arguments]
    sys.path[0] = str(Path(program).resolve().parent)
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    found = {
        "versions": versions.facts(),
        "platform": jax.default_backend(),
        "processes": jax.process_count(),
        "status": dataclasses.asdict(oneshot.status()),
        "step": None,
    }
    if step := steps.recorder.step():
        found["step"] = {"name": step.name, "seconds": step.seconds, "steps": step.steps}
        np.savez(f"{result}.npz", *step.outputs)
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
