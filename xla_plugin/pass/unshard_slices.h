// SPDX-License-Identifier: Apache-2.0

#ifndef ONESHOT_XLA_PLUGIN_PASS_UNSHARD_SLICES_H_
#define ONESHOT_XLA_PLUGIN_PASS_UNSHARD_SLICES_H_

#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/hlo/pass/hlo_pass_interface.h"
#include "xla_plugin/match/hlo_values.h"

namespace oneshot {

// Removes collectives that only put together again what every rank has whole.
//
// Where a model shards the gain of a norm over the tensor axis, or the residual
// stream by columns, the partitioner computes the norm by slices, and pays
// three collectives for it:
//
//   h = add(all-reduce(dot), residual)              whole, on every rank
//   s = dynamic-slice(h, this rank's columns)
//   q = all-reduce(reduce(multiply(s, s)))          one number per row
//   y = all-gather(multiply(multiply(s, rsqrt(q)), gain_shard))
// =>
//   q = reduce(multiply(h, h))
//   y = multiply(multiply(h, rsqrt(q)), all-gather(gain_shard))
//
// A sum over ranks of sums over slices is the sum over the whole; it is only
// added up in another order. A gather of an elementwise function of slices is
// that function of the whole. What is left is one all-reduce with an epilogue,
// which AllReduceEpilogueFusion takes, and gathers of parameters, which wait
// for nothing, so that XLA makes one of all of them.
//
// It is done only where the module proves that the sliced value is equal on all
// ranks of the group (ReplicationAnalysis), and that the slices are those of
// the group's ranks in order; and only for values that the kernel could send,
// since every rank then computes whole rows.
class UnshardSlices : public xla::HloModulePass {
 public:
  // `has_layouts`: whether layouts have been assigned, as in XLA for CPU. Then
  // a gather has to be of the dimension that is slowest in memory.
  explicit UnshardSlices(
      bool has_layouts,
      MayAbsorb may_absorb = [](const xla::HloInstruction*) { return true; })
      : has_layouts_(has_layouts), may_absorb_(std::move(may_absorb)) {}

  absl::string_view name() const override { return "oneshot-unshard-slices"; }

 protected:
  absl::StatusOr<bool> RunImpl(
      xla::HloModule* module,
      const absl::flat_hash_set<absl::string_view>& execution_threads) override;

 private:
  const bool has_layouts_;
  const MayAbsorb may_absorb_;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PASS_UNSHARD_SLICES_H_
