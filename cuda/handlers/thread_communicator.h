// SPDX-License-Identifier: Apache-2.0
//
// A communicator whose ranks are threads, for tests with fake_nccl.h.
#ifndef ONESHOT_CUDA_HANDLERS_THREAD_COMMUNICATOR_H_
#define ONESHOT_CUDA_HANDLERS_THREAD_COMMUNICATOR_H_

#include <cuda.h>

#include <atomic>
#include <cstddef>
#include <string>

#include "cuda/handlers/fake_nccl.h"
#include "cuda/runtime/thread_bootstrap.h"

namespace oneshot {

class ThreadCommunicator : public FakeCommunicator {
 public:
  ThreadCommunicator(ThreadBootstrap::Room& room, int rank)
      : ranks_(room, rank) {}

  int UserRank(int* rank) override {
    *rank = ranks_.rank();
    return 0;
  }
  int Count(int* count) override {
    *count = ranks_.size();
    return 0;
  }
  int AllGather(const void* send, void* receive, size_t bytes,
                CUstream) override {
    ++gathers;
    std::string error;
    return ranks_.AllGather(send, bytes, receive, &error) ? 0 : 1;
  }
  int GetAsyncError(int* status) override {
    *status = 0;
    return 0;
  }

  std::atomic<int> gathers = 0;

 private:
  ThreadBootstrap ranks_;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_HANDLERS_THREAD_COMMUNICATOR_H_
