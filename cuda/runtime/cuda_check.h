// SPDX-License-Identifier: Apache-2.0
//
// Errors of the CUDA run-time library as words.
#ifndef ONESHOT_CUDA_RUNTIME_CUDA_CHECK_H_
#define ONESHOT_CUDA_RUNTIME_CUDA_CHECK_H_

#include <cuda_runtime_api.h>

#include <string>

namespace oneshot {

// CUDA's words for an error. Also clears the thread's last error: it is
// reported here, and the next caller of cudaGetLastError must not take it for
// its own.
inline std::string TakeCudaError(cudaError_t status) {
  cudaGetLastError();
  return cudaGetErrorString(status);
}

// True if a call succeeded; otherwise `error` says what failed, and why.
inline bool CudaSucceeded(cudaError_t status, const std::string& what,
                          std::string* error) {
  if (status == cudaSuccess) return true;
  *error = what + ": " + TakeCudaError(status);
  return false;
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_CUDA_CHECK_H_
