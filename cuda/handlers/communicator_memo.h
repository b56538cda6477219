// SPDX-License-Identifier: Apache-2.0
//
// XLA wants to be asked for a communicator by whoever will use it, in prepare,
// and hands it out in initialize. Once per execution and device is enough, but
// a decode step has two calls per layer, and each would pay 1.5 us of the
// host's time for the same answer: so the calls of an execution share it.
#ifndef ONESHOT_CUDA_HANDLERS_COMMUNICATOR_MEMO_H_
#define ONESHOT_CUDA_HANDLERS_COMMUNICATOR_MEMO_H_

#include <cstdint>
#include <vector>

namespace oneshot {

// One run of one executable on one device.
struct Execution {
  int64_t run_id = -1;  // XLA's
  int32_t device = -1;

  bool operator==(const Execution& other) const {
    return run_id == other.run_id && device == other.device;
  }
};

// What the calls of the current execution have asked XLA for. One per thread:
// XLA takes all calls of an execution on a device through prepare, then all of
// them through initialize, and does that in one thread.
class CommunicatorMemo {
 public:
  // In prepare: whether a call of this execution has asked for the group's
  // communicator. To ask once more than needed costs a microsecond; once less,
  // and the ranks would start without having met.
  bool Requested(const Execution& execution, int group) {
    // An id may come back: two modules can be one "logical execution". No call
    // is prepared after the first is initialized, so then it is another run.
    if (!(execution == execution_) || initializing_) {
      execution_ = execution;
      initializing_ = false;
      entries_.clear();
    }
    return FindEntry(group) != nullptr;
  }

  // After a call has asked for it.
  void NoteRequest(int group) { entries_.push_back({group, nullptr}); }

  // In initialize: what a call of this execution was handed out, or null.
  void* Find(const Execution& execution, int group) {
    if (!(execution == execution_)) return nullptr;
    initializing_ = true;
    const Entry* entry = FindEntry(group);
    return entry == nullptr ? nullptr : entry->communicator;
  }

  // After a call has got it.
  void NoteCommunicator(const Execution& execution, int group,
                        void* communicator) {
    if (!(execution == execution_)) return;
    if (Entry* entry = FindEntry(group)) entry->communicator = communicator;
  }

 private:
  struct Entry {
    int group;  // as numbered by whoever keeps the memo
    void* communicator;
  };

  Entry* FindEntry(int group) {
    for (Entry& entry : entries_) {
      if (entry.group == group) return &entry;
    }
    return nullptr;
  }

  Execution execution_;
  bool initializing_ = false;
  std::vector<Entry> entries_;  // one per mesh axis that the module sums over
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_HANDLERS_COMMUNICATOR_MEMO_H_
