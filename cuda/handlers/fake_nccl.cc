// SPDX-License-Identifier: Apache-2.0
#include "cuda/handlers/fake_nccl.h"

#include "cuda/handlers/export.h"

namespace {

oneshot::FakeCommunicator* Communicator(void* comm) {
  return static_cast<oneshot::FakeCommunicator*>(comm);
}

constexpr int kInt8 = 0;
constexpr int kInvalidArgument = 4;

}  // namespace

ONESHOT_EXPORT int ncclCommUserRank(void* comm, int* rank) {
  return Communicator(comm)->UserRank(rank);
}

ONESHOT_EXPORT int ncclCommCount(void* comm, int* count) {
  return Communicator(comm)->Count(count);
}

ONESHOT_EXPORT int ncclAllGather(const void* send, void* receive, size_t count,
                                 int type, void* comm, CUstream stream) {
  if (type != kInt8) return kInvalidArgument;
  return Communicator(comm)->AllGather(send, receive, count, stream);
}

ONESHOT_EXPORT int ncclCommGetAsyncError(void* comm, int* status) {
  return Communicator(comm)->GetAsyncError(status);
}

ONESHOT_EXPORT const char* ncclGetErrorString(int status) {
  return status == kInvalidArgument ? "invalid argument" : "another status";
}
