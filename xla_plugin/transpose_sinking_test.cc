// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/transpose_sinking.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "xla/hlo/evaluator/hlo_evaluator.h"
#include "xla/hlo/parser/hlo_parser.h"
#include "xla/literal_util.h"
#include "xla/service/hlo_verifier.h"

namespace oneshot {
namespace {

constexpr int kFailed = -1;
constexpr int kUnchanged = -2;

// What the result of the pass would compute, if the sum were that of one rank.
xla::Literal Evaluate(const xla::HloModule& module) {
  auto alone = module.Clone();
  xla::HloComputation* entry = alone->entry_computation();
  for (xla::HloInstruction* hlo : entry->MakeInstructionPostOrder()) {
    if (hlo->opcode() == xla::HloOpcode::kAllReduce) {
      EXPECT_TRUE(hlo->ReplaceAllUsesWith(hlo->mutable_operand(0)).ok());
      EXPECT_TRUE(entry->RemoveInstruction(hlo).ok());
    }
  }
  std::vector<xla::Literal> arguments;
  for (const auto* parameter : entry->parameter_instructions()) {
    xla::Literal literal = xla::Literal::CreateFromShape(parameter->shape());
    float next = 0.5f;
    for (float& value : literal.data<float>()) value = next += 0.25f;
    arguments.push_back(std::move(literal));
  }
  xla::HloEvaluator evaluator;
  auto result = evaluator.Evaluate(*alone, absl::MakeSpan(arguments));
  EXPECT_TRUE(result.ok()) << result.status();
  return *std::move(result);
}

// Runs the pass on an entry computation: the number of transposes that are
// left, kUnchanged, or kFailed.
int TransposesAfter(absl::string_view body, bool layouts = false) {
  const std::string text = absl::StrCat(R"(HloModule m, num_partitions=2
  add { a = f32[] parameter(0)
        b = f32[] parameter(1)
        ROOT s = f32[] add(a, b) }
  ENTRY e {
    x = f32[2,3,4] parameter(0)
    g = f32[4] parameter(1)
    sum = f32[2,3,4] all-reduce(x), channel_id=1, replica_groups={{0,1}},
      use_global_device_ids=true, to_apply=add
    y = f32[2,3,4] tanh(sum)
    gain = f32[4,6] broadcast(g), dimensions={0}
  )",
                                        body, "}");
  auto module = xla::ParseAndReturnUnverifiedModule(text);
  EXPECT_TRUE(module.ok()) << module.status() << text;
  if (!module.ok()) return kFailed;
  const xla::Literal before = Evaluate(**module);
  TransposeSinking pass(layouts,
                        [](const xla::HloInstruction*) { return true; });
  const auto changed = pass.Run(module->get());
  EXPECT_TRUE(changed.ok()) << changed.status();
  xla::HloVerifier verifier(/*layout_sensitive=*/false,
                            /*allow_mixed_precision=*/true);
  const auto valid = verifier.Run(module->get()).status();
  EXPECT_TRUE(valid.ok()) << valid << (*module)->ToString();
  if (!changed.ok() || !valid.ok()) return kFailed;
  EXPECT_EQ(before, Evaluate(**module)) << (*module)->ToString();
  if (!*changed) return kUnchanged;
  const auto* entry = (*module)->entry_computation();
  EXPECT_TRUE(absl::c_none_of(entry->instructions(), [&](const auto* hlo) {
    return hlo->user_count() == 0 && !hlo->IsRoot() &&
           hlo->opcode() != xla::HloOpcode::kParameter;
  })) << (*module)->ToString();
  return absl::c_count_if(entry->instructions(), [](const auto* hlo) {
    return hlo->opcode() == xla::HloOpcode::kTranspose;
  });
}

// einsum("...k,k->...k", y, g).
TEST(TransposeSinkingTest, ThereAndBack) {
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3] transpose(y), dimensions={2,0,1}
    r = f32[4,6] reshape(t)
    m = f32[4,6] multiply(gain, r)
    b = f32[4,2,3] reshape(m)
    ROOT u = f32[2,3,4] transpose(b), dimensions={1,2,0})"),
            0);
}

// In a narrower type, and with an operation on the result.
TEST(TransposeSinkingTest, Chains) {
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3] transpose(y), dimensions={2,0,1}
    r = f32[4,6] reshape(t)
    m = f32[4,6] multiply(r, gain)
    n = bf16[4,6] convert(m)
    w = f32[4,6] convert(n)
    half = f32[] constant(0.5)
    halves = f32[4,6] broadcast(half), dimensions={}
    o = f32[4,6] add(w, halves)
    b = f32[4,2,3] reshape(o)
    ROOT u = f32[2,3,4] transpose(b), dimensions={1,2,0})"),
            0);
}

TEST(TransposeSinkingTest, OtherRowsThanBefore) {
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3] transpose(y), dimensions={2,0,1}
    r = f32[4,6] reshape(t)
    m = f32[4,6] multiply(r, gain)
    ROOT u = f32[6,4] transpose(m), dimensions={1,0})"),
            0);
}

// The two are of the same elements, though of different shapes.
TEST(TransposeSinkingTest, TwoTransposed) {
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3] transpose(y), dimensions={2,0,1}
    r = f32[4,6] reshape(t)
    m = f32[4,6] multiply(r, gain)
    flat = f32[6,4] reshape(x)
    s = f32[4,6] transpose(flat), dimensions={1,0}
    a = f32[4,6] add(m, s)
    ROOT u = f32[6,4] transpose(a), dimensions={1,0})"),
            0);
}

// A matrix product may want the channels first: then one transpose remains,
// behind the multiplication.
TEST(TransposeSinkingTest, AnotherReader) {
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3] transpose(y), dimensions={2,0,1}
    r = f32[4,6] reshape(t)
    m = f32[4,6] multiply(r, gain)
    ROOT d = f32[6,6] dot(m, m), lhs_contracting_dims={0},
      rhs_contracting_dims={0})"),
            1);
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3] transpose(y), dimensions={2,0,1}
    r = f32[4,6] reshape(t)
    m = f32[4,6] multiply(r, gain)
    u = f32[6,4] transpose(m), dimensions={1,0}
    ROOT d = f32[4,4] dot(m, u), lhs_contracting_dims={1},
      rhs_contracting_dims={0})"),
            1);
}

TEST(TransposeSinkingTest, OtherTransposesStay) {
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[3,2,4] transpose(y), dimensions={1,0,2}
    ROOT n = f32[3,2,4] negate(t))"),
            kUnchanged);
  // Swaps rows: what looks like channels is not the last dimension.
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,3,2] transpose(y), dimensions={2,1,0}
    r = f32[4,6] reshape(t)
    ROOT m = f32[4,6] multiply(r, gain))"),
            kUnchanged);
}

TEST(TransposeSinkingTest, NothingByChannelStays) {
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3] transpose(y), dimensions={2,0,1}
    n = f32[4,2,3] negate(t)
    ROOT u = f32[2,3,4] transpose(n), dimensions={1,2,0})"),
            kUnchanged);
  // By row.
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3] transpose(y), dimensions={2,0,1}
    r = f32[4,6] reshape(t)
    by = f32[6] iota(), iota_dimension=0
    rows = f32[4,6] broadcast(by), dimensions={1}
    ROOT m = f32[4,6] multiply(r, rows))"),
            kUnchanged);
}

// Channels that are split are none any more.
TEST(TransposeSinkingTest, ReshapedChannelsStay) {
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3] transpose(y), dimensions={2,0,1}
    r = f32[2,12] reshape(t)
    two = f32[2] slice(g), slice={[0:2]}
    wide = f32[2,12] broadcast(two), dimensions={0}
    ROOT m = f32[2,12] multiply(r, wide))"),
            kUnchanged);
}

// After layout assignment, as on CPU: copies make the layouts.
TEST(TransposeSinkingTest, AssignedLayouts) {
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3]{0,2,1} transpose(y), dimensions={2,0,1}
    c = f32[4,2,3]{2,1,0} copy(t)
    r = f32[4,6]{1,0} bitcast(c)
    m = f32[4,6]{1,0} multiply(r, gain)
    b = f32[4,2,3]{2,1,0} bitcast(m)
    u = f32[2,3,4]{1,0,2} transpose(b), dimensions={1,2,0}
    ROOT d = f32[2,3,4]{2,1,0} copy(u))",
                            /*layouts=*/true),
            0);
  // The bitcast is a transpose: its rows are in another order than before.
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3]{2,1,0} transpose(y), dimensions={2,0,1}
    c = f32[4,2,3]{1,2,0} copy(t)
    r = f32[4,3,2]{2,1,0} bitcast(c)
    wide = f32[4,3,2]{2,1,0} broadcast(g), dimensions={0}
    ROOT m = f32[4,3,2]{2,1,0} multiply(r, wide))",
                            /*layouts=*/true),
            kUnchanged);
  // A reader that wants this layout keeps it.
  EXPECT_EQ(TransposesAfter(R"(
    t = f32[4,2,3]{2,1,0} transpose(y), dimensions={2,0,1}
    r = f32[4,6]{1,0} reshape(t)
    m = f32[4,6]{1,0} multiply(r, gain)
    ROOT u = f32[6,4]{0,1} transpose(m), dimensions={1,0})",
                            /*layouts=*/true),
            2);
}

}  // namespace
}  // namespace oneshot
