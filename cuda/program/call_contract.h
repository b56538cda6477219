// SPDX-License-Identifier: Apache-2.0
//
// Limits shared by the compiler pass, the handlers and the kernels. Plain C++:
// the pass includes this file too, and must not see CUDA or FFI headers.
#ifndef ONESHOT_CUDA_PROGRAM_CALL_CONTRACT_H_
#define ONESHOT_CUDA_PROGRAM_CALL_CONTRACT_H_

#include <cstdint>

namespace oneshot {

// Version of the custom call: its attributes, operands and results. The pass
// writes it, the handlers refuse any other.
inline constexpr int64_t kAbiVersion = 2;

inline constexpr int kMinRanks = 2;
inline constexpr int kMaxRanks = 8;

// The unit of transfer. 16 bytes is the widest access of one thread.
inline constexpr int kPacketBytes = 16;

// What one rank contributes to one all-reduce, every row padded to whole
// packets. A workspace holds two of these from every peer on every device, and
// what comes behind them is aligned.
constexpr int64_t MaxMessageBytes(int ranks) {
  return (int64_t{32} << 20) / (ranks - 1) / 256 * 256;
}

// A row that is reduced is held in the registers of one cluster.
inline constexpr int kMaxThreads = 1024;
inline constexpr int kMaxPacketsPerThread = 4;
inline constexpr int64_t kMaxRowBytes =
    int64_t{kPacketBytes} * kMaxThreads * kMaxPacketsPerThread;

// Marks a word of the workspace that no rank has written yet; see
// all_reduce_kernel.cuh.
inline constexpr uint32_t kSentinel = 0xFFFFFFFFu;

// Bytes of one row on the wire.
constexpr int64_t PaddedRowBytes(int64_t row_bytes) {
  return (row_bytes + kPacketBytes - 1) / kPacketBytes * kPacketBytes;
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_PROGRAM_CALL_CONTRACT_H_
