// SPDX-License-Identifier: Apache-2.0

#include "xla_plugin/pass/pass_library.h"

#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <regex>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/hlo/parser/hlo_parser.h"
#include "xla/service/hlo.pb.h"
#include "xla/service/hlo_verifier.h"
#include "xla_plugin/module/fatal_guard.h"
#include "xla_plugin/module/module_codec.h"
#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"
#include "xla_plugin/pass/all_reduce_reassociation.h"
#include "xla_plugin/pass/report.h"
#include "xla_plugin/pass/unshard_slices.h"

namespace oneshot {
namespace {

// Writes what happened to one module into the dump directory. A dump that fails
// costs the dump, not the rewrite.
class Dump {
 public:
  Dump(std::string dir, absl::string_view module_name) : dir_(std::move(dir)) {
    if (!enabled()) return;
    static std::atomic<int> counter = 0;
    // Names of modules are names of the user's functions: of any length, and
    // with any character.
    constexpr size_t kMaxNameLength = 128;
    std::string name(module_name.substr(0, kMaxNameLength));
    for (char& c : name) {
      if (!absl::ascii_isalnum(c) && c != '_' && c != '-' && c != '.') c = '_';
    }
    prefix_ = absl::StrFormat("%s/%d-%04d.%s", dir_, getpid(), counter++, name);
  }

  bool enabled() const { return !dir_.empty(); }

  void Write(absl::string_view suffix, absl::string_view text) {
    if (!enabled()) return;
    std::error_code ignored;
    std::filesystem::create_directories(dir_, ignored);
    const std::string path = absl::StrCat(prefix_, suffix);
    std::ofstream file(path, std::ios::binary);
    file << text;
    file.close();
    if (!file) {
      error_ = absl::StrCat("can't write ", path, ": ", std::strerror(errno));
    }
  }

  void Write(const ModuleReport& report) {
    // Whoever finds the first finds all: it is written last.
    Write(".report.json", report.ToJson());
  }

  // Empty if all was written.
  const std::string& error() const { return error_; }

 private:
  std::string dir_;
  std::string prefix_;
  std::string error_;
};

struct Rewrite {
  std::string module;  // empty: unchanged
  std::string message;
  std::string dump_error;
  OneshotOutcomes outcomes = {};
};

OneshotOutcomes Count(const ModuleReport& report) {
  OneshotOutcomes outcomes = {};
  for (const SiteReport& site : report.all_reduces) {
    ++(!site.fired()  ? outcomes.left
       : site.alone() ? outcomes.alone
                      : outcomes.fused);
  }
  return outcomes;
}

// All-reduces that are left because the user says so. As long as it exists, a
// frontend attribute keeps all passes away from them.
class Skipped {
 public:
  Skipped(xla::HloModule* module, absl::string_view skip) {
    if (skip.empty()) return;
    const std::regex pattern{std::string(skip)};
    for (xla::HloComputation* computation : module->computations()) {
      for (xla::HloInstruction* hlo : computation->instructions()) {
        if (hlo->opcode() == xla::HloOpcode::kAllReduce &&
            std::regex_search(hlo->metadata().op_name(), pattern)) {
          hlo->add_frontend_attribute(kAttribute, "");
          all_reduces_.push_back(hlo);
        }
      }
    }
  }
  ~Skipped() {
    for (xla::HloInstruction* hlo : all_reduces_) {
      xla::FrontendAttributes attributes = hlo->frontend_attributes();
      attributes.mutable_map()->erase(kAttribute);
      hlo->set_frontend_attributes(std::move(attributes));
    }
  }
  Skipped(const Skipped&) = delete;
  Skipped& operator=(const Skipped&) = delete;

 private:
  // The report says that the all-reduce has it.
  static constexpr char kAttribute[] = "ONESHOT_SKIP";
  std::vector<xla::HloInstruction*> all_reduces_;
};

AllReduceEpilogueFusion::CompileKernel CompileWith(OneshotCompile compile) {
  if (compile == nullptr) return nullptr;
  return [compile](const std::string& program, int64_t rows, int64_t hidden,
                   int ranks) -> std::optional<std::string> {
    char* why = compile(program.c_str(), rows, hidden, ranks);
    if (why == nullptr) return std::nullopt;
    std::string reason = why;
    std::free(why);
    return reason;
  };
}

absl::StatusOr<Rewrite> RunPass(absl::string_view platform,
                                absl::string_view dump_dir,
                                absl::string_view skip, OneshotCompile compile,
                                absl::Span<const int> machines,
                                absl::string_view serialized) {
  absl::StatusOr<DecodedModule> decoded = DecodedModule::Decode(serialized);
  if (!decoded.ok()) {
    ModuleReport report;
    xla::HloModuleProto proto;
    proto.ParseFromArray(serialized.data(),
                         static_cast<int>(serialized.size()));
    report.module = proto.name();
    report.platform = std::string(platform);
    report.declined_module = std::string(decoded.status().message());
    Dump dump(std::string(dump_dir), report.module);
    dump.Write(report);
    return Rewrite{"", report.Summary(), dump.error()};
  }
  xla::HloModule* module = decoded->module();
  Dump dump(std::string(dump_dir), module->name());
  const std::string before = dump.enabled() ? module->ToString() : "";

  const MayAbsorb may_absorb = [&](const xla::HloInstruction* hlo) {
    return decoded->Understands(hlo);
  };
  std::optional<Skipped> skipped(std::in_place, module, skip);
  // By themselves they are no reason to hand back another module.
  UnshardSlices unshard_slices(/*has_layouts=*/platform == "Host", may_absorb);
  TF_RETURN_IF_ERROR(unshard_slices.Run(module).status());
  AllReduceReassociation reassociation(may_absorb);
  TF_RETURN_IF_ERROR(reassociation.Run(module).status());
  AllReduceEpilogueFusion pass(
      platform == "Host" ? AllReduceEpilogueFusion::Platform::kHost
                         : AllReduceEpilogueFusion::Platform::kCuda,
      may_absorb, CompileWith(compile), {machines.begin(), machines.end()});
  TF_ASSIGN_OR_RETURN(const bool changed, pass.Run(module));
  skipped.reset();
  Rewrite result{"", pass.report().Summary(), "", Count(pass.report())};
  if (changed) {
    // XLA verifies the module again, but treats a failure there as a failed
    // compilation; here it only means that the module stays as it was.
    xla::HloVerifier verifier(/*layout_sensitive=*/false,
                              /*allow_mixed_precision=*/true);
    TF_RETURN_IF_ERROR(verifier.Run(module).status());
    TF_ASSIGN_OR_RETURN(result.module, decoded->Encode());
  }
  dump.Write(".before.hlo", before);
  if (changed) dump.Write(".after.hlo", module->ToString());
  dump.Write(pass.report());
  result.dump_error = dump.error();
  return result;
}

char* Copy(const std::string& text) {
  char* copy = static_cast<char*>(std::malloc(text.size() + 1));
  if (copy != nullptr) std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

}  // namespace
}  // namespace oneshot

extern "C" __attribute__((visibility("default"))) int OneshotRunPass(
    const char* platform, const char* dump_dir, const char* skip,
    OneshotCompile compile, const int* machines, size_t machine_count,
    const char* module, size_t size, char** out, size_t* out_size,
    OneshotOutcomes* outcomes, char** message, char** dump_error) {
  *out = nullptr;
  *out_size = 0;
  *outcomes = {};
  *message = nullptr;
  *dump_error = nullptr;
  try {
    absl::StatusOr<oneshot::Rewrite> result;
    const absl::Status status = oneshot::GuardAgainstFatal([&] {
      result = oneshot::RunPass(platform, dump_dir, skip, compile,
                                {machines, machine_count}, {module, size});
      return result.status();
    });
    if (!status.ok()) {
      *message = oneshot::Copy(std::string(status.message()));
      return -1;
    }
    *outcomes = result->outcomes;
    *message = oneshot::Copy(result->message);
    if (!result->dump_error.empty()) {
      *dump_error = oneshot::Copy(result->dump_error);
    }
    if (result->module.empty()) return 0;
    *out = oneshot::Copy(result->module);
    *out_size = result->module.size();
    return *out != nullptr ? 1 : -1;
  } catch (const std::exception& error) {
    *message = oneshot::Copy(error.what());
    return -1;
  }
}

namespace oneshot {
namespace {

// A serialized HloModuleProto from any form that XLA writes modules in.
absl::StatusOr<std::string> ReadModule(absl::string_view data) {
  constexpr absl::string_view kText = "HloModule ";
  if (absl::StartsWith(absl::StripLeadingAsciiWhitespace(data), kText)) {
    TF_ASSIGN_OR_RETURN(const std::unique_ptr<xla::HloModule> module,
                        xla::ParseAndReturnUnverifiedModule(data));
    return module->ToProto().SerializeAsString();
  }
  xla::HloProto dumped;
  if (dumped.ParseFromArray(data.data(), static_cast<int>(data.size())) &&
      dumped.hlo_module().computations_size() > 0) {
    return dumped.hlo_module().SerializeAsString();
  }
  xla::HloModuleProto bare;
  if (bare.ParseFromArray(data.data(), static_cast<int>(data.size())) &&
      bare.computations_size() > 0) {
    return std::string(data);
  }
  return absl::InvalidArgumentError(
      "neither HLO text nor a serialized HLO module");
}

}  // namespace
}  // namespace oneshot

extern "C" __attribute__((visibility("default"))) int OneshotExplain(
    const char* platform, const char* dump_dir, const char* skip,
    OneshotCompile compile, const char* module, size_t size, char** message) {
  *message = nullptr;
  try {
    const absl::Status status = oneshot::GuardAgainstFatal([&]() {
      const auto read = oneshot::ReadModule({module, size});
      if (!read.ok()) return read.status();
      return oneshot::RunPass(platform, dump_dir, skip, compile,
                              /*machines=*/{}, *read)
          .status();
    });
    if (status.ok()) return 0;
    *message = oneshot::Copy(std::string(status.message()));
  } catch (const std::exception& error) {
    *message = oneshot::Copy(error.what());
  }
  return -1;
}
