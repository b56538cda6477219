// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/compile_and_load.h"

#include "cuda/kernel/nvrtc.h"
#include "cuda/runtime/cuda_check.h"
#include "cuda/runtime/cuda_driver.h"

namespace oneshot {

bool CompileAndLoad(const std::string& source, const std::string& name,
                    int compute_capability, CUkernel* kernel,
                    std::string* error) {
  int driver_version = 0;
  std::string code;
  CUlibrary library = nullptr;
  return CudaSucceeded(Cuda().DriverGetVersion(&driver_version),
                       "the driver's version", error) &&
         CompileCuda(source, compute_capability, driver_version, &code,
                     error) &&
         CudaSucceeded(Cuda().LibraryLoadData(&library, code.data(), nullptr,
                                              nullptr, 0, nullptr, nullptr, 0),
                       "loading a kernel", error) &&
         CudaSucceeded(Cuda().LibraryGetKernel(kernel, library, name.c_str()),
                       "finding a kernel", error);
}

}  // namespace oneshot
