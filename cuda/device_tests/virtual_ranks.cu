// SPDX-License-Identifier: Apache-2.0
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>

#include "cuda/device_tests/virtual_ranks.h"
#include "cuda/program/call_contract.h"
#include "cuda/runtime/cuda_check.h"
#include "cuda/runtime/fault.h"

namespace oneshot {
namespace {

constexpr int kHangStatus = 3;
// Longer than any test waits for its streams: the report of a hang, which comes
// first then, says more than a fault.
constexpr uint64_t kTimeoutNs = uint64_t{120} * 1000 * 1000 * 1000;

__global__ void CountWritten(const uint32_t* words, size_t count,
                             unsigned long long* written) {
  unsigned long long mine = 0;
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count;
       i += size_t{gridDim.x} * blockDim.x) {
    mine += words[i] != kSentinel;
  }
  if (mine != 0) atomicAdd(written, mine);
}

// Reads the control words into `rank.observed`, while a kernel may still spin
// on the device. False if the device does not answer.
bool PeekControl(const VirtualRank& rank) {
  rank.MakeCurrent();
  ONESHOT_CHECK_CUDA(cudaMemcpyAsync(rank.observed, rank.view.control,
                                     sizeof(Control), cudaMemcpyDeviceToHost,
                                     rank.observer));
  std::this_thread::sleep_for(std::chrono::seconds(1));
  return cudaStreamQuery(rank.observer) == cudaSuccess;
}

[[noreturn]] void Stop(const char* error, const char* what, const char* file,
                       int line) {
  std::fprintf(stderr, "%s:%d: %s: %s\n", file, line, what, error);
  std::fflush(nullptr);
  _exit(1);
}

}  // namespace

void CheckCuda(cudaError_t status, const char* what, const char* file,
               int line) {
  if (status != cudaSuccess) Stop(cudaGetErrorString(status), what, file, line);
}

void CheckCuda(CUresult status, const char* what, const char* file, int line) {
  if (status != CUDA_SUCCESS) {
    Stop(CudaErrorText(status).c_str(), what, file, line);
  }
}

std::vector<int> ParseList(const char* text) {
  std::vector<int> values;
  char* end = nullptr;
  for (long value = std::strtol(text, &end, 10); end != text;
       value = std::strtol(text, &end, 10)) {
    values.push_back(static_cast<int>(value));
    text = *end == ',' ? end + 1 : end;
  }
  return values;
}

bool EnablePeerAccess(const std::vector<int>& devices) {
  for (int a : devices) {
    ONESHOT_CHECK_CUDA(cudaSetDevice(a));
    for (int b : devices) {
      if (a == b) continue;
      int possible = 0;
      ONESHOT_CHECK_CUDA(cudaDeviceCanAccessPeer(&possible, a, b));
      if (!possible) return false;
      const cudaError_t status = cudaDeviceEnablePeerAccess(b, 0);
      if (status == cudaErrorPeerAccessAlreadyEnabled) {
        cudaGetLastError();
      } else {
        ONESHOT_CHECK_CUDA(status);
      }
    }
  }
  return true;
}

VirtualRanks::VirtualRanks(int ranks, const std::vector<int>& devices,
                           uint32_t first_epoch)
    : ranks_(ranks) {
  const int num_devices = static_cast<int>(devices.size());
  const int share = (ranks + num_devices - 1) / num_devices;
  std::vector<void*> inboxes(ranks);
  for (int r = 0; r < ranks; ++r) {
    VirtualRank& rank = ranks_[r];
    rank.device = devices[r % num_devices];
    rank.MakeCurrent();
    std::string error;
    if (!QueryDevice(rank.device, &rank.traits, &error)) {
      std::fprintf(stderr, "%s\n", error.c_str());
      _exit(1);
    }
    rank.traits.limits.multiprocessors /= share;
    ONESHOT_CHECK_CUDA(
        cudaStreamCreateWithFlags(&rank.stream, cudaStreamNonBlocking));
    ONESHOT_CHECK_CUDA(
        cudaStreamCreateWithFlags(&rank.observer, cudaStreamNonBlocking));
    ONESHOT_CHECK_CUDA(cudaHostAlloc(&rank.observed, sizeof(Control), 0));
    ONESHOT_CHECK_CUDA(
        cudaHostAlloc(&rank.view.fault, sizeof(Fault), cudaHostAllocMapped));
    *rank.view.fault = {};
    rank.view.notice_ns = kNoticeNs;
    rank.view.timeout_ns = kTimeoutNs;
    ONESHOT_CHECK_CUDA(cudaMalloc(&rank.counter, sizeof(*rank.counter)));
    ONESHOT_CHECK_CUDA(
        cudaMalloc(&inboxes[r], InboxBytes(ranks) + sizeof(Control)));
    ONESHOT_CHECK_CUDA(cudaMemset(inboxes[r], 0xFF, InboxBytes(ranks)));
    Control control = {};
    control.epoch = first_epoch;
    rank.view.control = reinterpret_cast<Control*>(
        static_cast<char*>(inboxes[r]) + InboxBytes(ranks));
    ONESHOT_CHECK_CUDA(cudaMemcpy(rank.view.control, &control, sizeof(control),
                                  cudaMemcpyHostToDevice));
    ONESHOT_CHECK_CUDA(cudaDeviceSynchronize());
  }
  for (int r = 0; r < ranks; ++r) {
    ranks_[r].view.rank = r;
    ranks_[r].view.ranks = ranks;
    std::copy(inboxes.begin(), inboxes.end(), ranks_[r].view.inboxes);
  }
}

VirtualRanks::~VirtualRanks() {
  Wait("teardown");
  for (const VirtualRank& rank : ranks_) {
    rank.MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaFree(rank.view.inboxes[rank.view.rank]));
    ONESHOT_CHECK_CUDA(cudaFree(rank.counter));
    ONESHOT_CHECK_CUDA(cudaFreeHost(rank.observed));
    ONESHOT_CHECK_CUDA(cudaFreeHost(rank.view.fault));
    ONESHOT_CHECK_CUDA(cudaStreamDestroy(rank.observer));
    ONESHOT_CHECK_CUDA(cudaStreamDestroy(rank.stream));
  }
}

void VirtualRanks::Wait(const char* what, double seconds) const {
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    bool done = true;
    for (const VirtualRank& rank : ranks_) {
      rank.MakeCurrent();
      const cudaError_t status = cudaStreamQuery(rank.stream);
      if (status == cudaErrorNotReady) {
        done = false;
      } else {
        ONESHOT_CHECK_CUDA(status);
      }
    }
    if (done) return;
    const std::chrono::duration<double> elapsed =
        std::chrono::steady_clock::now() - start;
    if (elapsed.count() > seconds) break;
  }
  std::printf("HANG %s\n", what);
  std::fflush(stdout);  // the calls below may hang as well
  for (const VirtualRank& rank : ranks_) {
    rank.MakeCurrent();
    const bool running = cudaStreamQuery(rank.stream) == cudaErrorNotReady;
    if (PeekControl(rank)) {
      std::printf("  rank %d device %d: %s, epoch %u, blocks arrived %u\n",
                  rank.view.rank, rank.device, running ? "running" : "done",
                  rank.observed->epoch, rank.observed->arrived);
    } else {
      std::printf("  rank %d device %d: %s, no answer\n", rank.view.rank,
                  rank.device, running ? "running" : "done");
    }
  }
  std::fflush(nullptr);
  _exit(kHangStatus);
}

bool VirtualRanks::IsQuiet(uint32_t epoch) const {
  bool quiet = true;
  for (const VirtualRank& rank : ranks_) {
    rank.MakeCurrent();
    ONESHOT_CHECK_CUDA(
        cudaMemsetAsync(rank.counter, 0, sizeof(*rank.counter), rank.stream));
    CountWritten<<<64, 512, 0, rank.stream>>>(
        static_cast<const uint32_t*>(rank.view.inboxes[rank.view.rank]),
        InboxBytes(size()) / sizeof(uint32_t), rank.counter);
    ONESHOT_CHECK_CUDA(cudaGetLastError());
    unsigned long long written = 0;
    Control control;
    ONESHOT_CHECK_CUDA(cudaMemcpyAsync(&written, rank.counter, sizeof(written),
                                       cudaMemcpyDeviceToHost, rank.stream));
    ONESHOT_CHECK_CUDA(cudaMemcpyAsync(&control, rank.view.control,
                                       sizeof(control), cudaMemcpyDeviceToHost,
                                       rank.stream));
    ONESHOT_CHECK_CUDA(cudaStreamSynchronize(rank.stream));
    if (written != 0 || control.arrived != 0 || control.epoch != epoch) {
      std::printf(
          "  rank %d: %llu words not cleared, arrived %u (want 0), epoch %u "
          "(want %u)\n",
          rank.view.rank, written, control.arrived, control.epoch, epoch);
      quiet = false;
    }
  }
  return quiet;
}

}  // namespace oneshot
