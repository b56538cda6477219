// SPDX-License-Identifier: Apache-2.0
//
// The call computed on the host: what the CPU handler runs and what the kernel
// is checked against.
#ifndef ONESHOT_CUDA_HOST_EPILOGUE_H_
#define ONESHOT_CUDA_HOST_EPILOGUE_H_

#include <cstdint>
#include <vector>

#include "cuda/epilogue.h"

namespace oneshot {

// Element `index` of an array of `dtype`.
float LoadElement(const void* data, DType dtype, int64_t index);
void StoreElement(void* data, DType dtype, int64_t index, float value);

// Computes the results of every rank of a group, given in group order. Every
// element of x and of the addends is read before its place in a result is
// written, so a result may share memory with an operand of the same rank.
void AllReduceOnHost(const Epilogue& epilogue, int64_t rows, int64_t hidden,
                     const std::vector<Buffers>& ranks);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_HOST_EPILOGUE_H_
