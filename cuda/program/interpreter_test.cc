// SPDX-License-Identifier: Apache-2.0
//
// What the interpreter does with ranks, rows and memory. The single operations
// are compared with NumPy's in tests/host_handler_test.py.
#include "cuda/program/interpreter.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace oneshot {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

using Values = std::vector<float>;

EpilogueProgram Parsed(const std::string& text) {
  EpilogueProgram program;
  std::string error;
  EXPECT_TRUE(FromText(text, &program, &error)) << error;
  return program;
}

// A program whose operands and results are float32. `ranks` have x, operands
// and indices set; returns the results by rank and number.
std::vector<std::vector<Values>> ResultsOf(const std::string& text,
                                           int64_t rows, int64_t hidden,
                                           std::vector<Buffers> ranks) {
  const EpilogueProgram program = Parsed(text);
  const Analysis analysis = Analyze(program);
  std::vector<std::vector<Values>> results(ranks.size());
  for (size_t r = 0; r < ranks.size(); ++r) {
    for (const Result& result : program.results) {
      const bool by_row = analysis.extents[result.value] == Extent::kRow;
      results[r].emplace_back(by_row ? rows : rows * hidden, -1234.5f);
    }
    for (size_t i = 0; i < program.results.size(); ++i) {
      ranks[r].results[i] = results[r][i].data();
    }
  }
  AllReduceOnHost(program, rows, hidden, ranks);
  return results;
}

std::vector<Buffers> Inputs(const std::vector<Values>& x) {
  std::vector<Buffers> ranks(x.size());
  for (size_t r = 0; r < x.size(); ++r) ranks[r].x = x[r].data();
  return ranks;
}

TEST(HostEpilogueTest, SumKeepsSpecialValues) {
  const std::vector<Values> x = {
      {-0.0f, 0.0f, kInfinity, kInfinity, kNan, 1e-45f},
      {-0.0f, -0.0f, 1.0f, -kInfinity, 1.0f, 1e-45f}};
  const auto results =
      ResultsOf("x f32; v0 = sum; out0 v0 f32", 1, 6, Inputs(x));
  for (const auto& rank : results) {
    const Values& sum = rank[0];
    EXPECT_TRUE(sum[0] == 0 && std::signbit(sum[0]));
    EXPECT_TRUE(sum[1] == 0 && !std::signbit(sum[1]));
    EXPECT_EQ(sum[2], kInfinity);
    EXPECT_TRUE(std::isnan(sum[3]));
    EXPECT_TRUE(std::isnan(sum[4]));
    EXPECT_EQ(sum[5], 3e-45f);
  }
}

TEST(HostEpilogueTest, SumRunsInRankOrder) {
  const std::vector<Values> x = {{1e8f}, {-1e8f}, {1.0f}};
  for (const auto& rank :
       ResultsOf("x f32; v0 = sum; out0 v0 f32", 1, 1, Inputs(x))) {
    EXPECT_EQ(rank[0][0], 1.0f);
  }
}

TEST(HostEpilogueTest, EveryInstructionRoundsToItsType) {
  // In float32 these would add up; in bfloat16 each small step is lost.
  const std::vector<Values> x = {{1.0f}, {0x1p-9f}};
  const float bias = 0x1p-9f;
  const float residual = 0x1p-8f;
  std::vector<Buffers> ranks = Inputs(x);
  for (Buffers& rank : ranks) {
    rank.operands[0] = &bias;
    rank.operands[1] = &residual;
  }
  const auto sum = [&](const std::string& first, const std::string& second,
                       const std::string& third) {
    return ResultsOf("x f32; in0 column f32; in1 element f32; v0 = sum" +
                         first + "; v1 = in0; v2 = in1; v3 = add" + second +
                         " v0 v1; v4 = add" + third + " v3 v2; out0 v4 f32",
                     1, 1, ranks)[0][0][0];
  };
  EXPECT_EQ(sum("", "", ""), 1.0f + 0x1p-7f);
  EXPECT_EQ(sum(".bf16", "", ""), 1.0f + 0x1p-8f + 0x1p-9f);
  EXPECT_EQ(sum(".bf16", ".bf16", ""), 1.0f + 0x1p-8f);
  EXPECT_EQ(sum(".bf16", ".bf16", ".bf16"), 1.0f);
  EXPECT_EQ(sum(".f16", ".f16", ".f16"), 1.0f + 0x1p-7f);
}

TEST(HostEpilogueTest, OperandsSpreadAsTheirExtentSays) {
  constexpr int kRows = 3;
  // The second is more than one piece.
  for (const int64_t hidden : {3, 10000}) {
    const Values x(kRows * hidden, 0.0f);
    Values element(kRows * hidden);
    Values row(kRows);
    Values column(hidden);
    const float scalar = 0.5f;
    for (size_t i = 0; i < element.size(); ++i) element[i] = 7.0f * i;
    for (size_t i = 0; i < row.size(); ++i) row[i] = 0x1p20f * i;
    for (size_t i = 0; i < column.size(); ++i) column[i] = -3.0f * i;
    std::vector<Buffers> ranks(2);
    for (Buffers& rank : ranks) {
      rank.x = x.data();
      rank.operands[0] = element.data();
      rank.operands[1] = row.data();
      rank.operands[2] = column.data();
      rank.operands[3] = &scalar;
    }
    const auto results = ResultsOf(
        "x f32; in0 element f32; in1 row f32; in2 column f32; in3 scalar f32; "
        "v0 = sum; v1 = in0; v2 = in1; v3 = in2; v4 = in3; v5 = add v2 v4; "
        "v6 = add v0 v1; v7 = add v6 v3; v8 = add v7 v5; out0 v8 f32; "
        "out1 v5 f32",
        kRows, hidden, ranks);
    for (const auto& rank : results) {
      for (int r = 0; r < kRows; ++r) {
        EXPECT_EQ(rank[1][r], row[r] + scalar);
        for (int64_t i = 0; i < hidden; ++i) {
          const int64_t at = r * hidden + i;
          ASSERT_EQ(rank[0][at], element[at] + column[i] + (row[r] + scalar))
              << "row " << r << ", element " << i << " of " << hidden;
        }
      }
    }
  }
}

TEST(HostEpilogueTest, EveryRankUsesItsOwnOperands) {
  const std::vector<Values> x = {{1.0f, 2.0f}, {3.0f, 4.0f}};
  const std::vector<Values> residual = {{10.0f, 20.0f}, {30.0f, 40.0f}};
  std::vector<Buffers> ranks = Inputs(x);
  for (int r = 0; r < 2; ++r) ranks[r].operands[0] = residual[r].data();
  const auto results = ResultsOf(
      "x f32; in0 element f32; v0 = sum; v1 = in0; v2 = add v0 v1; out0 v2 f32",
      1, 2, ranks);
  EXPECT_EQ(results[0][0], (Values{14.0f, 26.0f}));
  EXPECT_EQ(results[1][0], (Values{34.0f, 46.0f}));
}

TEST(HostEpilogueTest, SlicesAreChosenByTheIndexClamped) {
  constexpr int kRows = 2;
  constexpr int kHidden = 3;
  constexpr int kSlices = 4;
  const Values x(kRows * kHidden, 0.0f);
  for (const char* extent : {"element", "row", "column", "scalar"}) {
    const EpilogueProgram program = Parsed(
        std::string("x f32; in0 scalar f32 slice 1 at i1; in1 ") + extent +
        " f32 slice 4 at i0; v0 = sum; v1 = in1; v2 = in0; v3 = add v0 v1; "
        "v4 = add v3 v2; out0 v4 f32");
    const Extent e = program.operands[1].extent;
    const int rows = e == Extent::kElement || e == Extent::kRow ? kRows : 1;
    const int columns =
        e == Extent::kElement || e == Extent::kColumn ? kHidden : 1;
    Values stacked(kSlices * rows * columns);
    for (size_t i = 0; i < stacked.size(); ++i) stacked[i] = 1.0f + i;
    const float zero = 0;
    for (const int32_t index : {std::numeric_limits<int32_t>::min(), -1, 0, 2,
                                3, 4, std::numeric_limits<int32_t>::max()}) {
      std::vector<Buffers> ranks(2);
      for (Buffers& rank : ranks) {
        rank.x = x.data();
        rank.operands[0] = &zero;
        rank.operands[1] = stacked.data();
        rank.indices[0] = &index;
        rank.indices[1] = &index;
      }
      const Values got =
          ResultsOf(ToText(program), kRows, kHidden, ranks)[1][0];
      const int slice = index < 0 ? 0 : index >= kSlices ? 3 : index;
      for (int r = 0; r < kRows; ++r) {
        for (int i = 0; i < kHidden; ++i) {
          const int at = (slice * rows + r % rows) * columns + i % columns;
          EXPECT_EQ(got[r * kHidden + i], stacked[at])
              << extent << " at " << index;
        }
      }
    }
  }
}

TEST(HostEpilogueTest, ResultsAreStoredInTheirTypes) {
  const std::vector<Values> x = {{1.0f, 70000.0f}, {0x1p-12f, 0.0f}};
  std::vector<Buffers> ranks = Inputs(x);
  uint16_t bf16[2][2];
  uint16_t f16[2][2];
  for (int r = 0; r < 2; ++r) {
    ranks[r].results[0] = bf16[r];
    ranks[r].results[1] = f16[r];
  }
  AllReduceOnHost(Parsed("x f32; v0 = sum; out0 v0 bf16; out1 v0 f16"), 1, 2,
                  ranks);
  for (int r = 0; r < 2; ++r) {
    EXPECT_EQ(DecodeBf16(bf16[r][0]), 1.0f);
    EXPECT_EQ(DecodeBf16(bf16[r][1]), 70144.0f);
    EXPECT_EQ(DecodeF16(f16[r][0]), 1.0f);
    EXPECT_EQ(DecodeF16(f16[r][1]), kInfinity);
  }
}

TEST(HostEpilogueTest, ResultsAreQuantized) {
  const std::vector<Values> x = {{1.0f, 300.0f, -2.5f}, {0.1f, 0.0f, 0.0f}};
  std::vector<Buffers> ranks = Inputs(x);
  uint8_t e4m3[2][3], e5m2[2][3];
  int8_t s8[2][3];
  for (int r = 0; r < 2; ++r) {
    ranks[r].results[0] = e4m3[r];
    ranks[r].results[1] = e5m2[r];
    ranks[r].results[2] = s8[r];
  }
  AllReduceOnHost(
      Parsed("x f32; v0 = sum; out0 v0 f8e4m3fn; out1 v0 f8e5m2; out2 v0 s8"),
      1, 3, ranks);
  for (int r = 0; r < 2; ++r) {
    EXPECT_EQ(DecodeF8E4M3FN(e4m3[r][0]), 1.125f);
    EXPECT_EQ(DecodeF8E4M3FN(e4m3[r][1]), 288.0f);
    EXPECT_EQ(DecodeF8E4M3FN(e4m3[r][2]), -2.5f);
    EXPECT_EQ(DecodeF8E5M2(e5m2[r][0]), 1.0f);
    EXPECT_EQ(DecodeF8E5M2(e5m2[r][1]), 320.0f);
    EXPECT_EQ(s8[r][0], 1);
    EXPECT_EQ(s8[r][1], 127);
    EXPECT_EQ(s8[r][2], -2);
  }
}

TEST(HostEpilogueTest, ReducesEveryRow) {
  const std::vector<Values> x = {{1.0f, -5.0f, 2.0f, 1e8f, 1.0f, -1e8f,  //
                                  kNan, 1.0f, 2.0f, -0.0f, 0.0f, -0.0f},
                                 Values(12, -0.0f)};
  const auto results = ResultsOf(
      "x f32; v0 = sum; v1 = reduce_sum v0; v2 = reduce_max v0; "
      "v3 = reduce_min v0; v4 = subtract v0 v2; out0 v1 f32; out1 v2 f32; "
      "out2 v3 f32; out3 v4 f32",
      4, 3, Inputs(x));
  for (const auto& rank : results) {
    EXPECT_EQ(rank[0][0], -2.0f);
    EXPECT_EQ(rank[0][1], 1.0f);  // not lost beside 1e8
    EXPECT_EQ(rank[1][0], 2.0f);
    EXPECT_EQ(rank[1][1], 1e8f);
    EXPECT_EQ(rank[2][0], -5.0f);
    EXPECT_EQ(rank[2][1], -1e8f);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(std::isnan(rank[i][2]));
    EXPECT_FALSE(std::signbit(rank[1][3]));
    EXPECT_TRUE(std::signbit(rank[2][3]));
    EXPECT_EQ(rank[3][1], -7.0f);
    EXPECT_EQ(rank[3][4], 1.0f - 1e8f);
  }
}

TEST(HostEpilogueTest, NormUsesTheValueBeforeTheCastOfTheSum) {
  const std::vector<Values> x = {{1.0f, 3.0f}, {0x1p-12f, 0.0f}};
  const uint16_t gain[] = {EncodeBf16(2.0f), EncodeBf16(-1.0f)};
  std::vector<Buffers> ranks = Inputs(x);
  uint16_t sums[2][2];
  float norms[2][2];
  for (int r = 0; r < 2; ++r) {
    ranks[r].operands[0] = gain;
    ranks[r].results[0] = sums[r];
    ranks[r].results[1] = norms[r];
  }
  AllReduceOnHost(
      Parsed("x f32; in0 column bf16; v0 = sum; v1 = multiply v0 v0; "
             "v2 = reduce_sum v1; v3 = constant 0x1p-1; v4 = multiply v2 v3; "
             "v5 = constant 0x1.4f8b58p-17; v6 = add v4 v5; v7 = rsqrt v6; "
             "v8 = multiply v0 v7; v9 = in0; v10 = multiply v8 v9; "
             "out0 v0 bf16; out1 v10 f32"),
      1, 2, ranks);
  const double h0 = 1.0 + 0x1p-12;
  const double scale = 1 / std::sqrt((h0 * h0 + 9.0) / 2 + 1e-5);
  for (int r = 0; r < 2; ++r) {
    EXPECT_EQ(DecodeBf16(sums[r][0]), 1.0f);
    EXPECT_NEAR(norms[r][0], 2 * h0 * scale, 1e-6);
    EXPECT_NEAR(norms[r][1], -3 * scale, 1e-6);
  }
}

TEST(HostEpilogueTest, NoRowsNoWork) {
  const std::vector<Values> x(2);
  const auto results =
      ResultsOf("x f32; v0 = sum; out0 v0 f32", 0, 5, Inputs(x));
  EXPECT_TRUE(results[1][0].empty());
}

}  // namespace
}  // namespace oneshot
