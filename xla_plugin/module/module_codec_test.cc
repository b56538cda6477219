// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/module/module_codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "xla/service/hlo.pb.h"
#include "xla_plugin/module/fatal_guard.h"
#include "xla_plugin/testing/module_protos.h"

namespace oneshot {
namespace {

using ::testing::HasSubstr;

// A field from the future: number 30000, a string.
void AddUnknownField(google::protobuf::Message* message) {
  message->GetReflection()->MutableUnknownFields(message)->AddLengthDelimited(
      30000, "TOTAL");
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
  ASSERT_TRUE(entry
                  ->ReplaceInstruction(entry->GetInstructionWithName("h"),
                                       entry->GetInstructionWithName("res"))
                  .ok());
  xla::HloModuleProto after;
  ASSERT_TRUE(after.ParseFromString(decoded->Encode().value()));
  EXPECT_EQ(Find(after, "h"), nullptr);
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

// As XLA's own passes make custom-calls, top_k among them: without precisions,
// which XLA writes back as DEFAULT for each operand.
TEST(ModuleCodecTest, WhatSaysNothingMayBeWrittenInAnyWay) {
  xla::HloModuleProto bare = Proto(R"(HloModule m
    ENTRY e {
      x = f32[4,64] parameter(0)
      ROOT top = (f32[4,8], s32[4,8]) custom-call(x),
        custom_call_target="__gpu$TopK"
    })");
  xla::HloInstructionProto* top = Find(bare, "top");
  top->clear_precision_config();
  top->clear_feature_group_count();
  top->clear_batch_group_count();
  auto status = DecodedModule::Decode(bare.SerializeAsString()).status();
  EXPECT_TRUE(status.ok()) << status;
  top->mutable_precision_config();
  top->mutable_metadata();
  top->mutable_frontend_attributes();
  top->mutable_statistics_viz();
  status = DecodedModule::Decode(bare.SerializeAsString()).status();
  EXPECT_TRUE(status.ok()) << status;

  // What says something comes through.
  top->mutable_precision_config()->add_operand_precision(
      xla::PrecisionConfig::HIGHEST);
  top->set_feature_group_count(3);
  const auto decoded = DecodedModule::Decode(bare.SerializeAsString());
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  xla::HloModuleProto again;
  ASSERT_TRUE(again.ParseFromString(decoded->Encode().value()));
  EXPECT_EQ(Find(again, "top")->precision_config().operand_precision(0),
            xla::PrecisionConfig::HIGHEST);
  EXPECT_EQ(Find(again, "top")->feature_group_count(), 3);
}

// XLA reads no precision of a comparison, and none beyond the operands.
TEST(ModuleCodecTest, RefusesToLoseWhatSaysSomething) {
  const auto refused = [](const xla::HloModuleProto& proto,
                          absl::string_view name) {
    const auto status =
        DecodedModule::Decode(proto.SerializeAsString()).status();
    EXPECT_THAT(std::string(status.message()),
                HasSubstr(absl::StrCat(name, " does not survive")));
  };
  xla::HloModuleProto proto = Proto();
  auto* precision = Find(proto, "lt")->mutable_precision_config();
  precision->add_operand_precision(xla::PrecisionConfig::DEFAULT);
  EXPECT_TRUE(DecodedModule::Decode(proto.SerializeAsString()).ok());
  precision->add_operand_precision(xla::PrecisionConfig::HIGHEST);
  refused(proto, "lt");
  precision->clear_operand_precision();
  precision->set_algorithm(xla::PrecisionConfig::ALG_DOT_F32_F32_F32);
  refused(proto, "lt");

  proto = Proto();
  Find(proto, "lt")->set_batch_group_count(2);
  refused(proto, "lt");

  proto = Proto(R"(HloModule m
    ENTRY e { x = f32[4] parameter(0)
              ROOT c = f32[4] custom-call(x), custom_call_target="f" })");
  precision = Find(proto, "c")->mutable_precision_config();
  precision->clear_operand_precision();
  precision->add_operand_precision(xla::PrecisionConfig::DEFAULT);
  precision->add_operand_precision(xla::PrecisionConfig::HIGHEST);
  refused(proto, "c");
}

// Layout.AUTO leaves a layout to XLA, and the default is one that it may
// choose.
TEST(ModuleCodecTest, TakesEntryLayoutsThatAreLeftToXla) {
  xla::HloModuleProto proto = Proto();
  xla::ProgramShapeProto* shape = proto.mutable_host_program_shape();
  shape->mutable_parameters(0)->clear_layout();
  shape->mutable_result()->mutable_tuple_shapes(0)->clear_layout();
  const auto status = DecodedModule::Decode(proto.SerializeAsString()).status();
  EXPECT_TRUE(status.ok()) << status;

  // Neither another argument's own layout nor memory of the host goes with it.
  xla::HloModuleProto own = proto;
  auto* layout =
      own.mutable_host_program_shape()->mutable_parameters(2)->mutable_layout();
  layout->set_minor_to_major(0, 0);
  layout->set_minor_to_major(1, 1);
  EXPECT_THAT(
      std::string(
          DecodedModule::Decode(own.SerializeAsString()).status().message()),
      HasSubstr("layouts of its own"));
  xla::HloModuleProto host = proto;
  constexpr int64_t kHost = 5;
  Find(host, "x")->mutable_shape()->mutable_layout()->set_memory_space(kHost);
  EXPECT_THAT(
      std::string(
          DecodedModule::Decode(host.SerializeAsString()).status().message()),
      HasSubstr("arrays on the host"));
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

}  // namespace
}  // namespace oneshot
