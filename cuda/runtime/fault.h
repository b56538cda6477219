// SPDX-License-Identifier: Apache-2.0
//
// What happens when a kernel has waited too long for a peer. The kernel leaves
// a Fault in memory of the host and traps, which ends every computation of the
// process on that device: XLA then fails the run, with an error of CUDA's that
// says nothing about why. A thread of this process polls the Faults and logs
// which rank was waited for; the handler refuses further runs with the same
// words.
#ifndef ONESHOT_CUDA_RUNTIME_FAULT_H_
#define ONESHOT_CUDA_RUNTIME_FAULT_H_

#include <cstdint>
#include <string>

#include "cuda/kernel/device/arguments.h"

namespace oneshot {

// Takes a line for the log, from any thread; 3 is the level of an error, see
// hook.h. Until one is set, lines go to stderr.
using OneshotLog = void (*)(int level, const char* text);
void SetLog(OneshotLog log);

// A number that stands for a site in Fault::site.
uint64_t SiteNumber(const std::string& site);

// Watches a fault for the life of the process: `fault` must live as long.
void WatchFault(const Fault* fault);

// The first fault, in words; empty if there was none.
std::string FaultMessage();

// How long a kernel waits for a peer, for workspaces that are made from now on.
void SetTimeout(double seconds);
uint64_t TimeoutNs();

}  // namespace oneshot

#endif  // ONESHOT_CUDA_RUNTIME_FAULT_H_
