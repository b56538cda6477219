// SPDX-License-Identifier: Apache-2.0

#ifndef ONESHOT_CUDA_TESTING_NO_THREADS_H_
#define ONESHOT_CUDA_TESTING_NO_THREADS_H_

#include <gtest/gtest.h>
#include <pthread.h>

#include <cstddef>

namespace oneshot {

// As long as it lives, no thread can be started, as where a container limits
// their number: each would have a larger stack than there are addresses.
class NoThreads {
 public:
  NoThreads() {
    pthread_getattr_default_np(&usual_);
    pthread_attr_t huge;
    pthread_attr_init(&huge);
    pthread_attr_setstacksize(&huge, size_t{1} << 50);
    EXPECT_EQ(pthread_setattr_default_np(&huge), 0);
    pthread_attr_destroy(&huge);
  }
  ~NoThreads() {
    EXPECT_EQ(pthread_setattr_default_np(&usual_), 0);
    pthread_attr_destroy(&usual_);
  }
  NoThreads(const NoThreads&) = delete;
  NoThreads& operator=(const NoThreads&) = delete;

 private:
  pthread_attr_t usual_;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_TESTING_NO_THREADS_H_
