// SPDX-License-Identifier: Apache-2.0
//
// The operations of a program that HLO instructions spell.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_HLO_OPERATIONS_H_
#define ONESHOT_XLA_PLUGIN_MATCH_HLO_OPERATIONS_H_

#include <optional>

#include "cuda/program/epilogue_program.h"
#include "xla/hlo/ir/hlo_instruction.h"

namespace oneshot {

// What an operation does to elements, apart from its operands; nothing for what
// a program cannot spell. Type conversions and reductions are not among them.
std::optional<Op> ElementwiseOperation(const xla::HloInstruction* hlo);

// A sum in float32, or a maximum or minimum, that starts from its neutral
// element.
std::optional<Op> ReductionOperation(const xla::HloInstruction* hlo);

// Whether each element of the result is a function of the elements in its place
// of the operands, or of scalars: the same function in every place and on every
// device. In any type, whether a program can spell it or not.
bool IsElementwiseFunction(const xla::HloInstruction* hlo);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_HLO_OPERATIONS_H_
