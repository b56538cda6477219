// SPDX-License-Identifier: Apache-2.0
//
// What the kernel asks of the machine: memory that several GPUs access, a
// cluster of blocks, conversions of numbers. It comes before the rest of the
// kernel when that is compiled at run time; for a CPU, cuda/emulator/machine.h
// has the same.

namespace oneshot {

using uint16_t = unsigned short;
using uint32_t = unsigned int;
using int64_t = long long;
using uint64_t = unsigned long long;

// ---------------------------------------------------------------------------
// Memory

// Whether the places of a message in both slots are few enough to be kept in
// the L2, like the epoch, while the weights of the next layers stream through.
constexpr int64_t kMostKeptBytes = 2 << 20;
constexpr bool kKept =
    int64_t{2} * kPeers * kRows * kPacketsPerRow * 16 <= kMostKeptBytes;

// For accesses to the workspace.
__device__ __forceinline__ uint64_t Priority() {
  uint64_t policy;
  if (kKept) {
    asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  } else {
    asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  }
  return policy;
}

// Relaxed accesses at system scope: the weakest that may race with an access
// from another GPU. They are served by the L2 of the device that owns the
// memory, never by the L1 of the reader, so a poll sees a peer's store in
// finite time. Each 32-bit word is atomic and that is all we need: a packet is
// complete when none of its words is the sentinel, in whatever order the words
// become visible. No word carries news about another, so nothing is ordered by
// acquire and release and no fence is paid for.
__device__ __forceinline__ uint4 LoadSystem(const uint4* address) {
  uint4 value;
  asm volatile(
      "ld.relaxed.sys.global.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(address), "l"(Priority())
      : "memory");
  return value;
}

__device__ __forceinline__ void StoreSystem(uint4* address, uint4 value) {
  asm volatile(
      "st.relaxed.sys.global.L2::cache_hint.v4.u32 [%0], {%1, %2, %3, %4}, %5;"
      :
      : "l"(address), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w),
        "l"(Priority())
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

__device__ __forceinline__ uint32_t LoadEpoch(const uint32_t* address) {
  uint32_t epoch;
  asm volatile("ld.global.L2::cache_hint.u32 %0, [%1], %2;"
               : "=r"(epoch)
               : "l"(address), "l"(Priority()));
  return epoch;
}

__device__ __forceinline__ void StoreEpoch(uint32_t* address, uint32_t epoch) {
  asm volatile("st.global.L2::cache_hint.u32 [%0], %1, %2;"
               :
               : "l"(address), "r"(epoch), "l"(Priority())
               : "memory");
}

// Counts up to `last`, and from there to zero again. Returns what was there.
__device__ __forceinline__ uint32_t CountIn(uint32_t* counter, uint32_t last) {
  uint32_t before;
  asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(counter), "r"(last)
               : "memory");
  return before;
}

// Keeps the compiler from using a value before it gets here.
__device__ __forceinline__ void NotEarlier(uint32_t& value) {
  asm volatile("" : "+r"(value));
}

__device__ __forceinline__ uint64_t Nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// ---------------------------------------------------------------------------
// Numbers: two elements of a narrow type, the first in the lower half.

__device__ __forceinline__ void DecodeF16(uint32_t word, float& low,
                                          float& high) {
  asm("{ .reg .f16 low, high; mov.b32 {low, high}, %2;"
      "  cvt.f32.f16 %0, low; cvt.f32.f16 %1, high; }"
      : "=f"(low), "=f"(high)
      : "r"(word));
}

__device__ __forceinline__ uint32_t EncodeF16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

__device__ __forceinline__ uint32_t EncodeBf16(float low, float high) {
  uint32_t word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

#if __CUDA_ARCH__ >= 890
__device__ __forceinline__ uint32_t EncodeFiniteF8E4M3FN(float low,
                                                         float high) {
  uint16_t bytes;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
      : "=h"(bytes)
      : "f"(high), "f"(low));
  return bytes;
}

__device__ __forceinline__ uint32_t EncodeFiniteF8E5M2(float low, float high) {
  uint16_t bytes;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;"
      : "=h"(bytes)
      : "f"(high), "f"(low));
  return bytes;
}
#endif

// fmaxf and fminf drop a NaN; HLO keeps it.
__device__ __forceinline__ float MaximumOrNan(float x, float y) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
  return result;
}
__device__ __forceinline__ float MinimumOrNan(float x, float y) {
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(x), "f"(y));
  return result;
}

// ---------------------------------------------------------------------------
// Blocks and clusters

// Memory of the block.
template <typename T>
__device__ __forceinline__ T& SharedMemory() {
  __shared__ T memory;
  return memory;
}

// Relaxed: a release would wait until all that the thread has stored so far,
// pushes included, is acknowledged.
__device__ __forceinline__ void ClusterArrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" : : : "memory");
}
__device__ __forceinline__ void ClusterWait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" : : : "memory");
}

__device__ __forceinline__ uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The same place in the shared memory of another block of the cluster.
__device__ __forceinline__ uint32_t InBlock(uint32_t address, int block) {
  uint32_t remote;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(remote)
      : "r"(address), "r"(block));
  return remote;
}

// For one arrival in each phase.
__device__ __forceinline__ void MbarrierInit(uint64_t* barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;"
               :
               : "r"(SharedAddress(barrier))
               : "memory");
}

// Makes initial barriers known to the cluster, with a barrier of the cluster
// behind it.
__device__ __forceinline__ void FenceMbarrierInit() {
  asm volatile("fence.mbarrier_init.release.cluster;" : : : "memory");
}

// Stores a value at the same place of another block of the cluster, where
// `barrier` counts its bytes.
__device__ __forceinline__ void StAsync(float* target, float value,
                                        uint64_t* barrier, int block) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, "
      "[%2];"
      :
      : "r"(InBlock(SharedAddress(target), block)), "r"(__float_as_uint(value)),
        "r"(InBlock(SharedAddress(barrier), block))
      : "memory");
}

// The arrival of the phase, which is complete when so many bytes have come.
__device__ __forceinline__ void MbarrierArriveExpectTx(uint64_t* barrier,
                                                       uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
               :
               : "r"(SharedAddress(barrier)), "r"(bytes)
               : "memory");
}

// Whether the phase of this parity is; waits for it, but not for long.
__device__ __forceinline__ bool MbarrierTryWait(uint64_t* barrier,
                                                uint32_t parity) {
  uint32_t done;
  asm volatile(
      "{ .reg .pred p;"
      "  mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;"
      "  selp.u32 %0, 1, 0, p; }"
      : "=r"(done)
      : "r"(SharedAddress(barrier)), "r"(parity)
      : "memory");
  return done != 0;
}

}  // namespace oneshot
