// SPDX-License-Identifier: Apache-2.0
//
// The element types of the product and their conversions from and to float32,
// rounding to nearest even, by integer arithmetic. A NaN becomes the one that
// the conversion instructions of GPUs make.
#ifndef ONESHOT_CUDA_PROGRAM_FLOAT_FORMATS_H_
#define ONESHOT_CUDA_PROGRAM_FLOAT_FORMATS_H_

#include <cstdint>
#include <cstring>

#include "cuda/program/quantized_formats.h"

namespace oneshot {

enum class DType : uint8_t {
  kF32,
  kBf16,
  kF16,
  // Of results only.
  kF8E4M3FN,
  kF8E5M2,
  kS8,
};

ONESHOT_HOST_DEVICE constexpr bool IsQuantized(DType dtype) {
  return dtype >= DType::kF8E4M3FN;
}

ONESHOT_HOST_DEVICE constexpr int ByteWidth(DType dtype) {
  return dtype == DType::kF32 ? 4 : IsQuantized(dtype) ? 1 : 2;
}

ONESHOT_HOST_DEVICE uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

ONESHOT_HOST_DEVICE float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

ONESHOT_HOST_DEVICE uint16_t EncodeBf16(float value) {
  const uint32_t bits = Bits(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
}

ONESHOT_HOST_DEVICE float DecodeBf16(uint16_t bits) {
  return FromBits(static_cast<uint32_t>(bits) << 16);
}

ONESHOT_HOST_DEVICE uint16_t EncodeF16(float value) {
  const uint32_t bits = Bits(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7FFF;
  // 65520 lies half way between the largest float16 and the next power of two.
  if (magnitude >= 0x477FF000u) return sign | 0x7C00u;
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is a multiple of 2^-24. Adding 0.5, whose unit in
    // the last place is 2^-24, makes the addition do the rounding.
    return sign |
           static_cast<uint16_t>(Bits(FromBits(magnitude) + 0.5f) - Bits(0.5f));
  }
  const uint32_t rebiased = magnitude - (112u << 23);
  return sign | static_cast<uint16_t>(
                    (rebiased + 0xFFFu + ((rebiased >> 13) & 1u)) >> 13);
}

ONESHOT_HOST_DEVICE float DecodeF16(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t magnitude = bits & 0x7FFFu;
  if (magnitude >= 0x7C00u) {
    return FromBits(sign | 0x7F800000u | ((magnitude & 0x3FFu) << 13));
  }
  if (magnitude < 0x400u) {  // zero or subnormal: a multiple of 2^-24
    const float value = static_cast<float>(magnitude) * 0x1p-24f;
    return FromBits(sign | Bits(value));
  }
  return FromBits(sign | ((magnitude << 13) + (112u << 23)));
}

ONESHOT_HOST_DEVICE float DecodeF8E4M3FN(uint8_t bits) {
  const int exponent = bits >> 3 & 15;
  const int fraction = bits & 7;
  if ((bits & 0x7F) == 0x7F) return FromBits(0x7FFFFFFFu);
  const float magnitude =
      exponent == 0 ? static_cast<float>(fraction) * 0x1p-9f
                    : FromBits(static_cast<uint32_t>(exponent + 120) << 23 |
                               static_cast<uint32_t>(fraction) << 20);
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

ONESHOT_HOST_DEVICE float DecodeF8E5M2(uint8_t bits) {
  return DecodeF16(static_cast<uint16_t>(bits << 8));
}

// The nearest value of a type that is computed in, as a float32.
ONESHOT_HOST_DEVICE float RoundTo(DType dtype, float value) {
  return dtype == DType::kBf16  ? DecodeBf16(EncodeBf16(value))
         : dtype == DType::kF16 ? DecodeF16(EncodeF16(value))
                                : value;
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_PROGRAM_FLOAT_FORMATS_H_
