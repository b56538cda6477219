// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/device.h"

#include <gtest/gtest.h>

#include <string>

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
  fake_cuda::Fail("cudaDeviceGetAttribute", 0, cudaErrorMemoryAllocation);
  DeviceTraits traits;
  std::string error;
  EXPECT_FALSE(QueryDevice(0, &traits, &error));
  EXPECT_EQ(error, "cudaDeviceGetAttribute: out of memory");
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace oneshot
