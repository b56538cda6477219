// SPDX-License-Identifier: Apache-2.0
//
// Serialized modules through decoder, pass and encoder.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "xla/service/hlo.pb.h"
#include "xla_plugin/module/fatal_guard.h"
#include "xla_plugin/module/module_codec.h"
#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"
#include "xla_plugin/testing/hlo_modules.h"
#include "xla_plugin/testing/module_protos.h"

namespace oneshot {
namespace {

// Any scalar or repeated field of any message, somewhere in the module.
void Mutate(google::protobuf::Message& message, std::mt19937& random) {
  using google::protobuf::FieldDescriptor;
  const auto* reflection = message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection->ListFields(message, &fields);
  if (fields.empty()) return;
  const FieldDescriptor* field = fields[random() % fields.size()];
  const bool message_field =
      field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
  if (field->is_repeated()) {
    const int size = reflection->FieldSize(message, field);
    const int at = random() % size;
    if (message_field && random() % 8 != 0) {
      return Mutate(*reflection->MutableRepeatedMessage(&message, field, at),
                    random);
    }
    if (random() % 2) {
      reflection->SwapElements(&message, field, at, random() % size);
    } else {
      reflection->RemoveLast(&message, field);
    }
    return;
  }
  if (message_field && random() % 8 != 0) {
    return Mutate(*reflection->MutableMessage(&message, field), random);
  }
  const int64_t values[] = {0, -1, 1, 2, 3, 7, 1000, int64_t{1} << 40};
  const int64_t value = values[random() % 8];
  switch (field->cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64:
      return reflection->SetInt64(&message, field, value);
    case FieldDescriptor::CPPTYPE_INT32:
      return reflection->SetInt32(&message, field, static_cast<int>(value));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection->SetBool(&message, field, value % 2 != 0);
    case FieldDescriptor::CPPTYPE_ENUM:
      return reflection->SetEnumValue(&message, field, random() % 40);
    case FieldDescriptor::CPPTYPE_STRING:
      return reflection->SetString(&message, field, random() % 2 ? "" : "tanh");
    default:
      return reflection->ClearField(&message, field);
  }
}

// The module that the pass makes of `proto`, in which it has to fuse something.
xla::HloModuleProto Fused(const xla::HloModuleProto& proto) {
  xla::HloModuleProto after;
  auto decoded = DecodedModule::Decode(proto.SerializeAsString());
  EXPECT_TRUE(decoded.ok()) << decoded.status();
  if (!decoded.ok()) return after;
  AllReduceEpilogueFusion pass(AllReduceEpilogueFusion::Platform::kCuda);
  EXPECT_TRUE(pass.Run(decoded->module()).value()) << pass.report().ToJson();
  EXPECT_TRUE(after.ParseFromString(decoded->Encode().value()));
  return after;
}

TEST(RoundTripTest, CarriesUnknownFieldsOfInstructionsThatStay) {
  xla::HloModuleProto proto = Proto();
  xla::HloInstructionProto* before = Find(proto, "lt");
  before->GetReflection()->MutableUnknownFields(before)->AddLengthDelimited(
      30000, "TOTAL");
  xla::HloModuleProto after = Fused(proto);
  EXPECT_EQ(Find(after, "ar"), nullptr);
  const xla::HloInstructionProto* lt = Find(after, "lt");
  ASSERT_NE(lt, nullptr);
  const auto& fields = lt->GetReflection()->GetUnknownFields(*lt);
  ASSERT_EQ(fields.field_count(), 1);
  EXPECT_EQ(fields.field(0).number(), 30000);
  EXPECT_EQ(fields.field(0).length_delimited(), "TOTAL");
}

TEST(RoundTripTest, GroupsOfOneDeviceSurvive) {
  xla::HloModuleProto after = Fused(MeshProto());
  EXPECT_EQ(Find(after, "ar"), nullptr);
  const xla::HloInstructionProto* gather = Find(after, "ag");
  ASSERT_NE(gather, nullptr);
  EXPECT_TRUE(gather->has_mesh_axes_replica_group_list());
  EXPECT_FALSE(gather->has_collective_device_list());
}

TEST(RoundTripTest, TakesCountsFromTheDeviceAssignment) {
  xla::HloModuleProto proto = Proto(R"(HloModule m, replica_count=2
    add { a = f32[] parameter(0)
          b = f32[] parameter(1)
          ROOT s = f32[] add(a, b) }
    ENTRY e {
      x = f32[8] parameter(0)
      ROOT ar = f32[8] all-reduce(x), replica_groups={}, to_apply=add
    })");
  xla::DeviceAssignmentProto* assignment = proto.mutable_device_assignment();
  assignment->set_replica_count(2);
  assignment->set_computation_count(1);
  auto* devices = assignment->add_computation_devices();
  devices->add_replica_device_ids(0);
  devices->add_replica_device_ids(1);
  xla::HloModuleProto after = Fused(proto);
  EXPECT_EQ(Find(after, "ar"), nullptr);
}

// What could reach the pass from a version of XLA that writes something else:
// fields that are changed, dropped, doubled or swapped. It must end in an
// error, some of which are XLA's that would end the process, or in a module
// that XLA verifies.
TEST(RoundTripTest, SurvivesMutatedModules) {
  std::mt19937 random(0);
  const xla::HloModuleProto originals[] = {Proto(), MeshProto()};
  int decoded_ok = 0;
  int fired = 0;
  constexpr int kMutations = 3000;
  for (int i = 0; i < kMutations; ++i) {
    xla::HloModuleProto proto = originals[i % 2];
    for (int m = random() % 3; m >= 0; --m) Mutate(proto, random);
    absl::StatusOr<DecodedModule> decoded;
    const absl::Status status = GuardAgainstFatal([&] {
      decoded = DecodedModule::Decode(proto.SerializeAsString());
      return decoded.status();
    });
    if (!status.ok()) continue;
    ++decoded_ok;
    AllReduceEpilogueFusion pass(AllReduceEpilogueFusion::Platform::kCuda,
                                 [&](const xla::HloInstruction* hlo) {
                                   return decoded->Understands(hlo);
                                 });
    const auto changed = pass.Run(decoded->module());
    if (!changed.ok() || !*changed) continue;
    ++fired;
    if (!Verify(decoded->module()).ok()) continue;  // not handed to XLA
    EXPECT_TRUE(decoded->Encode().ok());
  }
  // Some mutations do no harm; then everything has to go on as usual.
  EXPECT_GT(decoded_ok, kMutations / 20);
  EXPECT_GT(fired, kMutations / 50);
}

}  // namespace
}  // namespace oneshot
