// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/profit.h"

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "cuda/kernel/launch_plan.h"
#include "cuda/program/call_contract.h"
#include "cuda/program/float_formats.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla/hlo/ir/hlo_opcode.h"

namespace oneshot {
namespace {

using ::xla::HloInstruction;
using ::xla::HloOpcode;

// From here on the link decides, and what the kernel saves counts less. Between
// two ranks, where nobody can send less than the kernel does, it was ahead at
// all sizes that fit (docs/benchmarks). Between more nothing has been measured.
constexpr int64_t kMaxSentBytes = int64_t{8} << 20;

// The limit, for any number of ranks, where nothing follows the sum but a
// conversion.
constexpr int64_t kMaxSentBytesAlone = int64_t{1} << 20;

bool IsAlone(const EpilogueProgram& program) {
  return absl::c_all_of(program.instructions, [](const Instruction& value) {
    return value.op == Op::kSum || value.op == Op::kConvert;
  });
}

// What one rank sends in all.
int64_t SentBytes(const EpilogueProgram& program, int64_t bytes, int ranks) {
  return TakesTwoShots(program, bytes, ranks) ? 2 * bytes * (ranks - 1) / ranks
                                              : bytes * (ranks - 1);
}

bool OnlyMoves(const HloInstruction* hlo) {
  switch (hlo->opcode()) {
    case HloOpcode::kBitcast:
    case HloOpcode::kConvert:
    case HloOpcode::kCopy:
    case HloOpcode::kReshape:
    case HloOpcode::kTranspose:
      return true;
    default:
      return false;
  }
}

// What it is when it has been moved as far as nobody else reads it.
const HloInstruction* LastMove(const HloInstruction* hlo) {
  while (hlo->user_count() == 1 && OnlyMoves(hlo->users()[0])) {
    hlo = hlo->users()[0];
  }
  return hlo;
}

// Whether all that happens to it is that a loop adds it to a part of its state,
// which the loop does not read otherwise: the gradients of micro-batches.
bool IsAddedUpByLoop(const HloInstruction* sum) {
  const HloInstruction* term = LastMove(sum);
  if (term->user_count() != 1) return false;
  const HloInstruction* add = term->users()[0];
  if (add->opcode() != HloOpcode::kAdd) return false;
  const HloInstruction* state = add->operand(1 - add->operand_index(term));
  while (OnlyMoves(state) && state->user_count() == 1) {
    state = state->operand(0);
  }
  const HloInstruction* new_state = LastMove(add);
  if (new_state->user_count() != 1) return false;
  const HloInstruction* root = new_state->users()[0];
  return root->opcode() == HloOpcode::kTuple && root->IsRoot() &&
         state->opcode() == HloOpcode::kGetTupleElement &&
         state->operand(0)->opcode() == HloOpcode::kParameter &&
         state->user_count() == 1 &&
         state->tuple_index() == root->operand_index(new_state);
}

}  // namespace

std::optional<std::string> WhyNotProfitable(const EpilogueMatch& match,
                                            int64_t ranks) {
  if (ranks < kMinRanks) return "groups of one rank need no communication";
  if (ranks > kMaxRanks) {
    return absl::StrCat("groups of ", ranks, " ranks; at most ", kMaxRanks);
  }
  if (IsAddedUpByLoop(match.sum)) {
    return "a loop only adds it up; XLA moves it behind the loop";
  }
  const EpilogueProgram& program = match.program;
  const bool needs_rows = Analyze(program).needs_rows;
  const int64_t rows = needs_rows ? match.rows : 1;
  const int64_t hidden = match.rows * match.hidden / rows;
  const int64_t bytes = rows * PaddedRowBytes(hidden * ByteWidth(program.x));
  const int count = static_cast<int>(ranks);
  if (bytes > MaxMessageBytes(count)) {
    return absl::StrCat("message of ", bytes, " bytes is too large; at most ",
                        MaxMessageBytes(count), " between ", ranks, " ranks");
  }
  const int64_t sent = SentBytes(program, bytes, count);
  if (ranks > 2 && sent > kMaxSentBytes) {
    return absl::StrCat("message of ", bytes, " bytes is too large; each of ",
                        ranks, " ranks would send ", sent, ", at most ",
                        kMaxSentBytes);
  }
  if (sent > kMaxSentBytesAlone && IsAlone(program)) {
    return absl::StrCat(
        "nothing follows that could be fused, and a message of ", bytes,
        " bytes may better run beside other work");
  }
  return std::nullopt;
}

}  // namespace oneshot
