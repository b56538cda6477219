# SPDX-License-Identifier: Apache-2.0
"""Runs a program under JAX's profiler: profiled.py DIRECTORY PROGRAM [ARGUMENT...].

Each process writes to a directory of its own, DIRECTORY/0, DIRECTORY/1 and so on: files are named
after the machine.
"""

import runpy
import sys

import jax

directory, program, *arguments = sys.argv[1:]
sys.argv = [program, *arguments]
options = jax.profiler.ProfileOptions()
options.python_tracer_level = 0  # a million calls of Python say nothing about kernels
try:
    with jax.profiler.trace(f"{directory}/{jax.process_index()}", profiler_options=options):
        runpy.run_path(program, run_name="__main__")
except SystemExit as end:
    sys.exit(end.code)
