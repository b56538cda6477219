// SPDX-License-Identifier: Apache-2.0
//
// Compiles kernels for real, which needs NVRTC but no device. That they compute
// the right thing is for protocol_test to show, on devices.
#include "cuda/kernel/kernel_source.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "cuda/kernel/nvrtc.h"
#include "cuda/program/call_contract.h"

namespace oneshot {
namespace {

constexpr int kAnyDriver = 0;

// The version that is tested.
std::string NvrtcPath() { return std::getenv("ONESHOT_TEST_NVRTC"); }

EpilogueProgram Parse(const std::string& text) {
  EpilogueProgram program;
  std::string error;
  EXPECT_TRUE(FromText(text, &program, &error)) << error << ": " << text;
  return program;
}

struct Shape {
  int64_t rows;
  int64_t hidden;
};

void Compile(const EpilogueProgram& program, const Shape& shape, int ranks,
             int compute_capability, bool vectorized) {
  SetNvrtcPath(NvrtcPath());
  const DeviceLimits device = {100, compute_capability >= 90 ? 8 : 1};
  const auto plan =
      PlanLaunch(program, shape.rows, shape.hidden, ranks, device);
  ASSERT_TRUE(plan.has_value());
  const std::string source = KernelSource(program, *plan, ranks, vectorized);
  std::string code, error;
  EXPECT_TRUE(
      CompileCuda(source, compute_capability, kAnyDriver, &code, &error))
      << error << "\n"
      << ToText(program);
  // PTX where the compiler is older than the architecture.
  EXPECT_TRUE(code.substr(0, 4) ==
                  "\x7F"
                  "ELF" ||
              code.find(".visible .entry ") != std::string::npos);
  EXPECT_NE(code.find(Identifier(program)), std::string::npos);
}

constexpr char kNorm[] =
    "x bf16; in0 element bf16; in1 column f32 slice 4 at i0; v0 = sum.bf16; "
    "v1 = in0; v2 = add.bf16 v0 v1; v3 = multiply v2 v2; v4 = reduce_sum v3; "
    "v5 = constant 0x1p-13; v6 = multiply v4 v5; v7 = rsqrt v6; "
    "v8 = multiply v2 v7; v9 = in1; v10 = multiply v8 v9; out0 v2 bf16; "
    "out1 v10 f16; out2 v7 f32";

TEST(KernelSourceTest, EveryArchitecture) {
  for (const int compute_capability : {80, 90, 100, 120}) {
    Compile(Parse(kNorm), {8, 8192}, 2, compute_capability,
            /*vectorized=*/true);
    // In two shots.
    Compile(Parse(kNorm), {8, 8192}, 8, compute_capability,
            /*vectorized=*/true);
  }
}

TEST(KernelSourceTest, EveryNumberOfRanks) {
  for (int ranks = kMinRanks; ranks <= kMaxRanks; ++ranks) {
    const EpilogueProgram sum = Parse("x f16; v0 = sum; out0 v0 f16");
    Compile(sum, {1, 64}, ranks, 90, /*vectorized=*/true);
    Compile(sum, {64, 8192}, ranks, 90, /*vectorized=*/true);
  }
}

TEST(KernelSourceTest, UnalignedRows) {
  Compile(Parse(kNorm), {3, 1003}, 2, 90, /*vectorized=*/false);
}

// Results of one byte, of elements and of rows: four or eight to a packet.
TEST(KernelSourceTest, QuantizedResults) {
  for (const char* x : {"f32", "bf16"}) {
    const EpilogueProgram program =
        Parse(std::string("x ") + x +
              "; v0 = sum; v1 = abs v0; v2 = reduce_max v1; v3 = divide v0 v2; "
              "out0 v3 f8e4m3fn; out1 v3 f8e5m2; out2 v3 s8; out3 v2 s8");
    for (const int compute_capability : {80, 90, 100}) {
      Compile(program, {8, 8192}, 2, compute_capability, /*vectorized=*/true);
    }
    Compile(program, {3, 1003}, 2, 90, /*vectorized=*/false);
  }
}

// Every operation, with inputs of every extent and mixtures of them.
TEST(KernelSourceTest, EveryOperation) {
  std::vector<std::string> values;
  std::string text =
      "x f32; in0 row bf16; in1 scalar f32; in2 column f16; in3 element f32; "
      "v0 = sum; v1 = in0; v2 = in1; v3 = in2; v4 = in3; v5 = constant nan; "
      "v6 = multiply v1 v2; v7 = add.bf16 v3 v6; v8 = gt v1 v2; "
      "v9 = lt v3 v2; v10 = le v0 v5";
  int next = 11;
  std::string last = "v0";
  const auto add = [&](const std::string& expression) {
    text += "; v" + std::to_string(next) + " = " + expression;
    last = "v" + std::to_string(next++);
  };
  for (int i = 0; i <= static_cast<int>(Op::kReduceSum); ++i) {
    const Op op = static_cast<Op>(i);
    const std::string name = Name(op) == nullptr ? "" : Name(op);
    switch (op) {
      case Op::kSum:
      case Op::kOperand:
      case Op::kConstant:
      case Op::kReduceMax:
      case Op::kReduceMin:
      case Op::kReduceSum:
        break;
      case Op::kEq:
      case Op::kGe:
      case Op::kGt:
      case Op::kLe:
      case Op::kLt:
      case Op::kNe: {
        const std::string number = last;
        add(name + " " + number + " v7");
        add("select " + last + " " + number + " v2");
        break;
      }
      case Op::kAnd:
      case Op::kOr:
      case Op::kXor: {
        const std::string number = last;
        add(name + " v8 v9");
        add(name + " " + last + " v10");
        add("select " + last + " v1 " + number);
        break;
      }
      case Op::kNot:
      case Op::kIsFinite: {
        const std::string number = last;
        add(name + (op == Op::kNot ? " v9" : " " + number));
        add("convert.f16 " + last);
        add("add " + last + " " + number);
        break;
      }
      case Op::kSelect:
        add("select v8 " + last + " v5");
        break;
      case Op::kClamp:
        add("clamp v1 " + last + " v3");
        break;
      default:
        add(name + (Arity(op) == 1 ? " " + last : " " + last + " v6"));
    }
  }
  Compile(Parse(text + "; out0 " + last + " bf16"), {4, 256}, 2, 90, true);
}

// Reductions of several stages, with values that live across them.
TEST(KernelSourceTest, Stages) {
  Compile(Parse("x bf16; in0 column f32; v0 = sum; v1 = in0; "
                "v2 = multiply v0 v1; v3 = reduce_max v0; v4 = reduce_min v2; "
                "v5 = subtract v3 v4; v6 = multiply v0 v5; v7 = gt v0 v2; "
                "v8 = reduce_sum v6; v9 = divide v2 v8; v10 = select v7 v9 v1; "
                "v11 = reduce_sum v10; v12 = subtract v10 v11; "
                "v13 = multiply v12 v1; out0 v13 f32; out1 v11 bf16"),
          {2, 4096}, 4, 90, true);
}

TEST(KernelSourceTest, ErrorsAreReported) {
  SetNvrtcPath(NvrtcPath());
  std::string code, error;
  EXPECT_FALSE(CompileCuda("__global__ void k() { nonsense; }", 90, kAnyDriver,
                           &code, &error));
  EXPECT_NE(error.find("nonsense"), std::string::npos) << error;
}

}  // namespace
}  // namespace oneshot
