// SPDX-License-Identifier: Apache-2.0
//
// Binds XLA's collectives extension to handlers. The public header has the
// pieces but leaves their assembly to XLA's own build.
#ifndef ONESHOT_CUDA_HANDLERS_FFI_COLLECTIVES_H_
#define ONESHOT_CUDA_HANDLERS_FFI_COLLECTIVES_H_

#include <cstdint>

#include "xla/ffi/api/collectives_api.h"
#include "xla/ffi/api/ffi.h"

namespace oneshot {

using CommunicatorContext = xla::ffi::internal::CommunicatorContextBase<
    xla::ffi::internal::ErrorPolicy>;

// Use as .Ctx<xla::ffi::Extension<CollectivesExtension>>().
struct CollectivesExtension
    : xla::ffi::internal::CollectivesExtensionBase<CommunicatorContext> {
  // Minor versions add functions behind the two that we call.
  static bool Support(int32_t major_version, int32_t minor_version) {
    return major_version == kMajorVersion && minor_version >= kMinorVersion;
  }
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_HANDLERS_FFI_COLLECTIVES_H_
