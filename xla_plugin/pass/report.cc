// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/report.h"

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"

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

// "3 fused with an epilogue (24 KiB)"; what one rank sends.
template <typename Predicate>
std::string Count(const std::vector<SiteReport>& sites, Predicate is_counted,
                  absl::string_view of, absl::string_view what) {
  int64_t count = 0;
  int64_t bytes = 0;
  for (const SiteReport& site : sites) {
    if (!is_counted(site)) continue;
    ++count;
    bytes += site.bytes;
  }
  std::string size;
  if (bytes >= 1 << 20) {
    size = absl::StrFormat(" (%.3g MiB)", bytes / 1048576.0);
  } else if (bytes >= 1 << 10) {
    size = absl::StrFormat(" (%.3g KiB)", bytes / 1024.0);
  } else if (bytes > 0) {
    size = absl::StrFormat(" (%d B)", bytes);
  }
  return absl::StrCat(count, of, " ", what, size);
}

// What XLA for CPU has fused before the pass saw it.
bool StopsAtFusion(const SiteReport& site) {
  return absl::c_any_of(site.stopped, [](const StopReport& stop) {
    return stop.opcode == "fusion";
  });
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

std::string ModuleReport::Summary() const {
  std::string out = absl::StrCat(module, ": ");
  if (!declined_module.empty()) {
    return absl::StrCat(out, "left alone, ", declined_module);
  }
  absl::StrAppend(
      &out,
      Count(
          all_reduces,
          [](const SiteReport& site) { return site.fired() && !site.alone(); },
          absl::StrCat(" of ", all_reduces.size()),
          "all-reduces fused with an epilogue"),
      "; ",
      Count(
          all_reduces, [](const SiteReport& site) { return site.alone(); }, "",
          "replaced, sum alone"),
      "; ",
      Count(
          all_reduces, [](const SiteReport& site) { return !site.fired(); }, "",
          "left"));
  for (const SiteReport& site : all_reduces) {
    if (!site.fired()) {
      absl::StrAppend(&out, "; ", site.name, " left alone: ", site.reason);
    }
  }
  if (platform == "Host" && absl::c_any_of(all_reduces, StopsAtFusion)) {
    absl::StrAppend(&out,
                    "; XLA for CPU has fused what follows: "
                    "docs/environment.md has flags against that");
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
