// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/all_reduce_sums.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <variant>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const MayAbsorb kAll = [](const xla::HloInstruction*) { return true; };

class AllReduceSumsTest : public ::testing::Test {
 protected:
  // The sums of the instruction `ar` of a module of four partitions.
  std::variant<AllReduceSums, Decline> Sums(
      absl::string_view entry, const MayAbsorb& may_absorb = kAll,
      absl::string_view counts = "num_partitions=4") {
    module_ = ParseModule(absl::StrCat("HloModule m, ", counts, R"(
      add { a = f32[] parameter(0)
            b = f32[] parameter(1)
            ROOT s = f32[] add(a, b) }
      ENTRY e {
        x = f32[4,8] parameter(0)
        y = f32[2] parameter(1)
)",
                                       entry, "}"));
    for (xla::HloInstruction* hlo :
         module_->entry_computation()->instructions()) {
      if (hlo->name() == "ar") return SumsOf(hlo, may_absorb);
    }
    return Decline{"there is no instruction ar"};
  }

  static std::string Reason(const std::variant<AllReduceSums, Decline>& sums) {
    const auto* decline = std::get_if<Decline>(&sums);
    return decline == nullptr ? "" : decline->reason;
  }

  std::unique_ptr<xla::HloModule> module_;
};

constexpr absl::string_view kOne =
    "ROOT ar = f32[4,8] all-reduce(x), channel_id=1, "
    "replica_groups={{2,0},{1,3}}, use_global_device_ids=true, to_apply=add";

TEST_F(AllReduceSumsTest, OneSumInTheOrderOfItsGroups) {
  const auto sums = Sums(kOne);
  ASSERT_EQ(Reason(sums), "");
  const auto& found = std::get<AllReduceSums>(sums);
  ASSERT_EQ(found.sums.size(), 1);
  EXPECT_EQ(found.sums[0]->name(), "ar");
  EXPECT_EQ(found.ranks(), 2);
  EXPECT_THAT(found.groups, ElementsAre(ElementsAre(2, 0), ElementsAre(1, 3)));
}

TEST_F(AllReduceSumsTest, SeveralInTheOrderOfOperands) {
  const auto sums = Sums(R"(
    ar = (f32[4,8], f32[2]) all-reduce(x, y), channel_id=1,
      replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=add
    second = f32[2] get-tuple-element(ar), index=1
    first = f32[4,8] get-tuple-element(ar), index=0
    ROOT t = (f32[2], f32[4,8]) tuple(second, first))");
  ASSERT_EQ(Reason(sums), "");
  const auto& found = std::get<AllReduceSums>(sums);
  ASSERT_EQ(found.sums.size(), 2);
  EXPECT_EQ(found.sums[0]->name(), "first");
  EXPECT_EQ(found.sums[1]->name(), "second");
}

TEST_F(AllReduceSumsTest, WhatReadsOnlySomeOfThem) {
  EXPECT_THAT(Reason(Sums(R"(
    ar = (f32[4,8], f32[2]) all-reduce(x, y), channel_id=1,
      replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=add
    ROOT first = f32[4,8] get-tuple-element(ar), index=0)")),
              HasSubstr("not read one by one"));
}

TEST_F(AllReduceSumsTest, AsynchronousEndsWithItsSum) {
  const auto sums = Sums(R"(
    ar = f32[4,8] all-reduce-start(x), channel_id=1,
      replica_groups={{0,1,2,3}}, use_global_device_ids=true, to_apply=add
    ROOT done = f32[4,8] all-reduce-done(ar))");
  ASSERT_EQ(Reason(sums), "");
  EXPECT_EQ(std::get<AllReduceSums>(sums).sums[0]->name(), "done");
}

TEST_F(AllReduceSumsTest, ReduceScatter) {
  EXPECT_THAT(Reason(Sums(R"(
    ROOT ar = f32[2,8] reduce-scatter(x), channel_id=1, dimensions={0},
      replica_groups={{0,1},{2,3}}, use_global_device_ids=true, to_apply=add)")),
              HasSubstr("reduce-scatter"));
}

TEST_F(AllReduceSumsTest, GroupsOfDifferentSize) {
  EXPECT_THAT(Reason(Sums(R"(
    ROOT ar = f32[4,8] all-reduce(x), channel_id=1,
      replica_groups={{0,1,2},{3}}, use_global_device_ids=true, to_apply=add)")),
              HasSubstr("differ in size"));
}

TEST_F(AllReduceSumsTest, GroupsOverlap) {
  EXPECT_THAT(Reason(Sums(R"(
    ROOT ar = f32[4,8] all-reduce(x), channel_id=1,
      replica_groups={{0,1},{1,3}}, use_global_device_ids=true, to_apply=add)")),
              HasSubstr("overlap"));
}

// Replicas or partitions: how many there are, the module alone does not say.
TEST_F(AllReduceSumsTest, GroupsThatNeedADeviceAssignment) {
  EXPECT_THAT(
      Reason(Sums("ROOT ar = f32[4,8] all-reduce(x), replica_groups={}, "
                  "to_apply=add",
                  kAll, "replica_count=4")),
      HasSubstr("need a device assignment"));
}

TEST_F(AllReduceSumsTest, WhatIsNotUnderstood) {
  for (const absl::string_view name : {"ar", "s"}) {
    EXPECT_THAT(Reason(Sums(kOne,
                            [&](const xla::HloInstruction* hlo) {
                              return hlo->name() != name;
                            })),
                HasSubstr("unknown proto fields"))
        << name;
  }
}

}  // namespace
}  // namespace oneshot
