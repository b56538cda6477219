// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/compile_and_load.h"

#include "cuda/kernel/nvrtc.h"
#include "cuda/runtime/cuda_check.h"
#include "cuda/runtime/cuda_driver.h"

namespace oneshot {

bool CompileAndLoad(const std::string& source, const std::string& name,
                    int compute_capability, CUkernel* kernel,
                    std::string* error) {
  std::string cubin;
  CUlibrary library = nullptr;
  return CompileCuda(source, compute_capability, &cubin, error) &&
         CudaSucceeded(Cuda().LibraryLoadData(&library, cubin.data(), nullptr,
                                              nullptr, 0, nullptr, nullptr, 0),
                       "loading a kernel", error) &&
         CudaSucceeded(Cuda().LibraryGetKernel(kernel, library, name.c_str()),
                       "finding a kernel", error);
}

}  // namespace oneshot
