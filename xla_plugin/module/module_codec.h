// SPDX-License-Identifier: Apache-2.0
//
// Serialized HLO modules in, serialized HLO modules out, with nothing lost.
//
// The module was serialized by the XLA inside jaxlib, which may be newer than
// the XLA that this library is compiled against. Decode() refuses a module that
// this XLA would not hand back whole.

#ifndef ONESHOT_XLA_PLUGIN_MODULE_MODULE_CODEC_H_
#define ONESHOT_XLA_PLUGIN_MODULE_MODULE_CODEC_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/container/node_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/service/hlo.pb.h"

namespace oneshot {

using InstructionsById = absl::node_hash_map<int64_t, xla::HloInstructionProto>;

class DecodedModule {
 public:
  // Fails, with the reason for the report, when the module can't be decoded
  // and encoded again without loss, or when XLA would lose something on the way
  // back (layouts that the user chose for the entry computation).
  static absl::StatusOr<DecodedModule> Decode(absl::string_view serialized);

  xla::HloModule* module() const { return module_.get(); }

  // False for an instruction of which this XLA can't read something that may
  // mean something: fields it does not know, groups of one device. Such an
  // instruction may stay, since Encode() writes it as it came, but nothing may
  // be concluded from it.
  bool Understands(const xla::HloInstruction* instruction) const;

  absl::StatusOr<std::string> Encode() const;

 private:
  std::unique_ptr<xla::HloModule> module_;
  // Those with something that this XLA can't read, as they came.
  InstructionsById aside_;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MODULE_MODULE_CODEC_H_
