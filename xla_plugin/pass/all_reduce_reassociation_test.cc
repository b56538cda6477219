// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/all_reduce_reassociation.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {
namespace {

// Runs the pass on an entry computation; the number of all-reduces that are
// left, or -1 if the pass failed or left something invalid.
int AllReducesAfter(absl::string_view body) {
  const std::string text = absl::StrCat(
      R"(HloModule m, num_partitions=4
  add { a = f32[] parameter(0)
        b = f32[] parameter(1)
        ROOT s = f32[] add(a, b) }
  add16 { a = bf16[] parameter(0)
          b = bf16[] parameter(1)
          ROOT s = bf16[] add(a, b) }
  add32 { a = s32[] parameter(0)
          b = s32[] parameter(1)
          ROOT s = s32[] add(a, b) }
  max { a = f32[] parameter(0)
        b = f32[] parameter(1)
        ROOT s = f32[] maximum(a, b) }
  ENTRY e {
    x = f32[4,8] parameter(0)
    y = f32[4,8] parameter(1)
    h = f32[4,8] parameter(2)
  )",
      absl::StrReplaceAll(body, {{"ALL",
                                  "replica_groups={{0,1,2,3}}, "
                                  "use_global_device_ids=true, to_apply=add"},
                                 {"PAIRS",
                                  "replica_groups={{0,1},{2,3}}, "
                                  "use_global_device_ids=true, to_apply=add"}}),
      "}");
  const auto module = ParseModule(text);
  AllReduceReassociation pass;
  const auto changed = pass.Run(module.get());
  EXPECT_TRUE(changed.ok()) << changed.status();
  const absl::Status valid = Verify(module.get());
  EXPECT_TRUE(valid.ok()) << valid;
  if (!changed.ok() || !valid.ok()) return -1;
  int count = 0;
  for (const auto* hlo : module->entry_computation()->instructions()) {
    count += hlo->opcode() == xla::HloOpcode::kAllReduce;
  }
  EXPECT_EQ(*changed, count == 1);
  return count;
}

TEST(AllReduceReassociationTest, AddedDirectly) {
  EXPECT_EQ(AllReducesAfter(R"(
    a = f32[4,8] all-reduce(x), channel_id=1, ALL
    b = f32[4,8] all-reduce(y), channel_id=2, ALL
    ROOT t = f32[4,8] add(a, b))"),
            1);
}

TEST(AllReduceReassociationTest, AddedOneAfterTheOther) {
  for (const char* tail :
       {"u = f32[4,8] add(h, a)\n ROOT t = f32[4,8] add(u, b)",
        "u = f32[4,8] add(a, h)\n ROOT t = f32[4,8] add(b, u)",
        "u = f32[4,8] add(b, h)\n ROOT t = f32[4,8] add(a, u)"}) {
    EXPECT_EQ(AllReducesAfter(absl::StrCat(R"(
      a = f32[4,8] all-reduce(x), channel_id=1, ALL
      b = f32[4,8] all-reduce(y), channel_id=2, ALL
      )",
                                           tail)),
              1)
        << tail;
  }
}

TEST(AllReduceReassociationTest, ThreeBecomeOne) {
  EXPECT_EQ(AllReducesAfter(R"(
    z = f32[4,8] tanh(h)
    a = f32[4,8] all-reduce(x), channel_id=1, ALL
    b = f32[4,8] all-reduce(y), channel_id=2, ALL
    c = f32[4,8] all-reduce(z), channel_id=3, ALL
    u = f32[4,8] add(a, b)
    ROOT t = f32[4,8] add(u, c))"),
            1);
}

TEST(AllReduceReassociationTest, OtherGroupsStay) {
  EXPECT_EQ(AllReducesAfter(R"(
    a = f32[4,8] all-reduce(x), channel_id=1, ALL
    b = f32[4,8] all-reduce(y), channel_id=2, PAIRS
    ROOT t = f32[4,8] add(a, b))"),
            2);
}

TEST(AllReduceReassociationTest, OneAfterTheOtherStays) {
  EXPECT_EQ(AllReducesAfter(R"(
    a = f32[4,8] all-reduce(x), channel_id=1, ALL
    z = f32[4,8] tanh(h)
    b = f32[4,8] all-reduce(z), channel_id=2, ALL
    m = f32[4,8] multiply(a, y)
    ROOT t = f32[4,8] add(m, b))"),
            2);
  // A sequential block: the second sum is computed from the first.
  EXPECT_EQ(AllReducesAfter(R"(
    a = f32[4,8] all-reduce(x), channel_id=1, ALL
    u = f32[4,8] add(h, a)
    z = f32[4,8] tanh(u)
    b = f32[4,8] all-reduce(z), channel_id=2, ALL
    ROOT t = f32[4,8] add(u, b))"),
            2);
}

TEST(AllReduceReassociationTest, OtherReadersStay) {
  EXPECT_EQ(AllReducesAfter(R"(
    a = f32[4,8] all-reduce(x), channel_id=1, ALL
    b = f32[4,8] all-reduce(y), channel_id=2, ALL
    u = f32[4,8] add(a, b)
    ROOT t = f32[4,8] multiply(u, a))"),
            2);
}

TEST(AllReduceReassociationTest, OtherReductionsStay) {
  EXPECT_EQ(AllReducesAfter(R"(
    a = f32[4,8] all-reduce(x), channel_id=1, replica_groups={{0,1,2,3}},
      use_global_device_ids=true, to_apply=max
    b = f32[4,8] all-reduce(y), channel_id=2, ALL
    ROOT t = f32[4,8] add(a, b))"),
            2);
}

// As XLA does it itself.
TEST(AllReduceReassociationTest, NarrowTypesAddedDirectly) {
  EXPECT_EQ(AllReducesAfter(R"(
    xn = bf16[4,8] convert(x)
    yn = bf16[4,8] convert(y)
    xt = bf16[4,8] tanh(xn)
    yt = bf16[4,8] tanh(yn)
    a = bf16[4,8] all-reduce(xt), channel_id=1, ALL16
    b = bf16[4,8] all-reduce(yt), channel_id=2, ALL16
    ROOT t = bf16[4,8] add(a, b))"),
            1);
}

TEST(AllReduceReassociationTest, NarrowTypesApartStay) {
  EXPECT_EQ(AllReducesAfter(R"(
    xn = bf16[4,8] convert(x)
    yn = bf16[4,8] convert(y)
    hn = bf16[4,8] convert(h)
    xt = bf16[4,8] tanh(xn)
    yt = bf16[4,8] tanh(yn)
    a = bf16[4,8] all-reduce(xt), channel_id=1, ALL16
    b = bf16[4,8] all-reduce(yt), channel_id=2, ALL16
    u = bf16[4,8] add(hn, a)
    ROOT t = bf16[4,8] add(u, b))"),
            2);
}

TEST(AllReduceReassociationTest, IntegersStay) {
  EXPECT_EQ(AllReducesAfter(R"(
    xn = s32[4,8] convert(x)
    yn = s32[4,8] convert(y)
    a = s32[4,8] all-reduce(xn), channel_id=1, ALL32
    b = s32[4,8] all-reduce(yn), channel_id=2, ALL32
    ROOT t = s32[4,8] add(a, b))"),
            2);
}

TEST(AllReduceReassociationTest, WidenedNarrowValuesStay) {
  EXPECT_EQ(AllReducesAfter(R"(
    xn = bf16[4,8] convert(x)
    xw = f32[4,8] convert(xn)
    a = f32[4,8] all-reduce(xw), channel_id=1, ALL
    b = f32[4,8] all-reduce(y), channel_id=2, ALL
    ROOT t = f32[4,8] add(a, b))"),
            2);
}

}  // namespace
}  // namespace oneshot
