// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch_plan.h"

#include <gtest/gtest.h>

#include <tuple>

#include "cuda/limits.h"

namespace oneshot {
namespace {

constexpr int kH100 = 132;

Epilogue Sum(DType wire) {
  Epilogue epilogue;
  epilogue.x_dtype = wire;
  epilogue.emit_sum = true;
  return epilogue;
}

Epilogue Norm(DType wire) {
  Epilogue epilogue = Sum(wire);
  epilogue.emit_norm = true;
  return epilogue;
}

Epilogue BiasedSum(DType wire) {
  Epilogue epilogue = Sum(wire);
  epilogue.num_addends = 1;
  epilogue.addends[0].per_row = false;
  return epilogue;
}

TEST(LaunchPlanTest, DecodeStepOfOneRowPerBlock) {
  const auto plan = PlanLaunch(Norm(DType::kBf16), 8, 8192, kH100);
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->blocks, 8);
  EXPECT_EQ(plan->threads, 1024);
  EXPECT_EQ(plan->packets_per_thread, 1);
  EXPECT_EQ(plan->packets_per_row, 1024);
}

TEST(LaunchPlanTest, PartitionOfARowDependsOnItsLengthAlone) {
  const auto one = PlanLaunch(Norm(DType::kBf16), 1, 5120, kH100);
  const auto many = PlanLaunch(Norm(DType::kBf16), 100, 5120, 20);
  ASSERT_TRUE(one.has_value() && many.has_value());
  EXPECT_EQ(one->threads, many->threads);
  EXPECT_EQ(one->packets_per_thread, many->packets_per_thread);
  EXPECT_EQ(many->blocks, 10);
}

TEST(LaunchPlanTest, RowsAreJoinedWhereTheyDoNotMatter) {
  const auto sum = PlanLaunch(Sum(DType::kBf16), 4, 1001, kH100);
  ASSERT_TRUE(sum.has_value());
  EXPECT_EQ(sum->rows, 1);
  EXPECT_EQ(sum->hidden, 4004);
  const auto biased = PlanLaunch(BiasedSum(DType::kBf16), 4, 1001, kH100);
  ASSERT_TRUE(biased.has_value());
  EXPECT_EQ(biased->rows, 4);
  EXPECT_EQ(biased->hidden, 1001);
}

TEST(LaunchPlanTest, NothingToDoTakesNoBlocks) {
  const auto plan = PlanLaunch(Norm(DType::kF32), 0, 64, kH100);
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->blocks, 0);
}

TEST(LaunchPlanTest, LimitsOfTheMessage) {
  const int64_t elements = kMaxMessageBytes / 2;
  EXPECT_TRUE(PlanLaunch(Sum(DType::kBf16), 1, elements, kH100).has_value());
  EXPECT_FALSE(
      PlanLaunch(Sum(DType::kBf16), 1, elements + 1, kH100).has_value());
  // Rows of one element take a packet each.
  const int64_t rows = kMaxMessageBytes / kPacketBytes;
  EXPECT_TRUE(PlanLaunch(BiasedSum(DType::kF32), rows, 1, kH100).has_value());
  EXPECT_FALSE(
      PlanLaunch(BiasedSum(DType::kF32), rows + 1, 1, kH100).has_value());
}

TEST(LaunchPlanTest, LimitsOfANormalisedRow) {
  EXPECT_TRUE(
      PlanLaunch(Norm(DType::kBf16), 1, kMaxRowBytes / 2, kH100).has_value());
  EXPECT_FALSE(PlanLaunch(Norm(DType::kBf16), 1, kMaxRowBytes / 2 + 1, kH100)
                   .has_value());
}

class EveryShape
    : public testing::TestWithParam<std::tuple<DType, int, int, int>> {};

TEST_P(EveryShape, IsCoveredByTilesAndLegal) {
  const auto [wire, rows, hidden, multiprocessors] = GetParam();
  for (const Epilogue& epilogue : {Sum(wire), BiasedSum(wire), Norm(wire)}) {
    const auto plan = PlanLaunch(epilogue, rows, hidden, multiprocessors);
    if (!plan) {
      EXPECT_GT(rows * PaddedRowBytes(int64_t{hidden} * ByteWidth(wire)),
                std::min(kMaxMessageBytes, kMaxRowBytes));
      continue;
    }
    EXPECT_EQ(int64_t{plan->rows} * plan->hidden, int64_t{rows} * hidden);
    EXPECT_EQ(int64_t{plan->packets_per_row} * kPacketBytes,
              PaddedRowBytes(int64_t{plan->hidden} * ByteWidth(wire)));
    EXPECT_LE(int64_t{plan->rows} * plan->packets_per_row * kPacketBytes,
              kMaxMessageBytes);
    EXPECT_EQ(plan->threads % 32, 0);
    EXPECT_GE(plan->threads, 32);
    EXPECT_LE(plan->threads, kMaxThreads);
    const int tile = plan->threads * plan->packets_per_thread;
    EXPECT_GE(plan->tiles_per_row * tile, plan->packets_per_row);
    EXPECT_LT((plan->tiles_per_row - 1) * tile, plan->packets_per_row);
    EXPECT_GE(plan->blocks, 1);
    EXPECT_LE(plan->blocks, plan->rows * plan->tiles_per_row);
    EXPECT_LE(plan->blocks, std::max(1, multiprocessors / 2));
    if (epilogue.emit_norm) {
      EXPECT_EQ(plan->tiles_per_row, 1);
      EXPECT_EQ(plan->rows, rows);
    } else {
      EXPECT_EQ(plan->packets_per_thread, 1);
    }
    const int p = plan->packets_per_thread;
    EXPECT_TRUE(p == 1 || p == 2 || p == 4) << p;
  }
}

INSTANTIATE_TEST_SUITE_P(
    LaunchPlanTest, EveryShape,
    testing::Combine(testing::Values(DType::kF32, DType::kBf16, DType::kF16),
                     testing::Values(1, 2, 7, 8, 33, 64, 128),
                     testing::Values(1, 7, 64, 96, 1000, 2048, 4096, 5120, 8191,
                                     8192, 16384, 32768),
                     testing::Values(1, 2, 16, 108, 132)));

}  // namespace
}  // namespace oneshot
