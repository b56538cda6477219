// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/epilogue_match.h"

#include "xla_plugin/match/program_builder.h"

namespace oneshot {
namespace {

using ::xla::HloInstruction;

// What has to be sent: the operand, or what it only widens. A reshape is kept,
// it would be of no use to undo it.
HloInstruction* InputOf(HloInstruction* all_reduce, int64_t operand,
                        const MayAbsorb& may_absorb) {
  HloInstruction* input = all_reduce->mutable_operand(operand);
  while (IsWideningConvert(input) && may_absorb(input)) {
    input = input->mutable_operand(0);
  }
  return input;
}

}  // namespace

EpilogueMatch MatchEpilogue(HloInstruction* all_reduce, HloInstruction* sum,
                            int64_t operand, const InstructionOrder& order,
                            const MayAbsorb& may_absorb) {
  EpilogueMatch match;
  match.all_reduce = all_reduce;
  match.sum = sum;
  match.input = InputOf(all_reduce, operand, may_absorb);
  const Region region(sum, *ToDType(match.input->shape().element_type()), order,
                      may_absorb);
  const ProgramBuilder built = region.Build();
  match.program = built.program();
  match.rows = region.rows();
  match.hidden = region.hidden();
  match.operands = built.operands();
  match.indices = built.indices();
  match.results = built.results();
  match.stops = region.Stops();
  return match;
}

}  // namespace oneshot
