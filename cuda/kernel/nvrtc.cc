// SPDX-License-Identifier: Apache-2.0
#include "cuda/kernel/nvrtc.h"

#include <dlfcn.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>

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
  int (*ptx_size)(Program, size_t*);
  int (*ptx)(Program, char*);
  const char* (*error_string)(int);
  int (*version)(int* major, int* minor);
  int (*architecture_count)(int*);
  int (*architectures)(int*);
};

// A copy of the library.
struct Nvrtc {
  NvrtcApi api;
  std::string file;
  int version = 0;
  std::vector<int> architectures;
};

constexpr const char* kNames[] = {"libnvrtc.so.13", "libnvrtc.so.12"};

std::string& Path() {
  static std::string* const path = new std::string;
  return *path;
}

constexpr int kMajor = 1000;  // in CUDA's version numbers
constexpr int kMinor = 10;

std::string VersionText(int version) {
  return std::to_string(version / kMajor) + "." +
         std::to_string(version % kMajor / kMinor);
}

// NVRTC opens a second library by name, which the dynamic linker does not find
// in the folder of a Python package: unless it is loaded already.
void LoadBuiltins(const Nvrtc& nvrtc) {
  DynamicLibrary::Open(nvrtc.file.substr(0, nvrtc.file.rfind('/') + 1) +
                       "libnvrtc-builtins.so." + VersionText(nvrtc.version));
}

// Null if the library is none, or lacks what every NVRTC from CUDA 12 on has.
std::unique_ptr<Nvrtc> Load(const DynamicLibrary& library) {
  auto nvrtc = std::make_unique<Nvrtc>();
  NvrtcApi& api = nvrtc->api;
  int major = 0;
  int minor = 0;
  int count = 0;
  Dl_info info;
  if (!library.Resolve("nvrtcCreateProgram", api.create) ||
      !library.Resolve("nvrtcDestroyProgram", api.destroy) ||
      !library.Resolve("nvrtcCompileProgram", api.compile) ||
      !library.Resolve("nvrtcGetProgramLogSize", api.log_size) ||
      !library.Resolve("nvrtcGetProgramLog", api.log) ||
      !library.Resolve("nvrtcGetCUBINSize", api.cubin_size) ||
      !library.Resolve("nvrtcGetCUBIN", api.cubin) ||
      !library.Resolve("nvrtcGetPTXSize", api.ptx_size) ||
      !library.Resolve("nvrtcGetPTX", api.ptx) ||
      !library.Resolve("nvrtcGetErrorString", api.error_string) ||
      !library.Resolve("nvrtcVersion", api.version) ||
      !library.Resolve("nvrtcGetNumSupportedArchs", api.architecture_count) ||
      !library.Resolve("nvrtcGetSupportedArchs", api.architectures) ||
      api.version(&major, &minor) != 0 || api.architecture_count(&count) != 0 ||
      dladdr(reinterpret_cast<void*>(api.version), &info) == 0) {
    return nullptr;
  }
  nvrtc->version = major * kMajor + minor * kMinor;
  nvrtc->file = info.dli_fname;
  nvrtc->architectures.resize(count);
  if (api.architectures(nvrtc->architectures.data()) != 0) return nullptr;
  return nvrtc;
}

// Whether a driver understands what a compiler makes. Any version of a major
// one does, also the oldest; of a later major version none does.
bool Fits(int nvrtc_version, int driver_version) {
  return driver_version == 0 ||
         nvrtc_version / kMajor <= driver_version / kMajor;
}

// The first library that fits. Null with the reason in `error`.
std::unique_ptr<Nvrtc> Choose(int driver_version, std::string* error) {
  *error =
      "NVRTC is missing: neither libnvrtc.so.13 nor libnvrtc.so.12 can be "
      "loaded (jax[cuda13] installs it as nvidia-cuda-nvrtc, jax[cuda12] as "
      "nvidia-cuda-nvrtc-cu12)";
  std::unique_ptr<Nvrtc> found;
  const auto take = [&](const DynamicLibrary& library) {
    if (!library) return false;
    std::unique_ptr<Nvrtc> nvrtc = Load(library);
    if (nvrtc == nullptr) return false;
    if (!Fits(nvrtc->version, driver_version)) {
      *error = "NVRTC " + VersionText(nvrtc->version) +
               " is too new for the driver, which is of CUDA " +
               VersionText(driver_version) +
               ": update the driver, or install nvidia-cuda-nvrtc-cu12";
      return false;
    }
    LoadBuiltins(*nvrtc);
    found = std::move(nvrtc);
    return true;
  };
  if (!Path().empty()) {
    if (take(DynamicLibrary::Open(Path()))) return found;
    for (const char* name : kNames) {
      if (take(DynamicLibrary::Open(Path() + "/" + name))) return found;
    }
  }
  for (const char* name : kNames) {
    if (take(DynamicLibrary::FindLoaded(name))) return found;
  }
  for (const char* name : kNames) {
    if (take(DynamicLibrary::Open(name))) return found;
  }
  return nullptr;
}

// The same, once for each version of a driver, which is once.
const Nvrtc* Find(int driver_version, std::string* error) {
  struct Choice {
    std::unique_ptr<Nvrtc> nvrtc;
    std::string error;
  };
  static std::mutex mutex;
  static auto* const choices = new std::map<int, Choice>;
  const std::lock_guard<std::mutex> lock(mutex);
  const auto [place, is_new] = choices->try_emplace(driver_version);
  Choice& choice = place->second;
  if (is_new) choice.nvrtc = Choose(driver_version, &choice.error);
  if (choice.nvrtc == nullptr) *error = choice.error;
  return choice.nvrtc.get();
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

bool FindNvrtc(int driver_version, std::string* file, int* nvrtc_version,
               std::string* error) {
  const Nvrtc* nvrtc = Find(driver_version, error);
  if (nvrtc == nullptr) return false;
  *file = nvrtc->file;
  *nvrtc_version = nvrtc->version;
  return true;
}

std::optional<CodeTarget> ChooseTarget(int compute_capability,
                                       const std::vector<int>& architectures,
                                       int nvrtc_version, int driver_version,
                                       std::string* error) {
  const auto knows = [&](int architecture) {
    return std::find(architectures.begin(), architectures.end(),
                     architecture) != architectures.end();
  };
  if (knows(compute_capability)) return CodeTarget{false, compute_capability};
  // Machine code of the first architecture of a family runs on all of it.
  const int family = compute_capability / 10 * 10;
  if (knows(family)) return CodeTarget{false, family};
  int nearest = 0;
  for (const int architecture : architectures) {
    if (architecture < compute_capability) {
      nearest = std::max(nearest, architecture);
    }
  }
  *error = "NVRTC " + VersionText(nvrtc_version) +
           " knows no compute capability " +
           std::to_string(compute_capability / 10) + "." +
           std::to_string(compute_capability % 10);
  if (nearest == 0) return std::nullopt;
  if (driver_version != 0 && nvrtc_version > driver_version) {
    *error += ", and its PTX is too new for the driver, which is of CUDA " +
              VersionText(driver_version);
    return std::nullopt;
  }
  return CodeTarget{true, nearest};
}

bool CompileCuda(const std::string& source, int compute_capability,
                 int driver_version, std::string* code, std::string* error) {
  const Nvrtc* nvrtc = Find(driver_version, error);
  if (nvrtc == nullptr) return false;
  const NvrtcApi& api = nvrtc->api;
  const std::optional<CodeTarget> target =
      ChooseTarget(compute_capability, nvrtc->architectures, nvrtc->version,
                   driver_version, error);
  if (!target) return false;
  const auto fail = [&](int status, const std::string& more = "") {
    *error = std::string("NVRTC: ") + api.error_string(status) + more;
    return false;
  };
  Program program = nullptr;
  int status =
      api.create(&program, source.c_str(), "oneshot.cu", 0, nullptr, nullptr);
  if (status != 0) return fail(status);
  const std::unique_ptr<Program, int (*)(Program*)> owner(&program,
                                                          api.destroy);
  // Devices from 9.0 on have instructions that only the very architecture's
  // name, with an "a", gives access to; none of them is used here.
  const std::string architecture = std::string("--gpu-architecture=") +
                                   (target->ptx ? "compute_" : "sm_") +
                                   std::to_string(target->architecture);
  // A multiplication and an addition stay two roundings, as the HLO has them.
  const char* options[] = {architecture.c_str(), "--std=c++17", "--fmad=false"};
  status = api.compile(program, std::size(options), options);
  if (status != 0) {
    size_t size = 0;
    std::string log;
    if (api.log_size(program, &size) == 0 && size > 1) {
      log.resize(size);
      api.log(program, log.data());
      log.resize(size - 1);
    }
    return fail(status, ": " + FirstError(log));
  }
  size_t size = 0;
  status = (target->ptx ? api.ptx_size : api.cubin_size)(program, &size);
  if (status != 0) return fail(status);
  code->resize(size);
  status = (target->ptx ? api.ptx : api.cubin)(program, code->data());
  return status == 0 || fail(status);
}

}  // namespace oneshot
