// SPDX-License-Identifier: Apache-2.0
//
// All passes together on modules as XLA hands them to the hook: testdata/cpu_*
// are what XLA for CPU in jaxlib 0.11.2 makes of tests/models/variants.py,
// which also writes them; testdata/gpu_* were taken from XLA for CUDA on two
// H200. Comments at the top of each say what is to be fused into which
// all-reduce.

#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "xla/hlo/parser/hlo_parser.h"
#include "xla/service/hlo_verifier.h"
#include "xla_plugin/all_reduce_epilogue_fusion.h"
#include "xla_plugin/all_reduce_reassociation.h"
#include "xla_plugin/transpose_sinking.h"

namespace oneshot {
namespace {

using ::std::filesystem::path;

std::vector<path> Files() {
  std::vector<path> files;
  for (const auto& entry :
       std::filesystem::directory_iterator("xla_plugin/testdata")) {
    files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

class VariantsTest : public ::testing::TestWithParam<path> {};

TEST_P(VariantsTest, IsFused) {
  std::ifstream file(GetParam());
  std::string expected;
  std::string text;
  for (std::string line; std::getline(file, line);) {
    absl::StrAppend(absl::StartsWith(line, "//") ? &expected : &text, line,
                    "\n");
  }
  auto module = xla::ParseAndReturnUnverifiedModule(text);
  ASSERT_TRUE(module.ok()) << module.status();
  const bool host = absl::StartsWith(GetParam().filename().string(), "cpu_");
  const auto all = [](const xla::HloInstruction*) { return true; };
  AllReduceReassociation reassociation(all);
  ASSERT_TRUE(reassociation.Run(module->get()).ok());
  TransposeSinking sinking(/*layouts=*/host, all);
  ASSERT_TRUE(sinking.Run(module->get()).ok());
  AllReduceEpilogueFusion fusion(
      host ? AllReduceEpilogueFusion::Platform::kHost
           : AllReduceEpilogueFusion::Platform::kCuda);
  const auto changed = fusion.Run(module->get());
  ASSERT_TRUE(changed.ok()) << changed.status();
  EXPECT_TRUE(*changed);
  xla::HloVerifier verifier(/*layout_sensitive=*/false,
                            /*allow_mixed_precision=*/true);
  const auto valid = verifier.Run(module->get()).status();
  EXPECT_TRUE(valid.ok()) << valid;

  std::string found;
  for (const SiteReport& site : fusion.report().all_reduces) {
    absl::StrAppend(&found, "// ", site.epilogue, ": ", site.program, "\n");
  }
  EXPECT_EQ(found, expected);
  for (const auto* computation : (*module)->computations()) {
    for (const auto* hlo : computation->instructions()) {
      EXPECT_NE(hlo->opcode(), xla::HloOpcode::kAllReduce) << hlo->ToString();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(AsXlaHandsThemOver, VariantsTest,
                         ::testing::ValuesIn(Files()), [](const auto& file) {
                           return file.param.stem().string();
                         });

}  // namespace
}  // namespace oneshot
