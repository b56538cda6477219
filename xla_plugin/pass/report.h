// SPDX-License-Identifier: Apache-2.0
//
// What the pass did to a module: a line for the log, and JSON that Python shows
// to people.

#ifndef ONESHOT_XLA_PLUGIN_PASS_REPORT_H_
#define ONESHOT_XLA_PLUGIN_PASS_REPORT_H_

#include <cstdint>
#include <string>
#include <vector>

namespace oneshot {

// An instruction behind a matched epilogue, and why it is not part of it.
struct StopReport {
  std::string instruction;  // HLO name
  std::string opcode;
  std::string source;  // "file:line", or empty
  std::string reason;
};

// One all-reduce. `reason` is empty exactly when it was replaced.
struct SiteReport {
  std::string name;        // HLO name, e.g. "all-reduce.3"
  std::string site;        // op_name metadata, e.g. "jit(step)/mlp/dot_general"
  std::string source;      // "file:line", or empty
  std::string shape;       // HLO text of the shape
  int64_t bytes = 0;       // on the wire, for one rank; left: of its operands
  int64_t group_size = 0;  // ranks
  std::string epilogue;    // e.g. "residual+rms_norm"
  std::string custom_call;  // HLO name of the replacement
  std::string program;      // of the replacement; see epilogue_program.h
  std::string reason;       // why it stays with stock XLA
  std::vector<StopReport> stopped;

  bool fired() const { return reason.empty(); }
  // The sum goes through the kernel, and nothing is fused into it.
  bool alone() const { return fired() && epilogue == "none"; }
};

struct ModuleReport {
  std::string module;
  std::string platform;  // "CUDA" or "Host"
  // Why the module as a whole was left alone; then no site has fired.
  std::string declined_module;
  std::vector<SiteReport> all_reduces;

  int64_t fired() const;
  // What became of them in one line; report.py says the same in these words.
  std::string Summary() const;
  std::string ToJson() const;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_PASS_REPORT_H_
