// SPDX-License-Identifier: Apache-2.0
#include "cuda/all_reduce_kernel.h"

#include <algorithm>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

#include "cuda/kernel_source.h"
#include "cuda/nvrtc.h"

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

// By compute capability and source.
struct Cache {
  std::mutex mutex;
  std::map<std::pair<int, std::string>, std::unique_ptr<Kernel>> kernels;
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
                                  int64_t hidden, int ranks, bool wide,
                                  const DeviceTraits& device,
                                  std::string* error) {
  const std::optional<LaunchPlan> plan =
      PlanLaunch(program, rows, hidden, ranks, device.limits);
  if (!plan) {
    *error = std::to_string(rows) + " rows of " + std::to_string(hidden) +
             " elements do not fit the workspace";
    return nullptr;
  }
  return FindOrCompileKernel(program, *plan, ranks, wide, device, error);
}

const Kernel* FindOrCompileKernel(const EpilogueProgram& program,
                                  const LaunchPlan& plan, int ranks, bool wide,
                                  const DeviceTraits& device,
                                  std::string* error) {
  if (plan.blocks == 0) {
    static const Kernel* const nothing = new Kernel;
    return nothing;
  }
  std::pair<int, std::string> key(device.compute_capability,
                                  KernelSource(program, plan, ranks, wide));
  Cache& cache = GlobalCache();
  // Held during the compilation: whoever wants the same kernel, waits for it.
  const std::lock_guard<std::mutex> lock(cache.mutex);
  const auto found = cache.kernels.find(key);
  if (found != cache.kernels.end()) return found->second.get();

  std::string cubin;
  if (!CompileCuda(key.second, key.first, &cubin, error)) return nullptr;
  auto kernel = std::make_unique<Kernel>();
  kernel->plan = plan;
  kernel->wide = wide;
  cudaLibrary_t library = nullptr;
  if (!Check(cudaLibraryLoadData(&library, cubin.data(), nullptr, nullptr, 0,
                                 nullptr, nullptr, 0),
             "loading a kernel", error) ||
      !Check(cudaLibraryGetKernel(&kernel->function, library, kKernelName),
             "finding a kernel", error)) {
    return nullptr;
  }
  return cache.kernels.emplace(std::move(key), std::move(kernel))
      .first->second.get();
}

bool CanBeWide(const EpilogueProgram& program, const LaunchPlan& plan,
               const Buffers& buffers) {
  if (plan.hidden % (kPacketBytes / ByteWidth(program.x)) != 0) return false;
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
  return cudaFuncGetAttributes(
      &attributes, reinterpret_cast<const void*>(kernel.function));
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
