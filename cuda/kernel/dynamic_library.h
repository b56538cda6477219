// SPDX-License-Identifier: Apache-2.0
//
// Shared libraries that are loaded at run time: which of them a machine has,
// and in which version, is not known when the product is built.
#ifndef ONESHOT_CUDA_KERNEL_DYNAMIC_LIBRARY_H_
#define ONESHOT_CUDA_KERNEL_DYNAMIC_LIBRARY_H_

#include <dlfcn.h>

#include <string>
#include <type_traits>

namespace oneshot {

// A handle of the dynamic linker. No destructor closes the library: functions
// of it are kept until the process ends.
class DynamicLibrary {
 public:
  // Loads the library from a path, or from where the dynamic linker finds the
  // name. Its symbols stay invisible to other libraries.
  static DynamicLibrary Open(const std::string& file) {
    return DynamicLibrary(dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL));
  }

  // The library that the process has already loaded under this name; none
  // otherwise.
  static DynamicLibrary FindLoaded(const std::string& name) {
    return DynamicLibrary(dlopen(name.c_str(), RTLD_NOW | RTLD_NOLOAD));
  }

  DynamicLibrary() = default;

  explicit operator bool() const { return handle_ != nullptr; }

  // Points `function` to the function with this name. False if the library has
  // none.
  template <typename Function>
  bool Resolve(const char* name, Function& function) const {
    static_assert(std::is_pointer_v<Function>);
    function = handle_ == nullptr
                   ? nullptr
                   : reinterpret_cast<Function>(dlsym(handle_, name));
    return function != nullptr;
  }

 private:
  explicit DynamicLibrary(void* handle) : handle_(handle) {}

  void* handle_ = nullptr;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_KERNEL_DYNAMIC_LIBRARY_H_
