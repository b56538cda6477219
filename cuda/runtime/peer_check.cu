// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/peer_check.h"

namespace oneshot {
namespace {

constexpr int kLoads = 64;

__device__ uint32_t LoadSystem(const uint32_t* address) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(address)
               : "memory");
  return value;
}

__device__ uint64_t Nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

__global__ void TryPeerKernel(uint32_t* peer, uint32_t pattern,
                              uint64_t* elapsed) {
  const uint64_t start = Nanoseconds();
  uint32_t sum = 0;
  for (int i = 0; i < kLoads; ++i) {
    // The next address depends on the last answer, though it is the same.
    sum |= LoadSystem(peer + (sum == 1 ? 1 : 0)) & 2;
  }
  *elapsed = Nanoseconds() - start + (sum == 1 ? 1 : 0);
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %1, %1, %1};"
               :
               : "l"(peer), "r"(pattern)
               : "memory");
}

}  // namespace

cudaError_t TryPeer(uint32_t* peer, uint32_t pattern, cudaStream_t stream,
                    double* load_ns) {
  uint64_t* elapsed = nullptr;
  cudaError_t status =
      cudaHostAlloc(&elapsed, sizeof(*elapsed), cudaHostAllocMapped);
  if (status != cudaSuccess) return status;
  TryPeerKernel<<<1, 1, 0, stream>>>(peer, pattern, elapsed);
  status = cudaGetLastError();
  if (status == cudaSuccess) status = cudaStreamSynchronize(stream);
  *load_ns = static_cast<double>(*elapsed) / kLoads;
  cudaFreeHost(elapsed);
  return status;
}

}  // namespace oneshot
