// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/module/fatal_guard.h"

#include <signal.h>
#include <unistd.h>

#include <exception>
#include <future>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/base/log_severity.h"
#include "absl/log/log_entry.h"
#include "absl/log/log_sink.h"
#include "absl/log/log_sink_registry.h"
#include "absl/strings/str_cat.h"

namespace oneshot {
namespace {

struct Outcome {
  absl::Status status;
  bool fatal;
};

thread_local std::promise<Outcome>* outcome_of_this_thread = nullptr;

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
    outcome_of_this_thread->set_value(
        {absl::InternalError(absl::StrCat("XLA: ", entry.text_message())),
         /*fatal=*/true});
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
  // Shared, as a thread that stays may still be in set_value when this function
  // has returned.
  const auto promise = std::make_shared<std::promise<Outcome>>();
  std::thread thread;
  const auto run = [promise, work] {
    outcome_of_this_thread = promise.get();
    absl::Status status;
    try {
      status = work();
    } catch (const std::exception& error) {
      status = absl::InternalError(error.what());
    }
    promise->set_value({std::move(status), /*fatal=*/false});
  };
  try {
    thread = std::thread(run);
  } catch (const std::system_error& error) {
    return absl::ResourceExhaustedError(
        absl::StrCat("there is no thread for the pass: ", error.what()));
  }
  Outcome outcome = promise->get_future().get();
  if (outcome.fatal) {
    thread.detach();
  } else {
    thread.join();
  }
  return std::move(outcome.status);
}

}  // namespace oneshot
