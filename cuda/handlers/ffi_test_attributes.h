// SPDX-License-Identifier: Apache-2.0
//
// Attributes of a custom call as XLA hands them to a handler, for tests.
#ifndef ONESHOT_CUDA_HANDLERS_FFI_TEST_ATTRIBUTES_H_
#define ONESHOT_CUDA_HANDLERS_FFI_TEST_ATTRIBUTES_H_

#include <cstdint>
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "xla/ffi/api/c_api.h"

namespace oneshot {

class TestAttributes {
 public:
  using Value = std::variant<int64_t, std::vector<int64_t>, std::string>;

  void Set(const std::string& name, Value value) {
    values_[name] = std::move(value);
  }
  void Remove(const std::string& name) { values_.erase(name); }

  // Sorted by name, as XLA has them. Valid until the next call of a member.
  XLA_FFI_Attrs Encode() {
    scalars_.clear();
    arrays_.clear();
    spans_.clear();
    types_.clear();
    names_.clear();
    pointers_.clear();
    for (auto& [name, value] : values_) {
      names_.push_back(Span(name));
      if (auto* number = std::get_if<int64_t>(&value)) {
        scalars_.push_back({XLA_FFI_DataType_S64, number});
        types_.push_back(XLA_FFI_AttrType_SCALAR);
        pointers_.push_back(&scalars_.back());
      } else if (auto* numbers = std::get_if<std::vector<int64_t>>(&value)) {
        arrays_.push_back(
            {XLA_FFI_DataType_S64, numbers->size(), numbers->data()});
        types_.push_back(XLA_FFI_AttrType_ARRAY);
        pointers_.push_back(&arrays_.back());
      } else {
        types_.push_back(XLA_FFI_AttrType_STRING);
        pointers_.push_back(Span(std::get<std::string>(value)));
      }
    }
    XLA_FFI_Attrs attributes = {};
    attributes.struct_size = XLA_FFI_Attrs_STRUCT_SIZE;
    attributes.size = static_cast<int64_t>(types_.size());
    attributes.types = types_.data();
    attributes.names = names_.data();
    attributes.attrs = pointers_.data();
    return attributes;
  }

 private:
  XLA_FFI_ByteSpan* Span(const std::string& text) {
    spans_.push_back({text.data(), text.size()});
    return &spans_.back();
  }

  std::map<std::string, Value> values_;
  // Deques, because what is in them is pointed at.
  std::deque<XLA_FFI_Scalar> scalars_;
  std::deque<XLA_FFI_Array> arrays_;
  std::deque<XLA_FFI_ByteSpan> spans_;
  std::vector<XLA_FFI_AttrType> types_;
  std::vector<XLA_FFI_ByteSpan*> names_;
  std::vector<void*> pointers_;
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_HANDLERS_FFI_TEST_ATTRIBUTES_H_
