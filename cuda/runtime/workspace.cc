// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/workspace.h"

#include <cuda.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>
#include <vector>

#include "cuda/program/call_contract.h"
#include "cuda/runtime/cuda_check.h"
#include "cuda/runtime/cuda_driver.h"
#include "cuda/runtime/device_guard.h"
#include "cuda/runtime/fault.h"
#include "cuda/runtime/peer_check.h"

namespace oneshot {
namespace {

constexpr uint64_t kMagic = 0x746F6873656E6F00;  // "oneshot"
constexpr int kMinComputeCapability = 80;        // bfloat16 conversions

// Layouts that both sides of a link must share.
constexpr uint64_t kLayout =
    static_cast<uint64_t>(kAbiVersion) << 48 ^
    static_cast<uint64_t>(MaxMessageBytes(kMinRanks)) << 8 ^ kMaxRanks;

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
  char machine[40];                 // its boot; containers of one share it
  std::array<uint32_t, 4> process;  // random; pointers are valid within it only
  int32_t pid;
  int32_t device;
  uint64_t inbox;
  CUipcMemHandle handle;  // of the inbox, for other processes
  Reason reason;          // why this rank has no inbox
};

const std::array<uint32_t, 4>& ProcessId() {
  // Process numbers are not enough: containers of one machine repeat them.
  static const std::array<uint32_t, 4> id = [] {
    std::random_device random;
    return std::array<uint32_t, 4>{random(), random(), random(), random()};
  }();
  return id;
}

// The kernel's name for this boot of this machine; empty where it has none.
void ReadMachine(char (&machine)[40]) {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  file.getline(machine, sizeof(machine));
}

bool Check(CUresult status, const char* what, Reason& reason) {
  std::string error;
  if (CudaSucceeded(status, what, &error)) return true;
  reason.Set("%s", error.c_str());
  return false;
}

// A stream that waits for no other work of the device.
class OwnStream {
 public:
  explicit OwnStream(Reason& reason) {
    Check(Cuda().StreamCreate(&stream_, CU_STREAM_NON_BLOCKING),
          "cuStreamCreate", reason);
  }
  ~OwnStream() {
    if (stream_ != nullptr) Cuda().StreamDestroy(stream_);
  }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  CUstream get() const { return stream_; }

 private:
  CUstream stream_ = nullptr;
};

// What one rank allocates and maps, released if the group is refused.
struct Holding {
  CUdeviceptr memory = 0;  // the inbox, and the control words behind it
  Fault* fault = nullptr;
  std::vector<CUdeviceptr> opened;  // inboxes of other processes

  void Release() {
    for (const CUdeviceptr inbox : opened) Cuda().IpcCloseMemHandle(inbox);
    if (memory != 0) Cuda().MemFree(memory);
    if (fault != nullptr) Cuda().MemFreeHost(fault);
  }
};

// Fills the inbox with kSentinel and waits until it is filled.
bool FillInbox(CUdeviceptr inbox, int ranks, CUstream stream, Reason& reason) {
  static_assert(kSentinel == 0xFFFFFFFFu, "filled byte by byte");
  return Check(Cuda().MemsetD8Async(inbox, 0xFF, InboxBytes(ranks), stream),
               "cuMemsetD8Async", reason) &&
         Check(Cuda().StreamSynchronize(stream), "cuStreamSynchronize", reason);
}

// Everything a rank can do on its own. The inbox is ready for a push before
// anybody learns its address.
void PrepareDevice(int device, int ranks, DeviceTraits* traits,
                   Holding& holding, Introduction& mine) {
  Reason& reason = mine.reason;
  std::string error;
  if (!QueryDevice(device, traits, &error)) {
    reason.Set("%s", error.c_str());
    return;
  }
  const int capability = traits->compute_capability;
  if (capability < kMinComputeCapability) {
    reason.Set("device %d has compute capability %d.%d, at least 8.0 is needed",
               device, capability / 10, capability % 10);
    return;
  }
  if (!Check(
          Cuda().MemAlloc(&holding.memory, InboxBytes(ranks) + sizeof(Control)),
          "allocation of the workspace", reason)) {
    return;
  }
  mine.inbox = holding.memory;
  const OwnStream stream(reason);
  if (stream.get() == nullptr ||
      !Check(Cuda().MemHostAlloc(
                 reinterpret_cast<void**>(&holding.fault), sizeof(Fault),
                 CU_MEMHOSTALLOC_DEVICEMAP | CU_MEMHOSTALLOC_PORTABLE),
             "cuMemHostAlloc", reason) ||
      !Check(Cuda().MemsetD8Async(holding.memory + InboxBytes(ranks), 0,
                                  sizeof(Control), stream.get()),
             "cuMemsetD8Async", reason) ||
      !FillInbox(holding.memory, ranks, stream.get(), reason)) {
    return;
  }
  *holding.fault = {};
  // Containers without shared memory of processes refuse this; whether anybody
  // needs it is not known yet.
  if (Cuda().IpcGetMemHandle(&mine.handle, holding.memory) != CUDA_SUCCESS) {
    mine.handle = {};
  }
}

void ReachPeer(int device, int peer, Reason& reason) {
  int possible = 0;
  if (!Check(CanAccessPeer(&possible, device, peer), "cuDeviceCanAccessPeer",
             reason)) {
    return;
  }
  if (!possible) {
    reason.Set("no peer access from device %d to device %d", device, peer);
    return;
  }
  Check(EnablePeerAccess(peer), "cuCtxEnablePeerAccess", reason);
}

// The inbox of `other` as this rank can address it; null with a reason if this
// rank cannot work with it. It may be on the same device, if its process is
// another: their kernels take turns then, slowly, which is enough for tests.
void* MapInbox(const Introduction& mine, const Introduction& other,
               int other_rank, Holding& holding, Reason& reason) {
  if (other.reason) return nullptr;  // that rank will say so itself
  if (other.magic != kMagic || other.layout != kLayout) {
    reason.Set("rank %d runs another version of Oneshot", other_rank);
  } else if (other.process == mine.process) {
    ReachPeer(mine.device, other.device, reason);
    if (!reason) return reinterpret_cast<void*>(other.inbox);
  } else if (mine.machine[0] == '\0' ||
             std::memcmp(mine.machine, other.machine, sizeof(mine.machine)) !=
                 0) {
    reason.Set("rank %d is on another machine", other_rank);
  } else {
    CUdeviceptr inbox = 0;
    if (Check(Cuda().IpcOpenMemHandle(&inbox, other.handle,
                                      CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS),
              "cuIpcOpenMemHandle", reason)) {
      holding.opened.push_back(inbox);
      return reinterpret_cast<void*>(inbox);
    }
  }
  return nullptr;
}

enum class Outcome { kAgreed, kRefused, kExchangeFailed };

// The ranks tell each other what they found: one that backed out alone would
// leave its peers waiting for it in a kernel. Refused if any has a reason.
Outcome Vote(Bootstrap& bootstrap, const Reason& verdict,
             const std::vector<Introduction>& all, std::string* error) {
  std::vector<Reason> verdicts(bootstrap.size());
  if (!bootstrap.AllGather(&verdict, sizeof(verdict), verdicts.data(), error)) {
    return Outcome::kExchangeFailed;
  }
  for (int r = 0; r < bootstrap.size(); ++r) {
    if (!verdicts[r]) continue;
    *error = "rank " + std::to_string(r) + " (device " +
             std::to_string(all[r].device) + " of process " +
             std::to_string(all[r].pid) + "): " + verdicts[r].text;
    return Outcome::kRefused;
  }
  return Outcome::kAgreed;
}

constexpr uint32_t PatternOf(int rank) { return 0x5EED0000u + rank; }

// The words of an inbox that `writer` stores to in the trial.
uint32_t* TrialPlace(void* inbox, int ranks, int writer) {
  return reinterpret_cast<uint32_t*>(static_cast<char*>(inbox) +
                                     writer * MaxMessageBytes(ranks));
}

void TryPeers(const WorkspaceView& view, int compute_capability,
              Reason& reason) {
  const OwnStream stream(reason);
  for (int r = 0; r < view.ranks && !reason; ++r) {
    if (r == view.rank) continue;
    double load_ns = 0;
    std::string error;
    if (!TryPeer(TrialPlace(view.inboxes[r], view.ranks, view.rank),
                 PatternOf(view.rank), compute_capability, stream.get(),
                 &load_ns, &error)) {
      reason.Set("%s", error.c_str());
    } else if (load_ns > kMaxPeerLoadNs) {
      reason.Set("a load from rank %d takes %.1f us, over NVLink it takes 1", r,
                 load_ns / 1000);
    }
  }
}

// Checks what the peers have stored here and clears the inbox again.
void VerifyPeers(const WorkspaceView& view, Reason& reason) {
  const OwnStream stream(reason);
  void* inbox = view.inboxes[view.rank];
  for (int r = 0; r < view.ranks && !reason; ++r) {
    if (r == view.rank) continue;
    uint32_t words[4] = {};
    if (Check(Cuda().MemcpyDtoHAsync(words,
                                     reinterpret_cast<CUdeviceptr>(
                                         TrialPlace(inbox, view.ranks, r)),
                                     sizeof(words), stream.get()),
              "cuMemcpyDtoHAsync", reason) &&
        Check(Cuda().StreamSynchronize(stream.get()), "cuStreamSynchronize",
              reason)) {
      for (const uint32_t word : words) {
        if (word != PatternOf(r)) {
          reason.Set("what rank %d stored here has not arrived", r);
        }
      }
    }
  }
  FillInbox(reinterpret_cast<CUdeviceptr>(inbox), view.ranks, stream.get(),
            reason);
}

}  // namespace

std::unique_ptr<Workspace> CreateWorkspace(Bootstrap& bootstrap, int device,
                                           const std::string& objection,
                                           std::string* error) {
  const int rank = bootstrap.rank();
  const int ranks = bootstrap.size();
  if (ranks < kMinRanks || ranks > kMaxRanks) {  // known to all ranks alike
    *error = "a group has 2 to 8 ranks, not " + std::to_string(ranks);
    return nullptr;
  }
  const DeviceGuard guard(device);
  auto workspace = std::make_unique<Workspace>();
  Holding holding;
  Introduction mine = {};
  mine.magic = kMagic;
  mine.layout = kLayout;
  ReadMachine(mine.machine);
  mine.process = ProcessId();
  mine.pid = static_cast<int32_t>(getpid());
  mine.device = device;
  if (Check(guard.status(), "the device's context", mine.reason)) {
    PrepareDevice(device, ranks, &workspace->device, holding, mine);
  }
  if (!objection.empty()) mine.reason.Set("%s", objection.c_str());

  WorkspaceView& view = workspace->view;
  view.rank = rank;
  view.ranks = ranks;
  std::vector<Introduction> all(ranks);
  Outcome outcome = bootstrap.AllGather(&mine, sizeof(mine), all.data(), error)
                        ? Outcome::kAgreed
                        : Outcome::kExchangeFailed;
  if (outcome == Outcome::kAgreed) {
    Reason verdict = mine.reason;
    for (int r = 0; r < ranks && !verdict; ++r) {
      view.inboxes[r] = r == rank ? reinterpret_cast<void*>(holding.memory)
                                  : MapInbox(mine, all[r], r, holding, verdict);
    }
    outcome = Vote(bootstrap, verdict, all, error);
  }
  // Each vote is also a barrier: all have stored before any looks, and all have
  // cleaned up before any pushes.
  if (outcome == Outcome::kAgreed) {
    Reason verdict;
    TryPeers(view, workspace->device.compute_capability, verdict);
    outcome = Vote(bootstrap, verdict, all, error);
  }
  if (outcome == Outcome::kAgreed) {
    Reason verdict;
    VerifyPeers(view, verdict);
    outcome = Vote(bootstrap, verdict, all, error);
  }
  // After a vote no rank touches the memory any more. After an exchange that
  // failed the memory stays: a peer may still store to it, and CUDA frees it
  // only when the exchange on this device ends, which may be never.
  if (outcome == Outcome::kRefused) holding.Release();
  if (outcome != Outcome::kAgreed) return nullptr;
  view.control = reinterpret_cast<Control*>(holding.memory + InboxBytes(ranks));
  view.fault = holding.fault;
  view.notice_ns = kNoticeNs;
  view.timeout_ns = TimeoutNs();
  WatchFault(holding.fault);
  return workspace;
}

}  // namespace oneshot
