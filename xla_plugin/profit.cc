// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/profit.h"

#include "absl/strings/str_cat.h"
#include "cuda/float_formats.h"
#include "cuda/limits.h"

namespace oneshot {

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
  const int64_t most = MaxMessageBytes(static_cast<int>(ranks));
  if (bytes > most) {
    return absl::StrCat("message of ", bytes, " bytes is too large; at most ",
                        most, " between ", ranks, " ranks");
  }
  return std::nullopt;
}

}  // namespace oneshot
