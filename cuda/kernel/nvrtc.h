// SPDX-License-Identifier: Apache-2.0
//
// NVIDIA's run-time compiler, loaded when it is first needed.
#ifndef ONESHOT_CUDA_KERNEL_NVRTC_H_
#define ONESHOT_CUDA_KERNEL_NVRTC_H_

#include <optional>
#include <string>
#include <vector>

namespace oneshot {

// CUDA's versions are numbers as the driver and CUDA's headers have them: 12040
// is 12.4.

// Where to look for the library first, before what the process has loaded
// already and what the dynamic linker finds: a directory, or the file itself.
// Call before the first compilation.
void SetNvrtcPath(const std::string& path);

// The library that is taken where the driver is of CUDA `driver_version`; 0: of
// any. It is the first one whose code such a driver understands. False with the
// reason in `error` if there is none.
bool FindNvrtc(int driver_version, std::string* file, int* nvrtc_version,
               std::string* error);

// What a compiler makes for a device.
struct CodeTarget {
  bool ptx = false;      // for the driver to compile; else machine code
  int architecture = 0;  // e.g. 90
};

// For a device of `compute_capability`, by a compiler of `nvrtc_version` that
// knows `architectures`. Machine code of a compiler is good for every driver of
// its major version or later, PTX for those that are no older than it; so that
// is for devices which are newer than the compiler alone. Empty with the reason
// in `error` if it can make neither.
std::optional<CodeTarget> ChooseTarget(int compute_capability,
                                       const std::vector<int>& architectures,
                                       int nvrtc_version, int driver_version,
                                       std::string* error);

// Code for devices of `compute_capability`, e.g. 90, that a driver of CUDA
// `driver_version` loads. Thread-safe. Returns false and says why.
bool CompileCuda(const std::string& source, int compute_capability,
                 int driver_version, std::string* code, std::string* error);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_KERNEL_NVRTC_H_
