// SPDX-License-Identifier: Apache-2.0
//
// The ranks are threads, and CUDA is fake_cuda.h. What only devices can show is
// in cuda/device_tests/workspace_test.cu.
#include "cuda/runtime/workspace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/kernel/nvrtc.h"
#include "cuda/program/call_contract.h"
#include "cuda/runtime/fake_cuda.h"
#include "cuda/runtime/fault.h"
#include "cuda/runtime/peer_check.h"
#include "cuda/runtime/thread_bootstrap.h"

namespace oneshot {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

struct Created {
  std::unique_ptr<Workspace> workspace;
  std::string error;
};

// One rank per device.
std::vector<Created> CreateOnThreads(int ranks,
                                     const std::string& last_objects = "") {
  ThreadBootstrap::Room room(ranks);
  std::vector<Created> created(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      ThreadBootstrap bootstrap(room, r);
      created[r].workspace = CreateWorkspace(
          bootstrap, r, r == ranks - 1 ? last_objects : "", &created[r].error);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return created;
}

// The reason, if all ranks were refused with the same one and nothing of what
// they had allocated is left.
std::string Refusal(const std::vector<Created>& created) {
  for (const Created& c : created) {
    EXPECT_EQ(c.workspace, nullptr);
    EXPECT_EQ(c.error, created[0].error);
  }
  EXPECT_EQ(fake_cuda::Live(), 0);
  return created[0].error;
}

class WorkspaceTest : public testing::Test {
 protected:
  WorkspaceTest() {
    fake_cuda::Reset();
    SetNvrtcPath("external/nvrtc/newest");
  }
  ~WorkspaceTest() override { fake_cuda::Reset(); }
};

TEST_F(WorkspaceTest, RanksSeeTheSameInboxes) {
  for (const int ranks : {2, 8}) {
    fake_cuda::Reset();
    SetTimeout(ranks);
    const std::vector<Created> created = CreateOnThreads(ranks);
    for (int r = 0; r < ranks; ++r) {
      ASSERT_NE(created[r].workspace, nullptr) << created[r].error;
      const WorkspaceView& view = created[r].workspace->view;
      EXPECT_EQ(view.rank, r);
      EXPECT_EQ(view.ranks, ranks);
      EXPECT_EQ(view.timeout_ns, ranks * uint64_t{1'000'000'000});
      EXPECT_EQ(created[r].workspace->device.compute_capability, 90);
      for (int p = 0; p < ranks; ++p) {
        EXPECT_EQ(view.inboxes[p], created[p].workspace->view.inboxes[p]);
        EXPECT_TRUE(p == r || view.inboxes[p] != view.inboxes[r]);
      }
    }
    // Per rank: the inbox, the fault. No stream is left.
    EXPECT_EQ(fake_cuda::Live(), 2 * ranks);
  }
}

// What the trial has stored is cleared again.
TEST_F(WorkspaceTest, IsReadyForThePushes) {
  const std::vector<Created> created = CreateOnThreads(3);
  for (const Created& c : created) {
    ASSERT_NE(c.workspace, nullptr) << c.error;
    const WorkspaceView& view = c.workspace->view;
    const auto* inbox = static_cast<const char*>(view.inboxes[view.rank]);
    const std::vector<char> cleared(InboxBytes(3), '\xFF');
    EXPECT_EQ(std::memcmp(inbox, cleared.data(), cleared.size()), 0);
    const Control control = {};
    EXPECT_EQ(std::memcmp(view.control, &control, sizeof(control)), 0);
    EXPECT_EQ(view.fault->raised, 0u);
  }
}

TEST_F(WorkspaceTest, NumberOfRanks) {
  for (const int ranks : {1, 9}) {
    // Known to each rank alone: nothing is exchanged.
    ThreadBootstrap::Room room(ranks);
    ThreadBootstrap bootstrap(room, 0);
    std::string error;
    EXPECT_EQ(CreateWorkspace(bootstrap, 0, "", &error), nullptr);
    EXPECT_EQ(error, "a group has 2 to 8 ranks, not " + std::to_string(ranks));
  }
}

TEST_F(WorkspaceTest, AnyFailureOfOneRankRefusesAll) {
  for (const char* function :
       {"cuMemAlloc", "cuMemHostAlloc", "cuStreamCreate", "cuStreamSynchronize",
        "cuMemcpyDtoHAsync", "cuDeviceGetAttribute", "cuLaunchKernel"}) {
    fake_cuda::Reset();
    fake_cuda::Fail(function, 1, CUDA_ERROR_OUT_OF_MEMORY);
    EXPECT_THAT(Refusal(CreateOnThreads(2)),
                AllOf(StartsWith("rank 1 (device 1 of process "),
                      HasSubstr("out of memory")))
        << function;
  }
}

TEST_F(WorkspaceTest, AnObjectionRefusesAll) {
  EXPECT_THAT(Refusal(CreateOnThreads(3, "no kernel")),
              AllOf(StartsWith("rank 2 (device 2 of process "),
                    HasSubstr("): no kernel")));
}

TEST_F(WorkspaceTest, ALongObjectionIsCut) {
  EXPECT_THAT(Refusal(CreateOnThreads(2, std::string(10000, 'x'))),
              HasSubstr(std::string(200, 'x')));
}

TEST_F(WorkspaceTest, DevicesThatAreTooOld) {
  fake_cuda::SetComputeCapability(1, 7, 5);
  EXPECT_THAT(Refusal(CreateOnThreads(2, "no kernel")),
              HasSubstr("device 1 has compute capability 7.5, at least 8.0"));
}

TEST_F(WorkspaceTest, NoPeerAccess) {
  fake_cuda::ForbidPeerAccess(2, 0);
  EXPECT_THAT(Refusal(CreateOnThreads(3)),
              AllOf(StartsWith("rank 2 "),
                    HasSubstr("no peer access from device 2 to device 0")));
}

TEST_F(WorkspaceTest, PeerAccessMayBeEnabledAlready) {
  ASSERT_NE(CreateOnThreads(2)[0].workspace, nullptr);
  const std::vector<Created> again = CreateOnThreads(2);
  ASSERT_NE(again[0].workspace, nullptr) << again[0].error;
}

TEST_F(WorkspaceTest, APathThatIsSlow) {
  fake_cuda::SetPeerLoadNs(1, kMaxPeerLoadNs + 1000);
  EXPECT_THAT(Refusal(CreateOnThreads(2)),
              AllOf(StartsWith("rank 1 "),
                    HasSubstr("a load from rank 0 takes 6.0 us")));
}

TEST_F(WorkspaceTest, StoresThatGetLost) {
  fake_cuda::LosePeerStores(1);
  EXPECT_THAT(Refusal(CreateOnThreads(2)),
              AllOf(StartsWith("rank 0 "),
                    HasSubstr("what rank 1 stored here has not arrived")));
}

// The first exchanges succeed, as if this rank were all of them.
class BreakingBootstrap : public Bootstrap {
 public:
  explicit BreakingBootstrap(int good) : good_(good) {}
  int rank() const override { return 0; }
  int size() const override { return 2; }
  bool AllGather(const void* mine, size_t bytes, void* all,
                 std::string* error) override {
    if (good_-- == 0) {
      *error = "broken";
      return false;
    }
    std::memcpy(all, mine, bytes);
    std::memcpy(static_cast<char*>(all) + bytes, mine, bytes);
    return true;
  }

 private:
  int good_;
};

// A peer that has passed the exchange may be storing already.
TEST_F(WorkspaceTest, NothingIsFreedAfterAnExchangeThatFailed) {
  for (const int good : {0, 1}) {
    fake_cuda::Reset();
    BreakingBootstrap bootstrap(good);
    std::string error;
    EXPECT_EQ(CreateWorkspace(bootstrap, 0, "", &error), nullptr);
    EXPECT_EQ(error, "broken");
    EXPECT_EQ(fake_cuda::Live(), 2);
  }
}

}  // namespace
}  // namespace oneshot
