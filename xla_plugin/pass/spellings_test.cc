// SPDX-License-Identifier: Apache-2.0
//
// Modules that XLA for GPUs has handed over, from the programs of
// tests/gpu_compiler/spellings.py. Each says in its first lines what must
// become of its all-reduces: what is fused, and the operations that then read
// the results, or why it stays.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "xla/hlo/parser/hlo_parser.h"
#include "xla/service/hlo_verifier.h"
#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"
#include "xla_plugin/pass/all_reduce_reassociation.h"

namespace oneshot {
namespace {

std::vector<std::filesystem::path> Files() {
  std::vector<std::filesystem::path> files;
  for (const auto& entry :
       std::filesystem::directory_iterator("xla_plugin/testdata/spellings")) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

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
  std::ifstream file(GetParam());
  std::vector<std::string> expected;
  std::ostringstream hlo;
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("// ", 0) == 0) {
      expected.push_back(line.substr(3));
    } else {
      hlo << line << "\n";
    }
  }
  ASSERT_FALSE(expected.empty());
  const auto module = xla::ParseAndReturnUnverifiedModule(hlo.str());
  ASSERT_TRUE(module.ok()) << module.status();
  ASSERT_TRUE(AllReduceReassociation().Run(module->get()).ok());
  AllReduceEpilogueFusion pass(AllReduceEpilogueFusion::Platform::kCuda);
  ASSERT_TRUE(pass.Run(module->get()).ok());
  xla::HloVerifier verifier(/*layout_sensitive=*/false,
                            /*allow_mixed_precision=*/true);
  const auto valid = verifier.Run(module->get()).status();
  EXPECT_TRUE(valid.ok()) << valid;

  std::vector<std::string> found;
  for (const SiteReport& site : pass.report().all_reduces) {
    found.push_back(site.fired()
                        ? absl::StrCat(site.epilogue, ", read by ",
                                       Readers(**module, site.custom_call))
                        : site.reason);
  }
  EXPECT_THAT(found, ::testing::ElementsAreArray(expected))
      << pass.report().ToText() << (*module)->ToString();
}

INSTANTIATE_TEST_SUITE_P(Testdata, GpuModulesTest, ::testing::ValuesIn(Files()),
                         [](const auto& info) {
                           return info.param.stem().string();
                         });

}  // namespace
}  // namespace oneshot
