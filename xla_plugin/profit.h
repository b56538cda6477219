// SPDX-License-Identifier: Apache-2.0
//
// The one place that decides whether a rewrite that is correct is also wanted.

#ifndef ONESHOT_XLA_PLUGIN_PROFIT_H_
#define ONESHOT_XLA_PLUGIN_PROFIT_H_

#include <cstdint>
#include <optional>
#include <string>

namespace oneshot {

// Why an all-reduce of `rows` rows of `row_bytes` bytes over groups of `ranks`
// is better left to stock XLA; nothing if it isn't. `needs_row` says whether
// the epilogue reduces over a row, which one thread block then has to hold.
std::optional<std::string> WhyNotProfitable(int64_t rows, int64_t row_bytes,
                                            int64_t ranks, bool needs_row);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PROFIT_H_
