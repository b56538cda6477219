// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/region.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "cuda/program/call_contract.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/shape_util.h"
#include "xla/xla_data.pb.h"
#include "xla_plugin/match/hlo_operations.h"

namespace oneshot {
namespace {

using ::xla::HloInstruction;
using ::xla::HloOpcode;
using ::xla::ShapeUtil;
using InstructionSet = absl::flat_hash_set<const HloInstruction*>;

// Far beyond what a program holds.
constexpr size_t kMostNodes = 4 * kMaxInstructions;

}  // namespace

Region::Region(HloInstruction* sum, DType x, const InstructionOrder& order,
               const MayAbsorb& may_absorb)
    : sum_(sum),
      x_(x),
      may_absorb_(may_absorb),
      instructions_(order),
      dependents_(sum, order),
      elements_(Elements(sum)) {
  hidden_ = FindRowLength();
  Grow();
  TrimEdge();
  TrimToLimits();
}

const Node* Region::Find(const HloInstruction* hlo) const {
  const auto place = places_.find(hlo);
  const bool is_in = place != places_.end() && place->second.index < size_;
  return is_in ? &place->second.node : nullptr;
}

void Region::Add(Node node) {
  HloInstruction* hlo = node.hlo;
  places_.emplace(hlo, Place{std::move(node), size_++});
  order_.push_back(hlo);
}

// Looks ahead, through whatever could be taken in if the rows were known.
int64_t Region::FindRowLength() {
  // Some of that will not be nodes.
  constexpr size_t kMostAhead = 4 * kMostNodes;
  std::optional<int64_t> vector_length, repeats;
  Readers readers(instructions_);
  readers.Take(sum_);
  size_t ahead = 0;
  while (HloInstruction* hlo = readers.Next()) {
    dependents_.Insert(hlo);
    if (ReductionOperation(hlo).has_value()) {
      const std::optional<int64_t> row = ReducedRow(hlo);
      if (row.has_value() && elements_ % *row == 0) return *row;
      continue;
    }
    if (Elements(hlo) != elements_ ||
        !(ElementwiseOperation(hlo).has_value() || IsRowMajorReshape(hlo) ||
          hlo->opcode() == HloOpcode::kConvert)) {
      continue;
    }
    if (++ahead == kMostAhead) break;
    readers.Take(hlo);
    for (HloInstruction* operand : hlo->mutable_operands()) {
      const HloInstruction* inner = StripExact(operand);
      const BroadcastKind kind = ClassifyBroadcast(inner);
      if (kind != BroadcastKind::kColumn && kind != BroadcastKind::kRows) {
        continue;
      }
      if (dependents_.Contains(operand)) continue;
      if (kind == BroadcastKind::kColumn && !vector_length.has_value()) {
        vector_length = Elements(inner->operand(0));
      } else if (kind == BroadcastKind::kRows && !repeats.has_value() &&
                 Elements(inner->operand(0)) > 1) {
        repeats = elements_ / Elements(inner->operand(0));
      }
    }
  }
  return vector_length.value_or(repeats.value_or(elements_));
}

std::optional<Source> Region::Resolve(HloInstruction* operand, int64_t elements,
                                      std::string* why) {
  if (Contains(operand)) {
    if (!IsFloat(operand) && !IsPredicate(operand)) {
      *why = absl::StrCat("operand ", operand->name(), " is a result only");
      return std::nullopt;
    }
    if (Elements(operand) == elements) return operand;
    *why = absl::StrCat("operand ", operand->name(), " has another size");
    return std::nullopt;
  }
  if (dependents_.Contains(operand)) {
    *why = absl::StrCat("operand ", operand->name(),
                        " depends on the all-reduce and was not taken in");
    return std::nullopt;
  }
  return Outside().Read(operand, elements, why);
}

Extent Region::ExtentOf(const Source& source) const {
  if (const auto* hlo = std::get_if<HloInstruction*>(&source)) {
    return NodeOf(*hlo).extent;
  }
  if (const auto* leaf = std::get_if<Leaf>(&source)) return leaf->extent;
  if (const auto* made =
          std::get_if<std::shared_ptr<const Producer>>(&source)) {
    return (*made)->extent;
  }
  return Extent::kScalar;
}

// How `hlo`, one of whose operands is a node, becomes a node.
std::optional<Node> Region::Absorb(HloInstruction* hlo, std::string* why) {
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
  if (IsExact(hlo)) {
    node.is_alias = true;
    node.sources = {hlo->mutable_operand(0)};
    node.extent = NodeOf(hlo->operand(0)).extent;
    return node;
  }
  if (hlo->opcode() == HloOpcode::kBroadcast) {
    const HloInstruction* operand = hlo->operand(0);
    if (ClassifyBroadcast(hlo) != BroadcastKind::kRows ||
        Elements(hlo) != elements_ || Elements(operand) != rows() ||
        NodeOf(operand).extent != Extent::kRow) {
      *why = "does not repeat one value a row along that row";
      return std::nullopt;
    }
    node.is_alias = true;
    node.sources = {hlo->mutable_operand(0)};
    node.extent = Extent::kRow;
    return node;
  }
  if (hlo->opcode() == HloOpcode::kReduce) return AbsorbReduction(hlo, why);
  if (IsQuantization(hlo)) {
    node.sources = {hlo->mutable_operand(0)};
    node.extent = NodeOf(hlo->operand(0)).extent;
    return node;
  }
  return AbsorbElementwise(hlo, why);
}

std::optional<Node> Region::AbsorbReduction(HloInstruction* hlo,
                                            std::string* why) const {
  const std::optional<Op> op = ReductionOperation(hlo);
  if (!op.has_value() || !Outside().Understands(hlo->operand(1)) ||
      !absl::c_all_of(hlo->to_apply()->instructions(), may_absorb_)) {
    *why = "is no float32 sum, no maximum or minimum, or starts elsewhere";
    return std::nullopt;
  }
  if (ReducedRow(hlo) != hidden_ || Elements(hlo) != rows() ||
      !Contains(hlo->operand(0)) ||
      NodeOf(hlo->operand(0)).extent != Extent::kElement) {
    *why = absl::StrCat("does not reduce rows of ", hidden_);
    return std::nullopt;
  }
  const int64_t width = ByteWidth(x_);
  if (hidden_ * width > kMaxRowBytes) {
    *why = absl::StrCat("a row of ", hidden_ * width,
                        " bytes is too long to reduce; at most ", kMaxRowBytes);
    return std::nullopt;
  }
  Node node{hlo};
  node.round = *ToDType(hlo->shape().element_type());
  node.op = *op;
  node.sources = {hlo->mutable_operand(0)};
  node.extent = Extent::kRow;
  return node;
}

std::optional<Node> Region::AbsorbElementwise(HloInstruction* hlo,
                                              std::string* why) {
  Node node{hlo};
  if (IsFloat(hlo)) node.round = *ToDType(hlo->shape().element_type());
  const int64_t elements = Elements(hlo);
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
  Add(std::move(sum));
  Readers readers(instructions_);
  readers.Take(sum_);
  while (HloInstruction* hlo = readers.Next()) {
    if (size_ == kMostNodes) break;
    dependents_.Insert(hlo);
    std::string why;
    if (std::optional<Node> node = Absorb(hlo, &why)) {
      Add(*std::move(node));
      readers.Take(hlo);
    } else {
      reasons_[hlo] = std::move(why);
    }
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
           const Node* node = Find(user);
           return user != apart &&
                  (node == nullptr ||
                   (node->is_alias && IsReadOutside(user, apart)));
         });
}

bool Region::IsResult(const HloInstruction* hlo) const {
  return !NodeOf(hlo).is_alias && IsReadOutside(hlo);
}

// Whether XLA computes it for nothing, as part of whatever reads it, from
// values that are results all the same.
bool Region::IsFreeOutside(const HloInstruction* hlo) const {
  if (hlo->IsRoot() || IsReduction(NodeOf(hlo).op)) return false;
  for (const HloInstruction* user : hlo->users()) {
    if (!ElementwiseOperation(user).has_value() &&
        user->opcode() != HloOpcode::kConvert &&
        user->opcode() != HloOpcode::kReduce &&
        user->opcode() != HloOpcode::kTranspose &&
        user->opcode() != HloOpcode::kSlice) {
      return false;
    }
  }
  return absl::c_all_of(NodeOf(hlo).sources, [&](const Source& source) {
    const auto* operand = std::get_if<HloInstruction*>(&source);
    return operand == nullptr || IsReadOutside(*operand, /*apart=*/hlo);
  });
}

// Why an instruction at the edge is better left outside, in words if somebody
// might expect it inside; nothing if it isn't.
std::optional<std::string> Region::WhyGiveBack(
    const HloInstruction* hlo) const {
  if (NodeOf(hlo).is_alias || IsPredicate(hlo) || !IsResult(hlo)) return "";
  if (IsQuantization(hlo) && IsConvertedBack(hlo)) {
    return "is only converted back, which is XLA's to undo or to use";
  }
  if (IsFreeOutside(hlo)) return "XLA fuses it into what reads it";
  return std::nullopt;
}

void Region::TrimEdge() {
  // Users come after operands: one walk back is enough to drop what has no
  // reader in the region and is no good result.
  for (size_t i = size_ - 1; i > 0; --i) {
    const HloInstruction* hlo = order_[i];
    if (!IsEdge(hlo)) continue;
    std::optional<std::string> why = WhyGiveBack(hlo);
    if (!why.has_value()) continue;
    if (!why->empty()) reasons_[hlo] = *std::move(why);
    places_.erase(hlo);
  }
  order_.erase(std::remove_if(order_.begin(), order_.end(),
                              [&](const HloInstruction* hlo) {
                                return !places_.contains(hlo);
                              }),
               order_.end());
  size_ = order_.size();
  for (size_t i = 0; i < size_; ++i) places_.at(order_[i]).index = i;
}

ProgramBuilder Region::Build(size_t size, bool with_producers) const {
  ProgramBuilder builder(x_, with_producers);
  for (size_t i = 0; i < size; ++i) builder.Append(NodeOf(order_[i]));
  for (size_t i = 0; i < size; ++i) {
    if (IsResult(order_[i])) builder.AddResult(order_[i]);
  }
  return builder;
}

// Whether the region is a program that can be run and whose results are what
// the instructions outside want to read.
bool Region::IsLegal(bool with_producers) const {
  for (size_t i = 0; i < size_; ++i) {
    const HloInstruction* hlo = order_[i];
    if (!IsResult(hlo)) continue;
    const Extent extent = NodeOf(hlo).extent;
    const int64_t elements = extent == Extent::kElement ? elements_
                             : extent == Extent::kRow   ? rows()
                                                        : 0;
    if (IsPredicate(hlo) || Elements(hlo) != elements) return false;
  }
  return Validate(Build(size_, with_producers).program()).empty();
}

// How many of the first nodes are the longest legal region; leaves it at that.
size_t Region::LongestLegal(bool with_producers) {
  // What only grows can be seen in one walk.
  ProgramBuilder builder(x_, with_producers);
  for (size_ = 0; size_ < order_.size(); ++size_) {
    builder.Append(NodeOf(order_[size_]));
    if (!builder.Fits()) break;
  }
  // Results come and go with the nodes that read them.
  while (size_ > 1 && !IsLegal(with_producers)) --size_;
  return size_;
}

void Region::TrimToLimits() {
  const size_t with = LongestLegal(/*with_producers=*/true);
  if (with < order_.size()) {
    // What makes the operands must not push out what reads the sum.
    with_producers_ = LongestLegal(/*with_producers=*/false) <= with;
    if (with_producers_) size_ = with;
  }
  for (size_t i = size_; i < order_.size(); ++i) {
    reasons_[order_[i]] = "the epilogue would exceed a limit with it";
  }
}

std::vector<Stop> Region::Stops() const {
  std::vector<Stop> stops;
  InstructionSet seen;
  for (size_t i = 0; i < size_; ++i) {
    for (const HloInstruction* user : order_[i]->users()) {
      if (Contains(user) || !seen.insert(user).second) continue;
      const auto reason = reasons_.find(user);
      if (reason != reasons_.end()) stops.push_back({user, reason->second});
    }
  }
  return stops;
}

}  // namespace oneshot
