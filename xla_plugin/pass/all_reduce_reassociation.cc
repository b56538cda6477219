// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/all_reduce_reassociation.h"

#include <vector>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "xla/hlo/ir/hlo_casting_utils.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/service/collective_ops_utils.h"
#include "xla/shape_util.h"
#include "xla_plugin/match/all_reduce_sums.h"
#include "xla_plugin/match/instruction_order.h"

namespace oneshot {
namespace {

using ::xla::HloAllReduceInstruction;
using ::xla::HloInstruction;
using ::xla::HloOpcode;

bool HasOneReader(const HloInstruction* hlo) {
  return hlo->user_count() == 1 && !hlo->IsRoot();
}

bool IsAdd(const HloInstruction* hlo) {
  return hlo->opcode() == HloOpcode::kAdd && !hlo->HasControlDependencies();
}

// An all-reduce that only an addition reads, and that may be replaced.
HloAllReduceInstruction* AsSum(HloInstruction* hlo,
                               const MayAbsorb& may_absorb) {
  if (hlo->opcode() != HloOpcode::kAllReduce || !HasOneReader(hlo)) {
    return nullptr;
  }
  const auto sums = SumsOf(hlo, may_absorb);
  if (std::get_if<Decline>(&sums) != nullptr || hlo->operand_count() != 1) {
    return nullptr;
  }
  // A narrow value that is only widened is sent as it is; a sum of two is not.
  const HloInstruction* operand = hlo->operand(0);
  if (operand->opcode() == HloOpcode::kConvert) return nullptr;
  return xla::Cast<HloAllReduceInstruction>(hlo);
}

bool SameButForOperand(const HloAllReduceInstruction* a,
                       const HloAllReduceInstruction* b) {
  return xla::ShapeUtil::Equal(a->shape(), b->shape()) &&
         a->device_list().flattened_replica_groups() ==
             b->device_list().flattened_replica_groups() &&
         a->channel_id().has_value() == b->channel_id().has_value() &&
         a->use_global_device_ids() == b->use_global_device_ids();
}

// `source` does not come after `hlo`.
bool DependsOn(const HloInstruction* hlo, const HloInstruction* source,
               const InstructionOrder& order) {
  return Dependents(source, order).Contains(hlo);
}

// The two all-reduces that `add` brings together, and what else is added.
struct Match {
  HloAllReduceInstruction* first = nullptr;
  HloAllReduceInstruction* second = nullptr;
  HloInstruction* rest = nullptr;  // null: nothing
};

bool FindMatch(HloInstruction* add, const MayAbsorb& may_absorb, Match* match) {
  for (const int side : {0, 1}) {
    HloAllReduceInstruction* second =
        AsSum(add->mutable_operand(side), may_absorb);
    HloInstruction* other = add->mutable_operand(1 - side);
    if (second == nullptr || other == second) continue;
    if (HloAllReduceInstruction* first = AsSum(other, may_absorb)) {
      *match = {first, second, nullptr};
      return true;
    }
    if (add->shape().element_type() != xla::F32 || !IsAdd(other) ||
        !HasOneReader(other) || !may_absorb(other)) {
      continue;
    }
    for (const int inner : {0, 1}) {
      if (HloAllReduceInstruction* first =
              AsSum(other->mutable_operand(inner), may_absorb)) {
        *match = {first, second, other->mutable_operand(1 - inner)};
        return true;
      }
    }
  }
  return false;
}

using Removed = absl::flat_hash_set<const HloInstruction*>;

// Returns what has taken the place of `add`, or null.
absl::StatusOr<HloInstruction*> Reassociate(HloInstruction* add,
                                            InstructionOrder& order,
                                            Removed& removed,
                                            const MayAbsorb& may_absorb) {
  Match match;
  if (!IsAdd(add) || !may_absorb(add) || !FindMatch(add, may_absorb, &match) ||
      !SameButForOperand(match.first, match.second) ||
      DependsOn(match.first->operand(0), match.second, order) ||
      DependsOn(match.second->operand(0), match.first, order)) {
    return nullptr;
  }
  xla::HloComputation* computation = add->parent();
  HloInstruction* local =
      computation->AddInstruction(HloInstruction::CreateBinary(
          match.first->operand(0)->shape(), HloOpcode::kAdd,
          match.first->mutable_operand(0), match.second->mutable_operand(0)));
  local->set_metadata(add->metadata());
  HloInstruction* sum = computation->AddInstruction(
      match.first->CloneWithNewOperands(match.first->shape(), {local}));
  HloInstruction* replacement = sum;
  if (match.rest != nullptr) {
    replacement = computation->AddInstruction(HloInstruction::CreateBinary(
        add->shape(), HloOpcode::kAdd, match.rest, sum));
    replacement->set_metadata(add->metadata());
  }
  TF_RETURN_IF_ERROR(add->ReplaceAllUsesWith(replacement));
  // To XLA an all-reduce with a channel may be a side effect, which stays.
  const auto note = [&](HloInstruction* gone) { removed.insert(gone); };
  for (HloInstruction* dead :
       std::vector<HloInstruction*>{add, match.first, match.second}) {
    if (!removed.contains(dead) && dead->user_count() == 0) {
      TF_RETURN_IF_ERROR(computation->RemoveInstructionAndUnusedOperands(
          dead, absl::FunctionRef<void(HloInstruction*)>(note)));
    }
  }
  order.Add(replacement);
  return replacement;
}

absl::StatusOr<bool> ReassociateAll(xla::HloComputation* computation,
                                    const MayAbsorb& may_absorb) {
  const auto instructions = computation->MakeInstructionPostOrder();
  if (absl::c_none_of(instructions, [](const HloInstruction* hlo) {
        return hlo->opcode() == HloOpcode::kAllReduce;
      })) {
    return false;
  }
  InstructionOrder order(computation);
  Removed removed;
  bool changed = false;
  for (HloInstruction* hlo : instructions) {
    // Three sums become two, then one.
    while (hlo != nullptr && !removed.contains(hlo)) {
      TF_ASSIGN_OR_RETURN(hlo, Reassociate(hlo, order, removed, may_absorb));
      changed |= hlo != nullptr;
    }
  }
  return changed;
}

}  // namespace

absl::StatusOr<bool> AllReduceReassociation::RunImpl(
    xla::HloModule* module,
    const absl::flat_hash_set<absl::string_view>& execution_threads) {
  bool changed = false;
  for (xla::HloComputation* computation :
       module->computations(execution_threads)) {
    // Once more, for what was replaced may have had a second reader.
    for (bool again = true; again; changed |= again) {
      TF_ASSIGN_OR_RETURN(again, ReassociateAll(computation, may_absorb_));
    }
  }
  if (changed && module->has_schedule()) {
    TF_RETURN_IF_ERROR(module->schedule().Update(execution_threads));
  }
  return changed;
}

}  // namespace oneshot
