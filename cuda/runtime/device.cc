// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/device.h"

#include <cuda_runtime_api.h>

#include "cuda/runtime/cuda_check.h"

namespace oneshot {
namespace {

// Blocks that may share a row on devices that have clusters: as many as every
// such device guarantees.
constexpr int kPortableCluster = 8;

}  // namespace

bool QueryDevice(int device, DeviceTraits* traits, std::string* error) {
  int major = 0;
  int minor = 0;
  int multiprocessors = 0;
  const auto query = [&](int* value, cudaDeviceAttr attribute) {
    return CudaSucceeded(cudaDeviceGetAttribute(value, attribute, device),
                         "cudaDeviceGetAttribute", error);
  };
  if (!query(&major, cudaDevAttrComputeCapabilityMajor) ||
      !query(&minor, cudaDevAttrComputeCapabilityMinor) ||
      !query(&multiprocessors, cudaDevAttrMultiProcessorCount)) {
    return false;
  }
  traits->compute_capability = major * 10 + minor;
  traits->limits.multiprocessors = multiprocessors;
  traits->limits.max_cluster = major >= 9 ? kPortableCluster : 1;
  return true;
}

}  // namespace oneshot
