// SPDX-License-Identifier: Apache-2.0
//
// Writes the instructions of a region as a program.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_PROGRAM_BUILDER_H_
#define ONESHOT_XLA_PLUGIN_MATCH_PROGRAM_BUILDER_H_

#include <cstdint>
#include <map>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "cuda/program/epilogue_program.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla_plugin/match/outside_values.h"

namespace oneshot {

// An instruction of a region: what it does, or that it only stands for the
// value of another one.
struct Node {
  xla::HloInstruction* hlo;
  bool is_alias = false;  // of its only source
  Op op = Op::kSum;
  DType round = DType::kF32;
  std::vector<Source> sources;
  Extent extent = Extent::kElement;  // of the value
};

class ProgramBuilder {
 public:
  // `with_producers`: whether the call computes what small operands are made
  // of; otherwise it reads them.
  ProgramBuilder(DType x, bool with_producers)
      : with_producers_(with_producers) {
    program_.x = x;
  }

  // After the nodes that it reads. The first is the sum.
  void Append(const Node& node);
  // Whether a program may be as large as what was appended.
  bool Fits() const;
  // After all nodes.
  void AddResult(xla::HloInstruction* hlo);

  const EpilogueProgram& program() const { return program_; }
  // As the program numbers them. It takes predicates for converted to bf16.
  const std::vector<xla::HloInstruction*>& operands() const {
    return operands_;
  }
  const std::vector<SliceIndex>& indices() const { return indices_; }
  const std::vector<xla::HloInstruction*>& results() const { return results_; }

 private:
  int Append(Instruction instruction);
  int ValueOf(const Source& source);
  int ValueOfConstant(float constant);
  int ValueOfLeaf(const Leaf& leaf);
  int ValueOfProducer(const Producer& producer);

  const bool with_producers_;
  EpilogueProgram program_;
  std::vector<xla::HloInstruction*> operands_;
  std::vector<SliceIndex> indices_;
  std::vector<xla::HloInstruction*> results_;
  // What was written already, as values of the program.
  absl::flat_hash_map<const xla::HloInstruction*, int> nodes_;
  absl::flat_hash_map<const xla::HloInstruction*, int> producers_;
  absl::flat_hash_map<uint32_t, int> constants_;  // by their bits
  std::map<Leaf, int> leaves_;
  std::map<SliceIndex, int> index_numbers_;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_PROGRAM_BUILDER_H_
