// SPDX-License-Identifier: Apache-2.0
//
// The one place that decides whether a rewrite that is correct is also wanted.
//
// The rule: it is, for groups of 2 to 8 ranks, as long as the message fits the
// workspace and what a rank sends to all its peers together is no more than
// 8 MiB. The epilogue does not matter: whatever it holds would otherwise be
// another kernel, or a part of the next GEMM, where XLA folds the scaling of a
// norm into it. That is no reason to stop before the scaling: GEMMs that read
// what is scaled already are no slower (docs/benchmarks).

#ifndef ONESHOT_XLA_PLUGIN_PROFIT_H_
#define ONESHOT_XLA_PLUGIN_PROFIT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "cuda/epilogue_program.h"

namespace oneshot {

// Why an all-reduce of `rows` rows of `hidden` elements over groups of `ranks`,
// with the epilogue `program`, is better left to stock XLA; nothing if it
// isn't.
std::optional<std::string> WhyNotProfitable(const EpilogueProgram& program,
                                            int64_t rows, int64_t hidden,
                                            int64_t ranks);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PROFIT_H_
