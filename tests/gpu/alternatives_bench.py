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
import functools
import json
import math
import os
import queue
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symm_mem
import torch.multiprocessing as mp
import triton
import triton.language as tl
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))
import process_group

OPS = 64  # calls in a graph
LAUNCHES = 10  # graphs in a sample, to hide the first skew
EPSILON = 1e-6
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


def add_norm(s: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """The epilogue in plain PyTorch."""
    residual.add_(s)
    return torch.nn.functional.rms_norm(residual, weight.shape, weight, EPSILON)


@torch.compile(dynamic=False, fullgraph=True)
def compiled_add_norm(s: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    """The epilogue as PyTorch compiles it."""
    summed = residual + s
    residual.copy_(summed)
    return torch.nn.functional.rms_norm(summed, weight.shape, weight, EPSILON)


@triton.jit
def add_norm_kernel(  # noqa: PLR0917 (Triton passes them in order)
    s_pointer,
    residual_pointer,
    weight_pointer,
    out_pointer,
    hidden,
    epsilon,
    columns: tl.constexpr,
):
    """A row of the epilogue. Reads and writes everything once."""
    column = tl.arange(0, columns)
    inside = column < hidden
    at = tl.program_id(0).to(tl.int64) * hidden + column
    s = tl.load(s_pointer + at, inside, 0.0).to(tl.float32)
    residual = tl.load(residual_pointer + at, inside, 0.0).to(tl.float32)
    weight = tl.load(weight_pointer + column, inside, 0.0).to(tl.float32)
    summed = s + residual
    tl.store(residual_pointer + at, summed, inside)
    normed = summed * tl.rsqrt(tl.sum(summed * summed) / hidden + epsilon)
    tl.store(out_pointer + at, normed * weight, inside)


def fused_add_norm(s: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> None:
    """The epilogue as one kernel, into memory of the caller's choice."""
    tokens, hidden = s.shape
    columns = triton.next_power_of_2(hidden)
    # Two packets of 16 bytes a thread.
    warps = min(max(columns // 512, 1), 32)
    add_norm_kernel[(tokens,)](s, residual, weight, out, hidden, EPSILON, columns, num_warps=warps)


class Arm:
    """One way to do it. Made once per shape, on all ranks together."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype):
        self.x = self.allocate(shape, dtype), self.allocate(shape, dtype)

    def allocate(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Memory for x."""
        return torch.empty(shape, dtype=dtype, device="cuda")

    def call(self, x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """Enqueues one call; returns where the normed result is, which may be `out`."""
        raise NotImplementedError

    def captured(self) -> None:
        """Called between the capture of a graph and its first launch."""


class NcclEager(Arm):
    """NCCL, and one kernel each for the sum and the norm."""

    def call(self, x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """See base class."""
        dist.all_reduce(x)
        return add_norm(x, residual, weight)


class NcclCompiled(Arm):
    """NCCL and the epilogue as PyTorch compiles it."""

    def call(self, x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """See base class."""
        dist.all_reduce(x)
        return compiled_add_norm(x, residual, weight)


class Nccl(Arm):
    """NCCL and the fused epilogue."""

    def call(self, x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """See base class."""
        dist.all_reduce(x)
        fused_add_norm(x, residual, weight, out)
        return out


class NcclSymmetric(Nccl):
    """The same in memory that NCCL knows as symmetric: its kernels of lowest latency."""

    # Memory must not go while NCCL knows it.
    _pools: ClassVar[list[torch.cuda.MemPool]] = []

    def __init__(self, shape: torch.Size, dtype: torch.dtype):
        backend = dist.group.WORLD._get_backend(torch.device("cuda"))
        self._pool = torch.cuda.MemPool(backend.mem_allocator)
        self._pools.append(self._pool)
        super().__init__(shape, dtype)
        backend.register_mem_pool(self._pool, symm=True)

    def allocate(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """See base class."""
        with torch.cuda.use_mem_pool(self._pool):
            return super().allocate(shape, dtype)


def symmetric(shape: torch.Size | tuple[int], dtype: torch.dtype) -> tuple[Tensor, list[int]]:
    """PyTorch's symmetric memory: a tensor, and the addresses of all ranks'."""
    tensor = symm_mem.empty(*shape, dtype=dtype, device=torch.device("cuda", dist.get_rank()))
    handle = symm_mem.rendezvous(tensor, group=dist.group.WORLD)
    ranks = range(dist.get_world_size())
    return tensor, [handle.get_remote_tensor(rank, shape, dtype).data_ptr() for rank in ranks]


class TorchOneShot(Arm):
    """PyTorch's one-shot kernel for symmetric memory."""

    def allocate(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """See base class."""
        return symmetric(shape, dtype)[0]

    def call(self, x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """See base class."""
        s = torch.ops.symm_mem.one_shot_all_reduce(x, "sum", dist.group.WORLD.group_name)
        fused_add_norm(s, residual, weight, out)
        return out


class TorchTwoShot(TorchOneShot):
    """PyTorch's two-shot kernel for symmetric memory."""

    def call(self, x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """See base class."""
        torch.ops.symm_mem.two_shot_all_reduce_(x, "sum", dist.group.WORLD.group_name)
        fused_add_norm(x, residual, weight, out)
        return out


class Vllm(Arm):
    """vLLM's custom all-reduce, in FlashInfer's port, with the buffers of a graph registered."""

    _BLOCKS = 36  # its own limit
    _handle: int | None = None
    _kept: tuple[Tensor, ...] = ()

    def __init__(self, shape: torch.Size, dtype: torch.dtype):
        from flashinfer import comm

        super().__init__(shape, dtype)
        self._comm = comm
        # For calls outside of graphs, which copy x.
        self._copy, copies = symmetric(shape, dtype)
        if Vllm._handle is None:
            # Flags, and what two-shot kernels keep: as much as the largest x.
            signals, addresses = symmetric((comm.vllm_meta_size() + (64 << 20),), torch.uint8)
            signals.zero_()
            torch.cuda.synchronize()
            dist.barrier()
            table = torch.empty(8 << 20, dtype=torch.uint8, device="cuda")
            Vllm._handle = comm.vllm_init_custom_ar(addresses, table, dist.get_rank(), True)
            Vllm._kept = signals, table
        comm.vllm_register_buffer(Vllm._handle, copies)

    def call(self, x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """See base class."""
        s = torch.empty_like(x)
        staged = 0 if torch.cuda.is_current_stream_capturing() else self._copy.data_ptr()
        size = x.numel() * x.element_size()
        self._comm.vllm_all_reduce(Vllm._handle, x, s, staged, size, self._BLOCKS)
        fused_add_norm(s, residual, weight, out)
        return out

    def captured(self) -> None:
        """See base class."""
        meta = self._comm.vllm_get_graph_buffer_ipc_meta(Vllm._handle)
        handles, offsets = zip(*gather(tuple(list(part) for part in meta)), strict=True)
        self._comm.vllm_register_graph_buffers(Vllm._handle, list(handles), list(offsets))


@functools.cache
def flashinfer_workspace(max_tokens: int, hidden: int, dtype: torch.dtype) -> Any:
    """The memory that FlashInfer's kernels exchange data in."""
    from flashinfer import comm

    workspace = comm.create_allreduce_fusion_workspace(
        # Its other backends need NVLink multicast.
        backend="trtllm",
        world_size=dist.get_world_size(),
        rank=dist.get_rank(),
        max_token_num=max_tokens,
        hidden_dim=hidden,
        dtype=dtype,
        group=dist.group.WORLD,
    )
    torch.cuda.synchronize()
    dist.barrier()
    return workspace


class FlashInfer(Arm):
    """FlashInfer's fused kernel, which comes from TensorRT-LLM."""

    MAX_ELEMENTS = 2048 * 8192

    def __init__(self, one_shot: bool, pdl: bool, shape: torch.Size, dtype: torch.dtype):
        from flashinfer import comm

        super().__init__(shape, dtype)
        self._pattern = comm.AllReduceFusionPattern.kARResidualRMSNorm
        self._run = comm.allreduce_fusion
        hidden = shape[-1]
        self._workspace = flashinfer_workspace(self.MAX_ELEMENTS // hidden, hidden, dtype)
        self._how = {
            "use_oneshot": one_shot,
            "launch_with_pdl": pdl,
            "trigger_completion_at_end": not pdl,
            # Sums in float32, as Oneshot's kernel does.
            "fp32_acc": True,
        }

    def call(self, x: Tensor, residual: Tensor, weight: Tensor, out: Tensor) -> Tensor:
        """See base class."""
        return self._run(
            input=x,
            workspace=self._workspace,
            pattern=self._pattern,
            residual_in=residual,
            residual_out=residual,
            norm_out=out,
            rms_gamma=weight,
            rms_eps=EPSILON,
            **self._how,
        )


ARMS: dict[str, Callable[[torch.Size, torch.dtype], Arm]] = {
    "NCCL, eager": NcclEager,
    "NCCL, compiled": NcclCompiled,
    "NCCL": Nccl,
    "NCCL symmetric": NcclSymmetric,
    "torch one-shot": TorchOneShot,
    "torch two-shot": TorchTwoShot,
    "vLLM": Vllm,
    "FlashInfer one-shot": functools.partial(FlashInfer, True, False),
    "FlashInfer one-shot, PDL": functools.partial(FlashInfer, True, True),
    "FlashInfer two-shot, PDL": functools.partial(FlashInfer, False, True),
}


def gather(value: Any) -> list[Any]:
    """What all ranks have for a value."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


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
