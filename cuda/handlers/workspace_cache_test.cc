// SPDX-License-Identifier: Apache-2.0
#include "cuda/handlers/workspace_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda/handlers/thread_communicator.h"
#include "cuda/kernel/dynamic_library.h"
#include "cuda/kernel/nvrtc.h"
#include "cuda/runtime/device_guard.h"
#include "cuda/runtime/fake_cuda.h"
#include "cuda/runtime/thread_bootstrap.h"

namespace oneshot {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsNull;

using Groups = std::vector<std::vector<int64_t>>;

constexpr int kRanks = 2;
// The threads are XLA's, which must find their device current again.
constexpr int kXlasDevice = 5;
const Groups kGroups = {{0, 1}};

// The communicators of a group, one per device. Those of no two tests are at
// the same address: they are leaked, like the workspaces of the cache.
class Group {
 public:
  Group() : room_(*new ThreadBootstrap::Room(kRanks)) {
    for (int r = 0; r < kRanks; ++r) {
      communicators_.push_back(new ThreadCommunicator(room_, r));
    }
  }

  // On all devices; the errors go to `errors`.
  std::vector<const Workspace*> Find(const Groups& groups,
                                     const std::string& last_objects = "") {
    std::vector<const Workspace*> found(kRanks);
    errors.assign(kRanks, "");
    std::vector<std::thread> threads;
    for (int r = 0; r < kRanks; ++r) {
      threads.emplace_back([&, r] {
        const DeviceGuard guard(kXlasDevice);
        found[r] = FindOrCreateWorkspace(communicators_[r], r, groups,
                                         r == kRanks - 1 ? last_objects : "",
                                         &errors[r]);
        EXPECT_EQ(fake_cuda::CurrentDevice(), kXlasDevice);
      });
    }
    for (std::thread& thread : threads) thread.join();
    return found;
  }

  int gathers() const { return communicators_[0]->gathers; }

  std::vector<std::string> errors;

 private:
  ThreadBootstrap::Room& room_;
  std::vector<ThreadCommunicator*> communicators_;
};

class WorkspaceCacheTest : public testing::Test {
 protected:
  // Without fake_cuda::Reset after a test: the cache keeps what it has.
  WorkspaceCacheTest() {
    EXPECT_TRUE(DynamicLibrary::Open("cuda/handlers/libnccl.so.2"));
    SetNvrtcPath("external/nvrtc/newest");
  }
};

TEST_F(WorkspaceCacheTest, OnePerCommunicatorAndDevice) {
  Group group;
  const std::vector<const Workspace*> first = group.Find(kGroups);
  ASSERT_NE(first[0], nullptr) << group.errors[0];
  ASSERT_NE(first[1], nullptr) << group.errors[1];
  EXPECT_NE(first[0], first[1]);
  EXPECT_EQ(first[1]->view.rank, 1);
  const int gathers = group.gathers();
  EXPECT_GT(gathers, 0);
  EXPECT_EQ(group.Find(kGroups), first);
  EXPECT_EQ(group.gathers(), gathers);  // found without asking the peers

  Group other;
  EXPECT_NE(other.Find(kGroups)[0], first[0]);
}

TEST_F(WorkspaceCacheTest, AnotherCommunicatorAtTheSameAddress) {
  Group group;
  const std::vector<const Workspace*> first = group.Find(kGroups);
  const std::vector<const Workspace*> second = group.Find({{1, 0}});
  ASSERT_NE(second[0], nullptr) << group.errors[0];
  EXPECT_NE(second[0], first[0]);
  EXPECT_EQ(group.Find(kGroups), first);
}

TEST_F(WorkspaceCacheTest, ARefusalIsNotKept) {
  Group group;
  EXPECT_THAT(group.Find(kGroups, "no kernel"), Each(IsNull()));
  EXPECT_THAT(group.errors,
              Each(AllOf(HasSubstr("rank 1 "), HasSubstr("no kernel"))));
  const std::vector<const Workspace*> found = group.Find(kGroups);
  ASSERT_NE(found[0], nullptr) << group.errors[0];
  // An objection comes too late for a workspace that there is.
  EXPECT_EQ(group.Find(kGroups, "no kernel"), found);
}

}  // namespace
}  // namespace oneshot
