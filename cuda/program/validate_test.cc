// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <string>

#include "cuda/program/epilogue_program.h"
#include "cuda/program/test_programs.h"

namespace oneshot {
namespace {

TEST(ValidateTest, RefusesWhatIsNotAProgram) {
  const auto expect = [](const std::string& text, const std::string& part) {
    const std::string error = ErrorOf(text);
    EXPECT_NE(error.find(part), std::string::npos) << text << "\n" << error;
  };
  // A statement that does not parse.
  expect("", "expected 'x' first");
  expect("v0 = sum; out0 v0 f32", "expected 'x' first");
  expect("x f64; v0 = sum; out0 v0 f32", "'x f64'");
  expect("x f32;v0 = sum; out0 v0 f32", "expected 'x f32'");
  expect("x f32; v0 = sum; out0 v0 f32; ", "expected in0, v1 or out1");
  expect("x f32; v1 = sum; out0 v1 f32", "expected in0, v0 or out0");
  expect("x f32; v00 = sum; out0 v0 f32", "expected in0, v0 or out0");
  expect("x f32; v0 = sum; in0 element f32; v1 = in0; out0 v1 f32",
         "operands before instructions");
  expect("x f32; v0 = sum; out0 v0 f32; v1 = abs v0", "before results");
  expect("x f32; in0 line f32; v0 = sum; out0 v0 f32", "expected scalar, row");
  expect("x f32; in0 row s32; v0 = sum; out0 v0 f32", "expected f32, bf16");
  expect("x f32; in0 row f32 slice 2; v0 = sum; out0 v0 f32",
         "expected an extent");
  for (const char* slice :
       {"slice 0 at i0", "slice -1 at i0", "slice 2 at i4", "slice 2 at v0",
        "slice 9223372036854775808 at i0", "part 2 at i0", "slice 2 of i0"}) {
    expect(std::string("x f32; in0 row f32 ") + slice +
               "; v0 = sum; v1 = in0; v2 = add v0 v1; out0 v2 f32",
           "expected 'slice N at iK'");
  }
  expect("x f32; v0 = sum; v1 abs v0; out0 v0 f32", "expected an operation");
  expect("x f32; v0 = sum; v1 = sort v0; out0 v0 f32", "operation 'sort'");
  expect("x f32; v0 = sum; v1 =  v0; out0 v0 f32", "unknown operation ''");
  expect("x f32; v0 = sum.f32; out0 v0 f32", "expected the suffix");
  expect("x f32; v0 = sum; v1 = abs; out0 v0 f32", "expected 1 inputs");
  expect("x f32; v0 = sum; v1 = abs v0 v0; out0 v0 f32", "expected 1 inputs");
  expect("x f32; v0 = sum; v1 = abs v1; out0 v0 f32", "expected earlier");
  expect("x f32; v0 = sum; out0 v1 f32", "expected a value and a type");
  expect("x f32; v0 = sum; out0 v0", "expected a value and a type");
  // Statements that make no valid program.
  expect("x f32", "no instructions");
  expect("x f32; v0 = sum", "no results");
  expect("x f32; v0 = constant 0x1p+0; out0 v0 f32", "v0: the sum must be");
  expect("x f32; v0 = sum; v1 = sum; out0 v0 f32", "v1: the sum must be");
  expect("x f32; v0 = sum; v1 = in0; out0 v0 f32", "v1: no operand 0");
  expect("x f32; in0 row f32; v0 = sum; out0 v0 f32", "in0 is not used");
  expect(
      "x f32; in0 row f32 slice 2 at i1; v0 = sum; v1 = in0; v2 = add v0 v1; "
      "out0 v2 f32",
      "i0 is not used");
  expect("x f32; v0 = sum; v1 = not v0; out0 v0 f32",
         "v1: v0 is not a predicate");
  expect("x f32; v0 = sum; v1 = eq v0 v0; v2 = add v0 v1; out0 v2 f32",
         "v2: v1 is a predicate");
  expect("x f32; v0 = sum; v1 = select v0 v0 v0; out0 v1 f32",
         "v1: v0 is not a predicate");
  expect("x f32; v0 = sum; v1 = eq v0 v0; v2 = select v1 v1 v0; out0 v2 f32",
         "v2: v1 is a predicate");
  expect("x f32; v0 = sum; v1 = eq.bf16 v0 v0; out0 v0 f32", "not rounded");
  expect("x f32; v0 = sum; v1 = reduce_sum v0; v2 = reduce_sum v1; out0 v2 f32",
         "v2: a reduction needs an element value, v1 is a row value");
  expect("x f32; v0 = sum; v1 = eq v0 v0; v2 = reduce_max v1; out0 v2 f32",
         "v2: v1 is a predicate");
  expect("x f32; v0 = sum; v1 = eq v0 v0; out0 v1 f32", "out0: v1 is a pred");
  expect("x f32; v0 = sum; v1 = constant 0x1p+0; out0 v1 f32",
         "out0: v1 is a scalar value");
  // One byte is enough for a result only.
  expect("x s8; v0 = sum; out0 v0 f32", "s8 is for results only");
  expect("x f32; v0 = sum; v1 = convert.f8e5m2 v0; out0 v1 f32",
         "v1: f8e5m2 is for results only");
  expect(
      "x f32; in0 row f8e4m3fn; v0 = sum; v1 = in0; v2 = add v0 v1; "
      "out0 v2 f32",
      "in0: f8e4m3fn is for results only");
  expect("x f32; in0 column f32; v0 = sum; v1 = in0; out0 v1 f32",
         "out0: v1 is a column value");
}

TEST(ValidateTest, EnforcesTheLimits) {
  const auto text = [](int operands, int instructions, int results,
                       int stages) {
    std::string text = "x f32";
    for (int i = 0; i < operands; ++i) {
      text += "; in" + std::to_string(i) + " element f32";
    }
    text += "; v0 = sum";
    int next = 1;
    for (int i = 0; i < operands; ++i) {
      text += "; v" + std::to_string(next++) + " = in" + std::to_string(i);
    }
    std::string value = "v0";
    for (int i = 0; i < stages; ++i) {
      const std::string sum = "v" + std::to_string(next++);
      text += "; " + sum + " = reduce_sum " + value;
      const std::string difference = "v" + std::to_string(next++);
      text += "; " + difference + " = subtract v0 " + sum;
      value = difference;
    }
    while (next < instructions) {
      text += "; v" + std::to_string(next++) + " = constant 0x1p+0";
    }
    for (int i = 0; i < results; ++i) {
      text += "; out" + std::to_string(i) + " v0 f32";
    }
    return text;
  };
  Parsed(text(kMaxOperands, kMaxInstructions, kMaxResults, kMaxStages));
  EXPECT_EQ(ErrorOf(text(0, 97, 1, 0)), "97 instructions, the limit is 96");
  EXPECT_EQ(ErrorOf(text(0, 1, 5, 0)), "5 results, the limit is 4");
  EXPECT_EQ(ErrorOf(text(0, 1, 1, 5)),
            "5 row reductions depend on each other, the limit is 4");
  EXPECT_EQ(ErrorOf(text(9, 1, 1, 0)), "9 operands, the limit is 8");
}

TEST(ValidateTest, ValidatesWhatTheTextCannotSay) {
  const EpilogueProgram valid = Parsed(kRmsNorm);
  EXPECT_EQ(Validate(valid), "");
  const auto broken = [&](void (*change)(EpilogueProgram&)) {
    EpilogueProgram program = valid;
    change(program);
    EXPECT_FALSE(program == valid);
    return !Validate(program).empty();
  };
  EXPECT_TRUE(broken([](auto& p) { p.indices = 2; }));
  EXPECT_TRUE(broken([](auto& p) { p.indices = 5; }));
  EXPECT_TRUE(broken([](auto& p) { p.indices = 0; }));
  EXPECT_TRUE(broken([](auto& p) { p.operands[0].index = 0; }));
  EXPECT_TRUE(broken([](auto& p) { p.operands[1].slices = -1; }));
  EXPECT_TRUE(broken([](auto& p) { p.operands[1].index = -1; }));
  EXPECT_TRUE(broken([](auto& p) { p.instructions[1].operand = -1; }));
  EXPECT_TRUE(broken([](auto& p) { p.instructions[2].operand = 0; }));
  EXPECT_TRUE(broken([](auto& p) { p.instructions[2].inputs[2] = 0; }));
  EXPECT_TRUE(broken([](auto& p) { p.instructions[2].inputs[1] = -1; }));
  EXPECT_TRUE(broken([](auto& p) { p.instructions[2].inputs[1] = 2; }));
  EXPECT_TRUE(broken([](auto& p) { p.instructions[2].constant = 1; }));
  EXPECT_TRUE(broken([](auto& p) { p.instructions[1].round = DType::kF16; }));
  EXPECT_TRUE(broken([](auto& p) { p.results[0].value = -1; }));
  EXPECT_TRUE(broken([](auto& p) { p.results[0].value = 14; }));
}

}  // namespace
}  // namespace oneshot
