// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/match/replication.h"

#include <utility>

#include "absl/algorithm/container.h"
#include "absl/container/flat_hash_set.h"
#include "absl/types/span.h"
#include "xla/hlo/ir/hlo_casting_utils.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/hlo/ir/hlo_opcode.h"
#include "xla/hlo/ir/hlo_sharding.h"
#include "xla/service/collective_ops_utils.h"
#include "xla_plugin/match/hlo_operations.h"

namespace oneshot {
namespace {

using ::xla::HloComputation;
using ::xla::HloInstruction;
using ::xla::HloOpcode;

size_t TupleElements(const HloInstruction* hlo) {
  return hlo->shape().IsTuple() ? hlo->shape().tuple_shapes().size() : 1;
}

// Whether the result follows from the operands alone, on every device alike.
bool IsDeterministic(const HloInstruction* hlo) {
  switch (hlo->opcode()) {
    case HloOpcode::kBitcast:
    case HloOpcode::kBroadcast:
    case HloOpcode::kConcatenate:
    case HloOpcode::kConstant:
    case HloOpcode::kDot:
    case HloOpcode::kDynamicSlice:
    case HloOpcode::kDynamicUpdateSlice:
    case HloOpcode::kGather:
    case HloOpcode::kIota:
    case HloOpcode::kPad:
    case HloOpcode::kReduce:
    case HloOpcode::kReshape:
    case HloOpcode::kReverse:
    case HloOpcode::kScatter:
    case HloOpcode::kSlice:
    case HloOpcode::kSort:
    case HloOpcode::kTranspose:
      return true;
    default:
      return IsElementwiseFunction(hlo);
  }
}

// The part of a tensor that each partition holds.
using Tiles = absl::flat_hash_map<int64_t, std::vector<int64_t>>;

// Nothing for shardings that do not divide tensors into parts.
std::optional<Tiles> TilesOf(const xla::HloSharding& sharding) {
  Tiles tiles;
  if (sharding.UseNamedShardingLeaf()) {
    const xla::NamedSharding& named = sharding.named_sharding();
    if (named.IsMaximal() || !named.manual_axes().empty() ||
        !named.unreduced_axes().empty()) {
      return std::nullopt;
    }
    // Of an axis that is split into several, all of it counts.
    std::vector<int64_t> axes;
    for (const auto& dimension : named.dim_shardings()) {
      for (const xla::AxisRef& axis : dimension.axes()) {
        axes.push_back(axis.mesh_axis_index());
      }
    }
    named.mesh().device_assignment().Each(
        [&](absl::Span<const int64_t> place, int64_t id) {
          std::vector<int64_t>& tile = tiles[id];
          for (const int64_t axis : axes) tile.push_back(place[axis]);
        });
    return tiles;
  }
  if (!sharding.IsTiled() || sharding.IsManualSubgroup()) return std::nullopt;
  const int64_t dimensions = sharding.TiledDataRank();
  sharding.tile_assignment().Each(
      [&](absl::Span<const int64_t> place, int64_t id) {
        // Dimensions beyond the tensor's count its copies.
        tiles[id].assign(place.begin(), place.begin() + dimensions);
      });
  return tiles;
}

}  // namespace

std::optional<PartitionGroups> GroupsOfPartitions(
    const HloInstruction* collective) {
  const xla::HloModuleConfig& config = collective->GetModule()->config();
  if (config.replica_count() != 1) return std::nullopt;
  const auto mode = xla::GetCollectiveOpGroupMode(collective);
  using Mode = xla::CollectiveOpGroupMode;
  if (!mode.ok() || (*mode != Mode::COLLECTIVE_OP_GROUP_MODE_FLATTENED_ID &&
                     *mode != Mode::COLLECTIVE_OP_GROUP_MODE_CROSS_PARTITION)) {
    return std::nullopt;
  }
  PartitionGroups groups = collective->device_list().flattened_replica_groups();
  if (groups.empty()) {
    groups.emplace_back();
    for (int64_t id = 0; id < config.num_partitions(); ++id) {
      groups[0].push_back(id);
    }
  }
  absl::flat_hash_set<int64_t> seen;
  for (const std::vector<int64_t>& group : groups) {
    if (group.size() != groups[0].size()) return std::nullopt;
    for (const int64_t id : group) {
      if (id < 0 || id >= config.num_partitions() || !seen.insert(id).second) {
        return std::nullopt;
      }
    }
  }
  if (static_cast<int64_t>(seen.size()) != config.num_partitions()) {
    return std::nullopt;
  }
  return groups;
}

ReplicationAnalysis::ReplicationAnalysis(const xla::HloModule& module,
                                         PartitionGroups groups)
    : groups_(std::move(groups)) {
  const HloComputation* entry = module.entry_computation();
  std::vector<Value> parameters;
  for (const HloInstruction* parameter : entry->parameter_instructions()) {
    parameters.emplace_back(TupleElements(parameter),
                            IsReplicatedParameter(parameter));
  }
  Run(entry, parameters);
}

bool ReplicationAnalysis::IsReplicated(const HloInstruction* hlo) const {
  const auto value = values_.find(hlo);
  return value != values_.end() &&
         absl::c_all_of(value->second, [](bool element) { return element; });
}

// The module is partitioned: the parameter is a shard, and its sharding says of
// what and which.
bool ReplicationAnalysis::IsReplicatedParameter(
    const HloInstruction* parameter) const {
  if (!parameter->has_sharding() || !parameter->shape().IsArray()) return false;
  const xla::HloSharding& sharding = parameter->sharding();
  if (sharding.IsTuple()) return false;
  if (sharding.IsReplicated()) return true;
  const std::optional<Tiles> tiles = TilesOf(sharding);
  if (!tiles.has_value()) return false;
  return absl::c_all_of(groups_, [&](const std::vector<int64_t>& group) {
    return absl::c_all_of(group, [&](int64_t id) {
      const auto tile = tiles->find(id);
      const auto first = tiles->find(group[0]);
      return tile != tiles->end() && first != tiles->end() &&
             tile->second == first->second;
    });
  });
}

// Whether all ranks of each of our groups are in one group of the collective.
bool ReplicationAnalysis::JoinsGroups(const HloInstruction* collective) const {
  const auto joined = GroupsOfPartitions(collective);
  if (!joined.has_value()) return false;
  absl::flat_hash_map<int64_t, size_t> group_of;
  for (size_t i = 0; i < joined->size(); ++i) {
    for (const int64_t id : (*joined)[i]) group_of[id] = i;
  }
  for (const std::vector<int64_t>& group : groups_) {
    for (const int64_t id : group) {
      const auto place = group_of.find(id);
      if (place == group_of.end() || place->second != group_of.at(group[0])) {
        return false;
      }
    }
  }
  return true;
}

ReplicationAnalysis::Value ReplicationAnalysis::TransferWhile(
    const HloInstruction* loop) {
  Value state = values_.at(loop->operand(0));
  // Every round but the last takes something out of `state`.
  while (true) {
    if (Run(loop->while_condition(), {state}) != Value{true}) {
      // Ranks may leave the loop at different times.
      Run(loop->while_body(), {Value(state.size(), false)});
      return Value(state.size(), false);
    }
    const Value after = Run(loop->while_body(), {state});
    Value both = state;
    for (size_t i = 0; i < both.size(); ++i) {
      both[i] = state[i] && i < after.size() && after[i];
    }
    if (both == state) return state;
    state = std::move(both);
  }
}

ReplicationAnalysis::Value ReplicationAnalysis::Transfer(
    const HloInstruction* hlo, const std::vector<Value>& parameters) {
  const size_t elements = TupleElements(hlo);
  const auto all = [&](bool replicated) { return Value(elements, replicated); };
  switch (hlo->opcode()) {
    case HloOpcode::kParameter:
      return parameters[hlo->parameter_number()];
    case HloOpcode::kAllReduce:
    case HloOpcode::kAllGather:
      return all(JoinsGroups(hlo));
    case HloOpcode::kTuple: {
      Value value;
      for (const HloInstruction* operand : hlo->operands()) {
        value.push_back(operand->shape().IsArray() && IsReplicated(operand));
      }
      return value;
    }
    case HloOpcode::kGetTupleElement: {
      const Value& tuple = values_.at(hlo->operand(0));
      return all(hlo->shape().IsArray() && tuple[hlo->tuple_index()]);
    }
    case HloOpcode::kOptimizationBarrier:
      return values_.at(hlo->operand(0));
    case HloOpcode::kWhile:
      return TransferWhile(hlo);
    case HloOpcode::kCall: {
      std::vector<Value> arguments;
      for (const HloInstruction* operand : hlo->operands()) {
        arguments.push_back(values_.at(operand));
      }
      return Run(hlo->to_apply(), arguments);
    }
    default:
      return all(IsDeterministic(hlo) &&
                 absl::c_all_of(hlo->operands(), [&](const auto* operand) {
                   return IsReplicated(operand);
                 }));
  }
}

// A computation that is run more than once, by a loop or by several calls,
// keeps of its values those that were replicated each time.
ReplicationAnalysis::Value ReplicationAnalysis::Run(
    const HloComputation* computation, const std::vector<Value>& parameters) {
  for (const HloInstruction* hlo : computation->MakeInstructionPostOrder()) {
    Value value = Transfer(hlo, parameters);
    const auto [place, is_new] = values_.try_emplace(hlo, value);
    if (is_new) continue;
    for (size_t i = 0; i < value.size(); ++i) {
      place->second[i] = place->second[i] && value[i];
    }
  }
  return values_.at(computation->root_instruction());
}

}  // namespace oneshot
