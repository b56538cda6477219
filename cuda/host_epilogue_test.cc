// SPDX-License-Identifier: Apache-2.0
#include "cuda/host_epilogue.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace oneshot {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<Buffers> Inputs(const std::vector<std::vector<float>>& x) {
  std::vector<Buffers> ranks(x.size());
  for (size_t r = 0; r < x.size(); ++r) ranks[r].x = x[r].data();
  return ranks;
}

TEST(HostEpilogueTest, SumKeepsSpecialValues) {
  const std::vector<std::vector<float>> x = {
      {-0.0f, 0.0f, kInfinity, kInfinity, kNan, 1e-45f},
      {-0.0f, -0.0f, 1.0f, -kInfinity, 1.0f, 1e-45f}};
  std::vector<Buffers> ranks = Inputs(x);
  std::vector<float> sums(12);
  ranks[0].sum = &sums[0];
  ranks[1].sum = &sums[6];
  Epilogue epilogue;
  epilogue.emit_sum = true;
  AllReduceOnHost(epilogue, 1, 6, ranks);
  for (int r = 0; r < 2; ++r) {
    const float* sum = &sums[6 * r];
    EXPECT_TRUE(sum[0] == 0 && std::signbit(sum[0]));
    EXPECT_TRUE(sum[1] == 0 && !std::signbit(sum[1]));
    EXPECT_EQ(sum[2], kInfinity);
    EXPECT_TRUE(std::isnan(sum[3]));
    EXPECT_TRUE(std::isnan(sum[4]));
    EXPECT_EQ(sum[5], 3e-45f);
  }
}

TEST(HostEpilogueTest, SumRunsInRankOrder) {
  const std::vector<std::vector<float>> x = {{1e8f}, {-1e8f}, {1.0f}};
  std::vector<Buffers> ranks = Inputs(x);
  float sums[3];
  for (int r = 0; r < 3; ++r) ranks[r].sum = &sums[r];
  Epilogue epilogue;
  epilogue.emit_sum = true;
  AllReduceOnHost(epilogue, 1, 1, ranks);
  for (float sum : sums) EXPECT_EQ(sum, 1.0f);
}

TEST(HostEpilogueTest, RoundsAfterTheSumAndAfterEveryAddend) {
  // In float32 these would add up; in bfloat16 each small step is lost.
  const std::vector<std::vector<float>> x = {{1.0f}, {0x1p-9f}};
  const float bias = 0x1p-9f;
  const float residual = 0x1p-8f;
  std::vector<Buffers> ranks = Inputs(x);
  float sums[2];
  for (int r = 0; r < 2; ++r) {
    ranks[r].addends[0] = &bias;
    ranks[r].addends[1] = &residual;
    ranks[r].sum = &sums[r];
  }
  Epilogue epilogue;
  epilogue.emit_sum = true;
  epilogue.num_addends = 2;
  epilogue.addends[0].per_row = false;
  AllReduceOnHost(epilogue, 1, 1, ranks);
  EXPECT_EQ(sums[0], 1.0f + 0x1p-7f);

  epilogue.sum_round = DType::kBf16;
  AllReduceOnHost(epilogue, 1, 1, ranks);
  EXPECT_EQ(sums[0], 1.0f + 0x1p-8f + 0x1p-9f);

  epilogue.addends[0].round = DType::kBf16;
  AllReduceOnHost(epilogue, 1, 1, ranks);
  EXPECT_EQ(sums[0], 1.0f + 0x1p-8f);

  epilogue.addends[1].round = DType::kBf16;
  AllReduceOnHost(epilogue, 1, 1, ranks);
  EXPECT_EQ(sums[0], 1.0f);
}

TEST(HostEpilogueTest, NormUsesTheValueBeforeTheCastOfTheSum) {
  const std::vector<std::vector<float>> x = {{1.0f, 3.0f}, {0x1p-12f, 0.0f}};
  const uint16_t gain[] = {EncodeBf16(2.0f), EncodeBf16(-1.0f)};
  std::vector<Buffers> ranks = Inputs(x);
  uint16_t sums[2][2];
  float norms[2][2];
  for (int r = 0; r < 2; ++r) {
    ranks[r].gain = gain;
    ranks[r].sum = sums[r];
    ranks[r].norm = norms[r];
  }
  Epilogue epilogue;
  epilogue.emit_sum = epilogue.emit_norm = epilogue.has_gain = true;
  epilogue.sum_dtype = epilogue.gain_dtype = DType::kBf16;
  epilogue.epsilon = 1e-5f;
  epilogue.mean_scale = 0.5f;
  AllReduceOnHost(epilogue, 1, 2, ranks);
  const double h0 = 1.0 + 0x1p-12;
  const double scale = 1 / std::sqrt((h0 * h0 + 9.0) / 2 + 1e-5);
  for (int r = 0; r < 2; ++r) {
    EXPECT_EQ(DecodeBf16(sums[r][0]), 1.0f);
    EXPECT_NEAR(norms[r][0], 2 * h0 * scale, 1e-6);
    EXPECT_NEAR(norms[r][1], -3 * scale, 1e-6);
  }
}

}  // namespace
}  // namespace oneshot
