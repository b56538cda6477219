// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <algorithm>
#include <vector>

#include "cuda/bench/graph_timer.h"

namespace oneshot {
namespace {

constexpr int kWarmUps = 10;

struct Timed {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
};

}  // namespace

double Measure(const VirtualRanks& ranks, const Enqueue& enqueue, int launches,
               int wanted) {
  std::vector<Timed> timed(ranks.size());
  for (int r = 0; r < ranks.size(); ++r) {
    const VirtualRank& rank = ranks[r];
    rank.MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaEventCreate(&timed[r].start));
    ONESHOT_CHECK_CUDA(cudaEventCreate(&timed[r].stop));
    ONESHOT_CHECK_CUDA(
        cudaStreamBeginCapture(rank.stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < kNodes; ++i) enqueue(rank);
    ONESHOT_CHECK_CUDA(cudaStreamEndCapture(rank.stream, &timed[r].graph));
    ONESHOT_CHECK_CUDA(
        cudaGraphInstantiate(&timed[r].executable, timed[r].graph, 0));
    ONESHOT_CHECK_CUDA(cudaGraphUpload(timed[r].executable, rank.stream));
    ONESHOT_CHECK_CUDA(cudaStreamSynchronize(rank.stream));
  }
  std::vector<double> samples;
  for (int sample = -kWarmUps; sample < wanted; ++sample) {
    for (int r = 0; r < ranks.size(); ++r) {
      ranks[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(cudaEventRecord(timed[r].start, ranks[r].stream));
    }
    for (int launch = 0; launch < launches; ++launch) {
      for (int r = 0; r < ranks.size(); ++r) {
        ranks[r].MakeCurrent();
        ONESHOT_CHECK_CUDA(
            cudaGraphLaunch(timed[r].executable, ranks[r].stream));
      }
    }
    for (int r = 0; r < ranks.size(); ++r) {
      ranks[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(cudaEventRecord(timed[r].stop, ranks[r].stream));
    }
    ranks.Wait("benchmark");
    float slowest = 0;
    for (int r = 0; r < ranks.size(); ++r) {
      float milliseconds = 0;
      ranks[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(
          cudaEventElapsedTime(&milliseconds, timed[r].start, timed[r].stop));
      slowest = std::max(slowest, milliseconds);
    }
    if (sample >= 0) samples.push_back(slowest * 1e3 / (kNodes * launches));
  }
  for (int r = 0; r < ranks.size(); ++r) {
    ranks[r].MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaGraphExecDestroy(timed[r].executable));
    ONESHOT_CHECK_CUDA(cudaGraphDestroy(timed[r].graph));
    ONESHOT_CHECK_CUDA(cudaEventDestroy(timed[r].start));
    ONESHOT_CHECK_CUDA(cudaEventDestroy(timed[r].stop));
  }
  std::sort(samples.begin(), samples.end());
  return samples[samples.size() / 2];
}

}  // namespace oneshot
