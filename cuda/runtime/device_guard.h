// SPDX-License-Identifier: Apache-2.0
//
// Makes a device's primary context current for a scope. The threads we are
// called on are XLA's and must find their own context current again.
#ifndef ONESHOT_CUDA_RUNTIME_DEVICE_GUARD_H_
#define ONESHOT_CUDA_RUNTIME_DEVICE_GUARD_H_

#include <cuda.h>

#include "cuda/runtime/cuda_driver.h"
#include "cuda/runtime/device.h"

namespace oneshot {

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    CUcontext context = nullptr;
    status_ = PrimaryContext(device, &context);
    if (status_ == CUDA_SUCCESS) status_ = Cuda().CtxPushCurrent(context);
  }
  ~DeviceGuard() {
    CUcontext context = nullptr;
    if (status_ == CUDA_SUCCESS) Cuda().CtxPopCurrent(&context);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

  CUresult status() const { return status_; }

 private:
  CUresult status_;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_DEVICE_GUARD_H_
