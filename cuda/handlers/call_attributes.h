// SPDX-License-Identifier: Apache-2.0
//
// From an FFI call frame to a checked description of the call. The only place
// that knows the names and types of the attributes.
#ifndef ONESHOT_CUDA_HANDLERS_CALL_ATTRIBUTES_H_
#define ONESHOT_CUDA_HANDLERS_CALL_ATTRIBUTES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "cuda/program/buffers.h"
#include "cuda/program/epilogue_program.h"
#include "xla/ffi/api/ffi.h"

namespace oneshot {

// What the attributes say.
struct CallAttributes {
  std::string site;  // names the all-reduce of the user's program in messages
  EpilogueProgram program;  // valid
  Analysis analysis;
  int64_t rows = 0;
  int64_t hidden = 0;
  int64_t num_partitions = 0;  // 0: the compiler did not know
  // Flattened ids (replica * num_partitions + partition), in order of the sum.
  std::vector<std::vector<int64_t>> groups;

  int ranks() const { return static_cast<int>(groups.front().size()); }
};

// One call with its buffers.
struct BoundCall {
  const EpilogueProgram* program = nullptr;  // that of the attributes
  Buffers buffers;
  int64_t rows = 0;
  int64_t hidden = 0;
};

xla::ffi::ErrorOr<CallAttributes> ParseCallAttributes(
    const xla::ffi::Dictionary& attributes);

// Checks the operands and results against the attributes. The last
// `trailing_operands` operands are the handler's own and are not looked at.
xla::ffi::ErrorOr<BoundCall> BindCall(const CallAttributes& attributes,
                                      const xla::ffi::RemainingArgs& operands,
                                      const xla::ffi::RemainingRets& results,
                                      int trailing_operands);

// An error that names the site; all errors of the handlers are made here.
xla::ffi::Error SiteError(xla::ffi::ErrorCode code, const std::string& site,
                          const std::string& message);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_HANDLERS_CALL_ATTRIBUTES_H_
