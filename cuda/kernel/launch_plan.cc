// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernel/launch_plan.h"

#include <algorithm>

#include "cuda/kernel/tunings.h"
#include "cuda/program/call_contract.h"

namespace oneshot {
namespace {

constexpr int kWarp = 32;
constexpr int kSmallBlock = 128;

// What of a multiprocessor the blocks of one call may fill. All of them are
// then resident at once with up to 128 registers a thread.
constexpr int kThreadsPerMultiprocessor = 512;

// What the link carries in the time of one more trip. That time is an estimate,
// 1.2 us; docs/benchmarks/predictions.md says what follows from it.
constexpr int64_t kTripBytes = 400 << 10;

// In two shots it is sums that are sent, so these must have the type of x.
bool CanTakeTwoShots(const EpilogueProgram& program) {
  return std::all_of(program.instructions.begin(), program.instructions.end(),
                     [&](const Instruction& instruction) {
                       return instruction.op != Op::kSum ||
                              instruction.round == program.x;
                     });
}

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows and row length as the kernel sees them.
struct Shape {
  int64_t rows;
  int64_t hidden;
  int64_t packets;  // in a row
  bool reduces;     // along a row
  bool two_shot;
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
  return Shape{rows, hidden, row_bytes / kPacketBytes, analysis.has_reduction,
               TakesTwoShots(program, rows * row_bytes, ranks)};
}

// Blocks that one call may put on the device at once.
int64_t ResidentBlocks(const DeviceLimits& device, int threads) {
  return int64_t{device.multiprocessors} *
         std::max(1, kThreadsPerMultiprocessor / threads);
}

// The tuning of the next larger shape in the table of measurements, if this is
// a device like the one they were made on.
const Tuning* FindMeasured(const Shape& shape, const DeviceLimits& device) {
  if (!shape.reduces || device.multiprocessors != kMeasuredOn.multiprocessors ||
      device.max_cluster != kMeasuredOn.max_cluster) {
    return nullptr;
  }
  const Measured* found = nullptr;
  for (const Measured& measured : kMeasured) {
    if (measured.packets < shape.packets) continue;
    if (found != nullptr && measured.packets > found->packets) break;
    found = &measured;
    if (measured.rows >= shape.rows) break;
  }
  return found == nullptr ? nullptr : &found->tuning;
}

// Leaves no warps idle that a row which is reduced has nothing for. Where it
// fills all blocks of its cluster it is faster by 0.1 to 0.2 us, even if they
// are fewer: no thread has to ask whether it has a packet. A row that ends
// within a warp fills none, and is better off in a single block, if that is
// small.
void Fill(const Shape& shape, Tuning* tuning) {
  constexpr int kFewWarps = 16;
  const int64_t warps =
      CeilDivide(shape.packets, int64_t{kWarp} * tuning->packets);
  int cluster = shape.packets % kWarp == 0 ? tuning->cluster : 1;
  while (warps % cluster != 0) --cluster;
  if (warps <= kFewWarps * cluster) tuning->cluster = cluster;
  tuning->threads =
      static_cast<int>(CeilDivide(warps, tuning->cluster) * kWarp);
}

// What was measured, or else a rule that comes close to it. One packet a thread
// is best as long as there are threads: a thread waits for one packet after the
// other. Small blocks are best as long as all are resident: with a reduction
// many of them share a row, and with more rows than that fewer, larger ones.
Tuning Choose(const Shape& shape, const DeviceLimits& device) {
  Tuning tuning = {kSmallBlock, /*packets=*/1, /*cluster=*/1};
  if (const Tuning* measured = FindMeasured(shape, device)) {
    tuning = *measured;
  } else if (!shape.reduces) {
    while (tuning.threads < kMaxThreads &&
           shape.rows * CeilDivide(shape.packets, tuning.threads) >
               ResidentBlocks(device, kSmallBlock)) {
      tuning.threads *= 2;
    }
    const int64_t needed = CeilDivide(shape.packets, kWarp) * kWarp;
    tuning.threads =
        static_cast<int>(std::min<int64_t>(tuning.threads, needed));
  } else {
    tuning.cluster = device.max_cluster;
    while (tuning.cluster > 1 &&
           int64_t{tuning.threads} * tuning.cluster / 2 >= shape.packets) {
      tuning.cluster /= 2;
    }
    while (int64_t{tuning.cluster} / 2 * kMaxThreads >= shape.packets &&
           tuning.threads < kMaxThreads &&
           shape.rows * tuning.cluster >
               ResidentBlocks(device, tuning.threads)) {
      tuning.cluster /= 2;
      tuning.threads *= 2;
    }
    while (int64_t{tuning.threads} * tuning.packets * tuning.cluster <
           shape.packets) {
      (tuning.threads < kMaxThreads ? tuning.threads : tuning.packets) *= 2;
    }
  }
  if (shape.reduces) Fill(shape, &tuning);
  tuning.two_shot = shape.two_shot;
  return tuning;
}

std::optional<LaunchPlan> BuildPlan(const Shape& shape, const Tuning& tuning,
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
  const int64_t cap = ResidentBlocks(device, tuning.threads);
  const int64_t clusters = shape.rows * plan.tiles_per_row / tuning.cluster;
  plan.blocks = static_cast<int>(
      tuning.cluster *
      std::min(clusters, std::max<int64_t>(1, cap / tuning.cluster)));
  return plan;
}

}  // namespace

bool TakesTwoShots(const EpilogueProgram& program, int64_t bytes, int ranks) {
  // (ranks - 1) messages in one shot, 2 * (ranks - 1) / ranks in two.
  return CanTakeTwoShots(program) &&
         bytes * (ranks - 1) * (ranks - 2) > kTripBytes * ranks;
}

std::optional<LaunchPlan> PlanLaunch(const EpilogueProgram& program,
                                     int64_t rows, int64_t hidden, int ranks,
                                     const DeviceLimits& device) {
  if (rows == 0) return LaunchPlan();
  const std::optional<Shape> shape = ShapeOnWire(program, rows, hidden, ranks);
  if (!shape) return std::nullopt;
  return BuildPlan(*shape, Choose(*shape, device), device);
}

std::optional<LaunchPlan> PlanLaunch(const EpilogueProgram& program,
                                     int64_t rows, int64_t hidden, int ranks,
                                     const DeviceLimits& device,
                                     const Tuning& tuning) {
  const std::optional<Shape> shape = ShapeOnWire(program, rows, hidden, ranks);
  if (!shape || (tuning.two_shot && !CanTakeTwoShots(program))) {
    return std::nullopt;
  }
  return BuildPlan(*shape, tuning, device);
}

}  // namespace oneshot
