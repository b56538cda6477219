// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernel/nvrtc.h"

#include <dlfcn.h>

#include <iterator>
#include <memory>
#include <vector>

#include "cuda/kernel/dynamic_library.h"

namespace oneshot {
namespace {

// As declared by nvrtc.h. Loaded, not linked: its major version is that of the
// CUDA that JAX was installed with.
using Program = struct NvrtcProgram*;
struct NvrtcApi {
  int (*create)(Program*, const char* source, const char* name, int headers,
                const char* const* texts, const char* const* names);
  int (*destroy)(Program*);
  int (*compile)(Program, int options, const char* const* texts);
  int (*log_size)(Program, size_t*);
  int (*log)(Program, char*);
  int (*cubin_size)(Program, size_t*);
  int (*cubin)(Program, char*);
  const char* (*error_string)(int);
  int (*version)(int* major, int* minor);
};

constexpr const char* kNames[] = {"libnvrtc.so.13", "libnvrtc.so.12"};

std::string& Path() {
  static std::string* const path = new std::string;
  return *path;
}

DynamicLibrary OpenLibrary() {
  for (const char* name : kNames) {
    if (const auto library = DynamicLibrary::FindLoaded(name)) return library;
  }
  std::vector<std::string> files;
  if (!Path().empty()) {
    files.push_back(Path());
    for (const char* name : kNames) files.push_back(Path() + "/" + name);
  }
  files.insert(files.end(), std::begin(kNames), std::end(kNames));
  for (const std::string& file : files) {
    if (const auto library = DynamicLibrary::Open(file)) return library;
  }
  return {};
}

// NVRTC opens a second library by name, which the dynamic linker does not find
// in the folder of a Python package: unless it is loaded already.
void LoadBuiltins(const NvrtcApi& api) {
  int major = 0;
  int minor = 0;
  Dl_info info;
  if (api.version(&major, &minor) != 0 ||
      dladdr(reinterpret_cast<void*>(api.version), &info) == 0) {
    return;
  }
  const std::string file = info.dli_fname;
  const std::string builtins = file.substr(0, file.rfind('/') + 1) +
                               "libnvrtc-builtins.so." + std::to_string(major) +
                               "." + std::to_string(minor);
  DynamicLibrary::Open(builtins);
}

const NvrtcApi* Load() {
  static const NvrtcApi* const loaded = []() -> const NvrtcApi* {
    const DynamicLibrary library = OpenLibrary();
    if (!library) return nullptr;
    auto* api = new NvrtcApi;
    const bool complete =
        library.Resolve("nvrtcCreateProgram", api->create) &&
        library.Resolve("nvrtcDestroyProgram", api->destroy) &&
        library.Resolve("nvrtcCompileProgram", api->compile) &&
        library.Resolve("nvrtcGetProgramLogSize", api->log_size) &&
        library.Resolve("nvrtcGetProgramLog", api->log) &&
        library.Resolve("nvrtcGetCUBINSize", api->cubin_size) &&
        library.Resolve("nvrtcGetCUBIN", api->cubin) &&
        library.Resolve("nvrtcGetErrorString", api->error_string) &&
        library.Resolve("nvrtcVersion", api->version);
    if (!complete) return nullptr;
    LoadBuiltins(*api);
    return api;
  }();
  return loaded;
}

// The first line of a log that is about an error.
std::string FirstError(const std::string& log) {
  const size_t error = log.find("error");
  if (error == std::string::npos) return log.substr(0, log.find('\n'));
  const size_t begin = log.rfind('\n', error);
  const size_t start = begin == std::string::npos ? 0 : begin + 1;
  return log.substr(start, log.find('\n', error) - start);
}

}  // namespace

void SetNvrtcPath(const std::string& path) { Path() = path; }

bool CompileCuda(const std::string& source, int compute_capability,
                 std::string* cubin, std::string* error) {
  const NvrtcApi* nvrtc = Load();
  if (nvrtc == nullptr) {
    *error =
        "NVRTC is missing: neither libnvrtc.so.13 nor libnvrtc.so.12 can be "
        "loaded (jax[cuda13] installs it as nvidia-cuda-nvrtc)";
    return false;
  }
  Program program = nullptr;
  int status = nvrtc->create(&program, source.c_str(), "oneshot.cu", 0, nullptr,
                             nullptr);
  if (status != 0) {
    *error = std::string("NVRTC: ") + nvrtc->error_string(status);
    return false;
  }
  const std::unique_ptr<Program, int (*)(Program*)> owner(&program,
                                                          nvrtc->destroy);
  // Devices from 9.0 on have instructions that only the very architecture's
  // name, with an "a", gives access to; none of them is used here.
  const std::string architecture =
      "--gpu-architecture=sm_" + std::to_string(compute_capability);
  // A multiplication and an addition stay two roundings, as the HLO has them.
  const char* options[] = {architecture.c_str(), "--std=c++17", "--fmad=false"};
  status = nvrtc->compile(program, 3, options);
  if (status != 0) {
    size_t size = 0;
    std::string log;
    if (nvrtc->log_size(program, &size) == 0 && size > 1) {
      log.resize(size);
      nvrtc->log(program, log.data());
      log.resize(size - 1);
    }
    *error = std::string("NVRTC: ") + nvrtc->error_string(status) + ": " +
             FirstError(log);
    return false;
  }
  size_t size = 0;
  status = nvrtc->cubin_size(program, &size);
  if (status == 0) {
    cubin->resize(size);
    status = nvrtc->cubin(program, cubin->data());
  }
  if (status != 0) {
    *error = std::string("NVRTC: ") + nvrtc->error_string(status);
    return false;
  }
  return true;
}

}  // namespace oneshot
