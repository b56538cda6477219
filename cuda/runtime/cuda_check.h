// SPDX-License-Identifier: Apache-2.0
//
// Errors of the CUDA driver as words.
#ifndef ONESHOT_CUDA_RUNTIME_CUDA_CHECK_H_
#define ONESHOT_CUDA_RUNTIME_CUDA_CHECK_H_

#include <cuda.h>

#include <string>

#include "cuda/runtime/cuda_driver.h"

namespace oneshot {

// CUDA's words for an error, or what the machine lacks.
inline std::string CudaErrorText(CUresult status) {
  const CudaDriver& driver = Cuda();
  const char* text = nullptr;
  if (driver.GetErrorString(status, &text) == CUDA_SUCCESS && text != nullptr &&
      (status != CUDA_ERROR_NOT_FOUND || driver.missing.empty())) {
    return text;
  }
  if (!driver.missing.empty()) return driver.missing;
  return "CUDA error " + std::to_string(status);
}

// True if a call succeeded; otherwise `error` says what failed, and why.
inline bool CudaSucceeded(CUresult status, const std::string& what,
                          std::string* error) {
  if (status == CUDA_SUCCESS) return true;
  *error = what + ": " + CudaErrorText(status);
  return false;
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_CUDA_CHECK_H_
