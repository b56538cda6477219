// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/replication.h"

#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "xla/hlo/ir/hlo_sharding.h"
#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {
namespace {

const PartitionGroups kAll = {{0, 1, 2, 3}};
const PartitionGroups kRows = {{0, 1}, {2, 3}};
const PartitionGroups kColumns = {{0, 2}, {1, 3}};

std::unique_ptr<xla::HloModule> Parse(const std::string& entry,
                                      const std::string& before = "") {
  return ParseModule(R"(HloModule m, num_partitions=4

add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b)
}
)" + before + "\nENTRY e {\n" +
                     entry + "}\n");
}

// Of the entry's root.
bool IsReplicated(const std::string& entry, const PartitionGroups& groups,
                  const std::string& before = "") {
  const auto module = Parse(entry, before);
  return ReplicationAnalysis(*module, groups)
      .IsReplicated(module->entry_computation()->root_instruction());
}

TEST(ReplicationTest, Parameters) {
  const auto parameter = [](const std::string& sharding) {
    return "ROOT p = f32[8,8] parameter(0)" + sharding + "\n";
  };
  EXPECT_TRUE(IsReplicated(parameter(", sharding={replicated}"), kAll));
  EXPECT_FALSE(IsReplicated(parameter(""), kAll));
  EXPECT_FALSE(IsReplicated(parameter(", sharding={maximal device=1}"), kAll));
  EXPECT_FALSE(IsReplicated(parameter(", sharding={manual}"), kAll));
  const std::string by_rows =
      parameter(", sharding={devices=[2,1,2]<=[4] last_tile_dim_replicate}");
  EXPECT_TRUE(IsReplicated(by_rows, kRows));
  EXPECT_FALSE(IsReplicated(by_rows, kColumns));
  EXPECT_FALSE(IsReplicated(by_rows, kAll));
}

// The first dimension by the first axis of a mesh of two.
TEST(ReplicationTest, NamedSharding) {
  const auto module = Parse("ROOT p = f32[8,8] parameter(0)\n");
  xla::HloInstruction* parameter =
      module->entry_computation()->root_instruction();
  const xla::Mesh mesh({2, 2}, {"x", "y"});
  using Dimension = xla::NamedSharding::DimensionSharding;
  parameter->set_sharding(xla::HloSharding(xla::NamedSharding(
      mesh, {Dimension({xla::AxisRef(0)}, /*is_closed=*/true),
             Dimension({}, /*is_closed=*/true)})));
  EXPECT_TRUE(ReplicationAnalysis(*module, kRows).IsReplicated(parameter));
  EXPECT_FALSE(ReplicationAnalysis(*module, kColumns).IsReplicated(parameter));
  EXPECT_FALSE(ReplicationAnalysis(*module, kAll).IsReplicated(parameter));
}

TEST(ReplicationTest, Collectives) {
  const auto sum = [](const std::string& groups) {
    return "p = f32[8] parameter(0)\nROOT r = f32[8] all-reduce(p), "
           "channel_id=1, use_global_device_ids=true, to_apply=add, "
           "replica_groups=" +
           groups + "\n";
  };
  EXPECT_TRUE(IsReplicated(sum("{{0,1,2,3}}"), kAll));
  EXPECT_TRUE(IsReplicated(sum("{{0,1,2,3}}"), kRows));
  EXPECT_TRUE(IsReplicated(sum("{{1,0},{2,3}}"), kRows));
  EXPECT_FALSE(IsReplicated(sum("{{0,1},{2,3}}"), kAll));
  EXPECT_FALSE(IsReplicated(sum("{{0,2},{1,3}}"), kRows));
  const std::string p = "p = f32[8] parameter(0)\n";
  EXPECT_TRUE(IsReplicated(
      p + "ROOT r = f32[32] all-gather(p), channel_id=1, dimensions={0}, "
          "use_global_device_ids=true, replica_groups={{0,1,2,3}}\n",
      kAll));
  // Every rank has another part.
  EXPECT_FALSE(IsReplicated(
      p + "ROOT r = f32[2] reduce-scatter(p), channel_id=1, dimensions={0}, "
          "use_global_device_ids=true, replica_groups={{0,1,2,3}}, "
          "to_apply=add\n",
      kAll));
  // Without a channel, replicas sum, not partitions.
  EXPECT_FALSE(IsReplicated(
      p + "ROOT r = f32[8] all-reduce(p), replica_groups={}, to_apply=add\n",
      kAll));
}

TEST(ReplicationTest, Operations) {
  const std::string p =
      "p = f32[8,8] parameter(0), sharding={replicated}\n"
      "q = f32[8,8] parameter(1), sharding={devices=[1,4]<=[4]}\n"
      "i = u32[] partition-id()\nz = u32[] constant(0)\n";
  EXPECT_TRUE(IsReplicated(p + "ROOT r = f32[8,8] dot(p, p), "
                               "lhs_contracting_dims={1}, "
                               "rhs_contracting_dims={0}\n",
                           kAll));
  EXPECT_FALSE(IsReplicated(p + "ROOT r = f32[8,8] add(p, q)\n", kAll));
  EXPECT_TRUE(IsReplicated(p + "ROOT r = f32[8,2] dynamic-slice(p, z, z), "
                               "dynamic_slice_sizes={8,2}\n",
                           kAll));
  EXPECT_FALSE(IsReplicated(p + "ROOT r = f32[8,2] dynamic-slice(p, z, i), "
                                "dynamic_slice_sizes={8,2}\n",
                            kAll));
  EXPECT_FALSE(IsReplicated(
      p + "ROOT r = f32[8,8] custom-call(p), custom_call_target=\"x\"\n",
      kAll));
  EXPECT_FALSE(IsReplicated(p + "a = f32[] constant(0)\nb = f32[] constant(1)\n"
                                "ROOT r = f32[8] rng(a, b), "
                                "distribution=rng_uniform\n",
                            kAll));
}

TEST(ReplicationTest, Tuples) {
  const std::string t =
      "p = f32[8] parameter(0), sharding={replicated}\n"
      "q = f32[8] parameter(1)\nt = (f32[8], f32[8]) tuple(p, q)\n";
  EXPECT_TRUE(IsReplicated(
      t + "ROOT r = f32[8] get-tuple-element(t), index=0\n", kAll));
  EXPECT_FALSE(IsReplicated(
      t + "ROOT r = f32[8] get-tuple-element(t), index=1\n", kAll));
}

constexpr char kLoop[] = R"(
condition {
  s = (s32[], f32[8], f32[8], f32[8]) parameter(0)
  i = s32[] get-tuple-element(s), index=0
  n = s32[] constant(3)
  ROOT less = pred[] compare(i, n), direction=LT
}
body {
  s = (s32[], f32[8], f32[8], f32[8]) parameter(0)
  i = s32[] get-tuple-element(s), index=0
  a = f32[8] get-tuple-element(s), index=1
  b = f32[8] get-tuple-element(s), index=2
  c = f32[8] get-tuple-element(s), index=3
  one = s32[] constant(1)
  next = s32[] add(i, one)
  twice = f32[8] add(a, a)
  ROOT t = (s32[], f32[8], f32[8], f32[8]) tuple(next, twice, c, b)
}
)";

std::string Loop(const std::string& counter, int element) {
  return counter +
         "p = f32[8] parameter(0), sharding={replicated}\n"
         "q = f32[8] parameter(1)\n"
         "t = (s32[], f32[8], f32[8], f32[8]) tuple(i, p, p, q)\n"
         "w = (s32[], f32[8], f32[8], f32[8]) while(t), condition=condition, "
         "body=body\nROOT r = f32[8] get-tuple-element(w), index=" +
         std::to_string(element) + "\n";
}

TEST(ReplicationTest, Loops) {
  const std::string zero = "i = s32[] constant(0)\n";
  EXPECT_TRUE(IsReplicated(Loop(zero, 1), kAll, kLoop));
  // The loop swaps it with one that is not.
  EXPECT_FALSE(IsReplicated(Loop(zero, 2), kAll, kLoop));
  EXPECT_FALSE(IsReplicated(Loop(zero, 3), kAll, kLoop));
  // Ranks make other numbers of rounds.
  const std::string id = "d = u32[] partition-id()\ni = s32[] convert(d)\n";
  EXPECT_FALSE(IsReplicated(Loop(id, 1), kAll, kLoop));
}

TEST(ReplicationTest, Groups) {
  const auto groups = [](const std::string& attributes) {
    const auto module = Parse(
        "p = f32[8] parameter(0)\nROOT r = f32[8] "
        "all-reduce(p), to_apply=add, " +
        attributes + "\n");
    return GroupsOfPartitions(module->entry_computation()->root_instruction());
  };
  const std::string global = "channel_id=1, use_global_device_ids=true, ";
  EXPECT_EQ(groups(global + "replica_groups={{0,1},{3,2}}"),
            (PartitionGroups{{0, 1}, {3, 2}}));
  EXPECT_EQ(groups(global + "replica_groups=[2,2]<=[4]"),
            (PartitionGroups{{0, 1}, {2, 3}}));
  // Somebody is left out.
  EXPECT_EQ(groups(global + "replica_groups={{0,1}}"), std::nullopt);
  EXPECT_EQ(groups(global + "replica_groups={{0,1},{2}}"), std::nullopt);
  EXPECT_EQ(groups("replica_groups={{0}}"), std::nullopt);
}

}  // namespace
}  // namespace oneshot
