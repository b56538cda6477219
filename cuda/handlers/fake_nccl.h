// SPDX-License-Identifier: Apache-2.0
//
// What fake_nccl.cc, a libnccl.so.2 for tests, takes for a communicator.
#ifndef ONESHOT_CUDA_HANDLERS_FAKE_NCCL_H_
#define ONESHOT_CUDA_HANDLERS_FAKE_NCCL_H_

#include <cuda.h>

#include <cstddef>

namespace oneshot {

// Each function of NCCL's calls the member of the same name; the statuses that
// they return are NCCL's.
class FakeCommunicator {
 public:
  virtual ~FakeCommunicator() = default;
  virtual int UserRank(int* rank) = 0;
  virtual int Count(int* count) = 0;
  virtual int AllGather(const void* send, void* receive, size_t bytes,
                        CUstream stream) = 0;
  virtual int GetAsyncError(int* status) = 0;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_HANDLERS_FAKE_NCCL_H_
