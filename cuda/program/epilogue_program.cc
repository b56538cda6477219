// SPDX-License-Identifier: Apache-2.0
#include "cuda/program/epilogue_program.h"

#include <algorithm>
#include <cmath>

#include "cuda/program/program_tables.h"

namespace oneshot {
namespace {

constexpr bool IsIndexedByOp() {
  int index = 0;
  for (const OpTraits& traits : kOps) {
    if (static_cast<int>(traits.op) != index++) return false;
  }
  return index == static_cast<int>(Op::kReduceSum) + 1;
}
static_assert(IsIndexedByOp());

}  // namespace

int Arity(Op op) { return Traits(op).arity; }
const char* Name(Op op) { return Traits(op).name; }
bool IsReduction(Op op) { return op >= Op::kReduceMax; }

bool Instruction::operator==(const Instruction& other) const {
  // As in the text form: zeros differ by their sign, and NaN is NaN.
  const bool same_constant =
      Bits(constant) == Bits(other.constant) ||
      (std::isnan(constant) && std::isnan(other.constant));
  return op == other.op && round == other.round &&
         std::equal(inputs, inputs + 3, other.inputs) &&
         operand == other.operand && same_constant;
}

bool Operand::operator==(const Operand& other) const {
  return extent == other.extent && dtype == other.dtype &&
         slices == other.slices && index == other.index;
}

bool Result::operator==(const Result& other) const {
  return value == other.value && dtype == other.dtype;
}

bool EpilogueProgram::operator==(const EpilogueProgram& other) const {
  return x == other.x && operands == other.operands &&
         indices == other.indices && instructions == other.instructions &&
         results == other.results;
}

Analysis Analyze(const EpilogueProgram& program) {
  Analysis analysis;
  for (const Instruction& v : program.instructions) {
    Extent extent = Extent::kScalar;
    int stage = 0;
    for (int i = 0; i < Arity(v.op); ++i) {
      const int input = v.inputs[i];
      extent = extent | analysis.extents[input];
      const bool after = IsReduction(program.instructions[input].op);
      stage = std::max(stage, analysis.stages[input] + (after ? 1 : 0));
    }
    if (v.op == Op::kSum) extent = Extent::kElement;
    if (v.op == Op::kOperand) extent = program.operands[v.operand].extent;
    if (IsReduction(v.op)) {
      extent = Extent::kRow;
      analysis.has_reduction = true;
      analysis.num_stages = std::max(analysis.num_stages, stage + 2);
    }
    if (extent == Extent::kRow || extent == Extent::kColumn) {
      analysis.needs_rows = true;
    }
    analysis.extents.push_back(extent);
    analysis.predicates.push_back(Traits(v.op).gives_predicate);
    analysis.stages.push_back(stage);
  }
  return analysis;
}

}  // namespace oneshot
