# SPDX-License-Identifier: Apache-2.0
"""Writes tunings.h: how the kernel is spread over a device, by measurement.

  python cuda/bench/tune.py bazel-bin/cuda/bench/kernel_bench --nvrtc DIR >cuda/kernel/tunings.h

Needs two GPUs with peer access. Times residual and RMSNorm behind a bf16 sum, with all tunings that
fit, in each of the shapes of the table: one call after the other, and as between the GEMMs of a
decode step (`kernel_bench --cold`), which is what matters, but less exact. The sum of both decides.
Shows on stderr what was gained over the tunings that are in use.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

HIDDEN = (2048, 4096, 8192, 16384, 32768)
ROWS = (1, 8, 32, 64, 128, 256, 512)
# A choice that is in use stays unless another one is faster by more than this, which is what two
# measurements of the same differ by.
NOISE = 1.02

HEAD = """\
// SPDX-License-Identifier: Apache-2.0
//
// Made by tune.py, between {about}.
#ifndef ONESHOT_CUDA_KERNEL_TUNINGS_H_
#define ONESHOT_CUDA_KERNEL_TUNINGS_H_

#include "cuda/kernel/launch_plan.h"

namespace oneshot {{

// The device that it was measured on.
constexpr DeviceLimits kMeasuredOn = {{{multiprocessors}, {cluster}}};

// By packets, then rows.
constexpr Measured kMeasured[] = {{
"""
TAIL = """\
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_KERNEL_TUNINGS_H_
"""
LINE = re.compile(
    r"ranks=2 \[(\d+),(\d+)\] bf16 residual\+rms_norm: (\S+) us, (in use|tried)  "
    r"\(\d+ blocks of (\d+), (\d+) packets a thread, clusters of (\d+), one shot\)"
)


# Threads of a block, packets of a thread, blocks of a cluster.
Tuning = tuple[int, int, int]
# Packets of a row, rows.
Shape = tuple[int, int]


@dataclass
class Timed:
    """A tuning, its times in us, and whether it is in use."""

    tuning: Tuning
    used: bool
    warm: float = 0.0
    cold: float = 0.0

    @property
    def score(self) -> float:
        """What is compared."""
        return self.warm + self.cold

    def __str__(self) -> str:
        return f"{self.warm:.2f} us, {self.cold:.2f} cold"


def parse(text: str) -> Iterator[tuple[Shape, float, bool, Tuning]]:
    """What kernel_bench has printed: a time for each shape and tuning, and whether it is in use."""
    for rows, hidden, time, how, *tuning in LINE.findall(text):
        shape = int(hidden) * 2 // 16, int(rows)
        yield shape, float(time), how == "in use", tuple(map(int, tuning))


def collect(warm: str, cold: str) -> dict[Shape, list[Timed]]:
    """What kernel_bench has printed without and with --cold, by shape."""
    shapes: dict[Shape, dict[Tuning, Timed]] = {}
    for shape, time, used, tuning in parse(warm):
        shapes.setdefault(shape, {})[tuning] = Timed(tuning, used, warm=time)
    for shape, time, _, tuning in parse(cold):
        shapes[shape][tuning].cold = time
    return {shape: list(timed.values()) for shape, timed in shapes.items()}


def choose(timed: list[Timed]) -> Timed:
    """The fastest, or the one in use if that is as fast."""
    best = min(timed, key=lambda one: one.score)
    used = next((one for one in timed if one.used), best)
    return used if used.score <= best.score * NOISE else best


def table(shapes: dict[Shape, list[Timed]]) -> Iterator[str]:
    """Lines of the table."""
    entries = []
    for (packets, rows), timed in sorted(shapes.items()):
        best = choose(timed)
        tuning = ", ".join(map(str, best.tuning))
        entries.append((f"{{{packets}, {rows}, {{{tuning}}}}},", f"// {best}"))
        used = next((one for one in timed if one.used), None)
        print(
            f"{rows} rows of {packets} packets: {best.tuning} {best}; in use {used}",
            file=sys.stderr,
        )
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
    command = [arguments.kernel_bench, "--devices", arguments.devices, "--tune"]
    command += ["--only", "residual+rms_norm", "--nvrtc", arguments.nvrtc]
    command += ["--hidden", ",".join(map(str, HIDDEN)), "--rows", ",".join(map(str, ROWS))]
    warm, cold = (
        subprocess.run(command + more, stdout=subprocess.PIPE, text=True, check=True).stdout
        for more in ([], ["--cold"])
    )
    device = re.search(r"(?m)^on (.*), (\d+) multiprocessors, clusters of (\d+)$", warm)
    about, multiprocessors, cluster = device.groups()
    print(HEAD.format(about=about, multiprocessors=multiprocessors, cluster=cluster), end="")
    print("\n".join(table(collect(warm, cold))))
    print(TAIL, end="")


if __name__ == "__main__":
    main()
