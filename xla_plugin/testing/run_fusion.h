// SPDX-License-Identifier: Apache-2.0

#ifndef ONESHOT_XLA_PLUGIN_TESTING_RUN_FUSION_H_
#define ONESHOT_XLA_PLUGIN_TESTING_RUN_FUSION_H_

#include <vector>

#include "absl/status/statusor.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"

namespace oneshot {

// What `pass` reports of a module, which has to be valid before and after, and
// which it has to call changed exactly if it fused something.
absl::StatusOr<ModuleReport> RunFusion(xla::HloModule* module,
                                       AllReduceEpilogueFusion& pass);

// The pass's custom-calls, operands first.
std::vector<const xla::HloInstruction*> FusedCalls(
    const xla::HloModule& module);

bool HasOpcode(const xla::HloModule& module, xla::HloOpcode opcode);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_TESTING_RUN_FUSION_H_
