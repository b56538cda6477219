// SPDX-License-Identifier: Apache-2.0
#include "cuda/launch_plan.h"

#include <algorithm>

#include "cuda/limits.h"

namespace oneshot {
namespace {

constexpr int kWarp = 32;

// Without a norm there is no reason for large blocks other than the cap on
// their number: many small ones load and store in parallel.
constexpr int kSmallBlock = 128;

// A block spins until its peers deliver, so it must never keep a kernel that a
// peer waits for off the device: at most half of the multiprocessors are used.
constexpr int kMaxBlocks = 64;

int64_t CeilDivide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

std::optional<LaunchPlan> PlanLaunch(const Epilogue& epilogue, int64_t rows,
                                     int64_t hidden, int multiprocessors) {
  LaunchPlan plan;
  if (rows == 0) return plan;

  bool rows_matter = epilogue.emit_norm;
  for (int a = 0; a < epilogue.num_addends; ++a) {
    rows_matter |= !epilogue.addends[a].per_row;
  }
  if (!rows_matter) {  // one long row has no padding between rows
    hidden *= rows;
    rows = 1;
  }

  const int64_t row_bytes =
      PaddedRowBytes(hidden * ByteWidth(epilogue.x_dtype));
  if (row_bytes > kMaxMessageBytes || rows * row_bytes > kMaxMessageBytes) {
    return std::nullopt;
  }
  const int64_t packets = row_bytes / kPacketBytes;
  const int64_t cap = std::clamp(multiprocessors / 2, 1, kMaxBlocks);

  int64_t threads;
  int packets_per_thread = 1;
  if (epilogue.emit_norm) {
    // The row is one tile. Its partition depends on its length alone, so that
    // the sum of squares does not depend on the number of rows or the device.
    while (packets > int64_t{kMaxThreads} * packets_per_thread) {
      packets_per_thread *= 2;
    }
    if (packets_per_thread > kMaxPacketsPerThread) return std::nullopt;
    threads = CeilDivide(packets, packets_per_thread);
  } else {
    threads = std::min<int64_t>(packets, kSmallBlock);
    while (threads < kMaxThreads && rows * CeilDivide(packets, threads) > cap) {
      threads *= 2;
    }
  }
  threads = std::min<int64_t>(CeilDivide(threads, kWarp) * kWarp, kMaxThreads);

  plan.rows = static_cast<int>(rows);
  plan.hidden = static_cast<int>(hidden);
  plan.packets_per_row = static_cast<int>(packets);
  plan.packets_per_thread = packets_per_thread;
  plan.threads = static_cast<int>(threads);
  plan.tiles_per_row =
      static_cast<int>(CeilDivide(packets, threads * packets_per_thread));
  plan.blocks = static_cast<int>(std::min(cap, rows * plan.tiles_per_row));
  return plan;
}

}  // namespace oneshot
