// SPDX-License-Identifier: Apache-2.0
//
// The whole of a value of which every rank of a group holds a part.

#ifndef ONESHOT_XLA_PLUGIN_PASS_UNSHARDING_H_
#define ONESHOT_XLA_PLUGIN_PASS_UNSHARDING_H_

#include <cstdint>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla_plugin/match/hlo_values.h"
#include "xla_plugin/match/rank_slices.h"
#include "xla_plugin/match/replication.h"

namespace oneshot {

// A value and the dimension of it that is spread over the ranks of a group.
using Shard = std::pair<xla::HloInstruction*, int64_t>;

// The values of one computation whole, over groups of ranks in a fixed order.
// What has to be gathered takes the module's next free channel.
class Unsharding {
 public:
  Unsharding(xla::HloComputation* computation, PartitionGroups groups,
             ReplicationAnalysis* replication, const MayAbsorb& may_absorb,
             bool has_layouts, int64_t* next_channel)
      : computation_(computation),
        groups_(std::move(groups)),
        ranks_(groups_[0].size()),
        replication_(replication),
        may_absorb_(may_absorb),
        has_layouts_(has_layouts),
        next_channel_(next_channel) {}

  void MarkReplicated(const xla::HloInstruction* hlo) {
    replication_->MarkReplicated(hlo);
  }

  // The value of which every rank holds its part, or null. An expression
  // without any slice of a value that every rank has would gain nothing.
  // `may_gather`: whether a shard larger than a vector may be gathered where
  // there is no other way to its whole.
  xla::HloInstruction* Whole(const Shard& shard, bool may_gather) {
    plans_.clear();
    may_gather_ = may_gather;
    if (!PlanOf(shard, 0).has_slice) return nullptr;
    return Make(shard);
  }

  // Lets what still reads a shard read a slice of the whole, which is there
  // anyway: otherwise it would be computed twice.
  absl::Status SliceWholesInstead();

 private:
  // How a shard's whole is had.
  struct Plan {
    enum Kind { kNone, kKnown, kSliced, kSpelled, kGathered };
    Kind kind = kNone;
    bool has_slice = false;  // or something else that is whole already
    bool possible() const { return kind != kNone; }
  };
  Plan PlanOf(const Shard& shard, int depth);
  Plan NewPlan(const Shard& shard, int depth);
  // The plan of an instruction whose whole is the same operation on the wholes
  // of its operands.
  Plan PlanOfOperands(const Shard& shard, int depth);
  xla::HloInstruction* Make(const Shard& shard);
  xla::HloInstruction* Gather(const Shard& shard);
  bool IsSlice(const xla::HloInstruction* hlo, int64_t dimension) const {
    return IsSliceByRank(hlo, dimension, groups_) &&
           IsReplicated(hlo->operand(0));
  }
  bool WaitsForCollective(const xla::HloInstruction* hlo, int depth = 0);
  bool IsReplicated(const xla::HloInstruction* hlo) const {
    return replication_->IsReplicated(hlo);
  }

  xla::HloComputation* const computation_;
  const PartitionGroups groups_;
  const int64_t ranks_;
  ReplicationAnalysis* const replication_;
  const MayAbsorb& may_absorb_;
  const bool has_layouts_;
  int64_t* const next_channel_;

  // What has been made, in order of making.
  absl::flat_hash_map<std::pair<int, int64_t>, xla::HloInstruction*> made_;
  std::vector<Shard> order_;
  absl::flat_hash_set<const xla::HloInstruction*> gathered_;
  absl::flat_hash_map<const xla::HloInstruction*, bool> waits_;
  xla::HloInstruction* a_slice_ = nullptr;

  // Of the expression that is being looked at.
  absl::flat_hash_map<std::pair<int, int64_t>, Plan> plans_;
  bool may_gather_ = false;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PASS_UNSHARDING_H_
