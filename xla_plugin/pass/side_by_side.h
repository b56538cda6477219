// SPDX-License-Identifier: Apache-2.0
//
// Work on several threads at a time.

#ifndef ONESHOT_XLA_PLUGIN_PASS_SIDE_BY_SIDE_H_
#define ONESHOT_XLA_PLUGIN_PASS_SIDE_BY_SIDE_H_

#include <functional>
#include <vector>

namespace oneshot {

// Threads that RunSideBySide adds to the caller's: JAX itself may compile
// several programs at a time.
inline constexpr int kMaxHelpers = 7;

// Runs all tasks to their ends, each once, on the caller's thread and on up to
// kMaxHelpers others; on fewer where the system gives no more.
void RunSideBySide(const std::vector<std::function<void()>>& tasks);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PASS_SIDE_BY_SIDE_H_
