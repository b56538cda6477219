// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/report.h"

#include "absl/algorithm/container.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace oneshot {
namespace {

// A JSON string. Names come from user programs and may hold anything.
std::string Quote(const std::string& text) {
  std::string out = "\"";
  for (const unsigned char c : text) {
    if (c == '"' || c == '\\') {
      out += {'\\', static_cast<char>(c)};
    } else if (c < 0x20) {
      absl::StrAppendFormat(&out, "\\u%04x", c);
    } else {
      out += static_cast<char>(c);
    }
  }
  return out + '"';
}

std::string StopJson(const StopReport& stop) {
  return absl::StrCat("{\"instruction\":", Quote(stop.instruction),
                      ",\"opcode\":", Quote(stop.opcode),
                      ",\"source\":", Quote(stop.source),
                      ",\"reason\":", Quote(stop.reason), "}");
}

// Names in text, one line each.
std::string OneLine(std::string text) {
  for (char& c : text) {
    if (absl::ascii_iscntrl(c)) c = ' ';
  }
  return text;
}

std::string SiteJson(const SiteReport& site) {
  return absl::StrCat(
      "{\"name\":", Quote(site.name), ",\"site\":", Quote(site.site),
      ",\"source\":", Quote(site.source), ",\"shape\":", Quote(site.shape),
      ",\"bytes\":", site.bytes, ",\"group_size\":", site.group_size,
      ",\"fired\":", site.fired() ? "true" : "false",
      ",\"epilogue\":", Quote(site.epilogue),
      ",\"reason\":", Quote(site.reason),
      ",\"custom_call\":", Quote(site.custom_call),
      ",\"program\":", Quote(site.program), ",\"stopped\":[",
      absl::StrJoin(site.stopped, ",",
                    [](std::string* out, const StopReport& stop) {
                      absl::StrAppend(out, StopJson(stop));
                    }),
      "]}");
}

}  // namespace

int64_t ModuleReport::fired() const {
  return absl::c_count_if(all_reduces,
                          [](const SiteReport& site) { return site.fired(); });
}

std::string ModuleReport::ToText() const {
  std::string out =
      absl::StrFormat("%s (%s): %d of %d all-reduces fused\n", module, platform,
                      fired(), all_reduces.size());
  if (!declined_module.empty()) {
    absl::StrAppend(&out, "  module left alone: ", declined_module, "\n");
  }
  for (const SiteReport& site : all_reduces) {
    absl::StrAppend(&out, "  ", site.name, "  ", site.shape);
    if (site.group_size > 0) {
      absl::StrAppend(&out, "  over ", site.group_size, " ranks");
    }
    absl::StrAppend(&out, "  ",
                    site.fired() ? absl::StrCat("fused: ", site.epilogue)
                                 : absl::StrCat("left alone: ", site.reason),
                    "\n");
    if (!site.site.empty() || !site.source.empty()) {
      absl::StrAppend(&out, "      ", OneLine(site.site), "  ",
                      OneLine(site.source), "\n");
    }
    for (const StopReport& stop : site.stopped) {
      absl::StrAppend(&out, "      up to ", stop.instruction, " (", stop.opcode,
                      "): ", stop.reason, "\n");
    }
  }
  return out;
}

std::string ModuleReport::ToJson() const {
  return absl::StrCat(
      "{\"schema\":2,\"module\":", Quote(module),
      ",\"platform\":", Quote(platform),
      ",\"changed\":", fired() > 0 ? "true" : "false", ",\"declined_module\":",
      declined_module.empty() ? "null" : Quote(declined_module),
      ",\"fired\":", fired(), ",\"declined\":", all_reduces.size() - fired(),
      ",\"all_reduces\":[",
      absl::StrJoin(all_reduces, ",",
                    [](std::string* out, const SiteReport& site) {
                      absl::StrAppend(out, SiteJson(site));
                    }),
      "]}\n");
}

}  // namespace oneshot
