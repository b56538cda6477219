// SPDX-License-Identifier: Apache-2.0
//
// The result of a row is the same bits in every batch and with every tuning.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cuda/device_tests/test_support.h"
#include "cuda/device_tests/virtual_ranks.h"
#include "cuda/kernel/launch_plan.h"
#include "cuda/runtime/kernel_cache.h"
#include "cuda/runtime/launch.h"

namespace oneshot {

void TestInvariance(const Options& options, Report& report) {
  constexpr int kHidden = 8192;
  constexpr int kRows = 12;
  VirtualRanks group(std::max<int>(2, options.devices.size()), options.devices,
                     /*first_epoch=*/0);
  std::mt19937 random(1);
  const EpilogueProgram program = MakeProgram(WithSumOfWireType(kPrograms[5]),
                                              DType::kBf16, kHidden, random);
  const DType out = program.results[0].dtype;
  std::vector<Buffers> buffers(group.size());
  for (int r = 0; r < group.size(); ++r) {
    group[r].MakeCurrent();
    const Bytes x = Fill(random, Data::kRandom, DType::kBf16, kRows * kHidden);
    void* memory = nullptr;
    ONESHOT_CHECK_CUDA(cudaMalloc(&memory, x.size()));
    ONESHOT_CHECK_CUDA(
        cudaMemcpy(memory, x.data(), x.size(), cudaMemcpyHostToDevice));
    buffers[r].x = memory;
    ONESHOT_CHECK_CUDA(cudaMalloc(&buffers[r].results[0], 4 * x.size()));
  }
  Bytes first;
  int different = 0;
  int tunings = 0;
  for (const int rows : {kRows, 1, 5}) {
    for (const Tuning& tuning :
         {Tuning{128, 1, 8}, Tuning{256, 1, 4}, Tuning{512, 2, 1},
          Tuning{1024, 1, 1}, Tuning{128, 2, 4}, Tuning{64, 4, 4},
          Tuning{128, 1, 8, true}, Tuning{512, 2, 1, true},
          Tuning{64, 4, 4, true}}) {
      const std::optional<LaunchPlan> plan = PlanLaunch(
          program, rows, kHidden, group.size(), group[0].traits.limits, tuning);
      if (!plan) continue;  // no clusters on this device
      std::string error;
      const Kernel* kernel = FindOrCompileKernel(program, *plan, group.size(),
                                                 true, group[0].traits, &error);
      if (kernel == nullptr) {
        report.Case("invariance: " + error, false);
        return;
      }
      for (int r = 0; r < group.size(); ++r) {
        group[r].MakeCurrent();
        ONESHOT_CHECK_CUDA(LoadKernel(*kernel));
      }
      for (int r = 0; r < group.size(); ++r) {
        group[r].MakeCurrent();
        ONESHOT_CHECK_CUDA(LaunchAllReduce(*kernel, buffers[r], group[r].view,
                                           0, group[r].stream));
      }
      group.Wait("invariance");
      Bytes got(rows * kHidden * ByteWidth(out));
      ONESHOT_CHECK_CUDA(cudaMemcpy(got.data(), buffers[0].results[0],
                                    got.size(), cudaMemcpyDeviceToHost));
      if (first.empty()) first = got;
      ++tunings;
      different += !std::equal(got.begin(), got.end(), first.begin());
    }
  }
  report.Case("invariance tunings=" + std::to_string(tunings) +
                  " different=" + std::to_string(different),
              different == 0 && tunings > 0);
}

}  // namespace oneshot
