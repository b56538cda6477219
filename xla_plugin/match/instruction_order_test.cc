// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/instruction_order.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::xla::HloInstruction;

HloInstruction* Find(const xla::HloModule& module, absl::string_view name) {
  for (HloInstruction* hlo : module.entry_computation()->instructions()) {
    if (hlo->name() == name) return hlo;
  }
  ADD_FAILURE() << "there is no instruction " << name;
  return nullptr;
}

// Where a number is not larger than that of something that is read.
std::vector<std::string> WrongNumbers(const xla::HloModule& module,
                                      const InstructionOrder& order) {
  std::vector<std::string> wrong;
  for (const HloInstruction* hlo : module.entry_computation()->instructions()) {
    for (const HloInstruction* operand : hlo->operands()) {
      if (order.Number(operand) >= order.Number(hlo)) {
        wrong.push_back(absl::StrCat(operand->name(), " -> ", hlo->name()));
      }
    }
  }
  return wrong;
}

constexpr absl::string_view kDiamond = R"(HloModule m
  ENTRY e {
    x = f32[8] parameter(0)
    y = f32[8] parameter(1)
    s = f32[8] tanh(x)
    early = f32[8] negate(s)
    other = f32[8] cosine(y)
    late = f32[8] add(s, other)
    after = f32[8] negate(early)
    ROOT t = (f32[8], f32[8]) tuple(after, late)
  })";

TEST(InstructionOrderTest, ReadersComeInOrderAndOnce) {
  const auto module = ParseModule(kDiamond);
  const InstructionOrder order(module->entry_computation());
  EXPECT_THAT(WrongNumbers(*module, order), IsEmpty());
  Readers readers(order);
  readers.Take(Find(*module, "x"));
  std::vector<std::string> names;
  while (HloInstruction* next = readers.Next()) {
    names.emplace_back(next->name());
    readers.Take(next);
  }
  EXPECT_THAT(names, ElementsAre("s", "early", "after", "late", "t"));
}

TEST(InstructionOrderTest, DependsOnWhatItReads) {
  const auto module = ParseModule(kDiamond);
  const InstructionOrder order(module->entry_computation());
  Dependents dependents(Find(*module, "s"), order);
  EXPECT_TRUE(dependents.Contains(Find(*module, "s")));
  EXPECT_TRUE(dependents.Contains(Find(*module, "after")));
  EXPECT_TRUE(dependents.Contains(Find(*module, "t")));
  EXPECT_FALSE(dependents.Contains(Find(*module, "x")));
  EXPECT_FALSE(dependents.Contains(Find(*module, "other")));
}

TEST(InstructionOrderTest, ControlDependenciesCount) {
  const auto module = ParseModule(kDiamond);
  HloInstruction* other = Find(*module, "other");
  ASSERT_TRUE(Find(*module, "s")->AddControlDependencyTo(other).ok());
  const InstructionOrder order(module->entry_computation());
  EXPECT_GT(order.Number(other), order.Number(Find(*module, "s")));
  Dependents dependents(Find(*module, "s"), order);
  EXPECT_TRUE(dependents.Contains(other));
}

// A call in place of `s` and `late` makes `early`, which came before `other`,
// depend on it.
TEST(InstructionOrderTest, ReadersOfWhatIsAddedMoveBehindIt) {
  const auto module = ParseModule(kDiamond);
  xla::HloComputation* entry = module->entry_computation();
  InstructionOrder order(entry);
  HloInstruction* s = Find(*module, "s");
  HloInstruction* other = Find(*module, "other");
  HloInstruction* early = Find(*module, "early");
  ASSERT_LT(order.Number(early), order.Number(other));
  HloInstruction* copy = entry->AddInstruction(HloInstruction::CreateUnary(
      other->shape(), xla::HloOpcode::kCopy, other));
  HloInstruction* call = entry->AddInstruction(HloInstruction::CreateBinary(
      s->shape(), xla::HloOpcode::kAdd, Find(*module, "x"), copy));
  HloInstruction* result = entry->AddInstruction(
      HloInstruction::CreateUnary(s->shape(), xla::HloOpcode::kCopy, call));
  ASSERT_TRUE(s->ReplaceUseWith(early, result).ok());
  order.Add(call);
  EXPECT_THAT(WrongNumbers(*module, order), IsEmpty());
  EXPECT_GT(order.Number(early), order.Number(other));
  Dependents dependents(other, order);
  EXPECT_TRUE(dependents.Contains(Find(*module, "after")));
}

// Graphs of any form: the answers are those of a walk over all that is read.
TEST(InstructionOrderTest, AnswersAsAWalkDoes) {
  std::mt19937 random(0);
  for (int run = 0; run < 50; ++run) {
    auto module =
        ParseModule("HloModule m\nENTRY e { ROOT x = f32[8] parameter(0) }");
    xla::HloComputation* entry = module->entry_computation();
    std::vector<HloInstruction*> all = {entry->root_instruction()};
    const auto any = [&] { return all[random() % all.size()]; };
    for (int i = 0; i < 30; ++i) {
      all.push_back(entry->AddInstruction(HloInstruction::CreateBinary(
          all[0]->shape(), xla::HloOpcode::kAdd, any(), any())));
    }
    InstructionOrder order(entry);
    for (int change = 0; change < 10; ++change) {
      // Somebody reads something new, unless that would be a circle.
      HloInstruction* added =
          entry->AddInstruction(HloInstruction::CreateBinary(
              all[0]->shape(), xla::HloOpcode::kAdd, any(), any()));
      HloInstruction* reader = any();
      std::set<const HloInstruction*> read = {added};
      std::vector<const HloInstruction*> stack = {added};
      while (!stack.empty()) {
        const HloInstruction* top = stack.back();
        stack.pop_back();
        for (const HloInstruction* operand : top->operands()) {
          if (read.insert(operand).second) stack.push_back(operand);
        }
      }
      if (reader->operand_count() == 2 && read.count(reader) == 0) {
        ASSERT_TRUE(reader->ReplaceOperandWith(random() % 2, added).ok());
      }
      order.Add(added);
      all.push_back(added);
      ASSERT_THAT(WrongNumbers(*module, order), IsEmpty());
      HloInstruction* source = any();
      Dependents dependents(source, order);
      for (const HloInstruction* hlo : all) {
        std::set<const HloInstruction*> behind = {hlo};
        std::vector<const HloInstruction*> left = {hlo};
        while (!left.empty()) {
          const HloInstruction* top = left.back();
          left.pop_back();
          for (const HloInstruction* operand : top->operands()) {
            if (behind.insert(operand).second) left.push_back(operand);
          }
        }
        ASSERT_EQ(dependents.Contains(hlo), behind.count(source) > 0);
      }
    }
  }
}

}  // namespace
}  // namespace oneshot
