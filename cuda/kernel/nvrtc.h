// SPDX-License-Identifier: Apache-2.0
//
// NVIDIA's run-time compiler, loaded when it is first needed.
#ifndef ONESHOT_CUDA_KERNEL_NVRTC_H_
#define ONESHOT_CUDA_KERNEL_NVRTC_H_

#include <string>

namespace oneshot {

// Where to look for the library, besides what the process has loaded already
// and what the dynamic linker finds: a directory, or the file itself. Call
// before the first compilation.
void SetNvrtcPath(const std::string& path);

// Machine code for devices of `compute_capability`, e.g. 90. Thread-safe.
// Returns false and says why.
bool CompileCuda(const std::string& source, int compute_capability,
                 std::string* cubin, std::string* error);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_KERNEL_NVRTC_H_
