// SPDX-License-Identifier: Apache-2.0
//
// The memory of one rank's call. Plain data of a fixed size: a kernel takes it
// as an argument.
#ifndef ONESHOT_CUDA_PROGRAM_BUFFERS_H_
#define ONESHOT_CUDA_PROGRAM_BUFFERS_H_

#include <cstdint>

#include "cuda/program/epilogue_program.h"

namespace oneshot {

// In the order of the program; what it does not have is null. Results share no
// memory with anything else.
struct Buffers {
  const void* x = nullptr;
  const void* operands[kMaxOperands] = {};  // all slices of the sliced ones
  const int32_t* indices[kMaxIndices] = {};
  void* results[kMaxResults] = {};
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_PROGRAM_BUFFERS_H_
