// SPDX-License-Identifier: Apache-2.0
//
// Values that an epilogue reads and that do not depend on the sum: what of them
// the call has to be given, and what it computes from that.

#ifndef ONESHOT_XLA_PLUGIN_MATCH_OUTSIDE_VALUES_H_
#define ONESHOT_XLA_PLUGIN_MATCH_OUTSIDE_VALUES_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "cuda/program/epilogue_program.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla_plugin/match/hlo_values.h"

namespace oneshot {

// Which of several stacked tensors is read: known when the program runs, or
// now.
using SliceIndex = std::variant<xla::HloInstruction*, int32_t>;

// A tensor that the custom-call reads, besides what is sent.
struct Leaf {
  xla::HloInstruction* tensor;
  Extent extent;
  int64_t slices = 0;  // 0: all of it
  SliceIndex index = 0;

  bool operator<(const Leaf& other) const;
};

struct Producer;

// An operand of an operation: a value of the region, a constant, a tensor that
// is read, or what is computed from these.
using Source = std::variant<xla::HloInstruction*, float, Leaf,
                            std::shared_ptr<const Producer>>;

// An operation on values that do not depend on the all-reduce, like the one of
// `1 + gain`. It is small, so that whoever else reads it may compute it, too.
struct Producer {
  const xla::HloInstruction* hlo;
  Op op;
  DType round;
  std::vector<Source> sources;
  Extent extent;
  // The same value, read as it is.
  Leaf leaf;
};

// Reads values for an epilogue on `elements` elements in rows of `hidden`.
class OutsideValues {
 public:
  OutsideValues(int64_t elements, int64_t hidden, const MayAbsorb& may_absorb)
      : elements_(elements), hidden_(hidden), may_absorb_(may_absorb) {}

  // `operand` of an instruction with that many elements: all of them, one per
  // row, or one. Nothing, and why, for what can't be read.
  std::optional<Source> Read(xla::HloInstruction* operand, int64_t elements,
                             std::string* why) const;

  // Whether everything that is looked at to read it is understood.
  bool Understands(const xla::HloInstruction* operand) const;

 private:
  int64_t rows() const { return elements_ / hidden_; }
  std::optional<std::pair<xla::HloInstruction*, Extent>> Unspread(
      xla::HloInstruction* operand, int64_t elements) const;
  std::optional<Source> Produce(xla::HloInstruction* hlo, Extent extent,
                                int* budget) const;
  std::optional<Leaf> LeafOf(xla::HloInstruction* inner, Extent extent) const;

  const int64_t elements_;
  const int64_t hidden_;
  const MayAbsorb& may_absorb_;
};

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_MATCH_OUTSIDE_VALUES_H_
