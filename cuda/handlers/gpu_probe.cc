// SPDX-License-Identifier: Apache-2.0
//
// Whether the kernel can run on this machine, asked before XLA starts. No
// question here creates a context on a device: that would cost memory on all of
// them and is XLA's to do.
#include <cuda.h>

#include <string>
#include <vector>

#include "cuda/handlers/export.h"
#include "cuda/runtime/cuda_driver.h"

namespace oneshot {
namespace {

constexpr int kMinComputeCapabilityMajor = 8;

// Empty when all is well.
std::string WhyNot(int least_devices) {
  const CudaDriver& driver = Cuda();
  if (!driver.missing.empty()) return driver.missing;
  int count = 0;
  if (driver.DeviceGetCount(&count) != CUDA_SUCCESS) {
    return "the CUDA driver does not start";
  }
  if (count < least_devices) {
    return least_devices == 1 ? "no GPU is visible"
                              : "fewer than two GPUs are visible";
  }

  std::vector<CUdevice> devices(count);
  for (int i = 0; i < count; ++i) {
    int major = 0;
    if (driver.DeviceGet(&devices[i], i) != CUDA_SUCCESS ||
        driver.DeviceGetAttribute(&major,
                                  CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
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
      if (i != j && (driver.DeviceCanAccessPeer(&possible, devices[i],
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
