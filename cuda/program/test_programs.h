// SPDX-License-Identifier: Apache-2.0
//
// Programs, and ways to read them, for the tests of this room.
#ifndef ONESHOT_CUDA_PROGRAM_TEST_PROGRAMS_H_
#define ONESHOT_CUDA_PROGRAM_TEST_PROGRAMS_H_

#include <gtest/gtest.h>

#include <string>

#include "cuda/program/epilogue_program.h"

namespace oneshot {

inline constexpr char kRmsNorm[] =
    "x bf16; in0 element bf16; in1 column f32 slice 16 at i0; v0 = sum.bf16; "
    "v1 = in0; v2 = add.bf16 v0 v1; v3 = multiply v2 v2; v4 = reduce_sum v3; "
    "v5 = constant 0x1p-13; v6 = multiply v4 v5; v7 = constant 0x1.0c6f7ap-20; "
    "v8 = add v6 v7; v9 = rsqrt v8; v10 = multiply v2 v9; "
    "v11 = convert.bf16 v10; v12 = in1; v13 = multiply v11 v12; "
    "out0 v2 bf16; out1 v13 bf16";

inline constexpr char kEveryKindOfStatement[] =
    "x f16; in0 element f32; in1 row bf16; in2 scalar f16 slice 3 at i1; "
    "in3 column f32 slice 2 at i0; v0 = sum.f16; v1 = in0; v2 = in1; v3 = in2; "
    "v4 = in3; v5 = clamp v3 v0 v4; v6 = lt v5 v1; v7 = not v6; "
    "v8 = and v6 v7; v9 = select.bf16 v8 v5 v2; v10 = constant.bf16 -inf; "
    "v11 = convert v6; v12 = maximum v9 v10; v13 = add v12 v11; "
    "v14 = reduce_max v13; v15 = atan2 v13 v14; out0 v15 f32; out1 v14 bf16; "
    "out2 v2 f16";

inline EpilogueProgram Parsed(const std::string& text) {
  EpilogueProgram program;
  std::string error;
  EXPECT_TRUE(FromText(text, &program, &error)) << text << "\n" << error;
  return program;
}

inline std::string ErrorOf(const std::string& text) {
  EpilogueProgram program;
  std::string error;
  EXPECT_FALSE(FromText(text, &program, &error)) << text;
  return error;
}

// A program of one result: the last of these instructions after the sum.
inline EpilogueProgram WithBody(const std::string& operands,
                                const std::string& body) {
  const std::string before = operands.empty() ? "" : operands + "; ";
  const size_t last = body.rfind("; v");
  const size_t begin = last == std::string::npos ? 0 : last + 2;
  const std::string value = body.substr(begin, body.find(' ', begin) - begin);
  return Parsed("x f32; " + before + "v0 = sum; " + body + "; out0 " + value +
                " f32");
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_PROGRAM_TEST_PROGRAMS_H_
