// SPDX-License-Identifier: Apache-2.0
//
// What a launch hands to CUDA. That kernels compute the right thing is for
// cuda/device_tests to show.
#include "cuda/runtime/launch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <type_traits>
#include <vector>

#include "cuda/kernel/device/arguments.h"
#include "cuda/program/call_contract.h"
#include "cuda/runtime/device_guard.h"
#include "cuda/runtime/fake_cuda.h"

namespace oneshot {
namespace {

using ::testing::ElementsAre;

// An address; nobody looks at what is there.
template <typename T>
T* At(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

class LaunchTest : public testing::Test {
 protected:
  LaunchTest() {
    fake_cuda::Reset();
    kernel_.function = At<std::remove_pointer_t<CUkernel>>(0x10);
    kernel_.plan.blocks = 12;
    kernel_.plan.tuning.threads = 256;
  }

  Kernel kernel_;

 private:
  const DeviceGuard guard_{0};
};

TEST_F(LaunchTest, EverythingReachesTheKernel) {
  Buffers buffers;
  buffers.x = At<void>(0x100);
  for (int i = 0; i < kMaxOperands; ++i) {
    buffers.operands[i] = At<void>(0x200 + i);
  }
  for (int i = 0; i < kMaxIndices; ++i) {
    buffers.indices[i] = At<int32_t>(0x300 + 4 * i);
  }
  for (int i = 0; i < kMaxResults; ++i) {
    buffers.results[i] = At<void>(0x400 + i);
  }
  WorkspaceView view;
  view.rank = 3;
  view.ranks = kMaxRanks;
  for (int i = 0; i < kMaxRanks; ++i) view.inboxes[i] = At<void>(0x500 + i);
  view.control = At<Control>(0x600);
  view.fault = At<Fault>(0x700);
  view.notice_ns = 41;
  view.timeout_ns = 42;
  const auto stream = At<std::remove_pointer_t<CUstream>>(0x800);
  EXPECT_EQ(LaunchAllReduce(kernel_, buffers, view, /*site=*/17, stream),
            CUDA_SUCCESS);

  const std::vector<fake_cuda::Launch> launches = fake_cuda::Launches();
  ASSERT_EQ(launches.size(), 1u);
  const fake_cuda::Launch& launch = launches[0];
  EXPECT_EQ(launch.function, At<std::remove_pointer_t<CUfunction>>(0x10));
  EXPECT_THAT(launch.grid, ElementsAre(12, 1, 1));
  EXPECT_THAT(launch.block, ElementsAre(256, 1, 1));
  EXPECT_EQ(launch.shared_bytes, 0u);
  EXPECT_EQ(launch.stream, stream);
  const KernelArguments& arguments = launch.arguments;
  EXPECT_EQ(arguments.x, buffers.x);
  for (int i = 0; i < kMaxOperands; ++i) {
    EXPECT_EQ(arguments.operands[i], buffers.operands[i]);
  }
  for (int i = 0; i < kMaxIndices; ++i) {
    EXPECT_EQ(arguments.indices[i], buffers.indices[i]);
  }
  for (int i = 0; i < kMaxResults; ++i) {
    EXPECT_EQ(arguments.results[i], buffers.results[i]);
  }
  for (int i = 0; i < kMaxRanks; ++i) {
    EXPECT_EQ(arguments.inboxes[i], view.inboxes[i]);
  }
  EXPECT_EQ(arguments.control, view.control);
  EXPECT_EQ(arguments.fault, view.fault);
  EXPECT_EQ(arguments.notice_ns, 41u);
  EXPECT_EQ(arguments.timeout_ns, 42u);
  EXPECT_EQ(arguments.site, 17u);
  EXPECT_EQ(arguments.rank, 3);
}

TEST_F(LaunchTest, NothingToLaunch) {
  EXPECT_EQ(LoadKernel(Kernel()), CUDA_SUCCESS);
  EXPECT_EQ(LaunchAllReduce(Kernel(), {}, {}, 0, nullptr), CUDA_SUCCESS);
  EXPECT_TRUE(fake_cuda::Loads().empty());
  EXPECT_TRUE(fake_cuda::Launches().empty());
}

// By the driver's call for that, and by what loads it where there is none.
TEST_F(LaunchTest, LoadKernelEndsLazyLoading) {
  EXPECT_EQ(LoadKernel(kernel_), CUDA_SUCCESS);
  EXPECT_THAT(fake_cuda::Loads(), ElementsAre(kernel_.function));
  fake_cuda::BecomeOld();
  EXPECT_EQ(LoadKernel(kernel_), CUDA_SUCCESS);
  EXPECT_THAT(fake_cuda::Loads(),
              ElementsAre(kernel_.function, kernel_.function));
}

TEST_F(LaunchTest, ErrorsAreReturned) {
  fake_cuda::Fail("cuFuncLoad", 0, CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(LoadKernel(kernel_), CUDA_ERROR_OUT_OF_MEMORY);
  fake_cuda::BecomeOld();
  EXPECT_EQ(LoadKernel(kernel_), CUDA_ERROR_OUT_OF_MEMORY);
  fake_cuda::Fail("cuKernelGetFunction", 0, CUDA_ERROR_NOT_FOUND);
  EXPECT_EQ(LoadKernel(kernel_), CUDA_ERROR_NOT_FOUND);
  fake_cuda::Fail("cuLaunchKernel", 0, CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(LaunchAllReduce(kernel_, {}, {}, 0, nullptr),
            CUDA_ERROR_OUT_OF_MEMORY);
}

TEST_F(LaunchTest, IsAligned) {
  Buffers buffers;
  EXPECT_TRUE(IsAligned(buffers));
  buffers.x = At<void>(0x1010);
  buffers.operands[kMaxOperands - 1] = At<void>(0x2020);
  buffers.results[kMaxResults - 1] = At<void>(0x30F0);
  buffers.indices[0] = At<int32_t>(0x4004);  // read by the element
  EXPECT_TRUE(IsAligned(buffers));
  Buffers shifted = buffers;
  shifted.x = At<void>(0x1018);
  EXPECT_FALSE(IsAligned(shifted));
  shifted = buffers;
  shifted.operands[kMaxOperands - 1] = At<void>(0x2022);
  EXPECT_FALSE(IsAligned(shifted));
  shifted = buffers;
  shifted.results[kMaxResults - 1] = At<void>(0x30F8);
  EXPECT_FALSE(IsAligned(shifted));
}

}  // namespace
}  // namespace oneshot
