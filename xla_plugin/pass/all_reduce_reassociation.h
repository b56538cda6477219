// SPDX-License-Identifier: Apache-2.0

#ifndef ONESHOT_XLA_PLUGIN_PASS_ALL_REDUCE_REASSOCIATION_H_
#define ONESHOT_XLA_PLUGIN_PASS_ALL_REDUCE_REASSOCIATION_H_

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/hlo/pass/hlo_pass_interface.h"
#include "xla_plugin/match/hlo_values.h"

namespace oneshot {

// Replaces two all-reduces whose results are added, directly or one after the
// other to something else, by one all-reduce of the sum of their operands, as
// attention and MLP of a parallel transformer block have them:
//
//   t = add(add(h, all-reduce(a)), all-reduce(b))
// =>
//   t = add(h, all-reduce(add(a, b)))
//
// Where the two are added directly, XLA does the same with what is left of them
// after Oneshot, in every type; so the result is rounded as XLA rounds it. With
// something in between XLA keeps both, and so does this pass unless all is in
// float32: there it is another order of the additions, which an all-reduce does
// not promise anyway, while in a narrower type each rank would round what it
// sends. Both all-reduces must be over the same groups, and read by nobody
// else.
class AllReduceReassociation : public xla::HloModulePass {
 public:
  explicit AllReduceReassociation(
      MayAbsorb may_absorb = [](const xla::HloInstruction*) { return true; })
      : may_absorb_(std::move(may_absorb)) {}

  absl::string_view name() const override {
    return "oneshot-all-reduce-reassociation";
  }

 protected:
  absl::StatusOr<bool> RunImpl(
      xla::HloModule* module,
      const absl::flat_hash_set<absl::string_view>& execution_threads) override;

 private:
  const MayAbsorb may_absorb_;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PASS_ALL_REDUCE_REASSOCIATION_H_
