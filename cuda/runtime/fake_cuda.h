// SPDX-License-Identifier: Apache-2.0
//
// A stand-in for the CUDA driver, for tests on machines without a GPU: it
// defines Cuda() of cuda_driver.h, and the linker then takes that of no
// library. Memory of a device is memory of the host, and a stream does its work
// at once. As with the driver, a thread has no current context before it pushes
// one.
#ifndef ONESHOT_CUDA_RUNTIME_FAKE_CUDA_H_
#define ONESHOT_CUDA_RUNTIME_FAKE_CUDA_H_

#include <cuda.h>

#include <string>
#include <vector>

#include "cuda/kernel/device/arguments.h"

namespace oneshot::fake_cuda {

// From now on the driver is of a version before CUDA 12.4.
void BecomeOld();

// Back to a machine of eight devices of compute capability 9.0 that can access
// each other, and on which everything succeeds. What was allocated counts as
// released.
void Reset();

// From now on calls of `function` return `status` while `device` is current, or
// is asked about.
void Fail(const std::string& function, int device, CUresult status);

// The stream's work never ends from now on. Then the process aborts in every
// call that would wait for it, those that free memory of the device included.
void Hang(CUstream stream);

void SetComputeCapability(int device, int major, int minor);
void ForbidPeerAccess(int from, int to);

// What TryPeer measures on a device.
void SetPeerLoadNs(int device, double nanoseconds);
// What TryPeer stores from a device arrives nowhere.
void LosePeerStores(int device);

// How much there is that was not released: memory, streams and mappings.
int Live();

// The device whose context is current on this thread; -1: none.
int CurrentDevice();

// A launch of a kernel that is not TryPeer's.
struct Launch {
  CUfunction function;
  unsigned grid[3];
  unsigned block[3];
  KernelArguments arguments;
  unsigned shared_bytes;
  CUstream stream;
};
std::vector<Launch> Launches();

// The kernels that were put onto a device.
std::vector<CUkernel> Loads();

}  // namespace oneshot::fake_cuda

#endif  // ONESHOT_CUDA_RUNTIME_FAKE_CUDA_H_
