// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/profit.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "cuda/float_formats.h"
#include "cuda/limits.h"

namespace oneshot {
namespace {

// What one rank sends in all. A one-shot all-reduce sends its message to every
// peer, so beyond some size the two-step ones of stock XLA move less. Between
// two ranks both move the same, and the kernel was ahead at all sizes that were
// measured (docs/benchmarks); for more ranks this is the same time on the link,
// not a measurement.
constexpr int64_t kMaxSentBytes = int64_t{8} << 20;

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
  const int64_t most = std::min(MaxMessageBytes(static_cast<int>(ranks)),
                                kMaxSentBytes / (ranks - 1));
  if (bytes > most) {
    return absl::StrCat("message of ", bytes, " bytes is too large; at most ",
                        most, " between ", ranks, " ranks");
  }
  return std::nullopt;
}

}  // namespace oneshot
