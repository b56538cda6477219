// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/fault.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <map>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace oneshot {
namespace {

constexpr auto kInterval = std::chrono::milliseconds(20);
constexpr double kNanoseconds = 1e9;  // in a second

// Leaked: the watching thread and late runs outlive static objects.
struct State {
  std::mutex mutex;
  std::map<std::string, uint64_t> numbers;
  std::vector<std::string> sites;
  struct Watched {
    const Fault* fault;
    uint64_t stamp = 0;  // of the last notice
  };
  std::vector<Watched> watched;
  std::string message;
  bool watching = false;
  std::atomic<uint64_t> timeout_ns{uint64_t{600} * 1000 * 1000 * 1000};
};

State& GlobalState() {
  static State* const state = new State;
  return *state;
}

std::atomic<OneshotLog> write_log =
    +[](int, const char* text) { std::fprintf(stderr, "oneshot: %s\n", text); };

// The kernel sets `raised` after everything else.
bool IsRaised(const Fault& fault) {
  return __atomic_load_n(&fault.raised, __ATOMIC_ACQUIRE) != 0;
}

std::string SiteOf(uint64_t number, const State& state) {
  return number < state.sites.size() ? state.sites[number] : "?";
}

std::string Describe(const Fault& fault, const State& state) {
  char text[160];
  std::snprintf(text, sizeof(text),
                "rank %u waited %.1f s for rank %u in all-reduce number %u at ",
                fault.rank, static_cast<double>(fault.waited_ns) / kNanoseconds,
                fault.peer, fault.epoch);
  return text + SiteOf(fault.site, state) +
         "; that rank has stopped, or is further behind than ONESHOT_TIMEOUT_S "
         "allows. This process can't use its GPUs any more and has to be "
         "restarted";
}

// Logs a notice that is new and says that twice as much time has passed as at
// the one before.
void PollNotice(State::Watched& watched, const State& state) {
  const Notice& notice = watched.fault->notice;
  const uint64_t stamp = __atomic_load_n(&notice.stamp, __ATOMIC_ACQUIRE);
  const uint64_t passed = stamp & 0xFFFFFFFF;
  const bool is_same_wait = stamp >> 32 == watched.stamp >> 32;
  const uint64_t before = is_same_wait ? watched.stamp & 0xFFFFFFFF : 0;
  if (stamp == 0 || passed < 2 * before || passed == before) return;
  char text[160];
  std::snprintf(text, sizeof(text),
                "rank %u has waited %.0f s for rank %u in all-reduce number %u "
                "at ",
                notice.rank,
                static_cast<double>(passed) * kNoticeNs / kNanoseconds,
                notice.peer, static_cast<unsigned>(stamp >> 32));
  watched.stamp = stamp;
  WriteLog(kWarning, text + SiteOf(notice.site, state) +
                         ", and goes on waiting, up to ONESHOT_TIMEOUT_S");
}

// Reads everything that is watched once; logs notices, and the first fault that
// is raised. True if one is, or was before.
bool PollFaults(State& state) {
  const std::lock_guard<std::mutex> lock(state.mutex);
  if (!state.message.empty()) return true;
  for (State::Watched& watched : state.watched) {
    PollNotice(watched, state);
    if (!IsRaised(*watched.fault)) continue;
    state.message = Describe(*watched.fault, state);
    WriteLog(kError, state.message);
    return true;
  }
  return false;
}

}  // namespace

void SetLog(OneshotLog log) { write_log = log; }

void WriteLog(LogLevel level, const std::string& text) {
  write_log.load()(level, text.c_str());
}

uint64_t SiteNumber(const std::string& site) {
  State& state = GlobalState();
  const std::lock_guard<std::mutex> lock(state.mutex);
  const auto [place, is_new] =
      state.numbers.try_emplace(site, state.sites.size());
  if (is_new) state.sites.push_back(site);
  return place->second;
}

void WatchFault(const Fault* fault) {
  State& state = GlobalState();
  const std::lock_guard<std::mutex> lock(state.mutex);
  state.watched.push_back({fault});
  if (state.watching) return;
  try {
    std::thread([&state] {
      while (!PollFaults(state)) std::this_thread::sleep_for(kInterval);
    }).detach();
    state.watching = true;
  } catch (const std::system_error&) {
    // The next workspace tries again; until then the next run finds the fault.
  }
}

std::string FaultMessage() {
  State& state = GlobalState();
  PollFaults(state);
  const std::lock_guard<std::mutex> lock(state.mutex);
  return state.message;
}

void SetTimeout(double seconds) {
  constexpr double kMost = 9e9;  // as nanoseconds, what 64 bits still hold
  GlobalState().timeout_ns =
      static_cast<uint64_t>(std::min(seconds, kMost) * kNanoseconds);
}

uint64_t TimeoutNs() { return GlobalState().timeout_ns; }

}  // namespace oneshot
