// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/device.h"

#include <map>
#include <mutex>

#include "cuda/runtime/cuda_check.h"
#include "cuda/runtime/cuda_driver.h"

namespace oneshot {
namespace {

// Blocks that may share a row on devices that have clusters: as many as every
// such device guarantees.
constexpr int kPortableCluster = 8;

}  // namespace

bool QueryDevice(int device, DeviceTraits* traits, std::string* error) {
  CUdevice handle = 0;
  if (!CudaSucceeded(Cuda().DeviceGet(&handle, device), "cuDeviceGet", error)) {
    return false;
  }
  int major = 0;
  int minor = 0;
  int multiprocessors = 0;
  const auto query = [&](int* value, CUdevice_attribute attribute) {
    return CudaSucceeded(Cuda().DeviceGetAttribute(value, attribute, handle),
                         "cuDeviceGetAttribute", error);
  };
  if (!query(&major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) ||
      !query(&minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR) ||
      !query(&multiprocessors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)) {
    return false;
  }
  traits->compute_capability = major * 10 + minor;
  traits->limits.multiprocessors = multiprocessors;
  traits->limits.max_cluster = major >= 9 ? kPortableCluster : 1;
  return true;
}

CUresult PrimaryContext(int device, CUcontext* context) {
  static std::mutex mutex;
  static auto* const contexts = new std::map<int, CUcontext>;
  const std::lock_guard<std::mutex> lock(mutex);
  CUcontext& known = (*contexts)[device];
  if (known == nullptr) {
    CUdevice handle = 0;
    CUresult status = Cuda().DeviceGet(&handle, device);
    if (status == CUDA_SUCCESS) {
      status = Cuda().DevicePrimaryCtxRetain(&known, handle);
    }
    if (status != CUDA_SUCCESS) {
      known = nullptr;
      return status;
    }
  }
  *context = known;
  return CUDA_SUCCESS;
}

CUresult CanAccessPeer(int* possible, int device, int peer) {
  CUdevice from = 0;
  CUdevice to = 0;
  CUresult status = Cuda().DeviceGet(&from, device);
  if (status == CUDA_SUCCESS) status = Cuda().DeviceGet(&to, peer);
  if (status != CUDA_SUCCESS) return status;
  return Cuda().DeviceCanAccessPeer(possible, from, to);
}

CUresult EnablePeerAccess(int peer) {
  CUcontext context = nullptr;
  CUresult status = PrimaryContext(peer, &context);
  if (status != CUDA_SUCCESS) return status;
  status = Cuda().CtxEnablePeerAccess(context, /*Flags=*/0);
  return status == CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED ? CUDA_SUCCESS
                                                          : status;
}

}  // namespace oneshot
