// SPDX-License-Identifier: Apache-2.0
//
// Whether a peer's memory can be used as the kernel uses it: tried, not asked.
#ifndef ONESHOT_CUDA_RUNTIME_PEER_CHECK_H_
#define ONESHOT_CUDA_RUNTIME_PEER_CHECK_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace oneshot {

// Stores `pattern` into the four words at `peer` on another device, as packets
// are stored, and measures the mean time of a load from there in nanoseconds.
// Waits for both on `stream`.
cudaError_t TryPeer(uint32_t* peer, uint32_t pattern, cudaStream_t stream,
                    double* load_ns);

// A load over NVLink takes about a microsecond. Slower than this the path leads
// through the host, and XLA's own collectives are the better choice.
inline constexpr double kMaxPeerLoadNs = 5000;

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_PEER_CHECK_H_
