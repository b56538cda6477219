// SPDX-License-Identifier: Apache-2.0
//
// Lines for the log, on their way from C++ to Python's `logging`.
//
// A thread of Python waits for lines and hands them to the logger, so that
// whatever the program does with its log is done with these lines, too. The
// thread that writes a line never takes the GIL: it waits until the line is
// written, but not for long, since whoever holds the GIL may be waiting for
// this very thread. Then, and when Python is gone, the line goes to stderr.

#ifndef ONESHOT_XLA_PLUGIN_HOOK_LOG_H_
#define ONESHOT_XLA_PLUGIN_HOOK_LOG_H_

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <string>

namespace oneshot {

// A tenth of the levels of Python's `logging`, less one.
enum LogLevel { kDebug = 0, kInfo = 1, kWarning = 2, kError = 3 };

class LogQueue {
 public:
  // `patience`: how long Write() waits for the reader.
  explicit LogQueue(std::chrono::milliseconds patience) : patience_(patience) {}

  // Hands one line to the reader, or else prints it. From any thread.
  void Write(LogLevel level, std::string text);

  // For the reader, without the GIL: that the last line it took is written, and
  // that it waits for the next one. False once the queue is closed.
  bool Wait();

  // For the reader, with the GIL, so that a line that is taken will be written:
  // false if there is none.
  bool Take(LogLevel* level, std::string* text);

  // From now on lines are printed.
  void Close();

  // The process's number among several, for lines that are printed.
  void SetRank(int rank, int ranks);

 private:
  struct Line {
    LogLevel level;
    std::string text;
    bool written = false;
  };

  void Print(const std::string& text) const;

  const std::chrono::milliseconds patience_;
  mutable std::mutex mutex_;
  std::condition_variable arrived_;
  std::condition_variable written_;
  std::deque<Line*> waiting_;  // of the threads inside of Write()
  Line* taken_ = nullptr;
  bool reader_ = false;  // someone seems to read
  bool closed_ = false;
  int rank_ = 0;
  int ranks_ = 1;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_HOOK_LOG_H_
