// SPDX-License-Identifier: Apache-2.0
//
// The C entry of liboneshot_pass.so, the library that links XLA. Only hook.cc
// calls it, through dlsym, so that no other library needs XLA.

#ifndef ONESHOT_XLA_PLUGIN_PASS_LIBRARY_H_
#define ONESHOT_XLA_PLUGIN_PASS_LIBRARY_H_

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Runs the pass on a serialized HloModuleProto.
//
// `platform` is "CUDA" or "Host"; `dump_dir` is "" for no dump. Returns 1 and a
// malloc'ed module in *out when the module has changed, 0 when it has not, -1
// when something went wrong, which also leaves the module as it is. *message
// receives a malloc'ed line for the log. Re-entrant.
int OneshotRunPass(const char* platform, const char* dump_dir,
                   const char* module, size_t size, char** out,
                   size_t* out_size, char** message);

#ifdef __cplusplus
}
#endif

#endif  // ONESHOT_XLA_PLUGIN_PASS_LIBRARY_H_
