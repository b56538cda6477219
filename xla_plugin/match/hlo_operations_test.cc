// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/hlo_operations.h"

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

class HloOperationsTest : public ::testing::Test {
 protected:
  xla::HloInstruction* Root(absl::string_view entry) {
    module_ = ParseModule(absl::StrCat(R"(HloModule m
      add { a = f32[] parameter(0)
            b = f32[] parameter(1)
            ROOT s = f32[] add(a, b) }
      max { a = f32[] parameter(0)
            b = f32[] parameter(1)
            ROOT s = f32[] maximum(a, b) }
      add_bf16 { a = bf16[] parameter(0)
                 b = bf16[] parameter(1)
                 ROOT s = bf16[] add(a, b) }
      ENTRY e {
        x = f32[4,8] parameter(0)
        n = bf16[4,8] parameter(1)
        i = s32[4,8] parameter(2)
        p = pred[4,8] parameter(3)
)",
                                       entry, "\n}"));
    return module_->entry_computation()->root_instruction();
  }

  std::unique_ptr<xla::HloModule> module_;
};

TEST_F(HloOperationsTest, OfFloatsAndPredicates) {
  EXPECT_EQ(ElementwiseOperation(Root("ROOT y = f32[4,8] tanh(x)")), Op::kTanh);
  EXPECT_EQ(ElementwiseOperation(Root("ROOT y = bf16[4,8] multiply(n, n)")),
            Op::kMultiply);
  EXPECT_EQ(ElementwiseOperation(
                Root("ROOT y = pred[4,8] compare(x, x), direction=LT")),
            Op::kLt);
  EXPECT_EQ(ElementwiseOperation(Root("ROOT y = pred[4,8] not(p)")), Op::kNot);
  EXPECT_EQ(ElementwiseOperation(Root("ROOT y = s32[4,8] add(i, i)")),
            std::nullopt);
  EXPECT_EQ(
      ElementwiseOperation(Root(
          "ROOT y = pred[4,8] compare(x, x), direction=LT, type=TOTALORDER")),
      std::nullopt);
}

TEST_F(HloOperationsTest, ReductionsStartFromTheirNeutralElement) {
  const auto reduction = [&](absl::string_view init,
                             absl::string_view reducer) {
    return ReductionOperation(
        Root(absl::StrCat("c = f32[] constant(", init,
                          ")\nROOT y = f32[4] reduce(x, c), dimensions={1}, "
                          "to_apply=",
                          reducer)));
  };
  EXPECT_EQ(reduction("0", "add"), Op::kReduceSum);
  EXPECT_EQ(reduction("-inf", "max"), Op::kReduceMax);
  EXPECT_EQ(reduction("1", "add"), std::nullopt);
  EXPECT_EQ(reduction("0", "max"), std::nullopt);
  // In bf16, where to round is up to XLA.
  EXPECT_EQ(ReductionOperation(
                Root("c = bf16[] constant(0)\nROOT y = bf16[4] reduce(n, c), "
                     "dimensions={1}, to_apply=add_bf16")),
            std::nullopt);
}

TEST_F(HloOperationsTest, ElementwiseFunctions) {
  EXPECT_TRUE(IsElementwiseFunction(Root("ROOT y = s32[4,8] add(i, i)")));
  EXPECT_TRUE(IsElementwiseFunction(
      Root("c = f32[] constant(1)\nROOT y = f32[4,8] clamp(c, x, c)")));
  EXPECT_TRUE(IsElementwiseFunction(Root("ROOT y = bf16[4,8] convert(x)")));
  // Not a function of its operands, of none, and of elements elsewhere.
  EXPECT_FALSE(IsElementwiseFunction(
      Root("a = f32[] constant(0)\nb = f32[] constant(1)\n"
           "ROOT y = f32[4,8] rng(a, b), distribution=rng_uniform")));
  EXPECT_FALSE(IsElementwiseFunction(Root("ROOT y = u32[] partition-id()")));
  EXPECT_FALSE(IsElementwiseFunction(Root("ROOT y = f32[32] reshape(x)")));
}

}  // namespace
}  // namespace oneshot
