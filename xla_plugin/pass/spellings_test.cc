// SPDX-License-Identifier: Apache-2.0
//
// Modules that XLA for GPUs has handed over, from the programs of
// tests/gpu_compiler/spellings.py. Each says in its first lines what must
// become of its all-reduces: what is fused, and the operations that then read
// the results, or why it stays.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"
#include "xla_plugin/pass/all_reduce_reassociation.h"
#include "xla_plugin/testing/hlo_modules.h"
#include "xla_plugin/testing/run_fusion.h"

namespace oneshot {
namespace {

void CollectReaders(const xla::HloInstruction* hlo,
                    std::set<std::string>* opcodes) {
  for (const xla::HloInstruction* user : hlo->users()) {
    switch (user->opcode()) {
      case xla::HloOpcode::kBroadcast:
      case xla::HloOpcode::kGetTupleElement:
      case xla::HloOpcode::kReshape:
        CollectReaders(user, opcodes);
        break;
      default:
        opcodes->emplace(xla::HloOpcodeString(user->opcode()));
    }
  }
}

// Of the results of the custom-call of that name.
std::string Readers(const xla::HloModule& module, absl::string_view name) {
  std::set<std::string> opcodes;
  for (const xla::HloComputation* computation : module.computations()) {
    for (const xla::HloInstruction* hlo : computation->instructions()) {
      if (hlo->name() == name) CollectReaders(hlo, &opcodes);
    }
  }
  return absl::StrJoin(opcodes, ", ");
}

class GpuModulesTest : public ::testing::TestWithParam<std::filesystem::path> {
};

TEST_P(GpuModulesTest, IsFused) {
  const HloText text = SplitHeader(ReadFile(GetParam()));
  ASSERT_FALSE(text.header.empty());
  const auto module = ParseModule(text.hlo);
  ASSERT_TRUE(AllReduceReassociation().Run(module.get()).ok());
  AllReduceEpilogueFusion pass(AllReduceEpilogueFusion::Platform::kCuda);
  const auto report = RunFusion(module.get(), pass);
  ASSERT_TRUE(report.ok()) << report.status();

  std::vector<std::string> found;
  for (const SiteReport& site : report->all_reduces) {
    found.push_back(site.fired()
                        ? absl::StrCat(site.epilogue, ", read by ",
                                       Readers(*module, site.custom_call))
                        : site.reason);
  }
  EXPECT_THAT(found, ::testing::ElementsAreArray(text.header))
      << report->ToJson() << module->ToString();
}

INSTANTIATE_TEST_SUITE_P(
    Testdata, GpuModulesTest,
    ::testing::ValuesIn(HloFiles("xla_plugin/testdata/spellings")),
    [](const auto& info) { return info.param.stem().string(); });

}  // namespace
}  // namespace oneshot
