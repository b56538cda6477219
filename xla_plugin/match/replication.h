// SPDX-License-Identifier: Apache-2.0
//
// Which values of an SPMD module are equal on all ranks of a group.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_REPLICATION_H_
#define ONESHOT_XLA_PLUGIN_MATCH_REPLICATION_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla/hlo/ir/hlo_module.h"

namespace oneshot {

// Partition ids, by group.
using PartitionGroups = std::vector<std::vector<int64_t>>;

// The groups of an all-reduce or all-gather of a module of one replica, as
// partition ids. Every partition is in exactly one group of the common size;
// nothing where that is not so.
std::optional<PartitionGroups> GroupsOfPartitions(
    const xla::HloInstruction* collective);

// A proof, for every value that it calls replicated, that all ranks of each
// group hold the same value. What it can't prove is not replicated. It starts
// from what the partitioner has left at the entry's parameters (`sharding=`),
// from constants, and from all-reduces and all-gathers over whole groups; and
// it follows deterministic operations, tuples, loops and calls.
class ReplicationAnalysis {
 public:
  ReplicationAnalysis(const xla::HloModule& module, PartitionGroups groups);

  bool IsReplicated(const xla::HloInstruction* hlo) const;

  // For an instruction that has been added since, and that is replicated.
  void MarkReplicated(const xla::HloInstruction* hlo) { values_[hlo] = {true}; }

 private:
  // By element of a tuple, or the one value of an array. Tuples in tuples are
  // not followed.
  using Value = std::vector<bool>;

  Value Run(const xla::HloComputation* computation,
            const std::vector<Value>& parameters);
  Value Transfer(const xla::HloInstruction* hlo,
                 const std::vector<Value>& parameters);
  Value TransferWhile(const xla::HloInstruction* loop);
  bool IsReplicatedParameter(const xla::HloInstruction* parameter) const;
  bool JoinsGroups(const xla::HloInstruction* collective) const;

  const PartitionGroups groups_;
  absl::flat_hash_map<const xla::HloInstruction*, Value> values_;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_REPLICATION_H_
