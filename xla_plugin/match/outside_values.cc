// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/outside_values.h"

#include <limits>
#include <tuple>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/shape_util.h"
#include "xla_plugin/match/hlo_operations.h"

namespace oneshot {
namespace {

using ::xla::HloInstruction;
using ::xla::HloOpcode;
using ::xla::ShapeUtil;

// For a slice that is one of the tensors stacked in its operand, as in a scan
// over layers, or of parameters that are kept together: which one.
std::optional<SliceIndex> IndexOfSlice(HloInstruction* slice) {
  SliceIndex index;
  if (slice->opcode() == HloOpcode::kDynamicSlice) {
    HloInstruction* start = slice->mutable_operand(1);
    if (start->shape().element_type() != xla::S32 ||
        !ShapeUtil::IsScalar(start->shape())) {
      return std::nullopt;
    }
    index = start;
  } else if (slice->opcode() == HloOpcode::kSlice &&
             !slice->slice_starts().empty() &&
             slice->slice_starts(0) <= std::numeric_limits<int32_t>::max()) {
    index = static_cast<int32_t>(slice->slice_starts(0));
  } else {
    return std::nullopt;
  }
  const HloInstruction* stack = slice->operand(0);
  const auto sizes = slice->shape().dimensions();
  bool is_one = IsRowMajor(stack->shape()) && IsFloat(stack) &&
                !sizes.empty() && sizes[0] == 1;
  for (size_t d = 1; d < sizes.size() && is_one; ++d) {
    is_one = sizes[d] == stack->shape().dimensions(d);
  }
  if (!is_one) return std::nullopt;
  return index;
}

// Whether a value a column, which is computed again for every row, may be made
// by it.
bool IsCheapPerElement(Op op) {
  switch (op) {
    case Op::kAbs:
    case Op::kAdd:
    case Op::kConvert:
    case Op::kMaximum:
    case Op::kMinimum:
    case Op::kMultiply:
    case Op::kNegate:
    case Op::kSubtract:
      return true;
    default:
      return false;
  }
}

}  // namespace

bool Leaf::operator<(const Leaf& other) const {
  const auto key = [](const Leaf& leaf) {
    return std::make_tuple(leaf.tensor->unique_id(), leaf.extent, leaf.slices,
                           leaf.index);
  };
  return key(*this) < key(other);
}

// A tensor outside of the region, as the operand of an instruction with that
// many elements: what of it has to be read, and how it spreads.
std::optional<std::pair<HloInstruction*, Extent>> OutsideValues::Unspread(
    HloInstruction* operand, int64_t elements) const {
  HloInstruction* inner = StripExact(operand);
  const BroadcastKind kind = ClassifyBroadcast(inner);
  if (kind == BroadcastKind::kRows || kind == BroadcastKind::kColumn) {
    HloInstruction* repeated = StripExact(inner->mutable_operand(0));
    const int64_t count = Elements(repeated);
    if (kind == BroadcastKind::kRows && count == 1) {
      return std::make_pair(repeated, Extent::kScalar);
    }
    if (kind == BroadcastKind::kRows && elements == elements_ &&
        count == rows()) {
      return std::make_pair(repeated, Extent::kRow);
    }
    if (kind == BroadcastKind::kColumn && elements == elements_ &&
        count == hidden_) {
      return std::make_pair(repeated, Extent::kColumn);
    }
  }
  // Some other broadcast is read as the large tensor that it makes.
  const int64_t count = Elements(inner);
  if (count == 1) return std::make_pair(inner, Extent::kScalar);
  if (count != elements) return std::nullopt;
  if (elements != elements_) return std::make_pair(inner, Extent::kRow);
  // With a single row it is one or the other. For the name of the epilogue: a
  // parameter of a model has one dimension, an activation keeps those of size
  // one.
  const bool is_parameter = rows() == 1 &&
                            inner->shape().dimensions().size() == 1 &&
                            operand->shape().dimensions().size() > 1;
  return std::make_pair(inner,
                        is_parameter ? Extent::kColumn : Extent::kElement);
}

std::optional<Leaf> OutsideValues::LeafOf(HloInstruction* inner,
                                          Extent extent) const {
  // A predicate is read as a number, into which something has to turn it. That
  // is for nothing if it is small.
  const bool is_mask = IsPredicate(inner) && extent != Extent::kElement;
  if (!(IsFloat(inner) || is_mask) || !IsRowMajor(inner->shape())) {
    return std::nullopt;
  }
  // One of many stacked tensors.
  if (const std::optional<SliceIndex> index = IndexOfSlice(inner)) {
    HloInstruction* stack = inner->mutable_operand(0);
    if (rows() == 1 && extent == Extent::kElement) extent = Extent::kColumn;
    return Leaf{stack, extent, stack->shape().dimensions(0), *index};
  }
  return Leaf{inner, extent};
}

// A small value outside of the region: a constant, an operation on such values,
// or a tensor to read. `budget` is how many operations there may be.
std::optional<Source> OutsideValues::Produce(HloInstruction* hlo, Extent extent,
                                             int* budget) const {
  if (const std::optional<float> constant = ConstantValue(hlo)) {
    return *constant;
  }
  const std::optional<Leaf> leaf = LeafOf(hlo, extent);
  if (!leaf.has_value()) return std::nullopt;
  std::optional<Op> op;
  if (IsFloat(hlo) && hlo->opcode() == HloOpcode::kConvert &&
      IsFloat(hlo->operand(0))) {
    op = Op::kConvert;
  } else if (IsFloat(hlo)) {
    op = ElementwiseOperation(hlo);
  }
  const bool is_taken =
      op.has_value() && *budget > 0 && may_absorb_(hlo) &&
      !hlo->HasControlDependencies() &&
      static_cast<int>(hlo->operand_count()) == Arity(*op) &&
      (extent != Extent::kColumn || IsCheapPerElement(*op)) &&
      absl::c_all_of(hlo->operands(), [&](const HloInstruction* operand) {
        return IsFloat(operand) && Understands(operand);
      });
  if (is_taken) {
    --*budget;
    const int64_t elements = Elements(hlo);
    auto producer = std::make_shared<Producer>();
    *producer = {hlo, *op,    *ToDType(hlo->shape().element_type()),
                 {},  extent, *leaf};
    for (HloInstruction* operand : hlo->mutable_operands()) {
      HloInstruction* inner = StripExact(operand);
      Extent of_operand = extent;
      if (ClassifyBroadcast(inner) == BroadcastKind::kRows &&
          Elements(inner->operand(0)) == 1) {
        inner = StripExact(inner->mutable_operand(0));
      }
      if (Elements(inner) == 1) of_operand = Extent::kScalar;
      if (Elements(inner) != 1 && Elements(inner) != elements) break;
      std::optional<Source> source = Produce(inner, of_operand, budget);
      if (!source.has_value()) break;
      producer->sources.push_back(*std::move(source));
    }
    if (static_cast<int>(producer->sources.size()) == Arity(*op)) {
      return producer;
    }
  }
  return *leaf;
}

bool OutsideValues::Understands(const HloInstruction* operand) const {
  while (true) {
    if (!may_absorb_(operand)) return false;
    if (!IsExact(operand) && operand->opcode() != HloOpcode::kBroadcast) break;
    operand = operand->operand(0);
  }
  return true;
}

std::optional<Source> OutsideValues::Read(HloInstruction* operand,
                                          int64_t elements,
                                          std::string* why) const {
  if (!Understands(operand)) {
    *why = absl::StrCat("operand ", operand->name(),
                        " has proto fields that this build does not know");
    return std::nullopt;
  }
  if (const std::optional<float> constant = ConstantValue(operand)) {
    return *constant;
  }
  std::optional<Source> source;
  if (const auto unspread = Unspread(operand, elements)) {
    const auto [inner, extent] = *unspread;
    // What makes a value a row is mostly a reduction, which has the rest for
    // nothing; and large tensors take longer to make than a kernel to start.
    // Otherwise enough for `(1 + gain) * scale` with all its conversions.
    int budget = extent == Extent::kColumn || extent == Extent::kScalar ? 6 : 0;
    source = Produce(inner, extent, &budget);
  }
  if (!source.has_value()) {
    *why = absl::StrCat("operand ", operand->name(), " of shape ",
                        ShapeUtil::HumanString(operand->shape()),
                        " can't be read by rows of ", hidden_);
  }
  return source;
}

}  // namespace oneshot
