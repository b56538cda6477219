// SPDX-License-Identifier: Apache-2.0
//
// What has to be known about a device before a kernel is planned and compiled.
#ifndef ONESHOT_CUDA_RUNTIME_DEVICE_H_
#define ONESHOT_CUDA_RUNTIME_DEVICE_H_

#include <cuda.h>

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

// The context that XLA, NCCL and CUDA's run-time library use on a device. It is
// retained at the first call and never released: what this process leaves on a
// device lives as long as the process.
CUresult PrimaryContext(int device, CUcontext* context);

// Whether a device can access the memory of another one.
CUresult CanAccessPeer(int* possible, int device, int peer);

// Lets the current context access the memory of a device's primary context. It
// is no failure if XLA has done it before.
CUresult EnablePeerAccess(int peer);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_DEVICE_H_
