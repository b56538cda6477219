// SPDX-License-Identifier: Apache-2.0
//
// Time of a call inside a CUDA graph, for benchmarks.
#ifndef ONESHOT_CUDA_BENCH_GRAPH_TIMER_H_
#define ONESHOT_CUDA_BENCH_GRAPH_TIMER_H_

#include <functional>

#include "cuda/device_tests/virtual_ranks.h"

namespace oneshot {

inline constexpr int kNodes = 64;  // calls in a graph
// Graphs in a sample, to hide the first skew.
inline constexpr int kLaunches = 10;
inline constexpr int kSamples = 51;

// Enqueues one call on the stream of a rank.
using Enqueue = std::function<void(const VirtualRank&)>;

// Microseconds per call: the median over the samples of the slowest rank's.
double Measure(const VirtualRanks& ranks, const Enqueue& enqueue,
               int launches = kLaunches, int samples = kSamples);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_BENCH_GRAPH_TIMER_H_
