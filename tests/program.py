# SPDX-License-Identifier: Apache-2.0
"""A program with one all-reduce, run in a fresh process with whatever variables; a module."""

import re
import subprocess
import sys
from pathlib import Path

from emulation import environment

# Prints "fused" or "stock" after what XLA made of it, and fails if the numbers are wrong.
PROGRAM = """
import functools, sys
import jax
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

def compiled():
    mesh = jax.sharding.Mesh(jax.devices(), ("a",))

    @jax.jit
    @functools.partial(jax.shard_map, mesh=mesh, in_specs=P("a"), out_specs=P("a"))
    def program(x):
        return x + lax.psum(x, "a")

    x = np.arange(32, dtype=np.float32).reshape(8, 4)
    assert np.array_equal(program(x), x + x.sum(axis=0))
    text = program.lower(x).compile().as_text()
    assert ("all-reduce(" in text) != ("oneshot_all_reduce" in text)
    return "stock" if "all-reduce(" in text else "fused"

def libraries():
    maps = open("/proc/self/maps").read()
    return [name for name in ("liboneshot_hook", "liboneshot_xla_cc") if name in maps]
"""
SHOW = "print(compiled())"

HLO = """
HloModule m, entry_computation_layout={(f32[4,8]{1,0}, f32[4,8]{1,0})->(f32[4,8]{1,0}, f32[4,8]{1,0})}, num_partitions=4

add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b)
}

ENTRY main {
  x = f32[4,8]{1,0} parameter(0), sharding={@mesh<p=2,q=2>, [{p}, {}]}, metadata={op_name="x[{\\"k\\"}]"}
  r = f32[4,8]{1,0} parameter(1)
  all-reduce = f32[4,8]{1,0} all-reduce(x), channel_id=1, replica_groups=@mesh<p=2,q=2> {q}, use_global_device_ids=true, to_apply=add, metadata={op_name="jit(m)/psum" source_file="m.py" source_line=7}
  sum = f32[4,8]{1,0} add(all-reduce, r)
  all-reduce.1 = f32[4,8]{1,0} all-reduce(r), channel_id=2, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=add
  sine = f32[4,8]{1,0} sine(sum)
  ROOT out = (f32[4,8]{1,0}, f32[4,8]{1,0}) tuple(sine, all-reduce.1)
}
"""  # noqa: E501


class Done:
    """What a program printed.

    Attributes:
      code: its exit code.
      out: lines on stdout.
      lines: lines on stderr from Oneshot, without the prefix.
      err: all of stderr.
    """

    def __init__(self, done: subprocess.CompletedProcess[str]):
        self.code = done.returncode
        self.out = done.stdout.splitlines()
        self.err = done.stderr
        self.lines = re.findall(r"(?m)^oneshot(?:\[.*?\])?: (.*)$", done.stderr)


def run(*arguments: str | Path, **variables: str | Path) -> Done:
    """Runs Python with these arguments."""
    command = [sys.executable, *map(str, arguments)]
    return Done(
        subprocess.run(
            command,
            env=environment(**variables),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    )


def run_code(code: str, **variables: str | Path) -> Done:
    """Runs `code` after PROGRAM."""
    done = run("-c", PROGRAM + code, **variables)
    assert done.code == 0, done.err
    return done
