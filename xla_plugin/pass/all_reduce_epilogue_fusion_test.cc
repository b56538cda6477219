// SPDX-License-Identifier: Apache-2.0
//
// What needs code: callbacks, other ways to look at the module, several runs.
// Everything that HLO and a header can say is a file of testdata/cases.

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
#include "absl/synchronization/notification.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/hlo/ir/mesh_and_axis.h"
#include "xla/hlo/ir/replica_group.h"
#include "xla_plugin/testing/hlo_modules.h"
#include "xla_plugin/testing/run_fusion.h"

namespace oneshot {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

const MayAbsorb kAll = [](const xla::HloInstruction*) { return true; };

// A module of `entry`, in which GROUPS stands for two ranks.
std::string Module(absl::string_view entry) {
  return absl::StrReplaceAll(
      absl::StrCat(R"(HloModule m, num_partitions=2
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
ENTRY e {)",
                   entry, "}"),
      {{"GROUPS",
        "channel_id=1, replica_groups={{0,1}}, use_global_device_ids=true"}});
}

class FusionTest : public ::testing::Test {
 protected:
  using Platform = AllReduceEpilogueFusion::Platform;

  void Run(absl::string_view entry, MayAbsorb may_absorb = kAll,
           AllReduceEpilogueFusion::CompileKernel compile = nullptr) {
    module_ = ParseModule(Module(entry));
    AllReduceEpilogueFusion pass(Platform::kCuda, std::move(may_absorb),
                                 std::move(compile));
    const auto report = RunFusion(module_.get(), pass);
    ASSERT_TRUE(report.ok()) << report.status();
    report_ = *report;
  }

  // The only custom-call.
  const xla::HloInstruction* Call() const {
    const auto calls = FusedCalls(*module_);
    EXPECT_EQ(calls.size(), 1);
    return calls.at(0);
  }

  std::vector<std::string> Operands() const {
    std::vector<std::string> names;
    for (const auto* operand : Call()->operands()) {
      names.emplace_back(operand->name());
    }
    return names;
  }

  bool Has(xla::HloOpcode opcode) const { return HasOpcode(*module_, opcode); }

  void ExpectFused(absl::string_view epilogue) {
    ASSERT_EQ(report_.all_reduces.size(), 1);
    EXPECT_EQ(report_.all_reduces[0].epilogue, epilogue);
    EXPECT_EQ(report_.all_reduces[0].reason, "");
    EXPECT_FALSE(Has(xla::HloOpcode::kAllReduce)) << module_->ToString();
  }

  void ExpectDeclined(absl::string_view reason) {
    ASSERT_EQ(report_.all_reduces.size(), 1);
    EXPECT_THAT(report_.all_reduces[0].reason, HasSubstr(std::string(reason)));
    EXPECT_THAT(FusedCalls(*module_), IsEmpty());
  }

  std::unique_ptr<xla::HloModule> module_;
  ModuleReport report_;
};

TEST_F(FusionTest, ProfilersNameTheCallAfterTheLayerAndWhatItDoes) {
  Run(R"(
    x = bf16[4,8] parameter(0)
    ROOT ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16,
      metadata={op_name="jit(step)/layer_3/dot_general" source_file="m.py" source_line=7}
  )");
  EXPECT_EQ(Call()->metadata().op_name(), "jit(step)/layer_3/dot_general");
  EXPECT_EQ(Call()->name(), "oneshot_all_reduce");
}

TEST_F(FusionTest, MeshAxesReplicaGroups) {
  // As jaxlib 0.11 writes them; the text form has no parser.
  Run("ROOT x = f32[8] parameter(0)");
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
  EXPECT_THAT(Call()->raw_backend_config_string(),
              HasSubstr("replica_groups = array<i64: 0, 2, 1, 3>"));
}

TEST_F(FusionTest, KernelThatCannotBeCompiled) {
  const auto compile = [](const std::string& program, int64_t rows,
                          int64_t hidden, int ranks) {
    EXPECT_EQ(rows, 1);
    EXPECT_EQ(hidden, 32);
    EXPECT_EQ(ranks, 2);
    return std::optional<std::string>("no compiler for " + program);
  };
  Run(R"(
      x = f32[4,8] parameter(0)
      ROOT ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32)",
      kAll, compile);
  EXPECT_EQ(report_.fired(), 0);
  EXPECT_EQ(report_.all_reduces.at(0).reason,
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
  Run(R"(
      x = f32[4,8] parameter(0)
      ar = f32[4,8] all-reduce(x), GROUPS, to_apply=add_f32
      t = f32[4,8] tanh(ar)
      ROOT again = f32[4,8] all-reduce(t), GROUPS, to_apply=add_f32)",
      kAll, compile);
  EXPECT_EQ(report_.fired(), 2);
}

TEST_F(FusionTest, AbsorbsNothingItDoesNotUnderstand) {
  const std::string hlo = R"(
      x = bf16[4,8] parameter(0)
      res = bf16[4,8] parameter(1)
      ar = bf16[4,8] all-reduce(x), GROUPS, to_apply=add_bf16
      h = bf16[4,8] add(ar, res)
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
      ROOT out = bf16[4,8] convert(n))";
  const auto all_but = [](absl::string_view name) {
    return [=](const xla::HloInstruction* hlo) { return hlo->name() != name; };
  };
  Run(hlo, all_but("ar"));
  ExpectDeclined("unknown proto fields");
  Run(hlo, all_but("s"));
  ExpectDeclined("unknown proto fields");
  Run(hlo, all_but("h"));
  ExpectFused("none");
  // The statistics of the rows are taken in still.
  Run(hlo, all_but("r"));
  ExpectFused("residual+rms_norm");
  EXPECT_TRUE(Has(xla::HloOpcode::kRsqrt));
  EXPECT_FALSE(Has(xla::HloOpcode::kReduce));
}

TEST_F(FusionTest, LeavesWideningConvertsThatItDoesNotUnderstand) {
  constexpr char kHlo[] = R"(
      x = bf16[4,8] parameter(0)
      wide = f32[4,8] convert(x)
      ar = f32[4,8] all-reduce(wide), GROUPS, to_apply=add_f32
      ROOT t = f32[4,8] tanh(ar))";
  Run(kHlo);
  EXPECT_THAT(Operands(), ElementsAre("x"));
  Run(kHlo,
      [](const xla::HloInstruction* hlo) { return hlo->name() != "wide"; });
  EXPECT_THAT(Operands(), ElementsAre("wide"));
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
  Run(body);
  ASSERT_EQ(report_.fired(), 1) << report_.ToJson();
  ASSERT_EQ(report_.all_reduces[0].stopped.size(), 1);
  EXPECT_THAT(report_.all_reduces[0].stopped[0].reason,
              HasSubstr("exceed a limit"));
}

TEST_F(FusionTest, ReportsEveryAllReduce) {
  Run(R"(
    x = f32[8] parameter(0)
    a = f32[8] all-reduce(x), GROUPS, to_apply=add_f32
    t = f32[8] tanh(a)
    ROOT b = f32[8] all-reduce(t), channel_id=2, replica_groups={{0,1}},
      use_global_device_ids=true, to_apply=max_f32, metadata={op_name="say \"hi\"\n"}
  )");
  EXPECT_EQ(report_.all_reduces.size(), 2);
  EXPECT_EQ(report_.fired(), 1);
  EXPECT_EQ(report_.Summary(),
            "m: 1 of 2 all-reduces fused with an epilogue (32 B); 0 replaced, "
            "sum alone; 1 left (32 B); b.3 left alone: reduction is not a sum");
  EXPECT_THAT(report_.ToJson(), HasSubstr(R"("site":"say \"hi\"\u000a")"));
  EXPECT_THAT(report_.ToJson(), Not(HasSubstr("\n\"")));
}

TEST_F(FusionTest, ModuleWithoutAllReduceIsUntouched) {
  Run(R"(
    x = f32[8] parameter(0)
    ROOT t = f32[8] tanh(x)
  )");
  EXPECT_THAT(report_.all_reduces, IsEmpty());
}

TEST_F(FusionTest, RanksOnSeveralMachines) {
  const auto reason_with = [&](std::vector<int> machines) {
    module_ = ParseModule(Module(R"(
      x = f32[4,64] parameter(0)
      sum = f32[4,64] all-reduce(x), GROUPS, to_apply=add_f32
      ROOT y = f32[4,64] tanh(sum))"));
    AllReduceEpilogueFusion pass(Platform::kCuda, kAll, nullptr,
                                 std::move(machines));
    const auto report = RunFusion(module_.get(), pass);
    EXPECT_TRUE(report.ok()) << report.status();
    EXPECT_EQ(report->all_reduces.size(), 1);
    return report->all_reduces.at(0).reason;
  };
  EXPECT_EQ(reason_with({}), "");
  EXPECT_EQ(reason_with({5, 5, 6}), "");
  EXPECT_EQ(reason_with({0, 1}), "its ranks are on several machines");
  EXPECT_EQ(reason_with({0}), "on which machine rank 1 is, is not known");
}

}  // namespace
}  // namespace oneshot
