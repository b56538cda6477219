// SPDX-License-Identifier: Apache-2.0
//
// The C entry of liboneshot_pass.so, the library that links XLA. Only hook.cc
// calls it, through dlsym, so that no other library needs XLA.

#ifndef ONESHOT_XLA_PLUGIN_PASS_PASS_LIBRARY_H_
#define ONESHOT_XLA_PLUGIN_PASS_PASS_LIBRARY_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Compiles a kernel: null, or a malloc'ed reason why that is not possible. Of
// liboneshot_cuda.so, see gpu_handler.cc.
typedef char* (*OneshotCompile)(const char* program, int64_t rows,
                                int64_t hidden, int ranks);

// What became of the all-reduces of a module.
typedef struct {
  int64_t fused;  // with an epilogue
  int64_t alone;  // replaced, and nothing is fused
  int64_t left;   // to stock XLA
} OneshotOutcomes;

// Runs the pass on a serialized HloModuleProto.
//
// `platform` is "CUDA" or "Host"; `dump_dir` is "" for no dump; all-reduces
// whose op_name holds a match of the regular expression `skip` (ECMAScript)
// are left, "" skips none; `compile` is
// called for every rewrite, unless it is null. `machines` names the machine of
// each rank by its flattened id (replica * partitions + partition); null: all
// are on one. Returns 1 and a
// malloc'ed module in *out when the module has changed, 0 when it has not, -1
// when something went wrong, which also leaves the module as it is. *message
// receives a malloc'ed line for the log, *dump_error one about a dump that was
// not written, or null. Re-entrant.
int OneshotRunPass(const char* platform, const char* dump_dir, const char* skip,
                   OneshotCompile compile, const int* machines,
                   size_t machine_count, const char* module, size_t size,
                   char** out, size_t* out_size, OneshotOutcomes* outcomes,
                   char** message, char** dump_error);

// Runs the pass on a module for the sake of its dump: HLO text, a serialized
// HloModuleProto, or one of the HloProtos that XLA dumps. The other arguments
// are those of OneshotRunPass. Returns 0, or -1 with a malloc'ed reason in
// *message. Re-entrant.
int OneshotExplain(const char* platform, const char* dump_dir, const char* skip,
                   OneshotCompile compile, const char* module, size_t size,
                   char** message);

#ifdef __cplusplus
}
#endif

#endif  // ONESHOT_XLA_PLUGIN_PASS_PASS_LIBRARY_H_
