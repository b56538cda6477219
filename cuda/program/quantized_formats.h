// SPDX-License-Identifier: Apache-2.0
//
// Conversions from float32 to the types of one byte that results may have, as
// HLO defines them. The run-time compiler reads this file too, for devices that
// have no instructions for it, so it includes nothing.
#ifndef ONESHOT_CUDA_PROGRAM_QUANTIZED_FORMATS_H_
#define ONESHOT_CUDA_PROGRAM_QUANTIZED_FORMATS_H_

#ifdef __CUDACC__
#define ONESHOT_HOST_DEVICE __host__ __device__ inline
#else
#define ONESHOT_HOST_DEVICE inline
#endif

namespace oneshot {

// A finite float32, as its bits, to a float of one byte with `fraction` bits
// behind the leading one: rounded to nearest even, without regard to the
// largest number. Takes and returns magnitudes.
ONESHOT_HOST_DEVICE unsigned RoundToByte(unsigned magnitude, int fraction,
                                         int bias) {
  const int cut = 23 - fraction;
  const int exponent = static_cast<int>(magnitude >> 23);
  const int least = 128 - bias;  // of a normal number, as float32 has it
  unsigned bits = magnitude - (static_cast<unsigned>(least - 1) << 23);
  int shift = cut;
  if (exponent < least) {
    // Subnormal there. What is less than half of the smallest one is zero, and
    // so are the subnormal float32.
    shift += least - exponent;
    if (shift > 24) return 0;
    bits = (magnitude & 0x7FFFFFu) | 0x800000u;
  }
  const unsigned half = 1u << (shift - 1);
  return (bits + half - 1 + (bits >> shift & 1u)) >> shift;
}

// Four bits of exponent, three of fraction; no infinities. What is larger than
// all numbers becomes NaN.
ONESHOT_HOST_DEVICE unsigned EncodeF8E4M3FN(unsigned float_bits) {
  const unsigned magnitude = float_bits & 0x7FFFFFFFu;
  // 464 lies half way between 448, the largest number, and what would be next.
  if (magnitude > 0x43E80000u) return 0x7Fu;
  return (float_bits >> 24 & 0x80u) | RoundToByte(magnitude, 3, 7);
}

// Five bits of exponent, two of fraction, with infinities: the upper half of a
// float16.
ONESHOT_HOST_DEVICE unsigned EncodeF8E5M2(unsigned float_bits) {
  const unsigned magnitude = float_bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return 0x7Fu;
  const unsigned sign = float_bits >> 24 & 0x80u;
  // 61440 lies half way between the largest number and the next power of two.
  if (magnitude >= 0x47700000u) return sign | 0x7Cu;
  return sign | RoundToByte(magnitude, 2, 15);
}

// Towards zero; the nearest there is for what is too large, and 0 for NaN.
ONESHOT_HOST_DEVICE unsigned EncodeS8(float value) {
  const int whole = value >= 127.0f    ? 127
                    : value <= -128.0f ? -128
                    : value == value   ? static_cast<int>(value)
                                       : 0;
  return static_cast<unsigned>(whole) & 0xFFu;
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_PROGRAM_QUANTIZED_FORMATS_H_
