# SPDX-License-Identifier: Apache-2.0
"""Writes tunings.h: how the kernel is spread over a device, by measurement.

  python cuda/tune.py bazel-bin/cuda/kernel_bench --nvrtc DIR >cuda/tunings.h

Needs two GPUs with peer access. Times residual and RMSNorm behind a bf16 sum, with all tunings that
fit, in each of the shapes of the table, as between the GEMMs of a decode step (`kernel_bench
--cold`). Shows on stderr what was gained over the tunings that are in use.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

HIDDEN = (2048, 4096, 8192, 16384)
ROWS = (1, 8, 32, 64, 128, 256)
# A choice that is in use stays unless another one is faster by more than what two measurements of
# the same differ by.
NOISE = 1.02

HEAD = """\
// SPDX-License-Identifier: Apache-2.0
//
// Made by tune.py, between {about}.
#ifndef ONESHOT_CUDA_TUNINGS_H_
#define ONESHOT_CUDA_TUNINGS_H_

#include "cuda/launch_plan.h"

namespace oneshot {{

// The device that it was measured on.
constexpr DeviceLimits kMeasuredOn = {{{multiprocessors}, {cluster}}};

// By packets, then rows.
constexpr Measured kMeasured[] = {{
"""
TAIL = """\
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_TUNINGS_H_
"""
LINE = re.compile(
    r"ranks=2 \[(\d+),(\d+)\] bf16 residual\+rms_norm: (\S+) us, (in use|tried)  "
    r"\(\d+ blocks of (\d+), (\d+) packets a thread, clusters of (\d+), one shot\)"
)


@dataclass(frozen=True)
class Timed:
    """A tuning: threads of a block, packets of a thread, blocks of a cluster; its time in us."""

    tuning: tuple[int, int, int]
    time: float
    used: bool


def parse(text: str) -> dict[tuple[int, int], list[Timed]]:
    """What kernel_bench has printed, by packets of a row and rows."""
    result: dict[tuple[int, int], list[Timed]] = {}
    for rows, hidden, time, how, *tuning in LINE.findall(text):
        shape = int(hidden) * 2 // 16, int(rows)
        timed = Timed(tuple(map(int, tuning)), float(time), how == "in use")
        result.setdefault(shape, []).append(timed)
    return result


def choose(timed: list[Timed]) -> Timed:
    """The fastest, or the one in use if that is as fast."""
    best = min(timed, key=lambda one: one.time)
    used = next((one for one in timed if one.used), best)
    return used if used.time <= best.time * NOISE else best


def table(shapes: dict[tuple[int, int], list[Timed]]) -> Iterator[str]:
    """Lines of the table."""
    entries = []
    for (packets, rows), timed in sorted(shapes.items()):
        best = choose(timed)
        tuning = ", ".join(map(str, best.tuning))
        entries.append((f"{{{packets}, {rows}, {{{tuning}}}}},", f"// {best.time:.2f} us"))
        used = next((one.time for one in timed if one.used), None)
        print(f"{rows} rows of {packets} packets: {best}, in use {used}", file=sys.stderr)
    width = max(len(entry) for entry, _ in entries)
    for entry, comment in entries:
        yield f"    {entry:{width}}  {comment}"


def main() -> None:
    """Writes the table to stdout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernel_bench")
    parser.add_argument("--devices", default="0,1")
    parser.add_argument("--nvrtc", default="")
    arguments = parser.parse_args()
    command = [arguments.kernel_bench, "--devices", arguments.devices, "--tune", "--cold"]
    command += ["--only", "residual+rms_norm", "--nvrtc", arguments.nvrtc]
    command += ["--hidden", ",".join(map(str, HIDDEN)), "--rows", ",".join(map(str, ROWS))]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    device = re.search(r"(?m)^on (.*), (\d+) multiprocessors, clusters of (\d+)$", printed)
    about, multiprocessors, cluster = device.groups()
    print(HEAD.format(about=about, multiprocessors=multiprocessors, cluster=cluster), end="")
    print("\n".join(table(parse(printed))))
    print(TAIL, end="")


if __name__ == "__main__":
    main()
