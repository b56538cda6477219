// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/transpose_sinking.h"

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_map.h"
#include "absl/types/span.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla/layout_util.h"
#include "xla/shape_util.h"

namespace oneshot {
namespace {

using ::xla::HloComputation;
using ::xla::HloInstruction;
using ::xla::HloOpcode;
using ::xla::Shape;
using ::xla::ShapeUtil;

// What a transpose does to channels that are the last dimension, or the first.
enum class Turn { kFirst, kLast };

bool Turns(const HloInstruction* hlo, Turn turn) {
  if (hlo->opcode() != HloOpcode::kTranspose) return false;
  const int64_t rank = hlo->shape().dimensions().size();
  if (rank < 2) return false;
  for (int64_t i = 0; i < rank; ++i) {
    const int64_t by = turn == Turn::kFirst ? rank - 1 : 1;
    if (hlo->dimensions(i) != (i + by) % rank) return false;
  }
  return true;
}

bool HasDefaultLayout(const HloInstruction* hlo) {
  return xla::LayoutUtil::IsMonotonicWithDim0Major(hlo->shape().layout());
}

// One computation.
class Sinking {
 public:
  Sinking(HloComputation* computation, bool layouts,
          const MayAbsorb& may_absorb)
      : computation_(computation), layouts_(layouts), may_absorb_(may_absorb) {}

  absl::StatusOr<bool> Run() {
    std::vector<HloInstruction*> back;
    for (HloInstruction* hlo : computation_->MakeInstructionPostOrder()) {
      if (!hlo->shape().IsArray() || !may_absorb_(hlo) ||
          hlo->HasControlDependencies()) {
        continue;
      }
      if (PutsBack(hlo)) {  // first: of two dimensions a turn is either
        back.push_back(hlo);
      } else if (HloInstruction* rows = RowsOf(hlo)) {
        rows_[hlo] = rows;
      } else if (HloInstruction* sunk = Sink(hlo)) {
        rows_[hlo] = sunk;
        sunk_.push_back(hlo);
      }
    }
    for (HloInstruction* hlo : back) {
      TF_RETURN_IF_ERROR(Replace(hlo, Reshape(hlo, rows_[Inner(hlo)])));
    }
    // Readers that want the channels first. The last goes first: mostly it was
    // the only reader of the one before.
    for (auto it = sunk_.rbegin(); it != sunk_.rend(); ++it) {
      if (IsRead(*it) && (!layouts_ || HasDefaultLayout(*it))) {
        TF_RETURN_IF_ERROR(Replace(*it, PutFirst(*it, rows_[*it])));
      }
    }
    for (auto it = sunk_.rbegin(); it != sunk_.rend(); ++it) {
      if (IsHere(rows_[*it]) && !IsRead(rows_[*it])) {
        TF_RETURN_IF_ERROR(
            computation_->RemoveInstructionAndUnusedOperands(rows_[*it]));
      }
    }
    return !sunk_.empty();
  }

 private:
  // The same elements as `hlo`, which only has them in another order: the
  // channels last. Null if that is not so.
  HloInstruction* RowsOf(HloInstruction* hlo) const {
    switch (hlo->opcode()) {
      case HloOpcode::kTranspose:
        return Turns(hlo, Turn::kFirst) && HasDefaultLayout(hlo->operand(0))
                   ? hlo->mutable_operand(0)
                   : nullptr;
      case HloOpcode::kBitcast:
        // That may be anything, unless both sides lie row by row.
        if (!HasDefaultLayout(hlo) || !HasDefaultLayout(hlo->operand(0))) {
          return nullptr;
        }
        [[fallthrough]];
      case HloOpcode::kCopy:
      case HloOpcode::kReshape: {
        const auto inner = rows_.find(hlo->operand(0));
        const auto dimensions = hlo->shape().dimensions();
        // The channels stay a dimension of their own, and rows in their order.
        return inner != rows_.end() && !dimensions.empty() &&
                       dimensions[0] == hlo->operand(0)->shape().dimensions(0)
                   ? inner->second
                   : nullptr;
      }
      default:
        return nullptr;
    }
  }

  // An operation on channels that come first, done where they are last. Null
  // if it isn't one.
  HloInstruction* Sink(HloInstruction* hlo) {
    if (!hlo->IsElementwise() || hlo->HasSideEffect() ||
        hlo->shape().dimensions().empty()) {
      return nullptr;
    }
    const HloInstruction* model = nullptr;  // of the operands: has the shape
    bool anchored = false;                  // else it is none of our business
    for (const HloInstruction* operand : hlo->operands()) {
      if (!ShapeUtil::SameDimensions(operand->shape(), hlo->shape())) {
        return nullptr;
      }
      const auto rows = rows_.find(operand);
      if (rows != rows_.end()) {
        model = rows->second;
        anchored |= IsSunk(operand);
      } else if (ChannelOf(operand)) {
        anchored |= !operand->dimensions().empty();
      } else {
        return nullptr;
      }
    }
    if (model == nullptr || !anchored) return nullptr;
    const Shape shape = xla::ShapeUtil::MakeShape(hlo->shape().element_type(),
                                                  model->shape().dimensions());
    std::vector<HloInstruction*> operands;
    for (HloInstruction* operand : hlo->operands()) {
      const Shape like = xla::ShapeUtil::MakeShape(
          operand->shape().element_type(), shape.dimensions());
      const auto rows = rows_.find(operand);
      if (rows == rows_.end()) {
        std::vector<int64_t> last;
        if (!operand->dimensions().empty()) {
          last.push_back(shape.dimensions().size() - 1);
        }
        operands.push_back(
            computation_->AddInstruction(HloInstruction::CreateBroadcast(
                like, operand->mutable_operand(0), last)));
      } else if (ShapeUtil::SameDimensions(rows->second->shape(), like)) {
        operands.push_back(rows->second);
      } else {
        operands.push_back(computation_->AddInstruction(
            HloInstruction::CreateReshape(like, rows->second)));
      }
    }
    return computation_->AddInstruction(
        hlo->CloneWithNewOperands(shape, operands));
  }

  // A value by channel, or one for all, spread over channels that come first.
  bool ChannelOf(const HloInstruction* hlo) const {
    if (hlo->opcode() != HloOpcode::kBroadcast || !may_absorb_(hlo)) {
      return false;
    }
    const absl::Span<const int64_t> to = hlo->dimensions();
    return to.empty() || (to.size() == 1 && to[0] == 0);
  }

  // Whether the rows of a value are the work of this pass.
  bool IsSunk(const HloInstruction* hlo) const {
    const auto rows = rows_.find(hlo);
    return rows != rows_.end() &&
           absl::c_any_of(sunk_, [&](const HloInstruction* sunk) {
             return rows_.at(sunk) == rows->second;
           });
  }

  // What a value is without copies of it that only change the layout.
  HloInstruction* Inner(HloInstruction* hlo) const {
    if (hlo->opcode() == HloOpcode::kCopy) hlo = hlo->mutable_operand(0);
    return hlo->mutable_operand(0);
  }

  // Whether a value puts the channels back behind the rows.
  bool PutsBack(HloInstruction* hlo) const {
    const HloInstruction* transpose =
        layouts_ && hlo->opcode() == HloOpcode::kCopy ? hlo->operand(0) : hlo;
    return Turns(transpose, Turn::kLast) && may_absorb_(transpose) &&
           IsSunk(transpose->operand(0)) &&
           (!layouts_ || HasDefaultLayout(hlo));
  }

  HloInstruction* Reshape(const HloInstruction* hlo, HloInstruction* rows) {
    return computation_->AddInstruction(HloInstruction::CreateReshape(
        xla::ShapeUtil::MakeShape(hlo->shape().element_type(),
                                  hlo->shape().dimensions()),
        rows));
  }

  HloInstruction* PutFirst(const HloInstruction* hlo, HloInstruction* rows) {
    const auto dimensions = rows->shape().dimensions();
    const int64_t rank = dimensions.size();
    std::vector<int64_t> order = {rank - 1};
    std::vector<int64_t> turned = {dimensions[rank - 1]};
    for (int64_t i = 0; i + 1 < rank; ++i) {
      order.push_back(i);
      turned.push_back(dimensions[i]);
    }
    HloInstruction* transpose =
        computation_->AddInstruction(HloInstruction::CreateTranspose(
            xla::ShapeUtil::MakeShape(hlo->shape().element_type(), turned),
            rows, order));
    return Reshape(hlo, transpose);
  }

  absl::Status Replace(HloInstruction* hlo, HloInstruction* replacement) {
    TF_RETURN_IF_ERROR(hlo->ReplaceAllUsesWith(replacement));
    return computation_->RemoveInstructionAndUnusedOperands(hlo);
  }

  bool IsHere(const HloInstruction* hlo) const {
    return absl::c_linear_search(computation_->instructions(), hlo);
  }

  bool IsRead(const HloInstruction* hlo) const {
    return IsHere(hlo) && (hlo->user_count() > 0 || hlo->IsRoot());
  }

  HloComputation* const computation_;
  const bool layouts_;
  const MayAbsorb& may_absorb_;
  // By an instruction with the channels first: the one with the channels last.
  absl::flat_hash_map<const HloInstruction*, HloInstruction*> rows_;
  std::vector<HloInstruction*> sunk_;  // elementwise, in post-order
};

}  // namespace

absl::StatusOr<bool> TransposeSinking::RunImpl(
    xla::HloModule* module,
    const absl::flat_hash_set<absl::string_view>& execution_threads) {
  bool changed = false;
  for (HloComputation* computation : module->computations(execution_threads)) {
    if (absl::c_none_of(computation->instructions(), [](const auto* hlo) {
          return hlo->opcode() == HloOpcode::kAllReduce ||
                 hlo->opcode() == HloOpcode::kAllReduceStart;
        })) {
      continue;
    }
    TF_ASSIGN_OR_RETURN(const bool here,
                        Sinking(computation, layouts_, may_absorb_).Run());
    changed |= here;
  }
  if (changed && module->has_schedule()) {
    TF_RETURN_IF_ERROR(module->schedule().Update(execution_threads));
  }
  return changed;
}

}  // namespace oneshot
