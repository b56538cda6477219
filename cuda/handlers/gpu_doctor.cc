// SPDX-License-Identifier: Apache-2.0
//
// What `python -m oneshot doctor` says about the GPUs: which there are, and how
// fast each reaches each other and, to compare, itself. Runs in a process of
// its own, since it makes a context on every device.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda/handlers/export.h"
#include "cuda/runtime/device_guard.h"

namespace oneshot {
namespace {

constexpr size_t kSmallBytes = 16;
constexpr int kSmallCopies = 1000;
constexpr size_t kLargeBytes = size_t{64} << 20;
constexpr int kLargeCopies = 8;

// A JSON string. Names of devices and errors hold nothing that needs escapes.
std::string Quote(const std::string& text) { return '"' + text + '"'; }

// Copies between two devices, with all that they need; each step is skipped
// after the first that fails.
class Link {
 public:
  Link(int from, int to) : guard_(from) {
    Try(guard_.status());
    Try(Allocate(from, &source_));
    Try(Allocate(to, &target_));
    if (status_ != cudaSuccess) return;
    Try(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
    Try(cudaEventCreate(&start_));
    Try(cudaEventCreate(&stop_));
  }
  ~Link() {
    if (stop_ != nullptr) cudaEventDestroy(stop_);
    if (start_ != nullptr) cudaEventDestroy(start_);
    if (stream_ != nullptr) cudaStreamDestroy(stream_);
    cudaFree(target_);
    cudaFree(source_);
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Mean time of one of `copies`, one after the other. They are a graph: the
  // host is slower at enqueueing small ones than a link is at carrying them.
  double Microseconds(size_t bytes, int copies) {
    if (status_ != cudaSuccess) return 0;
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t program = nullptr;
    Try(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < copies && status_ == cudaSuccess; ++i) {
      Try(cudaMemcpyAsync(target_, source_, bytes, cudaMemcpyDefault, stream_));
    }
    Try(cudaStreamEndCapture(stream_, &graph));
    if (status_ == cudaSuccess) Try(cudaGraphInstantiate(&program, graph, 0));
    // The first run maps memory.
    for (int run = 0; run < 2 && status_ == cudaSuccess; ++run) {
      Try(cudaEventRecord(start_, stream_));
      Try(cudaGraphLaunch(program, stream_));
      Try(cudaEventRecord(stop_, stream_));
      Try(cudaEventSynchronize(stop_));
    }
    float milliseconds = 0;
    if (status_ == cudaSuccess) {
      Try(cudaEventElapsedTime(&milliseconds, start_, stop_));
    }
    if (program != nullptr) cudaGraphExecDestroy(program);
    if (graph != nullptr) cudaGraphDestroy(graph);
    return 1e3 * milliseconds / copies;
  }

  cudaError_t status() const { return status_; }

 private:
  static cudaError_t Allocate(int device, void** out) {
    const DeviceGuard guard(device);
    if (guard.status() != cudaSuccess) return guard.status();
    return cudaMalloc(out, kLargeBytes);
  }

  void Try(cudaError_t status) {
    if (status_ == cudaSuccess) status_ = status;
  }

  const DeviceGuard guard_;
  cudaError_t status_ = cudaSuccess;
  void* source_ = nullptr;
  void* target_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t stop_ = nullptr;
};

std::string LinkJson(int from, int to) {
  int peer = 1;
  cudaError_t status = cudaSuccess;
  if (from != to) status = cudaDeviceCanAccessPeer(&peer, from, to);
  double latency = 0;
  double bandwidth = 0;
  if (status == cudaSuccess && peer && from != to) {
    const DeviceGuard guard(from);
    status = cudaDeviceEnablePeerAccess(to, 0);
    if (status == cudaErrorPeerAccessAlreadyEnabled) {
      cudaGetLastError();
      status = cudaSuccess;
    }
  }
  if (status == cudaSuccess) {
    Link link(from, to);
    latency = link.Microseconds(kSmallBytes, kSmallCopies);
    const double large = link.Microseconds(kLargeBytes, kLargeCopies);
    if (large > 0) bandwidth = kLargeBytes / large / 1e3;
    status = link.status();
  }
  char numbers[128];
  std::snprintf(numbers, sizeof(numbers),
                "\"microseconds\":%.2f,\"gigabytes_per_second\":%.1f", latency,
                bandwidth);
  return std::string("{\"from\":") + std::to_string(from) +
         ",\"to\":" + std::to_string(to) +
         ",\"peer_access\":" + (peer ? "true," : "false,") + numbers +
         ",\"error\":" +
         Quote(status == cudaSuccess ? "" : cudaGetErrorString(status)) + "}";
}

std::string Doctor() {
  int driver = 0;
  int runtime = 0;
  int count = 0;
  std::string error;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    driver = 0;
    error = "no NVIDIA driver";
  } else if (const cudaError_t status = cudaGetDeviceCount(&count);
             status != cudaSuccess) {
    count = 0;
    error = cudaGetErrorString(status);
  }
  cudaRuntimeGetVersion(&runtime);
  std::string devices;
  std::string links;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties = {};
    const cudaError_t status = cudaGetDeviceProperties(&properties, i);
    if (status != cudaSuccess) {
      error = cudaGetErrorString(status);
      break;
    }
    devices += (i > 0 ? ",{" : "{") + ("\"name\":" + Quote(properties.name)) +
               ",\"compute_capability\":\"" + std::to_string(properties.major) +
               "." + std::to_string(properties.minor) +
               "\",\"bytes\":" + std::to_string(properties.totalGlobalMem) +
               "}";
    for (int j = 0; j < count; ++j) {
      links += (links.empty() ? "" : ",") + LinkJson(i, j);
    }
  }
  return "{\"driver\":" + std::to_string(driver) +
         ",\"runtime\":" + std::to_string(runtime) +
         ",\"error\":" + Quote(error) + ",\"devices\":[" + devices +
         "],\"links\":[" + links + "]}";
}

}  // namespace
}  // namespace oneshot

// A JSON object, malloc'ed; null when there is no memory for it. CUDA versions
// are 1000 * major + 10 * minor. Links go from each device to each, itself too;
// `error` is empty where all is well.
ONESHOT_EXPORT char* oneshot_gpu_doctor() {
  return strdup(oneshot::Doctor().c_str());
}
