// SPDX-License-Identifier: Apache-2.0
#include "cuda/host_epilogue.h"

#include <cmath>

namespace oneshot {
namespace {

// One row of one rank: `h` is the rounded sum over ranks on entry.
void FinishRow(const Epilogue& epilogue, int64_t row, int64_t hidden,
               const Buffers& rank, std::vector<float>& h) {
  const int64_t base = row * hidden;
  for (int a = 0; a < epilogue.num_addends; ++a) {
    const Addend& addend = epilogue.addends[a];
    for (int64_t i = 0; i < hidden; ++i) {
      const float value = LoadElement(rank.addends[a], addend.dtype,
                                      addend.per_row ? base + i : i);
      h[i] = RoundTo(addend.round, h[i] + value);
    }
  }
  if (epilogue.emit_sum) {
    for (int64_t i = 0; i < hidden; ++i) {
      StoreElement(rank.sum, epilogue.sum_dtype, base + i, h[i]);
    }
  }
  if (!epilogue.emit_norm) return;
  // In float64: the order of this sum is not part of the semantics.
  double squares = 0;
  for (float value : h) squares += static_cast<double>(value) * value;
  const float mean = static_cast<float>(squares) * epilogue.mean_scale;
  const float scale = 1.0f / std::sqrt(mean + epilogue.epsilon);
  for (int64_t i = 0; i < hidden; ++i) {
    float n = RoundTo(epilogue.norm_round, h[i] * scale);
    if (epilogue.has_gain) n *= LoadElement(rank.gain, epilogue.gain_dtype, i);
    StoreElement(rank.norm, epilogue.norm_dtype, base + i, n);
  }
}

}  // namespace

float LoadElement(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[index];
    case DType::kBf16:
      return DecodeBf16(static_cast<const uint16_t*>(data)[index]);
    case DType::kF16:
      return DecodeF16(static_cast<const uint16_t*>(data)[index]);
  }
  return 0;
}

void StoreElement(void* data, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::kF32:
      static_cast<float*>(data)[index] = value;
      return;
    case DType::kBf16:
      static_cast<uint16_t*>(data)[index] = EncodeBf16(value);
      return;
    case DType::kF16:
      static_cast<uint16_t*>(data)[index] = EncodeF16(value);
      return;
  }
}

void AllReduceOnHost(const Epilogue& epilogue, int64_t rows, int64_t hidden,
                     const std::vector<Buffers>& ranks) {
  std::vector<float> sum(hidden);
  std::vector<float> h(hidden);
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < hidden; ++i) {
      const int64_t index = row * hidden + i;
      // Starts from the first rank, not from zero: -0 + -0 stays -0.
      float s = LoadElement(ranks[0].x, epilogue.x_dtype, index);
      for (size_t r = 1; r < ranks.size(); ++r) {
        s += LoadElement(ranks[r].x, epilogue.x_dtype, index);
      }
      sum[i] = RoundTo(epilogue.sum_round, s);
    }
    for (const Buffers& rank : ranks) {
      h = sum;
      FinishRow(epilogue, row, hidden, rank, h);
    }
  }
}

}  // namespace oneshot
