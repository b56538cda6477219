// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/reduction_kind.h"

#include "absl/algorithm/container.h"
#include "xla/hlo/ir/hlo_computation.h"

namespace oneshot {

std::optional<xla::ReductionKind> ReductionKindOf(
    const xla::HloInstruction* reduction) {
  const xla::HloComputation* reducer = reduction->to_apply();
  const xla::PrimitiveType type = reduction->operand(0)->shape().element_type();
  const auto has_type = [&](const xla::HloInstruction* hlo) {
    return hlo->shape().IsArray() && hlo->shape().element_type() == type;
  };
  if (!absl::c_all_of(reduction->operands(), has_type) ||
      !absl::c_all_of(reducer->parameter_instructions(), has_type) ||
      !has_type(reducer->root_instruction())) {
    return std::nullopt;
  }
  return xla::MatchReductionComputation(reducer);
}

}  // namespace oneshot
