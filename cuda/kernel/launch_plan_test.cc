// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernel/launch_plan.h"

#include <gtest/gtest.h>

#include <iterator>
#include <string>

#include "cuda/kernel/tunings.h"
#include "cuda/program/call_contract.h"

namespace oneshot {
namespace {

constexpr DeviceLimits kH100 = {132, 8};
constexpr DeviceLimits kA100 = {108, 1};

EpilogueProgram Parse(const std::string& text) {
  EpilogueProgram program;
  std::string error;
  EXPECT_TRUE(FromText(text, &program, &error)) << error;
  return program;
}

EpilogueProgram Sum(const std::string& wire) {
  return Parse("x " + wire + "; v0 = sum; out0 v0 f32");
}

EpilogueProgram Norm(const std::string& wire) {
  return Parse("x " + wire +
               "; v0 = sum; v1 = reduce_sum v0; v2 = multiply v0 v1; "
               "out0 v2 f32");
}

EpilogueProgram BiasedSum(const std::string& wire) {
  return Parse("x " + wire +
               "; in0 column f32; v0 = sum; v1 = in0; v2 = add v0 v1; "
               "out0 v2 f32");
}

TEST(LaunchPlanTest, ClusterTakesARow) {
  const auto plan = PlanLaunch(Norm("bf16"), 8, 8192, 2, kH100);
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->packets_per_row, 1024);
  EXPECT_EQ(plan->tuning, (Tuning{128, 1, 8}));
  EXPECT_EQ(plan->tiles_per_row, 8);
  EXPECT_EQ(plan->blocks, 64);
}

// Every choice of the table, for the shape that it was measured for.
TEST(LaunchPlanTest, MeasuredTunings) {
  for (const Measured& measured : kMeasured) {
    const auto plan = PlanLaunch(Norm("bf16"), measured.rows,
                                 8 * measured.packets, 2, kMeasuredOn);
    ASSERT_TRUE(plan.has_value());
    EXPECT_EQ(plan->tuning, measured.tuning)
        << measured.rows << " rows of " << measured.packets;
  }
}

TEST(LaunchPlanTest, TheNextLargerShapeThatWasMeasured) {
  const auto tuning = [](int64_t rows, int64_t packets) {
    return PlanLaunch(Norm("bf16"), rows, 8 * packets, 2, kMeasuredOn)->tuning;
  };
  for (size_t i = 0; i + 1 < std::size(kMeasured); ++i) {
    const Measured& smaller = kMeasured[i];
    const Measured& larger = kMeasured[i + 1];
    if (larger.packets != smaller.packets) {
      EXPECT_LT(smaller.packets, larger.packets);
      // More rows than any that were measured.
      EXPECT_EQ(tuning(smaller.rows + 1, smaller.packets), smaller.tuning);
      continue;
    }
    EXPECT_LT(smaller.rows, larger.rows);
    EXPECT_EQ(tuning(smaller.rows + 1, smaller.packets), larger.tuning);
    // Fills no cluster: one block, if that is small.
    EXPECT_EQ(
        tuning(larger.rows, larger.packets - 1),
        larger.packets > 512 ? larger.tuning : (Tuning{larger.packets, 1, 1}));
  }
}

// Fewer blocks, if a row fills those.
TEST(LaunchPlanTest, RowsFillTheirCluster) {
  const auto tuning = [](int64_t rows, int64_t hidden) {
    return PlanLaunch(Norm("bf16"), rows, hidden, 2, kH100)->tuning;
  };
  EXPECT_EQ(tuning(8, 5120), (Tuning{128, 1, 5}));
  EXPECT_EQ(tuning(32, 5120), (Tuning{320, 1, 2}));
  EXPECT_EQ(tuning(128, 5120), (Tuning{640, 1, 1}));
  EXPECT_EQ(tuning(1, 3584), (Tuning{64, 1, 7}));
  EXPECT_EQ(tuning(8, 12288), (Tuning{192, 1, 8}));
  // 19 warps: one block would be large, and eight are not all full.
  EXPECT_EQ(tuning(8, 4864), (Tuning{96, 1, 8}));
  // Eleven warps and a quarter.
  EXPECT_EQ(tuning(8, 2880), (Tuning{384, 1, 1}));
}

TEST(LaunchPlanTest, NoWarpsThatARowHasNothingFor) {
  for (const Measured& measured : kMeasured) {
    for (int packets = 1; packets <= measured.packets; packets += 31) {
      const auto plan =
          PlanLaunch(Norm("bf16"), measured.rows, 8 * packets, 2, kMeasuredOn);
      const Tuning& tuning = plan->tuning;
      EXPECT_LT((tuning.threads - 32) * tuning.packets * tuning.cluster,
                packets);
    }
  }
}

// Other devices.
TEST(LaunchPlanTest, NothingMeasured) {
  EXPECT_EQ(PlanLaunch(Norm("bf16"), 8, 32768, 2, {66, 8})->tuning,
            (Tuning{512, 1, 8}));
  EXPECT_EQ(PlanLaunch(Norm("bf16"), 512, 32768, 2, {66, 8})->tuning,
            (Tuning{1024, 1, 4}));
  EXPECT_EQ(PlanLaunch(Norm("bf16"), 8, 8192, 2, {66, 8})->tuning,
            (Tuning{128, 1, 8}));
  EXPECT_EQ(PlanLaunch(Norm("bf16"), 512, 8192, 2, {66, 8})->tuning,
            (Tuning{1024, 1, 1}));
}

TEST(LaunchPlanTest, WithoutClustersABlockTakesARow) {
  const auto plan = PlanLaunch(Norm("bf16"), 8, 8192, 2, kA100);
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->tuning.cluster, 1);
  EXPECT_EQ(plan->tiles_per_row, 1);
  EXPECT_EQ(plan->blocks, 8);
}

TEST(LaunchPlanTest, RowsAreJoinedWhereTheyDoNotMatter) {
  const auto sum = PlanLaunch(Sum("bf16"), 4, 1001, 2, kH100);
  ASSERT_TRUE(sum.has_value());
  EXPECT_EQ(sum->rows, 1);
  EXPECT_EQ(sum->hidden, 4004);
  const auto biased = PlanLaunch(BiasedSum("bf16"), 4, 1001, 2, kH100);
  ASSERT_TRUE(biased.has_value());
  EXPECT_EQ(biased->rows, 4);
  EXPECT_EQ(biased->hidden, 1001);
  EXPECT_EQ(biased->packets_per_row, 126);
}

TEST(LaunchPlanTest, MessageLimit) {
  for (int ranks = kMinRanks; ranks <= kMaxRanks; ++ranks) {
    const int64_t most = MaxMessageBytes(ranks) / 2;
    EXPECT_TRUE(PlanLaunch(Sum("bf16"), 1, most, ranks, kH100).has_value());
    EXPECT_FALSE(
        PlanLaunch(Sum("bf16"), 1, most + 8, ranks, kH100).has_value());
    EXPECT_FALSE(PlanLaunch(Sum("bf16"), most, 8, ranks, kH100).has_value());
  }
  // Padding counts: a row of one element fills a packet.
  EXPECT_FALSE(
      PlanLaunch(BiasedSum("bf16"), MaxMessageBytes(2) / 16 + 1, 1, 2, kH100)
          .has_value());
}

TEST(LaunchPlanTest, RowLimitOfAReduction) {
  const int64_t most = kMaxRowBytes / 2;
  EXPECT_TRUE(PlanLaunch(Norm("bf16"), 1, most, 2, kH100).has_value());
  EXPECT_TRUE(PlanLaunch(Norm("bf16"), 1, most, 2, kA100).has_value());
  EXPECT_FALSE(PlanLaunch(Norm("bf16"), 1, most + 8, 2, kH100).has_value());
}

TEST(LaunchPlanTest, NothingToDo) {
  const auto plan = PlanLaunch(Norm("bf16"), 0, 8192, 2, kH100);
  ASSERT_TRUE(plan.has_value());
  EXPECT_EQ(plan->blocks, 0);
}

// Whatever the shape: the tiles cover it, blocks fit the device, and clusters
// are never split.
TEST(LaunchPlanTest, PlansAreSound) {
  for (const DeviceLimits& device :
       {kH100, kA100, DeviceLimits{16, 8}, DeviceLimits{1, 1}}) {
    for (const char* wire : {"f32", "bf16", "f16"}) {
      for (const int64_t hidden :
           {1, 7, 64, 96, 1000, 1003, 2048, 4096, 5120, 8192, 16384, 32768}) {
        for (const int64_t rows : {1, 2, 3, 8, 33, 64, 128, 512}) {
          for (const bool reduces : {false, true}) {
            const EpilogueProgram program =
                reduces ? Norm(wire) : BiasedSum(wire);
            const auto plan = PlanLaunch(program, rows, hidden, 2, device);
            if (!plan) continue;
            const Tuning& tuning = plan->tuning;
            EXPECT_GE(
                int64_t{plan->tiles_per_row} * tuning.threads * tuning.packets,
                plan->packets_per_row);
            EXPECT_EQ(tuning.threads % 32, 0);
            EXPECT_LE(tuning.threads, kMaxThreads);
            EXPECT_LE(tuning.packets, kMaxPacketsPerThread);
            EXPECT_LE(tuning.cluster, device.max_cluster);
            EXPECT_GE(plan->blocks, 1);
            EXPECT_EQ(plan->blocks % tuning.cluster, 0);
            EXPECT_EQ(plan->tiles_per_row % tuning.cluster, 0);
            if (reduces) {
              EXPECT_EQ(plan->tiles_per_row, tuning.cluster);
            }
            EXPECT_LE(plan->blocks, plan->rows * plan->tiles_per_row);
          }
        }
      }
    }
  }
}

TEST(LaunchPlanTest, LargeMessagesBetweenManyRanksTakeTwoShots) {
  const EpilogueProgram sum = Parse("x bf16; v0 = sum.bf16; out0 v0 f32");
  const auto two_shot = [&](int64_t rows, int ranks) {
    return PlanLaunch(sum, rows, 8192, ranks, kH100)->tuning.two_shot;
  };
  EXPECT_FALSE(two_shot(512, 2));  // would send as much
  EXPECT_FALSE(two_shot(8, 4));
  EXPECT_TRUE(two_shot(64, 4));
  EXPECT_FALSE(two_shot(1, 8));
  EXPECT_TRUE(two_shot(8, 8));
  // All ranks have to agree, whatever their devices.
  EXPECT_EQ(PlanLaunch(sum, 8, 8192, 8, kA100)->tuning.two_shot,
            two_shot(8, 8));
}

TEST(LaunchPlanTest, TwoShotsNeedSumsOfTheTypeThatIsSent) {
  const auto two_shot = [](const char* program) {
    return PlanLaunch(Parse(program), 64, 8192, 8, kH100)->tuning.two_shot;
  };
  EXPECT_TRUE(two_shot("x bf16; v0 = sum.bf16; out0 v0 f32"));
  EXPECT_TRUE(two_shot("x f32; v0 = sum; out0 v0 f32"));
  EXPECT_FALSE(two_shot("x bf16; v0 = sum; out0 v0 f32"));
  const EpilogueProgram wide = Parse("x bf16; v0 = sum; out0 v0 f32");
  EXPECT_FALSE(
      PlanLaunch(wide, 64, 8192, 8, kH100, {128, 1, 1, true}).has_value());
}

TEST(LaunchPlanTest, TuningsThatDoNotFitAreRefused) {
  const auto plan = [](const Tuning& tuning, const DeviceLimits& device) {
    return PlanLaunch(Norm("bf16"), 8, 8192, 2, device, tuning);
  };
  EXPECT_TRUE(plan({128, 1, 8}, kH100).has_value());
  EXPECT_FALSE(plan({128, 1, 8}, kA100).has_value());
  EXPECT_FALSE(plan({128, 1, 4}, kH100).has_value());  // half of a row
  EXPECT_FALSE(plan({100, 2, 8}, kH100).has_value());
  EXPECT_FALSE(plan({2048, 1, 1}, kH100).has_value());
}

}  // namespace
}  // namespace oneshot
