// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/rank_slices.h"

#include <algorithm>
#include <vector>

#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/literal.h"
#include "xla/shape_util.h"

namespace oneshot {
namespace {

using ::xla::HloInstruction;
using ::xla::HloOpcode;
using ::xla::Shape;
using ::xla::ShapeUtil;

// Deeper than any index; expressions are followed recursively.
constexpr int kMaxDepth = 100;

std::optional<int64_t> Evaluate(const HloInstruction* hlo, int64_t partition,
                                int depth) {
  if (depth > kMaxDepth || !hlo->shape().IsArray() ||
      !ShapeUtil::ElementIsIntegral(hlo->shape()) ||
      ShapeUtil::ElementsIn(hlo->shape()) != 1) {
    return std::nullopt;
  }
  const auto operand = [&](int i) {
    return Evaluate(hlo->operand(i), partition, depth + 1);
  };
  switch (hlo->opcode()) {
    case HloOpcode::kPartitionId:
      return partition;
    case HloOpcode::kConstant:
      return hlo->literal().GetIntegralAsS64(
          std::vector<int64_t>(hlo->shape().dimensions().size(), 0));
    case HloOpcode::kBitcast:
    case HloOpcode::kConvert:
    case HloOpcode::kReshape:
      return operand(0);
    case HloOpcode::kDynamicSlice: {
      // A table with a number for each partition.
      const HloInstruction* table = hlo->operand(0);
      if (table->opcode() != HloOpcode::kConstant ||
          table->shape().dimensions().size() != 1) {
        return std::nullopt;
      }
      const auto index = operand(1);
      if (!index || *index < 0 || *index >= table->shape().dimensions(0)) {
        return std::nullopt;
      }
      return table->literal().GetIntegralAsS64({*index});
    }
    case HloOpcode::kClamp: {
      const auto low = operand(0), value = operand(1), high = operand(2);
      if (!low || !value || !high) return std::nullopt;
      return std::min(std::max(*low, *value), *high);
    }
    case HloOpcode::kAdd:
    case HloOpcode::kDivide:
    case HloOpcode::kMultiply:
    case HloOpcode::kRemainder:
    case HloOpcode::kSubtract:
      break;
    default:
      return std::nullopt;
  }
  const auto a = operand(0), b = operand(1);
  // Far from where any integer type of an index would overflow.
  constexpr int64_t kMost = int64_t{1} << 30;
  if (!a || !b || *a < 0 || *b < 0 || *a > kMost || *b > kMost) {
    return std::nullopt;
  }
  std::optional<int64_t> value;
  switch (hlo->opcode()) {
    case HloOpcode::kAdd:
      value = *a + *b;
      break;
    case HloOpcode::kMultiply:
      value = *a * *b;
      break;
    case HloOpcode::kSubtract:
      value = *a - *b;
      break;
    case HloOpcode::kDivide:
      if (*b != 0) value = *a / *b;
      break;
    default:
      if (*b != 0) value = *a % *b;
  }
  if (!value || *value < 0 || *value > kMost) return std::nullopt;
  // An index may be of any width; 127 is the largest number of the narrowest.
  if (ShapeUtil::ByteSizeOfPrimitiveType(hlo->shape().element_type()) < 4 &&
      *value > 127) {
    return std::nullopt;
  }
  return value;
}

}  // namespace

std::optional<int64_t> EvaluateIndex(const HloInstruction* hlo,
                                     int64_t partition) {
  return Evaluate(hlo, partition, /*depth=*/0);
}

std::optional<int64_t> SlicedDimension(const HloInstruction* slice) {
  if (slice->opcode() != HloOpcode::kDynamicSlice) return std::nullopt;
  std::optional<int64_t> sliced;
  const Shape& whole = slice->operand(0)->shape();
  for (int64_t d = 0; d < static_cast<int64_t>(whole.dimensions().size());
       ++d) {
    if (whole.dimensions(d) == slice->shape().dimensions(d)) continue;
    if (sliced.has_value()) return std::nullopt;
    sliced = d;
  }
  return sliced;
}

bool IsSliceByRank(const HloInstruction* slice, int64_t dimension,
                   const PartitionGroups& groups) {
  const int64_t ranks = groups[0].size();
  if (SlicedDimension(slice) != dimension ||
      slice->operand(0)->shape().dimensions(dimension) !=
          slice->shape().dimensions(dimension) * ranks) {
    return false;
  }
  // The starts of the other dimensions do not matter: they are clamped to 0.
  const HloInstruction* start = slice->operand(1 + dimension);
  const int64_t size = slice->shape().dimensions(dimension);
  for (const std::vector<int64_t>& group : groups) {
    for (int64_t i = 0; i < ranks; ++i) {
      if (EvaluateIndex(start, group[i]) != i * size) return false;
    }
  }
  return true;
}

}  // namespace oneshot
