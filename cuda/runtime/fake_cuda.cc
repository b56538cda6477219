// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/fake_cuda.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda/runtime/cuda_driver.h"
#include "cuda/runtime/peer_check.h"

// What CUDA has behind its opaque types.
struct CUstream_st {
  int device;
  bool hangs = false;
};
struct CUctx_st {
  int device;
};
struct CUkern_st {
  std::string name;
};

namespace oneshot::fake_cuda {
namespace {

constexpr int kDevices = 8;

struct Device {
  int major = 9;
  int minor = 0;
  double peer_load_ns = 700;
  bool loses_stores = false;
};

struct State {
  std::mutex mutex;
  std::array<Device, kDevices> devices;
  std::map<std::pair<std::string, int>, CUresult> failures;
  std::set<std::pair<int, int>> forbidden;  // links
  std::set<std::pair<int, int>> enabled;
  std::map<CUdeviceptr, int> memory;  // and the device that it is of
  std::set<void*> host_memory;
  // fault.cc watches memory of the host for the life of the process.
  std::set<void*> retired;
  std::set<CUstream> streams;
  int mappings = 0;
  std::map<std::string, CUkern_st> kernels;
  std::vector<Launch> launches;
  std::vector<CUkernel> loads;
};

State& Global() {
  static State* const state = new State;
  return *state;
}

CUcontext ContextOf(int device) {
  static std::array<CUctx_st, kDevices> contexts = [] {
    std::array<CUctx_st, kDevices> all;
    for (int i = 0; i < kDevices; ++i) all[i].device = i;
    return all;
  }();
  return &contexts[device];
}

thread_local std::vector<CUcontext> context_stack;

CudaDriver& GlobalDriver();
CUresult LoadFunction(CUfunction function);

void* Host(CUdeviceptr data) { return reinterpret_cast<void*>(data); }

// What a call returns that concerns a device, because a test wants it to fail.
CUresult FailureOn(const State& state, const char* function, int device) {
  const auto found = state.failures.find({function, device});
  return found == state.failures.end() ? CUDA_SUCCESS : found->second;
}

// The same for a call that needs a current context.
CUresult Failure(const State& state, const char* function) {
  if (context_stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
  return FailureOn(state, function, CurrentDevice());
}

[[noreturn]] void AbortWait(const char* function) {
  std::fprintf(stderr, "%s would wait for a stream that hangs\n", function);
  std::abort();
}

void WaitForDevice(const State& state, const char* function, int device) {
  for (const CUstream stream : state.streams) {
    if (stream->hangs && stream->device == device) AbortWait(function);
  }
}

}  // namespace

void Reset() {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.devices = {};
  state.failures.clear();
  state.forbidden.clear();
  state.enabled.clear();
  for (const auto& [data, device] : state.memory) std::free(Host(data));
  for (const CUstream stream : state.streams) delete stream;
  state.memory.clear();
  state.retired.merge(state.host_memory);
  state.host_memory.clear();
  state.streams.clear();
  state.mappings = 0;
  state.launches.clear();
  state.loads.clear();
  GlobalDriver().FuncLoad = LoadFunction;
}

void Fail(const std::string& function, int device, CUresult status) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.failures[{function, device}] = status;
}

void Hang(CUstream stream) {
  const std::lock_guard<std::mutex> lock(Global().mutex);
  stream->hangs = true;
}

void SetComputeCapability(int device, int major, int minor) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.devices[device].major = major;
  state.devices[device].minor = minor;
}

void ForbidPeerAccess(int from, int to) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.forbidden.emplace(from, to);
}

void SetPeerLoadNs(int device, double nanoseconds) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.devices[device].peer_load_ns = nanoseconds;
}

void LosePeerStores(int device) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.devices[device].loses_stores = true;
}

int Live() {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  return static_cast<int>(state.memory.size() + state.host_memory.size() +
                          state.streams.size()) +
         state.mappings;
}

int CurrentDevice() {
  return context_stack.empty() ? -1 : context_stack.back()->device;
}

std::vector<Launch> Launches() {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  return state.launches;
}

std::vector<CUkernel> Loads() {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  return state.loads;
}

namespace {

// What peer_check.cc has compiled.
void RunTryPeer(State& state, void** parameters) {
  auto* const peer = *static_cast<uint32_t**>(parameters[0]);
  const uint32_t pattern = *static_cast<uint32_t*>(parameters[1]);
  auto* const elapsed = *static_cast<uint64_t**>(parameters[2]);
  const Device& device = state.devices[CurrentDevice()];
  if (!device.loses_stores) std::fill_n(peer, 4, pattern);
  *elapsed = static_cast<uint64_t>(device.peer_load_ns * kTryPeerLoads);
}

CUresult LoadFunction(CUfunction function) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.loads.push_back(reinterpret_cast<CUkernel>(function));
  return Failure(state, "cuFuncLoad");
}

CudaDriver MakeDriver() {
  CudaDriver driver;
  driver.Init = [](unsigned) { return CUDA_SUCCESS; };
  driver.DriverGetVersion = [](int* version) {
    *version = 13000;
    return CUDA_SUCCESS;
  };
  driver.GetErrorString = [](CUresult status, const char** text) {
    *text = status == CUDA_SUCCESS               ? "no error"
            : status == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory"
                                                 : "another error";
    return CUDA_SUCCESS;
  };
  driver.DeviceGetCount = [](int* count) {
    *count = kDevices;
    return CUDA_SUCCESS;
  };
  driver.DeviceGet = [](CUdevice* device, int number) {
    if (number < 0 || number >= kDevices) return CUDA_ERROR_INVALID_DEVICE;
    *device = number;
    return CUDA_SUCCESS;
  };
  driver.DeviceGetAttribute = [](int* value, CUdevice_attribute attribute,
                                 CUdevice device) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    *value = attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
                 ? state.devices.at(device).major
             : attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR
                 ? state.devices.at(device).minor
                 : 132;
    return FailureOn(state, "cuDeviceGetAttribute", device);
  };
  driver.DeviceCanAccessPeer = [](int* possible, CUdevice device,
                                  CUdevice peer) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    *possible = device != peer && state.forbidden.count({device, peer}) == 0;
    return CUDA_SUCCESS;
  };
  driver.DevicePrimaryCtxRetain = [](CUcontext* context, CUdevice device) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    *context = ContextOf(device);
    return FailureOn(state, "cuDevicePrimaryCtxRetain", device);
  };
  driver.CtxPushCurrent = [](CUcontext context) {
    context_stack.push_back(context);
    return CUDA_SUCCESS;
  };
  driver.CtxPopCurrent = [](CUcontext* context) {
    if (context_stack.empty()) return CUDA_ERROR_INVALID_CONTEXT;
    *context = context_stack.back();
    context_stack.pop_back();
    return CUDA_SUCCESS;
  };
  driver.CtxEnablePeerAccess = [](CUcontext peer, unsigned) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    return state.enabled.emplace(CurrentDevice(), peer->device).second
               ? CUDA_SUCCESS
               : CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
  };

  driver.LibraryLoadData = [](CUlibrary* library, const void*, CUjit_option*,
                              void**, unsigned, CUlibraryOption*, void**,
                              unsigned) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    *library = nullptr;  // all kernels are in one
    return Failure(state, "cuLibraryLoadData");
  };
  driver.LibraryGetKernel = [](CUkernel* kernel, CUlibrary, const char* name) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    CUkern_st& found = state.kernels[name];
    found.name = name;
    *kernel = &found;
    return CUDA_SUCCESS;
  };
  driver.KernelGetFunction = [](CUfunction* function, CUkernel kernel) {
    *function = reinterpret_cast<CUfunction>(kernel);
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    return Failure(state, "cuKernelGetFunction");
  };
  driver.FuncLoad = LoadFunction;
  driver.FuncGetAttribute = [](int*, CUfunction_attribute attribute,
                               CUfunction function) {
    if (GlobalDriver().FuncLoad != nullptr) {
      return CUDA_ERROR_FUNCTION_NOT_LOADED;
    }
    return attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK
               ? LoadFunction(function)
               : CUDA_SUCCESS;
  };
  driver.LaunchKernel =
      [](CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
         unsigned block_x, unsigned block_y, unsigned block_z,
         unsigned shared_bytes, CUstream stream, void** parameters, void**) {
        State& state = Global();
        const std::lock_guard<std::mutex> lock(state.mutex);
        const CUresult failure = Failure(state, "cuLaunchKernel");
        if (failure != CUDA_SUCCESS) return failure;
        const auto try_peer = state.kernels.find(kTryPeerKernel);
        if (try_peer != state.kernels.end() &&
            function == reinterpret_cast<CUfunction>(&try_peer->second)) {
          RunTryPeer(state, parameters);
          return CUDA_SUCCESS;
        }
        state.launches.push_back({function,
                                  {grid_x, grid_y, grid_z},
                                  {block_x, block_y, block_z},
                                  *static_cast<KernelArguments*>(parameters[0]),
                                  shared_bytes,
                                  stream});
        return CUDA_SUCCESS;
      };

  driver.StreamCreate = [](CUstream* stream, unsigned) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const CUresult failure = Failure(state, "cuStreamCreate");
    if (failure != CUDA_SUCCESS) return failure;
    *stream = new CUstream_st{CurrentDevice()};
    state.streams.insert(*stream);
    return CUDA_SUCCESS;
  };
  driver.StreamDestroy = [](CUstream stream) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    state.streams.erase(stream);
    delete stream;
    return CUDA_SUCCESS;
  };
  driver.StreamQuery = [](CUstream stream) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    if (stream->hangs) return CUDA_ERROR_NOT_READY;
    return Failure(state, "cuStreamQuery");
  };
  driver.StreamSynchronize = [](CUstream stream) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    if (stream->hangs) AbortWait("cuStreamSynchronize");
    return Failure(state, "cuStreamSynchronize");
  };

  driver.MemAlloc = [](CUdeviceptr* data, size_t bytes) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const CUresult failure = Failure(state, "cuMemAlloc");
    if (failure != CUDA_SUCCESS) return failure;
    *data = reinterpret_cast<CUdeviceptr>(std::malloc(bytes));
    state.memory[*data] = CurrentDevice();
    return CUDA_SUCCESS;
  };
  driver.MemFree = [](CUdeviceptr data) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const auto found = state.memory.find(data);
    if (found == state.memory.end()) return CUDA_ERROR_INVALID_VALUE;
    WaitForDevice(state, "cuMemFree", found->second);
    state.memory.erase(found);
    std::free(Host(data));
    return CUDA_SUCCESS;
  };
  driver.MemHostAlloc = [](void** data, size_t bytes, unsigned) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const CUresult failure = Failure(state, "cuMemHostAlloc");
    if (failure != CUDA_SUCCESS) return failure;
    *data = std::malloc(bytes);
    state.host_memory.insert(*data);
    return CUDA_SUCCESS;
  };
  driver.MemFreeHost = [](void* data) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    WaitForDevice(state, "cuMemFreeHost", CurrentDevice());
    if (state.host_memory.erase(data) > 0) std::free(data);
    return CUDA_SUCCESS;
  };
  driver.MemsetD8Async = [](CUdeviceptr data, unsigned char value, size_t bytes,
                            CUstream stream) {
    // Behind what never ends nothing is done.
    if (!stream->hangs) std::memset(Host(data), value, bytes);
    return CUDA_SUCCESS;
  };
  driver.MemcpyHtoDAsync = [](CUdeviceptr to, const void* from, size_t bytes,
                              CUstream stream) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const CUresult failure = Failure(state, "cuMemcpyHtoDAsync");
    if (failure != CUDA_SUCCESS) return failure;
    if (!stream->hangs) std::memcpy(Host(to), from, bytes);
    return CUDA_SUCCESS;
  };
  driver.MemcpyDtoHAsync = [](void* to, CUdeviceptr from, size_t bytes,
                              CUstream stream) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const CUresult failure = Failure(state, "cuMemcpyDtoHAsync");
    if (failure != CUDA_SUCCESS) return failure;
    // To memory that is not pinned the copy is done when the call returns.
    if (stream->hangs) AbortWait("cuMemcpyDtoHAsync");
    std::memcpy(to, Host(from), bytes);
    return CUDA_SUCCESS;
  };

  driver.IpcGetMemHandle = [](CUipcMemHandle* handle, CUdeviceptr data) {
    std::memcpy(handle, &data, sizeof(data));
    return CUDA_SUCCESS;
  };
  driver.IpcOpenMemHandle = [](CUdeviceptr* data, CUipcMemHandle handle,
                               unsigned) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    const CUresult failure = Failure(state, "cuIpcOpenMemHandle");
    if (failure != CUDA_SUCCESS) return failure;
    std::memcpy(data, &handle, sizeof(*data));
    ++state.mappings;
    return CUDA_SUCCESS;
  };
  driver.IpcCloseMemHandle = [](CUdeviceptr) {
    State& state = Global();
    const std::lock_guard<std::mutex> lock(state.mutex);
    --state.mappings;
    return CUDA_SUCCESS;
  };
  return driver;
}

CudaDriver& GlobalDriver() {
  static CudaDriver* const driver = new CudaDriver(MakeDriver());
  return *driver;
}

}  // namespace

void BecomeOld() { GlobalDriver().FuncLoad = nullptr; }

}  // namespace oneshot::fake_cuda

namespace oneshot {

const CudaDriver& Cuda() { return fake_cuda::GlobalDriver(); }

}  // namespace oneshot
