// SPDX-License-Identifier: Apache-2.0
//
// What one call computes, as plain data that host and device read alike.
//
// All arithmetic is float32. For every row:
//   s = x_0 + x_1 + ...                    over the ranks, in group order
//   h = round[sum_round](s)
//   h = round[addend.round](h + addend)    for every addend, in order
//   sum output  = cast(h)
//   n = round[norm_round](h * rsqrt(sum(h*h) * mean_scale + epsilon))
//   norm output = cast(n * gain)           cast(n) without a gain
// The norm uses h before the cast to the type of the sum output.
#ifndef ONESHOT_CUDA_EPILOGUE_H_
#define ONESHOT_CUDA_EPILOGUE_H_

#include "cuda/float_formats.h"

namespace oneshot {

inline constexpr int kMaxAddends = 2;

struct Addend {
  DType dtype = DType::kF32;
  DType round = DType::kF32;
  bool per_row = true;  // residual: rows x hidden; a bias is the same each row

  bool operator==(const Addend& other) const {
    return dtype == other.dtype && round == other.round &&
           per_row == other.per_row;
  }
};

struct Epilogue {
  DType x_dtype = DType::kF32;
  DType sum_round = DType::kF32;
  DType sum_dtype = DType::kF32;
  DType norm_dtype = DType::kF32;
  DType norm_round = DType::kF32;
  DType gain_dtype = DType::kF32;
  bool emit_sum = false;
  bool emit_norm = false;
  bool has_gain = false;
  int num_addends = 0;
  Addend addends[kMaxAddends];
  float epsilon = 0;
  float mean_scale = 0;

  bool operator==(const Epilogue& other) const {
    return x_dtype == other.x_dtype && sum_round == other.sum_round &&
           sum_dtype == other.sum_dtype && norm_dtype == other.norm_dtype &&
           norm_round == other.norm_round && gain_dtype == other.gain_dtype &&
           emit_sum == other.emit_sum && emit_norm == other.emit_norm &&
           has_gain == other.has_gain && num_addends == other.num_addends &&
           addends[0] == other.addends[0] && addends[1] == other.addends[1] &&
           epsilon == other.epsilon && mean_scale == other.mean_scale;
  }
};

// The operands and results of one rank; absent ones are null.
struct Buffers {
  const void* x = nullptr;
  const void* addends[kMaxAddends] = {};  // in the order of Epilogue::addends
  const void* gain = nullptr;
  void* sum = nullptr;
  void* norm = nullptr;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_EPILOGUE_H_
