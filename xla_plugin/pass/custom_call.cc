// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/custom_call.h"

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cuda/program/call_contract.h"
#include "xla/hlo/ir/hlo_computation.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/literal_util.h"
#include "xla/shape_util.h"

namespace oneshot {
namespace {

using ::xla::HloComputation;
using ::xla::HloInstruction;
using ::xla::HloOpcode;
using ::xla::Shape;
using ::xla::ShapeUtil;

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
std::string Attributes(const EpilogueMatch& match, const AllReduceSums& sums) {
  const xla::HloModuleConfig& config = match.all_reduce->GetModule()->config();
  const std::string ids =
      absl::StrJoin(sums.groups, ", ",
                    [](std::string* out, const std::vector<int64_t>& group) {
                      absl::StrAppend(out, absl::StrJoin(group, ", "));
                    });
  return absl::StrCat(
      "{abi = ", kAbiVersion, " : i64",           //
      ", group_mode = \"flattened_id\"",          //
      ", group_size = ", sums.ranks(), " : i64",  //
      ", hidden = ", match.hidden, " : i64",      //
      ", num_partitions = ",                      //
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

// Removes an instruction and what only it read, and tells which.
absl::Status Remove(HloInstruction* hlo,
                    absl::flat_hash_set<const HloInstruction*>& removed) {
  const auto note = [&](HloInstruction* gone) { removed.insert(gone); };
  return hlo->parent()->RemoveInstructionAndUnusedOperands(
      hlo, absl::FunctionRef<void(HloInstruction*)>(note));
}

// Lets everything that reads `old_value` read result `index` of `call`.
absl::Status ReplaceByResult(
    HloInstruction* old_value, HloInstruction* call, int64_t index,
    absl::flat_hash_set<const HloInstruction*>& removed) {
  HloInstruction* result = call;
  if (call->shape().IsTuple()) {
    result = old_value->parent()->AddInstruction(
        HloInstruction::CreateGetTupleElement(call->shape().tuple_shapes(index),
                                              call, index));
    result->set_metadata(old_value->metadata());
  }
  if (UpdatesSlice(old_value)) result = KeepApart(result);
  TF_RETURN_IF_ERROR(old_value->ReplaceAllUsesWith(result));
  return Remove(old_value, removed);
}

}  // namespace

absl::StatusOr<HloInstruction*> ReplaceByCall(const EpilogueMatch& match,
                                              const AllReduceSums& sums,
                                              Platform platform) {
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
  if (platform == Platform::kHost) {
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
          Attributes(match, sums),
          xla::CustomCallApiVersion::API_VERSION_TYPED_FFI));
  // Profilers show the name, and tell the layer by the metadata.
  call->SetAndSanitizeName(Identifier(match.program));
  call->UniquifyName(computation->parent());
  call->set_metadata(match.all_reduce->metadata());

  // Results are replaced last to first, so instructions that only a later
  // result used are gone before earlier ones are rewired.
  absl::flat_hash_set<const HloInstruction*> removed;
  for (int64_t i = match.results.size() - 1; i >= 0; --i) {
    TF_RETURN_IF_ERROR(ReplaceByResult(match.results[i], call, i, removed));
  }
  // Without SPMD partitioning, which the module's proto does not tell, XLA
  // takes an all-reduce with a channel for a side effect, and its asynchronous
  // form always, and lets a dead one stand.
  for (HloInstruction* hlo : {match.sum, match.all_reduce}) {
    if (!removed.contains(hlo) && hlo->user_count() == 0) {
      TF_RETURN_IF_ERROR(Remove(hlo, removed));
    }
  }
  return call;
}

}  // namespace oneshot
