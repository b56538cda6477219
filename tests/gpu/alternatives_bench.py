# SPDX-License-Identifier: Apache-2.0
"""All-reduce + residual + RMSNorm as others do it: PyTorch, NCCL, vLLM's kernel, FlashInfer.

Needs two GPUs or more of one host with peer access, and PyTorch; some arms need FlashInfer. What
`cuda/bench/kernel_bench.cu` measures for Oneshot's kernel, measured the same way: 64 calls in a
CUDA graph, a sample is the time of 10 launches of it, the slowest rank counts, arms take turns.

  python tests/gpu/alternatives_bench.py [--tokens 1,8,32] [--hidden 8192] [--dtypes bf16,f16]

A call's normed result is the next call's x, and each rank has RMSNorm weights of its own, so the
ranks differ in every call. After a launch of the graph, results are compared with the same chain
in float64. An arm that raises or is wrong has no time for that shape, one that hangs or kills its
process none for the rest; the reasons are printed.
"""

import argparse
import json
import math
import os
import queue
import statistics
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import process_group
from alternatives import ARMS, EPSILON, gather

OPS = 64  # calls in a graph
LAUNCHES = 10  # graphs in a sample, to hide the first skew
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
# Of the norm of the error over that of the result, after 64 calls, which hand their roundings on:
# these alone make two thirds of it.
MAX_ERROR = {"bf16": 5e-2, "f16": 4e-3, "f32": 1e-5}
# Long enough for compilers; after it an arm counts as hanging.
PATIENCE_S = 120


@dataclass(frozen=True)
class Case:
    """One shape."""

    tokens: int
    hidden: int
    dtype: str


@dataclass
class Row:
    """What was measured for a case.

    Attributes:
      case: the case.
      times: by arm, microseconds per call, one of each round.
      errors: by arm, of the normed result and of the residual, against float64.
    """

    case: Case
    times: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Inputs:
    """Random numbers: the same in every arm, and all but the residual of this rank alone."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    normed: Tensor
    summed: Tensor

    @classmethod
    def draw(cls, case: Case) -> "Inputs":
        """Draws them, and computes in float64 what is right after a graph."""
        # On the host, where all ranks draw the same.
        generator = torch.Generator().manual_seed(case.tokens)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def put(tensor: Tensor) -> Tensor:
            return tensor.to("cuda", DTYPES[case.dtype])

        ranks = range(dist.get_world_size())
        xs = [put(draw(case.tokens, case.hidden)) for _ in ranks]
        weights = [put(1 + draw(case.hidden) / 4) for _ in ranks]
        residual = put(draw(case.tokens, case.hidden))
        summed = residual.double()
        parts = [x.double() for x in xs]
        for _ in range(OPS):
            summed = summed + sum(parts)
            normed = summed * (summed.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
            parts = [normed * weight for weight in weights]
        rank = dist.get_rank()
        return cls(xs[rank], residual, weights[rank], parts[rank], summed)


class Prepared:
    """An arm with its graph."""

    def __init__(self, name: str, inputs: Inputs):
        self._inputs = inputs
        self._arm = ARMS[name](inputs.x.shape, inputs.x.dtype)
        self._residual = torch.empty_like(inputs.residual)
        self._graph = torch.cuda.CUDAGraph()
        for _ in range(2):  # compiles, and makes what is made at the first call
            self._reset()
            self._calls()
        torch.cuda.synchronize()
        dist.barrier()
        # Other threads, NCCL's watchdog for one, may call CUDA meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._normed = self._calls()
        self._arm.captured()
        torch.cuda.synchronize()
        dist.barrier()

    def _reset(self) -> None:
        self._arm.x[0].copy_(self._inputs.x)
        self._residual.copy_(self._inputs.residual)

    def _calls(self) -> Tensor:
        x, other = self._arm.x
        for _ in range(OPS):
            result = self._arm.call(x, self._residual, self._inputs.weight, other)
            # Whoever returns memory of its own leaves ours alone.
            x, other = (result, x) if result is other else (result, other)
        return x

    def errors(self) -> tuple[float, float]:
        """How wrong the results of a graph are."""
        self._normed.fill_(float("nan"))
        self._reset()
        torch.cuda.synchronize()
        dist.barrier()
        self._graph.replay()

        def error(result: Tensor, right: Tensor) -> float:
            return ((result.double() - right).norm() / right.norm()).item()

        mine = (
            error(self._normed, self._inputs.normed),
            error(self._residual, self._inputs.summed),
        )
        # A NaN is no maximum: any rank's must be seen.
        return tuple(
            max(each, key=lambda value: (math.isnan(value), value))
            for each in zip(*gather(mine), strict=True)
        )

    def sample(self, together: Tensor) -> float:
        """Microseconds per call on this rank."""
        self._reset()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        dist.barrier()
        # The host is done enqueuing before the ranks start, by an all-reduce, at the same time.
        torch.cuda._sleep(2_000_000)
        dist.all_reduce(together)
        start.record()
        for _ in range(LAUNCHES):
            self._graph.replay()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) * 1e3 / (LAUNCHES * OPS)


@dataclass(frozen=True)
class Job:
    """What all ranks are told."""

    world: int
    port: int
    cases: list[Case]
    arms: list[str]
    rounds: int


def prepare(name: str, inputs: Inputs, row: Row) -> tuple[Prepared | None, str]:
    """Makes an arm and checks its results; returns none, and why, unless all ranks can use it."""
    try:
        prepared, problem = Prepared(name, inputs), ""
    except Exception as e:
        if dist.get_rank() == 0:
            traceback.print_exc()
        prepared, problem = None, f"{type(e).__name__}: {e}"
        # Raises if no arm can go on in this process.
        torch.cuda.synchronize()
    if any(problems := gather(problem)):
        return None, next(filter(None, problems))
    errors = row.errors[name] = prepared.errors()
    if not all(error <= MAX_ERROR[row.case.dtype] for error in errors):
        return None, f"wrong: errors of {errors}"
    return prepared, ""


def work(rank: int, job: Job, said: "mp.Queue[tuple[str, Any]]") -> None:
    """A rank: says what it does, arms that fail, and rows."""
    say = said.put if rank == 0 else lambda _: None
    try:
        torch.cuda.set_device(rank)
        # A compilation a shape.
        torch._dynamo.config.recompile_limit = len(job.cases) + 1
        dist.init_process_group(
            "nccl",
            init_method=f"tcp://127.0.0.1:{job.port}",
            rank=rank,
            world_size=job.world,
            device_id=torch.device("cuda", rank),
        )
        together = torch.zeros(1, device="cuda")
        for case in job.cases:
            inputs = Inputs.draw(case)
            row = Row(case)
            arms: dict[str, Prepared] = {}
            for name in job.arms:
                say(("doing", name))
                prepared, problem = prepare(name, inputs, row)
                if prepared:
                    arms[name] = prepared
                else:
                    say(("failed", (name, case, problem)))
            mine: dict[str, list[float]] = {name: [] for name in arms}
            for sample in range(-2, job.rounds):
                for name, arm in arms.items():
                    say(("doing", name))
                    time_us = arm.sample(together)
                    if sample >= 0:
                        mine[name].append(time_us)
            for name in arms:
                samples = zip(*gather(mine[name]), strict=True)
                row.times[name] = [max(ranks) for ranks in samples]
            say(("row", row))
        say(("done", None))
        dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        # At once: what holds a CUDA context with a kernel that spins can't be torn down.
        os._exit(1)


def run(world: int, cases: list[Case], arms: list[str], rounds: int) -> tuple[list[Row], list[str]]:
    """Runs all cases, in fresh processes without the arm at fault whenever they die or hang.

    Returns:
      the rows, and why which arms are missing in them.
    """
    rows: list[Row] = []
    failures: list[str] = []

    def fail(text: str) -> None:
        failures.append(text)
        print(text, flush=True)

    context = mp.get_context("spawn")
    while left := cases[len(rows) :]:
        job = Job(world, process_group.free_port(), left, arms, rounds)
        said = context.Queue()
        processes = [
            context.Process(target=work, args=(rank, job, said), daemon=True)
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        doing, heard, what = "", time.monotonic(), ""
        while what != "done":
            try:
                what, value = said.get(timeout=1)
            except queue.Empty:
                dead = any(process.exitcode is not None for process in processes)
                if not dead and time.monotonic() - heard < PATIENCE_S:
                    continue
                if not doing:
                    raise RuntimeError("the processes do not start") from None
                arms = [name for name in arms if name != doing]
                fail(f"{doing}, from here on: {'a process died' if dead else 'hangs'}")
                break
            heard = time.monotonic()
            if what == "doing":
                doing = value
            elif what == "failed":
                name, case, reason = value
                fail(f"{name}, {case}: {reason}")
            elif what == "row":
                rows.append(value)
                print_row(value)
        for process in processes:
            process.join(timeout=10 if what == "done" else 0)
            process.kill()
            process.join()
    return rows, failures


def print_row(row: Row) -> None:
    """Prints medians, and the errors of the normed result."""
    print(f"[{row.case.tokens},{row.case.hidden}] {row.case.dtype}, microseconds per call (error)")
    for name, times in row.times.items():
        print(f"  {name:26} {statistics.median(times):8.2f}  ({row.errors[name][0]:.1e})")
    sys.stdout.flush()


def print_table(rows: list[Row]) -> None:
    """Prints the medians of all cases as a Markdown table."""
    names = [name for name in ARMS if any(name in row.times for row in rows)]
    print("| tokens | hidden | type | " + " | ".join(names) + " |")
    print("|---" * (3 + len(names)) + "|")
    for row in rows:
        medians = (
            f"{statistics.median(row.times[name]):.2f}" if name in row.times else "-"
            for name in names
        )
        case = row.case
        print(f"| {case.tokens} | {case.hidden} | {case.dtype} | " + " | ".join(medians) + " |")


def versions() -> dict[str, str]:
    """Of everything that is measured."""
    from importlib import metadata

    found = {
        "device": torch.cuda.get_device_name(0),
        "torch": torch.__version__,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }
    try:
        found["flashinfer"] = metadata.version("flashinfer-python")
    except metadata.PackageNotFoundError:
        found["flashinfer"] = "not installed"
    return found


def main() -> None:
    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=numbers, default=[1, 8, 32, 64, 128, 256, 512])
    parser.add_argument("--hidden", type=numbers, default=[8192])
    parser.add_argument("--dtypes", type=lambda text: text.split(","), default=["bf16"])
    parser.add_argument("--arms", nargs="*", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=51)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    # Without NVLink multicast, as everything that Oneshot is compared with: a program that fails
    # while it uses that can take the links of a whole host down.
    os.environ |= {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
    # Makes FlashInfer take PyTorch's symmetric memory for its workspace, which obeys that. It takes
    # for granted that such a tensor is an allocation of its own, zeroed, which PyTorch's pool does
    # not give.
    os.environ.setdefault("FLASHINFER_CONFIDENTIAL_COMPUTE", "1")
    os.environ["TORCH_SYMMMEM_IMPLICIT_POOL"] = "0"
    world = torch.cuda.device_count()
    cases = [
        Case(tokens, hidden, dtype)
        for dtype in arguments.dtypes
        for hidden in arguments.hidden
        for tokens in arguments.tokens
    ]
    rows, failures = run(world, cases, arguments.arms, arguments.rounds)
    about = versions() | {"ranks": str(world)}
    if arguments.json:
        result = {"about": about, "rows": [asdict(row) for row in rows], "failures": failures}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    print(about)
    print_table(rows)
    print(*failures, sep="\n")


if __name__ == "__main__":
    main()
