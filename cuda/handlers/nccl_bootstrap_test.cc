// SPDX-License-Identifier: Apache-2.0
#include "cuda/handlers/nccl_bootstrap.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda/handlers/fake_nccl.h"
#include "cuda/handlers/thread_communicator.h"
#include "cuda/kernel/dynamic_library.h"
#include "cuda/runtime/device_guard.h"
#include "cuda/runtime/fake_cuda.h"
#include "cuda/runtime/fault.h"
#include "cuda/runtime/thread_bootstrap.h"

namespace oneshot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kInvalidArgument = 4;
constexpr int kInProgress = 7;

// A communicator of one rank that does what a test tells it to.
class Scripted : public FakeCommunicator {
 public:
  int UserRank(int* rank) override {
    *rank = 0;
    return user_rank_status;
  }
  int Count(int* count) override {
    *count = size;
    return count_status;
  }
  int AllGather(const void* send, void* receive, size_t bytes,
                CUstream stream) override {
    ++gathers;
    std::memcpy(receive, send, bytes);
    if (hangs) fake_cuda::Hang(stream);
    return gather_status;
  }
  int GetAsyncError(int* status) override {
    *status = unanswered-- > 0 ? kInProgress : answer;
    return query_status;
  }

  int size = 1;
  int user_rank_status = 0;
  int count_status = 0;
  int gather_status = 0;
  int query_status = 0;
  int unanswered = 0;
  int answer = 0;
  bool hangs = false;
  int gathers = 0;
};

// Runs first, before the other tests load the library; in a process of its own.
TEST(NcclBootstrapDeathTest, NcclIsNotLoaded) {
  EXPECT_EXIT(
      {
        Scripted communicator;
        std::string error;
        const auto bootstrap = NcclBootstrap::Create(&communicator, &error);
        std::fprintf(stderr, "%s", error.c_str());
        std::exit(bootstrap == nullptr ? 0 : 1);
      },
      testing::ExitedWithCode(0),
      "libnccl.so.2 is not loaded in this process, or lacks a function");
}

class NcclBootstrapTest : public testing::Test {
 protected:
  NcclBootstrapTest() {
    EXPECT_TRUE(DynamicLibrary::Open("cuda/handlers/libnccl.so.2"));
    fake_cuda::Reset();
    SetTimeout(30);
  }
  ~NcclBootstrapTest() override { fake_cuda::Reset(); }

  // The error of an exchange over a communicator.
  std::string Exchange(Scripted& communicator) {
    std::string error;
    const auto bootstrap = NcclBootstrap::Create(&communicator, &error);
    EXPECT_NE(bootstrap, nullptr) << error;
    const int32_t mine = 5;
    int32_t all = 0;
    if (bootstrap->AllGather(&mine, sizeof(mine), &all, &error)) {
      EXPECT_EQ(all, mine);
      EXPECT_EQ(error, "");
    } else {
      EXPECT_NE(error, "");
    }
    return error;
  }

 private:
  const DeviceGuard guard_{0};
};

TEST_F(NcclBootstrapTest, RanksExchange) {
  constexpr int kRanks = 3;
  ThreadBootstrap::Room room(kRanks);
  std::vector<std::thread> threads;
  for (int r = 0; r < kRanks; ++r) {
    threads.emplace_back([&, r] {
      const DeviceGuard guard(r);
      ThreadCommunicator communicator(room, r);
      std::string error;
      const auto bootstrap = NcclBootstrap::Create(&communicator, &error);
      ASSERT_NE(bootstrap, nullptr) << error;
      EXPECT_EQ(bootstrap->rank(), r);
      EXPECT_EQ(bootstrap->size(), kRanks);
      for (int round = 0; round < 3; ++round) {
        const int32_t mine = 10 * round + r;
        std::vector<int32_t> all(kRanks);
        ASSERT_TRUE(
            bootstrap->AllGather(&mine, sizeof(mine), all.data(), &error))
            << error;
        EXPECT_THAT(all,
                    ElementsAre(10 * round, 10 * round + 1, 10 * round + 2));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(fake_cuda::Live(), 0);
}

TEST_F(NcclBootstrapTest, CreationFails) {
  std::string error;
  Scripted rankless;
  rankless.user_rank_status = kInvalidArgument;
  EXPECT_EQ(NcclBootstrap::Create(&rankless, &error), nullptr);
  EXPECT_EQ(error, "NCCL: invalid argument");
  Scripted sizeless;
  sizeless.count_status = kInvalidArgument;
  EXPECT_EQ(NcclBootstrap::Create(&sizeless, &error), nullptr);
  EXPECT_EQ(error, "NCCL: invalid argument");
  for (const char* function : {"cuStreamCreate", "cuMemAlloc"}) {
    fake_cuda::Reset();
    fake_cuda::Fail(function, 0, CUDA_ERROR_OUT_OF_MEMORY);
    Scripted communicator;
    EXPECT_EQ(NcclBootstrap::Create(&communicator, &error), nullptr);
    EXPECT_EQ(error, "exchange between the ranks: out of memory");
    EXPECT_EQ(fake_cuda::Live(), 0);
  }
}

TEST_F(NcclBootstrapTest, TooMuchIsNotSent) {
  Scripted communicator;
  communicator.size = 8;
  std::string error;
  const auto bootstrap = NcclBootstrap::Create(&communicator, &error);
  ASSERT_NE(bootstrap, nullptr);
  std::vector<char> mine(8 << 10);
  std::vector<char> all(8 * mine.size());
  EXPECT_FALSE(
      bootstrap->AllGather(mine.data(), mine.size(), all.data(), &error));
  EXPECT_EQ(error, "exchange between the ranks: too many bytes");
  EXPECT_EQ(communicator.gathers, 0);
}

TEST_F(NcclBootstrapTest, ACommunicatorThatAnswersLater) {
  Scripted communicator;
  communicator.gather_status = kInProgress;
  communicator.unanswered = 3;
  EXPECT_EQ(Exchange(communicator), "");
  EXPECT_EQ(communicator.unanswered, -1);
  EXPECT_EQ(fake_cuda::Live(), 0);
}

TEST_F(NcclBootstrapTest, NcclFails) {
  Scripted at_once;
  at_once.gather_status = kInvalidArgument;
  EXPECT_EQ(Exchange(at_once), "NCCL: invalid argument");
  Scripted later;
  later.gather_status = kInProgress;
  later.unanswered = 1;
  later.answer = kInvalidArgument;
  EXPECT_EQ(Exchange(later), "NCCL: invalid argument");
  Scripted unknown;
  unknown.gather_status = kInProgress;
  unknown.query_status = kInvalidArgument;
  EXPECT_EQ(Exchange(unknown), "NCCL: invalid argument");
}

TEST_F(NcclBootstrapTest, CudaFails) {
  for (const char* function :
       {"cuMemcpyHtoDAsync", "cuStreamQuery", "cuMemcpyDtoHAsync"}) {
    fake_cuda::Reset();
    fake_cuda::Fail(function, 0, CUDA_ERROR_OUT_OF_MEMORY);
    Scripted communicator;
    EXPECT_EQ(Exchange(communicator),
              "exchange between the ranks: out of memory");
  }
}

// The destructor must not wait either: fake_cuda aborts if it frees what the
// stream uses.
TEST_F(NcclBootstrapTest, WaitsNoLongerThanTheTimeout) {
  SetTimeout(0.1);
  Scripted silent;
  silent.gather_status = kInProgress;
  silent.unanswered = 1 << 30;
  EXPECT_THAT(Exchange(silent), HasSubstr("ONESHOT_TIMEOUT_S"));
  Scripted hanging;
  hanging.hangs = true;
  const auto start = std::chrono::steady_clock::now();
  EXPECT_THAT(Exchange(hanging), HasSubstr("ONESHOT_TIMEOUT_S"));
  const std::chrono::duration<double> waited =
      std::chrono::steady_clock::now() - start;
  EXPECT_GE(waited.count(), 0.1);
}

}  // namespace
}  // namespace oneshot
