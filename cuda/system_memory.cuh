// SPDX-License-Identifier: Apache-2.0
//
// The accesses whose ordering and caching the protocol depends on.
#ifndef ONESHOT_CUDA_SYSTEM_MEMORY_CUH_
#define ONESHOT_CUDA_SYSTEM_MEMORY_CUH_

#include <cstdint>

namespace oneshot {

// Relaxed accesses at system scope: the weakest that may race with an access
// from another GPU. They are served by the L2 of the device that owns the
// memory, never by the L1 of the reader, so a poll sees a peer's store in
// finite time. Each 32-bit word is atomic and that is all we need: a packet is
// complete when none of its words is the sentinel, in whatever order the words
// become visible. No word carries news about another, so nothing is ordered by
// acquire and release and no fence is paid for.
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

// Ordinary loads, but volatile: the compiler must issue them where they are
// written, ahead of the wait for the peers, instead of next to their first use.
__device__ __forceinline__ uint32_t LoadNow32(const void* address) {
  uint32_t value;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(value) : "l"(address));
  return value;
}

__device__ __forceinline__ uint32_t LoadNow16(const void* address) {
  uint16_t value;
  asm volatile("ld.global.u16 %0, [%1];" : "=h"(value) : "l"(address));
  return value;
}

__device__ __forceinline__ uint2 LoadNow64(const void* address) {
  uint2 value;
  asm volatile("ld.global.v2.u32 {%0, %1}, [%2];"
               : "=r"(value.x), "=r"(value.y)
               : "l"(address));
  return value;
}

__device__ __forceinline__ uint4 LoadNow128(const void* address) {
  uint4 value;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(address));
  return value;
}

__device__ __forceinline__ void PrefetchToL2(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" : : "l"(address));
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_SYSTEM_MEMORY_CUH_
