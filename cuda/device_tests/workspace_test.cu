// SPDX-License-Identifier: Apache-2.0
//
// Workspaces of ranks that are threads of one process.
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device_tests/test_support.h"
#include "cuda/runtime/bootstrap.h"
#include "cuda/runtime/workspace.h"

namespace oneshot {
namespace {

class ThreadBootstrap : public Bootstrap {
 public:
  struct Room {
    explicit Room(int size) : size(size) {}
    const int size;
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<uint8_t> data;
    int arrived = 0;
    int left = 0;
  };

  ThreadBootstrap(Room& room, int rank) : room_(room), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return room_.size; }
  bool AllGather(const void* mine, size_t bytes, void* all,
                 std::string*) override {
    std::unique_lock<std::mutex> lock(room_.mutex);
    room_.changed.wait(lock, [&] { return room_.left == 0; });
    room_.data.resize(room_.size * bytes);
    std::memcpy(room_.data.data() + rank_ * bytes, mine, bytes);
    ++room_.arrived;
    room_.changed.notify_all();
    room_.changed.wait(lock, [&] { return room_.arrived == room_.size; });
    std::memcpy(all, room_.data.data(), room_.data.size());
    if (++room_.left == room_.size) room_.arrived = room_.left = 0;
    room_.changed.notify_all();
    return true;
  }

 private:
  Room& room_;
  const int rank_;
};

struct Created {
  std::unique_ptr<Workspace> workspace;
  std::string error;
};

std::vector<Created> CreateOnThreads(const std::vector<int>& devices) {
  const int ranks = static_cast<int>(devices.size());
  ThreadBootstrap::Room room(ranks);
  std::vector<Created> created(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      ThreadBootstrap bootstrap(room, r);
      created[r].workspace =
          CreateWorkspace(bootstrap, devices[r], &created[r].error);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return created;
}

}  // namespace

void TestWorkspaces(const Options& options, Report& report) {
  const int device = options.devices[0];
  const std::vector<Created> refused = CreateOnThreads({device, device});
  bool same = true;
  for (const Created& c : refused) {
    same = same && c.workspace == nullptr && c.error == refused[0].error &&
           c.error.find("rank 0") != std::string::npos &&
           c.error.find("no peer access") != std::string::npos;
  }
  report.Case("workspace refused by all alike: " + refused[0].error, same);

  if (options.devices.size() < 2) return;
  const std::vector<Created> granted = CreateOnThreads(options.devices);
  const int ranks = static_cast<int>(granted.size());
  bool good = true;
  for (int r = 0; r < ranks; ++r) {
    const Workspace* workspace = granted[r].workspace.get();
    if (workspace == nullptr) {
      std::printf("  rank %d: %s\n", r, granted[r].error.c_str());
      good = false;
      continue;
    }
    good = good && workspace->view.rank == r &&
           workspace->view.ranks == ranks &&
           workspace->device.limits.multiprocessors > 0;
    for (int p = 0; p < ranks && good; ++p) {
      good =
          workspace->view.inboxes[p] == granted[p].workspace->view.inboxes[p];
    }
  }
  report.Case("workspace on " + std::to_string(ranks) + " devices", good);
}

}  // namespace oneshot
