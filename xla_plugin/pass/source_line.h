// SPDX-License-Identifier: Apache-2.0

#ifndef ONESHOT_XLA_PLUGIN_PASS_SOURCE_LINE_H_
#define ONESHOT_XLA_PLUGIN_PASS_SOURCE_LINE_H_

#include <string>

#include "xla/hlo/ir/hlo_instruction.h"

namespace oneshot {

// The line of the user's program that an instruction comes from, "file:line":
// the innermost frame that does not belong to a library that models are written
// with, like flax, whose lines are the same for all layers. Empty if unknown.
std::string SourceLine(const xla::HloInstruction* hlo);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PASS_SOURCE_LINE_H_
