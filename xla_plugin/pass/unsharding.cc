// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/unsharding.h"

#include <algorithm>
#include <optional>

#include "absl/algorithm/container.h"
#include "absl/types/span.h"
#include "xla/hlo/ir/hlo_casting_utils.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/hlo/ir/replica_group.h"
#include "xla/layout_util.h"
#include "xla/literal_util.h"
#include "xla/shape_util.h"
#include "xla_plugin/match/hlo_operations.h"
#include "xla_plugin/match/hlo_values.h"

namespace oneshot {
namespace {

using ::xla::HloComputation;
using ::xla::HloInstruction;
using ::xla::HloOpcode;
using ::xla::Shape;
using ::xla::ShapeUtil;

// Deeper than any norm; expressions are followed recursively.
constexpr int kMaxDepth = 200;

Shape WholeShape(const Shape& shard, int64_t dimension, int64_t ranks) {
  Shape whole = shard;
  whole.set_dimensions(dimension, shard.dimensions(dimension) * ranks);
  return whole;
}

// Whether all dimensions but one are of size one.
bool IsVector(const HloInstruction* hlo, int64_t dimension) {
  return ShapeUtil::ElementsIn(hlo->shape()) ==
         hlo->shape().dimensions(dimension);
}

std::pair<int, int64_t> Key(const Shard& shard) {
  return {shard.first->unique_id(), shard.second};
}

// Stands for a dimension where an operand is the same for all parts.
constexpr int64_t kNotSpread = -1;

// The dimension of an operand that becomes `dimension` of a broadcast, reshape
// or elementwise instruction: with all that is slower and all that is faster.
std::optional<int64_t> OperandDimension(const HloInstruction* hlo,
                                        const HloInstruction* operand,
                                        int64_t dimension) {
  if (hlo->opcode() == HloOpcode::kBroadcast) {
    const absl::Span<const int64_t> dimensions = hlo->dimensions();
    const auto place = absl::c_find(dimensions, dimension);
    if (place == dimensions.end()) return kNotSpread;
    return place - dimensions.begin();
  }
  if (!IsReshape(hlo)) {
    // What is of another shape is a scalar: a bound, or a predicate.
    if (ShapeUtil::SameDimensions(operand->shape(), hlo->shape())) {
      return dimension;
    }
    return kNotSpread;
  }
  const Shape& to = hlo->shape();
  const Shape& from = operand->shape();
  int64_t slower = 1;
  for (int64_t d = 0; d < dimension; ++d) slower *= to.dimensions(d);
  int64_t product = 1;
  for (int64_t d = 0; d < static_cast<int64_t>(from.dimensions().size()); ++d) {
    if (product == slower && from.dimensions(d) == to.dimensions(dimension)) {
      return d;
    }
    product *= from.dimensions(d);
  }
  return std::nullopt;
}

// The same shape in the layout in which the parts of a gather follow each
// other.
Shape SlowestFirst(Shape shape, int64_t dimension) {
  std::vector<int64_t> minor_to_major;
  for (const int64_t d : shape.layout().minor_to_major()) {
    if (d != dimension) minor_to_major.push_back(d);
  }
  minor_to_major.push_back(dimension);
  *shape.mutable_layout() = xla::LayoutUtil::MakeLayout(minor_to_major);
  return shape;
}

}  // namespace

// Whether a value depends on a collective of this computation, or may.
bool Unsharding::WaitsForCollective(const HloInstruction* hlo, int depth) {
  if (depth > kMaxDepth) return true;
  const auto known = waits_.find(hlo);
  if (known != waits_.end()) return known->second;
  bool waits = false;
  switch (hlo->opcode()) {
    case HloOpcode::kConstant:
    case HloOpcode::kIota:
    case HloOpcode::kParameter:
    case HloOpcode::kPartitionId:
      break;
    case HloOpcode::kBitcast:
    case HloOpcode::kBroadcast:
    case HloOpcode::kDynamicSlice:
    case HloOpcode::kGetTupleElement:
    case HloOpcode::kReshape:
    case HloOpcode::kSlice:
    case HloOpcode::kTranspose:
      waits = absl::c_any_of(hlo->operands(), [&](const auto* operand) {
        return WaitsForCollective(operand, depth + 1);
      });
      break;
    default:
      waits = !hlo->IsElementwise() ||
              absl::c_any_of(hlo->operands(), [&](const auto* operand) {
                return WaitsForCollective(operand, depth + 1);
              });
  }
  waits_[hlo] = waits;
  return waits;
}

Unsharding::Plan Unsharding::PlanOf(const Shard& shard, int depth) {
  if (made_.contains(Key(shard))) return {Plan::kKnown, /*has_slice=*/true};
  const auto known = plans_.find(Key(shard));
  if (known != plans_.end()) return known->second;
  const Plan plan = NewPlan(shard, depth);
  plans_[Key(shard)] = plan;
  return plan;
}

Unsharding::Plan Unsharding::NewPlan(const Shard& shard, int depth) {
  const auto [hlo, dimension] = shard;
  if (depth > kMaxDepth || !may_absorb_(hlo) || !hlo->shape().IsArray() ||
      !hlo->shape().is_static() || hlo->HasControlDependencies()) {
    return {};
  }
  if (IsSlice(hlo, dimension)) {
    if (a_slice_ == nullptr) a_slice_ = hlo;
    return {Plan::kSliced, /*has_slice=*/true};
  }
  if (const Plan plan = PlanOfOperands(shard, depth); plan.possible()) {
    return plan;
  }
  if ((IsVector(hlo, dimension) || may_gather_) && !WaitsForCollective(hlo)) {
    return {Plan::kGathered, /*has_slice=*/false};
  }
  return {};
}

Unsharding::Plan Unsharding::PlanOfOperands(const Shard& shard, int depth) {
  const auto [hlo, dimension] = shard;
  if (hlo->opcode() != HloOpcode::kBroadcast && !IsReshape(hlo) &&
      !IsElementwiseFunction(hlo)) {
    return {};
  }
  Plan plan = {Plan::kSpelled, /*has_slice=*/false};
  for (HloInstruction* operand : hlo->mutable_operands()) {
    const std::optional<int64_t> of_operand =
        OperandDimension(hlo, operand, dimension);
    if (!of_operand.has_value()) return {};
    if (*of_operand == kNotSpread) {
      if (!IsReplicated(operand)) return {};
      continue;
    }
    const Plan below = PlanOf({operand, *of_operand}, depth + 1);
    if (!below.possible()) return {};
    plan.has_slice |= below.has_slice;
  }
  return plan;
}

HloInstruction* Unsharding::Make(const Shard& shard) {
  const auto known = made_.find(Key(shard));
  if (known != made_.end()) return known->second;
  const auto [hlo, dimension] = shard;
  HloInstruction* whole = nullptr;
  switch (plans_.at(Key(shard)).kind) {
    case Plan::kSliced:
      whole = hlo->mutable_operand(0);
      break;
    case Plan::kGathered:
      whole = Gather(shard);
      gathered_.insert(whole);
      break;
    default: {
      std::vector<HloInstruction*> operands;
      for (HloInstruction* operand : hlo->mutable_operands()) {
        const int64_t of_operand = *OperandDimension(hlo, operand, dimension);
        operands.push_back(
            of_operand == kNotSpread ? operand : Make({operand, of_operand}));
      }
      whole = computation_->AddInstruction(hlo->CloneWithNewOperands(
          WholeShape(hlo->shape(), dimension, ranks_), operands));
    }
  }
  replication_->MarkReplicated(whole);
  made_[Key(shard)] = whole;
  order_.push_back(shard);
  return whole;
}

HloInstruction* Unsharding::Gather(const Shard& shard) {
  const auto [hlo, dimension] = shard;
  HloInstruction* part = hlo;
  const auto copy_as = [&](HloInstruction* from, const Shape& shape) {
    if (ShapeUtil::Equal(from->shape(), shape)) return from;
    return computation_->AddInstruction(
        HloInstruction::CreateUnary(shape, HloOpcode::kCopy, from));
  };
  if (has_layouts_)
    part = copy_as(part, SlowestFirst(part->shape(), dimension));
  HloInstruction* gather =
      computation_->AddInstruction(HloInstruction::CreateAllGather(
          WholeShape(part->shape(), dimension, ranks_), {part}, dimension,
          xla::CollectiveDeviceList(groups_), /*constrain_layout=*/false,
          (*next_channel_)++,
          /*use_global_device_ids=*/true));
  gather->set_metadata(hlo->metadata());
  return copy_as(gather, WholeShape(hlo->shape(), dimension, ranks_));
}

absl::Status Unsharding::SliceWholesInstead() {
  if (a_slice_ == nullptr) return absl::OkStatus();
  const int64_t sliced = *SlicedDimension(a_slice_);
  HloInstruction* start = a_slice_->mutable_operand(1 + sliced);
  const int64_t size = a_slice_->shape().dimensions(sliced);
  HloInstruction* zero = nullptr;
  for (const Shard& shard : order_) {
    const auto [hlo, dimension] = shard;
    HloInstruction* whole = made_.at(Key(shard));
    if (!IsElementwiseFunction(hlo) || IsVector(hlo, dimension) ||
        hlo->shape().dimensions(dimension) != size || hlo->user_count() == 0 ||
        gathered_.contains(whole)) {
      continue;
    }
    if (zero == nullptr) {
      zero = computation_->AddInstruction(HloInstruction::CreateConstant(
          xla::LiteralUtil::Zero(start->shape().element_type())));
    }
    std::vector<HloInstruction*> starts(hlo->shape().dimensions().size(), zero);
    starts[dimension] = start;
    HloInstruction* slice =
        computation_->AddInstruction(HloInstruction::CreateDynamicSlice(
            hlo->shape(), whole, starts, hlo->shape().dimensions()));
    slice->set_metadata(hlo->metadata());
    TF_RETURN_IF_ERROR(hlo->ReplaceAllUsesWith(slice));
  }
  return absl::OkStatus();
}

}  // namespace oneshot
