// SPDX-License-Identifier: Apache-2.0
//
// Loads and launches the kernel of a call.
#ifndef ONESHOT_CUDA_RUNTIME_LAUNCH_H_
#define ONESHOT_CUDA_RUNTIME_LAUNCH_H_

#include <cuda.h>

#include <cstdint>

#include "cuda/program/buffers.h"
#include "cuda/runtime/kernel_cache.h"
#include "cuda/runtime/workspace_view.h"

namespace oneshot {

// Whether all buffers start where accesses of 16 bytes may.
bool IsAligned(const Buffers& buffers);

// Puts a kernel onto the current device. CUDA otherwise does it at the first
// launch and may then wait for the device, which a kernel that waits for a peer
// would turn into a deadlock.
CUresult LoadKernel(const Kernel& kernel);

// Enqueues the call. All ranks of the group must enqueue the same sequence of
// calls, each on one stream: two kernels that use the same workspace must never
// run at the same time on a device. Nothing in the launch depends on how many
// came before it, so it may be captured in a graph and replayed.
CUresult LaunchAllReduce(const Kernel& kernel, const Buffers& buffers,
                         const WorkspaceView& workspace, uint64_t site,
                         CUstream stream);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_LAUNCH_H_
