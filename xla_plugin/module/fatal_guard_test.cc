// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/module/fatal_guard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "absl/log/check.h"
#include "absl/log/log.h"
#include "cuda/testing/no_threads.h"

namespace oneshot {
namespace {

using ::testing::HasSubstr;

TEST(FatalGuardTest, ReturnsWhatTheWorkReturns) {
  int runs = 0;
  EXPECT_TRUE(GuardAgainstFatal([&] {
                ++runs;
                return absl::OkStatus();
              }).ok());
  EXPECT_EQ(runs, 1);
  const absl::Status expected = absl::NotFoundError("as it is");
  EXPECT_EQ(GuardAgainstFatal([&] { return expected; }), expected);
}

TEST(FatalGuardTest, FatalMessagesAreErrors) {
  for (int i = 0; i < 100; ++i) {
    const absl::Status check = GuardAgainstFatal([&]() -> absl::Status {
      CHECK_LT(i, 0) << "of a loop";
      return absl::OkStatus();
    });
    EXPECT_EQ(check.code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(check.message()), HasSubstr("Check failed: i < 0"));
    EXPECT_THAT(std::string(check.message()), HasSubstr("of a loop"));
  }
  const absl::Status fatal =
      GuardAgainstFatal([]() -> absl::Status { LOG(FATAL) << "no way on"; });
  EXPECT_EQ(fatal.message(), "XLA: no way on");
}

TEST(FatalGuardTest, OtherThreadsGoOn) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([t] {
      for (int i = 0; i < 20; ++i) {
        const bool ok = GuardAgainstFatal([&]() -> absl::Status {
                          CHECK_NE(t % 2, 0);
                          LOG(INFO) << "logging goes on";
                          return absl::OkStatus();
                        }).ok();
        EXPECT_EQ(ok, t % 2 != 0);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(FatalGuardTest, ExceptionsAreErrors) {
  const absl::Status status = GuardAgainstFatal(
      []() -> absl::Status { throw std::runtime_error("thrown"); });
  EXPECT_EQ(status, absl::InternalError("thrown"));
}

TEST(FatalGuardTest, WithoutAThread) {
  const NoThreads none;
  const absl::Status status = GuardAgainstFatal([] {
    ADD_FAILURE() << "ran";
    return absl::OkStatus();
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no thread"));
}

TEST(FatalGuardDeathTest, OutsideOfItNothingChanges) {
  EXPECT_DEATH(
      {
        EXPECT_TRUE(GuardAgainstFatal([] { return absl::OkStatus(); }).ok());
        LOG(FATAL) << "ends the process";
      },
      "ends the process");
}

}  // namespace
}  // namespace oneshot
