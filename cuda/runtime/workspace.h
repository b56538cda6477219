// SPDX-License-Identifier: Apache-2.0
//
// The memory that the ranks of a group share: one inbox on every device.
#ifndef ONESHOT_CUDA_RUNTIME_WORKSPACE_H_
#define ONESHOT_CUDA_RUNTIME_WORKSPACE_H_

#include <memory>
#include <string>

#include "cuda/runtime/bootstrap.h"
#include "cuda/runtime/device.h"
#include "cuda/runtime/workspace_view.h"

namespace oneshot {

// One rank's part. There is no destructor that frees device memory: a peer's
// kernel may still write here, and at the end of the process the driver may be
// gone before static destructors run. A workspace lives as long as the process.
struct Workspace {
  WorkspaceView view;
  DeviceTraits device;
};

// Collective over the group: every rank calls it for its own device, and either
// all get a workspace or all get null with the same reason in `error`, which
// names the rank that objected. Ranks may be threads of one process or
// processes of one machine, in any mixture. That peers can reach each other's
// memory is tried, not only asked. A rank that can't take part for a reason of
// the caller's says so with a nonempty `objection`: had it stayed away, its
// peers would wait for it.
std::unique_ptr<Workspace> CreateWorkspace(Bootstrap& bootstrap, int device,
                                           const std::string& objection,
                                           std::string* error);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_WORKSPACE_H_
