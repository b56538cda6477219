// SPDX-License-Identifier: Apache-2.0
//
// How one call is spread over thread blocks: a pure function of its shape.
#ifndef ONESHOT_CUDA_LAUNCH_PLAN_H_
#define ONESHOT_CUDA_LAUNCH_PLAN_H_

#include <cstdint>
#include <optional>

#include "cuda/epilogue.h"

namespace oneshot {

// The rows the kernel sees are the wire format: all ranks must agree on them.
// The rest only decides which thread does what.
struct LaunchPlan {
  int rows = 0;
  int hidden = 0;
  int packets_per_row = 0;
  int tiles_per_row = 0;       // a tile is the work of one block at a time
  int packets_per_thread = 0;  // 1, 2 or 4; threads cover a tile exactly once
  int threads = 0;
  int blocks = 0;  // 0: there is nothing to do
};

// Empty when a message of this shape does not fit the workspace.
std::optional<LaunchPlan> PlanLaunch(const Epilogue& epilogue, int64_t rows,
                                     int64_t hidden, int multiprocessors);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_LAUNCH_PLAN_H_
