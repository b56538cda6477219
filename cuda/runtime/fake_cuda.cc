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
#include <utility>

#include "cuda/runtime/peer_check.h"

// What CUDA has behind its opaque type.
struct CUstream_st {
  int device;
  bool hangs = false;
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
  std::map<std::pair<std::string, int>, cudaError_t> failures;
  std::set<std::pair<int, int>> forbidden;  // links
  std::set<std::pair<int, int>> enabled;
  std::map<void*, int> memory;  // and the device that it is of
  std::set<void*> host_memory;
  // fault.cc watches memory of the host for the life of the process.
  std::set<void*> retired;
  std::set<cudaStream_t> streams;
  int mappings = 0;
};

State& Global() {
  static State* const state = new State;
  return *state;
}

thread_local int current_device = 0;
thread_local cudaError_t last_error = cudaSuccess;

cudaError_t Return(cudaError_t status) {
  if (status != cudaSuccess) last_error = status;
  return status;
}

// What a call returns because a test wants it to fail, or success.
cudaError_t Failure(const State& state, const char* function) {
  const auto found = state.failures.find({function, current_device});
  return found == state.failures.end() ? cudaSuccess : found->second;
}

[[noreturn]] void AbortWait(const char* function) {
  std::fprintf(stderr, "%s would wait for a stream that hangs\n", function);
  std::abort();
}

void WaitForDevice(const State& state, const char* function, int device) {
  for (const cudaStream_t stream : state.streams) {
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
  for (const auto& [data, device] : state.memory) std::free(data);
  for (const cudaStream_t stream : state.streams) delete stream;
  state.memory.clear();
  state.retired.merge(state.host_memory);
  state.host_memory.clear();
  state.streams.clear();
  state.mappings = 0;
  last_error = cudaSuccess;
}

void Fail(const std::string& function, int device, cudaError_t status) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.failures[{function, device}] = status;
}

void Hang(cudaStream_t stream) {
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

}  // namespace oneshot::fake_cuda

using namespace oneshot::fake_cuda;  // NOLINT: this file is what it declares

cudaError_t cudaGetLastError() {
  return std::exchange(last_error, cudaSuccess);
}

const char* cudaGetErrorString(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "no error";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNotReady:
      return "device not ready";
    default:
      return "another error";
  }
}

cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kDevices) return Return(cudaErrorInvalidDevice);
  current_device = device;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute,
                                   int device) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (const cudaError_t failure = Failure(state, "cudaDeviceGetAttribute")) {
    return Return(failure);
  }
  *value = attribute == cudaDevAttrComputeCapabilityMajor
               ? state.devices.at(device).major
           : attribute == cudaDevAttrComputeCapabilityMinor
               ? state.devices.at(device).minor
               : 132;
  return cudaSuccess;
}

cudaError_t cudaDeviceCanAccessPeer(int* possible, int device, int peer) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  *possible = device != peer && state.forbidden.count({device, peer}) == 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  return Return(state.enabled.emplace(current_device, peer).second
                    ? cudaSuccess
                    : cudaErrorPeerAccessAlreadyEnabled);
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned int) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (const cudaError_t failure = Failure(state, "cudaStreamCreateWithFlags")) {
    return Return(failure);
  }
  *stream = new CUstream_st{current_device};
  state.streams.insert(*stream);
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.streams.erase(stream);
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (stream->hangs) return Return(cudaErrorNotReady);
  return Return(Failure(state, "cudaStreamQuery"));
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (stream->hangs) AbortWait("cudaStreamSynchronize");
  return Return(Failure(state, "cudaStreamSynchronize"));
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (const cudaError_t failure = Failure(state, "cudaMalloc")) {
    return Return(failure);
  }
  *data = std::malloc(bytes);
  state.memory[*data] = current_device;
  return cudaSuccess;
}

cudaError_t cudaFree(void* data) {
  if (data == nullptr) return cudaSuccess;
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  const auto found = state.memory.find(data);
  if (found == state.memory.end()) return Return(cudaErrorInvalidValue);
  WaitForDevice(state, "cudaFree", found->second);
  state.memory.erase(found);
  std::free(data);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned int) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (const cudaError_t failure = Failure(state, "cudaHostAlloc")) {
    return Return(failure);
  }
  *data = std::malloc(bytes);
  state.host_memory.insert(*data);
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* data) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  WaitForDevice(state, "cudaFreeHost", current_device);
  if (state.host_memory.erase(data) > 0) std::free(data);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes,
                            cudaStream_t stream) {
  if (stream->hangs) return cudaSuccess;  // behind what never ends
  std::memset(data, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes,
                            cudaMemcpyKind kind, cudaStream_t stream) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (const cudaError_t failure = Failure(state, "cudaMemcpyAsync")) {
    return Return(failure);
  }
  // To memory that is not pinned the copy is done when the call returns.
  if (stream->hangs && kind == cudaMemcpyDeviceToHost) {
    AbortWait("cudaMemcpyAsync");
  }
  if (!stream->hangs) std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t* handle, void* data) {
  std::memcpy(handle, &data, sizeof(data));
  return cudaSuccess;
}

cudaError_t cudaIpcOpenMemHandle(void** data, cudaIpcMemHandle_t handle,
                                 unsigned int) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (const cudaError_t failure = Failure(state, "cudaIpcOpenMemHandle")) {
    return Return(failure);
  }
  std::memcpy(data, &handle, sizeof(*data));
  ++state.mappings;
  return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void*) {
  State& state = Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  --state.mappings;
  return cudaSuccess;
}

namespace oneshot {

cudaError_t TryPeer(uint32_t* peer, uint32_t pattern, cudaStream_t,
                    double* load_ns) {
  fake_cuda::State& state = fake_cuda::Global();
  const std::lock_guard<std::mutex> lock(state.mutex);
  const fake_cuda::Device& device = state.devices[current_device];
  if (!device.loses_stores) std::fill_n(peer, 4, pattern);
  *load_ns = device.peer_load_ns;
  // A launch reports what the thread has left there.
  return cudaGetLastError();
}

}  // namespace oneshot
