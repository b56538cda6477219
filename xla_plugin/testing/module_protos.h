// SPDX-License-Identifier: Apache-2.0
//
// Modules in the form in which XLA hands them over.

#ifndef ONESHOT_XLA_PLUGIN_TESTING_MODULE_PROTOS_H_
#define ONESHOT_XLA_PLUGIN_TESTING_MODULE_PROTOS_H_

#include "absl/strings/string_view.h"
#include "xla/service/hlo.pb.h"

namespace oneshot {

// An all-reduce "ar", with a residual "h" that may be fused and a comparison
// "lt" that stays.
inline constexpr char kModule[] = R"(HloModule m, num_partitions=2
  add { a = f32[] parameter(0)
        b = f32[] parameter(1)
        ROOT s = f32[] add(a, b) }
  ENTRY e {
    x = f32[4,8] parameter(0)
    i = s32[] parameter(1)
    n = s32[] constant(3)
    lt = pred[] compare(i, n), direction=LT
    ar = f32[4,8] all-reduce(x), channel_id=1, replica_groups={{0,1}},
      use_global_device_ids=true, to_apply=add
    res = f32[4,8] parameter(2)
    h = f32[4,8] add(res, ar)
    ROOT t = (f32[4,8], pred[]) tuple(h, lt)
  })";

xla::HloModuleProto Proto(absl::string_view text = kModule);

// A mesh with an axis of size one, and a collective over either axis, as newer
// versions write them: the all-gather "ag", whose groups are of one device, and
// the all-reduce "ar".
xla::HloModuleProto MeshProto();

// The instruction of that name, or null.
xla::HloInstructionProto* Find(xla::HloModuleProto& proto,
                               absl::string_view name);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_TESTING_MODULE_PROTOS_H_
