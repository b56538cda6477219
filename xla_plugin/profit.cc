// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/profit.h"

#include "absl/strings/str_cat.h"
#include "cuda/limits.h"

namespace oneshot {

std::optional<std::string> WhyNotProfitable(int64_t rows, int64_t row_bytes,
                                            int64_t ranks, bool needs_row) {
  if (ranks < 2) return "groups of one rank need no communication";
  if (ranks > kMaxRanks) {
    return absl::StrCat("groups of ", ranks, " ranks; at most ", kMaxRanks);
  }
  if (needs_row && row_bytes > kMaxRowBytes) {
    return absl::StrCat("a row of ", row_bytes,
                        " bytes is too long to norm; at most ", kMaxRowBytes);
  }
  const int64_t bytes = rows * PaddedRowBytes(row_bytes);
  if (bytes > kMaxMessageBytes) {
    return absl::StrCat("message of ", bytes, " bytes is too large; at most ",
                        kMaxMessageBytes);
  }
  return std::nullopt;
}

}  // namespace oneshot
