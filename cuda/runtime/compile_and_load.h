// SPDX-License-Identifier: Apache-2.0
//
// From the source of a kernel to one that can be launched.
#ifndef ONESHOT_CUDA_RUNTIME_COMPILE_AND_LOAD_H_
#define ONESHOT_CUDA_RUNTIME_COMPILE_AND_LOAD_H_

#include <cuda.h>

#include <string>

namespace oneshot {

// Compiles `source` for devices of `compute_capability`, e.g. 90, and finds the
// function `name` in it. The kernel is for all such devices and never released.
// Returns false and says why. Thread-safe.
bool CompileAndLoad(const std::string& source, const std::string& name,
                    int compute_capability, CUkernel* kernel,
                    std::string* error);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_COMPILE_AND_LOAD_H_
