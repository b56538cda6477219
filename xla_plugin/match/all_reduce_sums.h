// SPDX-License-Identifier: Apache-2.0
//
// What an all-reduce adds up and over which ranks, if a call can do the same.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_ALL_REDUCE_SUMS_H_
#define ONESHOT_XLA_PLUGIN_MATCH_ALL_REDUCE_SUMS_H_

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "xla/hlo/ir/hlo_instruction.h"
#include "xla_plugin/match/hlo_values.h"

namespace oneshot {

// Why an all-reduce stays with stock XLA, in words for the report.
struct Decline {
  std::string reason;
};

struct AllReduceSums {
  // In the order of the operands: the instruction itself, the elements of its
  // tuple, or what its asynchronous form ends with. Each of them can be matched
  // and replaced on its own.
  std::vector<xla::HloInstruction*> sums;
  // Ranks that add together, as flattened ids (replica * partitions +
  // partition). All groups have the same size, and no rank is in two.
  std::vector<std::vector<int64_t>> groups;

  int64_t ranks() const { return groups.front().size(); }
};

// Of an all-reduce, its asynchronous start or a reduce-scatter.
std::variant<AllReduceSums, Decline> SumsOf(xla::HloInstruction* all_reduce,
                                            const MayAbsorb& may_absorb);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_ALL_REDUCE_SUMS_H_
