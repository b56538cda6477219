// SPDX-License-Identifier: Apache-2.0
//
// The elements that one thread handles at a time: as many as fill a packet of
// the wire type, loaded, converted, rounded and stored together. Types are
// run-time values; all threads take the same branch, once per packet.
#ifndef ONESHOT_CUDA_PACKET_CUH_
#define ONESHOT_CUDA_PACKET_CUH_

#include <cstdint>

#include "cuda/float_formats.h"
#include "cuda/limits.h"
#include "cuda/system_memory.cuh"

namespace oneshot {

// Elements as they lie in memory: float32 one to a word, the others two.
template <int kElements>
struct Raw {
  uint32_t words[kElements];
};

// Loads `count` elements from `index` on; the rest is zero. With kWide, count
// is 0 or kElements and the address a multiple of the size of the access.
template <int kElements, bool kWide>
__device__ __forceinline__ Raw<kElements> LoadRaw(const void* data, DType dtype,
                                                  int index, int count) {
  Raw<kElements> raw = {};
  if (count == 0) return raw;
  if (dtype == DType::kF32) {
    const float* source = static_cast<const float*>(data) + index;
    if constexpr (kWide) {
#pragma unroll
      for (int i = 0; i < kElements; i += 4) {
        const uint4 quad = LoadNow128(source + i);
        raw.words[i] = quad.x;
        raw.words[i + 1] = quad.y;
        raw.words[i + 2] = quad.z;
        raw.words[i + 3] = quad.w;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (i < count) raw.words[i] = LoadNow32(source + i);
      }
    }
  } else {
    const uint16_t* source = static_cast<const uint16_t*>(data) + index;
    if constexpr (kWide) {
      if constexpr (kElements == 8) {
        const uint4 quad = LoadNow128(source);
        raw.words[0] = quad.x;
        raw.words[1] = quad.y;
        raw.words[2] = quad.z;
        raw.words[3] = quad.w;
      } else {
        const uint2 pair = LoadNow64(source);
        raw.words[0] = pair.x;
        raw.words[1] = pair.y;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (i < count) raw.words[i / 2] |= LoadNow16(source + i) << i % 2 * 16;
      }
    }
  }
  return raw;
}

template <int kElements>
__device__ __forceinline__ void Decode(const Raw<kElements>& raw, DType dtype,
                                       float (&values)[kElements]) {
  if (dtype == DType::kF32) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      values[i] = __uint_as_float(raw.words[i]);
    }
  } else if (dtype == DType::kBf16) {
#pragma unroll
    for (int i = 0; i < kElements; i += 2) {
      values[i] = __uint_as_float(raw.words[i / 2] << 16);
      values[i + 1] = __uint_as_float(raw.words[i / 2] & 0xFFFF0000u);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kElements; i += 2) {
      values[i] = DecodeF16(static_cast<uint16_t>(raw.words[i / 2]));
      values[i + 1] = DecodeF16(static_cast<uint16_t>(raw.words[i / 2] >> 16));
    }
  }
}

template <int kElements>
__device__ __forceinline__ Raw<kElements> Encode(
    const float (&values)[kElements], DType dtype) {
  Raw<kElements> raw = {};
  if (dtype == DType::kF32) {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      raw.words[i] = __float_as_uint(values[i]);
    }
  } else if (dtype == DType::kBf16) {
#pragma unroll
    for (int i = 0; i < kElements; i += 2) {
      const __nv_bfloat162 pair =
          __floats2bfloat162_rn(values[i], values[i + 1]);
      raw.words[i / 2] = reinterpret_cast<const uint32_t&>(pair);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kElements; i += 2) {
      const __half2 pair = __floats2half2_rn(values[i], values[i + 1]);
      raw.words[i / 2] = reinterpret_cast<const uint32_t&>(pair);
    }
  }
  return raw;
}

template <int kElements>
__device__ __forceinline__ void Round(float (&values)[kElements], DType dtype) {
  if (dtype == DType::kF32) return;
  Decode(Encode(values, dtype), dtype, values);
}

// Stores the first `count` values; kWide as for LoadRaw.
template <int kElements, bool kWide>
__device__ __forceinline__ void Store(void* data, DType dtype, int index,
                                      int count,
                                      const float (&values)[kElements]) {
  const Raw<kElements> raw = Encode(values, dtype);
  if (dtype == DType::kF32) {
    float* target = static_cast<float*>(data) + index;
    if constexpr (kWide) {
#pragma unroll
      for (int i = 0; i < kElements; i += 4) {
        *reinterpret_cast<uint4*>(target + i) = make_uint4(
            raw.words[i], raw.words[i + 1], raw.words[i + 2], raw.words[i + 3]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (i < count) target[i] = values[i];
      }
    }
  } else {
    uint16_t* target = static_cast<uint16_t*>(data) + index;
    if constexpr (kWide) {
      if constexpr (kElements == 8) {
        *reinterpret_cast<uint4*>(target) =
            make_uint4(raw.words[0], raw.words[1], raw.words[2], raw.words[3]);
      } else {
        *reinterpret_cast<uint2*>(target) =
            make_uint2(raw.words[0], raw.words[1]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kElements; ++i) {
        if (i < count) {
          target[i] = static_cast<uint16_t>(raw.words[i / 2] >> i % 2 * 16);
        }
      }
    }
  }
}

// The wire form of a packet's worth of x and back. Four elements to a packet
// means float32, which the compiler then knows.
template <int kElements>
__device__ __forceinline__ uint4 ToPacket(const Raw<kElements>& raw) {
  return make_uint4(raw.words[0], raw.words[1], raw.words[2], raw.words[3]);
}

template <int kElements>
__device__ __forceinline__ void DecodePacket(uint4 packet, DType dtype,
                                             float (&values)[kElements]) {
  const Raw<kElements> raw = {{packet.x, packet.y, packet.z, packet.w}};
  if constexpr (kElements == 4) {
    Decode(raw, DType::kF32, values);
  } else {
    Decode(raw, dtype == DType::kBf16 ? DType::kBf16 : DType::kF16, values);
  }
}

__device__ __forceinline__ bool HasSentinel(uint4 packet) {
  return packet.x == kSentinel || packet.y == kSentinel ||
         packet.z == kSentinel || packet.w == kSentinel;
}

// Replaces words that would read as "not written yet". They are NaN and become
// another NaN; a float32 sum with either is the same canonical NaN.
template <int kElements>
__device__ __forceinline__ uint4 WithoutSentinel(uint4 packet) {
  constexpr uint32_t kReplacement =
      kElements == 4 ? kSentinelReplacement32 : kSentinelReplacement16;
  if (packet.x == kSentinel) packet.x = kReplacement;
  if (packet.y == kSentinel) packet.y = kReplacement;
  if (packet.z == kSentinel) packet.z = kReplacement;
  if (packet.w == kSentinel) packet.w = kReplacement;
  return packet;
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_PACKET_CUH_
