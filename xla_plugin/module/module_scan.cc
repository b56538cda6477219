// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/module/module_scan.h"

#include <cstddef>
#include <cstdint>
#include <optional>

namespace oneshot {
namespace {

// Field numbers of xla/service/hlo.proto, which its users may rely on: they are
// what persisted modules are read by.
constexpr uint64_t kModuleComputations = 3;
constexpr uint64_t kComputationInstructions = 2;
constexpr uint64_t kInstructionOpcode = 2;

// Reads one message of the wire format, field by field.
class FieldReader {
 public:
  explicit FieldReader(std::string_view bytes) : bytes_(bytes) {}

  struct Field {
    uint64_t number;
    std::string_view bytes;  // of a length-delimited field, else empty
  };

  // The next field; nothing at the end and after malformed input.
  std::optional<Field> Next() {
    if (position_ == bytes_.size()) return std::nullopt;
    const std::optional<uint64_t> tag = Varint();
    if (!tag.has_value()) return std::nullopt;
    Field field{*tag >> 3, {}};
    std::optional<uint64_t> length;
    switch (*tag & 7) {
      case 0:
        if (!Varint().has_value()) return std::nullopt;
        return field;
      case 1:
        length = 8;
        break;
      case 2:
        length = Varint();
        break;
      case 5:
        length = 4;
        break;
      default:
        return std::nullopt;
    }
    if (!length.has_value() || *length > bytes_.size() - position_) {
      return std::nullopt;
    }
    if ((*tag & 7) == 2) field.bytes = bytes_.substr(position_, *length);
    position_ += *length;
    return field;
  }

 private:
  std::optional<uint64_t> Varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && position_ < bytes_.size(); shift += 7) {
      const uint8_t byte = bytes_[position_++];
      value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  }

  std::string_view bytes_;
  size_t position_ = 0;
};

bool InstructionIsAllReduce(std::string_view instruction) {
  FieldReader reader(instruction);
  while (const auto field = reader.Next()) {
    if (field->number == kInstructionOpcode) {
      return field->bytes == "all-reduce" || field->bytes == "all-reduce-start";
    }
  }
  return false;
}

bool ComputationHasAllReduce(std::string_view computation) {
  FieldReader reader(computation);
  while (const auto field = reader.Next()) {
    if (field->number == kComputationInstructions &&
        InstructionIsAllReduce(field->bytes)) {
      return true;
    }
  }
  return false;
}

}  // namespace

bool HasAllReduce(std::string_view module) {
  FieldReader reader(module);
  while (const auto field = reader.Next()) {
    if (field->number == kModuleComputations &&
        ComputationHasAllReduce(field->bytes)) {
      return true;
    }
  }
  return false;
}

}  // namespace oneshot
