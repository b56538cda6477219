// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/hook/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>
#include <vector>

namespace oneshot {
namespace {

using ::testing::Each;
using ::testing::SizeIs;

constexpr std::chrono::milliseconds kLong(60'000);

std::string Printed(LogQueue& queue, const std::string& text) {
  ::testing::internal::CaptureStderr();
  queue.Write(kWarning, text);
  return ::testing::internal::GetCapturedStderr();
}

std::string Prefix(const std::string& rank) {
  return "oneshot[" + rank + "pid " + std::to_string(getpid()) + "]: ";
}

TEST(LogQueueTest, PrintsWithoutAReader) {
  LogQueue queue(kLong);
  EXPECT_EQ(Printed(queue, "a line"), Prefix("") + "a line\n");
  queue.SetRank(1, 4);
  EXPECT_EQ(Printed(queue, "a line"), Prefix("rank 1 of 4, ") + "a line\n");
}

TEST(LogQueueTest, WritersWaitUntilTheReaderHasWritten) {
  LogQueue queue(kLong);
  std::vector<std::string> read;
  std::thread reader([&] {
    while (queue.Wait()) {
      LogLevel level;
      std::string text;
      ASSERT_TRUE(queue.Take(&level, &text));
      EXPECT_EQ(level, kInfo);
      read.push_back(text);
    }
  });
  ::testing::internal::CaptureStderr();
  // Until there is a reader, lines are printed.
  while (read.empty()) queue.Write(kInfo, "line");
  const size_t before = read.size();
  std::vector<std::thread> writers;
  for (int i = 0; i < 8; ++i) {
    writers.emplace_back([&] { queue.Write(kInfo, "line"); });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_THAT(read, SizeIs(before + 8));  // all of them, before Write() returns
  EXPECT_THAT(read, Each("line"));
  ::testing::internal::GetCapturedStderr();
  queue.Close();
  reader.join();
  EXPECT_EQ(Printed(queue, "late"), Prefix("") + "late\n");
}

// The reader has been told of a line and can't get the GIL.
TEST(LogQueueTest, DoesNotWaitForAReaderThatHangs) {
  LogQueue queue(std::chrono::milliseconds(20));
  std::atomic<bool> told = false;
  std::thread reader([&] { told = queue.Wait(); });
  ::testing::internal::CaptureStderr();
  while (!told) queue.Write(kInfo, "a line");
  ::testing::internal::GetCapturedStderr();
  reader.join();
  EXPECT_EQ(Printed(queue, "a line"), Prefix("") + "a line\n");
  LogLevel level;
  std::string text;
  EXPECT_FALSE(queue.Take(&level, &text));  // it is not written twice
}

TEST(LogQueueTest, ClosingFreesWritersThatWait) {
  LogQueue queue(kLong);
  std::thread reader([&] { queue.Wait(); });
  ::testing::internal::CaptureStderr();
  std::thread writer([&] {
    // The first ones may be printed, the one that wakes the reader waits.
    for (int i = 0; i < 1000; ++i) queue.Write(kInfo, "line");
  });
  reader.join();
  queue.Close();
  writer.join();
  const std::string printed = ::testing::internal::GetCapturedStderr();
  EXPECT_EQ(printed.size(), 1000 * (Prefix("") + "line\n").size());
}

}  // namespace
}  // namespace oneshot
