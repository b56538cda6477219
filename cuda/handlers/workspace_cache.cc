// SPDX-License-Identifier: Apache-2.0
#include "cuda/handlers/workspace_cache.h"

#include <map>
#include <memory>
#include <mutex>
#include <tuple>

#include "cuda/handlers/nccl_bootstrap.h"
#include "cuda/runtime/device_guard.h"

namespace oneshot {
namespace {

using Key = std::tuple<void*, int, std::vector<std::vector<int64_t>>>;

struct Cache {
  std::mutex mutex;
  std::map<Key, std::unique_ptr<Workspace>> workspaces;
};

Cache& GlobalCache() {
  static Cache* const cache = new Cache;  // see Workspace for why it is leaked
  return *cache;
}

}  // namespace

const Workspace* FindOrCreateWorkspace(
    void* communicator, int device,
    const std::vector<std::vector<int64_t>>& groups,
    const std::string& objection, std::string* error) {
  Cache& cache = GlobalCache();
  const Key key(communicator, device, groups);
  {
    const std::lock_guard<std::mutex> lock(cache.mutex);
    const auto found = cache.workspaces.find(key);
    if (found != cache.workspaces.end()) return found->second.get();
  }
  // Without the lock: the exchange waits for other ranks, whose threads must be
  // able to get here. No second thread does the same for this key, because XLA
  // lets one execution at a time hold the communicator on a device.
  const DeviceGuard guard(device);
  const std::unique_ptr<NcclBootstrap> bootstrap =
      NcclBootstrap::Create(communicator, error);
  if (bootstrap == nullptr) return nullptr;
  std::unique_ptr<Workspace> workspace =
      CreateWorkspace(*bootstrap, device, objection, error);
  if (workspace == nullptr) return nullptr;
  const std::lock_guard<std::mutex> lock(cache.mutex);
  return cache.workspaces.emplace(key, std::move(workspace))
      .first->second.get();
}

}  // namespace oneshot
