// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/fatal_guard.h"

#include <signal.h>
#include <unistd.h>

#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/log_severity.h"
#include "absl/log/log_entry.h"
#include "absl/log/log_sink.h"
#include "absl/log/log_sink_registry.h"
#include "absl/strings/str_cat.h"

namespace oneshot {
namespace {

// The way back to who waits.
class Outcome {
 public:
  void Set(absl::Status status, bool fatal) {
    const std::lock_guard<std::mutex> lock(mutex_);
    status_ = std::move(status);
    fatal_ = fatal;
    known_.notify_one();
  }
  void Wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    known_.wait(lock, [&] { return status_.has_value(); });
  }
  const absl::Status& status() const { return *status_; }
  bool fatal() const { return fatal_; }

 private:
  std::mutex mutex_;
  std::condition_variable known_;
  std::optional<absl::Status> status_;
  bool fatal_ = false;
};

thread_local Outcome* outcome_of_this_thread = nullptr;

// A fatal message goes to all sinks before the process is ended by the thread
// that sends it. Neither an exception nor a jump can leave this place, as the
// destructor of the message has called it; but a thread may stay.
class FatalSink : public absl::LogSink {
 public:
  void Send(const absl::LogEntry& entry) override {
    if (entry.log_severity() != absl::LogSeverity::kFatal ||
        outcome_of_this_thread == nullptr) {
      return;
    }
    // Signals are for threads that go on.
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, nullptr);
    outcome_of_this_thread->Set(
        absl::InternalError(absl::StrCat("XLA: ", entry.text_message())),
        /*fatal=*/true);
    while (true) pause();
  }
};

}  // namespace

absl::Status GuardAgainstFatal(absl::FunctionRef<absl::Status()> work) {
  // Never removed, as a thread that stays in it keeps the list of sinks locked
  // for reading.
  static const absl::LogSink* const sink = [] {
    auto* result = new FatalSink;
    absl::AddLogSink(result);
    return result;
  }();
  (void)sink;
  const auto outcome = std::make_shared<Outcome>();
  std::thread thread([outcome, work] {
    outcome_of_this_thread = outcome.get();
    absl::Status status;
    try {
      status = work();
    } catch (const std::exception& error) {
      status = absl::InternalError(error.what());
    }
    outcome->Set(std::move(status), /*fatal=*/false);
  });
  outcome->Wait();
  if (outcome->fatal()) {
    thread.detach();
  } else {
    thread.join();
  }
  return outcome->status();
}

}  // namespace oneshot
