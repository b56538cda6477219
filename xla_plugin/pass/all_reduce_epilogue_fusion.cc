// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"

#include <cstdint>
#include <functional>
#include <iterator>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <variant>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "xla/hlo/analysis/alias_info.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/hlo/ir/hlo_schedule.h"
#include "xla/service/copy_insertion.h"
#include "xla/shape_util.h"
#include "xla_plugin/match/all_reduce_sums.h"
#include "xla_plugin/match/epilogue_match.h"
#include "xla_plugin/match/rank_slices.h"
#include "xla_plugin/match/replication.h"
#include "xla_plugin/pass/profit.h"
#include "xla_plugin/pass/side_by_side.h"
#include "xla_plugin/pass/source_line.h"

namespace oneshot {
namespace {

using ::xla::HloComputation;
using ::xla::HloInstruction;
using ::xla::HloModule;
using ::xla::HloOpcode;
using ::xla::ShapeUtil;

// What the report speaks of.
bool IsReductionOverRanks(const HloInstruction* hlo) {
  return hlo->opcode() == HloOpcode::kAllReduce ||
         hlo->opcode() == HloOpcode::kAllReduceStart ||
         hlo->opcode() == HloOpcode::kReduceScatter;
}

int64_t BytesOf(const EpilogueMatch& match) {
  return match.rows * match.hidden * ByteWidth(match.program.x);
}

// An all-reduce that may be replaced, with the epilogues of its sums as they
// are now.
struct Candidate {
  AllReduceSums sums;
  std::vector<EpilogueMatch> matches;  // by sum
};

// Why ranks that add together can't reach each other's memory, if that is so.
std::optional<Decline> WhyNotOnOneMachine(
    const std::vector<std::vector<int64_t>>& groups,
    const std::vector<int>& machines) {
  if (machines.empty()) return std::nullopt;
  const int64_t known = machines.size();
  for (const std::vector<int64_t>& group : groups) {
    for (const int64_t id : group) {
      if (id < 0 || id >= known) {
        return Decline{
            absl::StrCat("on which machine rank ", id, " is, is not known")};
      }
      if (machines[id] != machines[group.front()]) {
        return Decline{"its ranks are on several machines"};
      }
    }
  }
  return std::nullopt;
}

// Whether all sums of an all-reduce can be replaced, and whether that pays.
// Says in `site` how large it is, as far as that is known.
std::variant<Candidate, Decline> FindCandidate(HloInstruction* hlo,
                                               const InstructionOrder& order,
                                               const MayAbsorb& may_absorb,
                                               const std::vector<int>& machines,
                                               SiteReport& site) {
  auto found = SumsOf(hlo, may_absorb);
  if (auto* why = std::get_if<Decline>(&found)) return *std::move(why);
  Candidate candidate = {std::get<AllReduceSums>(std::move(found))};
  const AllReduceSums& sums = candidate.sums;
  site.group_size = sums.ranks();
  if (auto why = WhyNotOnOneMachine(sums.groups, machines)) {
    return *std::move(why);
  }
  for (size_t i = 0; i < sums.sums.size(); ++i) {
    EpilogueMatch match =
        MatchEpilogue(hlo, sums.sums[i], i, order, may_absorb);
    if (match.results.empty()) return Decline{"nothing reads it"};
    site.bytes = BytesOf(match);
    if (auto why = WhyNotProfitable(match, sums.ranks())) {
      return Decline{*std::move(why)};
    }
    candidate.matches.push_back(std::move(match));
  }
  return candidate;
}

// Why a match ended. A sum of which nothing but parts is used, one for each
// rank, is one that XLA itself would have made less of.
std::string WhyStopped(const Stop& stop, HloInstruction* all_reduce) {
  if (stop.instruction->opcode() == HloOpcode::kDynamicSlice) {
    const auto dimension = SlicedDimension(stop.instruction);
    const auto groups = GroupsOfPartitions(all_reduce);
    if (dimension.has_value() && groups.has_value() &&
        IsSliceByRank(stop.instruction, *dimension, *groups)) {
      return absl::StrCat(stop.reason,
                          "; each rank takes its part, and XLA would make a "
                          "reduce-scatter of both");
    }
  }
  return stop.reason;
}

// XLA for CPU has inserted copies before: where a loop's state is updated in
// place, it relied on the order in which the old state was read, and a call
// reads later than what it replaces. The copies that are there stay, whatever
// this XLA makes of them: the XLA of jaxlib knows more fusions that update an
// operand in place.
absl::Status AddCopies(
    HloModule* module,
    const absl::flat_hash_set<absl::string_view>& execution_threads) {
  absl::flat_hash_set<int64_t> present;
  for (HloComputation* computation : module->computations()) {
    for (const HloInstruction* hlo : computation->instructions()) {
      if (hlo->opcode() == HloOpcode::kCopy) present.insert(hlo->unique_id());
    }
  }
  const xla::AliasInfo alias_info;
  return xla::CopyInsertion(&alias_info,
                            xla::CopyInsertion::kUseRegionAnalysisLimit,
                            [&](const HloInstruction* copy) {
                              return present.contains(copy->unique_id());
                            })
      .Run(module, execution_threads)
      .status();
}

}  // namespace

AllReduceEpilogueFusion::AllReduceEpilogueFusion(Platform platform,
                                                 MayAbsorb may_absorb,
                                                 CompileKernel compile_kernel,
                                                 std::vector<int> machines)
    : platform_(platform),
      may_absorb_(std::move(may_absorb)),
      compile_kernel_(std::move(compile_kernel)),
      machines_(std::move(machines)) {}

// Asks for all kernels at once, so that they are compiled side by side. What is
// replaced before an all-reduce may still change its epilogue, so this is only
// a guess of what Visit will ask for.
void AllReduceEpilogueFusion::CompileAhead(
    const std::vector<HloInstruction*>& all_reduces) {
  absl::btree_set<std::tuple<std::string, int64_t, int64_t, int64_t>> kernels;
  for (HloInstruction* hlo : all_reduces) {
    SiteReport unused;
    const auto found = FindCandidate(hlo, orders_.at(hlo->parent()),
                                     may_absorb_, machines_, unused);
    const auto* candidate = std::get_if<Candidate>(&found);
    if (candidate == nullptr) continue;
    for (const EpilogueMatch& match : candidate->matches) {
      kernels.emplace(ToText(match.program), match.rows, match.hidden,
                      candidate->sums.ranks());
    }
  }
  if (kernels.size() < 2) return;
  std::vector<std::function<void()>> compilations;
  for (const auto& kernel : kernels) {
    compilations.push_back([&] { std::apply(compile_kernel_, kernel); });
  }
  RunSideBySide(compilations);
}

// Replaces all sums of one all-reduce, or none, if that is possible and pays.
absl::Status AllReduceEpilogueFusion::Visit(HloInstruction* hlo) {
  SiteReport site;
  site.name = std::string(hlo->name());
  site.site = hlo->metadata().op_name();
  site.source = SourceLine(hlo);
  site.shape = ShapeUtil::HumanString(hlo->shape());
  for (const HloInstruction* operand : hlo->operands()) {
    site.bytes += ShapeUtil::ByteSizeOf(operand->shape());
  }
  const auto declined = [&](absl::string_view reason) {
    site.reason = std::string(reason);
    report_.all_reduces.push_back(site);
    return absl::OkStatus();
  };
  InstructionOrder& order = orders_.at(hlo->parent());
  const auto found = FindCandidate(hlo, order, may_absorb_, machines_, site);
  if (const auto* why = std::get_if<Decline>(&found)) {
    return declined(why->reason);
  }
  const auto& [sums, matches] = std::get<Candidate>(found);

  // All are compiled before the first is replaced.
  if (compile_kernel_ != nullptr) {
    for (const EpilogueMatch& match : matches) {
      site.bytes = BytesOf(match);
      if (const auto why = compile_kernel_(ToText(match.program), match.rows,
                                           match.hidden, sums.ranks())) {
        return declined(*why);
      }
    }
  }
  for (size_t i = 0; i < sums.sums.size(); ++i) {
    // A match does not outlive the replacement of another, which may be among
    // its operands.
    const EpilogueMatch match =
        i == 0 ? matches[0]
               : MatchEpilogue(hlo, sums.sums[i], i, order, may_absorb_);
    SiteReport fused = site;
    fused.shape = ShapeUtil::HumanString(sums.sums[i]->shape());
    fused.bytes = BytesOf(match);
    fused.epilogue = Describe(match.program);
    fused.program = ToText(match.program);
    for (const Stop& stop : match.stops) {
      fused.stopped.push_back(
          {std::string(stop.instruction->name()),
           std::string(xla::HloOpcodeString(stop.instruction->opcode())),
           SourceLine(stop.instruction), WhyStopped(stop, hlo)});
    }
    TF_ASSIGN_OR_RETURN(HloInstruction * call,
                        ReplaceByCall(match, sums, platform_));
    order.Add(call);
    fused.custom_call = std::string(call->name());
    report_.all_reduces.push_back(std::move(fused));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> AllReduceEpilogueFusion::RunImpl(
    HloModule* module,
    const absl::flat_hash_set<absl::string_view>& execution_threads) {
  report_ = ModuleReport();
  report_.module = module->name();
  report_.platform = platform_ == Platform::kHost ? "Host" : "CUDA";
  // The rewrite removes instructions, but never another all-reduce: one ends
  // where the next begins.
  std::vector<HloInstruction*> all_reduces;
  orders_.clear();
  for (HloComputation* computation : module->computations(execution_threads)) {
    const size_t before = all_reduces.size();
    absl::c_copy_if(computation->MakeInstructionPostOrder(),
                    std::back_inserter(all_reduces), IsReductionOverRanks);
    if (all_reduces.size() > before) {
      orders_.emplace(computation, InstructionOrder(computation));
    }
  }
  if (compile_kernel_ != nullptr) CompileAhead(all_reduces);
  for (HloInstruction* all_reduce : all_reduces) {
    TF_RETURN_IF_ERROR(Visit(all_reduce));
  }
  orders_.clear();
  const bool changed = report_.fired() > 0;
  if (changed && platform_ == Platform::kHost) {
    TF_RETURN_IF_ERROR(AddCopies(module, execution_threads));
  }
  if (changed && module->has_schedule()) {
    TF_RETURN_IF_ERROR(module->schedule().Update(execution_threads));
  }
  return changed;
}

}  // namespace oneshot
