// SPDX-License-Identifier: Apache-2.0
//
// Exchange over the communicator that XLA made for the group.
#ifndef ONESHOT_CUDA_HANDLERS_NCCL_BOOTSTRAP_H_
#define ONESHOT_CUDA_HANDLERS_NCCL_BOOTSTRAP_H_

#include <cuda.h>

#include <cstddef>
#include <memory>
#include <string>

#include "cuda/runtime/bootstrap.h"

namespace oneshot {

// The entry points we need, of the NCCL that XLA itself has loaded. A second
// copy of the library would not understand XLA's communicator.
struct NcclApi;

class NcclBootstrap : public Bootstrap {
 public:
  // For the device whose context is current, which has to be current in all
  // other calls, too. `communicator` is XLA's ncclComm_t, not owned. Null with
  // a reason in `error`.
  static std::unique_ptr<NcclBootstrap> Create(void* communicator,
                                               std::string* error);
  ~NcclBootstrap() override;

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  // Waits for the peers as long as a kernel would (TimeoutNs). The limit does
  // not hold inside of NCCL's own calls, which may wait for peers when they
  // first use a communicator that is blocking.
  bool AllGather(const void* mine, size_t bytes, void* all,
                 std::string* error) override;

 private:
  NcclBootstrap(const NcclApi& nccl, void* communicator)
      : nccl_(nccl), communicator_(communicator) {}

  // Leaves stream and memory to an exchange that may never end.
  void Abandon();

  const NcclApi& nccl_;
  void* communicator_;
  int rank_ = 0;
  int size_ = 0;
  CUstream stream_ = nullptr;
  CUdeviceptr staging_ = 0;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_HANDLERS_NCCL_BOOTSTRAP_H_
