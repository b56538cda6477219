// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/peer_check.h"

#include <map>
#include <mutex>

#include "cuda/runtime/compile_and_load.h"
#include "cuda/runtime/cuda_check.h"
#include "cuda/runtime/cuda_driver.h"

namespace oneshot {
namespace {

// For the run-time compiler, between two lines that name and count.
constexpr char kSource[] = R"CUDA(
__device__ unsigned LoadSystem(const unsigned* address) {
  unsigned value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];"
               : "=r"(value)
               : "l"(address)
               : "memory");
  return value;
}

__device__ unsigned long long Nanoseconds() {
  unsigned long long now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

extern "C" __global__ void KERNEL(unsigned* peer, unsigned pattern,
                                  unsigned long long* elapsed) {
  const unsigned long long start = Nanoseconds();
  unsigned sum = 0;
  for (int i = 0; i < LOADS; ++i) {
    // The next address depends on the last answer, though it is the same.
    sum |= LoadSystem(peer + (sum == 1 ? 1 : 0)) & 2;
  }
  *elapsed = Nanoseconds() - start + (sum == 1 ? 1 : 0);
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %1, %1, %1};"
               :
               : "l"(peer), "r"(pattern)
               : "memory");
}
)CUDA";

// Compiled once for each kind of device. Null with the reason in `error`.
CUkernel FindOrCompile(int compute_capability, std::string* error) {
  static std::mutex mutex;
  static auto* const kernels = new std::map<int, CUkernel>;
  const std::lock_guard<std::mutex> lock(mutex);
  CUkernel& kernel = (*kernels)[compute_capability];
  if (kernel == nullptr) {
    const std::string source = std::string("#define KERNEL ") + kTryPeerKernel +
                               "\n#define LOADS " +
                               std::to_string(kTryPeerLoads) + "\n" + kSource;
    CompileAndLoad(source, kTryPeerKernel, compute_capability, &kernel, error);
  }
  return kernel;
}

}  // namespace

bool TryPeer(uint32_t* peer, uint32_t pattern, int compute_capability,
             CUstream stream, double* load_ns, std::string* error) {
  const CUkernel kernel = FindOrCompile(compute_capability, error);
  if (kernel == nullptr) return false;
  void* memory = nullptr;
  if (!CudaSucceeded(Cuda().MemHostAlloc(&memory, sizeof(uint64_t),
                                         CU_MEMHOSTALLOC_DEVICEMAP),
                     "memory for the access to a peer", error)) {
    return false;
  }
  auto* elapsed = static_cast<uint64_t*>(memory);
  void* parameters[] = {&peer, &pattern, &elapsed};
  CUresult status =
      Cuda().LaunchKernel(reinterpret_cast<CUfunction>(kernel), 1, 1, 1, 1, 1,
                          1, 0, stream, parameters, nullptr);
  if (status == CUDA_SUCCESS) status = Cuda().StreamSynchronize(stream);
  *load_ns = static_cast<double>(*elapsed) / kTryPeerLoads;
  Cuda().MemFreeHost(memory);
  return CudaSucceeded(status, "access to a peer", error);
}

}  // namespace oneshot
