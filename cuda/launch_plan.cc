// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch_plan.h"

#include <algorithm>

#include "cuda/limits.h"

namespace oneshot {
namespace {

constexpr int kWarp = 32;

// What of a multiprocessor the blocks of one call may fill. All of them are
// then resident at once with up to 128 registers a thread.
constexpr int kThreadsPerMultiprocessor = 512;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows and row length as the kernel sees them.
struct Shape {
  int64_t rows;
  int64_t hidden;
  int64_t packets;  // in a row
  bool reduces;     // along a row
};

std::optional<Shape> ShapeOnWire(const EpilogueProgram& program, int64_t rows,
                                 int64_t hidden, int ranks) {
  const Analysis analysis = Analyze(program);
  if (!analysis.needs_rows) {  // one long row has no padding between rows
    hidden *= rows;
    rows = 1;
  }
  const int64_t row_bytes = PaddedRowBytes(hidden * ByteWidth(program.x));
  if (row_bytes > MaxMessageBytes(ranks) ||
      rows * row_bytes > MaxMessageBytes(ranks) ||
      (analysis.has_reduction && row_bytes > kMaxRowBytes)) {
    return std::nullopt;
  }
  return Shape{rows, hidden, row_bytes / kPacketBytes, analysis.has_reduction};
}

// By measurement on H200; see docs/benchmarks. Without a reduction small blocks
// load and store in parallel, until there are more than are worth having. With
// one, a cluster of small blocks takes a row, and with many rows fewer, fuller
// blocks.
Tuning Choose(const Shape& shape, const DeviceLimits& device) {
  Tuning tuning;
  if (!shape.reduces) {
    tuning.threads = 128;
    tuning.packets = 1;
    const int64_t tiles = shape.rows * CeilDivide(shape.packets, 128);
    if (tiles > 2 * device.multiprocessors) tuning.packets = 2;
  } else {
    tuning.cluster = device.max_cluster;
    tuning.threads = 128;
    tuning.packets = 1;
    const auto covered = [&] {
      return int64_t{tuning.threads} * tuning.packets * tuning.cluster;
    };
    // Rows that are short need no cluster, long ones more of everything.
    while (tuning.cluster > 1 && covered() / 2 >= shape.packets) {
      tuning.cluster /= 2;
    }
    while (covered() < shape.packets) {
      if (tuning.threads < 256 || tuning.packets == kMaxPacketsPerThread) {
        tuning.threads *= 2;
      } else {
        tuning.packets *= 2;
      }
    }
  }
  const int64_t needed = CeilDivide(shape.packets, kWarp) * kWarp;
  tuning.threads = static_cast<int>(std::min<int64_t>(tuning.threads, needed));
  return tuning;
}

std::optional<LaunchPlan> Spread(const Shape& shape, const Tuning& tuning,
                                 const DeviceLimits& device) {
  const int64_t tile = int64_t{tuning.threads} * tuning.packets;
  if (tuning.threads > kMaxThreads || tuning.threads % kWarp != 0 ||
      tuning.packets > kMaxPacketsPerThread ||
      tuning.cluster > device.max_cluster ||
      (shape.reduces && tile * tuning.cluster < shape.packets)) {
    return std::nullopt;
  }
  LaunchPlan plan;
  plan.rows = static_cast<int>(shape.rows);
  plan.hidden = static_cast<int>(shape.hidden);
  plan.packets_per_row = static_cast<int>(shape.packets);
  plan.tuning = tuning;
  plan.tiles_per_row = shape.reduces
                           ? tuning.cluster
                           : static_cast<int>(CeilDivide(shape.packets, tile));
  // Blocks beyond these would only wait for a place; a cluster is never split.
  const int64_t cap = int64_t{device.multiprocessors} *
                      std::max(1, kThreadsPerMultiprocessor / tuning.threads);
  const int64_t clusters = shape.rows * plan.tiles_per_row / tuning.cluster;
  plan.blocks = static_cast<int>(
      tuning.cluster *
      std::min(clusters, std::max<int64_t>(1, cap / tuning.cluster)));
  return plan;
}

}  // namespace

std::optional<LaunchPlan> PlanLaunch(const EpilogueProgram& program,
                                     int64_t rows, int64_t hidden, int ranks,
                                     const DeviceLimits& device) {
  if (rows == 0) return LaunchPlan();
  const std::optional<Shape> shape = ShapeOnWire(program, rows, hidden, ranks);
  if (!shape) return std::nullopt;
  return Spread(*shape, Choose(*shape, device), device);
}

std::optional<LaunchPlan> PlanLaunch(const EpilogueProgram& program,
                                     int64_t rows, int64_t hidden, int ranks,
                                     const DeviceLimits& device,
                                     const Tuning& tuning) {
  const std::optional<Shape> shape = ShapeOnWire(program, rows, hidden, ranks);
  if (!shape) return std::nullopt;
  return Spread(*shape, tuning, device);
}

}  // namespace oneshot
