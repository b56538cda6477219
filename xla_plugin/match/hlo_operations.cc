// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/hlo_operations.h"

#include <limits>
#include <optional>

#include "xla/comparison_util.h"
#include "xla/hlo/ir/hlo_casting_utils.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/service/collective_ops_utils.h"
#include "xla/xla_data.pb.h"
#include "xla_plugin/match/hlo_values.h"
#include "xla_plugin/match/reduction_kind.h"

namespace oneshot {
namespace {

using ::xla::HloInstruction;
using ::xla::HloOpcode;

std::optional<Op> FloatOperation(HloOpcode opcode) {
  switch (opcode) {
    case HloOpcode::kAbs:
      return Op::kAbs;
    case HloOpcode::kAdd:
      return Op::kAdd;
    case HloOpcode::kAtan2:
      return Op::kAtan2;
    case HloOpcode::kCbrt:
      return Op::kCbrt;
    case HloOpcode::kCeil:
      return Op::kCeil;
    case HloOpcode::kClamp:
      return Op::kClamp;
    case HloOpcode::kCos:
      return Op::kCos;
    case HloOpcode::kDivide:
      return Op::kDivide;
    case HloOpcode::kErf:
      return Op::kErf;
    case HloOpcode::kExp:
      return Op::kExp;
    case HloOpcode::kExpm1:
      return Op::kExpm1;
    case HloOpcode::kFloor:
      return Op::kFloor;
    case HloOpcode::kLog:
      return Op::kLog;
    case HloOpcode::kLog1p:
      return Op::kLog1p;
    case HloOpcode::kLogistic:
      return Op::kLogistic;
    case HloOpcode::kMaximum:
      return Op::kMaximum;
    case HloOpcode::kMinimum:
      return Op::kMinimum;
    case HloOpcode::kMultiply:
      return Op::kMultiply;
    case HloOpcode::kNegate:
      return Op::kNegate;
    case HloOpcode::kPower:
      return Op::kPower;
    case HloOpcode::kRemainder:
      return Op::kRemainder;
    case HloOpcode::kRoundNearestAfz:
      return Op::kRoundNearestAfz;
    case HloOpcode::kRoundNearestEven:
      return Op::kRoundNearestEven;
    case HloOpcode::kRsqrt:
      return Op::kRsqrt;
    case HloOpcode::kSelect:
      return Op::kSelect;
    case HloOpcode::kSign:
      return Op::kSign;
    case HloOpcode::kSin:
      return Op::kSin;
    case HloOpcode::kSqrt:
      return Op::kSqrt;
    case HloOpcode::kSubtract:
      return Op::kSubtract;
    case HloOpcode::kTan:
      return Op::kTan;
    case HloOpcode::kTanh:
      return Op::kTanh;
    default:
      return std::nullopt;
  }
}

std::optional<Op> PredicateOperation(const HloInstruction* hlo) {
  switch (hlo->opcode()) {
    case HloOpcode::kAnd:
      return Op::kAnd;
    case HloOpcode::kIsFinite:
      return Op::kIsFinite;
    case HloOpcode::kNot:
      return Op::kNot;
    case HloOpcode::kOr:
      return Op::kOr;
    case HloOpcode::kXor:
      return Op::kXor;
    case HloOpcode::kCompare:
      break;
    default:
      return std::nullopt;
  }
  const auto* compare = xla::Cast<xla::HloCompareInstruction>(hlo);
  // The total order tells zeros and NaNs apart.
  if (compare->order() != xla::ComparisonOrder::kPartial) return std::nullopt;
  switch (compare->direction()) {
    case xla::ComparisonDirection::kEq:
      return Op::kEq;
    case xla::ComparisonDirection::kNe:
      return Op::kNe;
    case xla::ComparisonDirection::kGe:
      return Op::kGe;
    case xla::ComparisonDirection::kGt:
      return Op::kGt;
    case xla::ComparisonDirection::kLe:
      return Op::kLe;
    case xla::ComparisonDirection::kLt:
      return Op::kLt;
  }
  return std::nullopt;
}

}  // namespace

std::optional<Op> ElementwiseOperation(const HloInstruction* hlo) {
  if (IsFloat(hlo)) return FloatOperation(hlo->opcode());
  if (IsPredicate(hlo)) return PredicateOperation(hlo);
  return std::nullopt;
}

std::optional<Op> ReductionOperation(const HloInstruction* hlo) {
  if (hlo->opcode() != HloOpcode::kReduce || hlo->operand_count() != 2 ||
      !IsFloat(hlo)) {
    return std::nullopt;
  }
  const std::optional<float> init = ConstantValue(hlo->operand(1));
  const auto kind = ReductionKindOf(hlo);
  if (!init.has_value() || !kind.has_value()) return std::nullopt;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  switch (*kind) {
    case xla::ReductionKind::SUM:
      // In other types, where to round is up to XLA.
      if (*init == 0.0f && hlo->shape().element_type() == xla::F32) {
        return Op::kReduceSum;
      }
      return std::nullopt;
    case xla::ReductionKind::MAX:
      if (*init == -kInfinity) return Op::kReduceMax;
      return std::nullopt;
    case xla::ReductionKind::MIN:
      if (*init == kInfinity) return Op::kReduceMin;
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

bool IsElementwiseFunction(const HloInstruction* hlo) {
  switch (hlo->opcode()) {
    case HloOpcode::kClamp:
      return true;
    case HloOpcode::kBitcast:
    case HloOpcode::kMap:
    case HloOpcode::kRng:
    case HloOpcode::kStochasticConvert:
      return false;
    default:
      return hlo->IsElementwise() && hlo->operand_count() > 0;
  }
}

}  // namespace oneshot
