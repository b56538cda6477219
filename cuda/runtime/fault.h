// SPDX-License-Identifier: Apache-2.0
//
// What happens when a kernel waits long for a peer. It leaves a Notice in
// memory of the host, and another one whenever as much time has passed again.
// When it has waited too long, it leaves a Fault and traps, which ends every
// computation of the process on that device: XLA then fails the run, with an
// error of CUDA's that says nothing about why. A thread of this process polls
// both and logs which rank is waited for; after a Fault the handler refuses
// further runs with the same words.
#ifndef ONESHOT_CUDA_RUNTIME_FAULT_H_
#define ONESHOT_CUDA_RUNTIME_FAULT_H_

#include <cstdint>
#include <string>

#include "cuda/kernel/device/arguments.h"

namespace oneshot {

// Levels of the log, numbered as in hook.h.
enum LogLevel { kWarning = 2, kError = 3 };

// Takes a line for the log, from any thread. Until one is set, lines go to
// stderr.
using OneshotLog = void (*)(int level, const char* text);
void SetLog(OneshotLog log);
void WriteLog(LogLevel level, const std::string& text);

// A number that stands for a site in Fault::site.
uint64_t SiteNumber(const std::string& site);

// Watches a fault for the life of the process: `fault` must live as long.
void WatchFault(const Fault* fault);

// The first fault, in words; empty if there was none.
std::string FaultMessage();

// How long a kernel waits for a peer before it says so for the first time; then
// after twice that time, four times and so on.
inline constexpr uint64_t kNoticeNs = uint64_t{10} * 1000 * 1000 * 1000;

// How long a kernel waits for a peer, for workspaces that are made from now on.
void SetTimeout(double seconds);
uint64_t TimeoutNs();

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_FAULT_H_
