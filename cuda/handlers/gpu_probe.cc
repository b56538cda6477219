// SPDX-License-Identifier: Apache-2.0
//
// Whether the kernel can run on this machine, asked before XLA starts. Through
// the driver API, which answers without creating a context on any device: that
// would cost memory on all of them and is XLA's to do.
#include <cuda.h>

#include <string>
#include <vector>

#include "cuda/handlers/export.h"
#include "cuda/kernel/dynamic_library.h"

namespace oneshot {
namespace {

constexpr int kMinComputeCapabilityMajor = 8;

struct Driver {
  decltype(&cuInit) init;
  decltype(&cuDeviceGetCount) device_count;
  decltype(&cuDeviceGet) device_get;
  decltype(&cuDeviceGetAttribute) attribute;
  decltype(&cuDeviceCanAccessPeer) can_access_peer;
};

// Empty when all is well.
std::string WhyNot(int least_devices) {
  const DynamicLibrary library = DynamicLibrary::Open("libcuda.so.1");
  if (!library) return "there is no CUDA driver";
  Driver driver;
  if (!library.Resolve("cuInit", driver.init) ||
      !library.Resolve("cuDeviceGetCount", driver.device_count) ||
      !library.Resolve("cuDeviceGet", driver.device_get) ||
      !library.Resolve("cuDeviceGetAttribute", driver.attribute) ||
      !library.Resolve("cuDeviceCanAccessPeer", driver.can_access_peer)) {
    return "the CUDA driver lacks a function";
  }
  int count = 0;
  if (driver.init(0) != CUDA_SUCCESS ||
      driver.device_count(&count) != CUDA_SUCCESS) {
    return "the CUDA driver does not start";
  }
  if (count < least_devices) {
    return least_devices == 1 ? "no GPU is visible"
                              : "fewer than two GPUs are visible";
  }

  std::vector<CUdevice> devices(count);
  for (int i = 0; i < count; ++i) {
    int major = 0;
    if (driver.device_get(&devices[i], i) != CUDA_SUCCESS ||
        driver.attribute(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
                         devices[i]) != CUDA_SUCCESS) {
      return "GPU " + std::to_string(i) + " does not answer";
    }
    if (major < kMinComputeCapabilityMajor) {
      return "GPU " + std::to_string(i) + " is older than compute capability " +
             std::to_string(kMinComputeCapabilityMajor) + ".0";
    }
  }
  for (int i = 0; i < count; ++i) {
    for (int j = 0; j < count; ++j) {
      int possible = 0;
      if (i != j && (driver.can_access_peer(&possible, devices[i],
                                            devices[j]) != CUDA_SUCCESS ||
                     !possible)) {
        return "GPU " + std::to_string(i) + " has no peer access to GPU " +
               std::to_string(j);
      }
    }
  }
  return "";
}

}  // namespace
}  // namespace oneshot

// Null when this process can run the kernel on its devices, of which there have
// to be `least_devices`; else the reason, valid until the next call.
ONESHOT_EXPORT const char* oneshot_gpu_probe(int least_devices) {
  static std::string reason;
  reason = oneshot::WhyNot(least_devices);
  return reason.empty() ? nullptr : reason.c_str();
}
