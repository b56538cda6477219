// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/hlo_values.h"

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/algorithm/container.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/layout_util.h"
#include "xla/literal.h"
#include "xla/shape_util.h"

namespace oneshot {

using ::xla::HloInstruction;
using ::xla::HloOpcode;
using ::xla::PrimitiveType;
using ::xla::Shape;
using ::xla::ShapeUtil;

std::optional<DType> ToDType(PrimitiveType type) {
  switch (type) {
    case xla::F32:
      return DType::kF32;
    case xla::BF16:
      return DType::kBf16;
    case xla::F16:
      return DType::kF16;
    default:
      return std::nullopt;
  }
}

std::optional<DType> ToResultType(PrimitiveType type) {
  switch (type) {
    case xla::F8E4M3FN:
      return DType::kF8E4M3FN;
    case xla::F8E5M2:
      return DType::kF8E5M2;
    case xla::S8:
      return DType::kS8;
    default:
      return ToDType(type);
  }
}

bool IsFloat(const HloInstruction* hlo) {
  return ToDType(hlo->shape().element_type()).has_value();
}

bool IsPredicate(const HloInstruction* hlo) {
  return hlo->shape().element_type() == xla::PRED;
}

bool IsQuantization(const HloInstruction* hlo) {
  return hlo->opcode() == HloOpcode::kConvert && IsFloat(hlo->operand(0)) &&
         !IsFloat(hlo) && ToResultType(hlo->shape().element_type()).has_value();
}

bool IsRowMajor(const Shape& shape) {
  return shape.IsArray() && shape.is_static() &&
         (!shape.has_layout() ||
          (xla::LayoutUtil::IsMonotonicWithDim0Major(shape.layout()) &&
           shape.layout().tiles().empty() &&
           shape.layout().memory_space() == 0));
}

int64_t Elements(const HloInstruction* hlo) {
  return hlo->shape().IsArray() ? ShapeUtil::ElementsIn(hlo->shape()) : -1;
}

bool IsReshape(const HloInstruction* hlo) {
  if (hlo->opcode() == HloOpcode::kReshape) return true;
  return hlo->opcode() == HloOpcode::kBitcast &&
         hlo->shape().element_type() ==
             hlo->operand(0)->shape().element_type() &&
         IsRowMajor(hlo->shape()) && IsRowMajor(hlo->operand(0)->shape());
}

bool IsRowMajorReshape(const HloInstruction* hlo) {
  return IsReshape(hlo) && IsRowMajor(hlo->shape()) &&
         IsRowMajor(hlo->operand(0)->shape());
}

bool IsWideningConvert(const HloInstruction* hlo) {
  return hlo->opcode() == HloOpcode::kConvert && IsFloat(hlo) &&
         IsFloat(hlo->operand(0)) &&
         (hlo->shape().element_type() == xla::F32 ||
          hlo->shape().element_type() ==
              hlo->operand(0)->shape().element_type());
}

BroadcastKind ClassifyBroadcast(const HloInstruction* hlo) {
  if (hlo->opcode() != HloOpcode::kBroadcast || !IsRowMajor(hlo->shape()) ||
      !IsRowMajor(hlo->operand(0)->shape()) ||
      !absl::c_is_sorted(hlo->dimensions())) {
    return BroadcastKind::kNone;
  }
  // Look at dimensions larger than one, from the slowest to the fastest: either
  // all mapped ones come first (rows) or all of them come last (column).
  bool seen_mapped = false, seen_new = false, rows = true, column = true;
  const int64_t rank = hlo->shape().dimensions().size();
  for (int64_t i = 0; i < rank; ++i) {
    if (hlo->shape().dimensions(i) == 1) continue;
    if (absl::c_linear_search(hlo->dimensions(), i)) {
      seen_mapped = true;
      rows &= !seen_new;
    } else {
      seen_new = true;
      column &= !seen_mapped;
    }
  }
  if (!seen_new) return BroadcastKind::kShape;
  if (rows) return BroadcastKind::kRows;
  return column ? BroadcastKind::kColumn : BroadcastKind::kNone;
}

bool IsExact(const HloInstruction* hlo) {
  return IsRowMajorReshape(hlo) || IsWideningConvert(hlo) ||
         ClassifyBroadcast(hlo) == BroadcastKind::kShape;
}

HloInstruction* StripExact(HloInstruction* hlo) {
  while (IsExact(hlo)) hlo = hlo->mutable_operand(0);
  return hlo;
}

std::optional<float> ConstantValue(const HloInstruction* hlo) {
  while (IsRowMajorReshape(hlo) || IsWideningConvert(hlo) ||
         hlo->opcode() == HloOpcode::kBroadcast) {
    hlo = hlo->operand(0);
  }
  if (hlo->opcode() != HloOpcode::kConstant || !hlo->shape().IsArray() ||
      !IsFloat(hlo) || Elements(hlo) == 0 || !hlo->literal().IsAllFirst()) {
    return std::nullopt;
  }
  const std::vector<int64_t> first(hlo->shape().dimensions().size(), 0);
  const std::optional<double> value = hlo->literal().GetAsDouble(first);
  if (!value.has_value()) return std::nullopt;
  return static_cast<float>(*value);
}

std::optional<int64_t> ReducedRow(const HloInstruction* reduce) {
  const Shape& shape = reduce->operand(0)->shape();
  bool seen_reduced = false;
  int64_t row = 1;
  const int64_t rank = shape.dimensions().size();
  for (int64_t i = 0; i < rank; ++i) {
    if (shape.dimensions(i) == 1) continue;
    if (absl::c_linear_search(reduce->dimensions(), i)) {
      seen_reduced = true;
      row *= shape.dimensions(i);
    } else if (seen_reduced) {
      return std::nullopt;
    }
  }
  if (row < 2) return std::nullopt;
  return row;
}

bool IsConvertedBack(const HloInstruction* quantized) {
  return !quantized->IsRoot() &&
         absl::c_all_of(quantized->users(), [](const HloInstruction* user) {
           return user->opcode() == HloOpcode::kConvert
                      ? IsFloat(user)
                      : IsRowMajorReshape(user) && IsConvertedBack(user);
         });
}

}  // namespace oneshot
