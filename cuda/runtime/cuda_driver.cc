// SPDX-License-Identifier: Apache-2.0
#include "cuda/runtime/cuda_driver.h"

#include "cuda/kernel/dynamic_library.h"

namespace oneshot {
namespace {

CudaDriver Load() {
  CudaDriver driver;
  const DynamicLibrary library = DynamicLibrary::Open("libcuda.so.1");
  if (!library) {
    driver.missing = "there is no CUDA driver";
    return driver;
  }
  const auto resolve = [&](const char* symbol, auto& function) {
    const auto stand_in = function;
    if (library.Resolve(symbol, function)) return;
    function = stand_in;
    if (driver.missing.empty()) {
      driver.missing =
          std::string("the CUDA driver is too old: it lacks ") + symbol;
    }
  };
#define ONESHOT_RESOLVE(name, symbol) resolve(#symbol, driver.name);
  ONESHOT_CUDA_DRIVER_FUNCTIONS(ONESHOT_RESOLVE)
#undef ONESHOT_RESOLVE
  library.Resolve("cuFuncLoad", driver.FuncLoad);
  // A driver that does not start says so again in every other call.
  driver.Init(0);
  return driver;
}

}  // namespace

const CudaDriver& Cuda() {
  // Leaked: late runs outlive static objects.
  static const CudaDriver* const driver = new CudaDriver(Load());
  return *driver;
}

}  // namespace oneshot
