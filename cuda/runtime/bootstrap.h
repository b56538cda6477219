// SPDX-License-Identifier: Apache-2.0
//
// How the ranks of a group exchange a few bytes before they share memory.
#ifndef ONESHOT_CUDA_RUNTIME_BOOTSTRAP_H_
#define ONESHOT_CUDA_RUNTIME_BOOTSTRAP_H_

#include <cstddef>
#include <string>

namespace oneshot {

class Bootstrap {
 public:
  virtual ~Bootstrap() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Collective. Places `bytes` bytes of every rank, in order, at `all`. Returns
  // false and says why when this rank failed; the others may then not return.
  virtual bool AllGather(const void* mine, size_t bytes, void* all,
                         std::string* error) = 0;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_BOOTSTRAP_H_
