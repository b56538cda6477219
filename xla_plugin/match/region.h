// SPDX-License-Identifier: Apache-2.0
//
// The instructions behind a sum that become one program with it.
//
// From the sum on, every instruction is taken in that a program can spell and
// whose operands are taken in already or do not depend on the sum. A tensor is
// looked at as rows * hidden elements in row-major order, so that rank,
// reshapes and dimensions of size one make no difference; `hidden` is the
// length of the first row reduction that is met, else that of the first vector
// that is spread over rows.
//
// What is read from outside becomes a result. At the edge it is better to stop
// early: an instruction that only widens, reshapes or repeats stays outside, so
// that the small tensor is what is written; and what does not fit the limits of
// a program is given back, last first. The sum alone always fits.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_REGION_H_
#define ONESHOT_XLA_PLUGIN_MATCH_REGION_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "cuda/program/epilogue_program.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla_plugin/match/hlo_values.h"
#include "xla_plugin/match/instruction_order.h"
#include "xla_plugin/match/outside_values.h"
#include "xla_plugin/match/program_builder.h"

namespace oneshot {

// An instruction right behind what was matched, and why it was not taken in.
struct Stop {
  const xla::HloInstruction* instruction;
  std::string reason;
};

class Region {
 public:
  // The largest region of `sum`, whose ranks send elements of type `x`. `order`
  // is that of its computation.
  Region(xla::HloInstruction* sum, DType x, const InstructionOrder& order,
         const MayAbsorb& may_absorb);

  int64_t rows() const { return elements_ / hidden_; }
  int64_t hidden() const { return hidden_; }

  // The program of the region, which is valid unless nothing reads the sum.
  ProgramBuilder Build() const { return Build(size_, with_producers_); }
  // The instructions that read the region and are no part of it.
  std::vector<Stop> Stops() const;

 private:
  // A node and its place in the order.
  struct Place {
    Node node;
    size_t index;
  };

  // The node of an instruction of the region as it is now, or null.
  const Node* Find(const xla::HloInstruction* hlo) const;
  bool Contains(const xla::HloInstruction* hlo) const {
    return Find(hlo) != nullptr;
  }
  const Node& NodeOf(const xla::HloInstruction* hlo) const {
    return places_.at(hlo).node;
  }
  void Add(Node node);

  int64_t FindRowLength();
  void Grow();
  std::optional<Node> Absorb(xla::HloInstruction* hlo, std::string* why);
  std::optional<Node> AbsorbReduction(xla::HloInstruction* hlo,
                                      std::string* why) const;
  std::optional<Node> AbsorbElementwise(xla::HloInstruction* hlo,
                                        std::string* why);
  std::optional<Source> Resolve(xla::HloInstruction* operand, int64_t elements,
                                std::string* why);
  OutsideValues Outside() const {
    return OutsideValues(elements_, hidden_, may_absorb_);
  }
  Extent ExtentOf(const Source& source) const;

  bool IsEdge(const xla::HloInstruction* hlo) const;
  bool IsReadOutside(const xla::HloInstruction* hlo,
                     const xla::HloInstruction* apart = nullptr) const;
  bool IsResult(const xla::HloInstruction* hlo) const;
  bool IsFreeOutside(const xla::HloInstruction* hlo) const;
  std::optional<std::string> WhyGiveBack(const xla::HloInstruction* hlo) const;
  void TrimEdge();
  ProgramBuilder Build(size_t size, bool with_producers) const;
  bool IsLegal(bool with_producers) const;
  size_t LongestLegal(bool with_producers);
  void TrimToLimits();

  xla::HloInstruction* const sum_;
  const DType x_;
  const MayAbsorb& may_absorb_;
  const InstructionOrder& instructions_;
  Dependents dependents_;
  const int64_t elements_;
  int64_t hidden_ = 1;
  bool with_producers_ = true;
  // Of the nodes, operands before users. The region is the first `size_`.
  std::vector<xla::HloInstruction*> order_;
  size_t size_ = 0;
  absl::flat_hash_map<const xla::HloInstruction*, Place> places_;
  absl::flat_hash_map<const xla::HloInstruction*, std::string> reasons_;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_REGION_H_
