// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/cuda_driver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "cuda/runtime/cuda_check.h"

namespace oneshot {
namespace {

using ::testing::AnyOf;
using ::testing::Eq;
using ::testing::StartsWith;

// Wherever this runs, every function can be called.
TEST(CudaDriverTest, WithAndWithoutADriver) {
  const CudaDriver& driver = Cuda();
  int version = 0;
  const CUresult status = driver.DriverGetVersion(&version);
  if (status == CUDA_SUCCESS) {
    EXPECT_GE(version, 11000);
    EXPECT_EQ(CudaErrorText(CUDA_ERROR_OUT_OF_MEMORY), "out of memory");
    EXPECT_THAT(driver.missing,
                AnyOf(Eq(""), StartsWith("the CUDA driver is too old: ")));
    return;
  }
  EXPECT_EQ(driver.missing, "there is no CUDA driver");
  CUstream stream = nullptr;
  std::string error;
  EXPECT_FALSE(
      CudaSucceeded(driver.StreamCreate(&stream, 0), "a stream", &error));
  EXPECT_EQ(error, "a stream: there is no CUDA driver");
}

}  // namespace
}  // namespace oneshot
