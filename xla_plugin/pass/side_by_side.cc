// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/side_by_side.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <system_error>
#include <thread>
#include <vector>

namespace oneshot {

void RunSideBySide(const std::vector<std::function<void()>>& tasks) {
  std::atomic<size_t> next = 0;
  const auto work = [&] {
    for (size_t i = next++; i < tasks.size(); i = next++) tasks[i]();
  };
  const size_t processors = std::max(1u, std::thread::hardware_concurrency());
  const size_t wanted =
      std::min({tasks.size(), processors, size_t{kMaxHelpers} + 1});
  std::vector<std::thread> helpers;
  try {
    while (helpers.size() + 1 < wanted) helpers.emplace_back(work);
  } catch (const std::system_error&) {
    // A limit of the container, say. The caller's thread does what is left.
  }
  work();
  for (std::thread& helper : helpers) helper.join();
}

}  // namespace oneshot
