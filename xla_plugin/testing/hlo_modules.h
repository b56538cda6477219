// SPDX-License-Identifier: Apache-2.0
//
// What the tests of HLO share: modules from text and from files of testdata.

#ifndef ONESHOT_XLA_PLUGIN_TESTING_HLO_MODULES_H_
#define ONESHOT_XLA_PLUGIN_TESTING_HLO_MODULES_H_

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_module.h"

namespace oneshot {

// The module of a text that the test relies on: ends the process, with the text
// and what the parser says, if it is none.
std::unique_ptr<xla::HloModule> ParseModule(absl::string_view text);

// Whether XLA's verifier, and its schedule if it has one, find it valid.
absl::Status Verify(xla::HloModule* module);

// The .hlo files in a folder and the folders in it, in order.
std::vector<std::filesystem::path> HloFiles(
    const std::filesystem::path& folder);

std::string ReadFile(const std::filesystem::path& path);

// The text of an HLO file and the lines above it that start with "// ", which
// say what the test expects.
struct HloText {
  std::vector<std::string> header;
  std::string hlo;
};
HloText SplitHeader(absl::string_view text);

}  // namespace oneshot

#endif  // ONESHOT_XLA_PLUGIN_TESTING_HLO_MODULES_H_
