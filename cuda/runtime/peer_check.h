// SPDX-License-Identifier: Apache-2.0
//
// Whether a peer's memory can be used as the kernel uses it: tried, not asked.
#ifndef ONESHOT_CUDA_RUNTIME_PEER_CHECK_H_
#define ONESHOT_CUDA_RUNTIME_PEER_CHECK_H_

#include <cuda.h>

#include <cstdint>
#include <string>

namespace oneshot {

// Stores `pattern` into the four words at `peer` on another device, as packets
// are stored, and measures the mean time of a load from there in nanoseconds.
// Waits for both on `stream`. The current device has the compute capability
// that is named. Returns false and says why.
bool TryPeer(uint32_t* peer, uint32_t pattern, int compute_capability,
             CUstream stream, double* load_ns, std::string* error);

// The name of the kernel that does it. Its arguments are those of TryPeer and
// where it stores the nanoseconds that all of its loads took together.
inline constexpr char kTryPeerKernel[] = "oneshot_try_peer";
inline constexpr int kTryPeerLoads = 64;

// A load over NVLink takes about a microsecond. Slower than this the path leads
// through the host, and XLA's own collectives are the better choice.
inline constexpr double kMaxPeerLoadNs = 5000;

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_PEER_CHECK_H_
