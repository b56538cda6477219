// SPDX-License-Identifier: Apache-2.0
//
// Registers the type of a handler's state with XLA. XLA wants this done before
// the handler itself is registered, which it does by asking the instantiate
// handler for its metadata: the first moment at which we hold XLA's API. Doing
// it there keeps type ids out of the interface of the shared library.
#ifndef ONESHOT_CUDA_HANDLERS_FFI_STATE_H_
#define ONESHOT_CUDA_HANDLERS_FFI_STATE_H_

#include <string_view>

#include "xla/ffi/api/ffi.h"

namespace oneshot {

// To be called first in the instantiate handler. `T` has a static TypeId `id`.
template <typename T>
XLA_FFI_Error* RegisterStateType(XLA_FFI_CallFrame* call_frame,
                                 std::string_view name) {
  static constexpr XLA_FFI_TypeInfo kInfo = xla::ffi::MakeTypeInfo<T>();
  if (T::id.type_id != XLA_FFI_UNKNOWN_TYPE_ID.type_id) return nullptr;
  return xla::ffi::Ffi::RegisterTypeId(call_frame->api, name, &T::id, &kInfo);
}

}  // namespace oneshot

#endif  // ONESHOT_CUDA_HANDLERS_FFI_STATE_H_
