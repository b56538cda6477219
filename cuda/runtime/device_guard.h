// SPDX-License-Identifier: Apache-2.0
//
// Makes a device current for a scope. The threads we are called on are XLA's
// and must find their own device current again.
#ifndef ONESHOT_CUDA_RUNTIME_DEVICE_GUARD_H_
#define ONESHOT_CUDA_RUNTIME_DEVICE_GUARD_H_

#include <cuda_runtime_api.h>

namespace oneshot {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    status_ = cudaGetDevice(&previous_);
    if (status_ == cudaSuccess && previous_ != device) {
      status_ = cudaSetDevice(device);
      changed_ = true;
    }
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  cudaError_t status() const { return status_; }

 private:
  int previous_ = 0;
  bool changed_ = false;
  cudaError_t status_;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_DEVICE_GUARD_H_
