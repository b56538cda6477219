// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/testing/module_protos.h"

#include <utility>

#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {

xla::HloModuleProto Proto(absl::string_view text) {
  return ParseModule(text)->ToProto();
}

xla::HloModuleProto MeshProto() {
  xla::HloModuleProto proto = Proto(R"(HloModule m, num_partitions=2
    add { a = f32[] parameter(0)
          b = f32[] parameter(1)
          ROOT s = f32[] add(a, b) }
    ENTRY e {
      x = f32[4,8] parameter(0)
      ag = f32[4,8] all-gather(x), channel_id=2, dimensions={0},
        replica_groups={{0},{1}}, use_global_device_ids=true
      ar = f32[4,8] all-reduce(ag), channel_id=1, replica_groups={{0,1}},
        use_global_device_ids=true, to_apply=add
      ROOT h = f32[4,8] add(x, ar)
    })");
  for (const char* name : {"ag", "ar"}) {
    xla::HloInstructionProto* hlo = Find(proto, name);
    hlo->clear_collective_device_list();
    auto* groups = hlo->mutable_mesh_axes_replica_group_list();
    for (const auto& [axis, size] : {std::pair{"dp", 1}, {"tp", 2}}) {
      auto* part = groups->mutable_mesh()->add_axes();
      part->set_name(axis);
      part->set_size(size);
    }
    groups->add_axes()->set_mesh_axis_index(hlo->name() == "ar");
  }
  return proto;
}

xla::HloInstructionProto* Find(xla::HloModuleProto& proto,
                               absl::string_view name) {
  for (auto& computation : *proto.mutable_computations()) {
    for (auto& hlo : *computation.mutable_instructions()) {
      if (hlo.name() == name) return &hlo;
    }
  }
  return nullptr;
}

}  // namespace oneshot
