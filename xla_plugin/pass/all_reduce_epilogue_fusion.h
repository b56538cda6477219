// SPDX-License-Identifier: Apache-2.0

#ifndef ONESHOT_XLA_PLUGIN_PASS_ALL_REDUCE_EPILOGUE_FUSION_H_
#define ONESHOT_XLA_PLUGIN_PASS_ALL_REDUCE_EPILOGUE_FUSION_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/hlo/pass/hlo_pass_interface.h"
#include "xla_plugin/match/hlo_values.h"
#include "xla_plugin/match/instruction_order.h"
#include "xla_plugin/pass/custom_call.h"
#include "xla_plugin/pass/report.h"

namespace oneshot {

// Replaces each all-reduce, together with the elementwise operations and row
// reductions that follow it, by one typed-FFI custom-call:
//
//   sum  = f32[4,64] all-reduce(x), to_apply=add
//   h    = f32[4,64] add(sum, residual)
//   norm = rms_norm(h) * gain
// =>
//   call = (f32[4,64], f32[4,64]) custom-call(x, residual, gain),
//          custom_call_target="oneshot_all_reduce (needs ONESHOT=1)", ...
//   h    = get-tuple-element(call), index=0
//   norm = get-tuple-element(call), index=1
//
// The pass works on every computation of the main thread. Whatever it does not
// recognise, or is not sure of, stays as it is; report() says why.
class AllReduceEpilogueFusion : public xla::HloModulePass {
 public:
  using Platform = ::oneshot::Platform;

  // Compiles the kernel for a program, rows, hidden and ranks ahead of its
  // first run, and remembers it. Returns why that is not possible, or nothing.
  // Called from several threads.
  using CompileKernel = std::function<std::optional<std::string>(
      const std::string& program, int64_t rows, int64_t hidden, int ranks)>;

  // `machines` is where each rank is, by its flattened id; empty: all are on
  // one machine. Ranks reach each other's memory within one only.
  explicit AllReduceEpilogueFusion(
      Platform platform,
      MayAbsorb may_absorb = [](const xla::HloInstruction*) { return true; },
      CompileKernel compile_kernel = nullptr, std::vector<int> machines = {});

  absl::string_view name() const override {
    return "oneshot-all-reduce-epilogue-fusion";
  }

  // What the last run found, in the order of the module.
  const ModuleReport& report() const { return report_; }

 protected:
  absl::StatusOr<bool> RunImpl(
      xla::HloModule* module,
      const absl::flat_hash_set<absl::string_view>& execution_threads) override;

 private:
  void CompileAhead(const std::vector<xla::HloInstruction*>& all_reduces);
  absl::Status Visit(xla::HloInstruction* all_reduce);

  const Platform platform_;
  const MayAbsorb may_absorb_;
  const CompileKernel compile_kernel_;
  const std::vector<int> machines_;
  // During a run, of the computations with all-reduces.
  absl::flat_hash_map<const xla::HloComputation*, InstructionOrder> orders_;
  ModuleReport report_;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PASS_ALL_REDUCE_EPILOGUE_FUSION_H_
