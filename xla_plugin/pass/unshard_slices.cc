// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/unshard_slices.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "cuda/program/call_contract.h"
#include "xla/hlo/ir/hlo_casting_utils.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/shape_util.h"
#include "xla_plugin/match/reduction_kind.h"
#include "xla_plugin/match/replication.h"
#include "xla_plugin/pass/unsharding.h"

namespace oneshot {
namespace {

using ::xla::HloComputation;
using ::xla::HloInstruction;
using ::xla::HloOpcode;
using ::xla::Shape;
using ::xla::ShapeUtil;

// Groups as sets: in no order of ranks.
PartitionGroups Unordered(PartitionGroups groups) {
  for (std::vector<int64_t>& group : groups) absl::c_sort(group);
  absl::c_sort(groups);
  return groups;
}

// A collective that may be unnecessary.
struct Root {
  HloInstruction* hlo;
  PartitionGroups groups;
};

bool IsGather(const HloInstruction* hlo) {
  return hlo->opcode() == HloOpcode::kAllGather && hlo->operand_count() == 1 &&
         hlo->shape().IsArray();
}

// Whether a reduction of the whole is the reduction over ranks of those of
// slices: exactly, or in another order of float32 additions. In narrower types
// every rank rounds what it sends.
bool IsOfReductions(const HloInstruction* all_reduce) {
  if (all_reduce->opcode() != HloOpcode::kAllReduce ||
      all_reduce->operand_count() != 1 || !all_reduce->shape().IsArray()) {
    return false;
  }
  const HloInstruction* reduce = all_reduce->operand(0);
  if (reduce->opcode() != HloOpcode::kReduce || reduce->operand_count() != 2 ||
      !ShapeUtil::ElementIsFloating(reduce->shape())) {
    return false;
  }
  const auto kind = ReductionKindOf(all_reduce);
  if (!kind.has_value() || kind != ReductionKindOf(reduce)) return false;
  // A value that every rank starts from counts once for each of them.
  const HloInstruction* init = reduce->operand(1);
  switch (*kind) {
    case xla::ReductionKind::SUM:
      return reduce->shape().element_type() == xla::F32 &&
             init->opcode() == HloOpcode::kConstant &&
             init->literal().IsZero({});
    case xla::ReductionKind::MAX:
    case xla::ReductionKind::MIN:
      return init->opcode() == HloOpcode::kConstant;
    default:
      return false;
  }
}

// Removes what nothing reads.
absl::Status RemoveDead(HloComputation* computation) {
  std::vector<HloInstruction*> order = computation->MakeInstructionPostOrder();
  for (auto hlo = order.rbegin(); hlo != order.rend(); ++hlo) {
    if ((*hlo)->user_count() > 0 || (*hlo)->IsRoot() ||
        (*hlo)->opcode() == HloOpcode::kParameter || (*hlo)->HasSideEffect() ||
        (*hlo)->HasControlDependencies()) {
      continue;
    }
    TF_RETURN_IF_ERROR(computation->RemoveInstruction(*hlo));
  }
  return absl::OkStatus();
}

int64_t NextChannel(const xla::HloModule& module) {
  int64_t next = 1;
  for (const HloComputation* computation : module.computations()) {
    for (const HloInstruction* hlo : computation->instructions()) {
      if (const auto* channel = xla::DynCast<xla::HloChannelInstruction>(hlo)) {
        next = std::max(next, channel->channel_id().value_or(0) + 1);
      }
    }
  }
  return next;
}

class ComputationUnsharding {
 public:
  ComputationUnsharding(
      HloComputation* computation, const MayAbsorb& may_absorb,
      bool has_layouts,
      std::map<PartitionGroups, std::unique_ptr<ReplicationAnalysis>>* proofs,
      int64_t* next_channel)
      : computation_(computation),
        may_absorb_(may_absorb),
        has_layouts_(has_layouts),
        proofs_(proofs),
        next_channel_(next_channel) {}

  absl::StatusOr<bool> Run() {
    for (HloInstruction* hlo : computation_->MakeInstructionPostOrder()) {
      if ((!IsGather(hlo) && !IsOfReductions(hlo)) || !MayReplace(hlo)) {
        continue;
      }
      std::optional<PartitionGroups> groups = GroupsOfPartitions(hlo);
      if (!groups.has_value()) continue;
      const int64_t ranks = groups->front().size();
      if (ranks < kMinRanks || ranks > kMaxRanks) continue;
      absl::c_sort(*groups);
      roots_.push_back({hlo, *std::move(groups)});
    }
    // Gathers first: what one needs is then there for sums that need it, too.
    // One that has become unnecessary may make another so.
    bool changed = false;
    for (bool again = true; again;) {
      again = false;
      for (const bool gathers : {true, false}) {
        for (Root& root : roots_) {
          if (root.hlo == nullptr || IsGather(root.hlo) != gathers) continue;
          HloInstruction* whole =
              gathers ? UnshardGather(root) : UnshardReduction(root);
          if (whole == nullptr) continue;
          TF_RETURN_IF_ERROR(root.hlo->ReplaceAllUsesWith(whole));
          replaced_.push_back(root.hlo);
          root.hlo = nullptr;
          changed = again = true;
        }
      }
    }
    if (!changed) return false;
    for (auto& [unused, unsharding] : unshardings_) {
      TF_RETURN_IF_ERROR(unsharding->SliceWholesInstead());
    }
    // To XLA a collective with a channel may be a side effect, which stays.
    for (HloInstruction* dead : replaced_) {
      TF_RETURN_IF_ERROR(computation_->RemoveInstruction(dead));
    }
    TF_RETURN_IF_ERROR(RemoveDead(computation_));
    return true;
  }

 private:
  bool MayReplace(const HloInstruction* hlo) const {
    return may_absorb_(hlo) && may_absorb_(hlo->operand(0)) &&
           !hlo->HasControlDependencies() && !hlo->IsRoot() &&
           absl::c_all_of(hlo->frontend_attributes().map(),
                          [](const auto& attribute) {
                            return attribute.first == "is_spmd_generated";
                          });
  }

  bool Fits(const Shape& shard, int64_t width, int64_t ranks) const {
    return ShapeUtil::ElementsIn(shard) * ranks * width <=
           MaxMessageBytes(static_cast<int>(ranks));
  }

  Unsharding& OverGroups(const PartitionGroups& groups) {
    std::unique_ptr<Unsharding>& unsharding = unshardings_[groups];
    if (unsharding == nullptr) {
      std::unique_ptr<ReplicationAnalysis>& proof =
          (*proofs_)[Unordered(groups)];
      if (proof == nullptr) {
        proof = std::make_unique<ReplicationAnalysis>(*computation_->parent(),
                                                      Unordered(groups));
      }
      unsharding = std::make_unique<Unsharding>(computation_, groups,
                                                proof.get(), may_absorb_,
                                                has_layouts_, next_channel_);
    }
    return *unsharding;
  }

  HloInstruction* UnshardGather(const Root& root) {
    const int64_t dimension = root.hlo->dimensions(0);
    const Shape& shard = root.hlo->operand(0)->shape();
    const int64_t ranks = root.groups.front().size();
    if (root.hlo->shape().dimensions(dimension) !=
            shard.dimensions(dimension) * ranks ||
        !Fits(shard, ShapeUtil::ByteSizeOfPrimitiveType(shard.element_type()),
              ranks)) {
      return nullptr;
    }
    // One gather for another.
    return OverGroups(root.groups)
        .Whole({root.hlo->mutable_operand(0), dimension}, /*may_gather=*/true);
  }

  HloInstruction* UnshardReduction(const Root& root) {
    HloInstruction* reduce = root.hlo->mutable_operand(0);
    // What is summed up is wider than what was sent.
    if (!Fits(reduce->operand(0)->shape(), /*width=*/2,
              root.groups.front().size())) {
      return nullptr;
    }
    // Ranks have no order in a sum: it is that of the gathers, or the usual.
    OverGroups(root.groups);
    for (auto& [groups, unsharding] : unshardings_) {
      if (Unordered(groups) != Unordered(root.groups)) continue;
      for (const int64_t dimension : reduce->dimensions()) {
        HloInstruction* whole = unsharding->Whole(
            {reduce->mutable_operand(0), dimension}, /*may_gather=*/false);
        if (whole == nullptr) continue;
        HloInstruction* sum =
            computation_->AddInstruction(reduce->CloneWithNewOperands(
                reduce->shape(), {whole, reduce->mutable_operand(1)}));
        unsharding->MarkReplicated(sum);
        return sum;
      }
    }
    return nullptr;
  }

  HloComputation* const computation_;
  const MayAbsorb& may_absorb_;
  const bool has_layouts_;
  std::map<PartitionGroups, std::unique_ptr<ReplicationAnalysis>>* const
      proofs_;
  int64_t* const next_channel_;
  std::map<PartitionGroups, std::unique_ptr<Unsharding>> unshardings_;
  std::vector<Root> roots_;
  std::vector<HloInstruction*> replaced_;
};

}  // namespace

absl::StatusOr<bool> UnshardSlices::RunImpl(
    xla::HloModule* module,
    const absl::flat_hash_set<absl::string_view>& execution_threads) {
  std::map<PartitionGroups, std::unique_ptr<ReplicationAnalysis>> proofs;
  int64_t next_channel = NextChannel(*module);
  bool changed = false;
  for (HloComputation* computation : module->computations(execution_threads)) {
    TF_ASSIGN_OR_RETURN(
        const bool unsharded,
        ComputationUnsharding(computation, may_absorb_, has_layouts_, &proofs,
                              &next_channel)
            .Run());
    changed |= unsharded;
  }
  if (changed && module->has_schedule()) {
    TF_RETURN_IF_ERROR(module->schedule().Update(execution_threads));
  }
  return changed;
}

}  // namespace oneshot
