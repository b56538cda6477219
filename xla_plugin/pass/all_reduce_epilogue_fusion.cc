// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_set.h"
#include "absl/log/check.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cuda/program/call_contract.h"
#include "xla/hlo/analysis/alias_info.h"
#include "xla/hlo/ir/hlo_casting_utils.h"
#include "xla/hlo/ir/hlo_schedule.h"
#include "xla/literal_util.h"
#include "xla/service/collective_ops_utils.h"
#include "xla/service/copy_insertion.h"
#include "xla/shape_util.h"
#include "xla_plugin/match/rank_slices.h"
#include "xla_plugin/match/replication.h"
#include "xla_plugin/pass/profit.h"
#include "xla_plugin/pass/side_by_side.h"

namespace oneshot {
namespace {

using ::xla::HloComputation;
using ::xla::HloInstruction;
using ::xla::HloModule;
using ::xla::HloOpcode;
using ::xla::Shape;
using ::xla::ShapeUtil;

// Ranks that sum together, as flattened ids (replica * partitions + partition).
struct Groups {
  std::vector<std::vector<int64_t>> ids;
  int64_t size() const { return ids.front().size(); }
};

// Resolves any form of replica groups to flattened ids.
std::variant<Groups, Decline> ResolveGroups(
    const xla::HloAllReduceInstruction* all_reduce) {
  const auto mode = xla::GetCollectiveOpGroupMode(all_reduce);
  if (!mode.ok()) return Decline{std::string(mode.status().message())};
  const xla::HloModuleConfig& config = all_reduce->GetModule()->config();
  Groups groups;
  if (*mode ==
      xla::CollectiveOpGroupMode::COLLECTIVE_OP_GROUP_MODE_FLATTENED_ID) {
    groups.ids = all_reduce->device_list().flattened_replica_groups();
  } else {
    if (!config.has_static_device_assignment()) {
      return Decline{"replica groups need a device assignment"};
    }
    const auto list = xla::GetParticipatingFlattenedIdGroups(
        all_reduce->device_list(), *mode, config.replica_count(),
        config.num_partitions());
    if (!list.ok()) return Decline{std::string(list.status().message())};
    groups.ids = (*list)->flattened_replica_groups();
  }
  if (groups.ids.empty()) return Decline{"has no replica groups"};
  absl::flat_hash_set<int64_t> seen;
  for (const std::vector<int64_t>& group : groups.ids) {
    if (group.size() != groups.ids.front().size()) {
      return Decline{"replica groups differ in size"};
    }
    for (const int64_t id : group) {
      if (!seen.insert(id).second) return Decline{"replica groups overlap"};
    }
  }
  return groups;
}

// A string inside an MLIR attribute.
std::string Quote(absl::string_view text) {
  std::string out = "\"";
  for (const unsigned char c : text) {
    if (c == '"' || c == '\\' || !absl::ascii_isprint(c)) {
      absl::StrAppendFormat(&out, "\\%02X", c);
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + '"';
}

// The custom-call's attributes: an MLIR dictionary, sorted by name.
// cuda/handlers/call_attributes.h says what each one means.
std::string Attributes(const EpilogueMatch& match, const Groups& groups) {
  const xla::HloModuleConfig& config = match.all_reduce->GetModule()->config();
  const std::string ids =
      absl::StrJoin(groups.ids, ", ",
                    [](std::string* out, const std::vector<int64_t>& group) {
                      absl::StrAppend(out, absl::StrJoin(group, ", "));
                    });
  return absl::StrCat(
      "{abi = ", kAbiVersion, " : i64",            //
      ", group_mode = \"flattened_id\"",           //
      ", group_size = ", groups.size(), " : i64",  //
      ", hidden = ", match.hidden, " : i64",       //
      ", num_partitions = ",                       //
      config.has_static_device_assignment() ? config.num_partitions() : 0,
      " : i64",                                      //
      ", program = ", Quote(ToText(match.program)),  //
      ", replica_groups = array<i64: ", ids, ">",    //
      ", rows = ", match.rows, " : i64",             //
      ", site = ", Quote(match.all_reduce->metadata().op_name()), "}");
}

Shape RowMajor(const Shape& shape) {
  return ShapeUtil::MakeShapeWithDescendingLayout(shape.element_type(),
                                                  shape.dimensions());
}

// XLA for GPUs makes a fusion of a custom-call with slices that it reads and
// with updates of slices by what it writes; and another call beside it, if the
// result has other readers, although that is no pure function. Nothing gets
// past this instruction, which becomes nothing itself.
HloInstruction* KeepApart(HloInstruction* hlo) {
  HloInstruction* barrier =
      hlo->parent()->AddInstruction(HloInstruction::CreateUnary(
          hlo->shape(), HloOpcode::kOptimizationBarrier, hlo));
  barrier->set_metadata(hlo->metadata());
  return barrier;
}

bool OnlyReshapes(const HloInstruction* hlo) {
  return hlo->opcode() == HloOpcode::kReshape ||
         hlo->opcode() == HloOpcode::kBitcast;
}

bool IsSlice(const HloInstruction* hlo) {
  while (OnlyReshapes(hlo)) hlo = hlo->operand(0);
  return hlo->opcode() == HloOpcode::kSlice ||
         hlo->opcode() == HloOpcode::kDynamicSlice;
}

bool UpdatesSlice(const HloInstruction* hlo) {
  return absl::c_any_of(hlo->users(), [](const HloInstruction* user) {
    return user->opcode() == HloOpcode::kDynamicUpdateSlice ||
           (OnlyReshapes(user) && UpdatesSlice(user));
  });
}

// Lets everything that reads `old_value` read result `index` of `call`.
absl::Status ReplaceByResult(HloInstruction* old_value, HloInstruction* call,
                             int64_t index) {
  HloComputation* computation = old_value->parent();
  HloInstruction* result = call;
  if (call->shape().IsTuple()) {
    result = computation->AddInstruction(HloInstruction::CreateGetTupleElement(
        call->shape().tuple_shapes(index), call, index));
    result->set_metadata(old_value->metadata());
  }
  if (UpdatesSlice(old_value)) result = KeepApart(result);
  TF_RETURN_IF_ERROR(old_value->ReplaceAllUsesWith(result));
  return computation->RemoveInstructionAndUnusedOperands(old_value);
}

absl::StatusOr<HloInstruction*> Rewrite(
    const EpilogueMatch& match, const Groups& groups,
    AllReduceEpilogueFusion::Platform platform) {
  HloComputation* computation = match.all_reduce->parent();

  // Operands and results in the order that cuda/handlers/call_attributes.h
  // reads them.
  std::vector<HloInstruction*> operands = {match.input};
  for (HloInstruction* operand : match.operands) {
    if (operand->shape().element_type() == xla::PRED) {
      const Shape shape =
          ShapeUtil::ChangeElementType(operand->shape(), xla::BF16);
      operand = computation->AddInstruction(
          HloInstruction::CreateConvert(shape, operand));
    }
    operands.push_back(operand);
  }
  for (HloInstruction*& operand : operands) {
    if (IsSlice(operand)) operand = KeepApart(operand);
  }
  for (const SliceIndex& index : match.indices) {
    if (const int32_t* known = std::get_if<int32_t>(&index)) {
      operands.push_back(
          computation->AddInstruction(HloInstruction::CreateConstant(
              xla::LiteralUtil::CreateR0<int32_t>(*known))));
    } else {
      operands.push_back(std::get<HloInstruction*>(index));
    }
  }
  if (platform == AllReduceEpilogueFusion::Platform::kHost) {
    // XLA:CPU tells a custom-call neither its rank nor its communicator.
    const Shape id = ShapeUtil::MakeShape(xla::U32, {});
    operands.push_back(
        computation->AddInstruction(HloInstruction::CreateReplicaId(id)));
    operands.push_back(
        computation->AddInstruction(HloInstruction::CreatePartitionId(id)));
  }
  std::vector<Shape> operand_shapes, result_shapes;
  for (const HloInstruction* operand : operands) {
    operand_shapes.push_back(RowMajor(operand->shape()));
  }
  for (const HloInstruction* result : match.results) {
    result_shapes.push_back(RowMajor(result->shape()));
  }
  // As usual: a tuple is of more than one.
  const Shape shape = result_shapes.size() == 1
                          ? result_shapes[0]
                          : ShapeUtil::MakeTupleShape(result_shapes);
  HloInstruction* call =
      computation->AddInstruction(HloInstruction::CreateCustomCall(
          shape, operands, kCustomCallTarget, operand_shapes,
          Attributes(match, groups),
          xla::CustomCallApiVersion::API_VERSION_TYPED_FFI));
  // Profilers show the name, and tell the layer by the metadata.
  call->SetAndSanitizeName(Identifier(match.program));
  call->UniquifyName(computation->parent());
  call->set_metadata(match.all_reduce->metadata());

  // The last goes first: what only it needed, dies with it, and so the others
  // are replaced only for readers that remain.
  for (int64_t i = match.results.size() - 1; i >= 0; --i) {
    TF_RETURN_IF_ERROR(ReplaceByResult(match.results[i], call, i));
  }
  // Without SPMD partitioning, which the module's proto does not tell, XLA
  // takes an all-reduce with a channel for a side effect, and its asynchronous
  // form always, and lets a dead one stand.
  for (HloInstruction* hlo : {match.sum, match.all_reduce}) {
    if (absl::c_linear_search(computation->instructions(), hlo) &&
        hlo->user_count() == 0) {
      TF_RETURN_IF_ERROR(computation->RemoveInstructionAndUnusedOperands(hlo));
    }
  }
  return call;
}

// Whether a file belongs to a library that models are written with. Its lines
// are the same for all layers of all models.
bool IsLayerLibrary(absl::string_view file) {
  return absl::StrContains(file, "-packages/flax/") ||
         absl::StrContains(file, "-packages/haiku/") ||
         absl::StrContains(file, "-packages/equinox/");
}

// The line of the program: the innermost that is not such a library's.
std::string SourceOf(const HloInstruction* hlo) {
  const xla::OpMetadata& metadata = hlo->metadata();
  std::string innermost;
  for (int id = metadata.stack_frame_id(); id > 0;) {
    const auto frame = hlo->GetModule()->get_stack_frame(id);
    if (frame.empty()) break;
    std::string source = absl::StrCat(frame.file_name, ":", frame.line);
    if (!IsLayerLibrary(frame.file_name)) return source;
    if (innermost.empty()) innermost = std::move(source);
    if (frame.parent_frame_id >= id) break;  // callers come first: no circles
    id = frame.parent_frame_id;
  }
  if (!innermost.empty()) return innermost;
  if (metadata.source_file().empty()) return "";
  return absl::StrCat(metadata.source_file(), ":", metadata.source_line());
}

// What the report speaks of.
bool IsReductionOverRanks(const HloInstruction* hlo) {
  return hlo->opcode() == HloOpcode::kAllReduce ||
         hlo->opcode() == HloOpcode::kAllReduceStart ||
         hlo->opcode() == HloOpcode::kReduceScatter;
}

// An all-reduce that may be replaced, with the epilogues of its sums as they
// are now.
struct Candidate {
  std::vector<HloInstruction*> sums;
  Groups groups;
  std::vector<EpilogueMatch> matches;  // by sum
};

int64_t BytesOf(const EpilogueMatch& match) {
  return match.rows * match.hidden * ByteWidth(match.program.x);
}

// Looks whether all sums of an all-reduce can be replaced, and whether that
// pays. Says in `site` how large it is, as far as that is known.
std::variant<Candidate, Decline> Look(HloInstruction* hlo,
                                      const MayAbsorb& may_absorb,
                                      SiteReport& site) {
  if (hlo->opcode() == HloOpcode::kReduceScatter) {
    return Decline{"is a reduce-scatter, no rank has whole rows"};
  }
  if (!hlo->parent()->IsMainThread() || hlo->parent()->IsAsyncComputation()) {
    return Decline{"runs asynchronously"};
  }
  auto sums = SumsOf(hlo, may_absorb);
  if (auto* why = std::get_if<Decline>(&sums)) return *std::move(why);
  auto groups = ResolveGroups(xla::Cast<xla::HloAllReduceInstruction>(hlo));
  if (auto* why = std::get_if<Decline>(&groups)) return *std::move(why);
  Candidate candidate = {
      std::get<std::vector<HloInstruction*>>(std::move(sums)),
      std::get<Groups>(std::move(groups))};
  site.group_size = candidate.groups.size();
  for (size_t i = 0; i < candidate.sums.size(); ++i) {
    EpilogueMatch match = MatchEpilogue(hlo, candidate.sums[i], i, may_absorb);
    if (match.results.empty()) return Decline{"nothing reads it"};
    site.bytes = BytesOf(match);
    if (auto why = WhyNotProfitable(match, candidate.groups.size())) {
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
                                                 CompileKernel compile_kernel)
    : platform_(platform),
      may_absorb_(std::move(may_absorb)),
      compile_kernel_(std::move(compile_kernel)) {}

// Asks for all kernels at once, so that they are compiled side by side. What is
// replaced before an all-reduce may still change its epilogue, so this is only
// a guess of what Visit will ask for.
void AllReduceEpilogueFusion::CompileAhead(
    const std::vector<HloInstruction*>& all_reduces) {
  absl::btree_set<std::tuple<std::string, int64_t, int64_t, int64_t>> kernels;
  for (HloInstruction* hlo : all_reduces) {
    SiteReport unused;
    const auto looked = Look(hlo, may_absorb_, unused);
    const auto* candidate = std::get_if<Candidate>(&looked);
    if (candidate == nullptr) continue;
    for (const EpilogueMatch& match : candidate->matches) {
      kernels.emplace(ToText(match.program), match.rows, match.hidden,
                      candidate->groups.size());
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
  site.source = SourceOf(hlo);
  site.shape = ShapeUtil::HumanString(hlo->shape());
  for (const HloInstruction* operand : hlo->operands()) {
    site.bytes += ShapeUtil::ByteSizeOf(operand->shape());
  }
  const auto declined = [&](absl::string_view reason) {
    site.reason = std::string(reason);
    report_.all_reduces.push_back(site);
    return absl::OkStatus();
  };
  const auto looked = Look(hlo, may_absorb_, site);
  if (const auto* why = std::get_if<Decline>(&looked)) {
    return declined(why->reason);
  }
  const auto& [sums, groups, matches] = std::get<Candidate>(looked);

  // All are compiled before the first is replaced.
  if (compile_kernel_ != nullptr) {
    for (const EpilogueMatch& match : matches) {
      site.bytes = BytesOf(match);
      if (const auto why = compile_kernel_(ToText(match.program), match.rows,
                                           match.hidden, groups.size())) {
        return declined(*why);
      }
    }
  }
  for (size_t i = 0; i < sums.size(); ++i) {
    // A match does not outlive the replacement of another, which may be among
    // its operands.
    const EpilogueMatch match =
        i == 0 ? matches[0] : MatchEpilogue(hlo, sums[i], i, may_absorb_);
    SiteReport fused = site;
    fused.shape = ShapeUtil::HumanString(sums[i]->shape());
    fused.bytes = BytesOf(match);
    fused.epilogue = Describe(match.program);
    fused.program = ToText(match.program);
    for (const Stop& stop : match.stops) {
      fused.stopped.push_back(
          {std::string(stop.instruction->name()),
           std::string(xla::HloOpcodeString(stop.instruction->opcode())),
           SourceOf(stop.instruction), WhyStopped(stop, hlo)});
    }
    TF_ASSIGN_OR_RETURN(HloInstruction * call,
                        Rewrite(match, groups, platform_));
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
  for (HloComputation* computation : module->computations(execution_threads)) {
    absl::c_copy_if(computation->MakeInstructionPostOrder(),
                    std::back_inserter(all_reduces), IsReductionOverRanks);
  }
  if (compile_kernel_ != nullptr) CompileAhead(all_reduces);
  for (HloInstruction* all_reduce : all_reduces) {
    TF_RETURN_IF_ERROR(Visit(all_reduce));
  }
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
