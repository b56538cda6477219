// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/epilogue_match.h"

#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "cuda/program/call_contract.h"
#include "cuda/program/float_formats.h"
#include "xla/comparison_util.h"
#include "xla/hlo/ir/hlo_casting_utils.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/layout_util.h"
#include "xla/literal.h"
#include "xla/shape_util.h"
#include "xla/xla_data.pb.h"
#include "xla_plugin/match/reduction_kind.h"

namespace oneshot {
namespace {

using ::xla::HloInstruction;
using ::xla::HloOpcode;
using ::xla::PrimitiveType;
using ::xla::Shape;
using ::xla::ShapeUtil;
using InstructionSet = absl::flat_hash_set<const HloInstruction*>;

// ---------------------------------------------------------------------------
// Types and shapes

std::optional<DType> ToDType(PrimitiveType type) {
  switch (type) {
    case xla::F32:
      return DType::kF32;
    case xla::BF16:
      return DType::kBf16;
    case xla::F16:
      return DType::kF16;
    default:
      return std::nullopt;
  }
}

// Of results, all of the others' types and these.
std::optional<DType> ToResultType(PrimitiveType type) {
  switch (type) {
    case xla::F8E4M3FN:
      return DType::kF8E4M3FN;
    case xla::F8E5M2:
      return DType::kF8E5M2;
    case xla::S8:
      return DType::kS8;
    default:
      return ToDType(type);
  }
}

bool IsFloat(const HloInstruction* hlo) {
  return ToDType(hlo->shape().element_type()).has_value();
}

bool IsPredicate(const HloInstruction* hlo) {
  return hlo->shape().element_type() == xla::PRED;
}

// A conversion to a type that results may have and nothing else. As a node it
// is its operand, stored in that type; nothing in the region reads it.
bool IsQuantization(const HloInstruction* hlo) {
  return hlo->opcode() == HloOpcode::kConvert && IsFloat(hlo->operand(0)) &&
         !IsFloat(hlo) && ToResultType(hlo->shape().element_type()).has_value();
}

bool IsRowMajor(const Shape& shape) {
  return shape.IsArray() && shape.is_static() &&
         (!shape.has_layout() ||
          (xla::LayoutUtil::IsMonotonicWithDim0Major(shape.layout()) &&
           shape.layout().tiles().empty() &&
           shape.layout().memory_space() == 0));
}

// -1 for what is no array.
int64_t Elements(const HloInstruction* hlo) {
  return hlo->shape().IsArray() ? ShapeUtil::ElementsIn(hlo->shape()) : -1;
}

// A reshape that keeps the order of the elements, spelled either way.
bool IsReshape(const HloInstruction* hlo) {
  return (hlo->opcode() == HloOpcode::kReshape ||
          hlo->opcode() == HloOpcode::kBitcast) &&
         hlo->shape().element_type() ==
             hlo->operand(0)->shape().element_type() &&
         IsRowMajor(hlo->shape()) && IsRowMajor(hlo->operand(0)->shape());
}

// A conversion that loses nothing.
bool IsWideningConvert(const HloInstruction* hlo) {
  return hlo->opcode() == HloOpcode::kConvert && IsFloat(hlo) &&
         IsFloat(hlo->operand(0)) &&
         (hlo->shape().element_type() == xla::F32 ||
          hlo->shape().element_type() ==
              hlo->operand(0)->shape().element_type());
}

// How a broadcast repeats its operand.
enum class Spread {
  kNone,    // otherwise
  kShape,   // not at all: it only adds dimensions of size one
  kRows,    // each element, as a scalar is
  kColumn,  // the whole of it
};

Spread ClassifyBroadcast(const HloInstruction* hlo) {
  if (hlo->opcode() != HloOpcode::kBroadcast || !IsRowMajor(hlo->shape()) ||
      !IsRowMajor(hlo->operand(0)->shape()) ||
      !absl::c_is_sorted(hlo->dimensions())) {
    return Spread::kNone;
  }
  // Look at dimensions larger than one, from the slowest to the fastest: either
  // all mapped ones come first (rows) or all of them come last (column).
  bool seen_mapped = false, seen_new = false, rows = true, column = true;
  const int64_t rank = hlo->shape().dimensions().size();
  for (int64_t i = 0; i < rank; ++i) {
    if (hlo->shape().dimensions(i) == 1) continue;
    if (absl::c_linear_search(hlo->dimensions(), i)) {
      seen_mapped = true;
      rows &= !seen_new;
    } else {
      seen_new = true;
      column &= !seen_mapped;
    }
  }
  if (!seen_new) return Spread::kShape;
  if (rows) return Spread::kRows;
  return column ? Spread::kColumn : Spread::kNone;
}

// Changes neither values nor their order.
bool IsExact(const HloInstruction* hlo) {
  return IsReshape(hlo) || IsWideningConvert(hlo) ||
         ClassifyBroadcast(hlo) == Spread::kShape;
}

HloInstruction* StripExact(HloInstruction* hlo) {
  while (IsExact(hlo)) hlo = hlo->mutable_operand(0);
  return hlo;
}

// The value of a constant all of whose elements are equal.
std::optional<float> ConstantValue(const HloInstruction* hlo) {
  while (IsReshape(hlo) || IsWideningConvert(hlo) ||
         hlo->opcode() == HloOpcode::kBroadcast) {
    hlo = hlo->operand(0);
  }
  if (hlo->opcode() != HloOpcode::kConstant || !hlo->shape().IsArray() ||
      !IsFloat(hlo) || Elements(hlo) == 0 || !hlo->literal().IsAllFirst()) {
    return std::nullopt;
  }
  const std::vector<int64_t> first(hlo->shape().dimensions().size(), 0);
  const std::optional<double> value = hlo->literal().GetAsDouble(first);
  if (!value.has_value()) return std::nullopt;
  return static_cast<float>(*value);
}

// The number of elements that go into one result, if a reduce takes neighbours.
std::optional<int64_t> ReducedRow(const HloInstruction* reduce) {
  const Shape& shape = reduce->operand(0)->shape();
  bool seen_reduced = false;
  int64_t row = 1;
  const int64_t rank = shape.dimensions().size();
  for (int64_t i = 0; i < rank; ++i) {
    if (shape.dimensions(i) == 1) continue;
    if (absl::c_linear_search(reduce->dimensions(), i)) {
      seen_reduced = true;
      row *= shape.dimensions(i);
    } else if (seen_reduced) {
      return std::nullopt;
    }
  }
  if (row < 2) return std::nullopt;
  return row;
}

// What has to be sent: the operand, or what it only widens. A reshape is kept,
// it would be of no use to undo it.
HloInstruction* InputOf(HloInstruction* all_reduce, int64_t operand,
                        const MayAbsorb& may_absorb) {
  HloInstruction* input = all_reduce->mutable_operand(operand);
  while (IsWideningConvert(input) && may_absorb(input)) {
    input = input->mutable_operand(0);
  }
  return input;
}

// Whether a quantized value is only converted back. XLA then makes a GEMM of
// quantized operands, or drops both conversions.
bool IsConvertedBack(const HloInstruction* quantized) {
  return !quantized->IsRoot() &&
         absl::c_all_of(quantized->users(), [](const HloInstruction* user) {
           return user->opcode() == HloOpcode::kConvert
                      ? IsFloat(user)
                      : IsReshape(user) && IsConvertedBack(user);
         });
}

// ---------------------------------------------------------------------------
// Operations

std::optional<Op> FloatOperation(HloOpcode opcode) {
  switch (opcode) {
    case HloOpcode::kAbs:
      return Op::kAbs;
    case HloOpcode::kAdd:
      return Op::kAdd;
    case HloOpcode::kAtan2:
      return Op::kAtan2;
    case HloOpcode::kCbrt:
      return Op::kCbrt;
    case HloOpcode::kCeil:
      return Op::kCeil;
    case HloOpcode::kClamp:
      return Op::kClamp;
    case HloOpcode::kCos:
      return Op::kCos;
    case HloOpcode::kDivide:
      return Op::kDivide;
    case HloOpcode::kErf:
      return Op::kErf;
    case HloOpcode::kExp:
      return Op::kExp;
    case HloOpcode::kExpm1:
      return Op::kExpm1;
    case HloOpcode::kFloor:
      return Op::kFloor;
    case HloOpcode::kLog:
      return Op::kLog;
    case HloOpcode::kLog1p:
      return Op::kLog1p;
    case HloOpcode::kLogistic:
      return Op::kLogistic;
    case HloOpcode::kMaximum:
      return Op::kMaximum;
    case HloOpcode::kMinimum:
      return Op::kMinimum;
    case HloOpcode::kMultiply:
      return Op::kMultiply;
    case HloOpcode::kNegate:
      return Op::kNegate;
    case HloOpcode::kPower:
      return Op::kPower;
    case HloOpcode::kRemainder:
      return Op::kRemainder;
    case HloOpcode::kRoundNearestAfz:
      return Op::kRoundNearestAfz;
    case HloOpcode::kRoundNearestEven:
      return Op::kRoundNearestEven;
    case HloOpcode::kRsqrt:
      return Op::kRsqrt;
    case HloOpcode::kSelect:
      return Op::kSelect;
    case HloOpcode::kSign:
      return Op::kSign;
    case HloOpcode::kSin:
      return Op::kSin;
    case HloOpcode::kSqrt:
      return Op::kSqrt;
    case HloOpcode::kSubtract:
      return Op::kSubtract;
    case HloOpcode::kTan:
      return Op::kTan;
    case HloOpcode::kTanh:
      return Op::kTanh;
    default:
      return std::nullopt;
  }
}

std::optional<Op> PredicateOperation(const HloInstruction* hlo) {
  switch (hlo->opcode()) {
    case HloOpcode::kAnd:
      return Op::kAnd;
    case HloOpcode::kIsFinite:
      return Op::kIsFinite;
    case HloOpcode::kNot:
      return Op::kNot;
    case HloOpcode::kOr:
      return Op::kOr;
    case HloOpcode::kXor:
      return Op::kXor;
    case HloOpcode::kCompare:
      break;
    default:
      return std::nullopt;
  }
  const auto* compare = xla::Cast<xla::HloCompareInstruction>(hlo);
  // The total order tells zeros and NaNs apart.
  if (compare->order() != xla::ComparisonOrder::kPartial) return std::nullopt;
  switch (compare->direction()) {
    case xla::ComparisonDirection::kEq:
      return Op::kEq;
    case xla::ComparisonDirection::kNe:
      return Op::kNe;
    case xla::ComparisonDirection::kGe:
      return Op::kGe;
    case xla::ComparisonDirection::kGt:
      return Op::kGt;
    case xla::ComparisonDirection::kLe:
      return Op::kLe;
    case xla::ComparisonDirection::kLt:
      return Op::kLt;
  }
  return std::nullopt;
}

// What an operation does to elements, apart from its operands; nothing for what
// a program cannot spell. Type conversions and reductions are not among them.
std::optional<Op> ElementwiseOperation(const HloInstruction* hlo) {
  if (IsFloat(hlo)) return FloatOperation(hlo->opcode());
  if (IsPredicate(hlo)) return PredicateOperation(hlo);
  return std::nullopt;
}

// A sum in float32, or a maximum or minimum, that starts from its neutral
// element.
std::optional<Op> ReductionOperation(const HloInstruction* hlo) {
  if (hlo->opcode() != HloOpcode::kReduce || hlo->operand_count() != 2 ||
      !IsFloat(hlo)) {
    return std::nullopt;
  }
  const std::optional<float> init = ConstantValue(hlo->operand(1));
  const auto kind = ReductionKindOf(hlo);
  if (!init.has_value() || !kind.has_value()) return std::nullopt;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  switch (*kind) {
    case xla::ReductionKind::SUM:
      // In other types, where to round is up to XLA.
      if (*init == 0.0f && hlo->shape().element_type() == xla::F32) {
        return Op::kReduceSum;
      }
      return std::nullopt;
    case xla::ReductionKind::MAX:
      if (*init == -kInfinity) return Op::kReduceMax;
      return std::nullopt;
    case xla::ReductionKind::MIN:
      if (*init == kInfinity) return Op::kReduceMin;
      return std::nullopt;
    default:
      return std::nullopt;
  }
}

// ---------------------------------------------------------------------------
// The region

// Everything that depends on `source`: an operand of the custom-call must not.
InstructionSet Dependents(HloInstruction* source) {
  InstructionSet dependents = {source};
  std::vector<HloInstruction*> stack = {source};
  while (!stack.empty()) {
    const HloInstruction* top = stack.back();
    stack.pop_back();
    const auto visit = [&](HloInstruction* next) {
      if (dependents.insert(next).second) stack.push_back(next);
    };
    absl::c_for_each(top->users(), visit);
    absl::c_for_each(top->control_successors(), visit);
  }
  return dependents;
}

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

// A tensor that the custom-call reads, besides what is sent.
struct Leaf {
  HloInstruction* tensor;
  Extent extent;
  int64_t slices = 0;  // 0: all of it
  SliceIndex index = 0;

  bool operator<(const Leaf& other) const {
    const auto key = [](const Leaf& leaf) {
      return std::make_tuple(leaf.tensor->unique_id(), leaf.extent, leaf.slices,
                             leaf.index);
    };
    return key(*this) < key(other);
  }
};

struct Producer;

// An operand of an absorbed instruction.
using Source =
    std::variant<HloInstruction*, float, Leaf, std::shared_ptr<const Producer>>;

// An operation on values that do not depend on the all-reduce, like the one of
// `1 + gain`. It is small, so that whoever else reads it may compute it, too.
struct Producer {
  const HloInstruction* hlo;
  Op op;
  DType round;
  std::vector<Source> sources;
  Extent extent;
};

// An absorbed instruction: what it does, or that it only stands for the value
// of another one.
struct Node {
  HloInstruction* hlo;
  bool is_alias = false;  // of its only source
  Op op = Op::kSum;
  DType round = DType::kF32;
  std::vector<Source> sources;
  Extent extent = Extent::kElement;  // of the value
};

class Region {
 public:
  // `with_producers`: whether what makes small operands is taken in.
  Region(HloInstruction* sum, HloInstruction* input,
         const MayAbsorb& may_absorb, bool with_producers)
      : sum_(sum),
        input_(input),
        may_absorb_(may_absorb),
        with_producers_(with_producers),
        dependents_(Dependents(sum)),
        elements_(Elements(sum)) {
    for (HloInstruction* hlo : sum->parent()->MakeInstructionPostOrder()) {
      if (hlo != sum && dependents_.contains(hlo)) {
        followers_.push_back(hlo);
      }
    }
    hidden_ = FindRowLength();
    Grow();
    Trim();
  }

  EpilogueMatch ToMatch() const;

  // How many instructions it has, and whether a limit left some out.
  size_t size() const { return order_.size(); }
  bool is_limited() const { return is_limited_; }

 private:
  int64_t rows() const { return elements_ / hidden_; }

  bool Contains(const HloInstruction* hlo) const {
    return nodes_.contains(hlo);
  }

  int64_t FindRowLength() const;
  void Grow();
  std::optional<Node> Absorb(HloInstruction* hlo, std::string* why) const;
  std::optional<Source> Resolve(HloInstruction* operand, int64_t elements,
                                std::string* why) const;
  std::optional<std::pair<HloInstruction*, Extent>> Unspread(
      HloInstruction* operand, int64_t elements) const;
  std::optional<Source> ResolveOutside(HloInstruction* operand,
                                       int64_t elements) const;
  std::optional<Source> Produce(HloInstruction* hlo, Extent extent,
                                int* budget) const;
  std::optional<Leaf> LeafOf(HloInstruction* inner, Extent extent) const;
  bool Understands(const HloInstruction* operand) const;
  Extent ExtentOf(const Source& source) const;

  bool IsEdge(const HloInstruction* hlo) const;
  bool IsReadOutside(const HloInstruction* hlo,
                     const HloInstruction* apart = nullptr) const;
  bool IsResult(const HloInstruction* hlo) const;
  bool IsLegal() const;
  bool IsFreeOutside(const HloInstruction* hlo) const;
  void Trim();
  void GiveBack(int64_t i, std::string why);
  EpilogueProgram Emit(EpilogueMatch* match) const;

  HloInstruction* const sum_;
  HloInstruction* const input_;
  const MayAbsorb& may_absorb_;
  const bool with_producers_;
  const InstructionSet dependents_;
  const int64_t elements_;
  bool is_limited_ = false;
  int64_t hidden_ = 1;
  std::vector<HloInstruction*> followers_;  // operands before users
  absl::flat_hash_map<const HloInstruction*, Node> nodes_;
  std::vector<HloInstruction*> order_;  // of the nodes, operands before users
  absl::flat_hash_map<const HloInstruction*, std::string> reasons_;
};

// Looks ahead, through whatever could be taken in if the rows were known.
int64_t Region::FindRowLength() const {
  InstructionSet seen = {sum_};
  std::optional<int64_t> vector_length, repeats;
  for (const HloInstruction* hlo : followers_) {
    if (!absl::c_any_of(hlo->operands(), [&](const HloInstruction* operand) {
          return seen.contains(operand);
        })) {
      continue;
    }
    if (ReductionOperation(hlo).has_value()) {
      const std::optional<int64_t> row = ReducedRow(hlo);
      if (row.has_value() && elements_ % *row == 0) return *row;
      continue;
    }
    if (Elements(hlo) != elements_ ||
        !(ElementwiseOperation(hlo).has_value() || IsReshape(hlo) ||
          hlo->opcode() == HloOpcode::kConvert)) {
      continue;
    }
    seen.insert(hlo);
    for (HloInstruction* operand : hlo->operands()) {
      if (dependents_.contains(operand)) continue;
      const HloInstruction* inner = StripExact(operand);
      const Spread spread = ClassifyBroadcast(inner);
      if (spread == Spread::kColumn && !vector_length.has_value()) {
        vector_length = Elements(inner->operand(0));
      } else if (spread == Spread::kRows && !repeats.has_value() &&
                 Elements(inner->operand(0)) > 1) {
        repeats = elements_ / Elements(inner->operand(0));
      }
    }
  }
  return vector_length.value_or(repeats.value_or(elements_));
}

// A tensor outside of the region, as the operand of an instruction with that
// many elements: what of it has to be read, and how it spreads.
std::optional<std::pair<HloInstruction*, Extent>> Region::Unspread(
    HloInstruction* operand, int64_t elements) const {
  HloInstruction* inner = StripExact(operand);
  const Spread spread = ClassifyBroadcast(inner);
  if (spread == Spread::kRows || spread == Spread::kColumn) {
    HloInstruction* repeated = StripExact(inner->mutable_operand(0));
    const int64_t count = Elements(repeated);
    if (spread == Spread::kRows && count == 1) {
      return std::make_pair(repeated, Extent::kScalar);
    }
    if (spread == Spread::kRows && elements == elements_ && count == rows()) {
      return std::make_pair(repeated, Extent::kRow);
    }
    if (spread == Spread::kColumn && elements == elements_ &&
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

std::optional<Leaf> Region::LeafOf(HloInstruction* inner, Extent extent) const {
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

// A small value outside of the region: a constant, an operation on such values,
// or a tensor to read. `budget` is how many operations there may be.
std::optional<Source> Region::Produce(HloInstruction* hlo, Extent extent,
                                      int* budget) const {
  if (const std::optional<float> constant = ConstantValue(hlo)) {
    return *constant;
  }
  std::optional<Op> op;
  if (IsFloat(hlo) && hlo->opcode() == HloOpcode::kConvert &&
      IsFloat(hlo->operand(0))) {
    op = Op::kConvert;
  } else if (IsFloat(hlo)) {
    op = ElementwiseOperation(hlo);
  }
  const bool is_taken =
      op.has_value() && *budget > 0 && may_absorb_(hlo) &&
      !hlo->HasControlDependencies() && IsRowMajor(hlo->shape()) &&
      static_cast<int>(hlo->operand_count()) == Arity(*op) &&
      (extent != Extent::kColumn || IsCheapPerElement(*op)) &&
      absl::c_all_of(hlo->operands(), [&](const HloInstruction* operand) {
        return IsFloat(operand) && Understands(operand);
      });
  if (is_taken) {
    --*budget;
    const int64_t elements = Elements(hlo);
    auto producer = std::make_shared<Producer>();
    *producer = {hlo, *op, *ToDType(hlo->shape().element_type()), {}, extent};
    for (HloInstruction* operand : hlo->mutable_operands()) {
      HloInstruction* inner = StripExact(operand);
      Extent of_operand = extent;
      if (ClassifyBroadcast(inner) == Spread::kRows &&
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
  if (std::optional<Leaf> leaf = LeafOf(hlo, extent)) return *std::move(leaf);
  return std::nullopt;
}

std::optional<Source> Region::ResolveOutside(HloInstruction* operand,
                                             int64_t elements) const {
  const auto unspread = Unspread(operand, elements);
  if (!unspread.has_value()) return std::nullopt;
  const auto [inner, extent] = *unspread;
  // What makes a value a row is mostly a reduction, which has the rest for
  // nothing; and large tensors take longer to make than a kernel to start.
  if (with_producers_ &&
      (extent == Extent::kColumn || extent == Extent::kScalar)) {
    // Enough for `(1 + gain) * scale` with all its conversions.
    int budget = 6;
    return Produce(inner, extent, &budget);
  }
  if (std::optional<Leaf> leaf = LeafOf(inner, extent)) return *std::move(leaf);
  return std::nullopt;
}

// Whether everything that Unspread and ConstantValue look at is understood.
bool Region::Understands(const HloInstruction* operand) const {
  while (true) {
    if (!may_absorb_(operand)) return false;
    if (!IsExact(operand) && operand->opcode() != HloOpcode::kBroadcast) break;
    operand = operand->operand(0);
  }
  return true;
}

std::optional<Source> Region::Resolve(HloInstruction* operand, int64_t elements,
                                      std::string* why) const {
  const auto found = nodes_.find(operand);
  if (found != nodes_.end()) {
    if (!IsFloat(operand) && !IsPredicate(operand)) {
      *why = absl::StrCat("operand ", operand->name(), " is a result only");
      return std::nullopt;
    }
    if (Elements(operand) == elements) return operand;
    *why = absl::StrCat("operand ", operand->name(), " has another size");
    return std::nullopt;
  }
  if (dependents_.contains(operand)) {
    *why = absl::StrCat("operand ", operand->name(),
                        " depends on the all-reduce and was not taken in");
    return std::nullopt;
  }
  if (!Understands(operand)) {
    *why = absl::StrCat("operand ", operand->name(),
                        " has proto fields that this build does not know");
    return std::nullopt;
  }
  if (const std::optional<float> constant = ConstantValue(operand)) {
    return *constant;
  }
  if (std::optional<Source> source = ResolveOutside(operand, elements)) {
    return source;
  }
  *why = absl::StrCat("operand ", operand->name(), " of shape ",
                      ShapeUtil::HumanString(operand->shape()),
                      " can't be read by rows of ", hidden_);
  return std::nullopt;
}

Extent Region::ExtentOf(const Source& source) const {
  if (const auto* hlo = std::get_if<HloInstruction*>(&source)) {
    return nodes_.at(*hlo).extent;
  }
  if (const auto* leaf = std::get_if<Leaf>(&source)) return leaf->extent;
  if (const auto* made =
          std::get_if<std::shared_ptr<const Producer>>(&source)) {
    return (*made)->extent;
  }
  return Extent::kScalar;
}

// How `hlo`, one of whose operands is a node, becomes a node.
std::optional<Node> Region::Absorb(HloInstruction* hlo,
                                   std::string* why) const {
  if (!may_absorb_(hlo)) {
    *why = "has proto fields that this build does not know";
    return std::nullopt;
  }
  if (hlo->HasControlDependencies()) {
    *why = "has control dependencies";
    return std::nullopt;
  }
  if (!hlo->shape().IsArray()) {
    *why = absl::StrCat(xla::HloOpcodeString(hlo->opcode()),
                        " is not among the operations of an epilogue");
    return std::nullopt;
  }
  if (!IsRowMajor(hlo->shape())) {
    *why = "is dynamic or not row-major";
    return std::nullopt;
  }
  Node node{hlo};
  if (IsFloat(hlo)) node.round = *ToDType(hlo->shape().element_type());
  const int64_t elements = Elements(hlo);

  if (IsExact(hlo)) {
    node.is_alias = true;
    node.sources = {hlo->mutable_operand(0)};
    node.extent = nodes_.at(hlo->operand(0)).extent;
    return node;
  }
  if (hlo->opcode() == HloOpcode::kBroadcast) {
    const HloInstruction* operand = hlo->operand(0);
    if (ClassifyBroadcast(hlo) != Spread::kRows || elements != elements_ ||
        Elements(operand) != rows() ||
        nodes_.at(operand).extent != Extent::kRow) {
      *why = "does not repeat one value a row along that row";
      return std::nullopt;
    }
    node.is_alias = true;
    node.sources = {hlo->mutable_operand(0)};
    node.extent = Extent::kRow;
    return node;
  }
  if (hlo->opcode() == HloOpcode::kReduce) {
    const std::optional<Op> op = ReductionOperation(hlo);
    if (!op.has_value() || !Understands(hlo->operand(1)) ||
        !absl::c_all_of(hlo->to_apply()->instructions(), may_absorb_)) {
      *why = "is no float32 sum, no maximum or minimum, or starts elsewhere";
      return std::nullopt;
    }
    if (ReducedRow(hlo) != hidden_ || elements != rows() ||
        !Contains(hlo->operand(0)) ||
        nodes_.at(hlo->operand(0)).extent != Extent::kElement) {
      *why = absl::StrCat("does not reduce rows of ", hidden_);
      return std::nullopt;
    }
    const int64_t width = ByteWidth(*ToDType(input_->shape().element_type()));
    if (hidden_ * width > kMaxRowBytes) {
      *why =
          absl::StrCat("a row of ", hidden_ * width,
                       " bytes is too long to reduce; at most ", kMaxRowBytes);
      return std::nullopt;
    }
    node.op = *op;
    node.sources = {hlo->mutable_operand(0)};
    node.extent = Extent::kRow;
    return node;
  }

  if (IsQuantization(hlo)) {
    node.sources = {hlo->mutable_operand(0)};
    node.extent = nodes_.at(hlo->operand(0)).extent;
    return node;
  }
  if (hlo->opcode() == HloOpcode::kConvert && IsFloat(hlo) &&
      (IsFloat(hlo->operand(0)) || IsPredicate(hlo->operand(0)))) {
    node.op = Op::kConvert;
  } else if (hlo->opcode() == HloOpcode::kReducePrecision &&
             hlo->shape().element_type() == xla::F32 &&
             hlo->exponent_bits() == 8 && hlo->mantissa_bits() == 7) {
    node.op = Op::kConvert;
    node.round = DType::kBf16;
  } else if (const std::optional<Op> op = ElementwiseOperation(hlo)) {
    node.op = *op;
  } else {
    *why = absl::StrCat(xla::HloOpcodeString(hlo->opcode()), " of ",
                        xla::PrimitiveType_Name(hlo->shape().element_type()),
                        " is not among the operations of an epilogue");
    return std::nullopt;
  }
  if (elements != elements_ && elements != rows()) {
    *why = "has another number of elements";
    return std::nullopt;
  }
  if (static_cast<int>(hlo->operand_count()) != Arity(node.op)) {
    *why = "has another number of operands";
    return std::nullopt;
  }
  node.extent = Extent::kScalar;
  for (HloInstruction* operand : hlo->mutable_operands()) {
    // The bounds of a clamp are the one kind of operand that may be smaller.
    const bool is_bound =
        node.op == Op::kClamp && ShapeUtil::IsScalar(operand->shape());
    std::optional<Source> source =
        Resolve(operand, is_bound ? 1 : elements, why);
    if (!source.has_value()) return std::nullopt;
    node.extent = node.extent | ExtentOf(*source);
    node.sources.push_back(*std::move(source));
  }
  return node;
}

void Region::Grow() {
  Node sum{sum_};
  sum.round = *ToDType(sum_->shape().element_type());
  nodes_.emplace(sum_, std::move(sum));
  order_.push_back(sum_);
  // Far beyond what a program holds, so that a tail without an end is not given
  // back one by one.
  constexpr size_t kMost = 4 * kMaxInstructions;
  for (HloInstruction* hlo : followers_) {
    if (order_.size() == kMost) break;
    if (!absl::c_any_of(hlo->operands(), [&](const HloInstruction* operand) {
          return Contains(operand);
        })) {
      continue;
    }
    std::string why;
    std::optional<Node> node = Absorb(hlo, &why);
    if (!node.has_value()) {
      reasons_[hlo] = std::move(why);
      continue;
    }
    nodes_.emplace(hlo, *std::move(node));
    order_.push_back(hlo);
  }
}

// Whether nothing in the region reads it.
bool Region::IsEdge(const HloInstruction* hlo) const {
  return !absl::c_any_of(
      hlo->users(), [&](const HloInstruction* user) { return Contains(user); });
}

// Whether something outside of the region, and other than `apart`, reads the
// value, be it through an alias: that then stays in the module and reads the
// result in turn.
bool Region::IsReadOutside(const HloInstruction* hlo,
                           const HloInstruction* apart) const {
  return hlo->IsRoot() ||
         absl::c_any_of(hlo->users(), [&](const HloInstruction* user) {
           const auto node = nodes_.find(user);
           return user != apart &&
                  (node == nodes_.end() ||
                   (node->second.is_alias && IsReadOutside(user, apart)));
         });
}

bool Region::IsResult(const HloInstruction* hlo) const {
  return !nodes_.at(hlo).is_alias && IsReadOutside(hlo);
}

// Whether the region is a program that can be run and whose results are what
// the instructions outside want to read.
bool Region::IsLegal() const {
  for (const HloInstruction* hlo : order_) {
    if (!IsResult(hlo)) continue;
    const Extent extent = nodes_.at(hlo).extent;
    const int64_t elements = extent == Extent::kElement ? elements_
                             : extent == Extent::kRow   ? rows()
                                                        : 0;
    if (IsPredicate(hlo) || Elements(hlo) != elements) return false;
  }
  EpilogueMatch match;
  return Validate(Emit(&match)).empty();
}

// Whether XLA computes it for nothing, as part of whatever reads it, from
// values that are results all the same.
bool Region::IsFreeOutside(const HloInstruction* hlo) const {
  if (hlo->IsRoot() || IsReduction(nodes_.at(hlo).op)) return false;
  for (const HloInstruction* user : hlo->users()) {
    if (!ElementwiseOperation(user).has_value() &&
        user->opcode() != HloOpcode::kConvert &&
        user->opcode() != HloOpcode::kReduce &&
        user->opcode() != HloOpcode::kTranspose &&
        user->opcode() != HloOpcode::kSlice) {
      return false;
    }
  }
  return absl::c_all_of(nodes_.at(hlo).sources, [&](const Source& source) {
    const auto* operand = std::get_if<HloInstruction*>(&source);
    return operand == nullptr || IsReadOutside(*operand, /*apart=*/hlo);
  });
}

void Region::Trim() {
  // Users come after operands: one walk back is enough to drop what has no
  // reader in the region and is no good result.
  for (int64_t i = order_.size() - 1; i > 0; --i) {
    if (!IsEdge(order_[i])) continue;
    if (nodes_.at(order_[i]).is_alias || IsPredicate(order_[i]) ||
        !IsResult(order_[i])) {
      GiveBack(i, "");
    } else if (IsQuantization(order_[i]) && IsConvertedBack(order_[i])) {
      GiveBack(i, "is only converted back, which is XLA's to undo or to use");
    } else if (IsFreeOutside(order_[i])) {
      GiveBack(i, "XLA fuses it into what reads it");
    }
  }
  while (order_.size() > 1 && !IsLegal()) {
    is_limited_ = true;
    GiveBack(order_.size() - 1, "the epilogue would exceed a limit with it");
  }
}

void Region::GiveBack(int64_t i, std::string why) {
  if (!why.empty()) reasons_[order_[i]] = std::move(why);
  nodes_.erase(order_[i]);
  order_.erase(order_.begin() + i);
}

EpilogueProgram Region::Emit(EpilogueMatch* match) const {
  EpilogueProgram program;
  program.x = *ToDType(input_->shape().element_type());
  absl::flat_hash_map<const HloInstruction*, int> values;
  std::map<uint32_t, int> constants;
  std::map<Leaf, int> leaves;
  std::map<SliceIndex, int> indices;

  const auto append = [&](Instruction instruction) {
    program.instructions.push_back(instruction);
    return static_cast<int>(program.instructions.size()) - 1;
  };
  const auto constant_of = [&](float constant) {
    const auto [place, is_new] = constants.try_emplace(Bits(constant), 0);
    if (is_new) {
      Instruction instruction;
      instruction.op = Op::kConstant;
      instruction.constant = constant;
      place->second = append(instruction);
    }
    return place->second;
  };
  absl::flat_hash_map<const HloInstruction*, int> produced;
  const std::function<int(const Source&)> value_of = [&](const Source& source) {
    if (const auto* made =
            std::get_if<std::shared_ptr<const Producer>>(&source)) {
      const Producer& producer = **made;
      const auto known = produced.find(producer.hlo);
      if (known != produced.end()) return known->second;
      Instruction instruction;
      instruction.op = producer.op;
      instruction.round = producer.round;
      for (size_t i = 0; i < producer.sources.size(); ++i) {
        instruction.inputs[i] = value_of(producer.sources[i]);
      }
      return produced[producer.hlo] = append(instruction);
    }
    if (const auto* hlo = std::get_if<HloInstruction*>(&source)) {
      return values.at(*hlo);
    }
    if (const auto* constant = std::get_if<float>(&source)) {
      return constant_of(*constant);
    }
    const Leaf& leaf = std::get<Leaf>(source);
    const auto [place, is_new] = leaves.try_emplace(leaf, 0);
    if (is_new) {
      Operand operand;
      operand.extent = leaf.extent;
      operand.dtype =
          ToDType(leaf.tensor->shape().element_type()).value_or(DType::kBf16);
      if (leaf.slices > 0) {
        const auto [index, first] =
            indices.try_emplace(leaf.index, program.indices);
        if (first) {
          ++program.indices;
          match->indices.push_back(leaf.index);
        }
        operand.slices = leaf.slices;
        operand.index = index->second;
      }
      Instruction instruction;
      instruction.op = Op::kOperand;
      instruction.operand = static_cast<int>(program.operands.size());
      program.operands.push_back(operand);
      match->operands.push_back(leaf.tensor);
      place->second = append(instruction);
      if (IsPredicate(leaf.tensor)) {
        Instruction is_true;
        is_true.op = Op::kNe;
        is_true.inputs[0] = place->second;
        is_true.inputs[1] = constant_of(0.0f);
        place->second = append(is_true);
      }
    }
    return place->second;
  };

  for (HloInstruction* hlo : order_) {
    const Node& node = nodes_.at(hlo);
    if (node.is_alias || IsQuantization(hlo)) {
      values[hlo] = values.at(std::get<HloInstruction*>(node.sources[0]));
      continue;
    }
    Instruction instruction;
    instruction.op = node.op;
    instruction.round = node.round;
    for (size_t i = 0; i < node.sources.size(); ++i) {
      instruction.inputs[i] = value_of(node.sources[i]);
    }
    values[hlo] = append(instruction);
  }
  for (HloInstruction* hlo : order_) {
    if (!IsResult(hlo)) continue;
    program.results.push_back(
        {values.at(hlo),
         ToResultType(hlo->shape().element_type()).value_or(DType::kF32)});
    match->results.push_back(hlo);
  }
  return program;
}

EpilogueMatch Region::ToMatch() const {
  EpilogueMatch match;
  match.input = input_;
  match.program = Emit(&match);
  match.rows = rows();
  match.hidden = hidden_;
  InstructionSet seen;
  for (const HloInstruction* hlo : order_) {
    for (const HloInstruction* user : hlo->users()) {
      if (Contains(user) || !seen.insert(user).second) continue;
      const auto reason = reasons_.find(user);
      if (reason != reasons_.end())
        match.stops.push_back({user, reason->second});
    }
  }
  return match;
}

// ---------------------------------------------------------------------------

std::optional<std::string> WhyNotSum(const HloInstruction* sum,
                                     const HloInstruction* operand) {
  if (!IsFloat(sum)) {
    return absl::StrCat("element type ",
                        xla::PrimitiveType_Name(sum->shape().element_type()),
                        " is not F32, BF16 or F16");
  }
  if (!IsRowMajor(sum->shape()) || !IsRowMajor(operand->shape())) {
    return "shape is dynamic or not row-major";
  }
  if (Elements(sum) == 0) return "is empty";
  if (sum->HasControlDependencies()) return "has control dependencies";
  return std::nullopt;
}

std::optional<std::string> WhyNotAllReduce(
    const xla::HloAllReduceInstruction* hlo) {
  if (ReductionKindOf(hlo) != xla::ReductionKind::SUM) {
    return "reduction is not a sum";
  }
  if (hlo->constrain_layout()) return "layout is constrained by the client";
  if (hlo->HasControlDependencies()) return "has control dependencies";
  for (const auto& [key, unused] : hlo->frontend_attributes().map()) {
    if (key != "is_spmd_generated") {
      return absl::StrCat("has frontend attribute ", key);
    }
  }
  return std::nullopt;
}

}  // namespace

std::variant<std::vector<HloInstruction*>, Decline> SumsOf(
    HloInstruction* all_reduce, const MayAbsorb& may_absorb) {
  if (std::optional<std::string> why = WhyNotAllReduce(
          xla::Cast<xla::HloAllReduceInstruction>(all_reduce))) {
    return Decline{*std::move(why)};
  }
  const int64_t operands = all_reduce->operand_count();
  std::vector<HloInstruction*> sums;
  if (all_reduce->opcode() == HloOpcode::kAllReduceStart) {
    // What runs between the two would be delayed; that is only worth while
    // where it is next to nothing, as with messages that fit the workspace.
    if (operands != 1 || all_reduce->user_count() != 1 ||
        all_reduce->users()[0]->opcode() != HloOpcode::kAllReduceDone) {
      return Decline{"is asynchronous, with several operands or readers"};
    }
    sums = {all_reduce->users()[0]};
  } else if (all_reduce->shape().IsArray()) {
    sums = {all_reduce};
  } else {
    sums.resize(operands, nullptr);
    for (HloInstruction* user : all_reduce->users()) {
      if (user->opcode() != HloOpcode::kGetTupleElement ||
          sums[user->tuple_index()] != nullptr) {
        return Decline{"has several operands, and is not read one by one"};
      }
      sums[user->tuple_index()] = user;
    }
    if (all_reduce->IsRoot() || absl::c_linear_search(sums, nullptr)) {
      return Decline{"has several operands, and is not read one by one"};
    }
  }
  for (int64_t i = 0; i < operands; ++i) {
    if (std::optional<std::string> why =
            WhyNotSum(sums[i], all_reduce->operand(i))) {
      return Decline{*std::move(why)};
    }
    if (!may_absorb(sums[i])) return Decline{"has unknown proto fields"};
  }
  if (!may_absorb(all_reduce) ||
      !absl::c_all_of(all_reduce->to_apply()->instructions(), may_absorb)) {
    return Decline{"has unknown proto fields"};
  }
  return sums;
}

EpilogueMatch MatchEpilogue(HloInstruction* all_reduce, HloInstruction* sum,
                            int64_t operand, const MayAbsorb& may_absorb) {
  HloInstruction* input = InputOf(all_reduce, operand, may_absorb);
  const Region with(sum, input, may_absorb, /*with_producers=*/true);
  EpilogueMatch match = with.ToMatch();
  if (with.is_limited()) {
    // What makes the operands must not push out what reads the sum.
    const Region without(sum, input, may_absorb, /*with_producers=*/false);
    if (without.size() > with.size()) match = without.ToMatch();
  }
  match.all_reduce = all_reduce;
  match.sum = sum;
  return match;
}

}  // namespace oneshot
