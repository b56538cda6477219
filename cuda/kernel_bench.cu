// SPDX-License-Identifier: Apache-2.0
//
// Time of one call inside a CUDA graph, without XLA.
//
//   kernel_bench [--devices 0,1] [--hidden 8192] [--rows 1,8,32,64]
//
// One rank per device. A line per case: the median over the samples of the
// slowest rank's time per call.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cuda/all_reduce_kernel.h"
#include "cuda/launch_plan.h"
#include "cuda/virtual_ranks.h"

namespace oneshot {
namespace {

constexpr int kNodes = 64;     // calls in a graph
constexpr int kLaunches = 10;  // graphs in a sample, to hide the first skew
constexpr int kWarmUps = 10;
constexpr int kSamples = 51;

__global__ void Nothing() {}

struct Timed {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  cudaEvent_t start = nullptr;
  cudaEvent_t stop = nullptr;
};

using Enqueue = std::function<void(const VirtualRank&)>;

// Microseconds per call.
double Measure(const VirtualRanks& ranks, const Enqueue& enqueue) {
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
  for (int sample = -kWarmUps; sample < kSamples; ++sample) {
    for (int r = 0; r < ranks.size(); ++r) {
      ranks[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(cudaEventRecord(timed[r].start, ranks[r].stream));
    }
    for (int launch = 0; launch < kLaunches; ++launch) {
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
    if (sample >= 0) samples.push_back(slowest * 1e3 / (kNodes * kLaunches));
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

void Run(const std::vector<int>& devices, const std::vector<int>& row_counts,
         int hidden) {
  const VirtualRanks ranks(static_cast<int>(devices.size()), devices,
                           /*first_epoch=*/0);
  const double nothing = Measure(ranks, [](const VirtualRank& rank) {
    Nothing<<<1, 32, 0, rank.stream>>>();
    ONESHOT_CHECK_CUDA(cudaGetLastError());
  });
  std::printf("ranks=%d empty kernel: %.2f us\n", ranks.size(), nothing);
  for (const int rows : row_counts) {
    const size_t bytes = size_t{2} * rows * hidden;
    std::vector<Buffers> buffers(ranks.size());
    std::vector<void*> memory(ranks.size());
    for (int r = 0; r < ranks.size(); ++r) {
      ranks[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(cudaMalloc(&memory[r], 5 * bytes));
      ONESHOT_CHECK_CUDA(cudaMemset(memory[r], 0, 5 * bytes));
      ONESHOT_CHECK_CUDA(cudaDeviceSynchronize());
      char* data = static_cast<char*>(memory[r]);
      buffers[r].x = data;
      buffers[r].addends[0] = data + bytes;
      buffers[r].gain = data + 2 * bytes;
      buffers[r].sum = data + 3 * bytes;
      buffers[r].norm = data + 4 * bytes;
    }
    for (const bool fused : {false, true}) {
      Epilogue epilogue;
      epilogue.x_dtype = epilogue.sum_round = epilogue.sum_dtype = DType::kBf16;
      epilogue.emit_sum = true;
      if (fused) {
        epilogue.num_addends = 1;
        epilogue.addends[0].dtype = epilogue.addends[0].round = DType::kBf16;
        epilogue.emit_norm = epilogue.has_gain = true;
        epilogue.norm_dtype = epilogue.norm_round = epilogue.gain_dtype =
            DType::kBf16;
        epilogue.epsilon = 1e-6f;
        epilogue.mean_scale = 1.0f / static_cast<float>(hidden);
      }
      const std::optional<LaunchPlan> plan =
          PlanLaunch(epilogue, rows, hidden, ranks[0].multiprocessors);
      const char* name = fused ? "add+rms" : "sum";
      if (!plan) {
        std::printf("ranks=%d [%d,%d] bf16 %s: too large\n", ranks.size(), rows,
                    hidden, name);
        continue;
      }
      const double time = Measure(ranks, [&](const VirtualRank& rank) {
        ONESHOT_CHECK_CUDA(LaunchAllReduce(
            *plan, epilogue, buffers[rank.view.rank], rank.view, rank.stream));
      });
      std::printf("ranks=%d [%d,%d] bf16 %s: %.2f us  (%d blocks of %d)\n",
                  ranks.size(), rows, hidden, name, time, plan->blocks,
                  plan->threads);
      std::fflush(stdout);
    }
    for (int r = 0; r < ranks.size(); ++r) {
      ranks[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(cudaFree(memory[r]));
    }
  }
}

}  // namespace
}  // namespace oneshot

int main(int argc, char** argv) {
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/1);
  std::vector<int> devices = {0, 1};
  std::vector<int> rows = {1, 8, 32, 64};
  int hidden = 8192;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--devices") == 0) {
      devices = oneshot::ParseList(argv[i + 1]);
    } else if (std::strcmp(argv[i], "--rows") == 0) {
      rows = oneshot::ParseList(argv[i + 1]);
    } else if (std::strcmp(argv[i], "--hidden") == 0) {
      hidden = std::atoi(argv[i + 1]);
    } else {
      std::fprintf(stderr,
                   "usage: %s [--devices 0,1] [--rows 1,8] [--hidden N]\n",
                   argv[0]);
      return 2;
    }
  }
  if (!oneshot::EnablePeerAccess(devices)) {
    std::fprintf(stderr, "the devices cannot access each other\n");
    return 2;
  }
  oneshot::Run(devices, rows, hidden);
  return 0;
}
