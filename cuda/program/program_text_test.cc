// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>

#include "cuda/program/epilogue_program.h"
#include "cuda/program/test_programs.h"

namespace oneshot {
namespace {

TEST(ProgramTextTest, TextRoundTrips) {
  for (const char* text :
       {"x f32; v0 = sum; out0 v0 f32", kRmsNorm, kEveryKindOfStatement,
        "x f32; v0 = sum; out0 v0 f8e4m3fn; out1 v0 f8e5m2; out2 v0 s8"}) {
    const EpilogueProgram program = Parsed(text);
    EXPECT_EQ(ToText(program), text);
    EXPECT_TRUE(Parsed(ToText(program)) == program);
  }
}

TEST(ProgramTextTest, TextHasTheMeaningOfTheHeader) {
  const EpilogueProgram program = Parsed(kEveryKindOfStatement);
  EXPECT_EQ(program.x, DType::kF16);
  EXPECT_EQ(program.indices, 2);
  ASSERT_EQ(program.operands.size(), 4u);
  EXPECT_TRUE((program.operands[1] ==
               Operand{Extent::kRow, DType::kBf16, /*slices=*/0, -1}));
  EXPECT_TRUE((program.operands[2] ==
               Operand{Extent::kScalar, DType::kF16, /*slices=*/3, 1}));
  ASSERT_EQ(program.instructions.size(), 16u);
  EXPECT_EQ(program.instructions[3].op, Op::kOperand);
  EXPECT_EQ(program.instructions[3].operand, 2);
  const Instruction& select = program.instructions[9];
  EXPECT_EQ(select.op, Op::kSelect);
  EXPECT_EQ(select.round, DType::kBf16);
  EXPECT_EQ(select.inputs[0], 8);
  EXPECT_EQ(select.inputs[1], 5);
  EXPECT_EQ(select.inputs[2], 2);
  EXPECT_EQ(program.instructions[10].constant,
            -std::numeric_limits<float>::infinity());
  ASSERT_EQ(program.results.size(), 3u);
  EXPECT_TRUE((program.results[1] == Result{14, DType::kBf16}));
}

std::string ConstantText(float value) {
  EpilogueProgram program = Parsed("x f32; v0 = sum; out0 v0 f32");
  program.instructions.emplace_back();
  program.instructions.back().constant = value;
  const std::string text = ToText(program);
  const EpilogueProgram again = Parsed(text);
  const float got = again.instructions[1].constant;
  if (std::isnan(value)) {
    EXPECT_TRUE(std::isnan(got)) << text;
  } else {
    EXPECT_EQ(Bits(got), Bits(value)) << text;
  }
  EXPECT_TRUE(again == program) << text;
  const size_t begin = text.find("constant ") + 9;
  return text.substr(begin, text.find(';', begin) - begin);
}

TEST(ProgramTextTest, ConstantsRoundTripExactly) {
  EXPECT_EQ(ConstantText(0.0f), "0x0p+0");
  EXPECT_EQ(ConstantText(-0.0f), "-0x0p+0");
  EXPECT_EQ(ConstantText(1.0f), "0x1p+0");
  EXPECT_EQ(ConstantText(-1.5f), "-0x1.8p+0");
  EXPECT_EQ(ConstantText(0x1p-13f), "0x1p-13");
  EXPECT_EQ(ConstantText(1e-6f), "0x1.0c6f7ap-20");
  EXPECT_EQ(ConstantText(std::numeric_limits<float>::max()), "0x1.fffffep+127");
  EXPECT_EQ(ConstantText(std::numeric_limits<float>::denorm_min()), "0x1p-149");
  EXPECT_EQ(ConstantText(std::numeric_limits<float>::infinity()), "inf");
  EXPECT_EQ(ConstantText(-std::numeric_limits<float>::infinity()), "-inf");
  EXPECT_EQ(ConstantText(std::numeric_limits<float>::quiet_NaN()), "nan");
  std::mt19937 random(0);
  for (int i = 0; i < 20000; ++i) ConstantText(FromBits(random()));
}

TEST(ProgramTextTest, ConstantsMayBeSpelledInAnyWayButNotRounded) {
  const auto program = [](const std::string& constant) {
    return "x f32; v0 = sum; v1 = constant " + constant + "; out0 v0 f32";
  };
  const auto value = [&](const std::string& constant) {
    return Parsed(program(constant)).instructions[1].constant;
  };
  EXPECT_EQ(value("0x1.0000000000000p-13"), 0x1p-13f);
  EXPECT_EQ(value("0x3p0"), 3.0f);
  EXPECT_EQ(value("0xffffffp-1"), 0xffffffp-1f);
  EXPECT_EQ(value("-0x.8p1"), -1.0f);
  for (const char* constant :
       {"1", "1.5", "0x", "0xp1", "0x1", "0x1p", "0x1p+-1", "0x1p01",
        "0x1.8.p1", "0x1.0000001p+0", "0x1p+128", "0x1p-150", "0x1p-501",
        "-nan", "+inf", "0x1p99999999999999999999", "0x11111111111111111p0",
        "0X1P0"}) {
    EXPECT_NE(ErrorOf(program(constant)).find("hexadecimal"), std::string::npos)
        << constant;
  }
}

TEST(ProgramTextTest, SurvivesMutations) {
  std::mt19937 random(1);
  const std::string alphabet = " ;=.-+0123456789abcdefinoprtuvxyz\n\xff";
  const std::string seeds[] = {kRmsNorm, kEveryKindOfStatement};
  int valid = 0;
  for (int round = 0; round < 200000; ++round) {
    std::string text = seeds[round % 2];
    for (int edits = 1 + random() % 3; edits > 0; --edits) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = alphabet[random() % alphabet.size()];
          break;
        case 1:
          text.erase(at, 1 + random() % 8);
          break;
        case 2:
          text.insert(at, 1, alphabet[random() % alphabet.size()]);
          break;
        case 3:
          text.insert(at, text.substr(random() % text.size(), random() % 20));
          break;
      }
      if (text.empty()) break;
    }
    EpilogueProgram program;
    std::string error;
    if (!FromText(text, &program, &error)) {
      ASSERT_FALSE(error.empty()) << text;
      continue;
    }
    ++valid;
    ASSERT_EQ(Validate(program), "") << text;
    EpilogueProgram again;
    ASSERT_TRUE(FromText(ToText(program), &again, &error)) << text;
    ASSERT_TRUE(again == program) << text;
    ASSERT_FALSE(Describe(program).empty()) << text;
  }
  EXPECT_GT(valid, 1000);
}

}  // namespace
}  // namespace oneshot
