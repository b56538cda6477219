// SPDX-License-Identifier: Apache-2.0
//
// The custom-call that takes the place of a sum and its epilogue.

#ifndef ONESHOT_XLA_PLUGIN_PASS_CUSTOM_CALL_H_
#define ONESHOT_XLA_PLUGIN_PASS_CUSTOM_CALL_H_

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla_plugin/match/all_reduce_sums.h"
#include "xla_plugin/match/epilogue_match.h"

namespace oneshot {

// XLA names it where an executable is loaded that needs a handler which nobody
// has registered: so it says what to do.
inline constexpr absl::string_view kCustomCallTarget =
    "oneshot_all_reduce (needs ONESHOT=1)";

enum class Platform { kCuda, kHost };

// Lets everything that reads results of `match`, which is of one of `sums`,
// read those of a new call, and removes what nothing reads any more. Returns
// the call.
absl::StatusOr<xla::HloInstruction*> ReplaceByCall(const EpilogueMatch& match,
                                                   const AllReduceSums& sums,
                                                   Platform platform);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PASS_CUSTOM_CALL_H_
