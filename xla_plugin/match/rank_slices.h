// SPDX-License-Identifier: Apache-2.0
//
// Dynamic-slices of which each rank takes its own part.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_RANK_SLICES_H_
#define ONESHOT_XLA_PLUGIN_MATCH_RANK_SLICES_H_

#include <cstdint>
#include <optional>

#include "xla/hlo/ir/hlo_instruction.h"
#include "xla_plugin/match/replication.h"

namespace oneshot {

// The value of an integer expression of one element on one partition: what the
// partitioner makes of `partition-id`, constants and tables. Nothing for what
// depends on anything else, is negative or overflows.
std::optional<int64_t> EvaluateIndex(const xla::HloInstruction* hlo,
                                     int64_t partition);

// The only dimension that a dynamic-slice cuts.
std::optional<int64_t> SlicedDimension(const xla::HloInstruction* slice);

// Whether it is a dynamic-slice that gives the ranks of each group, in their
// order, one equal part each of all of `dimension`, and of nothing less.
bool IsSliceByRank(const xla::HloInstruction* slice, int64_t dimension,
                   const PartitionGroups& groups);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_RANK_SLICES_H_
