// SPDX-License-Identifier: Apache-2.0
//
// Packets in memory that a peer reads or writes too, for benchmarks. The kernel
// has its own, which tell the L2 what to keep.
#ifndef ONESHOT_CUDA_BENCH_SYSTEM_ACCESS_CUH_
#define ONESHOT_CUDA_BENCH_SYSTEM_ACCESS_CUH_

namespace oneshot {

__device__ __forceinline__ uint4 LoadSystem(const uint4* address) {
  uint4 value;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address)
               : "memory");
  return value;
}

__device__ __forceinline__ void StoreSystem(uint4* address, uint4 value) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};"
               :
               : "l"(address), "r"(value.x), "r"(value.y), "r"(value.z),
                 "r"(value.w)
               : "memory");
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_BENCH_SYSTEM_ACCESS_CUH_
