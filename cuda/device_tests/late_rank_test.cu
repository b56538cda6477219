// SPDX-License-Identifier: Apache-2.0
//
// A kernel that waits long says for whom, and goes on when that rank comes.
#include <cuda_runtime_api.h>

#include <chrono>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device_tests/test_support.h"
#include "cuda/device_tests/virtual_ranks.h"
#include "cuda/runtime/launch.h"

namespace oneshot {
namespace {

constexpr int kRows = 4;
constexpr int kHidden = 4096;
constexpr uint32_t kFirstEpoch = 7;
constexpr uint64_t kSite = 5;

}  // namespace

void TestLateRank(const Options& options, Report& report) {
  constexpr auto kNotice = std::chrono::milliseconds(20);
  VirtualRanks group(2, options.devices, kFirstEpoch);
  std::mt19937 random(1);
  const EpilogueProgram program =
      MakeProgram(kPrograms[0], DType::kF32, kHidden, random);
  std::string error;
  std::vector<Buffers> buffers(group.size());
  std::vector<const Kernel*> kernels;
  for (int r = 0; r < group.size(); ++r) {
    kernels.push_back(KernelOf(program, kRows, kHidden, /*two_shot=*/false,
                               /*aligned=*/true, group[r], &error));
    if (kernels.back() == nullptr) {
      report.Case("late rank: " + error, false);
      return;
    }
    group[r].MakeCurrent();
    ONESHOT_CHECK_CUDA(LoadKernel(*kernels.back()));
    const Bytes x = Fill(random, Data::kRandom, DType::kF32, kRows * kHidden);
    void* memory = nullptr;
    ONESHOT_CHECK_CUDA(cudaMalloc(&memory, x.size()));
    ONESHOT_CHECK_CUDA(
        cudaMemcpy(memory, x.data(), x.size(), cudaMemcpyHostToDevice));
    buffers[r].x = memory;
    ONESHOT_CHECK_CUDA(cudaMalloc(&buffers[r].results[0], x.size()));
  }
  const auto launch = [&](int rank) {
    WorkspaceView view = group[rank].view;
    view.notice_ns = std::chrono::nanoseconds(kNotice).count();
    group[rank].MakeCurrent();
    ONESHOT_CHECK_CUDA(LaunchAllReduce(*kernels[rank], buffers[rank], view,
                                       kSite, group[rank].stream));
  };
  const volatile Notice& notice = group[0].view.fault->notice;
  launch(0);
  std::this_thread::sleep_for(10 * kNotice);
  const unsigned long long first = notice.stamp;
  std::this_thread::sleep_for(10 * kNotice);
  const unsigned long long second = notice.stamp;
  const bool right = notice.peer == 1 && notice.rank == 0 &&
                     notice.site == kSite && first >> 32 == kFirstEpoch;
  launch(1);
  group.Wait("late rank");
  report.Case("late rank: noticed " + std::to_string(first & 0xFFFFFFFF) +
                  " and " + std::to_string(second & 0xFFFFFFFF) + " times",
              right && (first & 0xFFFFFFFF) > 0 && second > first);
  report.Case("late rank: goes on", group[0].view.fault->raised == 0 &&
                                        group[1].view.fault->raised == 0 &&
                                        group.IsQuiet(kFirstEpoch + 1));
  for (int r = 0; r < group.size(); ++r) {
    group[r].MakeCurrent();
    cudaFree(const_cast<void*>(buffers[r].x));
    cudaFree(buffers[r].results[0]);
  }
}

}  // namespace oneshot
