// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/profit.h"

#include "absl/strings/str_cat.h"
#include "cuda/float_formats.h"
#include "cuda/launch_plan.h"
#include "cuda/limits.h"

namespace oneshot {
namespace {

// Beyond this an all-reduce is limited by the link, and what the kernel saves
// no longer counts. Between two ranks the kernel was ahead at all sizes that
// were measured (docs/benchmarks); for more ranks this is the same time on the
// link, not a measurement.
constexpr int64_t kMaxSentBytes = int64_t{8} << 20;

// What one rank sends in all.
int64_t SentBytes(const EpilogueProgram& program, int64_t bytes, int ranks) {
  return TakesTwoShots(program, bytes, ranks) ? 2 * bytes * (ranks - 1) / ranks
                                              : bytes * (ranks - 1);
}

}  // namespace

std::optional<std::string> WhyNotProfitable(const EpilogueProgram& program,
                                            int64_t rows, int64_t hidden,
                                            int64_t ranks) {
  if (ranks < kMinRanks) return "groups of one rank need no communication";
  if (ranks > kMaxRanks) {
    return absl::StrCat("groups of ", ranks, " ranks; at most ", kMaxRanks);
  }
  if (!Analyze(program).needs_rows) {
    hidden *= rows;
    rows = 1;
  }
  const int64_t bytes = rows * PaddedRowBytes(hidden * ByteWidth(program.x));
  const int count = static_cast<int>(ranks);
  if (bytes > MaxMessageBytes(count)) {
    return absl::StrCat("message of ", bytes, " bytes is too large; at most ",
                        MaxMessageBytes(count), " between ", ranks, " ranks");
  }
  const int64_t sent = SentBytes(program, bytes, count);
  if (sent > kMaxSentBytes) {
    return absl::StrCat("message of ", bytes, " bytes is too large; each of ",
                        ranks, " ranks would send ", sent, ", at most ",
                        kMaxSentBytes);
  }
  return std::nullopt;
}

}  // namespace oneshot
