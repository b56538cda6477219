// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/epilogue_match.h"

#include <cmath>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "xla/layout_util.h"
#include "xla/literal.h"
#include "xla/service/collective_ops_utils.h"
#include "xla/service/pattern_matcher.h"
#include "xla/shape_util.h"

namespace oneshot {
namespace {

namespace m = ::xla::match;
using ::xla::HloInstruction;
using ::xla::HloOpcode;
using ::xla::Match;
using ::xla::PrimitiveType;
using ::xla::Shape;
using ::xla::ShapeUtil;
using InstructionSet = absl::flat_hash_set<const HloInstruction*>;

// ---------------------------------------------------------------------------
// Types and shapes. A value is looked at as rows * hidden elements in row-major
// order, so reshapes and bitcasts change nothing and rank does not matter.

bool IsWireType(PrimitiveType type) {
  return type == xla::F32 || type == xla::BF16 || type == xla::F16;
}

// Every value of `from` is a value of `to`.
bool Widens(PrimitiveType from, PrimitiveType to) {
  return from == to || (IsWireType(from) && to == xla::F32);
}

bool IsRowMajor(const Shape& shape) {
  return shape.IsArray() && shape.is_static() &&
         (!shape.has_layout() ||
          (xla::LayoutUtil::IsMonotonicWithDim0Major(shape.layout()) &&
           shape.layout().tiles().empty() &&
           shape.layout().memory_space() == 0));
}

// A reshape that keeps the order of the elements, spelled either way.
bool IsReshape(const HloInstruction* hlo) {
  return (hlo->opcode() == HloOpcode::kReshape ||
          hlo->opcode() == HloOpcode::kBitcast) &&
         hlo->shape().element_type() ==
             hlo->operand(0)->shape().element_type() &&
         IsRowMajor(hlo->shape()) && IsRowMajor(hlo->operand(0)->shape());
}

bool IsWideningConvert(const HloInstruction* hlo) {
  return hlo->opcode() == HloOpcode::kConvert &&
         Widens(hlo->operand(0)->shape().element_type(),
                hlo->shape().element_type());
}

// How a broadcast lays its operand out over rows of `hidden` elements.
enum class Spread {
  kNone,    // not a broadcast along rows or columns
  kShape,   // only adds dimensions of size one
  kRows,    // one value a row, repeated along the row
  kColumn,  // one row, repeated
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
  // A scalar is both; as rows it is the value of a single row.
  if (rows) return Spread::kRows;
  return column ? Spread::kColumn : Spread::kNone;
}

int64_t Elements(const HloInstruction* hlo) {
  return ShapeUtil::ElementsIn(hlo->shape());
}

// Steps back over instructions that neither change values nor their order:
// reshapes and converts that lose nothing. Notes them in `passed`.
HloInstruction* StripExact(HloInstruction* hlo, InstructionSet* passed) {
  while (IsReshape(hlo) || IsWideningConvert(hlo) ||
         ClassifyBroadcast(hlo) == Spread::kShape) {
    if (passed != nullptr) passed->insert(hlo);
    hlo = hlo->mutable_operand(0);
  }
  return hlo;
}

// Steps back over converts that lose nothing, but keeps reshapes: operands of
// the custom-call keep the shape they have.
HloInstruction* StripWidening(HloInstruction* hlo) {
  while (IsWideningConvert(hlo)) hlo = hlo->mutable_operand(0);
  return hlo;
}

// The vector of `hidden` elements that `hlo` repeats over all rows, or null.
// hidden == 0: any length.
HloInstruction* ColumnVector(HloInstruction* hlo, int64_t hidden) {
  HloInstruction* inner = StripExact(hlo, nullptr);
  const int64_t total = Elements(hlo);
  if (ClassifyBroadcast(inner) == Spread::kColumn) {
    inner = StripExact(inner->mutable_operand(0), nullptr);
  } else if (hidden != total) {
    return nullptr;
  }
  const int64_t length = Elements(inner);
  if (length < 2 || total % length != 0) return nullptr;
  if (hidden != 0 && length != hidden) return nullptr;
  if (!IsWireType(inner->shape().element_type()) ||
      !IsRowMajor(inner->shape())) {
    return nullptr;
  }
  return inner;
}

// The value of a constant all of whose elements are equal.
std::optional<float> ConstantValue(const HloInstruction* hlo) {
  while (IsReshape(hlo) || IsWideningConvert(hlo) ||
         hlo->opcode() == HloOpcode::kBroadcast) {
    hlo = hlo->operand(0);
  }
  if (hlo->opcode() != HloOpcode::kConstant || !hlo->shape().IsArray() ||
      !IsWireType(hlo->shape().element_type()) || Elements(hlo) == 0 ||
      !hlo->literal().IsAllFirst()) {
    return std::nullopt;
  }
  const std::vector<int64_t> first(hlo->shape().dimensions().size(), 0);
  const std::optional<double> value = hlo->literal().GetAsDouble(first);
  if (!value.has_value()) return std::nullopt;
  return static_cast<float>(*value);
}

// Pattern of a constant all of whose elements are equal.
auto Constant(HloInstruction** constant) {
  return m::Op(constant).WithPredicate(
      [](const HloInstruction* hlo) { return ConstantValue(hlo).has_value(); });
}

// ---------------------------------------------------------------------------
// RMSNorm

struct NormMatch {
  RmsNorm norm;
  int64_t hidden;
  HloInstruction* output;
  // What depends on the normalised value, up to and with `output`.
  InstructionSet absorbed;
};

// Sum over the fastest dimensions: how many elements go into one result.
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

// Matches `product` = x * rsqrt(sum(x*x) * c + epsilon), all in f32, where x is
// `value` or `value` widened.
std::optional<NormMatch> MatchNormalised(HloInstruction* product,
                                         HloInstruction* value) {
  NormMatch match;
  InstructionSet& absorbed = match.absorbed;
  const auto is_value = [&](const HloInstruction* hlo) {
    return StripExact(const_cast<HloInstruction*>(hlo), nullptr) == value;
  };
  const auto is_f32 = [](const HloInstruction* hlo) {
    return hlo->shape().element_type() == xla::F32;
  };
  // One step of the pattern: what stands behind the reshapes of `hlo`.
  const auto behind = [&](HloInstruction* hlo) {
    HloInstruction* inner = StripExact(hlo, &absorbed);
    absorbed.insert(inner);
    return inner;
  };

  HloInstruction *x, *spread;
  if (!Match(product, m::MultiplyAnyOrder(m::Op(&x).WithPredicate(is_value),
                                          m::Op(&spread).WithPredicate(
                                              std::not_fn(is_value)))) ||
      !is_f32(product)) {
    return std::nullopt;
  }
  absorbed.insert(product);
  StripExact(x, &absorbed);

  HloInstruction* broadcast = behind(spread);
  if (ClassifyBroadcast(broadcast) != Spread::kRows) return std::nullopt;
  HloInstruction* rsqrt = behind(broadcast->mutable_operand(0));
  HloInstruction *mean, *epsilon;
  if (!is_f32(rsqrt) ||
      !Match(rsqrt, m::Rsqrt(m::Op(&mean).WithPredicate(is_f32)))) {
    return std::nullopt;
  }
  HloInstruction* shifted = behind(mean);
  if (!Match(shifted, m::AddAnyOrder(m::Op(&mean), Constant(&epsilon)))) {
    return std::nullopt;
  }
  match.norm.epsilon = *ConstantValue(epsilon);

  HloInstruction *sum, *count;
  HloInstruction* scaled = behind(mean);
  if (Match(scaled, m::MultiplyAnyOrder(m::Op(&sum), Constant(&count)))) {
    match.norm.mean_scale = *ConstantValue(count);
  } else if (Match(scaled, m::Divide(m::Op(&sum), Constant(&count)))) {
    match.norm.mean_scale = 1.0f / *ConstantValue(count);
  } else {
    return std::nullopt;
  }
  if (!std::isfinite(match.norm.mean_scale) ||
      !std::isfinite(match.norm.epsilon)) {
    return std::nullopt;
  }

  HloInstruction* reduce = behind(sum);
  HloInstruction *square, *init, *lhs, *rhs;
  if (!is_f32(reduce) ||
      !Match(reduce, m::Reduce(m::Op(&square), Constant(&init))) ||
      *ConstantValue(init) != 0.0f ||
      xla::MatchReductionComputation(reduce->to_apply()) !=
          xla::ReductionKind::SUM) {
    return std::nullopt;
  }
  const std::optional<int64_t> row = ReducedRow(reduce);
  square = behind(square);
  if (!row.has_value() || !is_f32(square) ||
      !Match(square, m::Multiply(m::Op(&lhs).WithPredicate(is_value),
                                 m::Op(&rhs).WithPredicate(is_value)))) {
    return std::nullopt;
  }
  StripExact(lhs, &absorbed);
  StripExact(rhs, &absorbed);

  match.hidden = *row;
  // The statistics of a row are to come back to that same row.
  if (Elements(square) != Elements(value) ||
      Elements(rsqrt) * match.hidden != Elements(value)) {
    return std::nullopt;
  }
  match.output = product;
  return match;
}

// The only user of `hlo`, or null when it has several or leaves the
// computation.
HloInstruction* OnlyUser(const HloInstruction* hlo) {
  return hlo->user_count() == 1 && !hlo->IsRoot() ? hlo->users().front()
                                                  : nullptr;
}

// The operand of a binary `user` that is not `hlo`; null for hlo (op) hlo.
HloInstruction* OtherOperand(HloInstruction* user, const HloInstruction* hlo) {
  if (user->operand(0) == user->operand(1)) return nullptr;
  return user->mutable_operand(user->operand(0) == hlo ? 1 : 0);
}

bool DependsOn(const HloInstruction* hlo, const HloInstruction* source) {
  std::vector<const HloInstruction*> stack = {hlo};
  InstructionSet seen(stack.begin(), stack.end());
  while (!stack.empty()) {
    const HloInstruction* top = stack.back();
    stack.pop_back();
    if (top == source) return true;
    const auto visit = [&](const HloInstruction* next) {
      if (seen.insert(next).second) stack.push_back(next);
    };
    absl::c_for_each(top->operands(), visit);
    absl::c_for_each(top->control_predecessors(), visit);
  }
  return false;
}

// Extends a normalised product by the gain and the converts around it.
void ExtendByGain(NormMatch& match, const HloInstruction* value) {
  PrimitiveType round = xla::F32;
  HloInstruction* last = match.output;
  std::vector<HloInstruction*> pending;
  while (HloInstruction* user = OnlyUser(last)) {
    pending.push_back(user);
    const PrimitiveType type = user->shape().element_type();
    bool useful = false;
    if (user->opcode() == HloOpcode::kConvert) {
      if (!IsWireType(type) || !IsRowMajor(user->shape())) return;
      const bool narrows = !IsWideningConvert(user);
      if (narrows && match.norm.gain == nullptr) {
        if (round != xla::F32) return;  // rounded twice
        round = type;
      }
      // The last narrowing is the output's own type. Rounding once more after
      // the gain is the same thing; twice is not.
      useful = narrows;
      if (narrows && match.norm.gain != nullptr &&
          last->shape().element_type() != xla::F32) {
        return;
      }
    } else if (user->opcode() == HloOpcode::kMultiply &&
               match.norm.gain == nullptr && IsWireType(type)) {
      HloInstruction* other = OtherOperand(user, last);
      if (other == nullptr) return;
      HloInstruction* gain = ColumnVector(other, match.hidden);
      // A multiply in a narrow type rounds its result to that type, which the
      // output's type then says; its operands are exact in f32.
      if (gain == nullptr || DependsOn(gain, value)) return;
      match.norm.gain = gain;
      match.norm.round = round;
      useful = true;
    } else if (!IsReshape(user)) {
      return;
    }
    last = user;
    if (useful) {
      match.absorbed.insert(pending.begin(), pending.end());
      pending.clear();
      match.output = user;
    }
  }
}

// Finds an RMSNorm of `value` among the instructions that follow it.
std::optional<NormMatch> MatchRmsNorm(HloInstruction* value) {
  // The norm's last multiply is at most this far from the value.
  constexpr size_t kMaxVisited = 64;
  std::vector<HloInstruction*> queue = {value};
  InstructionSet seen(queue.begin(), queue.end());
  for (size_t i = 0; i < queue.size() && queue.size() < kMaxVisited; ++i) {
    for (HloInstruction* user : queue[i]->users()) {
      switch (user->opcode()) {
        case HloOpcode::kMultiply:
          if (std::optional<NormMatch> match = MatchNormalised(user, value)) {
            ExtendByGain(*match, value);
            return match;
          }
          [[fallthrough]];
        case HloOpcode::kAdd:
        case HloOpcode::kBitcast:
        case HloOpcode::kBroadcast:
        case HloOpcode::kConvert:
        case HloOpcode::kDivide:
        case HloOpcode::kReduce:
        case HloOpcode::kReshape:
        case HloOpcode::kRsqrt:
          if (seen.insert(user).second) queue.push_back(user);
          break;
        default:
          break;
      }
    }
  }
  return std::nullopt;
}

// ---------------------------------------------------------------------------
// The all-reduce and what is added to it

std::optional<std::string> WhyNotAllReduce(
    const xla::HloAllReduceInstruction* hlo) {
  if (hlo->operand_count() != 1 || !hlo->shape().IsArray()) {
    return "has several operands";
  }
  const PrimitiveType type = hlo->shape().element_type();
  if (!IsWireType(type)) {
    return absl::StrCat("element type ", xla::PrimitiveType_Name(type),
                        " is not F32, BF16 or F16");
  }
  if (xla::MatchReductionComputation(hlo->to_apply()) !=
      xla::ReductionKind::SUM) {
    return "reduction is not a sum";
  }
  if (hlo->constrain_layout()) return "layout is constrained by the client";
  if (!IsRowMajor(hlo->shape()) || !IsRowMajor(hlo->operand(0)->shape())) {
    return "shape is dynamic or not row-major";
  }
  if (Elements(hlo) == 0) return "is empty";
  if (hlo->HasControlDependencies()) return "has control dependencies";
  for (const auto& [key, unused] : hlo->frontend_attributes().map()) {
    if (key != "is_spmd_generated") {
      return absl::StrCat("has frontend attribute ", key);
    }
  }
  return std::nullopt;
}

// The part of the epilogue that is matched so far, up to `value`.
struct Chain {
  HloInstruction* value;
  PrimitiveType sum_round;
  std::vector<Addend> addends;
  int64_t hidden = 0;

  // What the value was last rounded to.
  PrimitiveType& round() {
    return addends.empty() ? sum_round : addends.back().round;
  }
};

// Extends `chain` by the only user of `value`, if it belongs to the epilogue.
// Returns the new last value, or null.
HloInstruction* ExtendChain(Chain& chain, HloInstruction* value) {
  HloInstruction* user = OnlyUser(value);
  if (user == nullptr || !user->shape().IsArray() ||
      !IsRowMajor(user->shape()) || user->HasControlDependencies()) {
    return nullptr;
  }
  const PrimitiveType type = user->shape().element_type();
  if (IsReshape(user)) return user;
  if (user->opcode() == HloOpcode::kConvert) {
    if (IsWideningConvert(user)) return user;
    if (!IsWireType(type) || chain.round() != xla::F32) return nullptr;
    chain.round() = type;
    return user;
  }
  HloInstruction* other;
  if (user->opcode() != HloOpcode::kAdd || chain.addends.size() == 2 ||
      !IsWireType(type) || (other = OtherOperand(user, value)) == nullptr) {
    return nullptr;
  }
  // The value has this add as its only user, so `other` can't depend on it.
  const auto has = [&](Addend::Kind kind) {
    return absl::c_any_of(chain.addends,
                          [&](const Addend& a) { return a.kind == kind; });
  };
  // Operands are read in the type they have before they were widened.
  if (HloInstruction* bias = ColumnVector(other, chain.hidden);
      bias != nullptr && !has(Addend::Kind::kBias) &&
      Elements(bias) != Elements(value)) {
    chain.hidden = Elements(bias);
    chain.addends.push_back({Addend::Kind::kBias, bias, type});
    return user;
  }
  HloInstruction* residual = StripWidening(other);
  if (!has(Addend::Kind::kResidual) &&
      IsWireType(residual->shape().element_type()) &&
      IsRowMajor(residual->shape()) && Elements(residual) == Elements(value)) {
    chain.addends.push_back({Addend::Kind::kResidual, residual, type});
    return user;
  }
  return nullptr;
}

// The instruction through which the rest of the module reads the sum, once the
// norm is gone; null when nothing does.
HloInstruction* SumOutput(HloInstruction* value, const NormMatch& norm) {
  std::vector<HloInstruction*> readers;
  bool leaves = false;
  const auto collect = [&](const HloInstruction* hlo) {
    if (hlo == norm.output) return;
    leaves |= hlo->IsRoot();
    for (HloInstruction* user : hlo->users()) {
      if (!norm.absorbed.contains(user)) readers.push_back(user);
    }
  };
  collect(value);
  // Somebody may read an intermediate value of the norm: it stays, and is then
  // computed from the sum.
  absl::c_for_each(norm.absorbed, collect);
  if (readers.empty() && !leaves) return nullptr;
  // A sum that is only read in a narrower type is written in that type.
  if (!leaves && readers.size() == 1 &&
      readers[0]->opcode() == HloOpcode::kConvert &&
      readers[0]->operand(0) == value && !IsWideningConvert(readers[0]) &&
      IsWireType(readers[0]->shape().element_type()) &&
      IsRowMajor(readers[0]->shape())) {
    return readers[0];
  }
  return value;
}

}  // namespace

std::string EpilogueMatch::EpilogueName() const {
  std::vector<std::string> parts;
  for (const Addend& addend : addends) {
    parts.push_back(addend.kind == Addend::Kind::kBias ? "bias" : "residual");
  }
  if (norm.has_value()) parts.push_back("rms_norm");
  return parts.empty() ? "none" : absl::StrJoin(parts, "+");
}

std::variant<EpilogueMatch, Decline> MatchEpilogue(
    xla::HloAllReduceInstruction* all_reduce, const MayAbsorb& may_absorb) {
  if (std::optional<std::string> why = WhyNotAllReduce(all_reduce)) {
    return Decline{*std::move(why)};
  }
  if (!may_absorb(all_reduce)) return Decline{"has unknown proto fields"};

  // Walk down the only users. `chain` is kept only where stopping is worth it:
  // what merely widens or reshapes is cheaper to leave to the consumer.
  Chain chain{all_reduce, all_reduce->shape().element_type(), {}, 0};
  Chain kept = chain;
  std::optional<NormMatch> norm;
  for (HloInstruction* value = all_reduce; value != nullptr;
       value = ExtendChain(chain, value)) {
    if (!may_absorb(value)) break;
    if (IsReshape(value) || IsWideningConvert(value)) continue;
    chain.value = value;
    kept = chain;
    norm = MatchRmsNorm(value);
    if (norm.has_value()) break;
  }
  if (norm.has_value() &&
      ((chain.hidden != 0 && chain.hidden != norm->hidden) ||
       !absl::c_all_of(norm->absorbed, [&](const HloInstruction* hlo) {
         return may_absorb(hlo) && !hlo->HasControlDependencies();
       }))) {
    norm.reset();
  }

  EpilogueMatch match;
  match.all_reduce = all_reduce;
  match.input = StripWidening(all_reduce->mutable_operand(0));
  match.sum_round = kept.sum_round;
  match.addends = std::move(kept.addends);
  match.hidden = kept.hidden != 0 ? kept.hidden : Elements(all_reduce);
  match.sum_output = kept.value;
  if (norm.has_value()) {
    match.norm = norm->norm;
    match.norm_output = norm->output;
    match.hidden = norm->hidden;
    match.sum_output = SumOutput(kept.value, *norm);
  }
  return match;
}

}  // namespace oneshot
