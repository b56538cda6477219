// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/rank_slices.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>
#include <string>

#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {
namespace {

std::unique_ptr<xla::HloModule> Parse(const std::string& entry) {
  return ParseModule(
      "HloModule m, num_partitions=4\n\nENTRY e {\n  id = u32[] "
      "partition-id()\n" +
      entry + "}\n");
}

std::optional<int64_t> Evaluate(const std::string& entry, int64_t partition) {
  const auto module = Parse(entry);
  return EvaluateIndex(module->entry_computation()->root_instruction(),
                       partition);
}

TEST(RankSlicesTest, Arithmetic) {
  EXPECT_EQ(Evaluate("ROOT r = s32[] convert(id)\n", 3), 3);
  const std::string two = "two = u32[] constant(2)\n";
  EXPECT_EQ(Evaluate(two + "ROOT r = u32[] multiply(id, two)\n", 3), 6);
  EXPECT_EQ(Evaluate(two + "ROOT r = u32[] divide(id, two)\n", 3), 1);
  EXPECT_EQ(Evaluate(two + "ROOT r = u32[] remainder(id, two)\n", 3), 1);
  EXPECT_EQ(Evaluate(two + "ROOT r = u32[] subtract(id, two)\n", 3), 1);
  EXPECT_EQ(Evaluate(two + "ROOT r = u32[] add(id, two)\n", 3), 5);
  EXPECT_EQ(Evaluate(two + "zero = u32[] constant(0)\n"
                           "ROOT r = u32[] clamp(zero, id, two)\n",
                     3),
            2);
}

TEST(RankSlicesTest, Tables) {
  const std::string table =
      "table = s32[4] constant({30, 20, 10, 0})\n"
      "row = s32[1] dynamic-slice(table, id), dynamic_slice_sizes={1}\n"
      "ROOT r = s32[] reshape(row)\n";
  EXPECT_EQ(Evaluate(table, 0), 30);
  EXPECT_EQ(Evaluate(table, 3), 0);
  EXPECT_EQ(Evaluate(table, 4), std::nullopt);
}

TEST(RankSlicesTest, NotEvaluated) {
  EXPECT_EQ(Evaluate("ROOT p = u32[] parameter(0)\n", 0), std::nullopt);
  EXPECT_EQ(Evaluate("ROOT r = u32[] replica-id()\n", 0), std::nullopt);
  const std::string two = "two = u32[] constant(2)\n";
  EXPECT_EQ(Evaluate(two + "ROOT r = u32[] subtract(id, two)\n", 1),
            std::nullopt);
  EXPECT_EQ(Evaluate("zero = u32[] constant(0)\nROOT r = u32[] divide(id, "
                     "zero)\n",
                     1),
            std::nullopt);
  // Three times 64 does not fit a signed byte.
  EXPECT_EQ(Evaluate("byte = s8[] convert(id)\nwidth = s8[] constant(64)\n"
                     "ROOT r = s8[] multiply(byte, width)\n",
                     3),
            std::nullopt);
}

bool IsSlice(const std::string& sizes, const std::string& starts,
             int64_t dimension, const PartitionGroups& groups) {
  const auto module = Parse(
      "x = f32[8,32] parameter(0)\nzero = u32[] constant(0)\n"
      "eight = u32[] constant(8)\nby_rank = u32[] multiply(id, eight)\n"
      "ROOT r = f32[" +
      sizes + "] dynamic-slice(x, " + starts + "), dynamic_slice_sizes={" +
      sizes + "}\n");
  return IsSliceByRank(module->entry_computation()->root_instruction(),
                       dimension, groups);
}

TEST(RankSlicesTest, SliceByRank) {
  const PartitionGroups all = {{0, 1, 2, 3}};
  EXPECT_TRUE(IsSlice("8,8", "zero, by_rank", 1, all));
  // What is not cut starts at 0, wherever it says.
  EXPECT_TRUE(IsSlice("8,8", "by_rank, by_rank", 1, all));
  EXPECT_FALSE(IsSlice("8,8", "zero, by_rank", 0, all));
  EXPECT_FALSE(IsSlice("8,8", "zero, zero", 1, all));
  EXPECT_FALSE(IsSlice("8,8", "zero, by_rank", 1, {{0, 1, 3, 2}}));
  EXPECT_FALSE(IsSlice("8,4", "zero, by_rank", 1, all));
  EXPECT_FALSE(IsSlice("4,8", "zero, by_rank", 1, all));
  // Half of it is nobody's in the first group.
  EXPECT_FALSE(IsSlice("8,8", "zero, by_rank", 1, {{0, 1}, {2, 3}}));
}

}  // namespace
}  // namespace oneshot
