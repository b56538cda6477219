// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstddef>
#include <string>

#include "cuda/program/epilogue_program.h"
#include "cuda/program/program_tables.h"

namespace oneshot {
namespace {

std::string CheckOperands(const EpilogueProgram& program) {
  const auto size = static_cast<int>(program.operands.size());
  if (size > kMaxOperands) {
    return std::to_string(size) + " operands, the limit is " +
           std::to_string(kMaxOperands);
  }
  if (program.indices < 0 || program.indices > kMaxIndices) {
    return std::to_string(program.indices) + " indices, the limit is " +
           std::to_string(kMaxIndices);
  }
  for (int i = 0; i < size; ++i) {
    const Operand& operand = program.operands[i];
    if (IsQuantized(operand.dtype)) {
      return Numbered("in", i) + ": " + Name(operand.dtype) +
             " is for results only";
    }
    const bool sliced = operand.slices != 0;
    if (operand.slices < 0 ||
        (sliced ? operand.index < 0 || operand.index >= program.indices
                : operand.index != -1)) {
      return Numbered("in", i) + ": slice " + std::to_string(operand.slices) +
             " at " + Numbered("i", operand.index);
    }
    const bool used =
        std::any_of(program.instructions.begin(), program.instructions.end(),
                    [&](const Instruction& v) { return v.operand == i; });
    if (!used) return Numbered("in", i) + " is not used";
  }
  for (int i = 0; i < program.indices; ++i) {
    const bool used =
        std::any_of(program.operands.begin(), program.operands.end(),
                    [&](const Operand& operand) { return operand.index == i; });
    if (!used) return Numbered("i", i) + " is not used";
  }
  return "";
}

// What an instruction refers to, so that the program can be analyzed.
std::string CheckReferences(const EpilogueProgram& program, int index) {
  const Instruction& v = program.instructions[index];
  if ((v.op == Op::kSum) != (index == 0)) {
    return "the sum must be the first instruction and only that";
  }
  for (int i = 0; i < 3; ++i) {
    if (i < Arity(v.op) ? v.inputs[i] < 0 || v.inputs[i] >= index
                        : v.inputs[i] != -1) {
      return "expected " + std::to_string(Arity(v.op)) +
             " inputs, earlier values";
    }
  }
  if (v.op == Op::kOperand
          ? v.operand < 0 ||
                v.operand >= static_cast<int>(program.operands.size())
          : v.operand != -1) {
    return "no operand " + std::to_string(v.operand);
  }
  if (v.op != Op::kConstant && Bits(v.constant) != 0) {
    return "only a constant has a constant";
  }
  return "";
}

std::string CheckTypes(const EpilogueProgram& program, const Analysis& analysis,
                       int index) {
  const Instruction& v = program.instructions[index];
  if (IsQuantized(v.round)) return Name(v.round) + " is for results only";
  const Takes takes = Traits(v.op).takes;
  for (int i = 0; i < Arity(v.op); ++i) {
    if (takes == Takes::kEither) continue;
    const bool want = takes == Takes::kPredicates ||
                      (takes == Takes::kPredicateAndNumbers && i == 0);
    if (analysis.predicates[v.inputs[i]] != want) {
      return Numbered("v", v.inputs[i]) +
             (want ? " is not a predicate" : " is a predicate");
    }
  }
  if (v.round != DType::kF32 &&
      (analysis.predicates[index] || v.op == Op::kOperand)) {
    return "predicates and operands are not rounded";
  }
  if (IsReduction(v.op) && analysis.extents[v.inputs[0]] != Extent::kElement) {
    return "a reduction needs an element value, " + Numbered("v", v.inputs[0]) +
           " is a " + Name(analysis.extents[v.inputs[0]]) + " value";
  }
  return "";
}

std::string CheckResult(const EpilogueProgram& program,
                        const Analysis& analysis, const Result& result) {
  if (result.value < 0 ||
      result.value >= static_cast<int>(program.instructions.size())) {
    return "no value " + Numbered("v", result.value);
  }
  const std::string name = Numbered("v", result.value);
  if (analysis.predicates[result.value]) return name + " is a predicate";
  const Extent extent = analysis.extents[result.value];
  if (extent != Extent::kElement && extent != Extent::kRow) {
    return name + " is a " + Name(extent) + " value, expected element or row";
  }
  return "";
}

}  // namespace

std::string Validate(const EpilogueProgram& program) {
  const auto size = static_cast<int>(program.instructions.size());
  if (size == 0) return "no instructions";
  if (IsQuantized(program.x)) return Name(program.x) + " is for results only";
  if (size > kMaxInstructions) {
    return std::to_string(size) + " instructions, the limit is " +
           std::to_string(kMaxInstructions);
  }
  for (int i = 0; i < size; ++i) {
    const std::string error = CheckReferences(program, i);
    if (!error.empty()) return Numbered("v", i) + ": " + error;
  }
  if (std::string error = CheckOperands(program); !error.empty()) return error;

  const Analysis analysis = Analyze(program);
  for (int i = 0; i < size; ++i) {
    const std::string error = CheckTypes(program, analysis, i);
    if (!error.empty()) return Numbered("v", i) + ": " + error;
  }
  if (analysis.num_stages - 1 > kMaxStages) {
    return std::to_string(analysis.num_stages - 1) +
           " row reductions depend on each other, the limit is " +
           std::to_string(kMaxStages);
  }

  if (program.results.empty()) return "no results";
  if (program.results.size() > kMaxResults) {
    return std::to_string(program.results.size()) + " results, the limit is " +
           std::to_string(kMaxResults);
  }
  for (size_t i = 0; i < program.results.size(); ++i) {
    const std::string error =
        CheckResult(program, analysis, program.results[i]);
    if (!error.empty()) return Numbered("out", i) + ": " + error;
  }
  return "";
}

}  // namespace oneshot
