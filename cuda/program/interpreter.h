// SPDX-License-Identifier: Apache-2.0
//
// The call computed on the host: what the CPU handler runs and what the kernel
// is checked against.
#ifndef ONESHOT_CUDA_PROGRAM_INTERPRETER_H_
#define ONESHOT_CUDA_PROGRAM_INTERPRETER_H_

#include <cstdint>
#include <vector>

#include "cuda/program/buffers.h"
#include "cuda/program/epilogue_program.h"

namespace oneshot {

// Element `index` of an array of `dtype`.
float LoadElement(const void* data, DType dtype, int64_t index);
void StoreElement(void* data, DType dtype, int64_t index, float value);

// Computes the results of every rank of a group, given in group order. The
// program must be valid.
void AllReduceOnHost(const EpilogueProgram& program, int64_t rows,
                     int64_t hidden, const std::vector<Buffers>& ranks);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_PROGRAM_INTERPRETER_H_
