// SPDX-License-Identifier: Apache-2.0
//
// The C ABI of PJRT's XlaTransform extension, version 1, declared here because
// no package ships a header for it. XLA introduced it in June 2026; the names
// and the order of the fields are XLA's.

#ifndef ONESHOT_XLA_PLUGIN_HOOK_PJRT_XLA_TRANSFORM_H_
#define ONESHOT_XLA_PLUGIN_HOOK_PJRT_XLA_TRANSFORM_H_

#include <stddef.h>
#include <stdint.h>

#include "xla/pjrt/c/pjrt_c_api.h"

namespace oneshot {

// PJRT_Extension_Type of the extension. Not an enumerator in older headers.
inline constexpr int kXlaTransformExtensionType = 24;
inline constexpr int64_t kXlaTransformVersion = 1;

enum XlaTransformStage : int { kPreScheduler = 0, kPostScheduler = 1 };

struct XlaTransformString {
  const char* data;
  size_t size;
};

struct XlaTransformHeader {
  int64_t api_version;
  // XLA calls cleanup_fn(data), if set, once it has read the output.
  void* data;
  void (*cleanup_fn)(void* data);
  bool has_error;  // true fails the compilation
  PJRT_Error_Code code;
  XlaTransformString error_msg;
};

struct XlaTransformArgs {
  size_t struct_size;
  XlaTransformHeader header;
  XlaTransformString hlo_module;              // in
  XlaTransformString transformed_hlo_module;  // out
  bool changed;                               // out
};

struct XlaTransformCallbacks {
  int64_t version;
  void (*dtor)(XlaTransformCallbacks* self);
  void (*transform_hlo_module)(XlaTransformCallbacks* self,
                               XlaTransformArgs* args);
};

struct XlaTransformRegisterArgs {
  size_t struct_size;
  const char* name;
  size_t name_size;
  int stage;
  // Kept by pointer: has to outlive every compilation.
  XlaTransformCallbacks* callbacks;
};

struct XlaTransformExtension {
  PJRT_Extension_Base base;
  PJRT_Error* (*register_transform)(XlaTransformRegisterArgs* args);
  void* clear_transform;
};

// What the plugin's own struct sizes have to reach for us to use it.
static_assert(sizeof(XlaTransformRegisterArgs) == 40);
static_assert(sizeof(XlaTransformExtension) == 40);
static_assert(offsetof(XlaTransformExtension, register_transform) == 24);
static_assert(offsetof(XlaTransformArgs, hlo_module) == 56);
static_assert(offsetof(XlaTransformArgs, changed) == 88);

// What PJRT puts into struct_size: up to the last field, without the padding.
inline constexpr size_t kXlaTransformArgsSize =
    offsetof(XlaTransformArgs, changed) + sizeof(bool);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_HOOK_PJRT_XLA_TRANSFORM_H_
