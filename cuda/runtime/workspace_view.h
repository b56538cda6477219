// SPDX-License-Identifier: Apache-2.0
//
// The memory of a group of ranks as a kernel is given it.
#ifndef ONESHOT_CUDA_RUNTIME_WORKSPACE_VIEW_H_
#define ONESHOT_CUDA_RUNTIME_WORKSPACE_VIEW_H_

#include <cstddef>
#include <cstdint>

#include "cuda/kernel/device/arguments.h"
#include "cuda/program/call_contract.h"

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
  uint64_t notice_ns = 0;  // see KernelArguments
  uint64_t timeout_ns = 0;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_WORKSPACE_VIEW_H_
