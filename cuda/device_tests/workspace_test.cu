// SPDX-License-Identifier: Apache-2.0
//
// Workspaces of ranks that are threads of one process.
#include <cstdio>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device_tests/test_support.h"
#include "cuda/runtime/thread_bootstrap.h"
#include "cuda/runtime/workspace.h"

namespace oneshot {
namespace {

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
      created[r].workspace = CreateWorkspace(
          bootstrap, devices[r], /*objection=*/"", &created[r].error);
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
