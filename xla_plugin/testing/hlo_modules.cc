// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/testing/hlo_modules.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "xla/hlo/parser/hlo_parser.h"
#include "xla/service/hlo_verifier.h"

namespace oneshot {

std::unique_ptr<xla::HloModule> ParseModule(absl::string_view text) {
  auto module = xla::ParseAndReturnUnverifiedModule(text);
  if (!module.ok()) {
    std::fprintf(stderr, "%s\n",
                 absl::StrCat(module.status().ToString(), "\n", text).c_str());
    std::abort();
  }
  return *std::move(module);
}

absl::Status Verify(xla::HloModule* module) {
  xla::HloVerifier verifier(/*layout_sensitive=*/false,
                            /*allow_mixed_precision=*/true);
  const absl::Status valid = verifier.Run(module).status();
  if (!valid.ok() || !module->has_schedule()) return valid;
  return module->schedule().Verify();
}

std::vector<std::filesystem::path> HloFiles(
    const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  for (const auto& entry :
       std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.path().extension() == ".hlo") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  return files;
}

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

HloText SplitHeader(absl::string_view text) {
  constexpr absl::string_view kComment = "// ";
  HloText split;
  while (absl::StartsWith(text, kComment)) {
    const size_t end = std::min(text.find('\n'), text.size());
    split.header.emplace_back(text.substr(0, end).substr(kComment.size()));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  split.hlo = std::string(text);
  return split;
}

}  // namespace oneshot
