// SPDX-License-Identifier: Apache-2.0
//
// Compiles, loads and launches the kernel of a call.
#ifndef ONESHOT_CUDA_RUNTIME_LAUNCH_H_
#define ONESHOT_CUDA_RUNTIME_LAUNCH_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <string>

#include "cuda/kernel/device/arguments.h"
#include "cuda/kernel/launch_plan.h"
#include "cuda/program/buffers.h"
#include "cuda/program/call_contract.h"
#include "cuda/program/epilogue_program.h"

namespace oneshot {

// An inbox, in the memory of the rank that reads it: 2 slots x peers x message.
constexpr size_t InboxBytes(int ranks) {
  return 2 * static_cast<size_t>(ranks - 1) * MaxMessageBytes(ranks);
}

// The memory of one group as one of its ranks sees it. Before the first launch
// every inbox holds kSentinel in all words, and every rank's epoch is the same
// with the other words of `control` zero.
struct WorkspaceView {
  int rank = 0;
  int ranks = 0;
  void* inboxes[kMaxRanks] = {};  // by rank, the own one included
  Control* control = nullptr;
  Fault* fault = nullptr;  // in memory of the host
  uint64_t timeout_ns = 0;
};

// What a device offers, and which machine code it takes.
struct DeviceTraits {
  int compute_capability = 0;  // e.g. 90
  DeviceLimits limits;
};

// Of the device with this number. Returns false and says why.
bool QueryDevice(int device, DeviceTraits* traits, std::string* error);

// A kernel for one program, shape and number of ranks, for all devices of one
// compute capability.
struct Kernel {
  LaunchPlan plan;
  cudaKernel_t function = nullptr;  // null: there is nothing to launch
  bool wide = false;                // needs aligned buffers
};

// The kernel from the process's cache, or a new one, which takes a fraction of
// a second. Thread-safe. Null with the reason in `error` if the shape does not
// fit or the compiler is missing. `aligned`: all buffers will be. Kernels are
// never released: executables of XLA, and graphs that were captured from them,
// do not say when they are gone.
const Kernel* FindOrCompileKernel(const EpilogueProgram& program, int64_t rows,
                                  int64_t hidden, int ranks, bool aligned,
                                  const DeviceTraits& device,
                                  std::string* error);
// With a tuning of the caller's.
const Kernel* FindOrCompileKernel(const EpilogueProgram& program,
                                  const LaunchPlan& plan, int ranks,
                                  bool aligned, const DeviceTraits& device,
                                  std::string* error);

// Whether all buffers start where accesses of 16 bytes may.
bool IsAligned(const Buffers& buffers);

// Puts a kernel onto the current device. CUDA otherwise does it at the first
// launch and may then wait for the device, which a kernel that waits for a peer
// would turn into a deadlock.
cudaError_t LoadKernel(const Kernel& kernel);

// Enqueues the call. All ranks of the group must enqueue the same sequence of
// calls, each on one stream: two kernels that use the same workspace must never
// run at the same time on a device. Nothing in the launch depends on how many
// came before it, so it may be captured in a graph and replayed.
cudaError_t LaunchAllReduce(const Kernel& kernel, const Buffers& buffers,
                            const WorkspaceView& workspace, uint64_t site,
                            cudaStream_t stream);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_LAUNCH_H_
