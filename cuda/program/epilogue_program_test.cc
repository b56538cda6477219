// SPDX-License-Identifier: Apache-2.0
#include "cuda/program/epilogue_program.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "cuda/program/test_programs.h"

namespace oneshot {
namespace {

TEST(EpilogueProgramTest, EveryOperationHasANameAndAnArity) {
  for (int i = 0; i <= static_cast<int>(Op::kReduceSum); ++i) {
    const Op op = static_cast<Op>(i);
    EXPECT_EQ(std::string(Name(op)).empty(), op == Op::kOperand);
    EXPECT_LE(Arity(op), 3);
    EXPECT_EQ(IsReduction(op), std::string(Name(op)).rfind("reduce_", 0) == 0);
  }
  EXPECT_EQ(Arity(Op::kSum), 0);
  EXPECT_EQ(Arity(Op::kTanh), 1);
  EXPECT_EQ(Arity(Op::kXor), 2);
  EXPECT_EQ(Arity(Op::kClamp), 3);
  EXPECT_STREQ(Name(Op::kRoundNearestAfz), "round_nearest_afz");
}

TEST(EpilogueProgramTest, AnalyzesExtentsPredicatesAndStages) {
  const EpilogueProgram program = Parsed(
      "x f32; in0 column f32; in1 row f32; v0 = sum; v1 = in0; v2 = in1; "
      "v3 = add v1 v2; v4 = constant 0x1p+0; v5 = add v2 v4; v6 = gt v0 v4; "
      "v7 = reduce_sum v0; v8 = subtract v0 v7; v9 = reduce_max v8; "
      "v10 = reduce_min v3; v11 = add v9 v10; v12 = select v6 v8 v11; "
      "out0 v12 f32");
  const Analysis analysis = Analyze(program);
  const auto e = Extent::kElement, r = Extent::kRow, c = Extent::kColumn,
             s = Extent::kScalar;
  EXPECT_EQ(analysis.extents,
            (std::vector<Extent>{e, c, r, e, s, r, e, r, e, r, r, r, e}));
  EXPECT_EQ(analysis.predicates,
            (std::vector<bool>{0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}));
  EXPECT_EQ(analysis.stages,
            (std::vector<int>{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 2, 2}));
  EXPECT_EQ(analysis.num_stages, 3);
  EXPECT_TRUE(analysis.has_reduction);
  EXPECT_TRUE(analysis.needs_rows);
}

TEST(EpilogueProgramTest, RowsMatterForReductionsRowsAndColumns) {
  const auto analyze = [](const std::string& operands,
                          const std::string& body) {
    return Analyze(WithBody(operands, body));
  };
  const Analysis plain = analyze("in0 element f32; in1 scalar f32",
                                 "v1 = in0; v2 = in1; v3 = add v0 v1; "
                                 "v4 = multiply v3 v2");
  EXPECT_FALSE(plain.needs_rows);
  EXPECT_FALSE(plain.has_reduction);
  EXPECT_EQ(plain.num_stages, 1);
  EXPECT_TRUE(analyze("in0 column f32", "v1 = in0; v2 = add v0 v1").needs_rows);
  EXPECT_TRUE(analyze("in0 row f32", "v1 = in0; v2 = add v0 v1").needs_rows);
  const Analysis reduced = analyze("", "v1 = reduce_sum v0");
  EXPECT_TRUE(reduced.needs_rows);
  EXPECT_TRUE(reduced.has_reduction);
  EXPECT_EQ(reduced.num_stages, 2);
}

TEST(EpilogueProgramTest, EqualityIsThatOfTheText) {
  const auto constant = [](float value) {
    EpilogueProgram program = Parsed("x f32; v0 = sum; out0 v0 f32");
    program.instructions.emplace_back();
    program.instructions.back().constant = value;
    return program;
  };
  EXPECT_FALSE(constant(0.0f) == constant(-0.0f));
  EXPECT_TRUE(constant(FromBits(0x7FC00000)) == constant(FromBits(0xFFC00001)));
  EXPECT_FALSE(Parsed("x f32; v0 = sum; out0 v0 f32") ==
               Parsed("x bf16; v0 = sum; out0 v0 f32"));
  EXPECT_FALSE(Parsed("x f32; v0 = sum; out0 v0 f32") ==
               Parsed("x f32; v0 = sum.f16; out0 v0 f32"));
  EXPECT_FALSE(Parsed("x f32; v0 = sum; out0 v0 f32") ==
               Parsed("x f32; v0 = sum; out0 v0 f16"));
}

}  // namespace
}  // namespace oneshot
