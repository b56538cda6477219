// SPDX-License-Identifier: Apache-2.0
#include "cuda/handlers/communicator_memo.h"

#include <gtest/gtest.h>

namespace oneshot {
namespace {

constexpr Execution kFirst = {7, 0};

// Takes an execution with calls of the groups 0, 1, 0 through both stages.
void RunAll(CommunicatorMemo& memo, const Execution& execution, void* a,
            void* b) {
  EXPECT_FALSE(memo.Requested(execution, 0));
  memo.NoteRequest(0);
  EXPECT_FALSE(memo.Requested(execution, 1));
  memo.NoteRequest(1);
  EXPECT_TRUE(memo.Requested(execution, 0));
  EXPECT_EQ(memo.Find(execution, 0), nullptr);
  memo.NoteCommunicator(execution, 0, a);
  EXPECT_EQ(memo.Find(execution, 1), nullptr);
  memo.NoteCommunicator(execution, 1, b);
  EXPECT_EQ(memo.Find(execution, 0), a);
  EXPECT_EQ(memo.Find(execution, 1), b);
}

TEST(CommunicatorMemoTest, EachExecutionAsksOnceForEachGroup) {
  CommunicatorMemo memo;
  int a, b, c, d;
  RunAll(memo, kFirst, &a, &b);
  RunAll(memo, {8, 0}, &c, &d);
  RunAll(memo, {8, 1}, &a, &b);
}

TEST(CommunicatorMemoTest, AnotherModuleWithTheSameRunIdAsksAgain) {
  CommunicatorMemo memo;
  int a, b;
  RunAll(memo, kFirst, &a, &b);
  RunAll(memo, kFirst, &b, &a);
}

TEST(CommunicatorMemoTest, ARunThatFailedInPrepareIsForgotten) {
  CommunicatorMemo memo;
  EXPECT_FALSE(memo.Requested(kFirst, 0));
  memo.NoteRequest(0);
  EXPECT_FALSE(memo.Requested({8, 0}, 0));
}

TEST(CommunicatorMemoTest, ARequestThatFailedIsAskedForAgain) {
  CommunicatorMemo memo;
  EXPECT_FALSE(memo.Requested(kFirst, 0));
  EXPECT_FALSE(memo.Requested(kFirst, 0));
}

TEST(CommunicatorMemoTest, KnowsNothingOfOtherExecutions) {
  CommunicatorMemo memo;
  int a, b;
  RunAll(memo, kFirst, &a, &b);
  const Execution other = {8, 0};
  EXPECT_EQ(memo.Find(other, 0), nullptr);
  memo.NoteCommunicator(other, 0, &b);
  EXPECT_EQ(memo.Find(kFirst, 0), &a);
}

}  // namespace
}  // namespace oneshot
