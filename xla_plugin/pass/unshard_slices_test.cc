// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/unshard_slices.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "absl/strings/str_replace.h"
#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {
namespace {

// RMSNorm as the partitioner leaves it where gain and residual are as said.
constexpr char kNorm[] = R"(
HloModule m, num_partitions=4

add_bf16 {
  a = bf16[] parameter(0)
  b = bf16[] parameter(1)
  ROOT c = bf16[] add(a, b)
}

add {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT c = f32[] add(a, b)
}

ENTRY e {
  x = bf16[4,256] parameter(0)
  residual = bf16[4,256] parameter(1), sharding={replicated}
  gain = bf16[64] parameter(2), sharding={devices=[4]<=[4]}
  sum = bf16[4,256] all-reduce(x), channel_id=1, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=add_bf16
  h = bf16[4,256] add(sum, residual)
  zero = s32[] constant(0)
  id = u32[] partition-id()
  rank = s32[] convert(id)
  width = s32[] constant(64)
  start = s32[] multiply(rank, width)
  slice = bf16[4,64] dynamic-slice(h, zero, start), dynamic_slice_sizes={4,64}
  wide = f32[4,64] convert(slice)
  square = f32[4,64] multiply(wide, wide)
  init = f32[] constant(0)
  partial = f32[4] reduce(square, init), dimensions={1}, to_apply=add
  squares = f32[4] all-reduce(partial), channel_id=2, replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=add
  scale = f32[4] rsqrt(squares)
  scales = f32[4,64] broadcast(scale), dimensions={0}
  scaled = f32[4,64] multiply(wide, scales)
  normed = bf16[4,64] convert(scaled)
  gains = bf16[4,64] broadcast(gain), dimensions={1}
  y = bf16[4,64] multiply(normed, gains)
  gathered = bf16[4,256] all-gather(y), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={1}, use_global_device_ids=true
  ROOT out = (bf16[4,64], bf16[4,256]) tuple(slice, gathered)
}
)";

using Replacements =
    std::initializer_list<std::pair<absl::string_view, absl::string_view>>;

struct Result {
  bool changed = false;
  std::map<std::string, int> count;  // by opcode
  std::string text;
};

Result Unshard(
    absl::string_view text, Replacements replacements = {},
    const MayAbsorb& may_absorb = [](const xla::HloInstruction*) {
      return true;
    }) {
  for (const auto& [from, unused] : replacements) {
    EXPECT_NE(text.find(from), absl::string_view::npos) << from;
  }
  const auto module = ParseModule(absl::StrReplaceAll(text, replacements));
  UnshardSlices pass(/*has_layouts=*/false, may_absorb);
  const auto changed = pass.Run(module.get());
  EXPECT_TRUE(changed.ok()) << changed.status();
  EXPECT_TRUE(Verify(module.get()).ok());
  Result result = {*changed, {}, module->ToString()};
  for (const auto* computation : module->computations()) {
    for (const auto* hlo : computation->instructions()) {
      ++result.count[std::string(xla::HloOpcodeString(hlo->opcode()))];
    }
  }
  return result;
}

#define EXPECT_COLLECTIVES(result, reduces, gathers)                 \
  do {                                                               \
    EXPECT_EQ((result).count["all-reduce"], reduces) << result.text; \
    EXPECT_EQ((result).count["all-gather"], gathers) << result.text; \
  } while (false)

TEST(UnshardSlicesTest, NormOfShardedGain) {
  Result result = Unshard(kNorm);
  EXPECT_TRUE(result.changed);
  // Of the gain, which waits for nothing.
  EXPECT_COLLECTIVES(result, 1, 1);
  EXPECT_NE(result.text.find("bf16[256]{0} all-gather("), std::string::npos);
  // The output of the program.
  EXPECT_EQ(result.count["dynamic-slice"], 1);
}

// The index of a rank may be spelled in any way.
TEST(UnshardSlicesTest, IndexFromTable) {
  Result result = Unshard(
      kNorm,
      {{"rank = s32[] convert(id)",
        "table = s32[4] constant({0, 1, 2, 3})\n"
        "row = s32[1] dynamic-slice(table, id), dynamic_slice_sizes={1}\n"
        "rank = s32[] reshape(row)"}});
  EXPECT_COLLECTIVES(result, 1, 1);
}

// Ranks in another order than their ids: as slices and gather agree.
TEST(UnshardSlicesTest, OrderOfRanks) {
  const char kRank[] = "rank = s32[] convert(id)";
  const char kSwapped[] =
      "table = s32[4] constant({1, 0, 3, 2})\n"
      "row = s32[1] dynamic-slice(table, id), dynamic_slice_sizes={1}\n"
      "rank = s32[] reshape(row)";
  Result result = Unshard(kNorm, {{kRank, kSwapped}});
  EXPECT_FALSE(result.changed);
  result = Unshard(kNorm, {{kRank, kSwapped},
                           {"channel_id=3, replica_groups={{0,1,2,3}}",
                            "channel_id=3, replica_groups={{1,0,3,2}}"}});
  EXPECT_COLLECTIVES(result, 1, 1);
  EXPECT_NE(result.text.find("replica_groups={{1,0,3,2}}"), std::string::npos);
}

TEST(UnshardSlicesTest, ResidualByColumns) {
  const Replacements by_columns = {
      {"residual = bf16[4,256] parameter(1), sharding={replicated}",
       "residual = bf16[4,64] parameter(1), sharding={devices=[1,4]<=[4]}"},
      {"  h = bf16[4,256] add(sum, residual)\n", ""},
      {"slice = bf16[4,64] dynamic-slice(h,",
       "part = bf16[4,64] dynamic-slice(sum,"},
      {"wide = f32[4,64] convert(slice)",
       "slice = bf16[4,64] add(part, residual)\n"
       "wide = f32[4,64] convert(slice)"}};
  Result result = Unshard(kNorm, by_columns);
  EXPECT_TRUE(result.changed);
  // Of the gain and of the residual, once.
  EXPECT_COLLECTIVES(result, 1, 2);
  // What the program returns is a slice of the whole sum.
  EXPECT_EQ(result.count["add"], 3) << result.text;  // and two reducers
  EXPECT_EQ(result.count["dynamic-slice"], 1) << result.text;
}

TEST(UnshardSlicesTest, TwoGroups) {
  const Replacements two = {
      {"replica_groups={{0,1,2,3}}", "replica_groups={{0,1},{2,3}}"},
      {"rank = s32[] convert(id)",
       "whole = s32[] convert(id)\ntwo = s32[] constant(2)\n"
       "rank = s32[] remainder(whole, two)"},
      {"constant(64)", "constant(128)"},
      {"[4,64]", "[4,128]"},
      {"{4,64}", "{4,128}"},
      {"bf16[64] parameter(2), sharding={devices=[4]<=[4]}",
       "bf16[128] parameter(2)"}};
  Result result = Unshard(kNorm, two);
  EXPECT_COLLECTIVES(result, 1, 1);
}

// What does not prove that all ranks have the same, stays.
TEST(UnshardSlicesTest, NotReplicated) {
  for (const char* sharding :
       {"", ", sharding={manual}", ", sharding={devices=[4,1]<=[4]}"}) {
    EXPECT_FALSE(Unshard(kNorm, {{"parameter(1), sharding={replicated}",
                                  std::string("parameter(1)") + sharding}})
                     .changed);
  }
}

TEST(UnshardSlicesTest, OtherSlices) {
  // All ranks the same, one too far, and every second only.
  for (const char* start :
       {"start = s32[] multiply(zero, width)",
        "one = s32[] constant(1)\nnext = s32[] add(rank, one)\n"
        "start = s32[] multiply(next, width)",
        "half = s32[] constant(32)\nstart = s32[] multiply(rank, half)"}) {
    EXPECT_FALSE(
        Unshard(kNorm, {{"start = s32[] multiply(rank, width)", start}})
            .changed)
        << start;
  }
}

TEST(UnshardSlicesTest, OtherGroups) {
  // The sum is over pairs: h differs between them.
  EXPECT_FALSE(Unshard(kNorm, {{"channel_id=1, replica_groups={{0,1,2,3}}",
                                "channel_id=1, replica_groups={{0,1},{2,3}}"}})
                   .changed);
}

TEST(UnshardSlicesTest, NarrowSums) {
  // Each rank rounds its partial sum to bfloat16, which a sum of all does not.
  Result result = Unshard(
      kNorm, {{"partial = f32[4] reduce(square, init)",
               "narrow = bf16[4,64] convert(square)\n"
               "start_bf16 = bf16[] constant(0)\n"
               "partial = bf16[4] reduce(narrow, start_bf16)"},
              {"dimensions={1}, to_apply=add\n",
               "dimensions={1}, to_apply=add_bf16\n"},
              {"squares = f32[4] all-reduce(partial), channel_id=2, "
               "replica_groups={{0,1,2,3}}, use_global_device_ids=true, "
               "to_apply=add",
               "sums = bf16[4] all-reduce(partial), channel_id=2, "
               "replica_groups={{0,1,2,3}}, use_global_device_ids=true, "
               "to_apply=add_bf16\nsquares = f32[4] convert(sums)"}});
  // The gather is another matter.
  EXPECT_COLLECTIVES(result, 2, 1);
}

TEST(UnshardSlicesTest, SumsThatStartElsewhere) {
  // Every rank would have added one.
  Result result = Unshard(
      kNorm, {{"init = f32[] constant(0)", "init = f32[] constant(1)"}});
  EXPECT_COLLECTIVES(result, 2, 1);
}

TEST(UnshardSlicesTest, Maximum) {
  Result result = Unshard(
      kNorm, {{"ROOT c = f32[] add(a, b)", "ROOT c = f32[] maximum(a, b)"},
              {"init = f32[] constant(0)", "init = f32[] constant(-inf)"}});
  EXPECT_COLLECTIVES(result, 1, 1);
}

// The local maximum rounds where the one over ranks does not.
TEST(UnshardSlicesTest, ReductionsOfDifferentTypes) {
  for (const char* init : {"0", "-inf"}) {
    const std::string kind = init[0] == '0' ? "add" : "maximum";
    Result result = Unshard(
        kNorm,
        {{"ROOT c = f32[] add(a, b)", "ROOT c = f32[] " + kind + "(a, b)"},
         {"ROOT c = bf16[] add(a, b)", "ROOT c = bf16[] " + kind + "(a, b)"},
         {"init = f32[] constant(0)",
          "init = f32[] constant(" + std::string(init) + ")"},
         {"reduce(square, init), dimensions={1}, to_apply=add",
          "reduce(square, init), dimensions={1}, to_apply=add_bf16"}});
    // The gather is another matter.
    EXPECT_COLLECTIVES(result, 2, 1);
  }
}

TEST(UnshardSlicesTest, TooLarge) {
  EXPECT_FALSE(Unshard(kNorm, {{"[4,", "[40960,"},
                               {"{4,64}", "{40960,64}"},
                               {"f32[4]", "f32[40960]"}})
                   .changed);
}

TEST(UnshardSlicesTest, Annotated) {
  Result result =
      Unshard(kNorm, {{"dimensions={1}, use_global_device_ids=true\n",
                       "dimensions={1}, use_global_device_ids=true, "
                       "frontend_attributes={_scheduling_group_id=\"1\"}\n"}});
  // The sum of squares goes all the same.
  EXPECT_COLLECTIVES(result, 1, 1);
  EXPECT_NE(result.text.find("_scheduling_group_id"), std::string::npos);
}

TEST(UnshardSlicesTest, NotUnderstood) {
  EXPECT_FALSE(Unshard(kNorm, {}, [](const xla::HloInstruction* hlo) {
                 return hlo->opcode() != xla::HloOpcode::kConvert;
               }).changed);
}

// A gain that depends on another collective would be gathered late.
TEST(UnshardSlicesTest, GainThatWaits) {
  Result result = Unshard(
      kNorm, {{"gain = bf16[64] parameter(2), sharding={devices=[4]<=[4]}",
               "raw = bf16[64] parameter(2), sharding={devices=[4]<=[4]}\n"
               "gain = bf16[64] all-reduce(raw), channel_id=9, "
               "replica_groups={{0},{1},{2},{3}}, use_global_device_ids=true, "
               "to_apply=add_bf16"}});
  EXPECT_COLLECTIVES(result, 2, 1);
  EXPECT_NE(result.text.find("bf16[4,256]{1,0} all-gather("),
            std::string::npos);
}

}  // namespace
}  // namespace oneshot
