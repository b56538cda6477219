// SPDX-License-Identifier: Apache-2.0
//
// The compiled kernels of this process.
#ifndef ONESHOT_CUDA_RUNTIME_KERNEL_CACHE_H_
#define ONESHOT_CUDA_RUNTIME_KERNEL_CACHE_H_

#include <cuda.h>

#include <cstdint>
#include <functional>
#include <future>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "cuda/kernel/launch_plan.h"
#include "cuda/program/epilogue_program.h"
#include "cuda/runtime/device.h"

namespace oneshot {

// A kernel for one program, shape and number of ranks, for all devices of one
// compute capability.
struct Kernel {
  LaunchPlan plan;
  CUkernel function = nullptr;  // null: there is nothing to launch
  bool wide = false;            // needs aligned buffers
};

// Kernels by compute capability and source. Thread-safe.
class KernelCache {
 public:
  // Makes machine code of a source and finds the function `name` in it. Returns
  // false and says why.
  using Build = std::function<bool(
      const std::string& source, const std::string& name,
      int compute_capability, CUkernel* function, std::string* error)>;

  explicit KernelCache(Build build) : build_(std::move(build)) {}

  // The kernel, built by the first caller that asks for it; whoever asks in the
  // meantime waits for that caller. Null with the reason in `error` if it can't
  // be built, which is not tried again. `aligned`: all buffers will be.
  const Kernel* FindOrBuild(const EpilogueProgram& program,
                            const LaunchPlan& plan, int ranks, bool aligned,
                            int compute_capability, std::string* error);

 private:
  struct Built {
    bool succeeded = false;
    Kernel kernel;
    std::string error;
  };

  const Build build_;
  std::mutex mutex_;  // not held while a kernel is built
  std::map<std::pair<int, std::string>, std::shared_future<Built>> kernels_;
};

// The kernel from the process's cache, or a new one, which takes a fraction of
// a second. Thread-safe. Null with the reason in `error` if the shape does not
// fit or the compiler is missing. `aligned`: all buffers will be. Kernels are
// never released: executables of XLA, and graphs that were captured from them,
// do not say when they are gone.
const Kernel* FindOrCompileKernel(const EpilogueProgram& program, int64_t rows,
                                  int64_t hidden, int ranks, bool aligned,
                                  const DeviceTraits& device,
                                  std::string* error);
// With a tuning of the caller's.
const Kernel* FindOrCompileKernel(const EpilogueProgram& program,
                                  const LaunchPlan& plan, int ranks,
                                  bool aligned, const DeviceTraits& device,
                                  std::string* error);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_KERNEL_CACHE_H_
