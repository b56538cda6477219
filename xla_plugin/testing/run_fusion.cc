// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/testing/run_fusion.h"

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {

absl::StatusOr<ModuleReport> RunFusion(xla::HloModule* module,
                                       AllReduceEpilogueFusion& pass) {
  TF_RETURN_IF_ERROR(Verify(module));
  TF_ASSIGN_OR_RETURN(const bool changed, pass.Run(module));
  if (const absl::Status valid = Verify(module); !valid.ok()) {
    return absl::InternalError(absl::StrCat(
        "invalid afterwards: ", valid.message(), "\n", module->ToString()));
  }
  if (changed != (pass.report().fired() > 0)) {
    return absl::InternalError(
        absl::StrCat("changed is ", changed, ", but ", pass.report().ToJson()));
  }
  return pass.report();
}

std::vector<const xla::HloInstruction*> FusedCalls(
    const xla::HloModule& module) {
  std::vector<const xla::HloInstruction*> calls;
  for (const auto* computation : module.computations()) {
    for (const auto* hlo : computation->MakeInstructionPostOrder()) {
      if (hlo->IsCustomCall(kCustomCallTarget)) calls.push_back(hlo);
    }
  }
  return calls;
}

bool HasOpcode(const xla::HloModule& module, xla::HloOpcode opcode) {
  for (const auto* computation : module.computations()) {
    for (const auto* hlo : computation->instructions()) {
      if (hlo->opcode() == opcode) return true;
    }
  }
  return false;
}

}  // namespace oneshot
