// SPDX-License-Identifier: Apache-2.0
//
// What makes the operands of an epilogue. The epilogues themselves are tested
// with the pass that replaces them.

#include "xla_plugin/match/epilogue_match.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

struct Matched {
  std::string program;
  std::vector<std::string> operands;
};

// The epilogue of the only all-reduce: `gains`, of 4 rows, is made by `made`.
Matched Match(const std::string& made, const std::string& rest =
                                           "ROOT y = bf16[4,8] multiply(sum, "
                                           "gains)\n") {
  const auto module = ParseModule(absl::StrCat(
      R"(HloModule m, num_partitions=2

add {
  a = bf16[] parameter(0)
  b = bf16[] parameter(1)
  ROOT c = bf16[] add(a, b)
}

ENTRY e {
  x = bf16[4,8] parameter(0)
  gain = bf16[8] parameter(1)
  scale = bf16[] parameter(2)
  sum = bf16[4,8] all-reduce(x), channel_id=1, replica_groups={{0,1}}, use_global_device_ids=true, to_apply=add
)",
      made, rest, "}\n"));
  for (xla::HloInstruction* hlo : module->entry_computation()->instructions()) {
    if (hlo->opcode() != xla::HloOpcode::kAllReduce) continue;
    const EpilogueMatch match =
        MatchEpilogue(hlo, hlo, 0, InstructionOrder(hlo->parent()),
                      [](const xla::HloInstruction*) { return true; });
    Matched matched = {ToText(match.program), {}};
    for (const xla::HloInstruction* operand : match.operands) {
      matched.operands.emplace_back(operand->name());
    }
    return matched;
  }
  return {};
}

constexpr char kSpread[] = "gains = bf16[4,8] broadcast(g), dimensions={1}\n";
constexpr char kOnes[] =
    "one = bf16[] constant(1)\nones = bf16[8] broadcast(one), dimensions={}\n";

// It is computed in the call, and rounded as the HLO says.
TEST(EpilogueMatchTest, OnePlusGain) {
  const Matched matched =
      Match(absl::StrCat(kOnes, "g = bf16[8] add(gain, ones)\n", kSpread));
  EXPECT_THAT(matched.operands, ElementsAre("gain"));
  EXPECT_THAT(matched.program, HasSubstr("in0 column bf16"));
  EXPECT_THAT(matched.program, HasSubstr("add.bf16"));
}

TEST(EpilogueMatchTest, OnePlusGainInFloat32) {
  const Matched matched = Match(
      "one = f32[] constant(1)\nones = f32[8] broadcast(one), dimensions={}\n"
      "wide = f32[8] convert(gain)\nsum_f32 = f32[8] add(wide, ones)\n"
      "g = bf16[8] convert(sum_f32)\n" +
      std::string(kSpread));
  EXPECT_THAT(matched.operands, ElementsAre("gain"));
  EXPECT_THAT(matched.program, HasSubstr("convert.bf16"));
}

TEST(EpilogueMatchTest, GainTimesScale) {
  const Matched matched = Match(
      "scales = bf16[8] broadcast(scale), dimensions={}\n"
      "g = bf16[8] multiply(scales, gain)\n" +
      std::string(kSpread));
  EXPECT_THAT(matched.operands, ElementsAre("scale", "gain"));
  EXPECT_THAT(matched.program, HasSubstr("in0 scalar bf16"));
  EXPECT_THAT(matched.program, HasSubstr("in1 column bf16"));
}

// One of the gains of all layers.
TEST(EpilogueMatchTest, OnePlusGainOfAStack) {
  const Matched matched = Match(
      absl::StrCat(kOnes,
                   "stack = bf16[3,8] parameter(3)\ni = s32[] parameter(4)\n"
                   "zero = s32[] constant(0)\n"
                   "slice = bf16[1,8] dynamic-slice(stack, i, zero), "
                   "dynamic_slice_sizes={1,8}\nrow = bf16[8] reshape(slice)\n"
                   "g = bf16[8] add(row, ones)\n",
                   kSpread));
  EXPECT_THAT(matched.operands, ElementsAre("stack"));
  EXPECT_THAT(matched.program, HasSubstr("in0 column bf16 slice 3 at i0"));
}

// Read twice, made once.
TEST(EpilogueMatchTest, SharedProducer) {
  const Matched matched =
      Match(absl::StrCat(kOnes, "g = bf16[8] add(gain, ones)\n", kSpread),
            "once = bf16[4,8] multiply(sum, gains)\n"
            "ROOT y = bf16[4,8] add(once, gains)\n");
  EXPECT_THAT(matched.operands, ElementsAre("gain"));
  size_t adds = 0, at = 0;
  while ((at = matched.program.find("add.bf16", at)) != std::string::npos) {
    ++adds, ++at;
  }
  EXPECT_EQ(adds, 2) << matched.program;
}

// What every row would compute again at some cost, is read as it is.
TEST(EpilogueMatchTest, ExpensiveProducer) {
  const Matched matched =
      Match("g = bf16[8] tanh(gain)\n" + std::string(kSpread));
  EXPECT_THAT(matched.operands, ElementsAre("g"));
  EXPECT_THAT(matched.program, Not(HasSubstr("tanh")));
}

TEST(EpilogueMatchTest, LargeProducer) {
  const Matched matched = Match(
      "a = bf16[4,8] parameter(3)\nb = bf16[4,8] parameter(4)\n"
      "gains = bf16[4,8] add(a, b)\n");
  EXPECT_THAT(matched.operands, ElementsAre("gains"));
}

TEST(EpilogueMatchTest, ProducerOfAnotherOrder) {
  const Matched matched = Match(
      "square = bf16[2,4] reshape(gain)\nturned = bf16[4,2] "
      "transpose(square), dimensions={1,0}\nflat = bf16[8] reshape(turned)\n"
      "g = bf16[8] negate(flat)\n" +
      std::string(kSpread));
  // The negation is taken in, and reads what was transposed.
  EXPECT_THAT(matched.operands, ElementsAre("turned"));
  EXPECT_THAT(matched.program, HasSubstr("negate"));
}

// More than a few operations stay where they are.
TEST(EpilogueMatchTest, LongProducer) {
  std::string made = "g0 = bf16[8] negate(gain)\n";
  for (int i = 1; i <= 8; ++i) {
    made += absl::StrCat("g", i, " = bf16[8] negate(g", i - 1, ")\n");
  }
  const Matched matched =
      Match(made + "gains = bf16[4,8] broadcast(g8), dimensions={1}\n");
  EXPECT_THAT(matched.operands, ElementsAre("g2"));
}

}  // namespace
}  // namespace oneshot
