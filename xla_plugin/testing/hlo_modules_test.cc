// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/testing/hlo_modules.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace oneshot {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(HloModulesTest, HeaderEndsWhereTheModuleBegins) {
  const HloText text = SplitHeader("// a: b\n// c\n\nHloModule m\n// d\n");
  EXPECT_THAT(text.header, ElementsAre("a: b", "c"));
  EXPECT_EQ(text.hlo, "\nHloModule m\n// d\n");
  EXPECT_THAT(SplitHeader("// only").header, ElementsAre("only"));
  EXPECT_THAT(SplitHeader("HloModule m").header, IsEmpty());
}

TEST(HloModulesTest, VerifyFindsWhatIsWrong) {
  const auto valid = ParseModule(
      "HloModule m\nENTRY e { x = f32[4] parameter(0)\n"
      "ROOT t = f32[4] tanh(x) }");
  EXPECT_TRUE(Verify(valid.get()).ok());
  const auto other_shape = ParseModule(
      "HloModule m\nENTRY e { x = f32[4] parameter(0)\n"
      "ROOT t = f32[5] tanh(x) }");
  EXPECT_FALSE(Verify(other_shape.get()).ok());
  EXPECT_DEATH(ParseModule("HloModule m\nENTRY e { x = f32[4] "),
               "parameter|e");
}

}  // namespace
}  // namespace oneshot
