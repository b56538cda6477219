// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/fault.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "cuda/testing/no_threads.h"

namespace oneshot {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(FaultTest, SitesAreNumberedOnce) {
  const uint64_t a = SiteNumber("a");
  const uint64_t b = SiteNumber("b");
  EXPECT_NE(a, b);
  EXPECT_EQ(SiteNumber("a"), a);
}

TEST(FaultTest, Timeout) {
  EXPECT_EQ(TimeoutNs(), 30'000'000'000u);
  SetTimeout(0.5);
  EXPECT_EQ(TimeoutNs(), 500'000'000u);
  SetTimeout(1e300);  // for ever, as far as it goes
  EXPECT_EQ(TimeoutNs(), 9'000'000'000'000'000'000u);
}

// One test, for the state is that of the process.
TEST(FaultTest, TheFirstFaultIsReportedOnceAndKept) {
  static Fault quiet = {};
  static Fault raised = {};
  EXPECT_EQ(FaultMessage(), "");
  static std::vector<std::string> logged;
  SetLog([](int level, const char* text) {
    EXPECT_EQ(level, 3);
    logged.push_back(text);
  });
  {
    const NoThreads none;  // the next one is watched by a thread again
    WatchFault(&quiet);
  }
  WatchFault(&raised);
  EXPECT_EQ(FaultMessage(), "");

  raised.epoch = 7;
  raised.rank = 1;
  raised.peer = 3;
  raised.waited_ns = 1'500'000'000;
  raised.site = SiteNumber("jit(step)/mlp");
  __atomic_store_n(&raised.raised, 1u, __ATOMIC_RELEASE);
  const auto says_it = AllOf(HasSubstr("rank 1 waited 1.5 s for rank 3"),
                             HasSubstr("number 7 at jit(step)/mlp;"));
  EXPECT_THAT(FaultMessage(), says_it);

  __atomic_store_n(&quiet.raised, 1u, __ATOMIC_RELEASE);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  EXPECT_THAT(FaultMessage(), says_it);
  EXPECT_EQ(logged, std::vector{FaultMessage()});
}

}  // namespace
}  // namespace oneshot
