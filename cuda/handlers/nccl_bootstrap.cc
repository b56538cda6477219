// SPDX-License-Identifier: Apache-2.0
#include "cuda/handlers/nccl_bootstrap.h"

#include <chrono>
#include <thread>

#include "cuda/kernel/dynamic_library.h"
#include "cuda/runtime/cuda_check.h"
#include "cuda/runtime/cuda_driver.h"
#include "cuda/runtime/fault.h"

namespace oneshot {

// As declared by nccl.h, which we do not need for five functions.
struct NcclApi {
  int (*user_rank)(void* comm, int* rank);
  int (*count)(void* comm, int* count);
  int (*all_gather)(const void* send, void* receive, size_t count, int type,
                    void* comm, CUstream stream);
  int (*async_error)(void* comm, int* error);
  const char* (*error_string)(int error);
};

namespace {

constexpr int kNcclSuccess = 0;
constexpr int kNcclInProgress = 7;
constexpr int kNcclInt8 = 0;

// Starts the messages of errors that are not NCCL's.
constexpr char kExchange[] = "exchange between the ranks";

// Holds what this rank sends and what all ranks have sent.
constexpr size_t kStagingBytes = 64 << 10;

// Between two looks at an exchange that goes on.
constexpr auto kInterval = std::chrono::microseconds(50);

const NcclApi* LoadedNccl(std::string* error) {
  static const NcclApi* const api = []() -> const NcclApi* {
    const DynamicLibrary library = DynamicLibrary::FindLoaded("libnccl.so.2");
    static NcclApi found;
    const bool complete =
        library.Resolve("ncclCommUserRank", found.user_rank) &&
        library.Resolve("ncclCommCount", found.count) &&
        library.Resolve("ncclAllGather", found.all_gather) &&
        library.Resolve("ncclCommGetAsyncError", found.async_error) &&
        library.Resolve("ncclGetErrorString", found.error_string);
    return complete ? &found : nullptr;
  }();
  if (api == nullptr) {
    *error = "libnccl.so.2 is not loaded in this process, or lacks a function";
  }
  return api;
}

}  // namespace

std::unique_ptr<NcclBootstrap> NcclBootstrap::Create(void* communicator,
                                                     std::string* error) {
  const NcclApi* nccl = LoadedNccl(error);
  if (nccl == nullptr) return nullptr;
  std::unique_ptr<NcclBootstrap> bootstrap(
      new NcclBootstrap(*nccl, communicator));
  int status = nccl->user_rank(communicator, &bootstrap->rank_);
  if (status == kNcclSuccess) {
    status = nccl->count(communicator, &bootstrap->size_);
  }
  if (status != kNcclSuccess) {
    *error = std::string("NCCL: ") + nccl->error_string(status);
    return nullptr;
  }
  // Both before anything large is asked for: a rank that has no memory left for
  // that has to be able to tell the others.
  CUresult cuda =
      Cuda().StreamCreate(&bootstrap->stream_, CU_STREAM_NON_BLOCKING);
  if (cuda == CUDA_SUCCESS) {
    cuda = Cuda().MemAlloc(&bootstrap->staging_, kStagingBytes);
  }
  if (!CudaSucceeded(cuda, kExchange, error)) return nullptr;
  return bootstrap;
}

NcclBootstrap::~NcclBootstrap() {
  if (staging_ != 0) Cuda().MemFree(staging_);
  if (stream_ != nullptr) Cuda().StreamDestroy(stream_);
}

void NcclBootstrap::Abandon() {
  // CUDA would not free memory before the device has done its work.
  staging_ = 0;
  stream_ = nullptr;
}

bool NcclBootstrap::AllGather(const void* mine, size_t bytes, void* all,
                              std::string* error) {
  const auto check = [&](CUresult status) {
    return CudaSucceeded(status, kExchange, error);
  };
  if ((size_ + 1) * bytes > kStagingBytes) {  // on all ranks alike
    *error = std::string(kExchange) + ": too many bytes";
    return false;
  }
  if (!check(Cuda().MemcpyHtoDAsync(staging_, mine, bytes, stream_))) {
    return false;
  }
  const CUdeviceptr gathered = staging_ + bytes;
  int status = nccl_.all_gather(reinterpret_cast<const void*>(staging_),
                                reinterpret_cast<void*>(gathered), bytes,
                                kNcclInt8, communicator_, stream_);
  const auto start = std::chrono::steady_clock::now();
  std::chrono::nanoseconds notice(kNoticeNs);
  const auto is_late = [&] {
    std::this_thread::sleep_for(kInterval);
    const auto waited = std::chrono::steady_clock::now() - start;
    if (waited >= notice) {
      notice *= 2;
      WriteLog(kWarning,
               "rank " + std::to_string(rank_) + " of " +
                   std::to_string(size_) + " has waited " +
                   std::to_string(waited / std::chrono::seconds(1)) +
                   " s for the others to set up their workspaces, and goes on "
                   "waiting, up to ONESHOT_TIMEOUT_S");
    }
    if (waited <= std::chrono::nanoseconds(TimeoutNs())) return false;
    Abandon();
    *error = std::string(kExchange) +
             ": a rank has not come within ONESHOT_TIMEOUT_S";
    return true;
  };
  // A non-blocking communicator, which XLA may have made, answers later.
  while (status == kNcclInProgress) {
    if (is_late()) return false;
    const int query = nccl_.async_error(communicator_, &status);
    if (query != kNcclSuccess) status = query;
  }
  if (status != kNcclSuccess) {
    Abandon();
    *error = std::string("NCCL: ") + nccl_.error_string(status);
    return false;
  }
  // The stream is asked, not waited for, and before the copy to the host: that
  // is to memory that is not pinned, so the call waits for everything before
  // it, without a limit.
  CUresult arrived = Cuda().StreamQuery(stream_);
  while (arrived == CUDA_ERROR_NOT_READY) {
    if (is_late()) return false;
    arrived = Cuda().StreamQuery(stream_);
  }
  return check(arrived) &&
         check(Cuda().MemcpyDtoHAsync(all, gathered, size_ * bytes, stream_)) &&
         check(Cuda().StreamSynchronize(stream_));
}

}  // namespace oneshot
