// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/kernel_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <future>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/kernel/nvrtc.h"
#include "cuda/runtime/device_guard.h"
#include "cuda/runtime/fake_cuda.h"

namespace oneshot {
namespace {

using ::testing::HasSubstr;

constexpr DeviceTraits kDevice = {90, {132, 8}};
constexpr int kRanks = 2;

EpilogueProgram Parse(const std::string& text) {
  EpilogueProgram program;
  std::string error;
  EXPECT_TRUE(FromText(text, &program, &error)) << error;
  return program;
}

const EpilogueProgram& Sum() {
  static const EpilogueProgram program = Parse("x f32; v0 = sum; out0 v0 f32");
  return program;
}

LaunchPlan PlanOf(int64_t rows, int64_t hidden) {
  return *PlanLaunch(Sum(), rows, hidden, kRanks, kDevice.limits);
}

// Stands for what a build has made; nobody calls it.
CUkernel FunctionNumber(int number) {
  return reinterpret_cast<CUkernel>(static_cast<intptr_t>(number));
}

TEST(KernelCacheTest, BuildsOncePerSourceAndComputeCapability) {
  std::atomic<int> builds = 0;
  std::set<std::pair<int, std::string>> asked;
  KernelCache cache([&](const std::string& source, const std::string& name,
                        int compute_capability, CUkernel* function,
                        std::string*) {
    EXPECT_THAT(source, HasSubstr(name));
    EXPECT_EQ(name, Identifier(Sum()));
    asked.emplace(compute_capability, source);
    *function = FunctionNumber(++builds);
    return true;
  });
  std::string error;
  const auto find = [&](int64_t hidden, bool aligned, int compute_capability) {
    return cache.FindOrBuild(Sum(), PlanOf(1, hidden), kRanks, aligned,
                             compute_capability, &error);
  };
  const Kernel* first = find(64, true, 90);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(first->function, FunctionNumber(1));
  EXPECT_TRUE(first->wide);
  EXPECT_EQ(first->plan.rows, 1);
  EXPECT_EQ(first->plan.hidden, 64);
  EXPECT_EQ(find(64, true, 90), first);
  EXPECT_EQ(builds, 1);

  const Kernel* unaligned = find(64, false, 90);
  EXPECT_FALSE(unaligned->wide);
  EXPECT_FALSE(find(63, true, 90)->wide);  // no whole packets
  EXPECT_EQ(find(64, true, 80)->function, FunctionNumber(4));
  EXPECT_EQ(find(64, false, 90), unaligned);
  EXPECT_EQ(find(64, true, 90), first);
  EXPECT_EQ(builds, 4);
  EXPECT_EQ(asked.size(), 4u);
  EXPECT_EQ(error, "");
}

TEST(KernelCacheTest, NothingIsBuiltForNoRows) {
  KernelCache cache(
      [](const std::string&, const std::string&, int, CUkernel*, std::string*) {
        ADD_FAILURE() << "built";
        return false;
      });
  std::string error;
  const Kernel* kernel =
      cache.FindOrBuild(Sum(), PlanOf(0, 64), kRanks, true, 90, &error);
  ASSERT_NE(kernel, nullptr);
  EXPECT_EQ(kernel->function, nullptr);
}

TEST(KernelCacheTest, AFailureIsReportedToAllAndNotTriedAgain) {
  int builds = 0;
  KernelCache cache([&](const std::string&, const std::string&, int, CUkernel*,
                        std::string* error) {
    *error = "failure " + std::to_string(++builds);
    return false;
  });
  for (int i = 0; i < 3; ++i) {
    std::string error;
    EXPECT_EQ(cache.FindOrBuild(Sum(), PlanOf(4, 64), kRanks, true, 90, &error),
              nullptr);
    EXPECT_EQ(error, "failure 1");
  }
}

TEST(KernelCacheTest, ConcurrentCallersShareABuild) {
  constexpr int kThreads = 8;
  std::atomic<int> calling = 0;
  std::atomic<int> builds = 0;
  KernelCache cache([&](const std::string&, const std::string&, int,
                        CUkernel* function, std::string*) {
    *function = FunctionNumber(++builds);
    // Not done before all others had time to ask, too.
    while (calling < kThreads) std::this_thread::yield();
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    return true;
  });
  std::vector<const Kernel*> kernels(kThreads);
  std::vector<std::thread> threads;
  for (const Kernel*& kernel : kernels) {
    threads.emplace_back([&] {
      ++calling;
      std::string error;
      kernel =
          cache.FindOrBuild(Sum(), PlanOf(4, 64), kRanks, true, 90, &error);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(builds, 1);
  ASSERT_NE(kernels[0], nullptr);
  for (const Kernel* kernel : kernels) EXPECT_EQ(kernel, kernels[0]);
}

TEST(KernelCacheTest, KernelsAreBuiltSideBySide) {
  std::promise<void> both;
  std::shared_future<void> both_building = both.get_future().share();
  std::atomic<int> building = 0;
  KernelCache cache([&](const std::string&, const std::string&, int, CUkernel*,
                        std::string*) {
    if (++building == 2) both.set_value();
    return both_building.wait_for(std::chrono::seconds(10)) ==
           std::future_status::ready;
  });
  std::vector<const Kernel*> kernels(2);
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&, i] {
      std::string error;
      kernels[i] = cache.FindOrBuild(Sum(), PlanOf(4, 64 * (i + 1)), kRanks,
                                     true, 90, &error);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_NE(kernels[0], nullptr);
  EXPECT_NE(kernels[1], nullptr);
  EXPECT_NE(kernels[0], kernels[1]);
}

TEST(FindOrCompileKernelTest, AShapeThatDoesNotFit) {
  std::string error;
  EXPECT_EQ(FindOrCompileKernel(Sum(), 1 << 20, 1 << 10, kRanks, true, kDevice,
                                &error),
            nullptr);
  EXPECT_EQ(error, "1048576 rows of 1024 elements do not fit the workspace");
}

TEST(FindOrCompileKernelTest, CompilesForReal) {
  SetNvrtcPath("external/nvrtc/newest");
  fake_cuda::Reset();
  const DeviceGuard guard(0);
  std::string error;
  const Kernel* kernel =
      FindOrCompileKernel(Sum(), 4, 64, kRanks, true, kDevice, &error);
  ASSERT_NE(kernel, nullptr) << error;
  EXPECT_NE(kernel->function, nullptr);
  EXPECT_EQ(FindOrCompileKernel(Sum(), 4, 64, kRanks, true, kDevice, &error),
            kernel);
}

TEST(FindOrCompileKernelTest, TheDriverRefusesTheCode) {
  SetNvrtcPath("external/nvrtc/newest");
  fake_cuda::Reset();
  fake_cuda::Fail("cuLibraryLoadData", 0, CUDA_ERROR_OUT_OF_MEMORY);
  const DeviceGuard guard(0);
  std::string error;
  EXPECT_EQ(FindOrCompileKernel(Sum(), 4, 96, kRanks, true, kDevice, &error),
            nullptr);
  EXPECT_EQ(error, "loading a kernel: out of memory");
}

TEST(FindOrCompileKernelTest, NoSuchArchitecture) {
  SetNvrtcPath("external/nvrtc/newest");
  DeviceTraits ancient = kDevice;
  ancient.compute_capability = 10;
  std::string error;
  EXPECT_EQ(FindOrCompileKernel(Sum(), 4, 64, kRanks, true, ancient, &error),
            nullptr);
  EXPECT_THAT(error, HasSubstr("knows no compute capability 1.0"));
}

}  // namespace
}  // namespace oneshot
