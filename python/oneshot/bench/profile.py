# SPDX-License-Identifier: Apache-2.0
"""What a step does, from a trace of JAX's profiler.

The kernels of the first GPU, and what the host does for it: launches of CUDA graphs, and updates of
them, which XLA makes when buffers have moved since the last launch.
"""

import collections
import gzip
import json
from pathlib import Path
from typing import Any

MOST_KERNELS = 16
"""How many names of kernels are kept, those with the most time."""


def summary(directory: str, steps: int) -> dict[str, Any]:
    """Reads a trace.

    Args:
      directory: where `jax.profiler.trace` has written.
      steps: what the counts and times are divided by.

    Returns:
      "launches", "graph_launches", "graph_updates_us": of the host, per GPU and step.
      "kernels": of the first GPU per step, [name, count, microseconds] by descending time.
      "kernels_us": of all kernels together.
    """
    (path,) = Path(directory).rglob("*.trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    processes = {
        event["pid"]: event["args"]["name"]
        for event in events
        if event.get("name") == "process_name"
    }
    devices = sum(name.startswith("/device:GPU:") for name in processes.values())
    counts: collections.Counter[str] = collections.Counter()
    times: collections.Counter[str] = collections.Counter()
    host: collections.Counter[str] = collections.Counter()
    for event in events:
        if event.get("ph") != "X":
            continue
        name, process = event["name"], processes.get(event["pid"], "")
        if process == "/device:GPU:0":
            counts[name] += 1
            times[name] += event["dur"]
        elif name.startswith("cuGraphLaunch"):
            host["graph_launches"] += 1
        elif name.startswith("cuLaunchKernel"):
            host["launches"] += 1
        elif name == "command_buffer::update":
            host["graph_updates_us"] += event["dur"]
    return {
        **{
            name: host[name] / steps / max(devices, 1)
            for name in ("launches", "graph_launches", "graph_updates_us")
        },
        "kernels": [
            [name, counts[name] / steps, time / steps]
            for name, time in times.most_common(MOST_KERNELS)
        ],
        "kernels_us": times.total() / steps,
    }
