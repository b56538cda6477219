// SPDX-License-Identifier: Apache-2.0
//
// What text, validation and names of a program share: the operations and their
// names, and the names of types and extents. Private to this room.
#ifndef ONESHOT_CUDA_PROGRAM_PROGRAM_TABLES_H_
#define ONESHOT_CUDA_PROGRAM_PROGRAM_TABLES_H_

#include <cstdint>
#include <string>

#include "cuda/program/epilogue_program.h"

namespace oneshot {

enum class Takes : uint8_t {
  kNumbers,
  kPredicates,
  kEither,
  kPredicateAndNumbers,  // the first one is the predicate
};

struct OpTraits {
  Op op;
  const char* name;
  int arity;
  Takes takes = Takes::kNumbers;
  bool gives_predicate = false;
};

inline constexpr OpTraits kOps[] = {
    {Op::kSum, "sum", 0},
    {Op::kOperand, "", 0},
    {Op::kConstant, "constant", 0},
    {Op::kConvert, "convert", 1, Takes::kEither},
    {Op::kAbs, "abs", 1},
    {Op::kCbrt, "cbrt", 1},
    {Op::kCeil, "ceil", 1},
    {Op::kCos, "cos", 1},
    {Op::kErf, "erf", 1},
    {Op::kExp, "exp", 1},
    {Op::kExpm1, "expm1", 1},
    {Op::kFloor, "floor", 1},
    {Op::kIsFinite, "is_finite", 1, Takes::kNumbers, true},
    {Op::kLog, "log", 1},
    {Op::kLog1p, "log1p", 1},
    {Op::kLogistic, "logistic", 1},
    {Op::kNegate, "negate", 1},
    {Op::kNot, "not", 1, Takes::kPredicates, true},
    {Op::kRoundNearestAfz, "round_nearest_afz", 1},
    {Op::kRoundNearestEven, "round_nearest_even", 1},
    {Op::kRsqrt, "rsqrt", 1},
    {Op::kSign, "sign", 1},
    {Op::kSin, "sin", 1},
    {Op::kSqrt, "sqrt", 1},
    {Op::kTan, "tan", 1},
    {Op::kTanh, "tanh", 1},
    {Op::kAdd, "add", 2},
    {Op::kAnd, "and", 2, Takes::kPredicates, true},
    {Op::kAtan2, "atan2", 2},
    {Op::kDivide, "divide", 2},
    {Op::kEq, "eq", 2, Takes::kNumbers, true},
    {Op::kGe, "ge", 2, Takes::kNumbers, true},
    {Op::kGt, "gt", 2, Takes::kNumbers, true},
    {Op::kLe, "le", 2, Takes::kNumbers, true},
    {Op::kLt, "lt", 2, Takes::kNumbers, true},
    {Op::kMaximum, "maximum", 2},
    {Op::kMinimum, "minimum", 2},
    {Op::kMultiply, "multiply", 2},
    {Op::kNe, "ne", 2, Takes::kNumbers, true},
    {Op::kOr, "or", 2, Takes::kPredicates, true},
    {Op::kPower, "power", 2},
    {Op::kRemainder, "remainder", 2},
    {Op::kSubtract, "subtract", 2},
    {Op::kXor, "xor", 2, Takes::kPredicates, true},
    {Op::kClamp, "clamp", 3},
    {Op::kSelect, "select", 3, Takes::kPredicateAndNumbers},
    {Op::kReduceMax, "reduce_max", 1},
    {Op::kReduceMin, "reduce_min", 1},
    {Op::kReduceSum, "reduce_sum", 1},
};

inline const OpTraits& Traits(Op op) { return kOps[static_cast<int>(op)]; }

inline constexpr const char* kDTypeNames[] = {"f32",      "bf16",   "f16",
                                              "f8e4m3fn", "f8e5m2", "s8"};
inline constexpr const char* kExtentNames[] = {"scalar", "row", "column",
                                               "element"};

inline std::string Name(DType dtype) {
  return kDTypeNames[static_cast<int>(dtype)];
}
inline std::string Name(Extent extent) {
  return kExtentNames[static_cast<int>(extent)];
}

inline std::string Numbered(const char* prefix, int64_t number) {
  return prefix + std::to_string(number);
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_PROGRAM_PROGRAM_TABLES_H_
