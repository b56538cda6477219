// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/module/module_codec.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "google/protobuf/unknown_field_set.h"
#include "xla/hlo/ir/hlo_instruction.h"
#include "xla/layout_util.h"
#include "xla/service/computation_placer.h"
#include "xla/service/hlo.pb.h"
#include "xla/service/hlo_module_config.h"
#include "xla/service/hlo_verifier.h"
#include "xla/shape.h"
#include "xla/shape_util.h"
#include "xla/tsl/lib/strings/proto_serialization.h"
#include "xla/xla_data.pb.h"

namespace oneshot {
namespace {

// Of layouts, the order of the dimensions and the memory, the device's or the
// host's. The rest follows from the backend.
bool SameLayouts(const xla::Shape& a, const xla::Shape& b) {
  return xla::Shape::Equal()
      .IgnoreTilesInLayout()
      .IgnoreElementSizeInLayout()
      .IgnoreTailPaddingAlignmentInElements()
      .IgnoreSplitConfigInLayout()(a, b);
}

// `wanted` with the layouts that it leaves to XLA (AUTO, written as none) as in
// `found`, which is one that XLA may choose unless it is on the host.
xla::Shape FillInAutoLayouts(const xla::Shape& wanted,
                             const xla::Shape& found) {
  xla::Shape filled = wanted;
  if (!xla::ShapeUtil::Compatible(wanted, found)) return filled;
  xla::ShapeUtil::ForEachMutableSubshape(
      &filled, [&](xla::Shape* shape, const xla::ShapeIndex& index) {
        if (!shape->IsArray() || shape->has_layout()) return;
        const xla::Shape& other = xla::ShapeUtil::GetSubshape(found, index);
        if (other.has_layout() &&
            other.layout().memory_space() == xla::Layout::kDefaultMemorySpace) {
          *shape->mutable_layout() = other.layout();
        }
      });
  return filled;
}

// XLA takes the entry's layouts from the parameters and the root when it reads
// a changed module back; layouts that the user asked for would be forgotten.
absl::Status CheckEntryLayouts(const xla::HloModuleProto& proto,
                               const xla::HloModule& module) {
  TF_ASSIGN_OR_RETURN(const xla::ProgramShape wanted,
                      xla::ProgramShape::FromProto(proto.host_program_shape()));
  const xla::HloComputation* entry = module.entry_computation();
  const auto as_wanted = [](const xla::Shape& wanted, const xla::Shape& found) {
    return SameLayouts(FillInAutoLayouts(wanted, found), found);
  };
  bool same = wanted.parameters_size() == entry->num_parameters() &&
              as_wanted(wanted.result(), entry->root_instruction()->shape());
  for (int64_t i = 0; same && i < entry->num_parameters(); ++i) {
    same = as_wanted(wanted.parameters(i),
                     entry->parameter_instruction(i)->shape());
  }
  if (same) return absl::OkStatus();
  return absl::UnimplementedError(
      "the entry computation has layouts of its own, or arrays on the host");
}

std::string Serialized(const google::protobuf::MessageLite& message) {
  std::string bytes;
  tsl::SerializeToStringDeterministic(message, &bytes);
  return bytes;
}

// Whether what this version does not know only repeats what it does. Newer ones
// write the order of a comparison, here known from its type, in a field.
bool IsRedundant(const xla::HloInstructionProto& hlo) {
  constexpr int kComparisonOrder = 102;
  const auto& unknown = hlo.GetReflection()->GetUnknownFields(hlo);
  if (hlo.opcode() != "compare" || hlo.comparison_type().empty() ||
      unknown.field_count() != 1) {
    return false;
  }
  const google::protobuf::UnknownField& field = unknown.field(0);
  return field.number() == kComparisonOrder &&
         field.type() ==
             google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED &&
         field.length_delimited() ==
             (hlo.comparison_type() == "FLOAT" ? "PARTIAL" : "TOTAL");
}

bool HasItsAxes(const xla::MeshAxesReplicaGroupListProto& groups) {
  return absl::c_all_of(groups.axes(), [&](const xla::AxisRefProto& axis) {
    return axis.mesh_axis_index() >= 0 &&
           axis.mesh_axis_index() < groups.mesh().axes_size();
  });
}

// The number of devices, if each is a group of its own; else nothing. Newer
// versions have such groups, for collectives over an axis of size one, and the
// one that we are compiled against ends the process when it reads them as axes
// of a mesh.
std::optional<int64_t> GroupsOfOne(
    const xla::MeshAxesReplicaGroupListProto& groups) {
  constexpr int64_t kMostDevices = 1 << 20;
  const auto& axes = groups.mesh().axes();
  for (const xla::AxisRefProto& axis : groups.axes()) {
    if (axis.has_sub_axis_info() || axes[axis.mesh_axis_index()].size() != 1) {
      return std::nullopt;
    }
  }
  int64_t devices = 1;
  for (const auto& axis : axes) {
    if (axis.size() < 1 || axis.size() > kMostDevices / devices) {
      return std::nullopt;
    }
    devices *= axis.size();
  }
  return devices;
}

template <typename List>
bool SameElements(const List& a, const List& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin());
}

bool SamePlace(const xla::HloInstructionProto& a,
               const xla::HloInstructionProto& b) {
  return a.opcode() == b.opcode() &&
         Serialized(a.shape()) == Serialized(b.shape()) &&
         SameElements(a.operand_ids(), b.operand_ids()) &&
         SameElements(a.control_predecessor_ids(),
                      b.control_predecessor_ids()) &&
         SameElements(a.called_computation_ids(), b.called_computation_ids());
}

template <typename Message>
bool SaysNothing(const Message& message) {
  return message.ByteSizeLong() == 0;
}

// Writes what can be said in several ways in one of them, so that it is no loss
// when reading and writing choose another. XLA's own passes leave out what XLA
// writes back in full: the precision of an operand is DEFAULT and a group count
// one where nothing else is said. Only messages in which absent and empty mean
// the same are dropped: an empty sharding, say, means replicated.
void Canonicalize(xla::HloInstructionProto& hlo) {
  if (hlo.has_precision_config()) {
    auto& precisions =
        *hlo.mutable_precision_config()->mutable_operand_precision();
    while (!precisions.empty() &&
           precisions[precisions.size() - 1] == xla::PrecisionConfig::DEFAULT) {
      precisions.RemoveLast();
    }
    if (SaysNothing(hlo.precision_config())) hlo.clear_precision_config();
  }
  if (hlo.feature_group_count() == 1) hlo.clear_feature_group_count();
  if (hlo.batch_group_count() == 1) hlo.clear_batch_group_count();
  if (SaysNothing(hlo.metadata())) hlo.clear_metadata();
  if (SaysNothing(hlo.frontend_attributes())) hlo.clear_frontend_attributes();
  if (SaysNothing(hlo.statistics_viz())) hlo.clear_statistics_viz();
}

// What of `a` differs in `b` or is missing there, computation by computation
// and instruction by instruction; empty if nothing is. Takes both apart.
//
// Everything is looked up by id: the order of instructions only has to respect
// their operands, that of computations their callers, and XLA settles on one of
// several orders when it reads a module.
//
// Of an instruction that has been set aside, only its place in the graph has to
// be the same: all else of it is kept as it came.
std::string FirstDifference(xla::HloModuleProto& a, xla::HloModuleProto& b,
                            const InstructionsById& aside) {
  absl::flat_hash_map<int64_t, xla::HloComputationProto*> computations;
  absl::flat_hash_map<int64_t, const xla::HloInstructionProto*> instructions;
  for (xla::HloComputationProto& computation : *b.mutable_computations()) {
    computations[computation.id()] = &computation;
    for (xla::HloInstructionProto& hlo : *computation.mutable_instructions()) {
      Canonicalize(hlo);
      instructions[hlo.id()] = &hlo;
    }
  }
  for (xla::HloComputationProto& left : *a.mutable_computations()) {
    const auto right = computations.find(left.id());
    if (right == computations.end() ||
        left.instructions_size() != right->second->instructions_size()) {
      return left.name();
    }
    for (xla::HloInstructionProto& hlo : *left.mutable_instructions()) {
      Canonicalize(hlo);
      const auto it = instructions.find(hlo.id());
      if (it == instructions.end() ||
          !(aside.contains(hlo.id())
                ? SamePlace(hlo, *it->second)
                : Serialized(hlo) == Serialized(*it->second))) {
        return hlo.name();
      }
    }
    left.clear_instructions();
  }
  for (xla::HloComputationProto& left : *a.mutable_computations()) {
    xla::HloComputationProto& right = *computations[left.id()];
    right.clear_instructions();
    if (Serialized(left) != Serialized(right)) return left.name();
  }
  return "";
}

}  // namespace

absl::StatusOr<DecodedModule> DecodedModule::Decode(
    absl::string_view serialized) {
  xla::HloModuleProto proto;
  if (serialized.size() > std::numeric_limits<int>::max() ||
      !proto.ParseFromArray(serialized.data(),
                            static_cast<int>(serialized.size()))) {
    return absl::InvalidArgumentError("not an HloModuleProto");
  }

  // Set aside what we can't read of single instructions; refuse it elsewhere.
  DecodedModule decoded;
  for (xla::HloComputationProto& computation : *proto.mutable_computations()) {
    for (xla::HloInstructionProto& hlo : *computation.mutable_instructions()) {
      const auto* reflection = hlo.GetReflection();
      std::optional<int64_t> groups_of_one;
      if (hlo.has_mesh_axes_replica_group_list()) {
        if (!HasItsAxes(hlo.mesh_axes_replica_group_list())) {
          return absl::InvalidArgumentError(absl::StrCat(
              hlo.name(), " is over axes that its mesh does not have"));
        }
        groups_of_one = GroupsOfOne(hlo.mesh_axes_replica_group_list());
      }
      if (!groups_of_one && reflection->GetUnknownFields(hlo).empty()) continue;
      decoded.aside_[hlo.id()] = hlo;
      reflection->MutableUnknownFields(&hlo)->Clear();
      if (groups_of_one) {
        hlo.clear_mesh_axes_replica_group_list();
        for (int64_t i = 0; i < *groups_of_one; ++i) {
          hlo.mutable_collective_device_list()
              ->add_replica_groups()
              ->add_replica_ids(i);
        }
      }
    }
  }
  const size_t size = proto.ByteSizeLong();
  proto.DiscardUnknownFields();
  if (proto.ByteSizeLong() != size) {
    return absl::UnimplementedError(
        "the module has proto fields that this version does not know");
  }

  TF_ASSIGN_OR_RETURN(
      xla::HloModuleConfig config,
      xla::HloModule::CreateModuleConfigFromProto(proto, xla::DebugOptions()));
  if (proto.has_device_assignment()) {
    TF_ASSIGN_OR_RETURN(
        const auto assignment,
        xla::DeviceAssignment::Deserialize(proto.device_assignment()));
    config.set_static_device_assignment(*assignment);
    config.set_replica_count(assignment->replica_count());
    config.set_num_partitions(assignment->computation_count());
  }
  TF_ASSIGN_OR_RETURN(decoded.module_,
                      xla::HloModule::CreateFromProto(proto, config));
  TF_RETURN_IF_ERROR(CheckEntryLayouts(proto, *decoded.module_));

  // The proof that nothing is lost, rather than a list of what could be.
  xla::HloModuleProto again = decoded.module_->ToProto();
  if (const std::string lost = FirstDifference(proto, again, decoded.aside_);
      !lost.empty()) {
    return absl::UnimplementedError(absl::StrCat(
        lost, " does not survive being read and written by this version"));
  }
  // Reading checks little, and the pass relies on operands being there.
  xla::HloVerifier verifier(/*layout_sensitive=*/false,
                            /*allow_mixed_precision=*/true);
  if (const auto valid = verifier.Run(decoded.module()).status(); !valid.ok()) {
    return absl::UnimplementedError(absl::StrCat(
        "the module is not valid to this version: ", valid.message()));
  }
  return decoded;
}

bool DecodedModule::Understands(const xla::HloInstruction* instruction) const {
  const auto it = aside_.find(instruction->unique_id());
  return it == aside_.end() || IsRedundant(it->second);
}

absl::StatusOr<std::string> DecodedModule::Encode() const {
  xla::HloModuleProto proto = module_->ToProto();
  for (xla::HloComputationProto& computation : *proto.mutable_computations()) {
    for (xla::HloInstructionProto& hlo : *computation.mutable_instructions()) {
      const auto it = aside_.find(hlo.id());
      if (it == aside_.end()) continue;
      // As it came, but for operands that have been replaced.
      xla::HloInstructionProto original = it->second;
      *original.mutable_operand_ids() = hlo.operand_ids();
      *original.mutable_control_predecessor_ids() =
          hlo.control_predecessor_ids();
      hlo = std::move(original);
    }
  }
  std::string serialized;
  if (!proto.SerializeToString(&serialized)) {
    return absl::InternalError("the rewritten module can't be serialized");
  }
  return serialized;
}

}  // namespace oneshot
