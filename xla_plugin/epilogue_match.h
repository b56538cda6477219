// SPDX-License-Identifier: Apache-2.0
//
// Recognises an all-reduce and the epilogue that follows it. Matching only
// reads the module; `all_reduce_epilogue_fusion.h` does the rewriting.

#ifndef ONESHOT_XLA_PLUGIN_EPILOGUE_MATCH_H_
#define ONESHOT_XLA_PLUGIN_EPILOGUE_MATCH_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/xla_data.pb.h"

namespace oneshot {

// A tensor that the HLO adds to the sum.
struct Addend {
  enum class Kind { kBias, kResidual };
  Kind kind;
  xla::HloInstruction* operand;
  // The running value is rounded to this type after the add. F32: not rounded.
  xla::PrimitiveType round;
};

// x * rsqrt(sum(x*x) * mean_scale + epsilon) [* gain] over the last `hidden`
// elements.
struct RmsNorm {
  float epsilon = 0;
  float mean_scale = 0;
  // Type to which the HLO rounds before it multiplies by the gain; F32: not
  // rounded there.
  xla::PrimitiveType round = xla::F32;
  xla::HloInstruction* gain = nullptr;  // null: gain of one
};

// What one custom-call will replace.
//
// All arithmetic is f32. The value starts as the sum over ranks, rounded to
// `sum_round`; each addend is added and the value rounded again. At least one
// of the outputs is set; the custom-call computes their values and types.
struct EpilogueMatch {
  xla::HloAllReduceInstruction* all_reduce = nullptr;
  // What is sent. This is the all-reduce's operand, or the narrower value that
  // the operand only widens.
  xla::HloInstruction* input = nullptr;
  xla::PrimitiveType sum_round = xla::F32;
  std::vector<Addend> addends;
  std::optional<RmsNorm> norm;
  // Length of a row: the normalised dimension, else the bias, else everything.
  int64_t hidden = 0;
  xla::HloInstruction* sum_output = nullptr;   // null: nobody reads the sum
  xla::HloInstruction* norm_output = nullptr;  // null: no norm

  // E.g. "residual+rms_norm"; "none" for a bare all-reduce.
  std::string EpilogueName() const;
};

// Why an all-reduce stays with stock XLA, in words for the report.
struct Decline {
  std::string reason;
};

// Answers whether an instruction may be absorbed. False for instructions whose
// serialized form has fields that this build does not know.
using MayAbsorb = std::function<bool(const xla::HloInstruction*)>;

// Matches the longest epilogue of `all_reduce` that can be replaced without
// changing any value that other instructions read.
std::variant<EpilogueMatch, Decline> MatchEpilogue(
    xla::HloAllReduceInstruction* all_reduce, const MayAbsorb& may_absorb);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_EPILOGUE_MATCH_H_
