// SPDX-License-Identifier: Apache-2.0
//
// The workspaces of this process.
#ifndef ONESHOT_CUDA_HANDLERS_WORKSPACE_CACHE_H_
#define ONESHOT_CUDA_HANDLERS_WORKSPACE_CACHE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/runtime/workspace.h"

namespace oneshot {

// The workspace of `device` for a communicator of XLA. The first call for a
// communicator is collective over its ranks, like CreateWorkspace. Executables
// that share a communicator share the workspace: XLA lets only one of them at a
// time hold it, and runs our kernels on one stream per device.
//
// `objection` is as for CreateWorkspace, and matters to the first call alone.
//
// `groups` only guards against a communicator that was destroyed and another
// that came to lie at its address.
const Workspace* FindOrCreateWorkspace(
    void* communicator, int device,
    const std::vector<std::vector<int64_t>>& groups,
    const std::string& objection, std::string* error);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_HANDLERS_WORKSPACE_CACHE_H_
