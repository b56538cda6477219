// SPDX-License-Identifier: Apache-2.0
//
// Recognises an all-reduce and the epilogue that follows it. Matching only
// reads the module; `all_reduce_epilogue_fusion.h` does the rewriting.
//
// There are no patterns. From the all-reduce on, every instruction is taken in
// that an epilogue program can spell and whose operands are taken in already or
// do not depend on the all-reduce. A tensor is looked at as rows * hidden
// elements in row-major order, so that rank, reshapes and dimensions of size
// one make no difference; `hidden` is the length of the first row reduction
// that is met, else that of the first vector that is spread over rows.
//
// What is read from outside becomes a result. At the edge it is better to stop
// early: an instruction that only widens, reshapes or repeats stays outside, so
// that the small tensor is what is written; and what does not fit the limits of
// a program is given back, last first. The all-reduce alone always fits.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_EPILOGUE_MATCH_H_
#define ONESHOT_XLA_PLUGIN_MATCH_EPILOGUE_MATCH_H_

#include <cstdint>
#include <functional>
#include <string>
#include <variant>
#include <vector>

#include "cuda/program/epilogue_program.h"
#include "xla/hlo/ir/hlo_instruction.h"

namespace oneshot {

// An instruction right behind what was matched, and why it was not taken in.
struct Stop {
  const xla::HloInstruction* instruction;
  std::string reason;
};

// Which of several stacked tensors is read: known when the program runs, or
// now.
using SliceIndex = std::variant<xla::HloInstruction*, int32_t>;

// What one custom-call will replace.
struct EpilogueMatch {
  xla::HloInstruction* all_reduce = nullptr;
  xla::HloInstruction* sum = nullptr;  // the value that is matched
  EpilogueProgram program;
  int64_t rows = 1;
  int64_t hidden = 1;
  // What is sent. This is the all-reduce's operand, or the narrower value that
  // the operand only widens.
  xla::HloInstruction* input = nullptr;
  // As the program numbers them. It takes predicates for converted to bf16.
  std::vector<xla::HloInstruction*> operands;
  std::vector<SliceIndex> indices;
  std::vector<xla::HloInstruction*> results;  // replaced by those of the call
  std::vector<Stop> stops;
};

// Why an all-reduce stays with stock XLA, in words for the report.
struct Decline {
  std::string reason;
};

// Answers whether an instruction may be absorbed. False for instructions whose
// serialized form has fields that this build does not know.
using MayAbsorb = std::function<bool(const xla::HloInstruction*)>;

// The sums of an all-reduce, in the order of its operands: the instruction
// itself, the elements of its tuple, or what its asynchronous form ends with.
// Each of them can be matched and replaced on its own.
std::variant<std::vector<xla::HloInstruction*>, Decline> SumsOf(
    xla::HloInstruction* all_reduce, const MayAbsorb& may_absorb);

// Matches the longest epilogue of `sum`, number `operand` of those of
// `all_reduce`, that can be replaced without changing any value that other
// instructions read.
EpilogueMatch MatchEpilogue(xla::HloInstruction* all_reduce,
                            xla::HloInstruction* sum, int64_t operand,
                            const MayAbsorb& may_absorb);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_EPILOGUE_MATCH_H_
