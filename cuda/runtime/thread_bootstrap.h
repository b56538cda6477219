// SPDX-License-Identifier: Apache-2.0
//
// Exchange between ranks that are threads of one process, for tests.
#ifndef ONESHOT_CUDA_RUNTIME_THREAD_BOOTSTRAP_H_
#define ONESHOT_CUDA_RUNTIME_THREAD_BOOTSTRAP_H_

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "cuda/runtime/bootstrap.h"

namespace oneshot {

class ThreadBootstrap : public Bootstrap {
 public:
  struct Room {
    explicit Room(int size) : size(size) {}
    const int size;
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<uint8_t> data;
    int arrived = 0;
    int left = 0;
  };

  ThreadBootstrap(Room& room, int rank) : room_(room), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return room_.size; }
  bool AllGather(const void* mine, size_t bytes, void* all,
                 std::string*) override {
    std::unique_lock<std::mutex> lock(room_.mutex);
    room_.changed.wait(lock, [&] { return room_.left == 0; });
    room_.data.resize(room_.size * bytes);
    std::memcpy(room_.data.data() + rank_ * bytes, mine, bytes);
    ++room_.arrived;
    room_.changed.notify_all();
    room_.changed.wait(lock, [&] { return room_.arrived == room_.size; });
    std::memcpy(all, room_.data.data(), room_.data.size());
    if (++room_.left == room_.size) room_.arrived = room_.left = 0;
    room_.changed.notify_all();
    return true;
  }

 private:
  Room& room_;
  const int rank_;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_THREAD_BOOTSTRAP_H_
