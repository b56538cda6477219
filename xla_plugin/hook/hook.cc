// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/hook/hook.h"

#include <dlfcn.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "xla_plugin/hook/log.h"
#include "xla_plugin/hook/pjrt_xla_transform.h"
#include "xla_plugin/module/module_scan.h"
#include "xla_plugin/pass/pass_library.h"

#define ONESHOT_EXPORT extern "C" __attribute__((visibility("default")))

namespace oneshot {
namespace {

struct Config {
  std::string pass_library;
  std::string xla_dir;
  std::string dump_dir;
  std::string skip;
  int log_level = kWarning;
};

// Written once by oneshot_hook_configure(), before anything reads it. Leaked:
// compilations may still run while static objects are destroyed.
Config* config = nullptr;

// Of the last plugin that was registered.
std::atomic<OneshotCompile> compile_kernel = nullptr;

// See oneshot_hook_counts().
std::atomic<int64_t> counts[4];

thread_local bool paused = false;
thread_local std::vector<int> machines;

// Leaked, too.
LogQueue& log_queue = *new LogQueue(std::chrono::milliseconds(1000));

__attribute__((format(printf, 2, 3))) void Log(LogLevel level,
                                               const char* format, ...) {
  if (config == nullptr || level < config->log_level) return;
  char line[2048];
  va_list args;
  va_start(args, format);
  std::vsnprintf(line, sizeof(line), format, args);
  va_end(args);
  log_queue.Write(level, line);
}

// RTLD_LOCAL keeps the protobuf and absl of this XLA apart from jaxlib's.
// TensorFlow is loaded with RTLD_GLOBAL: without RTLD_DEEPBIND, its symbols
// would come before this XLA's own. Sanitizers end a process that asks for it.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr int kLoading = RTLD_NOW | RTLD_LOCAL;
#else
constexpr int kLoading = RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND;
#endif

void* Open(const std::string& path) {
  void* library = dlopen(path.c_str(), kLoading);
  if (library == nullptr) {
    Log(kWarning, "off, all modules stay with stock XLA: %s", dlerror());
  }
  return library;
}

// XLA's library prints advice about its CPU kernels while it loads, unless this
// variable is 0. None of those kernels ever runs here, so nothing else changes.
//
// Other threads may read the environment while XLA compiles. Taking the
// variable out and in again at configuration time, when the process is still
// single-threaded, makes room for it: setenv then moves no memory later on.
class QuietLoading {
 public:
  QuietLoading() : ours_(std::getenv(kVariable) == nullptr) {
    if (ours_) setenv(kVariable, "0", /*overwrite=*/0);
  }
  ~QuietLoading() {
    if (ours_) unsetenv(kVariable);
  }
  QuietLoading(const QuietLoading&) = delete;
  QuietLoading& operator=(const QuietLoading&) = delete;

 private:
  static constexpr char kVariable[] = "TF_ENABLE_ONEDNN_OPTS";
  const bool ours_;
};

// Loads XLA and the pass on first use. XLA's two libraries are opened by path
// first; the pass then finds them by their sonames.
decltype(&OneshotRunPass) LoadPass() {
  static const auto run_pass = []() -> decltype(&OneshotRunPass) {
    const QuietLoading quiet;
    void* pass = nullptr;
    for (const std::string& path :
         {config->xla_dir + "/liboneshot_xla_framework.so",
          config->xla_dir + "/liboneshot_xla_cc.so", config->pass_library}) {
      pass = Open(path);
      if (pass == nullptr) return nullptr;
    }
    return reinterpret_cast<decltype(&OneshotRunPass)>(
        dlsym(pass, "OneshotRunPass"));
  }();
  return run_pass;
}

// Returns the changed module, to be freed by the caller, or null.
char* Transform(const char* platform, OneshotCompile compile,
                const char* module, size_t size, size_t* out_size) {
  if (config == nullptr || paused || module == nullptr ||
      !HasAllReduce(std::string_view(module, size))) {
    return nullptr;
  }
  const auto run_pass = LoadPass();
  if (run_pass == nullptr) return nullptr;
  char* out = nullptr;
  char* message = nullptr;
  char* dump_error = nullptr;
  OneshotOutcomes outcomes = {};
  const int result =
      run_pass(platform, config->dump_dir.c_str(), config->skip.c_str(),
               compile, machines.data(), machines.size(), module, size, &out,
               out_size, &outcomes, &message, &dump_error);
  counts[0] += 1;
  counts[1] += outcomes.fused;
  counts[2] += outcomes.alone;
  counts[3] += outcomes.left;
  if (result < 0) {
    Log(kWarning, "a module stays with stock XLA: %s",
        message != nullptr ? message : "out of memory");
  } else if (message != nullptr) {
    Log(kInfo, "%s", message);
  }
  if (dump_error != nullptr) Log(kWarning, "%s", dump_error);
  std::free(message);
  std::free(dump_error);
  return out;
}

// Called by XLA from any of its compilation threads, several at a time.
void TransformHloModule(XlaTransformCallbacks*, XlaTransformArgs* args) {
  args->changed = false;
  if (args->struct_size < kXlaTransformArgsSize) {
    Log(kWarning,
        "a module stays with stock XLA: the hook's arguments have %zu "
        "bytes, not %zu",
        args->struct_size, kXlaTransformArgsSize);
    return;
  }
  args->header.has_error = false;
  size_t size = 0;
  char* out = Transform("CUDA", compile_kernel.load(), args->hlo_module.data,
                        args->hlo_module.size, &size);
  if (out == nullptr) return;
  args->header.data = out;
  args->header.cleanup_fn = std::free;
  args->transformed_hlo_module = {out, size};
  args->changed = true;
}

const PJRT_Extension_Base* FindExtension(const PJRT_Api* api) {
  for (const PJRT_Extension_Base* extension = api->extension_start;
       extension != nullptr; extension = extension->next) {
    if (static_cast<int>(extension->type) == kXlaTransformExtensionType) {
      return extension;
    }
  }
  return nullptr;
}

// The text of a PJRT error, which is destroyed; valid until the next call.
const char* TakeError(const PJRT_Api* api, PJRT_Error* error) {
  static std::string text;
  PJRT_Error_Message_Args message = {};
  message.struct_size = PJRT_Error_Message_Args_STRUCT_SIZE;
  message.error = error;
  api->PJRT_Error_Message(&message);
  text.assign(message.message, message.message_size);
  PJRT_Error_Destroy_Args destroy = {};
  destroy.struct_size = PJRT_Error_Destroy_Args_STRUCT_SIZE;
  destroy.error = error;
  api->PJRT_Error_Destroy(&destroy);
  return text.c_str();
}

}  // namespace
}  // namespace oneshot

ONESHOT_EXPORT int oneshot_hook_configure(const char* pass_library,
                                          const char* xla_dir,
                                          const char* dump_dir,
                                          const char* skip, int log_level) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  if (oneshot::config != nullptr) return 1;
  const oneshot::QuietLoading make_room;
  oneshot::config =
      new oneshot::Config{pass_library, xla_dir, dump_dir, skip, log_level};
  return 0;
}

ONESHOT_EXPORT const char* oneshot_hook_register(const void* pjrt_api,
                                                 void* compile) {
  using oneshot::XlaTransformExtension;
  const auto* api = static_cast<const PJRT_Api*>(pjrt_api);
  if (oneshot::config == nullptr)
    return "oneshot_hook_configure was not called";
  if (api == nullptr) return "the plugin has no PJRT API";
  const PJRT_Extension_Base* base = oneshot::FindExtension(api);
  if (base == nullptr) {
    return "the plugin has no XlaTransform extension (jaxlib 0.11.2 is the "
           "first that has)";
  }
  if (base->struct_size < sizeof(XlaTransformExtension)) {
    return "the plugin's XlaTransform extension is smaller than version 1";
  }
  // XLA keeps the pointer; compilations may outlive main().
  static oneshot::XlaTransformCallbacks callbacks = {
      oneshot::kXlaTransformVersion, nullptr, oneshot::TransformHloModule};
  constexpr std::string_view kName = "oneshot";
  oneshot::XlaTransformRegisterArgs args = {};
  args.struct_size = sizeof(args);
  args.name = kName.data();
  args.name_size = kName.size();
  args.stage = oneshot::kPreScheduler;
  args.callbacks = &callbacks;
  const auto* extension = reinterpret_cast<const XlaTransformExtension*>(base);
  oneshot::compile_kernel = reinterpret_cast<OneshotCompile>(compile);
  PJRT_Error* error = extension->register_transform(&args);
  return error == nullptr ? nullptr : oneshot::TakeError(api, error);
}

ONESHOT_EXPORT int oneshot_hook_transform(const char* platform,
                                          const char* module, size_t size,
                                          char** out, size_t* out_size) {
  *out_size = 0;
  *out =
      oneshot::Transform(platform, /*compile=*/nullptr, module, size, out_size);
  return *out != nullptr ? 1 : 0;
}

ONESHOT_EXPORT void oneshot_hook_free(char* buffer) { std::free(buffer); }

ONESHOT_EXPORT void oneshot_hook_pause(int pause) {
  oneshot::paused = pause != 0;
}

ONESHOT_EXPORT void oneshot_hook_counts(int64_t counts[4]) {
  for (int i = 0; i < 4; ++i) counts[i] = oneshot::counts[i];
}

ONESHOT_EXPORT void oneshot_hook_set_machines(const int* machines,
                                              size_t count) {
  oneshot::machines.assign(machines, machines + count);
}

ONESHOT_EXPORT void oneshot_log(int level, const char* text) {
  oneshot::Log(static_cast<oneshot::LogLevel>(level), "%s", text);
}

ONESHOT_EXPORT int oneshot_log_wait(void) {
  return oneshot::log_queue.Wait() ? 1 : 0;
}

ONESHOT_EXPORT char* oneshot_log_take(int* level) {
  oneshot::LogLevel of_line;
  std::string text;
  if (!oneshot::log_queue.Take(&of_line, &text)) return nullptr;
  *level = of_line;
  return strdup(text.c_str());
}

ONESHOT_EXPORT void oneshot_log_close(void) { oneshot::log_queue.Close(); }

ONESHOT_EXPORT void oneshot_log_set_rank(int rank, int ranks) {
  oneshot::log_queue.SetRank(rank, ranks);
}
