// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/device.h"

#include <gtest/gtest.h>

#include <string>

#include "cuda/runtime/device_guard.h"
#include "cuda/runtime/fake_cuda.h"

namespace oneshot {
namespace {

TEST(DeviceTest, TraitsOfEachDevice) {
  fake_cuda::Reset();
  fake_cuda::SetComputeCapability(1, 8, 6);
  DeviceTraits traits;
  std::string error;
  ASSERT_TRUE(QueryDevice(0, &traits, &error)) << error;
  EXPECT_EQ(traits.compute_capability, 90);
  EXPECT_EQ(traits.limits.multiprocessors, 132);
  EXPECT_EQ(traits.limits.max_cluster, 8);
  // Clusters of blocks came with 9.0.
  ASSERT_TRUE(QueryDevice(1, &traits, &error)) << error;
  EXPECT_EQ(traits.compute_capability, 86);
  EXPECT_EQ(traits.limits.max_cluster, 1);
}

TEST(DeviceTest, NoAnswer) {
  fake_cuda::Reset();
  fake_cuda::Fail("cuDeviceGetAttribute", 0, CUDA_ERROR_OUT_OF_MEMORY);
  DeviceTraits traits;
  std::string error;
  EXPECT_FALSE(QueryDevice(0, &traits, &error));
  EXPECT_EQ(error, "cuDeviceGetAttribute: out of memory");
  EXPECT_FALSE(QueryDevice(99, &traits, &error));
  EXPECT_EQ(error, "cuDeviceGet: another error");
}

TEST(DeviceTest, TheGuardLeavesTheContextAsItFoundIt) {
  fake_cuda::Reset();
  EXPECT_EQ(fake_cuda::CurrentDevice(), -1);
  {
    const DeviceGuard outer(5);
    EXPECT_EQ(outer.status(), CUDA_SUCCESS);
    EXPECT_EQ(fake_cuda::CurrentDevice(), 5);
    {
      const DeviceGuard inner(2);
      EXPECT_EQ(fake_cuda::CurrentDevice(), 2);
      const DeviceGuard impossible(99);
      EXPECT_EQ(impossible.status(), CUDA_ERROR_INVALID_DEVICE);
      EXPECT_EQ(fake_cuda::CurrentDevice(), 2);
    }
    EXPECT_EQ(fake_cuda::CurrentDevice(), 5);
  }
  EXPECT_EQ(fake_cuda::CurrentDevice(), -1);
}

// A device that is busy now may answer later: a failure is not remembered.
TEST(DeviceTest, NoContext) {
  fake_cuda::Reset();
  fake_cuda::Fail("cuDevicePrimaryCtxRetain", 7, CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(DeviceGuard(7).status(), CUDA_ERROR_OUT_OF_MEMORY);
  EXPECT_EQ(fake_cuda::CurrentDevice(), -1);
  fake_cuda::Reset();
  EXPECT_EQ(DeviceGuard(7).status(), CUDA_SUCCESS);
}

}  // namespace
}  // namespace oneshot
