// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/all_reduce_sums.h"

#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "xla/hlo/ir/hlo_casting_utils.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/service/collective_ops_utils.h"
#include "xla/xla_data.pb.h"
#include "xla_plugin/match/reduction_kind.h"

namespace oneshot {
namespace {

using ::xla::HloAllReduceInstruction;
using ::xla::HloInstruction;
using ::xla::HloOpcode;

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

std::optional<std::string> WhyNotAllReduce(const HloAllReduceInstruction* hlo) {
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

std::variant<std::vector<HloInstruction*>, Decline> FindSums(
    HloInstruction* all_reduce) {
  if (all_reduce->opcode() == HloOpcode::kAllReduceStart) {
    // What runs between the two would be delayed; that is only worth while
    // where it is next to nothing, as with messages that fit the workspace.
    if (all_reduce->operand_count() != 1 || all_reduce->user_count() != 1 ||
        all_reduce->users()[0]->opcode() != HloOpcode::kAllReduceDone) {
      return Decline{"is asynchronous, with several operands or readers"};
    }
    return std::vector<HloInstruction*>{all_reduce->users()[0]};
  }
  if (all_reduce->shape().IsArray()) {
    return std::vector<HloInstruction*>{all_reduce};
  }
  std::vector<HloInstruction*> sums(all_reduce->operand_count(), nullptr);
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
  return sums;
}

// Resolves any form of replica groups to flattened ids.
std::variant<std::vector<std::vector<int64_t>>, Decline> ResolveGroups(
    const HloAllReduceInstruction* all_reduce) {
  const auto mode = xla::GetCollectiveOpGroupMode(all_reduce);
  if (!mode.ok()) return Decline{std::string(mode.status().message())};
  const xla::HloModuleConfig& config = all_reduce->GetModule()->config();
  std::vector<std::vector<int64_t>> groups;
  if (*mode ==
      xla::CollectiveOpGroupMode::COLLECTIVE_OP_GROUP_MODE_FLATTENED_ID) {
    groups = all_reduce->device_list().flattened_replica_groups();
  } else {
    if (!config.has_static_device_assignment()) {
      return Decline{"replica groups need a device assignment"};
    }
    const auto list = xla::GetParticipatingFlattenedIdGroups(
        all_reduce->device_list(), *mode, config.replica_count(),
        config.num_partitions());
    if (!list.ok()) return Decline{std::string(list.status().message())};
    groups = (*list)->flattened_replica_groups();
  }
  if (groups.empty()) return Decline{"has no replica groups"};
  absl::flat_hash_set<int64_t> seen;
  for (const std::vector<int64_t>& group : groups) {
    if (group.size() != groups.front().size()) {
      return Decline{"replica groups differ in size"};
    }
    for (const int64_t id : group) {
      if (!seen.insert(id).second) return Decline{"replica groups overlap"};
    }
  }
  return groups;
}

}  // namespace

std::variant<AllReduceSums, Decline> SumsOf(HloInstruction* all_reduce,
                                            const MayAbsorb& may_absorb) {
  if (all_reduce->opcode() == HloOpcode::kReduceScatter) {
    return Decline{"is a reduce-scatter, no rank has whole rows"};
  }
  const xla::HloComputation* computation = all_reduce->parent();
  if (!computation->IsMainThread() || computation->IsAsyncComputation()) {
    return Decline{"runs asynchronously"};
  }
  const auto* hlo = xla::Cast<HloAllReduceInstruction>(all_reduce);
  if (std::optional<std::string> why = WhyNotAllReduce(hlo)) {
    return Decline{*std::move(why)};
  }
  auto found = FindSums(all_reduce);
  if (auto* why = std::get_if<Decline>(&found)) return *std::move(why);
  auto& sums = std::get<std::vector<HloInstruction*>>(found);
  for (size_t i = 0; i < sums.size(); ++i) {
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
  auto groups = ResolveGroups(hlo);
  if (auto* why = std::get_if<Decline>(&groups)) return *std::move(why);
  return AllReduceSums{
      std::move(sums),
      std::get<std::vector<std::vector<int64_t>>>(std::move(groups))};
}

}  // namespace oneshot
