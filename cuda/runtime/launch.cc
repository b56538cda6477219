// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/launch.h"

#include <algorithm>
#include <future>
#include <map>
#include <mutex>
#include <utility>

#include "cuda/kernel/kernel_source.h"
#include "cuda/kernel/nvrtc.h"

namespace oneshot {
namespace {

static_assert(sizeof(KernelArguments::operands) / sizeof(void*) ==
              kMaxOperands);
static_assert(sizeof(KernelArguments::indices) / sizeof(void*) == kMaxIndices);
static_assert(sizeof(KernelArguments::results) / sizeof(void*) == kMaxResults);
static_assert(sizeof(KernelArguments::inboxes) / sizeof(void*) == kMaxRanks);

// Blocks that may share a row on devices that have clusters: as many as every
// such device guarantees.
constexpr int kPortableCluster = 8;

struct Compiled {
  Kernel kernel;
  std::string error;  // empty: the kernel is good
};

// By compute capability and source. Kernels are compiled outside of the lock,
// several at a time; whoever wants one that is being compiled waits for it.
struct Cache {
  std::mutex mutex;
  std::map<std::pair<int, std::string>, std::shared_future<Compiled>> kernels;
};

Cache& GlobalCache() {
  static Cache* const cache = new Cache;
  return *cache;
}

bool Check(cudaError_t status, const char* what, std::string* error) {
  if (status == cudaSuccess) return true;
  cudaGetLastError();  // reported here: nobody else must find it
  *error = std::string(what) + ": " + cudaGetErrorString(status);
  return false;
}

Compiled Compile(const std::string& source, const std::string& name,
                 int compute_capability, const LaunchPlan& plan, bool wide) {
  Compiled compiled;
  compiled.kernel.plan = plan;
  compiled.kernel.wide = wide;
  std::string cubin;
  cudaLibrary_t library = nullptr;
  if (CompileCuda(source, compute_capability, &cubin, &compiled.error) &&
      Check(cudaLibraryLoadData(&library, cubin.data(), nullptr, nullptr, 0,
                                nullptr, nullptr, 0),
            "loading a kernel", &compiled.error)) {
    Check(
        cudaLibraryGetKernel(&compiled.kernel.function, library, name.c_str()),
        "finding a kernel", &compiled.error);
  }
  return compiled;
}

}  // namespace

bool QueryDevice(int device, DeviceTraits* traits, std::string* error) {
  int major = 0;
  int minor = 0;
  int multiprocessors = 0;
  if (!Check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                    device),
             "cudaDeviceGetAttribute", error) ||
      !Check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor,
                                    device),
             "cudaDeviceGetAttribute", error) ||
      !Check(cudaDeviceGetAttribute(&multiprocessors,
                                    cudaDevAttrMultiProcessorCount, device),
             "cudaDeviceGetAttribute", error)) {
    return false;
  }
  traits->compute_capability = major * 10 + minor;
  traits->limits.multiprocessors = multiprocessors;
  traits->limits.max_cluster = major >= 9 ? kPortableCluster : 1;
  return true;
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
  if (plan.blocks == 0) {
    static const Kernel* const nothing = new Kernel;
    return nothing;
  }
  const int elements = kPacketBytes / ByteWidth(program.x);
  const bool wide = aligned && plan.hidden % elements == 0;
  std::pair<int, std::string> key(device.compute_capability,
                                  KernelSource(program, plan, ranks, wide));
  Cache& cache = GlobalCache();
  std::promise<Compiled> promise;
  std::shared_future<Compiled> future;
  bool mine = false;
  {
    const std::lock_guard<std::mutex> lock(cache.mutex);
    std::shared_future<Compiled>& cached = cache.kernels[key];
    mine = !cached.valid();
    if (mine) cached = promise.get_future().share();
    future = cached;
  }
  if (mine) {
    promise.set_value(
        Compile(key.second, Identifier(program), key.first, plan, wide));
  }
  // The cache keeps what the future refers to.
  const Compiled& compiled = future.get();
  if (compiled.error.empty()) return &compiled.kernel;
  *error = compiled.error;
  return nullptr;
}

bool IsAligned(const Buffers& buffers) {
  uintptr_t bits = reinterpret_cast<uintptr_t>(buffers.x);
  for (const void* operand : buffers.operands) {
    bits |= reinterpret_cast<uintptr_t>(operand);
  }
  for (const void* result : buffers.results) {
    bits |= reinterpret_cast<uintptr_t>(result);
  }
  return bits % kPacketBytes == 0;  // absent buffers are null
}

cudaError_t LoadKernel(const Kernel& kernel) {
  if (kernel.function == nullptr) return cudaSuccess;
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes,
                               reinterpret_cast<const void*>(kernel.function));
}

cudaError_t LaunchAllReduce(const Kernel& kernel, const Buffers& buffers,
                            const WorkspaceView& workspace, uint64_t site,
                            cudaStream_t stream) {
  if (kernel.function == nullptr) return cudaSuccess;
  KernelArguments arguments = {};
  arguments.x = buffers.x;
  std::copy_n(buffers.operands, kMaxOperands, arguments.operands);
  std::copy_n(buffers.indices, kMaxIndices, arguments.indices);
  std::copy_n(buffers.results, kMaxResults, arguments.results);
  std::copy_n(workspace.inboxes, kMaxRanks, arguments.inboxes);
  arguments.control = workspace.control;
  arguments.fault = workspace.fault;
  arguments.timeout_ns = workspace.timeout_ns;
  arguments.site = site;
  arguments.rank = workspace.rank;
  void* parameters[] = {&arguments};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel.function),
                          dim3(kernel.plan.blocks),
                          dim3(kernel.plan.tuning.threads), parameters,
                          /*sharedMem=*/0, stream);
}

}  // namespace oneshot
