// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/program_builder.h"

#include <memory>
#include <variant>

#include "cuda/program/float_formats.h"
#include "xla_plugin/match/hlo_values.h"

namespace oneshot {

using ::xla::HloInstruction;

int ProgramBuilder::Append(Instruction instruction) {
  program_.instructions.push_back(instruction);
  return static_cast<int>(program_.instructions.size()) - 1;
}

void ProgramBuilder::Append(const Node& node) {
  if (node.is_alias || IsQuantization(node.hlo)) {
    nodes_[node.hlo] = ValueOf(node.sources[0]);
    return;
  }
  Instruction instruction;
  instruction.op = node.op;
  instruction.round = node.round;
  for (size_t i = 0; i < node.sources.size(); ++i) {
    instruction.inputs[i] = ValueOf(node.sources[i]);
  }
  nodes_[node.hlo] = Append(instruction);
}

bool ProgramBuilder::Fits() const {
  return program_.instructions.size() <= kMaxInstructions &&
         program_.operands.size() <= kMaxOperands &&
         program_.indices <= kMaxIndices;
}

void ProgramBuilder::AddResult(HloInstruction* hlo) {
  program_.results.push_back(
      {nodes_.at(hlo),
       ToResultType(hlo->shape().element_type()).value_or(DType::kF32)});
  results_.push_back(hlo);
}

int ProgramBuilder::ValueOf(const Source& source) {
  if (const auto* hlo = std::get_if<HloInstruction*>(&source)) {
    return nodes_.at(*hlo);
  }
  if (const auto* constant = std::get_if<float>(&source)) {
    return ValueOfConstant(*constant);
  }
  if (const auto* leaf = std::get_if<Leaf>(&source)) return ValueOfLeaf(*leaf);
  const auto& producer = *std::get<std::shared_ptr<const Producer>>(source);
  return with_producers_ ? ValueOfProducer(producer)
                         : ValueOfLeaf(producer.leaf);
}

int ProgramBuilder::ValueOfConstant(float constant) {
  const auto [place, is_new] = constants_.try_emplace(Bits(constant), 0);
  if (!is_new) return place->second;
  Instruction instruction;
  instruction.op = Op::kConstant;
  instruction.constant = constant;
  return place->second = Append(instruction);
}

int ProgramBuilder::ValueOfLeaf(const Leaf& leaf) {
  const auto [place, is_new] = leaves_.try_emplace(leaf, 0);
  if (!is_new) return place->second;
  Operand operand;
  operand.extent = leaf.extent;
  operand.dtype =
      ToDType(leaf.tensor->shape().element_type()).value_or(DType::kBf16);
  if (leaf.slices > 0) {
    const auto [index, is_first] =
        index_numbers_.try_emplace(leaf.index, program_.indices);
    if (is_first) {
      ++program_.indices;
      indices_.push_back(leaf.index);
    }
    operand.slices = leaf.slices;
    operand.index = index->second;
  }
  Instruction instruction;
  instruction.op = Op::kOperand;
  instruction.operand = static_cast<int>(program_.operands.size());
  program_.operands.push_back(operand);
  operands_.push_back(leaf.tensor);
  place->second = Append(instruction);
  if (IsPredicate(leaf.tensor)) {
    Instruction is_true;
    is_true.op = Op::kNe;
    is_true.inputs[0] = place->second;
    is_true.inputs[1] = ValueOfConstant(0.0f);
    place->second = Append(is_true);
  }
  return place->second;
}

int ProgramBuilder::ValueOfProducer(const Producer& producer) {
  const auto known = producers_.find(producer.hlo);
  if (known != producers_.end()) return known->second;
  Instruction instruction;
  instruction.op = producer.op;
  instruction.round = producer.round;
  for (size_t i = 0; i < producer.sources.size(); ++i) {
    instruction.inputs[i] = ValueOf(producer.sources[i]);
  }
  return producers_[producer.hlo] = Append(instruction);
}

}  // namespace oneshot
