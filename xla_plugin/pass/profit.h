// SPDX-License-Identifier: Apache-2.0
//
// The one place that decides whether a rewrite that is correct is also wanted.
//
// The rule: it is, for groups of 2 to 8 ranks, as long as the message fits the
// workspace and what a rank sends to all its peers together is no more than
// 8 MiB where there are several, or 1 MiB where nothing can be fused, and
// unless a loop only adds up the sums.
//
// What else the epilogue holds does not matter. XLA makes no row reduction part
// of a GEMM or of an all-reduce: a norm is one kernel of its own at least, and
// with it the residual. What is only elementwise, like a bias, a residual or
// the gain of a norm, XLA folds for nothing into the kernel that reads it, even
// if that is a GEMM. The call has it for nothing too, since the sum is in
// registers and one tensor is written either way, and GEMMs that read what is
// scaled already are no slower (docs/benchmarks). Only one more result would
// cost something; so the matcher gives back what XLA can compute for nothing
// from results that are written all the same.
//
// Behind the hook, XLA has more passes for the all-reduces that it finds:
//
// * One that a loop only adds up goes behind the loop. So it stays with XLA.
// * Those whose results are added become one. AllReduceReassociation does that.
// * Those that are ready together become one with several operands. A few calls
//   take no longer than that, for messages that are bound by latency.
// * Large ones, which are mostly gradients, run beside the rest of a backward
//   pass. So a bare sum stays with XLA from 1 MiB on.
// * One of which each rank keeps only its part becomes a reduce-scatter, which
//   sends half as much. A call is made of it nevertheless, since latency is
//   what counts here, too; this has not been measured.

#ifndef ONESHOT_XLA_PLUGIN_PASS_PROFIT_H_
#define ONESHOT_XLA_PLUGIN_PASS_PROFIT_H_

#include <cstdint>
#include <optional>
#include <string>

#include "xla_plugin/match/epilogue_match.h"

namespace oneshot {

// Why a match over groups of `ranks` is better left to stock XLA; nothing if it
// isn't.
std::optional<std::string> WhyNotProfitable(const EpilogueMatch& match,
                                            int64_t ranks);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PASS_PROFIT_H_
