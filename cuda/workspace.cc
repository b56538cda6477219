// SPDX-License-Identifier: Apache-2.0
#include "cuda/workspace.h"

#include <cuda_runtime_api.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "cuda/device_guard.h"
#include "cuda/limits.h"

namespace oneshot {
namespace {

constexpr uint64_t kMagic = 0x746F6873656E6F00;  // "oneshot"
constexpr int kMinComputeCapability = 80;        // bfloat16 conversions

// Layouts that both sides of a link must share.
constexpr uint64_t kLayout = static_cast<uint64_t>(kAbiVersion) << 48 ^
                             static_cast<uint64_t>(MaxMessageBytes(1)) << 8 ^
                             kMaxRanks;

// A reason to refuse, as it travels between ranks; empty: none.
struct Reason {
  char text[240] = {};

  explicit operator bool() const { return text[0] != '\0'; }

  template <typename... Arguments>
  void Set(const char* format, Arguments... arguments) {
    if (!*this) std::snprintf(text, sizeof(text), format, arguments...);
  }
};

// What every rank tells the others first.
struct Introduction {
  uint64_t magic;
  uint64_t layout;
  std::array<uint32_t, 4> process;  // random; pointers are valid within it only
  int32_t pid;
  int32_t device;
  uint64_t inbox;
  Reason reason;  // why this rank has no inbox
};

const std::array<uint32_t, 4>& ProcessId() {
  // Process numbers are not enough: containers of one machine repeat them.
  static const std::array<uint32_t, 4> id = [] {
    std::random_device random;
    return std::array<uint32_t, 4>{random(), random(), random(), random()};
  }();
  return id;
}

bool Check(cudaError_t status, const char* what, Reason& reason) {
  if (status == cudaSuccess) return true;
  reason.Set("%s: %s", what, cudaGetErrorString(status));
  cudaGetLastError();  // ours: XLA must not find it
  return false;
}

// Allocates the inbox and the control words behind it, ready for a push: the
// host waits for the fill, so nobody can learn the address before it is done.
char* AllocateInbox(int ranks, Reason& reason) {
  void* allocation = nullptr;
  if (!Check(cudaMalloc(&allocation, InboxBytes(ranks) + sizeof(Control)),
             "allocation of the workspace", reason)) {
    return nullptr;
  }
  char* memory = static_cast<char*>(allocation);
  cudaStream_t stream = nullptr;
  static_assert(kSentinel == 0xFFFFFFFFu, "filled byte by byte");
  const bool filled =
      Check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
            "cudaStreamCreate", reason) &&
      Check(cudaMemsetAsync(memory, 0xFF, InboxBytes(ranks), stream),
            "cudaMemset", reason) &&
      Check(cudaMemsetAsync(memory + InboxBytes(ranks), 0, sizeof(Control),
                            stream),
            "cudaMemset", reason) &&
      Check(cudaStreamSynchronize(stream), "cudaStreamSynchronize", reason);
  if (stream != nullptr) cudaStreamDestroy(stream);
  if (filled) return memory;
  cudaFree(memory);
  return nullptr;
}

void EnablePeerAccess(int device, int peer, Reason& reason) {
  int possible = 0;
  if (!Check(cudaDeviceCanAccessPeer(&possible, device, peer),
             "cudaDeviceCanAccessPeer", reason)) {
    return;
  }
  if (!possible) {
    reason.Set("no peer access from device %d to device %d", device, peer);
    return;
  }
  const cudaError_t status = cudaDeviceEnablePeerAccess(peer, /*flags=*/0);
  if (status == cudaErrorPeerAccessAlreadyEnabled) {
    cudaGetLastError();  // as good; XLA may have done it
    return;
  }
  Check(status, "cudaDeviceEnablePeerAccess", reason);
}

// Whether `mine` can work with `other`; makes the memory accessible if so.
void Accept(const Introduction& mine, const Introduction& other, int other_rank,
            Reason& reason) {
  if (other.reason) return;  // that rank will say so itself
  if (other.magic != kMagic || other.layout != kLayout) {
    reason.Set("rank %d runs another version", other_rank);
  } else if (other.process != mine.process) {
    reason.Set(
        "rank %d is in process %d and this one in %d; groups that span "
        "processes are not supported yet",
        other_rank, other.pid, mine.pid);
  } else if (other.device == mine.device) {
    reason.Set("rank %d is on the same device %d", other_rank, mine.device);
  } else {
    EnablePeerAccess(mine.device, other.device, reason);
  }
}

// Everything a rank can do on its own.
char* PrepareDevice(int device, int ranks, DeviceTraits* traits,
                    Reason& reason) {
  std::string error;
  if (!QueryDevice(device, traits, &error)) {
    reason.Set("%s", error.c_str());
    return nullptr;
  }
  const int capability = traits->compute_capability;
  if (capability < kMinComputeCapability) {
    reason.Set("device %d has compute capability %d.%d, at least 8.0 is needed",
               device, capability / 10, capability % 10);
    return nullptr;
  }
  return AllocateInbox(ranks, reason);
}

}  // namespace

std::unique_ptr<Workspace> CreateWorkspace(Bootstrap& bootstrap, int device,
                                           std::string* error) {
  const int rank = bootstrap.rank();
  const int ranks = bootstrap.size();
  if (ranks < kMinRanks || ranks > kMaxRanks) {  // known to all ranks alike
    *error = "a group has 2 to 8 ranks, not " + std::to_string(ranks);
    return nullptr;
  }
  const DeviceGuard guard(device);
  auto workspace = std::make_unique<Workspace>();

  Introduction mine = {};
  char* memory = nullptr;
  if (Check(guard.status(), "cudaSetDevice", mine.reason)) {
    memory = PrepareDevice(device, ranks, &workspace->device, mine.reason);
  }
  mine.magic = kMagic;
  mine.layout = kLayout;
  mine.process = ProcessId();
  mine.pid = static_cast<int32_t>(getpid());
  mine.device = device;
  mine.inbox = reinterpret_cast<uint64_t>(memory);

  std::vector<Introduction> all(ranks);
  if (!bootstrap.AllGather(&mine, sizeof(mine), all.data(), error)) {
    cudaFree(memory);
    return nullptr;
  }

  // The vote. A rank that backed out alone would leave its peers waiting for it
  // in a kernel, so the ranks tell each other what they found.
  Reason verdict = mine.reason;
  for (int r = 0; r < ranks && !verdict; ++r) {
    if (r != rank) Accept(mine, all[r], r, verdict);
  }
  std::vector<Reason> verdicts(ranks);
  if (!bootstrap.AllGather(&verdict, sizeof(verdict), verdicts.data(), error)) {
    cudaFree(memory);
    return nullptr;
  }
  for (int r = 0; r < ranks; ++r) {
    if (verdicts[r]) {
      *error = "rank " + std::to_string(r) + " (device " +
               std::to_string(all[r].device) + "): " + verdicts[r].text;
      cudaFree(memory);
      return nullptr;
    }
  }

  workspace->view.rank = rank;
  workspace->view.ranks = ranks;
  for (int r = 0; r < ranks; ++r) {
    workspace->view.inboxes[r] = reinterpret_cast<void*>(all[r].inbox);
  }
  workspace->view.control =
      reinterpret_cast<Control*>(memory + InboxBytes(ranks));
  return workspace;
}

}  // namespace oneshot
