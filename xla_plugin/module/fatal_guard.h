// SPDX-License-Identifier: Apache-2.0
//
// XLA ends the process where it finds what it holds to be impossible (CHECK,
// LOG(FATAL)). What is impossible to the version that the pass is compiled
// against may be usual in the one inside jaxlib.

#ifndef ONESHOT_XLA_PLUGIN_MODULE_FATAL_GUARD_H_
#define ONESHOT_XLA_PLUGIN_MODULE_FATAL_GUARD_H_

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace oneshot {

// Runs `work` to its end, on another thread, and returns what it returns; or an
// error with XLA's message, where XLA would end the process, or an exception's.
//
// After XLA's message, the thread sleeps for ever, with all that it holds.
absl::Status GuardAgainstFatal(absl::FunctionRef<absl::Status()> work);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MODULE_FATAL_GUARD_H_
