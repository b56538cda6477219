// SPDX-License-Identifier: Apache-2.0
//
// What kernel_machine.cuh has, and what CUDA has by itself, for the kernel's
// source as C++ of a CPU: see kernel_emulator.h. Each such source gets a
// namespace of its own around it, and finds these outside.
#ifndef ONESHOT_CUDA_EMULATOR_MACHINE_H_
#define ONESHOT_CUDA_EMULATOR_MACHINE_H_

#include <math.h>

#include <cstdint>
#include <cstring>

#include "cuda/emulator/emulator.h"
#include "cuda/program/float_formats.h"

#define __device__
#define __global__
#define __grid_constant__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define threadIdx ::oneshot::emulation::Thread()
#define blockIdx ::oneshot::emulation::Block()

struct uint2 {
  unsigned x, y;
};
struct uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
  return {x, y, z, w};
}

inline float __uint_as_float(unsigned bits) { return oneshot::FromBits(bits); }
inline unsigned __float_as_uint(float value) { return oneshot::Bits(value); }
inline int __float2int_rz(float value) {
  if (value != value) return 0;
  if (value >= 2147483648.0f) return 2147483647;
  return value <= -2147483648.0f ? -2147483647 - 1 : static_cast<int>(value);
}
inline float rsqrtf(float value) { return 1.0f / sqrtf(value); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline int __ffs(unsigned bits) { return __builtin_ffs(bits); }

inline void __syncthreads() { oneshot::emulation::SyncThreads(); }
inline bool __any_sync(unsigned lanes, bool mine) {
  bool any = false;
  const unsigned* all = oneshot::emulation::Exchange(lanes, mine);
  for (int lane = 0; lane < 32; ++lane) {
    any |= lanes >> lane & 1 && all[lane] != 0;
  }
  return any;
}
inline unsigned __reduce_or_sync(unsigned lanes, unsigned mine) {
  unsigned result = 0;
  const unsigned* all = oneshot::emulation::Exchange(lanes, mine);
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes >> lane & 1) result |= all[lane];
  }
  return result;
}
inline float __shfl_xor_sync(unsigned lanes, float mine, int mask) {
  const int other = oneshot::emulation::Thread().x % 32 ^ mask;
  return __uint_as_float(
      oneshot::emulation::Exchange(lanes, __float_as_uint(mine))[other]);
}
inline void __nanosleep(unsigned) { oneshot::emulation::Yield(); }
inline void __threadfence_system() {}
inline unsigned atomicExch(unsigned* address, unsigned value) {
  const unsigned before = *address;
  *address = value;
  return before;
}
inline unsigned long long atomicCAS(unsigned long long* address,
                                    unsigned long long expected,
                                    unsigned long long value) {
  const unsigned long long before = *address;
  if (before == expected) *address = value;
  return before;
}
inline void __trap() { oneshot::emulation::Trap(); }

inline uint4 LoadSystem(const uint4* address) {
  oneshot::emulation::Yield();
  return *address;
}
inline void StoreSystem(uint4* address, uint4 value) {
  oneshot::emulation::StoreRemotely(&address->x, &value.x, 4);
}

template <typename T>
T LoadNow(const void* address) {
  T value;
  std::memcpy(&value, address, sizeof(value));
  return value;
}
inline uint32_t LoadNow32(const void* address) {
  return LoadNow<uint32_t>(address);
}
inline uint32_t LoadNow16(const void* address) {
  return LoadNow<uint16_t>(address);
}
inline uint2 LoadNow64(const void* address) { return LoadNow<uint2>(address); }
inline uint4 LoadNow128(const void* address) { return LoadNow<uint4>(address); }

inline uint32_t LoadEpoch(const uint32_t* address) {
  oneshot::emulation::Yield();
  return *address;
}
inline void StoreEpoch(uint32_t* address, uint32_t epoch) { *address = epoch; }
inline uint32_t CountIn(uint32_t* counter, uint32_t last) {
  oneshot::emulation::Yield();
  const uint32_t before = *counter;
  *counter = before >= last ? 0 : before + 1;
  return before;
}
inline void NotEarlier(uint32_t&) { oneshot::emulation::Yield(); }
// Never: a hang is for the emulator to find.
inline uint64_t Nanoseconds() { return 1; }

inline void DecodeF16(uint32_t word, float& low, float& high) {
  low = oneshot::DecodeF16(word & 0xFFFF);
  high = oneshot::DecodeF16(word >> 16);
}
inline uint32_t EncodeF16(float low, float high) {
  return oneshot::EncodeF16(low) | uint32_t{oneshot::EncodeF16(high)} << 16;
}
inline uint32_t EncodeBf16(float low, float high) {
  return oneshot::EncodeBf16(low) | uint32_t{oneshot::EncodeBf16(high)} << 16;
}
inline float MaximumOrNan(float x, float y) {
  if (x != x || y != y) return __uint_as_float(0x7FFFFFFFu);
  if (x == y) return signbit(x) ? y : x;
  return x > y ? x : y;
}
inline float MinimumOrNan(float x, float y) {
  if (x != x || y != y) return __uint_as_float(0x7FFFFFFFu);
  if (x == y) return signbit(x) ? x : y;
  return x < y ? x : y;
}

template <typename T>
T& SharedMemory() {
  return *static_cast<T*>(oneshot::emulation::Shared(sizeof(T)));
}
inline void ClusterArrive() { oneshot::emulation::ClusterArrive(); }
inline void ClusterWait() { oneshot::emulation::ClusterWait(); }
inline void MbarrierInit(uint64_t* barrier) {
  oneshot::emulation::MbarrierInit(barrier);
}
inline void FenceMbarrierInit() {}
inline void StAsync(float* target, float value, uint64_t* barrier, int block) {
  oneshot::emulation::StAsync(target, value, barrier, block);
}
inline void MbarrierArriveExpectTx(uint64_t* barrier, uint32_t bytes) {
  oneshot::emulation::MbarrierArriveExpectTx(barrier, bytes);
}
inline bool MbarrierTryWait(uint64_t* barrier, uint32_t parity) {
  return oneshot::emulation::MbarrierTryWait(barrier, parity);
}

#endif  // ONESHOT_CUDA_EMULATOR_MACHINE_H_
