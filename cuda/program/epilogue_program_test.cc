// SPDX-License-Identifier: Apache-2.0
#include "cuda/program/epilogue_program.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>

namespace oneshot {
namespace {

constexpr char kRmsNorm[] =
    "x bf16; in0 element bf16; in1 column f32 slice 16 at i0; v0 = sum.bf16; "
    "v1 = in0; v2 = add.bf16 v0 v1; v3 = multiply v2 v2; v4 = reduce_sum v3; "
    "v5 = constant 0x1p-13; v6 = multiply v4 v5; v7 = constant 0x1.0c6f7ap-20; "
    "v8 = add v6 v7; v9 = rsqrt v8; v10 = multiply v2 v9; "
    "v11 = convert.bf16 v10; v12 = in1; v13 = multiply v11 v12; "
    "out0 v2 bf16; out1 v13 bf16";

constexpr char kEveryKindOfStatement[] =
    "x f16; in0 element f32; in1 row bf16; in2 scalar f16 slice 3 at i1; "
    "in3 column f32 slice 2 at i0; v0 = sum.f16; v1 = in0; v2 = in1; v3 = in2; "
    "v4 = in3; v5 = clamp v3 v0 v4; v6 = lt v5 v1; v7 = not v6; "
    "v8 = and v6 v7; v9 = select.bf16 v8 v5 v2; v10 = constant.bf16 -inf; "
    "v11 = convert v6; v12 = maximum v9 v10; v13 = add v12 v11; "
    "v14 = reduce_max v13; v15 = atan2 v13 v14; out0 v15 f32; out1 v14 bf16; "
    "out2 v2 f16";

EpilogueProgram Parsed(const std::string& text) {
  EpilogueProgram program;
  std::string error;
  EXPECT_TRUE(FromText(text, &program, &error)) << text << "\n" << error;
  return program;
}

std::string ErrorOf(const std::string& text) {
  EpilogueProgram program;
  std::string error;
  EXPECT_FALSE(FromText(text, &program, &error)) << text;
  return error;
}

// A program of one result: the last of these instructions after the sum.
EpilogueProgram WithBody(const std::string& operands, const std::string& body) {
  const std::string before = operands.empty() ? "" : operands + "; ";
  const size_t last = body.rfind("; v");
  const size_t begin = last == std::string::npos ? 0 : last + 2;
  const std::string value = body.substr(begin, body.find(' ', begin) - begin);
  return Parsed("x f32; " + before + "v0 = sum; " + body + "; out0 " + value +
                " f32");
}

TEST(EpilogueProgramTest, TextRoundTrips) {
  for (const char* text :
       {"x f32; v0 = sum; out0 v0 f32", kRmsNorm, kEveryKindOfStatement,
        "x f32; v0 = sum; out0 v0 f8e4m3fn; out1 v0 f8e5m2; out2 v0 s8"}) {
    const EpilogueProgram program = Parsed(text);
    EXPECT_EQ(ToText(program), text);
    EXPECT_TRUE(Parsed(ToText(program)) == program);
  }
}

TEST(EpilogueProgramTest, TextHasTheMeaningOfTheHeader) {
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

TEST(EpilogueProgramTest, ConstantsRoundTripExactly) {
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

TEST(EpilogueProgramTest, ConstantsMayBeSpelledInAnyWayButNotRounded) {
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

TEST(EpilogueProgramTest, RefusesWhatIsNotAProgram) {
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

TEST(EpilogueProgramTest, EnforcesTheLimits) {
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

TEST(EpilogueProgramTest, ValidatesWhatTheTextCannotSay) {
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

TEST(EpilogueProgramTest, SurvivesMutations) {
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

TEST(EpilogueProgramTest, DescribesSumsAndAddends) {
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

TEST(EpilogueProgramTest, Identifiers) {
  EXPECT_EQ(Identifier(Parsed("x f32; v0 = sum; out0 v0 f32")),
            "oneshot_all_reduce");
  EXPECT_EQ(Identifier(Parsed(kRmsNorm)),
            "oneshot_all_reduce_residual_rms_norm");
}

TEST(EpilogueProgramTest, DescribesOtherOperationsByTheirNames) {
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

TEST(EpilogueProgramTest, DescribesNorms) {
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
