// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/kernel_cache.h"

#include <optional>

#include "cuda/kernel/kernel_source.h"
#include "cuda/program/call_contract.h"
#include "cuda/runtime/compile_and_load.h"

namespace oneshot {
const Kernel* KernelCache::FindOrBuild(const EpilogueProgram& program,
                                       const LaunchPlan& plan, int ranks,
                                       bool aligned, int compute_capability,
                                       std::string* error) {
  if (plan.blocks == 0) {
    static const Kernel* const nothing = new Kernel;
    return nothing;
  }
  const int elements = kPacketBytes / ByteWidth(program.x);
  const bool wide = aligned && plan.hidden % elements == 0;
  std::pair<int, std::string> key(compute_capability,
                                  KernelSource(program, plan, ranks, wide));
  std::promise<Built> promise;
  std::shared_future<Built> future;
  bool mine = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::shared_future<Built>& cached = kernels_[key];
    mine = !cached.valid();
    if (mine) cached = promise.get_future().share();
    future = cached;
  }
  if (mine) {
    Built built;
    built.kernel.plan = plan;
    built.kernel.wide = wide;
    built.succeeded =
        build_(key.second, Identifier(program), compute_capability,
               &built.kernel.function, &built.error);
    promise.set_value(std::move(built));
  }
  // The cache keeps what the future refers to.
  const Built& built = future.get();
  if (built.succeeded) return &built.kernel;
  *error = built.error;
  return nullptr;
}

const Kernel* FindOrCompileKernel(const EpilogueProgram& program, int64_t rows,
                                  int64_t hidden, int ranks, bool aligned,
                                  const DeviceTraits& device,
                                  std::string* error) {
  const std::optional<LaunchPlan> plan =
      PlanLaunch(program, rows, hidden, ranks, device.limits);
  if (!plan) {
    *error = std::to_string(rows) + " rows of " + std::to_string(hidden) +
             " elements do not fit the workspace";
    return nullptr;
  }
  return FindOrCompileKernel(program, *plan, ranks, aligned, device, error);
}

const Kernel* FindOrCompileKernel(const EpilogueProgram& program,
                                  const LaunchPlan& plan, int ranks,
                                  bool aligned, const DeviceTraits& device,
                                  std::string* error) {
  // Leaked: late runs outlive static objects.
  static KernelCache* const cache = new KernelCache(CompileAndLoad);
  return cache->FindOrBuild(program, plan, ranks, aligned,
                            device.compute_capability, error);
}

}  // namespace oneshot
