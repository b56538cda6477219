// SPDX-License-Identifier: Apache-2.0
//
// What `python -m oneshot doctor` says about the GPUs: which there are, how
// fast each reaches each other and, to compare, itself, and what compiles
// kernels for them. Runs in a process of its own, since it makes a context on
// every device.
#include <cuda.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cuda/handlers/export.h"
#include "cuda/kernel/nvrtc.h"
#include "cuda/runtime/cuda_check.h"
#include "cuda/runtime/cuda_driver.h"
#include "cuda/runtime/device.h"
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
    if (status_ != CUDA_SUCCESS) return;
    Try(Cuda().StreamCreate(&stream_, CU_STREAM_NON_BLOCKING));
  }
  ~Link() {
    if (stream_ != nullptr) Cuda().StreamDestroy(stream_);
    if (target_ != 0) Cuda().MemFree(target_);
    if (source_ != 0) Cuda().MemFree(source_);
  }
  Link(const Link&) = delete;
  Link& operator=(const Link&) = delete;

  // Mean time of one of `copies`, one after the other, by the host's clock.
  // They are a graph: the host is slower at enqueueing small ones than a link
  // is at carrying them.
  double Microseconds(size_t bytes, int copies) {
    if (status_ != CUDA_SUCCESS) return 0;
    CUgraph graph = nullptr;
    CUgraphExec program = nullptr;
    Try(Cuda().StreamBeginCapture(stream_,
                                  CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    for (int i = 0; i < copies && status_ == CUDA_SUCCESS; ++i) {
      Try(Cuda().MemcpyAsync(target_, source_, bytes, stream_));
    }
    Try(Cuda().StreamEndCapture(stream_, &graph));
    if (status_ == CUDA_SUCCESS) {
      Try(Cuda().GraphInstantiateWithFlags(&program, graph, 0));
    }
    std::chrono::duration<double, std::micro> elapsed{};
    // The first run maps memory.
    for (int run = 0; run < 2 && status_ == CUDA_SUCCESS; ++run) {
      const auto start = std::chrono::steady_clock::now();
      Try(Cuda().GraphLaunch(program, stream_));
      Try(Cuda().StreamSynchronize(stream_));
      elapsed = std::chrono::steady_clock::now() - start;
    }
    if (program != nullptr) Cuda().GraphExecDestroy(program);
    if (graph != nullptr) Cuda().GraphDestroy(graph);
    return elapsed.count() / copies;
  }

  CUresult status() const { return status_; }

 private:
  static CUresult Allocate(int device, CUdeviceptr* out) {
    const DeviceGuard guard(device);
    if (guard.status() != CUDA_SUCCESS) return guard.status();
    return Cuda().MemAlloc(out, kLargeBytes);
  }

  void Try(CUresult status) {
    if (status_ == CUDA_SUCCESS) status_ = status;
  }

  const DeviceGuard guard_;
  CUresult status_ = CUDA_SUCCESS;
  CUdeviceptr source_ = 0;
  CUdeviceptr target_ = 0;
  CUstream stream_ = nullptr;
};

std::string LinkJson(int from, int to) {
  int peer = 1;
  CUresult status = CUDA_SUCCESS;
  if (from != to) status = CanAccessPeer(&peer, from, to);
  double latency = 0;
  double bandwidth = 0;
  if (status == CUDA_SUCCESS && peer && from != to) {
    const DeviceGuard guard(from);
    status = guard.status();
    if (status == CUDA_SUCCESS) status = EnablePeerAccess(to);
  }
  if (status == CUDA_SUCCESS) {
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
         Quote(status == CUDA_SUCCESS ? "" : CudaErrorText(status)) + "}";
}

// What is known about a device, but for its number. Empty with a reason in
// `error`.
std::string DeviceJson(int number, std::string* error) {
  CUdevice device = 0;
  DeviceTraits traits;
  char name[256] = "";
  size_t bytes = 0;
  if (!QueryDevice(number, &traits, error) ||
      !CudaSucceeded(Cuda().DeviceGet(&device, number), "cuDeviceGet", error) ||
      !CudaSucceeded(Cuda().DeviceGetName(name, sizeof(name), device),
                     "cuDeviceGetName", error) ||
      !CudaSucceeded(Cuda().DeviceTotalMem(&bytes, device), "cuDeviceTotalMem",
                     error)) {
    return "";
  }
  return "{\"name\":" + Quote(name) + ",\"compute_capability\":\"" +
         std::to_string(traits.compute_capability / 10) + "." +
         std::to_string(traits.compute_capability % 10) +
         "\",\"bytes\":" + std::to_string(bytes) + "}";
}

// The compiler that kernels would be compiled by.
std::string NvrtcJson(int driver) {
  std::string file;
  std::string error;
  int version = 0;
  FindNvrtc(driver, &file, &version, &error);
  return "{\"file\":" + Quote(file) +
         ",\"version\":" + std::to_string(version) +
         ",\"error\":" + Quote(error) + "}";
}

std::string Doctor() {
  int driver = 0;
  int count = 0;
  std::string error = Cuda().missing;
  if (error.empty()) {
    CudaSucceeded(Cuda().DriverGetVersion(&driver), "cuDriverGetVersion",
                  &error);
    CudaSucceeded(Cuda().DeviceGetCount(&count), "cuDeviceGetCount", &error);
  }
  std::string devices;
  std::string links;
  for (int i = 0; i < count && error.empty(); ++i) {
    const std::string device = DeviceJson(i, &error);
    if (device.empty()) break;
    devices += (devices.empty() ? "" : ",") + device;
    for (int j = 0; j < count; ++j) {
      links += (links.empty() ? "" : ",") + LinkJson(i, j);
    }
  }
  return "{\"driver\":" + std::to_string(driver) +
         ",\"nvrtc\":" + NvrtcJson(driver) + ",\"error\":" + Quote(error) +
         ",\"devices\":[" + devices + "],\"links\":[" + links + "]}";
}

}  // namespace
}  // namespace oneshot

// A JSON object, malloc'ed; null when there is no memory for it. CUDA versions
// are 1000 * major + 10 * minor. Links go from each device to each, itself too;
// `error` is empty where all is well.
ONESHOT_EXPORT char* oneshot_gpu_doctor() {
  return strdup(oneshot::Doctor().c_str());
}
