// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/launch.h"

#include <algorithm>

#include "cuda/kernel/device/arguments.h"
#include "cuda/program/call_contract.h"
#include "cuda/program/epilogue_program.h"
#include "cuda/runtime/cuda_driver.h"

namespace oneshot {
namespace {

static_assert(sizeof(KernelArguments::operands) / sizeof(void*) ==
              kMaxOperands);
static_assert(sizeof(KernelArguments::indices) / sizeof(void*) == kMaxIndices);
static_assert(sizeof(KernelArguments::results) / sizeof(void*) == kMaxResults);
static_assert(sizeof(KernelArguments::inboxes) / sizeof(void*) == kMaxRanks);

}  // namespace

bool IsAligned(const Buffers& buffers) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(buffers.x);
  for (const void* operand : buffers.operands) {
    bits |= reinterpret_cast<uintptr_t>(operand);
  }
  for (const void* result : buffers.results) {
    bits |= reinterpret_cast<uintptr_t>(result);
  }
  return bits % kPacketBytes == 0;  // absent buffers are null
}

CUresult LoadKernel(const Kernel& kernel) {
  if (kernel.function == nullptr) return CUDA_SUCCESS;
  CUfunction function = nullptr;
  const CUresult status = Cuda().KernelGetFunction(&function, kernel.function);
  if (status != CUDA_SUCCESS) return status;
  // Loading is lazy: to have the function is not yet to have its code on the
  // device. Drivers without a call for that load it to know its limits; newer
  // ones would only say that it is not loaded.
  if (Cuda().FuncLoad != nullptr) return Cuda().FuncLoad(function);
  int threads = 0;
  return Cuda().FuncGetAttribute(
      &threads, CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK, function);
}

CUresult LaunchAllReduce(const Kernel& kernel, const Buffers& buffers,
                         const WorkspaceView& workspace, uint64_t site,
                         CUstream stream) {
  if (kernel.function == nullptr) return CUDA_SUCCESS;
  KernelArguments arguments = {};
  arguments.x = buffers.x;
  std::copy_n(buffers.operands, kMaxOperands, arguments.operands);
  std::copy_n(buffers.indices, kMaxIndices, arguments.indices);
  std::copy_n(buffers.results, kMaxResults, arguments.results);
  std::copy_n(workspace.inboxes, kMaxRanks, arguments.inboxes);
  arguments.control = workspace.control;
  arguments.fault = workspace.fault;
  arguments.notice_ns = workspace.notice_ns;
  arguments.timeout_ns = workspace.timeout_ns;
  arguments.site = site;
  arguments.rank = workspace.rank;
  void* parameters[] = {&arguments};
  // A kernel stands for its function in the context of the stream.
  return Cuda().LaunchKernel(
      reinterpret_cast<CUfunction>(kernel.function), kernel.plan.blocks, 1, 1,
      kernel.plan.tuning.threads, 1, 1, /*sharedMemBytes=*/0, stream,
      parameters, /*extra=*/nullptr);
}

}  // namespace oneshot
