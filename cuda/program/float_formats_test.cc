// SPDX-License-Identifier: Apache-2.0
#include "cuda/program/float_formats.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>

namespace oneshot {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The value with `fraction_bits` bits after the leading one that is nearest to
// `value`, ties to even, with float64 doing the arithmetic.
double Nearest(double value, int fraction_bits, int min_exponent) {
  if (value == 0 || !std::isfinite(value)) return value;
  const int exponent = std::max(std::ilogb(value), min_exponent);
  const double unit = std::ldexp(1.0, exponent - fraction_bits);
  return std::nearbyint(value / unit) * unit;
}

TEST(FloatFormatsTest, EveryBf16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = DecodeBf16(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_EQ(EncodeBf16(value), 0x7FFF);
    } else {
      EXPECT_EQ(EncodeBf16(value), bits);
    }
  }
}

TEST(FloatFormatsTest, EveryF16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = DecodeF16(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_EQ(EncodeF16(value), 0x7FFF);
    } else {
      EXPECT_EQ(EncodeF16(value), bits);
    }
  }
}

TEST(FloatFormatsTest, DecodedValues) {
  EXPECT_EQ(DecodeBf16(0x3F80), 1.0f);
  EXPECT_EQ(DecodeF16(0x3C00), 1.0f);
  EXPECT_EQ(DecodeF16(0xC000), -2.0f);
  EXPECT_EQ(DecodeF16(0x7BFF), 65504.0f);
  EXPECT_EQ(DecodeF16(0x0001), 0x1p-24f);
  EXPECT_EQ(DecodeF16(0x7C00), kInfinity);
  EXPECT_TRUE(std::isnan(DecodeF16(0x7FFF)));
  EXPECT_TRUE(std::isnan(DecodeBf16(0x7FFF)));
  EXPECT_TRUE(std::signbit(DecodeF16(0x8000)));
}

TEST(FloatFormatsTest, RoundsToNearestEven) {
  std::mt19937 random(1);
  for (int i = 0; i < 2000000; ++i) {
    const float value = FromBits(random());
    if (std::isnan(value)) continue;
    const double bf16 = Nearest(value, 7, -126);
    // 2^128 - 2^119 is where bfloat16 overflows; Nearest yields 2^128 there.
    const float want =
        std::abs(bf16) >= 0x1p128 ? std::copysign(kInfinity, value) : bf16;
    ASSERT_EQ(DecodeBf16(EncodeBf16(value)), want) << value;
  }
  for (int i = 0; i < 2000000; ++i) {
    // Exponents around the range of float16.
    const uint32_t exponent = 127 - 28 + random() % 48;
    const float value = FromBits((random() & 0x807FFFFFu) | (exponent << 23));
    const double f16 = Nearest(value, 10, -14);
    const float want =
        std::abs(f16) >= 65536 ? std::copysign(kInfinity, value) : f16;
    ASSERT_EQ(DecodeF16(EncodeF16(value)), want) << value;
    ASSERT_EQ(std::signbit(DecodeF16(EncodeF16(value))), std::signbit(value));
  }
}

TEST(FloatFormatsTest, TiesGoToEven) {
  EXPECT_EQ(RoundTo(DType::kBf16, 1.0f + 0x1p-8f), 1.0f);
  EXPECT_EQ(RoundTo(DType::kBf16, 1.0f + 3 * 0x1p-8f), 1.0f + 0x1p-6f);
  EXPECT_EQ(RoundTo(DType::kF16, 1.0f + 0x1p-11f), 1.0f);
  EXPECT_EQ(RoundTo(DType::kF16, 65519.0f), 65504.0f);
  EXPECT_EQ(RoundTo(DType::kF16, 65520.0f), kInfinity);
  EXPECT_EQ(RoundTo(DType::kF16, 0x1p-25f), 0.0f);
  EXPECT_EQ(RoundTo(DType::kF16, 0x1.8p-25f), 0x1p-24f);
  EXPECT_EQ(RoundTo(DType::kF32, 0.1f), 0.1f);
}

// Every value that lies half way between two neighbours of a type of one byte,
// and the next float32 on either side.
template <typename Encode, typename Decode>
void ExpectNearest(Encode encode, Decode decode, int largest) {
  for (int code = 0; code < largest; ++code) {
    const float low = decode(static_cast<uint8_t>(code));
    const float high = decode(static_cast<uint8_t>(code + 1));
    ASSERT_LT(low, high);
    const uint32_t middle = Bits((low + high) / 2);
    const int even = code % 2 == 0 ? code : code + 1;
    for (const uint32_t sign : {0u, 0x80u}) {
      const auto encoded = [&](uint32_t bits) {
        return encode(FromBits(bits | sign << 24));
      };
      EXPECT_EQ(encoded(Bits(low)), code | sign);
      EXPECT_EQ(encoded(middle - 1), code | sign);
      EXPECT_EQ(encoded(middle), even | sign);
      EXPECT_EQ(encoded(middle + 1), (code + 1) | sign);
      EXPECT_EQ(encoded(Bits(high)), (code + 1) | sign);
    }
  }
}

TEST(FloatFormatsTest, F8E4M3FN) {
  const auto encode = [](float value) { return EncodeF8E4M3FN(Bits(value)); };
  EXPECT_EQ(DecodeF8E4M3FN(0x38), 1.0f);
  EXPECT_EQ(DecodeF8E4M3FN(0x7E), 448.0f);
  EXPECT_EQ(DecodeF8E4M3FN(0x01), 0x1p-9f);
  EXPECT_EQ(DecodeF8E4M3FN(0xC0), -2.0f);
  EXPECT_TRUE(std::isnan(DecodeF8E4M3FN(0xFF)));
  ExpectNearest(encode, DecodeF8E4M3FN, 0x7E);
  EXPECT_EQ(encode(464.0f), 0x7Eu);
  EXPECT_EQ(encode(-464.0f), 0xFEu);
  for (const float value : {464.1f, -1e9f, kInfinity, std::nanf("")}) {
    EXPECT_TRUE(
        std::isnan(DecodeF8E4M3FN(static_cast<uint8_t>(encode(value)))));
  }
  EXPECT_EQ(encode(1e-40f), 0u);
  EXPECT_EQ(encode(-0.0f), 0x80u);
}

TEST(FloatFormatsTest, F8E5M2) {
  const auto encode = [](float value) { return EncodeF8E5M2(Bits(value)); };
  EXPECT_EQ(DecodeF8E5M2(0x3C), 1.0f);
  EXPECT_EQ(DecodeF8E5M2(0x7B), 57344.0f);
  EXPECT_EQ(DecodeF8E5M2(0x01), 0x1p-16f);
  EXPECT_EQ(DecodeF8E5M2(0xFC), -kInfinity);
  ExpectNearest(encode, DecodeF8E5M2, 0x7B);
  EXPECT_EQ(encode(61439.0f), 0x7Bu);
  EXPECT_EQ(encode(-61440.0f), 0xFCu);
  EXPECT_EQ(encode(kInfinity), 0x7Cu);
  EXPECT_TRUE(
      std::isnan(DecodeF8E5M2(static_cast<uint8_t>(encode(std::nanf(""))))));
  EXPECT_EQ(encode(-1e-40f), 0x80u);
}

TEST(FloatFormatsTest, S8) {
  const auto encode = [](float value) {
    return static_cast<int8_t>(EncodeS8(value));
  };
  for (int whole = -128; whole <= 127; ++whole) {
    EXPECT_EQ(encode(static_cast<float>(whole)), whole);
  }
  EXPECT_EQ(encode(1.99f), 1);
  EXPECT_EQ(encode(-1.99f), -1);
  EXPECT_EQ(encode(-0.99f), 0);
  EXPECT_EQ(encode(1e9f), 127);
  EXPECT_EQ(encode(-kInfinity), -128);
  EXPECT_EQ(encode(std::nanf("")), 0);
}

}  // namespace
}  // namespace oneshot
