// SPDX-License-Identifier: Apache-2.0
//
// Each case is a few lines of HLO in the form that JAX 0.11 hands to the pass,
// GPU (before layout assignment, bf16) or CPU (scheduled, promoted to f32).

#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/substitute.h"
#include "absl/synchronization/notification.h"
#include "xla/hlo/ir/hlo_casting_utils.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/hlo/ir/mesh_and_axis.h"
#include "xla/hlo/ir/replica_group.h"
#include "xla/hlo/parser/hlo_parser.h"
#include "xla/service/hlo_verifier.h"

namespace oneshot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr absl::string_view kComputations = R"(
add_bf16 {
  a = bf16[] parameter(0)
  b = bf16[] parameter(1)
  ROOT s = bf16[] add(a, b)
}
add_f32 {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT s = f32[] add(a, b)
}
max_f32 {
  a = f32[] parameter(0)
  b = f32[] parameter(1)
  ROOT s = f32[] maximum(a, b)
}
)";

// What GROUPS stands for in the cases: two ranks, as GSPMD writes them.
constexpr absl::string_view kGroups =
    "channel_id=1, replica_groups={{0,1}}, use_global_device_ids=true";

// What RMS_NORM(h) stands for: the f32 normalised value "n" of bf16 "h".
constexpr absl::string_view kNorm = R"(
  hf = f32[4,8] convert(h)
  sq = f32[4,8] multiply(hf, hf)
  zero = f32[] constant(0)
  ss = f32[4] reduce(sq, zero), dimensions={1}, to_apply=add_f32
  inv = f32[] constant(0.125)
  invs = f32[4] broadcast(inv), dimensions={}
  ms = f32[4] multiply(ss, invs)
  eps = f32[] constant(1e-5)
  epss = f32[4] broadcast(eps), dimensions={}
  shifted = f32[4] add(ms, epss)
  r = f32[4] rsqrt(shifted)
  rb = f32[4,8] broadcast(r), dimensions={0}
  n = f32[4,8] multiply(hf, rb)
)";

class FusionTest : public ::testing::Test {
 protected:
  using Platform = AllReduceEpilogueFusion::Platform;

  // Runs the pass on `hlo`, after which the module has to be valid.
  void Run(
      absl::string_view hlo, Platform platform = Platform::kCuda,
      MayAbsorb may_absorb = [](const xla::HloInstruction*) { return true; }) {
    const std::string text = absl::StrReplaceAll(
        hlo, {{"GROUPS", kGroups},
              {"RMS_NORM(h)", kNorm},
              {"HEADER", absl::StrCat("HloModule m, num_partitions=2\n",
                                      kComputations)}});
    auto module = xla::ParseAndReturnUnverifiedModule(text);
    ASSERT_TRUE(module.ok()) << module.status() << "\n" << text;
    module_ = *std::move(module);
    Verify();
    AllReduceEpilogueFusion pass(platform, std::move(may_absorb));
    const auto changed = pass.Run(module_.get());
    ASSERT_TRUE(changed.ok()) << changed.status();
    report_ = pass.report();
    EXPECT_EQ(*changed, report_.fired() > 0);
    Verify();
  }

  // Wraps an entry computation around `body` and runs the pass.
  void RunEntry(absl::string_view body, Platform platform = Platform::kCuda) {
    Run(absl::StrCat("HEADER\nENTRY e {", body, "}"), platform);
  }

  void Verify() {
    xla::HloVerifier verifier(/*layout_sensitive=*/false,
                              /*allow_mixed_precision=*/true);
    const auto status = verifier.Run(module_.get()).status();
    ASSERT_TRUE(status.ok()) << status << "\n" << module_->ToString();
  }

  std::vector<const xla::HloInstruction*> Calls() const {
    std::vector<const xla::HloInstruction*> calls;
    for (const auto* computation : module_->computations()) {
      for (const auto* hlo : computation->MakeInstructionPostOrder()) {
        if (hlo->IsCustomCall(kCustomCallTarget)) calls.push_back(hlo);
      }
    }
    return calls;
  }

  // Names of the operands of the only custom-call.
  std::vector<std::string> Operands() const {
    std::vector<std::string> names;
    EXPECT_EQ(Calls().size(), 1);
    for (const auto* operand : Calls().at(0)->operands()) {
      names.emplace_back(operand->name());
    }
    return names;
  }

  // Shapes of its results.
  std::vector<xla::Shape> Results() const {
    EXPECT_EQ(Calls().size(), 1);
    const xla::Shape& shape = Calls().at(0)->shape();
    return shape.IsTuple() ? shape.tuple_shapes() : std::vector{shape};
  }

  std::string Attributes() const {
    EXPECT_EQ(Calls().size(), 1);
    return Calls().at(0)->raw_backend_config_string();
  }

  // What the first custom-call computes.
  std::string Program() const { return report_.all_reduces.at(0).program; }

  bool Has(xla::HloOpcode opcode) const {
    for (const auto* computation : module_->computations()) {
      for (const auto* hlo : computation->instructions()) {
        if (hlo->opcode() == opcode) return true;
      }
    }
    return false;
  }

  // Asserts that the first all-reduce has been replaced as `epilogue`.
  void ExpectFused(absl::string_view epilogue) {
    ASSERT_FALSE(report_.all_reduces.empty());
    EXPECT_EQ(report_.all_reduces[0].epilogue, epilogue);
    EXPECT_EQ(report_.all_reduces[0].reason, "");
    EXPECT_FALSE(Has(xla::HloOpcode::kAllReduce)) << module_->ToString();
  }

  // Asserts that the only all-reduce stands as it did.
  void ExpectDeclined(absl::string_view reason) {
    ASSERT_EQ(report_.all_reduces.size(), 1);
    EXPECT_THAT(report_.all_reduces[0].reason, HasSubstr(std::string(reason)));
    EXPECT_THAT(Calls(), IsEmpty());
  }

  std::unique_ptr<xla::HloModule> module_;
  ModuleReport report_;
};

// --------------------------------------------------------------------------
// The all-reduce alone

TEST_F(FusionTest, BareAllReduce) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    ROOT ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16,
      metadata={op_name="jit(step)/layer_3/dot_general" source_file="m.py" source_line=7}
  )");
  ExpectFused("none");
  EXPECT_THAT(Operands(), ElementsAre("x"));
  EXPECT_EQ(Program(), "x bf16; v0 = sum.bf16; out0 v0 bf16");
  EXPECT_THAT(Attributes(), HasSubstr("rows = 1 : i64"));
  EXPECT_THAT(Attributes(), HasSubstr("hidden = 32 : i64"));
  EXPECT_THAT(Attributes(), HasSubstr("replica_groups = array<i64: 0, 1>"));
  EXPECT_EQ(report_.all_reduces[0].source, "m.py:7");
  EXPECT_EQ(report_.all_reduces[0].bytes, 64);
  // Profilers name the call after the layer, and by what it does.
  EXPECT_EQ(Calls()[0]->metadata().op_name(), "jit(step)/layer_3/dot_general");
  EXPECT_EQ(Calls()[0]->name(), "oneshot_all_reduce");
  EXPECT_TRUE(xla::Cast<xla::HloCustomCallInstruction>(Calls()[0])
                  ->layout_constrained());
}

TEST_F(FusionTest, SourceIsALineOfTheProgram) {
  // XLA's text has the parents' numbers plus one.
  Run(absl::StrCat("HloModule m, num_partitions=2\n", R"(
FileNames
1 "train.py"
2 "model.py"
3 "/venv/lib/python3.12/site-packages/flax/nnx/nn/linear.py"

FunctionNames
1 "f"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=1}
2 {file_name_id=2 function_name_id=1 line=86 end_line=86 column=1 end_column=1}
3 {file_name_id=3 function_name_id=1 line=9 end_line=9 column=1 end_column=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=3 parent_frame_id=4}
5 {file_location_id=3 parent_frame_id=1}
)",
                   kComputations, R"(
ENTRY e {
  x = bf16[4,8] parameter(0)
  y = bf16[4,8] parameter(1)
  a = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16,
    metadata={stack_frame_id=4}
  b = bf16[4,8] all-reduce(y), GROUPS, to_apply=add_bf16,
    metadata={stack_frame_id=5}
  ROOT t = (bf16[4,8], bf16[4,8]) tuple(a, b)
}
)"));
  ASSERT_EQ(report_.all_reduces.size(), 2);
  EXPECT_EQ(report_.all_reduces[0].source, "model.py:86");
  EXPECT_EQ(report_.all_reduces[1].source,
            "/venv/lib/python3.12/site-packages/flax/nnx/nn/linear.py:9");
}

TEST_F(FusionTest, RoundingFollowsTheConverts) {
  // As on CPU, where the sum of bf16 values is promoted to f32.
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    c = bf16[4,8] convert(ar)
    w = f32[4,8] convert(c)
    res = f32[4,8] parameter(1)
    ROOT h = f32[4,8] add(w, res)
  )");
  ExpectFused("residual");
  EXPECT_EQ(Program(),
            "x f32; in0 element f32; v0 = sum; v1 = convert.bf16 v0; v2 = in0; "
            "v3 = add v1 v2; out0 v3 f32");
}

TEST_F(FusionTest, SendsTheNarrowValue) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    w = f32[4,8] convert(x)
    ROOT ar = f32[4,8] all-reduce(w), GROUPS, to_apply=add_f32
  )");
  ExpectFused("none");
  EXPECT_THAT(Operands(), ElementsAre("x"));
  EXPECT_EQ(Program(), "x bf16; v0 = sum; out0 v0 f32");
  EXPECT_EQ(report_.all_reduces[0].bytes, 64);
}

TEST_F(FusionTest, LeavesTrailingWideningAndReshapeToTheConsumer) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    w = f32[4,8] convert(ar)
    ROOT s = f32[32] reshape(w)
  )");
  ExpectFused("none");
  EXPECT_EQ(Results().at(0).element_type(), xla::BF16);
  EXPECT_TRUE(Has(xla::HloOpcode::kReshape));
}

TEST_F(FusionTest, EveryFormOfReplicaGroups) {
  const auto ids = [&](absl::string_view header, absl::string_view groups) {
    Run(absl::StrCat("HloModule m, ", header, kComputations, R"(
      ENTRY e {
        x = f32[8] parameter(0)
        ROOT ar = f32[8] all-reduce(x), )",
                     groups, R"(, to_apply=add_f32
      })"));
    EXPECT_EQ(report_.fired(), 1) << report_.ToText();
    const std::string text = Attributes();
    const size_t begin = text.find("array<i64: ") + 11;
    return text.substr(begin, text.find('>') - begin);
  };
  EXPECT_EQ(ids("num_partitions=4",
                "channel_id=1, replica_groups={{0,2},{1,3}}, "
                "use_global_device_ids=true"),
            "0, 2, 1, 3");
  EXPECT_EQ(ids("num_partitions=4",
                "channel_id=1, replica_groups=[2,2]<=[4], "
                "use_global_device_ids=true"),
            "0, 1, 2, 3");
  EXPECT_EQ(ids("num_partitions=4",
                "channel_id=1, replica_groups=[2,2]<=[2,2]T(1,0), "
                "use_global_device_ids=true"),
            "0, 2, 1, 3");
}

TEST_F(FusionTest, MeshAxesReplicaGroups) {
  // As jaxlib 0.11 writes them; the text form has no parser.
  RunEntry("ROOT x = f32[8] parameter(0)");
  xla::HloComputation* entry = module_->entry_computation();
  const xla::Mesh mesh({2, 2}, {"dp", "tp"});
  const xla::MeshAxesReplicaGroupList groups(mesh, {xla::AxisRef(0)});
  xla::HloComputation* add = nullptr;
  for (xla::HloComputation* computation : module_->computations()) {
    if (computation->name() == "add_f32") add = computation;
  }
  entry->set_root_instruction(
      entry->AddInstruction(xla::HloInstruction::CreateAllReduce(
          entry->root_instruction()->shape(), {entry->root_instruction()}, add,
          groups, /*constrain_layout=*/false, /*channel_id=*/1,
          /*use_global_device_ids=*/true)));
  AllReduceEpilogueFusion pass(Platform::kCuda);
  ASSERT_TRUE(pass.Run(module_.get()).value());
  EXPECT_THAT(Attributes(),
              HasSubstr("replica_groups = array<i64: 0, 2, 1, 3>"));
}

TEST_F(FusionTest, CrossReplicaGroupsNeedADeviceAssignment) {
  RunEntry(R"(
    x = f32[8] parameter(0)
    ROOT ar = f32[8] all-reduce(x), replica_groups={}, to_apply=add_f32
  )");
  ExpectDeclined("device assignment");
}

TEST_F(FusionTest, WhileBodyAndCalledComputation) {
  Run(R"(HEADER
    body {
      p = (s32[], f32[8], f32[8]) parameter(0)
      i = s32[] get-tuple-element(p), index=0
      x = f32[8] get-tuple-element(p), index=1
      res = f32[8] get-tuple-element(p), index=2
      ar = f32[8] all-reduce(x), GROUPS, to_apply=add_f32
      h = f32[8] add(res, ar)
      one = s32[] constant(1)
      next = s32[] add(i, one)
      ROOT t = (s32[], f32[8], f32[8]) tuple(next, h, x)
    }
    cond {
      p = (s32[], f32[8], f32[8]) parameter(0)
      i = s32[] get-tuple-element(p), index=0
      n = s32[] constant(3)
      ROOT lt = pred[] compare(i, n), direction=LT
    }
    callee {
      x = f32[8] parameter(0)
      ROOT ar = f32[8] all-reduce(x), channel_id=2, replica_groups={{0,1}},
        use_global_device_ids=true, to_apply=add_f32
    }
    ENTRY e {
      t = (s32[], f32[8], f32[8]) parameter(0)
      w = (s32[], f32[8], f32[8]) while(t), condition=cond, body=body
      h = f32[8] get-tuple-element(w), index=2
      ROOT c = f32[8] call(h), to_apply=callee
    })");
  EXPECT_EQ(report_.fired(), 2);
  EXPECT_EQ(Calls().size(), 2);
}

TEST_F(FusionTest, HostCallsAreToldTheirIds) {
  RunEntry(R"(
    x = f32[8] parameter(0)
    ROOT ar = f32[8] all-reduce(x), GROUPS, to_apply=add_f32
  )",
           Platform::kHost);
  ExpectFused("none");
  ASSERT_EQ(Calls()[0]->operand_count(), 3);
  EXPECT_EQ(Calls()[0]->operand(1)->opcode(), xla::HloOpcode::kReplicaId);
  EXPECT_EQ(Calls()[0]->operand(2)->opcode(), xla::HloOpcode::kPartitionId);
}

TEST_F(FusionTest, KeepsAScheduleValid) {
  Run(R"(HloModule m, is_scheduled=true, num_partitions=2
    add_f32 {
      a = f32[] parameter(0)
      b = f32[] parameter(1)
      ROOT s = f32[] add(a, b)
    }
    ENTRY e {
      x = f32[8]{0} parameter(0)
      ar = f32[8]{0} all-reduce(x), GROUPS, to_apply=add_f32
      res = f32[8]{0} parameter(1)
      ROOT h = f32[8]{0} add(ar, res)
    })",
      Platform::kHost);
  ExpectFused("residual");
  EXPECT_TRUE(module_->schedule().Verify().ok());
}

TEST_F(FusionTest, RemovesTheAllReduceThatXlaWouldKeep) {
  // Without SPMD partitioning a channel makes it a side effect.
  Run(absl::StrCat("HloModule m, replica_count=2", kComputations, R"(
    ENTRY e {
      x = f32[4,8] parameter(0)
      ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
      ROOT h = f32[4,8] add(x, ar)
    })"));
  ExpectFused("residual");
}

// --------------------------------------------------------------------------
// Bias and residual

TEST_F(FusionTest, ResidualOnEitherSide) {
  for (const absl::string_view add : {"add(ar, res)", "add(res, ar)"}) {
    RunEntry(absl::StrCat(R"(
      x = bf16[4,8] parameter(0)
      res = bf16[4,8] parameter(1)
      ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
      ROOT h = bf16[4,8] )",
                          add));
    ExpectFused("residual");
    EXPECT_THAT(Operands(), ElementsAre("x", "res"));
    EXPECT_THAT(Program(), HasSubstr("= add.bf16 "));
  }
}

TEST_F(FusionTest, BiasAndResidualInEitherOrder) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    bias = bf16[8] parameter(1)
    bb = bf16[4,8] broadcast(bias), dimensions={1}
    biased = bf16[4,8] add(ar, bb)
    res = bf16[4,8] parameter(2)
    ROOT h = bf16[4,8] add(res, biased)
  )");
  ExpectFused("bias+residual");
  EXPECT_THAT(Operands(), ElementsAre("x", "bias", "res"));
  EXPECT_THAT(Program(), HasSubstr("in0 column bf16; in1 element bf16"));
  EXPECT_THAT(Attributes(), HasSubstr("hidden = 8 "));

  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    res = bf16[4,8] parameter(1)
    h = bf16[4,8] add(res, ar)
    bias = f32[8] parameter(2)
    bb = f32[4,8] broadcast(bias), dimensions={1}
    hf = f32[4,8] convert(h)
    ROOT out = f32[4,8] add(hf, bb)
  )");
  ExpectFused("residual+bias");
  EXPECT_THAT(Operands(), ElementsAre("x", "res", "bias"));
  EXPECT_EQ(
      Program(),
      "x bf16; in0 element bf16; in1 column f32; v0 = sum.bf16; v1 = in0; "
      "v2 = add.bf16 v1 v0; v3 = in1; v4 = add v2 v3; out0 v4 f32");
}

TEST_F(FusionTest, DegenerateDimensionsAndReshapes) {
  RunEntry(R"(
    x = bf16[8] parameter(0)
    ar = bf16[8] all-reduce(x), GROUPS, to_apply=add_bf16
    r = bf16[1,1,8] reshape(ar)
    res = bf16[1,1,8] parameter(1)
    ROOT h = bf16[1,1,8] add(res, r)
  )");
  ExpectFused("residual");
  EXPECT_FALSE(Has(xla::HloOpcode::kReshape));
}

TEST_F(FusionTest, MaskOfRows) {
  // An embedding of indices that may be out of range.
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    valid = pred[4] parameter(1)
    mask = pred[4,8] broadcast(valid), dimensions={0}
    invalid = bf16[] constant(nan)
    row = bf16[4,8] broadcast(invalid), dimensions={}
    ROOT h = bf16[4,8] select(mask, ar, row)
  )");
  ExpectFused("select");
  EXPECT_EQ(
      Program(),
      "x bf16; in0 row bf16; v0 = sum.bf16; v1 = in0; v2 = constant 0x0p+0; "
      "v3 = ne v1 v2; v4 = constant nan; v5 = select.bf16 v3 v0 v4; "
      "out0 v5 bf16");
  const xla::HloInstruction* mask = Calls()[0]->operand(1);
  EXPECT_EQ(mask->opcode(), xla::HloOpcode::kConvert);
  EXPECT_EQ(mask->operand(0)->name(), "valid");
}

TEST_F(FusionTest, WholeMaskIsNotTakenIn) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    mask = pred[4,8] parameter(1)
    ROOT h = bf16[4,8] select(mask, ar, x)
  )");
  ExpectFused("none");
}

TEST_F(FusionTest, OperandsOfEveryExtent) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    row = f32[4] parameter(1)
    rowb = f32[4,8] broadcast(row), dimensions={0}
    a = f32[4,8] add(ar, rowb)
    column = bf16[8] parameter(2)
    columnf = f32[8] convert(column)
    columnb = f32[4,8] broadcast(columnf), dimensions={1}
    b = f32[4,8] multiply(a, columnb)
    scalar = f16[] parameter(3)
    scalarb = f16[4,8] broadcast(scalar), dimensions={}
    scalarf = f32[4,8] convert(scalarb)
    c = f32[4,8] maximum(b, scalarf)
    element = f32[32] parameter(4)
    elementr = f32[4,8] reshape(element)
    d = f32[4,8] subtract(c, elementr)
    two = f32[] constant(2)
    twob = f32[4,8] broadcast(two), dimensions={}
    ROOT e = f32[4,8] divide(d, twob)
  )");
  EXPECT_THAT(Operands(),
              ElementsAre("x", "row", "column", "scalar", "element"));
  EXPECT_EQ(Program(),
            "x f32; in0 row f32; in1 column bf16; in2 scalar f16; "
            "in3 element f32; v0 = sum; v1 = in0; v2 = add v0 v1; v3 = in1; "
            "v4 = multiply v2 v3; v5 = in2; v6 = maximum v4 v5; v7 = in3; "
            "v8 = subtract v6 v7; v9 = constant 0x1p+1; v10 = divide v8 v9; "
            "out0 v10 f32");
}

TEST_F(FusionTest, ABroadcastOfAnotherKindIsReadAsAWhole) {
  RunEntry(R"(
    x = f32[2,3,8] parameter(0)
    ar = f32[2,3,8] all-reduce(x), GROUPS, to_apply=add_f32
    b = f32[2,8] parameter(1)
    bb = f32[2,3,8] broadcast(b), dimensions={0,2}
    ROOT h = f32[2,3,8] add(ar, bb)
  )");
  ExpectFused("residual");
  EXPECT_THAT(Operands(), ElementsAre("x", "bb"));
}

TEST_F(FusionTest, PredicatesAndSelection) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    lo = f32[] parameter(1)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    zero = f32[] constant(0)
    zeros = f32[4,8] broadcast(zero), dimensions={}
    p = pred[4,8] compare(ar, zeros), direction=GT
    q = pred[4,8] is-finite(ar)
    pq = pred[4,8] and(p, q)
    e = f32[4,8] exponential(ar)
    s = f32[4,8] select(pq, e, zeros)
    one = f32[] constant(1)
    c = f32[4,8] clamp(lo, s, one)
    f = f32[4,8] convert(pq)
    ROOT t = f32[4,8] multiply(c, f)
  )");
  EXPECT_EQ(Program(),
            "x f32; in0 scalar f32; v0 = sum; v1 = constant 0x0p+0; "
            "v2 = gt v0 v1; v3 = is_finite v0; v4 = and v2 v3; v5 = exp v0; "
            "v6 = select v4 v5 v1; v7 = in0; v8 = constant 0x1p+0; "
            "v9 = clamp v7 v6 v8; v10 = convert v4; v11 = multiply v9 v10; "
            "out0 v11 f32");
}

TEST_F(FusionTest, APredicateIsNoResult) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    e = f32[4,8] exponential(ar)
    zero = f32[] constant(0)
    zeros = f32[4,8] broadcast(zero), dimensions={}
    ROOT p = pred[4,8] compare(e, zeros), direction=GT
  )");
  EXPECT_EQ(Program(), "x f32; v0 = sum; v1 = exp v0; out0 v1 f32");
  EXPECT_TRUE(Has(xla::HloOpcode::kCompare));
}

TEST_F(FusionTest, TheTotalOrderStays) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    zero = f32[] constant(0)
    zeros = f32[4,8] broadcast(zero), dimensions={}
    p = pred[4,8] compare(ar, zeros), direction=GT, type=TOTALORDER
    ROOT s = f32[4,8] select(p, ar, zeros)
  )");
  ExpectFused("none");
  EXPECT_TRUE(Has(xla::HloOpcode::kSelect));
}

TEST_F(FusionTest, IntegersStay) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    i = s32[4,8] convert(ar)
    f = f32[4,8] convert(i)
    ROOT s = f32[4,8] add(ar, f)
  )");
  ExpectFused("none");
  ASSERT_FALSE(report_.all_reduces[0].stopped.empty());
  EXPECT_EQ(report_.all_reduces[0].stopped[0].instruction, "i");
  EXPECT_THAT(report_.all_reduces[0].stopped[0].reason, HasSubstr("S32"));
}

TEST_F(FusionTest, Quantization) {
  // By a known scale, to 8 bits of any kind; the unquantized value is read too.
  for (const char* type : {"f8e4m3fn", "f8e5m2", "s8"}) {
    RunEntry(absl::StrReplaceAll(R"(
      x = bf16[4,8] parameter(0)
      scale = bf16[] parameter(1)
      w = TYPE[8,8] parameter(2)
      ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
      scales = bf16[4,8] broadcast(scale), dimensions={}
      d = bf16[4,8] divide(ar, scales)
      low = bf16[] constant(-100)
      high = bf16[] constant(100)
      c = bf16[4,8] clamp(low, d, high)
      q = TYPE[4,8] convert(c)
      dot = f32[4,8] dot(q, w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
      ROOT out = (f32[4,8], bf16[4,8]) tuple(dot, ar)
    )",
                                 {{"TYPE", type}}));
    ExpectFused(absl::StrCat("divide+clamp+", type));
    EXPECT_EQ(Program(),
              absl::StrCat("x bf16; in0 scalar bf16; v0 = sum.bf16; v1 = in0; "
                           "v2 = divide.bf16 v0 v1; v3 = constant -0x1.9p+6; "
                           "v4 = constant 0x1.9p+6; v5 = clamp.bf16 v3 v2 v4; "
                           "out0 v0 bf16; out1 v5 ",
                           type));
    ASSERT_EQ(Results().size(), 2);
    EXPECT_EQ(Results()[1].element_type(), module_->entry_computation()
                                               ->parameter_instruction(2)
                                               ->shape()
                                               .element_type());
    EXPECT_FALSE(Has(xla::HloOpcode::kConvert));
  }
}

TEST_F(FusionTest, QuantizationByTheLargestOfARow) {
  // The largest of bf16 is one of them: nothing is rounded.
  Run(R"(HEADER
    max_bf16 {
      a = bf16[] parameter(0)
      b = bf16[] parameter(1)
      ROOT s = bf16[] maximum(a, b)
    }
    ENTRY e {
      x = bf16[4,8] parameter(0)
      ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
      a = bf16[4,8] abs(ar)
      least = bf16[] constant(-inf)
      m = bf16[4] reduce(a, least), dimensions={1}, to_apply=max_bf16
      mf = f32[4] convert(m)
      inv = f32[] constant(0.0078125)
      invs = f32[4] broadcast(inv), dimensions={}
      scale = f32[4] multiply(mf, invs)
      scales = f32[4,8] broadcast(scale), dimensions={0}
      f = f32[4,8] convert(ar)
      d = f32[4,8] divide(f, scales)
      r = f32[4,8] round-nearest-even(d)
      q = s8[4,8] convert(r)
      ROOT out = (s8[4,8], f32[4]) tuple(q, scale)
    })");
  ExpectFused("abs+row_max+multiply+divide+round_nearest_even+s8");
  EXPECT_EQ(Program(),
            "x bf16; v0 = sum.bf16; v1 = abs.bf16 v0; v2 = reduce_max.bf16 v1; "
            "v3 = constant 0x1p-7; v4 = multiply v2 v3; v5 = divide v0 v4; "
            "v6 = round_nearest_even v5; out0 v4 f32; out1 v6 s8");
}

TEST_F(FusionTest, QuantizationThatIsConvertedBackStays) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    t = f32[4,8] tanh(ar)
    q = f8e4m3fn[4,8] convert(t)
    same = f8e4m3fn[32] reshape(q)
    ROOT back = f32[32] convert(same)
  )");
  EXPECT_EQ(Program(), "x f32; v0 = sum; v1 = tanh v0; out0 v1 f32");
  ASSERT_EQ(report_.all_reduces[0].stopped.size(), 1);
  EXPECT_EQ(report_.all_reduces[0].stopped[0].instruction, "q");
  EXPECT_THAT(report_.all_reduces[0].stopped[0].reason,
              HasSubstr("converted back"));
}

TEST_F(FusionTest, NothingReadsAQuantizedValue) {
  // What is finite as f32 may be none as f8e4m3fn.
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    t = f32[4,8] tanh(ar)
    q = f8e4m3fn[4,8] convert(t)
    same = f8e4m3fn[32] reshape(q)
    back = f32[32] convert(same)
    p = pred[4,8] is-finite(q)
    h = f32[4,8] select(p, ar, ar)
    ROOT out = (f32[32], f32[4,8]) tuple(back, h)
  )");
  ExpectFused("tanh+f8e4m3fn");
  EXPECT_TRUE(Has(xla::HloOpcode::kIsFinite));
  EXPECT_TRUE(Has(xla::HloOpcode::kSelect));
  std::vector<std::string> stopped;
  for (const auto& stop : report_.all_reduces[0].stopped) {
    stopped.push_back(stop.instruction);
  }
  EXPECT_THAT(stopped, ::testing::UnorderedElementsAre("p", "h"));
}

TEST_F(FusionTest, SeveralReaders) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    h = f32[4,8] add(ar, ar)
    t = f32[4,8] tanh(ar)
    ROOT out = (f32[4,8], f32[4,8], f32[4,8]) tuple(h, t, ar)
  )");
  EXPECT_EQ(Program(),
            "x f32; v0 = sum; v1 = add v0 v0; v2 = tanh v0; out0 v0 f32; "
            "out1 v1 f32; out2 v2 f32");
  EXPECT_EQ(Results().size(), 3);
}

TEST_F(FusionTest, NoMoreResultsThanFit) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    a = f32[4,8] tanh(ar)
    b = f32[4,8] exponential(ar)
    c = f32[4,8] cosine(ar)
    d = f32[4,8] sine(ar)
    e = f32[4,8] sqrt(ar)
    ROOT out = (f32[4,8], f32[4,8], f32[4,8], f32[4,8], f32[4,8]) tuple(a, b, c, d, e)
  )");
  EXPECT_EQ(Results().size(), 4);
}

TEST_F(FusionTest, NothingIsTakenInAroundACycle) {
  // `t` depends on the all-reduce through a transpose: it can't be an operand.
  RunEntry(R"(
    x = f32[8,8] parameter(0)
    ar = f32[8,8] all-reduce(x), GROUPS, to_apply=add_f32
    t = f32[8,8] transpose(ar), dimensions={1,0}
    e = f32[8,8] exponential(ar)
    ROOT h = f32[8,8] add(e, t)
  )");
  EXPECT_EQ(Program(), "x f32; v0 = sum; out0 v0 f32");
  ASSERT_EQ(report_.all_reduces[0].stopped.size(), 2);
  EXPECT_EQ(report_.all_reduces[0].stopped[0].instruction, "t");
  // What is left of the rest XLA fuses.
  EXPECT_EQ(report_.all_reduces[0].stopped[1].instruction, "e");
}

TEST_F(FusionTest, EveryRoundingIsKept) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    w = f32[4,8] convert(ar)
    ROOT h = f16[4,8] convert(w)
  )");
  EXPECT_EQ(Program(),
            "x bf16; v0 = sum.bf16; v1 = convert.f16 v0; out0 v1 f16");
}

TEST_F(FusionTest, TwoAllReducesInOneAdd) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    y = f32[4,8] parameter(1)
    a = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    b = f32[4,8] all-reduce(y), channel_id=2, replica_groups={{0,1}},
      use_global_device_ids=true, to_apply=add_f32
    ROOT h = f32[4,8] add(a, b)
  )");
  EXPECT_EQ(report_.fired(), 2) << report_.ToText();
}

// --------------------------------------------------------------------------
// RMSNorm

TEST_F(FusionTest, ResidualAndNormBothLive) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    res = bf16[4,8] parameter(1)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    h = bf16[4,8] add(res, ar)
    RMS_NORM(h)
    nb = bf16[4,8] convert(n)
    g = bf16[8] parameter(2)
    gb = bf16[4,8] broadcast(g), dimensions={1}
    out = bf16[4,8] multiply(nb, gb)
    ROOT t = (bf16[4,8], bf16[4,8]) tuple(h, out)
  )");
  ExpectFused("residual+rms_norm");
  EXPECT_THAT(Operands(), ElementsAre("x", "res", "g"));
  EXPECT_EQ(Program(),
            "x bf16; in0 element bf16; in1 column bf16; v0 = sum.bf16; "
            "v1 = in0; v2 = add.bf16 v1 v0; v3 = multiply v2 v2; "
            "v4 = reduce_sum v3; v5 = constant 0x1p-3; v6 = multiply v4 v5; "
            "v7 = constant 0x1.4f8b58p-17; v8 = add v6 v7; v9 = rsqrt v8; "
            "v10 = multiply v2 v9; v11 = convert.bf16 v10; v12 = in1; "
            "v13 = multiply.bf16 v11 v12; out0 v2 bf16; out1 v13 bf16");
  // Parameters, call, two elements, tuple: nothing dead is left.
  EXPECT_EQ(module_->entry_computation()->instruction_count(), 7)
      << module_->ToString();
}

TEST_F(FusionTest, GainInF32CastAtTheEnd) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    res = bf16[4,8] parameter(1)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    h = bf16[4,8] add(res, ar)
    RMS_NORM(h)
    g = bf16[8] parameter(2)
    gf = f32[8] convert(g)
    gb = f32[4,8] broadcast(gf), dimensions={1}
    scaled = f32[4,8] multiply(gb, n)
    ROOT out = bf16[4,8] convert(scaled)
  )");
  ExpectFused("residual+rms_norm");
  EXPECT_THAT(Operands(), ElementsAre("x", "res", "g"));
  EXPECT_THAT(Program(), HasSubstr("v12 = multiply v11 v10; "
                                   "v13 = convert.bf16 v12; out0 v13 bf16"));
  EXPECT_EQ(Results().at(0).element_type(), xla::BF16);
}

TEST_F(FusionTest, NormWithoutGain) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    h = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    RMS_NORM(h)
    ROOT out = bf16[4,8] convert(n)
  )");
  ExpectFused("rms_norm");
  EXPECT_THAT(Operands(), ElementsAre("x"));
}

TEST_F(FusionTest, OneTokenWithDroppedDimensions) {
  // JAX on GPU, batch of one: the all-reduce is [D], the residual [1,D].
  RunEntry(R"(
    x = bf16[8] parameter(0)
    res = bf16[1,8] parameter(1)
    ar = bf16[8] all-reduce(x), GROUPS, to_apply=add_bf16
    r = bf16[1,8] reshape(ar)
    h = bf16[1,8] add(res, r)
    hf = f32[1,8] convert(h)
    sq = f32[1,8] multiply(hf, hf)
    zero = f32[] constant(0)
    ss = f32[1] reduce(sq, zero), dimensions={1}, to_apply=add_f32
    inv = f32[1] constant({0.125})
    ms = f32[1] multiply(ss, inv)
    eps = f32[1] constant({1e-5})
    shifted = f32[1] add(ms, eps)
    rs = f32[1] rsqrt(shifted)
    rr = f32[] reshape(rs)
    rb = f32[1,8] broadcast(rr), dimensions={}
    n = f32[1,8] multiply(hf, rb)
    nb = bf16[1,8] convert(n)
    g = bf16[8] parameter(2)
    gb = bf16[1,8] reshape(g)
    out = bf16[1,8] multiply(nb, gb)
    ROOT t = (bf16[1,8], bf16[1,8]) tuple(h, out)
  )");
  ExpectFused("residual+rms_norm");
  EXPECT_THAT(Attributes(), HasSubstr("hidden = 8 "));
}

TEST_F(FusionTest, ThreeDimensionsAndSlicedGain) {
  RunEntry(R"(
    x = f32[2,3,8] parameter(0)
    res = f32[2,3,8] parameter(1)
    ar = f32[2,3,8] all-reduce(x), GROUPS, to_apply=add_f32
    h = f32[2,3,8] add(res, ar)
    sq = f32[2,3,8] multiply(h, h)
    zero = f32[] constant(0)
    ss = f32[2,3] reduce(sq, zero), dimensions={2}, to_apply=add_f32
    n8 = f32[] constant(8)
    n8s = f32[2,3] broadcast(n8), dimensions={}
    ms = f32[2,3] divide(ss, n8s)
    eps = f32[] constant(1e-6)
    epss = f32[2,3] broadcast(eps), dimensions={}
    shifted = f32[2,3] add(epss, ms)
    r = f32[2,3] rsqrt(shifted)
    rb = f32[2,3,8] broadcast(r), dimensions={0,1}
    n = f32[2,3,8] multiply(rb, h)
    gs = f32[5,8] parameter(2)
    i = s32[] parameter(3)
    c0 = s32[] constant(0)
    gd = f32[1,8] dynamic-slice(gs, i, c0), dynamic_slice_sizes={1,8}
    g = f32[8] reshape(gd)
    gb = f32[2,3,8] broadcast(g), dimensions={2}
    out = f32[2,3,8] multiply(n, gb)
    ROOT t = (f32[2,3,8], f32[2,3,8]) tuple(h, out)
  )");
  ExpectFused("residual+rms_norm");
  // The slice is taken by the kernel.
  EXPECT_THAT(Operands(), ElementsAre("x", "res", "gs", "i"));
  EXPECT_THAT(Program(), HasSubstr("in1 column f32 slice 5 at i0"));
  EXPECT_FALSE(Has(xla::HloOpcode::kDynamicSlice));
}

TEST_F(FusionTest, ParametersThatAreKeptTogether) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    stack = bf16[3,8] parameter(1)
    part1 = bf16[1,8] slice(stack), slice={[2:3], [0:8]}
    g1 = bf16[8] reshape(part1)
    gb = bf16[4,8] broadcast(g1), dimensions={1}
    h = bf16[4,8] multiply(ar, gb)
    part2 = bf16[1,8] slice(stack), slice={[1:2], [0:8]}
    g2 = bf16[8] reshape(part2)
    bb = bf16[4,8] broadcast(g2), dimensions={1}
    residuals = bf16[2,4,8] parameter(2)
    part3 = bf16[1,4,8] slice(residuals), slice={[1:2], [0:4], [0:8]}
    r = bf16[4,8] reshape(part3)
    hb = bf16[4,8] add(h, bb)
    ROOT out = bf16[4,8] add(hb, r)
  )");
  ExpectFused("multiply+bias+residual");
  EXPECT_FALSE(Has(xla::HloOpcode::kSlice));
  EXPECT_THAT(Program(), HasSubstr("in0 column bf16 slice 3 at i0; "
                                   "in1 column bf16 slice 3 at i1; "
                                   "in2 element bf16 slice 2 at i1"));
  const auto operands = Calls().at(0)->operands();
  ASSERT_EQ(operands.size(), 6);
  EXPECT_EQ(operands[1]->name(), "stack");
  EXPECT_EQ(operands[2]->name(), "stack");
  EXPECT_EQ(operands[4]->literal().GetFirstElement<int32_t>(), 2);
  EXPECT_EQ(operands[5]->literal().GetFirstElement<int32_t>(), 1);
}

TEST_F(FusionTest, OtherSlicesAreReadAsTheyAre) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    biases = bf16[24] parameter(1)
    bias = bf16[8] slice(biases), slice={[8:16]}
    bb = bf16[4,8] broadcast(bias), dimensions={1}
    h = bf16[4,8] add(ar, bb)
    wide = bf16[1,4,16] parameter(2)
    half = bf16[1,4,8] slice(wide), slice={[0:1], [0:4], [0:8]}
    r = bf16[4,8] reshape(half)
    ROOT out = bf16[4,8] add(h, r)
  )");
  ExpectFused("bias+residual");
  const auto operands = Calls().at(0)->operands();
  ASSERT_EQ(operands.size(), 3);
  for (const int i : {1, 2}) {
    EXPECT_EQ(operands[i]->opcode(), xla::HloOpcode::kOptimizationBarrier);
    EXPECT_EQ(operands[i]->operand(0)->opcode(), xla::HloOpcode::kSlice);
  }
}

TEST_F(FusionTest, ResultsThatUpdateSlices) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    res = bf16[4,8] parameter(1)
    h = bf16[4,8] add(ar, res)
    all = bf16[3,4,8] parameter(2)
    i = s32[] parameter(3)
    c0 = s32[] constant(0)
    update = bf16[1,4,8] reshape(h)
    updated = bf16[3,4,8] dynamic-update-slice(all, update, i, c0, c0)
    ROOT t = (bf16[4,8], bf16[3,4,8]) tuple(h, updated)
  )");
  ExpectFused("residual");
  ASSERT_EQ(Calls().at(0)->user_count(), 1);
  EXPECT_EQ(Calls()[0]->users()[0]->opcode(),
            xla::HloOpcode::kOptimizationBarrier);
}

TEST_F(FusionTest, PromotedNormReadsTheUnroundedSum) {
  // JAX on CPU: the norm reads the f32 sum, the rest its bf16 rounding.
  RunEntry(R"(
    x = f32[1,8]{1,0} parameter(0)
    res = bf16[1,8]{1,0} parameter(1)
    resf = f32[1,8]{1,0} convert(res)
    ar = f32[1,8]{1,0} all-reduce(x), GROUPS, to_apply=add_f32
    arb = bf16[1,8]{1,0} convert(ar)
    arf = f32[1,8]{1,0} convert(arb)
    h = f32[1,8]{1,0} add(resf, arf)
    hb = bf16[1,8]{1,0} convert(h)
    sq = f32[1,8]{1,0} multiply(h, h)
    zero = f32[] constant(0)
    ss = f32[1]{0} reduce(sq, zero), dimensions={1}, to_apply=add_f32
    inv = f32[1]{0} constant({0.125})
    ms = f32[1]{0} multiply(ss, inv)
    eps = f32[1]{0} constant({1e-5})
    shifted = f32[1]{0} add(ms, eps)
    rs = f32[1]{0} rsqrt(shifted)
    rr = f32[] bitcast(rs)
    rb = f32[1,8]{1,0} broadcast(rr), dimensions={}
    n = f32[1,8]{1,0} multiply(h, rb)
    nb = bf16[1,8]{1,0} convert(n)
    nf = f32[1,8]{1,0} convert(nb)
    g = bf16[8]{0} parameter(2)
    gf = f32[8]{0} convert(g)
    gb = f32[1,8]{1,0} bitcast(gf)
    scaled = f32[1,8]{1,0} multiply(nf, gb)
    out = bf16[1,8]{1,0} convert(scaled)
    ROOT t = (bf16[1,8]{1,0}, bf16[1,8]{1,0}) tuple(hb, out)
  )",
           Platform::kHost);
  ExpectFused("residual+rms_norm");
  EXPECT_THAT(Program(), HasSubstr("v1 = convert.bf16 v0; v2 = in0; "
                                   "v3 = add v2 v1; v4 = convert.bf16 v3; "
                                   "v5 = multiply v3 v3"));
  EXPECT_EQ(Results().at(0).element_type(), xla::BF16);
  EXPECT_THAT(Operands()[1], "res");
}

TEST_F(FusionTest, KeepsIntermediateValuesThatOthersRead) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    h = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    RMS_NORM(h)
    nb = bf16[4,8] convert(n)
    ROOT t = (bf16[4,8], f32[4]) tuple(nb, r)
  )");
  ExpectFused("rms_norm");
  EXPECT_THAT(Program(), HasSubstr("v7 = rsqrt v6; v8 = multiply v0 v7; "
                                   "v9 = convert.bf16 v8; out0 v7 f32; "
                                   "out1 v9 bf16"));
  EXPECT_FALSE(Has(xla::HloOpcode::kRsqrt));
}

TEST_F(FusionTest, NormOverAnotherDimensionStays) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    h = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    sq = f32[4,8] multiply(h, h)
    zero = f32[] constant(0)
    ss = f32[8] reduce(sq, zero), dimensions={0}, to_apply=add_f32
    inv = f32[8] parameter(1)
    ms = f32[8] multiply(ss, inv)
    eps = f32[] constant(1e-5)
    epss = f32[8] broadcast(eps), dimensions={}
    shifted = f32[8] add(ms, epss)
    r = f32[8] rsqrt(shifted)
    rb = f32[4,8] broadcast(r), dimensions={1}
    ROOT n = f32[4,8] multiply(h, rb)
  )");
  ExpectFused("none");
  EXPECT_TRUE(Has(xla::HloOpcode::kRsqrt));
}

TEST_F(FusionTest, StatisticsOfAnotherTensorAreAnOperand) {
  RunEntry(absl::StrCat(R"(
    x = bf16[4,8] parameter(0)
    y = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    yf = f32[4,8] convert(y)
    h = bf16[4,8] parameter(1)
    RMS_NORM(h)
    ROOT out = f32[4,8] multiply(yf, rb)
  )"));
  EXPECT_THAT(Operands(), ElementsAre("x", "r"));
  EXPECT_THAT(Program(), HasSubstr("in0 row f32"));
  EXPECT_TRUE(Has(xla::HloOpcode::kRsqrt));
}

TEST_F(FusionTest, NormInBf16Stays) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    h = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    sq = bf16[4,8] multiply(h, h)
    zero = bf16[] constant(0)
    ss = bf16[4] reduce(sq, zero), dimensions={1}, to_apply=add_bf16
    inv = bf16[] constant(0.125)
    invs = bf16[4] broadcast(inv), dimensions={}
    ms = bf16[4] multiply(ss, invs)
    eps = bf16[] constant(1e-5)
    epss = bf16[4] broadcast(eps), dimensions={}
    shifted = bf16[4] add(ms, epss)
    r = bf16[4] rsqrt(shifted)
    rb = bf16[4,8] broadcast(r), dimensions={0}
    ROOT n = bf16[4,8] multiply(h, rb)
  )");
  ExpectFused("none");
  EXPECT_TRUE(Has(xla::HloOpcode::kRsqrt));
}

TEST_F(FusionTest, ReductionThatStartsElsewhereStays) {
  Run(absl::StrReplaceAll(
      R"(HEADER
    ENTRY e {
      x = bf16[4,8] parameter(0)
      h = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
      RMS_NORM(h)
      ROOT out = bf16[4,8] convert(n)
    })",
      {{"RMS_NORM(h)",
        absl::StrReplaceAll(kNorm, {{"constant(0)", "constant(1)"}})}}));
  ExpectFused("none");
}

TEST_F(FusionTest, GainThatDependsOnTheSumIsNotAbsorbed) {
  RunEntry(R"(
    x = bf16[4,8] parameter(0)
    res = bf16[4,8] parameter(1)
    ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
    h = bf16[4,8] add(ar, res)
    RMS_NORM(h)
    nb = bf16[4,8] convert(n)
    zb = bf16[] constant(0)
    g = bf16[8] reduce(h, zb), dimensions={0}, to_apply=add_bf16
    gb = bf16[4,8] broadcast(g), dimensions={1}
    ROOT out = bf16[4,8] multiply(nb, gb)
  )");
  ExpectFused("residual+rms_norm");
  EXPECT_THAT(Operands(), ElementsAre("x", "res"));
  EXPECT_TRUE(Has(xla::HloOpcode::kMultiply));
}

TEST_F(FusionTest, ABiasOfOtherLengthThanTheNorm) {
  RunEntry(R"(
    x = f32[2,4,8] parameter(0)
    ar = f32[2,4,8] all-reduce(x), GROUPS, to_apply=add_f32
    b = f32[4,8] parameter(1)
    bb = f32[2,4,8] broadcast(b), dimensions={1,2}
    h = f32[2,4,8] add(ar, bb)
    sq = f32[2,4,8] multiply(h, h)
    zero = f32[] constant(0)
    ss = f32[2,4] reduce(sq, zero), dimensions={2}, to_apply=add_f32
    inv = f32[] constant(0.125)
    invs = f32[2,4] broadcast(inv), dimensions={}
    ms = f32[2,4] multiply(ss, invs)
    eps = f32[] constant(1e-5)
    epss = f32[2,4] broadcast(eps), dimensions={}
    shifted = f32[2,4] add(ms, epss)
    r = f32[2,4] rsqrt(shifted)
    rb = f32[2,4,8] broadcast(r), dimensions={0,1}
    ROOT n = f32[2,4,8] multiply(h, rb)
  )");
  // The norm decides what a row is; the bias is read as a whole.
  ExpectFused("residual+rms_norm");
  EXPECT_THAT(Operands(), ElementsAre("x", "bb"));
  EXPECT_THAT(Attributes(), HasSubstr("hidden = 8 "));
}

// The ways in which models write norms, as the value `n` of f32 `h`; everything
// has to be taken in. BROADCAST(v, w) defines f32[4,8] w from f32[4] v.
struct NormCase {
  const char* name;
  const char* body;
};

class NormTest : public FusionTest,
                 public ::testing::WithParamInterface<NormCase> {};

constexpr NormCase kNorms[] = {
    {"RsqrtTimesGainFirst", R"(
      sq = f32[4,8] multiply(h, h)
      ss = f32[4] reduce(sq, zero), dimensions={1}, to_apply=add_f32
      ms = f32[4] multiply(ss, eighth)
      e = f32[4] add(ms, eps)
      r = f32[4] rsqrt(e)
      rb = f32[4,8] broadcast(r), dimensions={0}
      rg = f32[4,8] multiply(rb, gb)
      n = f32[4,8] multiply(h, rg))"},
    {"GemmaOnePlusGain", R"(
      sq = f32[4,8] multiply(h, h)
      ss = f32[4] reduce(sq, zero), dimensions={1}, to_apply=add_f32
      ms = f32[4] divide(ss, eight)
      e = f32[4] add(eps, ms)
      r = f32[4] rsqrt(e)
      rb = f32[4,8] broadcast(r), dimensions={0}
      hn = f32[4,8] multiply(rb, h)
      g1 = f32[8] add(one8, g)
      g1b = f32[4,8] broadcast(g1), dimensions={1}
      n = f32[4,8] multiply(hn, g1b))"},
    {"OneOverSqrt", R"(
      sq = f32[4,8] multiply(h, h)
      ss = f32[4] reduce(sq, zero), dimensions={1}, to_apply=add_f32
      ms = f32[4] multiply(ss, eighth)
      e = f32[4] add(ms, eps)
      q = f32[4] sqrt(e)
      r = f32[4] divide(one4, q)
      rb = f32[4,8] broadcast(r), dimensions={0}
      n = f32[4,8] multiply(h, rb))"},
    {"DividedBySqrt", R"(
      sq = f32[4,8] multiply(h, h)
      ss = f32[4] reduce(sq, zero), dimensions={1}, to_apply=add_f32
      ms = f32[4] multiply(ss, eighth)
      e = f32[4] add(ms, eps)
      q = f32[4] sqrt(e)
      qb = f32[4,8] broadcast(q), dimensions={0}
      n = f32[4,8] divide(h, qb))"},
    {"PowerOfMinusHalf", R"(
      sq = f32[4,8] multiply(h, h)
      ss = f32[4] reduce(sq, zero), dimensions={1}, to_apply=add_f32
      ms = f32[4] multiply(ss, eighth)
      e = f32[4] add(ms, eps)
      r = f32[4] power(e, minus_half)
      rb = f32[4,8] broadcast(r), dimensions={0}
      n = f32[4,8] multiply(h, rb))"},
    {"SquareAsPower", R"(
      two = f32[] constant(2)
      twos = f32[4,8] broadcast(two), dimensions={}
      sp = f32[4,8] power(h, twos)
      ss = f32[4] reduce(sp, zero), dimensions={1}, to_apply=add_f32
      ms = f32[4] multiply(ss, eighth)
      e = f32[4] add(ms, eps)
      r = f32[4] rsqrt(e)
      rb = f32[4,8] broadcast(r), dimensions={0}
      n = f32[4,8] multiply(h, rb))"},
    {"KeptDimension", R"(
      sq = f32[4,8] multiply(h, h)
      ss = f32[4] reduce(sq, zero), dimensions={1}, to_apply=add_f32
      ms = f32[4] multiply(ss, eighth)
      k = f32[4,1] reshape(ms)
      epsk = f32[4,1] reshape(eps)
      e = f32[4,1] add(k, epsk)
      r = f32[4,1] rsqrt(e)
      rr = f32[4] reshape(r)
      rb = f32[4,8] broadcast(rr), dimensions={0}
      n = f32[4,8] multiply(h, rb))"},
    {"LayerNormTwoPasses", R"(
      s = f32[4] reduce(h, zero), dimensions={1}, to_apply=add_f32
      m = f32[4] multiply(s, eighth)
      mb = f32[4,8] broadcast(m), dimensions={0}
      d = f32[4,8] subtract(h, mb)
      dd = f32[4,8] multiply(d, d)
      v = f32[4] reduce(dd, zero), dimensions={1}, to_apply=add_f32
      var = f32[4] multiply(v, eighth)
      e = f32[4] add(var, eps)
      r = f32[4] rsqrt(e)
      rb = f32[4,8] broadcast(r), dimensions={0}
      dn = f32[4,8] multiply(d, rb)
      dg = f32[4,8] multiply(dn, gb)
      n = f32[4,8] add(dg, gb))"},
    {"LayerNormFastVariance", R"(
      sq = f32[4,8] multiply(h, h)
      s = f32[4] reduce(h, zero), dimensions={1}, to_apply=add_f32
      m = f32[4] multiply(s, eighth)
      ss = f32[4] reduce(sq, zero), dimensions={1}, to_apply=add_f32
      m2 = f32[4] multiply(ss, eighth)
      mm = f32[4] multiply(m, m)
      v = f32[4] subtract(m2, mm)
      zeros = f32[4] broadcast(zero), dimensions={}
      var = f32[4] maximum(v, zeros)
      e = f32[4] add(var, eps)
      r = f32[4] rsqrt(e)
      rb = f32[4,8] broadcast(r), dimensions={0}
      rg = f32[4,8] multiply(rb, gb)
      mb = f32[4,8] broadcast(m), dimensions={0}
      d = f32[4,8] subtract(h, mb)
      n = f32[4,8] multiply(d, rg))"},
    {"LayerNormAffineFolded", R"(
      sq = f32[4,8] multiply(h, h)
      s = f32[4] reduce(h, zero), dimensions={1}, to_apply=add_f32
      m = f32[4] multiply(s, eighth)
      ss = f32[4] reduce(sq, zero), dimensions={1}, to_apply=add_f32
      m2 = f32[4] multiply(ss, eighth)
      mm = f32[4] multiply(m, m)
      v = f32[4] subtract(m2, mm)
      e = f32[4] add(v, eps)
      r = f32[4] rsqrt(e)
      rm = f32[4] multiply(r, m)
      rb = f32[4,8] broadcast(r), dimensions={0}
      rmb = f32[4,8] broadcast(rm), dimensions={0}
      hr = f32[4,8] multiply(h, rb)
      n = f32[4,8] subtract(hr, rmb))"},
    {"PostNormResidualAndSecondNorm", R"(
      sq = f32[4,8] multiply(h, h)
      ss = f32[4] reduce(sq, zero), dimensions={1}, to_apply=add_f32
      ms = f32[4] multiply(ss, eighth)
      e = f32[4] add(ms, eps)
      r = f32[4] rsqrt(e)
      rb = f32[4,8] broadcast(r), dimensions={0}
      hn = f32[4,8] multiply(h, rb)
      res = f32[4,8] parameter(2)
      t = f32[4,8] add(res, hn)
      tt = f32[4,8] multiply(t, t)
      ts = f32[4] reduce(tt, zero), dimensions={1}, to_apply=add_f32
      tm = f32[4] multiply(ts, eighth)
      te = f32[4] add(tm, eps)
      tr = f32[4] rsqrt(te)
      trb = f32[4,8] broadcast(tr), dimensions={0}
      n = f32[4,8] multiply(t, trb))"},
    {"Softmax", R"(
      lowest = f32[] constant(-inf)
      mx = f32[4] reduce(h, lowest), dimensions={1}, to_apply=max_f32
      mb = f32[4,8] broadcast(mx), dimensions={0}
      d = f32[4,8] subtract(h, mb)
      ex = f32[4,8] exponential(d)
      s = f32[4] reduce(ex, zero), dimensions={1}, to_apply=add_f32
      sb = f32[4,8] broadcast(s), dimensions={0}
      n = f32[4,8] divide(ex, sb))"},
};

TEST_P(NormTest, IsTakenInWhole) {
  RunEntry(absl::StrCat(R"(
    x = f32[4,8] parameter(0)
    g = f32[8] parameter(1)
    gb = f32[4,8] broadcast(g), dimensions={1}
    h = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    zero = f32[] constant(0)
    one = f32[] constant(1)
    one4 = f32[4] broadcast(one), dimensions={}
    one8 = f32[8] broadcast(one), dimensions={}
    eps1 = f32[] constant(1e-5)
    eps = f32[4] broadcast(eps1), dimensions={}
    eighth1 = f32[] constant(0.125)
    eighth = f32[4] broadcast(eighth1), dimensions={}
    eight1 = f32[] constant(8)
    eight = f32[4] broadcast(eight1), dimensions={}
    minus_half1 = f32[] constant(-0.5)
    minus_half = f32[4] broadcast(minus_half1), dimensions={})",
                        GetParam().body, R"(
    ROOT out = bf16[4,8] convert(n)
  )"));
  ASSERT_EQ(report_.fired(), 1) << report_.ToText();
  EXPECT_THAT(report_.all_reduces[0].stopped, IsEmpty()) << report_.ToText();
  EXPECT_THAT(Program(), HasSubstr("= reduce_"));
  EXPECT_FALSE(Has(xla::HloOpcode::kReduce));
  EXPECT_EQ(Results().size(), 1);
  EXPECT_EQ(module_->entry_computation()->root_instruction(), Calls()[0]);
}

INSTANTIATE_TEST_SUITE_P(Norms, NormTest, ::testing::ValuesIn(kNorms),
                         [](const auto& info) {
                           return std::string(info.param.name);
                         });

// The report of a run on CUDA that compiles kernels.
ModuleReport ReportWithCompiler(
    absl::string_view entry, AllReduceEpilogueFusion::CompileKernel compile) {
  const auto module = xla::ParseAndReturnUnverifiedModule(
      absl::StrReplaceAll(absl::StrCat("HloModule m, num_partitions=2\n",
                                       kComputations, "ENTRY e {", entry, "}"),
                          {{"GROUPS", kGroups}}));
  AllReduceEpilogueFusion pass(
      AllReduceEpilogueFusion::Platform::kCuda,
      [](const xla::HloInstruction*) { return true; }, std::move(compile));
  const bool changed = pass.Run(module->get()).value();
  EXPECT_EQ(changed, pass.report().fired() > 0);
  return pass.report();
}

TEST_F(FusionTest, KernelThatCannotBeCompiled) {
  const auto compile = [](const std::string& program, int64_t rows,
                          int64_t hidden, int ranks) {
    EXPECT_EQ(rows, 1);
    EXPECT_EQ(hidden, 32);
    EXPECT_EQ(ranks, 2);
    return std::optional<std::string>("no compiler for " + program);
  };
  const ModuleReport report = ReportWithCompiler(R"(
      x = f32[4,8] parameter(0)
      ROOT ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32)",
                                                 compile);
  EXPECT_EQ(report.fired(), 0);
  EXPECT_EQ(report.all_reduces.at(0).reason,
            "no compiler for x f32; v0 = sum; out0 v0 f32");
}

TEST_F(FusionTest, KernelsAreCompiledSideBySide) {
  // The first is not ready before the second has been asked for.
  std::atomic<int> asked = 0;
  absl::Notification second;
  const auto compile = [&](const std::string&, int64_t, int64_t, int) {
    if (++asked == 2) second.Notify();
    EXPECT_TRUE(second.WaitForNotificationWithTimeout(absl::Seconds(60)));
    return std::optional<std::string>();
  };
  const ModuleReport report = ReportWithCompiler(R"(
      x = f32[4,8] parameter(0)
      ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
      t = f32[4,8] tanh(ar)
      ROOT again = f32[4,8] all-reduce(t), GROUPS, to_apply=add_f32)",
                                                 compile);
  EXPECT_EQ(report.fired(), 2);
}

// --------------------------------------------------------------------------
// Left alone

// A loop with a counter, x, of which `sum` is the sum, and a state.
std::string Loop(absl::string_view body) {
  return absl::StrCat(R"(HEADER
    body {
      p = (s32[], bf16[3,8], f32[3,8]) parameter(0)
      i = s32[] get-tuple-element(p), index=0
      x = bf16[3,8] get-tuple-element(p), index=1
      state = f32[3,8] get-tuple-element(p), index=2
      one = s32[] constant(1)
      next = s32[] add(i, one)
      ar = bf16[3,8] all-reduce(x), GROUPS, to_apply=add_bf16
      sum = f32[3,8] convert(ar)
      )",
                      body, R"(
    }
    cond {
      p = (s32[], bf16[3,8], f32[3,8]) parameter(0)
      i = s32[] get-tuple-element(p), index=0
      n = s32[] constant(3)
      ROOT lt = pred[] compare(i, n), direction=LT
    }
    ENTRY e {
      t = (s32[], bf16[3,8], f32[3,8]) parameter(0)
      ROOT w = (s32[], bf16[3,8], f32[3,8]) while(t), condition=cond, body=body
    })");
}

TEST_F(FusionTest, DeclinesWhatALoopOnlyAddsUp) {
  Run(Loop(R"(
    new = f32[3,8] add(sum, state)
    ROOT t = (s32[], bf16[3,8], f32[3,8]) tuple(next, x, new))"));
  ExpectDeclined("XLA moves it behind the loop");
  Run(Loop(R"(
    flat = f32[24] reshape(state)
    term = f32[24] reshape(sum)
    added = f32[24] add(flat, term)
    new = f32[3,8] reshape(added)
    ROOT t = (s32[], bf16[3,8], f32[3,8]) tuple(next, x, new))"));
  ExpectDeclined("XLA moves it behind the loop");
}

TEST_F(FusionTest, FusesWhatALoopReads) {
  for (const absl::string_view y :
       {"tanh(ar)", "convert(state)", "convert(new)"}) {
    Run(Loop(absl::StrCat(R"(
      new = f32[3,8] add(state, sum)
      y = bf16[3,8] )",
                          y, R"(
      ROOT t = (s32[], bf16[3,8], f32[3,8]) tuple(next, y, new))")));
    EXPECT_EQ(report_.fired(), 1) << report_.ToText();
  }
  // Not only added to.
  Run(Loop(R"(
    changed = f32[3,8] negate(state)
    new = f32[3,8] add(changed, sum)
    ROOT t = (s32[], bf16[3,8], f32[3,8]) tuple(next, x, new))"));
  EXPECT_EQ(report_.fired(), 1) << report_.ToText();
}

TEST_F(FusionTest, DeclinesOtherReductionsAndTypes) {
  RunEntry(R"(
    x = f32[8] parameter(0)
    ROOT ar = f32[8] all-reduce(x), GROUPS, to_apply=max_f32
  )");
  ExpectDeclined("not a sum");
  Run(R"(HloModule m, num_partitions=2
    add { a = f64[] parameter(0)
          b = f64[] parameter(1)
          ROOT s = f64[] add(a, b) }
    ENTRY e {
      x = f64[8] parameter(0)
      ROOT ar = f64[8] all-reduce(x), GROUPS, to_apply=add
    })");
  ExpectDeclined("F64");
  Run(R"(HloModule m, num_partitions=2
    add { a = s32[] parameter(0)
          b = s32[] parameter(1)
          ROOT s = s32[] add(a, b) }
    ENTRY e {
      x = s32[8] parameter(0)
      ROOT ar = s32[8] all-reduce(x), GROUPS, to_apply=add
    })");
  ExpectDeclined("S32");
}

TEST_F(FusionTest, SeveralOperandsAreSplit) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    y = f32[4,8] parameter(1)
    res = f32[4,8] parameter(2)
    ar = (f32[4,8], f32[4,8]) all-reduce(x, y), GROUPS, to_apply=add_f32
    a = f32[4,8] get-tuple-element(ar), index=0
    b = f32[4,8] get-tuple-element(ar), index=1
    ra = f32[4,8] add(res, a)
    ROOT rab = f32[4,8] add(ra, b)
  )");
  ASSERT_EQ(report_.fired(), 2) << report_.ToText();
  EXPECT_FALSE(Has(xla::HloOpcode::kAllReduce));
  EXPECT_EQ(Calls().size(), 2);
}

TEST_F(FusionTest, SeveralOperandsAllOrNone) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    y = f32[8192,1025] parameter(1)
    ar = (f32[4,8], f32[8192,1025]) all-reduce(x, y), GROUPS, to_apply=add_f32
    a = f32[4,8] get-tuple-element(ar), index=0
    b = f32[8192,1025] get-tuple-element(ar), index=1
    ROOT t = (f32[4,8], f32[8192,1025]) tuple(a, b)
  )");
  ExpectDeclined("too large");
}

TEST_F(FusionTest, DeclinesSeveralOperandsThatAreReadTogether) {
  RunEntry(R"(
    x = f32[8] parameter(0)
    y = f32[4] parameter(1)
    ROOT ar = (f32[8], f32[4]) all-reduce(x, y), GROUPS, to_apply=add_f32
  )");
  ExpectDeclined("several operands");
}

TEST_F(FusionTest, AsynchronousForm) {
  RunEntry(R"(
    x = f32[8] parameter(0)
    s = f32[8] all-reduce-start(x), GROUPS, to_apply=add_f32
    d = f32[8] all-reduce-done(s)
    res = f32[8] parameter(1)
    ROOT h = f32[8] add(res, d)
  )");
  ASSERT_EQ(report_.fired(), 1) << report_.ToText();
  EXPECT_EQ(report_.all_reduces[0].epilogue, "residual");
  EXPECT_FALSE(Has(xla::HloOpcode::kAllReduceStart));
  EXPECT_FALSE(Has(xla::HloOpcode::kAllReduceDone));
}

TEST_F(FusionTest, DeclinesReduceScatter) {
  RunEntry(R"(
    x = f32[8] parameter(0)
    rs = f32[4] reduce-scatter(x), GROUPS, dimensions={0}, to_apply=add_f32
    ROOT ag = f32[8] all-gather(rs), channel_id=2, replica_groups={{0,1}},
      use_global_device_ids=true, dimensions={0}
  )");
  ExpectDeclined("is a reduce-scatter");
}

TEST_F(FusionTest, DeclinesControlDependencies) {
  RunEntry(R"(
    x = f32[8] parameter(0)
    t = f32[8] tanh(x)
    ROOT ar = f32[8] all-reduce(x), GROUPS, to_apply=add_f32, control-predecessors={t}
  )");
  ExpectDeclined("control dependencies");
}

TEST_F(FusionTest, DeclinesUserAnnotations) {
  RunEntry(R"(
    x = f32[8] parameter(0)
    ROOT ar = f32[8] all-reduce(x), GROUPS, to_apply=add_f32,
      frontend_attributes={_scheduling_group_id="1"}
  )");
  ExpectDeclined("_scheduling_group_id");
}

TEST_F(FusionTest, DeclinesGroupsItCannotServe) {
  const auto run = [&](int partitions, absl::string_view groups) {
    Run(absl::StrCat("HloModule m, num_partitions=", partitions, kComputations,
                     R"(
      ENTRY e {
        x = f32[8] parameter(0)
        ROOT ar = f32[8] all-reduce(x), channel_id=1, replica_groups=)",
                     groups, R"(, use_global_device_ids=true, to_apply=add_f32
      })"));
  };
  run(1, "{{0}}");
  ExpectDeclined("one rank");
  run(9, "{{0,1,2,3,4,5,6,7,8}}");
  ExpectDeclined("groups of 9 ranks");
}

TEST_F(FusionTest, DeclinesLargeSumsThatNothingFollows) {
  RunEntry(R"(
    x = f32[512,1024] parameter(0)
    ROOT ar = f32[512,1024] all-reduce(x), GROUPS, to_apply=add_f32
  )");
  ExpectDeclined("nothing follows that could be fused");
  RunEntry(R"(
    x = f32[512,1024] parameter(0)
    ar = f32[512,1024] all-reduce(x), GROUPS, to_apply=add_f32
    ROOT t = f32[512,1024] tanh(ar)
  )");
  EXPECT_EQ(report_.fired(), 1) << report_.ToText();
  RunEntry(R"(
    x = f32[256,1024] parameter(0)
    ROOT ar = f32[256,1024] all-reduce(x), GROUPS, to_apply=add_f32
  )");
  EXPECT_EQ(report_.fired(), 1) << report_.ToText();
}

TEST_F(FusionTest, DeclinesLargeMessages) {
  RunEntry(R"(
    x = f32[8192,1025] parameter(0)
    ROOT ar = f32[8192,1025] all-reduce(x), GROUPS, to_apply=add_f32
  )");
  ExpectDeclined("too large");
}

TEST_F(FusionTest, DeclinesWhatTakesTheLinkLong) {
  const auto run = [&](int64_t rows, absl::string_view group) {
    Run(absl::StrCat("HloModule m, num_partitions=4", kComputations,
                     absl::Substitute(R"(
      ENTRY e {
        x = f32[$0,1024] parameter(0)
        ar = f32[$0,1024] all-reduce(x), channel_id=1, replica_groups=$1,
          use_global_device_ids=true, to_apply=add_f32
        ROOT t = f32[$0,1024] tanh(ar)
      })",
                                      rows, group)));
  };
  run(8192, "{{0,1},{2,3}}");
  EXPECT_EQ(report_.fired(), 1) << report_.ToText();
  // In two shots, one and a half times the message.
  run(1365, "{{0,1,2,3}}");
  EXPECT_EQ(report_.fired(), 1) << report_.ToText();
  run(1366, "{{0,1,2,3}}");
  ExpectDeclined("each of 4 ranks would send");
}

TEST_F(FusionTest, DeclinesOtherLayouts) {
  RunEntry(R"(
    x = f32[4,8]{0,1} parameter(0)
    ROOT ar = f32[4,8]{0,1} all-reduce(x), GROUPS, to_apply=add_f32
  )");
  ExpectDeclined("row-major");
}

TEST_F(FusionTest, AbsorbsNothingItDoesNotUnderstand) {
  const std::string hlo = R"(HEADER
    ENTRY e {
      x = bf16[4,8] parameter(0)
      res = bf16[4,8] parameter(1)
      ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
      h = bf16[4,8] add(ar, res)
      RMS_NORM(h)
      ROOT out = bf16[4,8] convert(n)
    })";
  const auto all_but = [](absl::string_view name) {
    return [=](const xla::HloInstruction* hlo) { return hlo->name() != name; };
  };
  Run(hlo, Platform::kCuda, all_but("ar"));
  ExpectDeclined("unknown proto fields");
  Run(hlo, Platform::kCuda, all_but("s"));
  ExpectDeclined("unknown proto fields");
  Run(hlo, Platform::kCuda, all_but("h"));
  ExpectFused("none");
  // The statistics of the rows are taken in still.
  Run(hlo, Platform::kCuda, all_but("r"));
  ExpectFused("residual+rms_norm");
  EXPECT_TRUE(Has(xla::HloOpcode::kRsqrt));
  EXPECT_FALSE(Has(xla::HloOpcode::kReduce));
}

TEST_F(FusionTest, LeavesWideningConvertsThatItDoesNotUnderstand) {
  constexpr char kHlo[] = R"(HEADER
    ENTRY e {
      x = bf16[4,8] parameter(0)
      wide = f32[4,8] convert(x)
      ar = f32[4,8] all-reduce(wide), GROUPS, to_apply=add_f32
      ROOT t = f32[4,8] tanh(ar)
    })";
  Run(kHlo);
  EXPECT_THAT(Operands(), ElementsAre("x"));
  Run(kHlo, Platform::kCuda,
      [](const xla::HloInstruction* hlo) { return hlo->name() != "wide"; });
  EXPECT_THAT(Operands(), ElementsAre("wide"));
}

TEST_F(FusionTest, DeclinesSumsThatNothingReads) {
  RunEntry(R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    ROOT t = f32[4,8] tanh(x)
  )");
  ExpectDeclined("nothing reads it");
}

TEST_F(FusionTest, TakesTheBeginningOfAnEndlessTail) {
  std::string body = R"(
    x = f32[4,8] parameter(0)
    ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
    t0 = f32[4,8] tanh(ar)
  )";
  constexpr int kLength = 20000;
  for (int i = 1; i < kLength; ++i) {
    absl::StrAppend(&body, i + 1 == kLength ? "ROOT " : "", "t", i,
                    " = f32[4,8] tanh(t", i - 1, ")\n");
  }
  RunEntry(body);
  ASSERT_EQ(report_.fired(), 1) << report_.ToText();
  ASSERT_EQ(report_.all_reduces[0].stopped.size(), 1);
  EXPECT_THAT(report_.all_reduces[0].stopped[0].reason,
              HasSubstr("exceed a limit"));
}

TEST_F(FusionTest, ReportsEveryAllReduce) {
  RunEntry(R"(
    x = f32[8] parameter(0)
    a = f32[8] all-reduce(x), GROUPS, to_apply=add_f32
    t = f32[8] tanh(a)
    ROOT b = f32[8] all-reduce(t), channel_id=2, replica_groups={{0,1}},
      use_global_device_ids=true, to_apply=max_f32, metadata={op_name="say \"hi\"\n"}
  )");
  EXPECT_EQ(report_.all_reduces.size(), 2);
  EXPECT_EQ(report_.fired(), 1);
  EXPECT_THAT(report_.ToText(), HasSubstr("1 of 2 all-reduces fused"));
  EXPECT_THAT(report_.ToText(),
              HasSubstr("left alone: reduction is not a sum"));
  EXPECT_THAT(report_.ToJson(), HasSubstr(R"("site":"say \"hi\"\u000a")"));
  EXPECT_THAT(report_.ToJson(), Not(HasSubstr("\n\"")));
}

TEST_F(FusionTest, ModuleWithoutAllReduceIsUntouched) {
  RunEntry(R"(
    x = f32[8] parameter(0)
    ROOT t = f32[8] tanh(x)
  )");
  EXPECT_THAT(report_.all_reduces, IsEmpty());
}

}  // namespace
}  // namespace oneshot
