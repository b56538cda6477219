// SPDX-License-Identifier: Apache-2.0
//
// In which order the instructions of a computation can run, and which of them
// depend on which, while a pass replaces some of them. A pass that asks for
// every all-reduce must not walk the whole computation for every answer.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_INSTRUCTION_ORDER_H_
#define ONESHOT_XLA_PLUGIN_MATCH_INSTRUCTION_ORDER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <queue>
#include <tuple>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_instruction.h"

namespace oneshot {

// Numbers the instructions of a computation: each has a larger number than its
// operands and control predecessors.
class InstructionOrder {
 public:
  explicit InstructionOrder(const xla::HloComputation* computation);

  int64_t Number(const xla::HloInstruction* hlo) const {
    return numbers_.at(hlo);
  }

  // Numbers an instruction that was added, with what was added for it to read
  // and to read it, and mends the numbers of its readers. To be called once its
  // readers read it, after every change to the computation but removals.
  void Add(const xla::HloInstruction* hlo);

 private:
  int64_t NumberAfterOperands(const xla::HloInstruction* hlo);

  absl::flat_hash_map<const xla::HloInstruction*, int64_t> numbers_;
};

// Instructions that read some that were taken, each once, operands before
// users.
class Readers {
 public:
  explicit Readers(const InstructionOrder& order) : order_(order) {}

  void Take(const xla::HloInstruction* hlo);
  // The first that is left, or null.
  xla::HloInstruction* Next();

 private:
  // By number; among equals, which do not depend on each other, by id.
  using Place = std::tuple<int64_t, int64_t, xla::HloInstruction*>;

  const InstructionOrder& order_;
  absl::flat_hash_set<const xla::HloInstruction*> seen_;
  std::priority_queue<Place, std::vector<Place>, std::greater<Place>> heap_;
};

// Which instructions depend on one.
class Dependents {
 public:
  Dependents(const xla::HloInstruction* source, const InstructionOrder& order)
      : order_(order), first_(order.Number(source)) {
    Insert(source);
  }

  // Looks back from `hlo`, no further than the source stands in the order. When
  // it has looked at very many instructions, it says true of those that are
  // left: what depends on the source is never said to be independent.
  bool Contains(const xla::HloInstruction* hlo);

  // One of which that is known.
  void Insert(const xla::HloInstruction* hlo) { known_[hlo] = true; }

 private:
  const InstructionOrder& order_;
  const int64_t first_;
  size_t looked_at_ = 0;
  absl::flat_hash_map<const xla::HloInstruction*, bool> known_;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_INSTRUCTION_ORDER_H_
