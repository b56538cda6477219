// SPDX-License-Identifier: Apache-2.0
//
// The kernel of the call: one-shot all-reduce with its epilogue.
#ifndef ONESHOT_CUDA_ALL_REDUCE_KERNEL_H_
#define ONESHOT_CUDA_ALL_REDUCE_KERNEL_H_

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/epilogue.h"
#include "cuda/launch_plan.h"
#include "cuda/limits.h"

namespace oneshot {

// Words that only the kernels of the own device touch. On lines of their own:
// the first is read by all blocks, the second is updated by all.
struct Control {
  alignas(128) uint32_t epoch;    // launches so far, modulo 2^32
  alignas(128) uint32_t arrived;  // blocks of this launch that read the epoch
};

// An inbox, in the memory of the rank that reads it: 2 slots x ranks x message.
inline constexpr int64_t kPacketsPerMessage = kMaxMessageBytes / kPacketBytes;
constexpr size_t InboxBytes(int ranks) {
  return 2 * static_cast<size_t>(ranks) * kMaxMessageBytes;
}

// The memory of one group as one of its ranks sees it. Before the first launch
// every inbox holds kSentinel in all words, and every rank's epoch is the same
// with `arrived` zero.
struct WorkspaceView {
  int rank = 0;
  int ranks = 0;
  void* inboxes[kMaxRanks] = {};  // by rank, the own one included
  Control* control = nullptr;
};

// Enqueues the call. All ranks of the group must enqueue the same sequence of
// calls, each on one stream: two kernels that use the same workspace must never
// run at the same time on a device. Nothing in the launch depends on how many
// came before it, so it may be captured in a graph and replayed.
cudaError_t LaunchAllReduce(const LaunchPlan& plan, const Epilogue& epilogue,
                            const Buffers& buffers,
                            const WorkspaceView& workspace,
                            cudaStream_t stream);

// Loads every kernel that a group of this size may launch onto the current
// device. CUDA otherwise does it at the first launch and may then wait for
// the device, which a kernel that waits for a peer would turn into a deadlock.
cudaError_t LoadAllReduceKernels(int ranks);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_ALL_REDUCE_KERNEL_H_
