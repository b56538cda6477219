// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/hook/log.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <utility>

namespace oneshot {

void LogQueue::Write(LogLevel level, std::string text) {
  std::unique_lock<std::mutex> lock(mutex_);
  Line line{level, std::move(text)};
  if (reader_ && !closed_) {
    waiting_.push_back(&line);
    arrived_.notify_one();
    const auto is_waiting = [&] {
      return std::find(waiting_.begin(), waiting_.end(), &line);
    };
    written_.wait_for(lock, patience_, [&] {
      return line.written || (closed_ && is_waiting() != waiting_.end());
    });
    if (line.written) return;
    if (taken_ == &line) {  // the reader has a copy
      taken_ = nullptr;
      return;
    }
    waiting_.erase(is_waiting());
    // In a forked child there is no reader any more. Wait() says if there is.
    reader_ = false;
  }
  Print(line.text);
}

bool LogQueue::Wait() {
  std::unique_lock<std::mutex> lock(mutex_);
  if (taken_ != nullptr) {
    taken_->written = true;
    taken_ = nullptr;
    written_.notify_all();
  }
  reader_ = true;
  // Without a limit, wait() is a function of libstdc++ 12, which not all
  // systems of the wheel's platform tag have.
  while (!arrived_.wait_for(lock, std::chrono::hours(1),
                            [this] { return closed_ || !waiting_.empty(); })) {
  }
  return !closed_;
}

bool LogQueue::Take(LogLevel* level, std::string* text) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (closed_ || waiting_.empty()) return false;
  taken_ = waiting_.front();
  waiting_.pop_front();
  *level = taken_->level;
  *text = taken_->text;
  return true;
}

void LogQueue::Close() {
  const std::lock_guard<std::mutex> lock(mutex_);
  closed_ = true;
  arrived_.notify_all();
  written_.notify_all();
}

void LogQueue::SetRank(int rank, int ranks) {
  const std::lock_guard<std::mutex> lock(mutex_);
  rank_ = rank;
  ranks_ = ranks;
}

// One write, so that lines of concurrent compilations don't mix. The form is
// that of log.py.
void LogQueue::Print(const std::string& text) const {
  if (ranks_ > 1) {
    std::fprintf(stderr, "oneshot[rank %d of %d, pid %d]: %s\n", rank_, ranks_,
                 getpid(), text.c_str());
  } else {
    std::fprintf(stderr, "oneshot[pid %d]: %s\n", getpid(), text.c_str());
  }
}

}  // namespace oneshot
