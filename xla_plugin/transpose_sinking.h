// SPDX-License-Identifier: Apache-2.0

#ifndef ONESHOT_XLA_PLUGIN_TRANSPOSE_SINKING_H_
#define ONESHOT_XLA_PLUGIN_TRANSPOSE_SINKING_H_

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/hlo/pass/hlo_pass_interface.h"
#include "xla_plugin/epilogue_match.h"

namespace oneshot {

// Moves transposes that put the channels first behind the operations by channel
// that follow, where they mostly meet the transpose that puts them back. This
// is what XLA makes of a gain that is written as einsum("...k,k->...k", y,
// gain):
//
//   t = f32[64,2,8] transpose(f32[2,8,64] y), dimensions={2,0,1}
//   m = f32[64,16] multiply(reshape(t), broadcast(gain), dimensions={0})
//   u = f32[2,8,64] transpose(reshape(m)), dimensions={1,2,0}
// =>
//   u = f32[2,8,64] multiply(y, broadcast(gain), dimensions={2})
//
// An epilogue has rows, and ends at a transpose.
class TransposeSinking : public xla::HloModulePass {
 public:
  // With `layouts`, they have been assigned, and those of values that remain
  // are kept.
  TransposeSinking(bool layouts, MayAbsorb may_absorb)
      : layouts_(layouts), may_absorb_(std::move(may_absorb)) {}

  absl::string_view name() const override {
    return "oneshot-transpose-sinking";
  }

 protected:
  absl::StatusOr<bool> RunImpl(
      xla::HloModule* module,
      const absl::flat_hash_set<absl::string_view>& execution_threads) override;

 private:
  const bool layouts_;
  const MayAbsorb may_absorb_;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_TRANSPOSE_SINKING_H_
