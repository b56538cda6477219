// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernel/nvrtc.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>

namespace oneshot {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kEmptyKernel[] = "extern \"C\" __global__ void k() {}";

// What a compiler makes, as its option has it, or why it makes nothing.
std::string Target(int compute_capability, int nvrtc_version,
                   int driver_version) {
  std::string error;
  const std::optional<CodeTarget> target =
      ChooseTarget(compute_capability, {70, 80, 86, 87, 90}, nvrtc_version,
                   driver_version, &error);
  if (!target) return error;
  return (target->ptx ? "compute_" : "sm_") +
         std::to_string(target->architecture);
}

TEST(ChooseTargetTest, MachineCodeOfDevicesThatTheCompilerKnows) {
  EXPECT_EQ(Target(80, 12040, 12040), "sm_80");
  EXPECT_EQ(Target(86, 12040, 12040), "sm_86");
  // Also for an older driver of the same major version, and for later ones.
  EXPECT_EQ(Target(90, 12040, 12000), "sm_90");
  EXPECT_EQ(Target(90, 12040, 13000), "sm_90");
}

TEST(ChooseTargetTest, MachineCodeOfTheFamilyOfADevice) {
  // Not that of 8.7, which is another kind of chip.
  EXPECT_EQ(Target(89, 12040, 12000), "sm_80");
}

TEST(ChooseTargetTest, PtxForNewerDevices) {
  EXPECT_EQ(Target(100, 12040, 12080), "compute_90");
  EXPECT_EQ(Target(120, 12040, 12040), "compute_90");
  EXPECT_EQ(Target(120, 12040, 0), "compute_90");
}

TEST(ChooseTargetTest, PtxThatTheDriverDoesNotKnow) {
  EXPECT_EQ(Target(100, 12090, 12080),
            "NVRTC 12.9 knows no compute capability 10.0, and its PTX is too "
            "new for the driver, which is of CUDA 12.8");
}

TEST(ChooseTargetTest, DevicesThatAreTooOld) {
  EXPECT_EQ(Target(61, 12040, 12040),
            "NVRTC 12.4 knows no compute capability 6.1");
}

class NvrtcTest : public testing::Test {
 protected:
  NvrtcTest() { SetNvrtcPath("external/nvrtc/newest"); }
};

TEST_F(NvrtcTest, IsFoundWhereThePathSays) {
  std::string file, error;
  int version = 0;
  ASSERT_TRUE(FindNvrtc(13000, &file, &version, &error)) << error;
  EXPECT_THAT(file, HasSubstr("external/nvrtc/newest/libnvrtc.so.13"));
  EXPECT_EQ(version / 1000, 13);
}

TEST_F(NvrtcTest, IsTooNewForTheDriver) {
  std::string file, error;
  int version = 0;
  EXPECT_FALSE(FindNvrtc(12080, &file, &version, &error));
  EXPECT_THAT(error, StartsWith("NVRTC 13."));
  EXPECT_THAT(error,
              HasSubstr(" is too new for the driver, which is of CUDA 12.8"));
  EXPECT_THAT(error, EndsWith("install nvidia-cuda-nvrtc-cu12"));
  std::string code, same;
  EXPECT_FALSE(CompileCuda(kEmptyKernel, 90, 12080, &code, &same));
  EXPECT_EQ(same, error);
}

TEST_F(NvrtcTest, MakesMachineCodeOrPtx) {
  std::string code, error;
  ASSERT_TRUE(CompileCuda(kEmptyKernel, 90, 13000, &code, &error)) << error;
  EXPECT_THAT(code, StartsWith("\x7F"
                               "ELF"));
  // A device of the far future, and a driver that knows it.
  ASSERT_TRUE(CompileCuda(kEmptyKernel, 990, 99000, &code, &error)) << error;
  EXPECT_THAT(code, HasSubstr("\n.version "));
  EXPECT_THAT(code, HasSubstr(".visible .entry k("));
}

}  // namespace
}  // namespace oneshot
