// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/fault.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

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
  EXPECT_EQ(TimeoutNs(), 600'000'000'000u);
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
  static std::vector<std::pair<int, std::string>> logged;
  SetLog([](int level, const char* text) { logged.emplace_back(level, text); });
  {
    const NoThreads none;  // the next one is watched by a thread again
    WatchFault(&quiet);
  }
  WatchFault(&raised);
  EXPECT_EQ(FaultMessage(), "");

  // Waits that go on are noticed after 10 s, 20 s, 40 s.
  quiet.notice.peer = 2;
  quiet.notice.rank = 1;
  quiet.notice.site = SiteNumber("jit(step)/attention");
  for (const uint64_t stamp :
       {uint64_t{6} << 32 | 1, uint64_t{6} << 32 | 2, uint64_t{6} << 32 | 3,
        uint64_t{6} << 32 | 4, uint64_t{9} << 32 | 1}) {
    __atomic_store_n(&quiet.notice.stamp, stamp, __ATOMIC_RELEASE);
    EXPECT_EQ(FaultMessage(), "");
    EXPECT_EQ(FaultMessage(), "");  // what is known is not said again
  }
  ASSERT_EQ(logged.size(), 4u);
  const char* const said[] = {"10 s for rank 2 in all-reduce number 6 at jit",
                              "20 s for rank 2 in all-reduce number 6 at jit",
                              "40 s for rank 2 in all-reduce number 6 at jit",
                              "10 s for rank 2 in all-reduce number 9 at jit"};
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(logged[i].first, 2);
    EXPECT_THAT(logged[i].second, HasSubstr(said[i]));
    EXPECT_THAT(logged[i].second, HasSubstr("(step)/attention, and goes on"));
  }
  logged.clear();

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
  EXPECT_EQ(logged, (std::vector{std::pair(3, FaultMessage())}));
}

}  // namespace
}  // namespace oneshot
