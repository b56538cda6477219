// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/hlo_values.h"

#include <gtest/gtest.h>

#include <memory>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {
namespace {

class HloValuesTest : public ::testing::Test {
 protected:
  // The root of an entry whose parameter is `x`.
  xla::HloInstruction* Root(absl::string_view entry) {
    module_ = ParseModule(absl::StrCat(
        "HloModule m\n",
        "add { a = f32[] parameter(0)\nb = f32[] parameter(1)\n",
        "ROOT s = f32[] add(a, b) }\n", "ENTRY e {\n", entry, "\n}"));
    return module_->entry_computation()->root_instruction();
  }

  std::unique_ptr<xla::HloModule> module_;
};

TEST_F(HloValuesTest, ReshapesAreSpelledTwoWays) {
  EXPECT_TRUE(IsRowMajorReshape(
      Root("x = f32[4,8]{1,0} parameter(0)\nROOT y = f32[32]{0} bitcast(x)")));
  EXPECT_TRUE(IsRowMajorReshape(
      Root("x = f32[4,8] parameter(0)\nROOT y = f32[32] reshape(x)")));
  // Other elements, and the same in another order.
  EXPECT_FALSE(IsReshape(
      Root("x = f32[4,8]{1,0} parameter(0)\nROOT y = s32[32]{0} bitcast(x)")));
  EXPECT_FALSE(IsReshape(Root(
      "x = f32[4,8]{1,0} parameter(0)\nROOT y = f32[8,4]{0,1} bitcast(x)")));
  // The elements are in order, but not in memory.
  const auto* column_major = Root(
      "x = f32[4,8]{0,1} parameter(0)\nROOT y = f32[2,16]{1,0} reshape(x)");
  EXPECT_TRUE(IsReshape(column_major));
  EXPECT_FALSE(IsRowMajorReshape(column_major));
}

TEST_F(HloValuesTest, BroadcastsRepeatRowsColumnsOrNothing) {
  const auto kind = [&](absl::string_view from, absl::string_view to,
                        absl::string_view dimensions) {
    return ClassifyBroadcast(
        Root(absl::StrCat("x = f32[", from, "] parameter(0)\nROOT y = f32[", to,
                          "] broadcast(x), dimensions={", dimensions, "}")));
  };
  EXPECT_EQ(kind("", "4,8", ""), BroadcastKind::kRows);
  EXPECT_EQ(kind("4", "4,8", "0"), BroadcastKind::kRows);
  EXPECT_EQ(kind("8", "4,8", "1"), BroadcastKind::kColumn);
  EXPECT_EQ(kind("4,8", "4,1,8", "0,2"), BroadcastKind::kShape);
  EXPECT_EQ(kind("4", "2,4,8", "1"), BroadcastKind::kNone);
  EXPECT_EQ(ClassifyBroadcast(Root("ROOT x = f32[4] parameter(0)")),
            BroadcastKind::kNone);
}

TEST_F(HloValuesTest, ConstantsOfOneValue) {
  EXPECT_EQ(ConstantValue(Root("c = bf16[] constant(1.5)\n"
                               "w = f32[] convert(c)\n"
                               "ROOT y = f32[4] broadcast(w), dimensions={}")),
            1.5f);
  EXPECT_EQ(ConstantValue(Root("ROOT c = f32[2] constant({2, 2})")), 2.0f);
  EXPECT_EQ(ConstantValue(Root("ROOT c = f32[2] constant({2, 3})")),
            std::nullopt);
  EXPECT_EQ(ConstantValue(Root("ROOT c = s32[] constant(2)")), std::nullopt);
  // It rounds, so it is another value.
  EXPECT_EQ(ConstantValue(
                Root("c = f32[] constant(0.1)\nROOT n = bf16[] convert(c)")),
            std::nullopt);
}

TEST_F(HloValuesTest, RowsThatAReduceTakes) {
  const auto row = [&](absl::string_view shape, absl::string_view result,
                       absl::string_view dimensions) {
    return ReducedRow(Root(absl::StrCat(
        "x = f32[", shape, "] parameter(0)\n",
        "zero = f32[] constant(0)\nROOT r = f32[", result,
        "] reduce(x, zero), dimensions={", dimensions, "}, to_apply=add")));
  };
  EXPECT_EQ(row("4,8", "4", "1"), 8);
  EXPECT_EQ(row("4,2,8", "4", "1,2"), 16);
  EXPECT_EQ(row("4,8,1", "4,1", "1"), 8);
  EXPECT_EQ(row("4,8", "8", "0"), std::nullopt);
  EXPECT_EQ(row("4,1", "4", "1"), std::nullopt);
}

}  // namespace
}  // namespace oneshot
