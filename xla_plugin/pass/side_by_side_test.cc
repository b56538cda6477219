// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/side_by_side.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "cuda/testing/no_threads.h"

namespace oneshot {
namespace {

TEST(SideBySideTest, EachTaskRunsOnceOnAFewThreads) {
  constexpr int kTasks = 300;
  std::vector<std::atomic<int>> runs(kTasks);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  std::vector<std::function<void()>> tasks;
  for (int i = 0; i < kTasks; ++i) {
    tasks.push_back([&, i] {
      ++runs[i];
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      const std::lock_guard<std::mutex> lock(mutex);
      threads.insert(std::this_thread::get_id());
    });
  }
  RunSideBySide(tasks);
  for (const std::atomic<int>& count : runs) EXPECT_EQ(count, 1);
  EXPECT_LE(threads.size(), size_t{kMaxHelpers} + 1);
  if (std::thread::hardware_concurrency() > 1) {
    EXPECT_GT(threads.size(), 1u);
  }
}

TEST(SideBySideTest, WithoutOtherThreads) {
  int runs = 0;
  const std::vector<std::function<void()>> tasks(5, [&] { ++runs; });
  const NoThreads none;
  RunSideBySide(tasks);
  EXPECT_EQ(runs, 5);
}

TEST(SideBySideTest, NoTasks) { RunSideBySide({}); }

}  // namespace
}  // namespace oneshot
