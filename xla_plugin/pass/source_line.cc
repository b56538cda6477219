// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/source_line.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "xla/hlo/ir/hlo_module.h"

namespace oneshot {
namespace {

using ::xla::HloInstruction;

// Whether a file belongs to a library that models are written with. Its lines
// are the same for all layers of all models.
bool IsLayerLibrary(absl::string_view file) {
  return absl::StrContains(file, "-packages/flax/") ||
         absl::StrContains(file, "-packages/haiku/") ||
         absl::StrContains(file, "-packages/equinox/");
}

}  // namespace

std::string SourceLine(const HloInstruction* hlo) {
  const xla::OpMetadata& metadata = hlo->metadata();
  std::string innermost;
  for (int id = metadata.stack_frame_id(); id > 0;) {
    const auto frame = hlo->GetModule()->get_stack_frame(id);
    if (frame.empty()) break;
    std::string source = absl::StrCat(frame.file_name, ":", frame.line);
    if (!IsLayerLibrary(frame.file_name)) return source;
    if (innermost.empty()) innermost = std::move(source);
    if (frame.parent_frame_id >= id) break;  // callers come first: no circles
    id = frame.parent_frame_id;
  }
  if (!innermost.empty()) return innermost;
  if (metadata.source_file().empty()) return "";
  return absl::StrCat(metadata.source_file(), ":", metadata.source_line());
}

}  // namespace oneshot
