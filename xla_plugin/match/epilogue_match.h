// SPDX-License-Identifier: Apache-2.0
//
// Recognises the epilogue that follows a sum over ranks: what one call will
// replace. Matching only reads the module; `all_reduce_epilogue_fusion.h` does
// the rewriting. There are no patterns; region.h says what is taken in.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_EPILOGUE_MATCH_H_
#define ONESHOT_XLA_PLUGIN_MATCH_EPILOGUE_MATCH_H_

#include <cstdint>
#include <vector>

#include "cuda/program/epilogue_program.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla_plugin/match/hlo_values.h"
#include "xla_plugin/match/instruction_order.h"
#include "xla_plugin/match/outside_values.h"
#include "xla_plugin/match/region.h"

namespace oneshot {

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

// Matches the longest epilogue of `sum`, number `operand` of those of
// `all_reduce`, that can be replaced without changing any value that other
// instructions read. `order` is that of the computation.
EpilogueMatch MatchEpilogue(xla::HloInstruction* all_reduce,
                            xla::HloInstruction* sum, int64_t operand,
                            const InstructionOrder& order,
                            const MayAbsorb& may_absorb);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_EPILOGUE_MATCH_H_
