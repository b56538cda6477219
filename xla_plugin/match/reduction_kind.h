// SPDX-License-Identifier: Apache-2.0
//
// What the computation of a reduction does.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_REDUCTION_KIND_H_
#define ONESHOT_XLA_PLUGIN_MATCH_REDUCTION_KIND_H_

#include <optional>

#include "xla/hlo/ir/hlo_instruction.h"
#include "xla/service/collective_ops_utils.h"

namespace oneshot {

// The kind of a `reduce`, `all-reduce` or `all-reduce-start`, if its
// computation has the element type of all operands and results. HLO allows
// another one, as an f32 sum whose partial sums are rounded to bf16; that is no
// sum in f32.
std::optional<xla::ReductionKind> ReductionKindOf(
    const xla::HloInstruction* reduction);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_REDUCTION_KIND_H_
