// SPDX-License-Identifier: Apache-2.0
//
// Ranks for tests and benchmarks without XLA: each is a stream with an inbox,
// placed round-robin on the given devices. Several may share one device; their
// grids are then kept small enough to be resident together.
#ifndef ONESHOT_CUDA_DEVICE_TESTS_VIRTUAL_RANKS_H_
#define ONESHOT_CUDA_DEVICE_TESTS_VIRTUAL_RANKS_H_

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "cuda/runtime/device.h"
#include "cuda/runtime/workspace_view.h"

namespace oneshot {

// Ends the process on an error: after one, nothing on the device can be relied
// upon, and a peer may be spinning.
#define ONESHOT_CHECK_CUDA(expression) \
  ::oneshot::CheckCuda((expression), #expression, __FILE__, __LINE__)
void CheckCuda(cudaError_t status, const char* what, const char* file,
               int line);
void CheckCuda(CUresult status, const char* what, const char* file, int line);

struct VirtualRank {
  int device = 0;
  DeviceTraits traits;  // with its share of the multiprocessors
  cudaStream_t stream = nullptr;
  WorkspaceView view;
  // For looking at the rank from outside, also while it hangs.
  cudaStream_t observer = nullptr;
  Control* observed = nullptr;            // pinned
  unsigned long long* counter = nullptr;  // on the device

  void MakeCurrent() const { ONESHOT_CHECK_CUDA(cudaSetDevice(device)); }
};

class VirtualRanks {
 public:
  VirtualRanks(int ranks, const std::vector<int>& devices,
               uint32_t first_epoch);
  ~VirtualRanks();
  VirtualRanks(const VirtualRanks&) = delete;
  VirtualRanks& operator=(const VirtualRanks&) = delete;

  int size() const { return static_cast<int>(ranks_.size()); }
  const VirtualRank& operator[](int rank) const { return ranks_[rank]; }

  // Waits for all streams. After `seconds` without an end it reports what each
  // rank waits for and ends the process: a kernel that spins cannot be stopped.
  void Wait(const char* what, double seconds = 20) const;

  // Whether all ranks are ready for the next launch: inboxes clear, the count
  // of blocks zero and the epoch `epoch`. Prints what is wrong.
  bool IsQuiet(uint32_t epoch) const;

 private:
  std::vector<VirtualRank> ranks_;
};

// "0,1" as numbers.
std::vector<int> ParseList(const char* text);

// All devices can access each other; makes it so.
bool EnablePeerAccess(const std::vector<int>& devices);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_DEVICE_TESTS_VIRTUAL_RANKS_H_
