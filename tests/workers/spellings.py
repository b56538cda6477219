# SPDX-License-Identifier: Apache-2.0
"""Runs the programs of gpu_compiler/spellings.py, alone or as one of a group of processes.

  python workers/spellings.py OUT

What the devices of this process have computed goes to a file whose name ends with its rank. Devices
that have the same part of an array have to have the same bits.
"""

import os
import sys
from pathlib import Path

import jax
import numpy as np
import process_group
from gpu_compiler import devices, spellings


def main() -> None:
    """Runs them."""
    process_group.join()
    devices.use(jax.devices())
    outputs: dict[str, np.ndarray] = {}
    for program in spellings.PROGRAMS:
        operands = spellings.random_operands(program)
        compiled = jax.jit(program.run).lower(operands).compile()
        fused = compiled.as_text().count('custom_call_target="oneshot_all_reduce')
        expected = sum(", read by " in site for site in program.sites)
        assert fused == (expected if os.environ["ONESHOT"] == "1" else 0), (program.name, fused)
        for i, out in enumerate(jax.tree.leaves(compiled(operands))):
            for shard in out.addressable_shards:
                name = f"{program.name}/{i}/{shard.index}"
                bits = np.asarray(shard.data).astype(np.float32)
                np.testing.assert_array_equal(outputs.setdefault(name, bits), bits)
    with Path(f"{sys.argv[1]}.{jax.process_index()}").open("wb") as file:
        np.savez(file, **outputs)


if __name__ == "__main__":
    main()
