// SPDX-License-Identifier: Apache-2.0
//
// C interface of liboneshot_hook.so, which Python calls through ctypes. The
// library is small and links no XLA; it loads the pass when the first module
// with an all-reduce arrives.
//
// Nothing here throws, aborts or fails a compilation: when anything goes wrong,
// a line in the log says so and the module stays as stock XLA has it.

#ifndef ONESHOT_XLA_PLUGIN_HOOK_HOOK_H_
#define ONESHOT_XLA_PLUGIN_HOOK_HOOK_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Sets where things are; strings are copied. Once per process, before the calls
// below; returns non-zero, and changes nothing, when called again.
//   pass_library  path of liboneshot_pass.so
//   xla_dir       directory with liboneshot_xla_{framework,cc}.so
//   dump_dir      where dumps and reports go; "" for none
//   skip          regular expression; all-reduces whose op_name holds a match
//                 are left; "" for none
//   log_level     lowest level that is printed: 0 debug, 1 info, 2 warning,
//                 3 error
int oneshot_hook_configure(const char* pass_library, const char* xla_dir,
                           const char* dump_dir, const char* skip,
                           int log_level);

// Registers the pass with the PJRT plugin behind `pjrt_api` (const PJRT_Api*).
// `compile` (OneshotCompile of pass_library.h) is asked for the kernel of every
// rewrite; null: of none. Returns null, or why it could not; that string is
// valid until the next call.
const char* oneshot_hook_register(const void* pjrt_api, void* compile);

// Runs the pass on a serialized HloModuleProto for `platform` ("Host" or
// "CUDA"). Returns 1 and a buffer for oneshot_hook_free() in *out if the module
// has changed, else 0. Re-entrant.
int oneshot_hook_transform(const char* platform, const char* module,
                           size_t size, char** out, size_t* out_size);
void oneshot_hook_free(char* buffer);

// From now on leaves the modules that this thread compiles as they are, or,
// with 0, no longer does.
void oneshot_hook_pause(int pause);

// How many modules with all-reduces the pass has seen, and what became of their
// all-reduces: fused with an epilogue, replaced alone, left.
void oneshot_hook_counts(int64_t counts[4]);

// For the modules that this thread compiles from now on: the machine of each
// rank by its flattened id, see OneshotRunPass; copied. With 0 ranks, all are
// on one machine.
void oneshot_hook_set_machines(const int* machines, size_t count);

// Writes a line into the log: a OneshotLog, see fault.h. From any thread, with
// the GIL or without; `level` is one of log_level above.
void oneshot_log(int level, const char* text);

// For the thread of Python that writes the lines, see log.h. Waits for a line,
// without the GIL; 0 once the log is closed. Then takes it, with the GIL; null
// if there is none any more, else malloc'ed, with its level.
int oneshot_log_wait(void);
char* oneshot_log_take(int* level);

// Lines go to stderr from now on: Python ends.
void oneshot_log_close(void);

// For lines on stderr: the number of this process, and how many there are.
void oneshot_log_set_rank(int rank, int ranks);

#ifdef __cplusplus
}
#endif

#endif  // ONESHOT_XLA_PLUGIN_HOOK_HOOK_H_
