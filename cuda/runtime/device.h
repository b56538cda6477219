// SPDX-License-Identifier: Apache-2.0
//
// What has to be known about a device before a kernel is planned and compiled.
#ifndef ONESHOT_CUDA_RUNTIME_DEVICE_H_
#define ONESHOT_CUDA_RUNTIME_DEVICE_H_

#include <string>

#include "cuda/kernel/launch_plan.h"

namespace oneshot {

// What a device offers, and which machine code it takes.
struct DeviceTraits {
  int compute_capability = 0;  // e.g. 90
  DeviceLimits limits;
};

// The traits of the device with this number. Returns false and says why.
bool QueryDevice(int device, DeviceTraits* traits, std::string* error);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_DEVICE_H_
