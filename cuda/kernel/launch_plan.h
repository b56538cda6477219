// SPDX-License-Identifier: Apache-2.0
//
// How one call is spread over thread blocks: a pure function of its shape.
#ifndef ONESHOT_CUDA_KERNEL_LAUNCH_PLAN_H_
#define ONESHOT_CUDA_KERNEL_LAUNCH_PLAN_H_

#include <cstdint>
#include <optional>

#include "cuda/program/epilogue_program.h"

namespace oneshot {

// What a plan may use of a device.
struct DeviceLimits {
  int multiprocessors = 0;
  int max_cluster = 1;  // blocks that can share a row; 1: no clusters
};

// The free choices of a plan. None of them changes a result.
struct Tuning {
  int threads = 0;        // in a block, a multiple of 32
  int packets = 0;        // of a row to a thread
  int cluster = 1;        // blocks to a row that is reduced
  bool two_shot = false;  // see all_reduce_kernel.cuh

  bool operator==(const Tuning& other) const {
    return threads == other.threads && packets == other.packets &&
           cluster == other.cluster && two_shot == other.two_shot;
  }
};

// The fastest tuning, by measurement, for so many rows of so many packets that
// are reduced.
struct Measured {
  int packets = 0;
  int rows = 0;
  Tuning tuning;
};

// The rows the kernel sees and the number of shots are the wire format: all
// ranks must agree on them. The rest only decides which thread does what.
struct LaunchPlan {
  int rows = 0;
  int hidden = 0;
  int packets_per_row = 0;
  int tiles_per_row = 0;  // a tile is the work of one block at a time
  Tuning tuning;
  int blocks = 0;  // 0: there is nothing to do
};

// Whether a message of so many bytes goes in two shots. Depends on nothing that
// might differ between ranks.
bool TakesTwoShots(const EpilogueProgram& program, int64_t bytes, int ranks);

// Empty when a message of this shape does not fit the workspace, or a row that
// is reduced does not fit a cluster.
std::optional<LaunchPlan> PlanLaunch(const EpilogueProgram& program,
                                     int64_t rows, int64_t hidden, int ranks,
                                     const DeviceLimits& device);

// The same with a tuning of the caller's, for benchmarks; empty also when the
// tuning does not fit the shape.
std::optional<LaunchPlan> PlanLaunch(const EpilogueProgram& program,
                                     int64_t rows, int64_t hidden, int ranks,
                                     const DeviceLimits& device,
                                     const Tuning& tuning);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_KERNEL_LAUNCH_PLAN_H_
