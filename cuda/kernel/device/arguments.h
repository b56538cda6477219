// SPDX-License-Identifier: Apache-2.0
//
// What a kernel is launched with. The run-time compiler reads this file too, so
// it includes nothing.
#ifndef ONESHOT_CUDA_KERNEL_DEVICE_ARGUMENTS_H_
#define ONESHOT_CUDA_KERNEL_DEVICE_ARGUMENTS_H_

namespace oneshot {

// Words that only the kernels of the own device touch. On lines of their own:
// the first is read by all blocks, the second is updated by all.
struct Control {
  alignas(128) unsigned epoch;    // launches so far, modulo 2^32
  alignas(128) unsigned arrived;  // clusters of this launch that read the epoch
  alignas(128) unsigned faulted;  // a thread gave up waiting and reports it
  unsigned long long notice;      // the stamp of the latest Notice
};

// That a wait takes long and goes on. `stamp` is set last: the epoch in its
// upper half, in its lower one how often `notice_ns` has passed.
struct Notice {
  unsigned long long stamp;
  unsigned peer;  // the rank that is waited for
  unsigned rank;
  unsigned long long site;
};

// What a kernel that waits leaves in memory of the host: the notice is to be
// read while it waits, the rest when the device no longer answers.
struct Fault {
  unsigned raised;  // set last
  unsigned epoch;
  unsigned peer;  // the rank that was waited for
  unsigned rank;
  unsigned long long site;
  unsigned long long waited_ns;
  Notice notice;
};

struct KernelArguments {
  const void* x;
  const void* operands[8];
  const int* indices[4];
  void* results[4];
  void* inboxes[8];  // by rank, the own one included
  Control* control;
  Fault* fault;
  unsigned long long notice_ns;   // after which a wait is noticed
  unsigned long long timeout_ns;  // after which it ends
  unsigned long long site;
  int rank;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_KERNEL_DEVICE_ARGUMENTS_H_
