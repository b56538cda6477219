// SPDX-License-Identifier: Apache-2.0
//
// A stand-in for the CUDA run-time library and for peer_check.cu, for tests on
// machines without a GPU: it defines the functions that the host's code calls,
// and the linker then takes none from libcudart_static.a. Memory of a device is
// memory of the host, and a stream does its work at once.
#ifndef ONESHOT_CUDA_RUNTIME_FAKE_CUDA_H_
#define ONESHOT_CUDA_RUNTIME_FAKE_CUDA_H_

#include <cuda_runtime_api.h>

#include <string>

namespace oneshot::fake_cuda {

// Back to a machine of eight devices of compute capability 9.0 that can access
// each other, and on which everything succeeds. What was allocated counts as
// released.
void Reset();

// From now on calls of `function` return `status` while `device` is current.
void Fail(const std::string& function, int device, cudaError_t status);

// The stream's work never ends from now on. Then the process aborts in every
// call that would wait for it, those that free memory of the device included.
void Hang(cudaStream_t stream);

void SetComputeCapability(int device, int major, int minor);
void ForbidPeerAccess(int from, int to);

// What TryPeer measures on a device.
void SetPeerLoadNs(int device, double nanoseconds);
// What TryPeer stores from a device arrives nowhere.
void LosePeerStores(int device);

// How much there is that was not released: memory, streams and mappings.
int Live();

}  // namespace oneshot::fake_cuda

#endif  // ONESHOT_CUDA_RUNTIME_FAKE_CUDA_H_
