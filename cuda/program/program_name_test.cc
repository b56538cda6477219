// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>

#include "cuda/program/epilogue_program.h"
#include "cuda/program/test_programs.h"

namespace oneshot {
namespace {

TEST(ProgramNameTest, DescribesSumsAndAddends) {
  const auto describe = [](const std::string& operands,
                           const std::string& body) {
    return Describe(WithBody(operands, body));
  };
  EXPECT_EQ(Describe(Parsed("x f32; v0 = sum; out0 v0 f32")), "none");
  EXPECT_EQ(describe("", "v1 = convert.bf16 v0"), "none");
  EXPECT_EQ(describe("in0 column f32; in1 element f32",
                     "v1 = in0; v2 = add v0 v1; v3 = in1; v4 = convert v3; "
                     "v5 = convert.bf16 v2; v6 = add.bf16 v4 v5"),
            "bias+residual");
  EXPECT_EQ(describe("in0 element f32; in1 element f32",
                     "v1 = in0; v2 = in1; v3 = add v0 v1; v4 = add v2 v3"),
            "residual+residual");
}

TEST(ProgramNameTest, Identifiers) {
  EXPECT_EQ(Identifier(Parsed("x f32; v0 = sum; out0 v0 f32")),
            "oneshot_all_reduce");
  EXPECT_EQ(Identifier(Parsed(kRmsNorm)),
            "oneshot_all_reduce_residual_rms_norm");
}

TEST(ProgramNameTest, DescribesOtherOperationsByTheirNames) {
  EXPECT_EQ(Describe(WithBody("in0 scalar f32",
                              "v1 = in0; v2 = multiply v0 v1; v3 = tanh v2; "
                              "v4 = multiply v3 v1; v5 = add v4 v1")),
            "multiply+tanh+add");
  EXPECT_EQ(Describe(WithBody("",
                              "v1 = reduce_max v0; v2 = subtract v0 v1; "
                              "v3 = exp v2; v4 = reduce_sum v3; "
                              "v5 = divide v3 v4")),
            "row_max+subtract+exp+row_sum+divide");
  EXPECT_EQ(Describe(WithBody("", "v1 = reduce_min v0")), "row_min");
  EXPECT_EQ(Describe(Parsed("x f32; v0 = sum; out0 v0 f32; out1 v0 s8")), "s8");
}

TEST(ProgramNameTest, DescribesNorms) {
  EXPECT_EQ(Describe(Parsed(kRmsNorm)), "residual+rms_norm");
  // Before and after the residual, the gain as 1 + w.
  EXPECT_EQ(Describe(WithBody(
                "in0 column f32; in1 element f32",
                "v1 = convert v0; v2 = multiply v1 v1; v3 = reduce_sum v2; "
                "v4 = rsqrt v3; v5 = multiply v1 v4; v6 = in0; "
                "v7 = constant 0x1p+0; v8 = add v6 v7; v9 = multiply v5 v8; "
                "v10 = in1; v11 = add v9 v10; v12 = constant 0x1p+1; "
                "v13 = power v11 v12; v14 = reduce_sum v13; v15 = sqrt v14; "
                "v16 = divide v11 v15; v17 = convert.bf16 v16; "
                "v18 = multiply v6 v17")),
            "rms_norm+residual+rms_norm");
  // Mean and variance one after the other, gain and offset.
  EXPECT_EQ(
      Describe(WithBody("in0 column f32; in1 column f32; in2 element f32",
                        "v1 = in2; v2 = add v0 v1; v3 = reduce_sum v2; "
                        "v4 = constant 0x1p-3; v5 = multiply v3 v4; "
                        "v6 = subtract v2 v5; v7 = multiply v6 v6; "
                        "v8 = reduce_sum v7; v9 = multiply v8 v4; "
                        "v10 = rsqrt v9; v11 = multiply v6 v10; v12 = in0; "
                        "v13 = multiply v11 v12; v14 = in1; "
                        "v15 = add v13 v14")),
      "residual+layer_norm");
  // The gain meets the scale before the value does.
  EXPECT_EQ(Describe(WithBody("in0 column f32",
                              "v1 = multiply v0 v0; v2 = reduce_sum v1; "
                              "v3 = rsqrt v2; v4 = in0; v5 = multiply v3 v4; "
                              "v6 = multiply v0 v5; v7 = multiply v6 v0")),
            "rms_norm+multiply");
  // Both in one pass, the variance as the difference of two means.
  EXPECT_EQ(Describe(WithBody("in0 column f32",
                              "v1 = in0; v2 = add v0 v1; v3 = multiply v2 v2; "
                              "v4 = reduce_sum v3; v5 = reduce_sum v2; "
                              "v6 = multiply v5 v5; v7 = subtract v4 v6; "
                              "v8 = rsqrt v7; v9 = subtract v2 v5; "
                              "v10 = multiply v9 v8; v11 = multiply v10 v1; "
                              "v12 = add v11 v1; v13 = tanh v12")),
            "bias+layer_norm+tanh");
}

}  // namespace
}  // namespace oneshot
