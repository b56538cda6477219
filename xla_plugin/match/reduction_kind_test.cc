// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/reduction_kind.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {
namespace {

// The kind of an all-reduce and of a reduce in `type`, with this reducer.
void ExpectKind(const std::string& type, const std::string& reducer,
                std::optional<xla::ReductionKind> kind) {
  const std::string text = absl::StrCat(
      "HloModule m\n\nreducer {\n", reducer, "}\n\nENTRY e {\n  x = ", type,
      "[4,8] parameter(0)\n  zero = ", type, "[] constant(0)\n  sum = ", type,
      "[4,8] all-reduce(x), to_apply=reducer"
      "\n  ROOT rows = ",
      type,
      "[4] reduce(sum, zero), dimensions={1},"
      " to_apply=reducer\n}\n");
  const auto module = ParseModule(text);
  const xla::HloInstruction* reduce =
      module->entry_computation()->root_instruction();
  EXPECT_EQ(ReductionKindOf(reduce), kind) << text;
  EXPECT_EQ(ReductionKindOf(reduce->operand(0)), kind) << text;
}

TEST(ReductionKindTest, InTheTypeOfItsOperands) {
  ExpectKind("f32",
             "  a = f32[] parameter(0)\n  b = f32[] parameter(1)\n"
             "  ROOT c = f32[] add(b, a)\n",
             xla::ReductionKind::SUM);
  ExpectKind("bf16",
             "  a = bf16[] parameter(0)\n  b = bf16[] parameter(1)\n"
             "  ROOT c = bf16[] maximum(a, b)\n",
             xla::ReductionKind::MAX);
}

TEST(ReductionKindTest, NarrowerThanItsOperands) {
  for (const char* kind : {"add", "maximum", "minimum"}) {
    ExpectKind("f32",
               absl::StrCat("  a = bf16[] parameter(0)\n"
                            "  b = bf16[] parameter(1)\n"
                            "  ROOT c = bf16[] ",
                            kind, "(a, b)\n"),
               std::nullopt);
  }
}

TEST(ReductionKindTest, WiderThanItsOperands) {
  ExpectKind("bf16",
             "  a = f32[] parameter(0)\n  b = f32[] parameter(1)\n"
             "  ROOT c = f32[] add(a, b)\n",
             std::nullopt);
}

TEST(ReductionKindTest, RoundsBetween) {
  ExpectKind("f32",
             "  a = f32[] parameter(0)\n  b = f32[] parameter(1)\n"
             "  an = bf16[] convert(a)\n  bn = bf16[] convert(b)\n"
             "  c = bf16[] add(an, bn)\n  ROOT d = f32[] convert(c)\n",
             std::nullopt);
  ExpectKind("f32",
             "  a = f32[] parameter(0)\n  b = f32[] parameter(1)\n"
             "  ROOT c = bf16[] add(a, b)\n",
             std::nullopt);
}

}  // namespace
}  // namespace oneshot
