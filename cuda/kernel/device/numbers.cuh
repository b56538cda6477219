// SPDX-License-Identifier: Apache-2.0
//
// Numbers, and the operations of epilogue programs on them. A thread computes
// with two elements at a time, because conversions to the narrow types come in
// twos.

namespace oneshot {

struct Pair {
  float a, b;
  Pair() = default;
  __device__ __forceinline__ Pair(float both) : a(both), b(both) {}
  __device__ __forceinline__ Pair(float a, float b) : a(a), b(b) {}
};

struct TruthPair {
  bool a, b;
  TruthPair() = default;
  __device__ __forceinline__ TruthPair(bool both) : a(both), b(both) {}
  __device__ __forceinline__ TruthPair(bool a, bool b) : a(a), b(b) {}
};

template <DType kType>
constexpr int kBytes = kType == kF32                     ? 4
                       : kType == kBf16 || kType == kF16 ? 2
                                                         : 1;

// Two elements as they lie in memory; float32 takes two words.
template <DType kType>
__device__ __forceinline__ Pair Decode(uint32_t word, uint32_t second = 0) {
  if (kType == kF32)
    return Pair(__uint_as_float(word), __uint_as_float(second));
  if (kType == kBf16) {
    return Pair(__uint_as_float(word << 16),
                __uint_as_float(word & 0xFFFF0000u));
  }
  Pair pair;
  DecodeF16(word, pair.a, pair.b);
  return pair;
}

// Two elements of one byte, as quantized_formats.h defines them: with the
// instructions of the device where it has them.
template <DType kType>
__device__ __forceinline__ uint32_t EncodeBytes(Pair pair) {
  if (kType == kS8) {
    const auto byte = [](float value) {  // NaN becomes 0 on the way
      return max(-128, min(127, __float2int_rz(value))) & 0xFF;
    };
    return byte(pair.a) | byte(pair.b) << 8;
  }
#if __CUDA_ARCH__ >= 890
  // These end at the largest number, even for infinities.
  if (kType == kF8E4M3FN) {
    const auto limited = [](float value) {
      return fabsf(value) > 464.0f ? __uint_as_float(0x7FFFFFFFu) : value;
    };
    return EncodeFiniteF8E4M3FN(limited(pair.a), limited(pair.b));
  }
  const uint32_t bytes = EncodeFiniteF8E5M2(pair.a, pair.b);
  // An infinity has the bits of the largest number, and one more.
  return bytes + (fabsf(pair.a) >= 61440.0f ? 1u : 0u) +
         (fabsf(pair.b) >= 61440.0f ? 0x100u : 0u);
#else
  const auto byte = [](float value) {
    return kType == kF8E5M2 ? EncodeF8E5M2(__float_as_uint(value))
                            : EncodeF8E4M3FN(__float_as_uint(value));
  };
  return byte(pair.a) | byte(pair.b) << 8;
#endif
}

// To one of the narrow types, to nearest even, but for integers.
template <DType kType>
__device__ __forceinline__ uint32_t Encode(Pair pair) {
  uint32_t word;
  if (kBytes<kType> == 1) {
    word = EncodeBytes<kType>(pair);
  } else if (kType == kBf16) {
    word = EncodeBf16(pair.a, pair.b);
  } else {
    word = EncodeF16(pair.a, pair.b);
  }
  return word;
}

// The nearest values of the type, as float32.
template <DType kType>
__device__ __forceinline__ Pair Round(Pair pair) {
  return kType == kF32 ? pair : Decode<kType>(Encode<kType>(pair));
}
template <DType kType>
__device__ __forceinline__ float Round(float value) {
  return Round<kType>(Pair(value)).a;
}

#define ONESHOT_UNARY(Name, expression)                                 \
  __device__ __forceinline__ float Name(float x) { return expression; } \
  __device__ __forceinline__ Pair Name(Pair x) {                        \
    return Pair(Name(x.a), Name(x.b));                                  \
  }
ONESHOT_UNARY(Abs, fabsf(x))
ONESHOT_UNARY(Cbrt, cbrtf(x))
ONESHOT_UNARY(Ceil, ceilf(x))
ONESHOT_UNARY(Cos, cosf(x))
ONESHOT_UNARY(Erf, erff(x))
ONESHOT_UNARY(Exp, expf(x))
ONESHOT_UNARY(Expm1, expm1f(x))
ONESHOT_UNARY(Floor, floorf(x))
ONESHOT_UNARY(Log, logf(x))
ONESHOT_UNARY(Log1p, log1pf(x))
ONESHOT_UNARY(Logistic, 1.0f / (1.0f + expf(-x)))
ONESHOT_UNARY(Negate, -x)
ONESHOT_UNARY(RoundNearestAfz, roundf(x))
ONESHOT_UNARY(RoundNearestEven, rintf(x))
ONESHOT_UNARY(Rsqrt, rsqrtf(x))
ONESHOT_UNARY(Sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x)
ONESHOT_UNARY(Sin, sinf(x))
ONESHOT_UNARY(Sqrt, sqrtf(x))
ONESHOT_UNARY(Tan, tanf(x))
ONESHOT_UNARY(Tanh, tanhf(x))
#undef ONESHOT_UNARY

#define ONESHOT_BINARY(Name, expression)                    \
  __device__ __forceinline__ float Name(float x, float y) { \
    return expression;                                      \
  }                                                         \
  __device__ __forceinline__ Pair Name(Pair x, Pair y) {    \
    return Pair(Name(x.a, y.a), Name(x.b, y.b));            \
  }
ONESHOT_BINARY(Add, x + y)
ONESHOT_BINARY(Atan2, atan2f(x, y))
ONESHOT_BINARY(Divide, x / y)
ONESHOT_BINARY(Maximum, MaximumOrNan(x, y))
ONESHOT_BINARY(Minimum, MinimumOrNan(x, y))
ONESHOT_BINARY(Multiply, x* y)
ONESHOT_BINARY(Power, powf(x, y))
ONESHOT_BINARY(Remainder, fmodf(x, y))
ONESHOT_BINARY(Subtract, x - y)
#undef ONESHOT_BINARY

#define ONESHOT_COMPARE(Name, expression)                     \
  __device__ __forceinline__ bool Name(float x, float y) {    \
    return expression;                                        \
  }                                                           \
  __device__ __forceinline__ TruthPair Name(Pair x, Pair y) { \
    return TruthPair(Name(x.a, y.a), Name(x.b, y.b));         \
  }
ONESHOT_COMPARE(Eq, x == y)
ONESHOT_COMPARE(Ge, x >= y)
ONESHOT_COMPARE(Gt, x > y)
ONESHOT_COMPARE(Le, x <= y)
ONESHOT_COMPARE(Lt, x < y)
ONESHOT_COMPARE(Ne, x != y)
#undef ONESHOT_COMPARE

#define ONESHOT_LOGIC(Name, expression)                                       \
  __device__ __forceinline__ bool Name(bool x, bool y) { return expression; } \
  __device__ __forceinline__ TruthPair Name(TruthPair x, TruthPair y) {       \
    return TruthPair(Name(x.a, y.a), Name(x.b, y.b));                         \
  }
ONESHOT_LOGIC(And, x&& y)
ONESHOT_LOGIC(Or, x || y)
ONESHOT_LOGIC(Xor, x != y)
#undef ONESHOT_LOGIC

__device__ __forceinline__ bool Not(bool x) { return !x; }
__device__ __forceinline__ TruthPair Not(TruthPair x) {
  return TruthPair(!x.a, !x.b);
}
__device__ __forceinline__ bool IsFinite(float x) {
  return fabsf(x) < __uint_as_float(0x7F800000u);
}
__device__ __forceinline__ TruthPair IsFinite(Pair x) {
  return TruthPair(IsFinite(x.a), IsFinite(x.b));
}
__device__ __forceinline__ float Convert(float x) { return x; }
__device__ __forceinline__ Pair Convert(Pair x) { return x; }
__device__ __forceinline__ float Convert(bool x) { return x ? 1.0f : 0.0f; }
__device__ __forceinline__ Pair Convert(TruthPair x) {
  return Pair(Convert(x.a), Convert(x.b));
}
__device__ __forceinline__ float Select(bool p, float x, float y) {
  return p ? x : y;
}
__device__ __forceinline__ Pair Select(TruthPair p, Pair x, Pair y) {
  return Pair(p.a ? x.a : y.a, p.b ? x.b : y.b);
}
template <typename T>
__device__ __forceinline__ T Clamp(T low, T x, T high) {
  return Minimum(Maximum(low, x), high);
}

}  // namespace oneshot
