// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/module/module_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "xla/hlo/parser/hlo_parser.h"
#include "xla/service/hlo.pb.h"
#include "xla/service/hlo_verifier.h"
#include "xla_plugin/module/fatal_guard.h"
#include "xla_plugin/module/module_scan.h"
#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"

namespace oneshot {
namespace {

using ::testing::HasSubstr;

constexpr char kModule[] = R"(HloModule m, num_partitions=2
  add { a = f32[] parameter(0)
        b = f32[] parameter(1)
        ROOT s = f32[] add(a, b) }
  ENTRY e {
    x = f32[4,8] parameter(0)
    i = s32[] parameter(1)
    n = s32[] constant(3)
    lt = pred[] compare(i, n), direction=LT
    ar = f32[4,8] all-reduce(x), channel_id=1, replica_groups={{0,1}},
      use_global_device_ids=true, to_apply=add
    res = f32[4,8] parameter(2)
    h = f32[4,8] add(res, ar)
    ROOT t = (f32[4,8], pred[]) tuple(h, lt)
  })";

xla::HloModuleProto Proto(absl::string_view text = kModule) {
  auto module = xla::ParseAndReturnUnverifiedModule(text);
  EXPECT_TRUE(module.ok()) << module.status();
  return (*module)->ToProto();
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

// A mesh with an axis of size one, and a collective over either axis, as newer
// versions write them.
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

// A field from the future: number 30000, a string.
void AddUnknownField(google::protobuf::Message* message) {
  message->GetReflection()->MutableUnknownFields(message)->AddLengthDelimited(
      30000, "TOTAL");
}

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

TEST(ModuleCodecTest, RoundTripLosesNothing) {
  const xla::HloModuleProto proto = Proto();
  const auto decoded = DecodedModule::Decode(proto.SerializeAsString());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  xla::HloModuleProto again;
  ASSERT_TRUE(again.ParseFromString(decoded->Encode().value()));
  ASSERT_EQ(again.computations_size(), proto.computations_size());
  for (int i = 0; i < proto.computations_size(); ++i) {
    EXPECT_EQ(again.computations(i).SerializeAsString(),
              proto.computations(i).SerializeAsString());
  }
}

TEST(ModuleCodecTest, CarriesUnknownFieldsOfInstructionsThatStay) {
  xla::HloModuleProto proto = Proto();
  AddUnknownField(Find(proto, "lt"));
  auto decoded = DecodedModule::Decode(proto.SerializeAsString());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  xla::HloComputation* entry = decoded->module()->entry_computation();
  EXPECT_FALSE(decoded->Understands(entry->GetInstructionWithName("lt")));
  EXPECT_TRUE(decoded->Understands(entry->GetInstructionWithName("ar")));

  // The rest of the module may change meanwhile.
  AllReduceEpilogueFusion pass(AllReduceEpilogueFusion::Platform::kCuda);
  ASSERT_TRUE(pass.Run(decoded->module()).value());
  xla::HloModuleProto after;
  ASSERT_TRUE(after.ParseFromString(decoded->Encode().value()));
  EXPECT_EQ(Find(after, "ar"), nullptr);
  const xla::HloInstructionProto* lt = Find(after, "lt");
  const auto& fields = lt->GetReflection()->GetUnknownFields(*lt);
  ASSERT_EQ(fields.field_count(), 1);
  EXPECT_EQ(fields.field(0).number(), 30000);
  EXPECT_EQ(fields.field(0).length_delimited(), "TOTAL");
}

TEST(ModuleCodecTest, UnderstandsTheOrderOfAComparisonThatItsTypeImplies) {
  for (const auto& [element, type, order, implied] :
       {std::tuple{"s32", "SIGNED", "TOTAL", true},
        {"s32", "SIGNED", "PARTIAL", false},
        {"f32", "FLOAT", "TOTAL", false},
        {"f32", "FLOAT", "PARTIAL", true},
        {"f32", "", "TOTAL", false}}) {
    xla::HloModuleProto proto = Proto(absl::StrCat(
        "HloModule m\n ENTRY e { x = ", element, "[4] parameter(0)\n",
        "ROOT lt = pred[4] compare(x, x), direction=LT }"));
    xla::HloInstructionProto* lt = Find(proto, "lt");
    lt->set_comparison_type(type);
    lt->GetReflection()->MutableUnknownFields(lt)->AddLengthDelimited(102,
                                                                      order);
    const auto decoded = DecodedModule::Decode(proto.SerializeAsString());
    ASSERT_TRUE(decoded.ok()) << decoded.status();
    EXPECT_EQ(decoded->Understands(
                  decoded->module()->entry_computation()->root_instruction()),
              implied)
        << element << " " << type << " " << order;
    // Either way it stays.
    EXPECT_THAT(decoded->Encode().value(), HasSubstr(order));
  }
}

TEST(ModuleCodecTest, OrderMayDiffer) {
  // Any order in which operands and callees come first is the same module.
  xla::HloModuleProto proto = Proto(R"(HloModule m
    add { a = f32[] parameter(0)
          b = f32[] parameter(1)
          ROOT s = f32[] add(a, b) }
    max { c = f32[] parameter(0)
          d = f32[] parameter(1)
          ROOT t = f32[] maximum(c, d) }
    ENTRY e {
      x = f32[4] parameter(0)
      zero = f32[] constant(0)
      one = f32[] constant(1)
      l = f32[] reduce(x, zero), dimensions={0}, to_apply=add
      r = f32[] reduce(x, one), dimensions={0}, to_apply=max
      ROOT t = (f32[], f32[]) tuple(l, r)
    })");
  proto.mutable_computations()->SwapElements(0, 1);
  Find(proto, "zero")->Swap(Find(proto, "one"));
  Find(proto, "l")->Swap(Find(proto, "r"));
  const auto decoded = DecodedModule::Decode(proto.SerializeAsString());
  EXPECT_TRUE(decoded.ok()) << decoded.status();
}

TEST(ModuleCodecTest, RefusesUnknownFieldsElsewhere) {
  for (int where = 0; where < 3; ++where) {
    xla::HloModuleProto proto = Proto();
    if (where == 0) AddUnknownField(&proto);
    if (where == 1) AddUnknownField(proto.mutable_computations(0));
    if (where == 2) AddUnknownField(Find(proto, "x")->mutable_shape());
    const auto decoded = DecodedModule::Decode(proto.SerializeAsString());
    ASSERT_FALSE(decoded.ok()) << where;
    EXPECT_THAT(decoded.status().message(), HasSubstr("does not know"));
  }
}

// Else a result would come back on the device, or a parameter be read there.
TEST(ModuleCodecTest, RefusesEntriesWithArraysOnTheHost) {
  constexpr int64_t kHost = 5;
  const auto refused = [](const xla::HloModuleProto& proto) {
    const auto decoded = DecodedModule::Decode(proto.SerializeAsString());
    ASSERT_FALSE(decoded.ok());
    EXPECT_THAT(decoded.status().message(), HasSubstr("arrays on the host"));
  };
  xla::HloModuleProto proto = Proto();
  proto.mutable_host_program_shape()
      ->mutable_parameters(0)
      ->mutable_layout()
      ->set_memory_space(kHost);
  refused(proto);
  proto = Proto();
  proto.mutable_host_program_shape()
      ->mutable_result()
      ->mutable_tuple_shapes(0)
      ->mutable_layout()
      ->set_memory_space(kHost);
  refused(proto);
}

TEST(ModuleCodecTest, RefusesEntryLayoutsOfTheUsersOwn) {
  xla::HloModuleProto proto = Proto();
  auto* layout = proto.mutable_host_program_shape()
                     ->mutable_parameters(0)
                     ->mutable_layout();
  layout->clear_minor_to_major();
  layout->add_minor_to_major(0);
  layout->add_minor_to_major(1);
  const auto decoded = DecodedModule::Decode(proto.SerializeAsString());
  ASSERT_FALSE(decoded.ok());
  EXPECT_THAT(decoded.status().message(), HasSubstr("layouts of its own"));
}

TEST(ModuleCodecTest, RefusesWhatItWouldChange) {
  // An opcode of the future, and bytes that are no module at all.
  xla::HloModuleProto proto = Proto();
  Find(proto, "lt")->set_opcode("compare-and-swap");
  EXPECT_FALSE(DecodedModule::Decode(proto.SerializeAsString()).ok());
  EXPECT_FALSE(DecodedModule::Decode("\xff\xff\xff").ok());
}

TEST(ModuleCodecTest, GroupsOfOneDeviceSurvive) {
  const xla::HloModuleProto proto = MeshProto();
  auto decoded = DecodedModule::Decode(proto.SerializeAsString());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  xla::HloComputation* entry = decoded->module()->entry_computation();
  EXPECT_FALSE(decoded->Understands(entry->GetInstructionWithName("ag")));
  EXPECT_TRUE(decoded->Understands(entry->GetInstructionWithName("ar")));
  AllReduceEpilogueFusion pass(AllReduceEpilogueFusion::Platform::kCuda);
  EXPECT_TRUE(pass.Run(decoded->module()).value()) << pass.report().ToText();

  xla::HloModuleProto again;
  ASSERT_TRUE(again.ParseFromString(decoded->Encode().value()));
  const xla::HloInstructionProto* gather = Find(again, "ag");
  EXPECT_TRUE(gather->has_mesh_axes_replica_group_list());
  EXPECT_FALSE(gather->has_collective_device_list());
}

TEST(ModuleCodecTest, RefusesImpossibleGroups) {
  xla::HloModuleProto beyond = MeshProto();
  Find(beyond, "ar")
      ->mutable_mesh_axes_replica_group_list()
      ->mutable_axes(0)
      ->set_mesh_axis_index(2);
  EXPECT_THAT(
      std::string(
          DecodedModule::Decode(beyond.SerializeAsString()).status().message()),
      HasSubstr("ar is over axes that its mesh does not have"));

  // XLA would end the process.
  xla::HloModuleProto twice = MeshProto();
  Find(twice, "ar")
      ->mutable_mesh_axes_replica_group_list()
      ->add_axes()
      ->set_mesh_axis_index(1);
  EXPECT_THAT(
      std::string(
          GuardAgainstFatal([&] {
            return DecodedModule::Decode(twice.SerializeAsString()).status();
          }).message()),
      HasSubstr("XLA: Check failed"));
}

TEST(ModuleCodecTest, TakesCountsFromTheDeviceAssignment) {
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
  auto decoded = DecodedModule::Decode(proto.SerializeAsString());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  AllReduceEpilogueFusion pass(AllReduceEpilogueFusion::Platform::kCuda);
  EXPECT_TRUE(pass.Run(decoded->module()).value()) << pass.report().ToText();
}

// What could reach the pass from a version of XLA that writes something else:
// fields that are changed, dropped, doubled or swapped. It must end in an
// error, some of which are XLA's that would end the process, or in a module
// that XLA verifies.
TEST(ModuleCodecTest, SurvivesMutatedModules) {
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
    xla::HloVerifier verifier(/*layout_sensitive=*/false,
                              /*allow_mixed_precision=*/true);
    if (!verifier.Run(decoded->module()).ok()) continue;  // not handed to XLA
    EXPECT_TRUE(decoded->Encode().ok());
  }
  // Some mutations do no harm; then everything has to go on as usual.
  EXPECT_GT(decoded_ok, kMutations / 20);
  EXPECT_GT(fired, kMutations / 50);
}

TEST(ModuleScanTest, FindsAllReducesOnly) {
  xla::HloModuleProto proto = Proto();
  EXPECT_TRUE(HasAllReduce(proto.SerializeAsString()));
  Find(proto, "ar")->set_opcode("all-reduce-start");
  EXPECT_TRUE(HasAllReduce(proto.SerializeAsString()));
  // Only the opcode counts: not a name, not a constant's bytes.
  Find(proto, "ar")->set_opcode("copy");
  Find(proto, "ar")->set_name("all-reduce");
  EXPECT_FALSE(HasAllReduce(proto.SerializeAsString()));
}

TEST(ModuleScanTest, SurvivesAnyBytes) {
  const std::string module = Proto().SerializeAsString();
  for (size_t i = 0; i < module.size(); ++i) {
    HasAllReduce(absl::string_view(module).substr(0, i));
    std::string bent = module;
    bent[i] = static_cast<char>(~bent[i]);
    HasAllReduce(bent);
  }
  EXPECT_FALSE(HasAllReduce(""));
  EXPECT_FALSE(HasAllReduce("\x1a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"));
}

}  // namespace
}  // namespace oneshot
