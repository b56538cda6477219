# SPDX-License-Identifier: Apache-2.0
"""All-reduce + residual + RMSNorm as others do it; alternatives_bench.py measures them."""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symm_mem
import triton
import triton.language as tl
from torch import Tensor

EPSILON = 1e-6


def gather(value: Any) -> list[Any]:
    """What all ranks have for a value."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


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
