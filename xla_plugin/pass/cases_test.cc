// SPDX-License-Identifier: Apache-2.0
//
// Runs the fusion on every file of testdata/cases. Each file is one HLO module,
// below a header that says what must become of it, one `// KEY: VALUE` a line:
//
//   fused: EPILOGUE        the next all-reduce is replaced, as this epilogue
//   declined: PART         the next all-reduce stays, for a reason with PART
//
// These name all all-reduces of the module, in the report's order. Lines below
// one of them are about it:
//
//   program: TEXT          its program
//   program has: PART
//   attributes have: PART  of its custom-call
//   operands: A, B         of its custom-call: names of the file's
//   instructions;
//                          what the pass has made is written as opcode(A, B)
//   results: SHAPE, SHAPE  of its custom-call
//   read by: OPCODE, ...   what uses its custom-call
//   stopped at: NAME, PART the match ended there, for a reason with PART (or
//                          just NAME); a line for each stop, or `nothing`
//   source: FILE:LINE      where the report says that it is from
//   bytes: N               of its message
//
// And about the module:
//
//   remains: OPCODE        some instruction has that opcode
//   gone: OPCODE           none has
//   root: OPCODE           of the entry computation
//   entry instructions: N  the entry computation has
//   platform: Host         whose handlers are called; CUDA if it isn't said
//   why: TEXT              for the reader
//
// A line that is none of these is an error, and so is a file that expects
// nothing. What holds for every case is checked without being said: the module
// is valid before and after, there are as many custom-calls as `fused` lines,
// and no all-reduce remains if none is declined.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "xla/hlo/ir/hlo_casting_utils.h"
#include "xla/hlo/ir/hlo_instructions.h"
#include "xla/hlo/parser/hlo_parser.h"
#include "xla/shape_util.h"
#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"
#include "xla_plugin/testing/hlo_modules.h"
#include "xla_plugin/testing/run_fusion.h"

namespace oneshot {
namespace {

constexpr char kFolder[] = "xla_plugin/testdata/cases";

struct Line {
  std::string key;
  std::string value;
};

class Case {
 public:
  // Runs it.
  explicit Case(absl::string_view text) {
    const HloText split = SplitHeader(text);
    for (const std::string& line : split.header) {
      const std::pair<std::string, std::string> parts =
          absl::StrSplit(line, absl::MaxSplits(": ", 1));
      Add({parts.first, parts.second});
    }
    if (wanted_.empty()) Fail("neither `fused` nor `declined`");
    Run(split.hlo);
  }

  // What is not as the header says.
  const std::vector<std::string>& failures() const { return failures_; }
  std::string report() const { return report_.ToJson(); }
  std::string module() const { return module_ ? module_->ToString() : ""; }

 private:
  // An all-reduce, and the lines about it. The first is `fused` or `declined`.
  using Site = std::vector<Line>;

  void Fail(absl::string_view message) { failures_.emplace_back(message); }

  void Expect(const Line& line, absl::string_view found, bool as_wanted) {
    if (as_wanted) return;
    Fail(absl::StrCat(line.key, ": ", line.value, "\n    is: ", found));
  }

  void ExpectIs(const Line& line, absl::string_view found) {
    Expect(line, found, found == line.value);
  }

  void ExpectHas(const Line& line, absl::string_view found) {
    Expect(line, found, absl::StrContains(found, line.value));
  }

  // Sorts a line in.
  void Add(const Line& line) {
    const absl::flat_hash_set<absl::string_view> about_sites = {
        "program", "program has", "attributes have", "operands", "results",
        "read by", "stopped at",  "source",          "bytes"};
    const absl::flat_hash_set<absl::string_view> about_module = {
        "remains", "gone", "root", "entry instructions"};
    if (line.value.empty()) {
      Fail(absl::StrCat("nothing behind `", line.key, "`"));
    } else if (line.key == "why") {
    } else if (line.key == "platform" && line.value == "Host") {
      platform_ = AllReduceEpilogueFusion::Platform::kHost;
    } else if (line.key == "fused" || line.key == "declined") {
      wanted_.push_back({line});
    } else if (about_sites.contains(line.key)) {
      if (wanted_.empty()) return Fail(absl::StrCat(line.key, " of what?"));
      wanted_.back().push_back(line);
    } else if (about_module.contains(line.key)) {
      of_module_.push_back(line);
    } else {
      Fail(absl::StrCat("unknown line: ", line.key, ": ", line.value));
    }
  }

  void Run(absl::string_view hlo) {
    auto parsed = xla::ParseAndReturnUnverifiedModule(hlo);
    if (!parsed.ok()) return Fail(parsed.status().ToString());
    module_ = *std::move(parsed);
    for (const auto* computation : module_->computations()) {
      for (const auto* instruction : computation->instructions()) {
        names_.emplace(instruction->name());
      }
    }
    AllReduceEpilogueFusion pass(platform_);
    auto report = RunFusion(module_.get(), pass);
    if (!report.ok()) return Fail(report.status().ToString());
    report_ = *std::move(report);

    if (report_.all_reduces.size() != wanted_.size()) {
      return Fail(absl::StrCat(report_.all_reduces.size(),
                               " all-reduces, the header has ",
                               wanted_.size()));
    }
    for (size_t i = 0; i < wanted_.size(); ++i) {
      Check(wanted_[i], report_.all_reduces[i]);
    }
    CheckCalls();
    for (const Line& line : of_module_) CheckModule(line);
  }

  void CheckCalls() {
    const auto calls = FusedCalls(*module_);
    if (calls.size() != static_cast<size_t>(report_.fired())) {
      Fail(absl::StrCat(calls.size(), " custom-calls for ", report_.fired(),
                        " fused all-reduces"));
    }
    for (const xla::HloInstruction* call : calls) {
      if (!xla::Cast<xla::HloCustomCallInstruction>(call)
               ->layout_constrained()) {
        Fail("the layouts of the custom-call are not constrained");
      }
    }
    if (static_cast<size_t>(report_.fired()) == wanted_.size() &&
        HasOpcode(*module_, xla::HloOpcode::kAllReduce)) {
      Fail("an all-reduce is left");
    }
  }

  void CheckModule(const Line& line) {
    const xla::HloComputation* entry = module_->entry_computation();
    if (line.key == "root") {
      ExpectIs(line, xla::HloOpcodeString(entry->root_instruction()->opcode()));
    } else if (line.key == "entry instructions") {
      ExpectIs(line, absl::StrCat(entry->instruction_count()));
    } else {
      const auto opcode = xla::StringToHloOpcode(line.value);
      if (!opcode.ok()) return Fail(std::string(opcode.status().message()));
      const bool has = HasOpcode(*module_, *opcode);
      Expect(line, has ? "there" : "not there", has == (line.key == "remains"));
    }
  }

  void Check(const Site& wanted, const SiteReport& found) {
    const Line& outcome = wanted.front();
    if (found.fired() != (outcome.key == "fused")) {
      return Expect(outcome, found.fired() ? "fused" : found.reason, false);
    }
    if (found.fired()) {
      ExpectIs(outcome, found.epilogue);
    } else {
      ExpectHas(outcome, found.reason);
    }
    const xla::HloInstruction* call = nullptr;
    for (const xla::HloInstruction* hlo : FusedCalls(*module_)) {
      if (hlo->name() == found.custom_call) call = hlo;
    }
    std::vector<std::string> stops;
    for (size_t i = 1; i < wanted.size(); ++i) {
      const Line& line = wanted[i];
      if (line.key == "stopped at") {
        if (line.value != "nothing") stops.push_back(line.value);
        if (&line == Last(wanted, "stopped at")) CheckStops(stops, found);
      } else if (line.key == "source") {
        ExpectIs(line, found.source);
      } else if (line.key == "bytes") {
        ExpectIs(line, absl::StrCat(found.bytes));
      } else if (line.key == "program") {
        ExpectIs(line, found.program);
      } else if (line.key == "program has") {
        ExpectHas(line, found.program);
      } else if (call == nullptr) {
        Expect(line, "without a custom-call", false);
      } else {
        CheckCall(line, *call);
      }
    }
  }

  void CheckCall(const Line& line, const xla::HloInstruction& call) {
    if (line.key == "attributes have") {
      ExpectHas(line, call.raw_backend_config_string());
    } else if (line.key == "operands") {
      ExpectIs(line, Operands(call));
    } else if (line.key == "results") {
      const auto shapes = call.shape().IsTuple() ? call.shape().tuple_shapes()
                                                 : std::vector{call.shape()};
      ExpectIs(line, absl::StrJoin(shapes, ", ", [](auto* out, auto& shape) {
                 out->append(xla::ShapeUtil::HumanString(shape));
               }));
    } else {
      ExpectIs(line,
               absl::StrJoin(call.users(), ", ", [](auto* out, auto* hlo) {
                 out->append(xla::HloOpcodeString(hlo->opcode()));
               }));
    }
  }

  void CheckStops(const std::vector<std::string>& wanted,
                  const SiteReport& found) {
    bool same = wanted.size() == found.stopped.size();
    for (size_t i = 0; same && i < wanted.size(); ++i) {
      const std::pair<std::string, std::string> parts =
          absl::StrSplit(wanted[i], absl::MaxSplits(", ", 1));
      same = parts.first == found.stopped[i].instruction &&
             absl::StrContains(found.stopped[i].reason, parts.second);
    }
    if (same) return;
    std::string stops;
    for (const StopReport& stop : found.stopped) {
      absl::StrAppend(&stops, "\n    ", stop.instruction, ", ", stop.reason);
    }
    Fail(absl::StrCat("it has stopped at:", stops));
  }

  static const Line* Last(const Site& site, absl::string_view key) {
    const Line* last = nullptr;
    for (const Line& line : site) {
      if (line.key == key) last = &line;
    }
    return last;
  }

  std::string Operands(const xla::HloInstruction& hlo) const {
    return absl::StrJoin(hlo.operands(), ", ", [&](auto* out, auto* operand) {
      out->append(Describe(*operand));
    });
  }

  std::string Describe(const xla::HloInstruction& hlo) const {
    if (names_.contains(hlo.name())) return std::string(hlo.name());
    return absl::StrCat(xla::HloOpcodeString(hlo.opcode()), "(",
                        hlo.opcode() == xla::HloOpcode::kConstant
                            ? hlo.literal().ToStringWithoutShape()
                            : Operands(hlo),
                        ")");
  }

  AllReduceEpilogueFusion::Platform platform_ =
      AllReduceEpilogueFusion::Platform::kCuda;
  std::vector<Site> wanted_;
  std::vector<Line> of_module_;
  std::unique_ptr<xla::HloModule> module_;
  absl::flat_hash_set<std::string> names_;  // before the pass
  ModuleReport report_;
  std::vector<std::string> failures_;
};

class CasesTest : public ::testing::TestWithParam<std::filesystem::path> {};

TEST_P(CasesTest, IsAsItsHeaderSays) {
  const Case run(ReadFile(GetParam()));
  EXPECT_THAT(run.failures(), ::testing::IsEmpty())
      << run.report() << run.module();
}

// norm/softmax.hlo is norm_softmax.
INSTANTIATE_TEST_SUITE_P(Testdata, CasesTest,
                         ::testing::ValuesIn(HloFiles(kFolder)),
                         [](const auto& info) {
                           return absl::StrCat(
                               info.param.parent_path().filename().string(),
                               "_", info.param.stem().string());
                         });

// The runner itself: each line is wrong for this module, and must be noticed.
TEST(CaseRunnerTest, NoticesEveryLineThatIsWrong) {
  constexpr absl::string_view kHlo = R"(
HloModule m, num_partitions=2
add { a = f32[] parameter(0)
      b = f32[] parameter(1)
      ROOT s = f32[] add(a, b) }
ENTRY e {
  x = f32[4,8] parameter(0)
  ar = f32[4,8] all-reduce(x), channel_id=1, replica_groups={{0,1}},
    use_global_device_ids=true, to_apply=add
  t = f32[4,8] tanh(ar)
  ROOT i = s32[4,8] convert(t)
})";
  const auto failures = [&](absl::string_view header) {
    return Case(absl::StrCat(header, kHlo)).failures();
  };
  EXPECT_THAT(failures("// fused: tanh\n// program has: tanh\n"
                       "// operands: x\n// results: f32[4,8]\n"
                       "// read by: convert\n// stopped at: i, S32\n"
                       "// bytes: 128\n// gone: tanh\n// remains: convert\n"
                       "// root: convert\n// entry instructions: 3\n"),
              ::testing::IsEmpty());
  for (const absl::string_view wrong : {"// program: x",
                                        "// program has: cosine",
                                        "// attributes have: nothing",
                                        "// operands: ar",
                                        "// results: f32[4]",
                                        "// read by: tanh",
                                        "// stopped at: nothing",
                                        "// stopped at: t",
                                        "// stopped at: i, F64",
                                        "// source: m.py:1",
                                        "// bytes: 1",
                                        "// remains: tanh",
                                        "// gone: convert",
                                        "// root: tuple",
                                        "// entry instructions: 4",
                                        "// gone: no-such-opcode",
                                        "// program has",
                                        "// platform: TPU",
                                        "// fused: tanh",
                                        "// declined: too large",
                                        "// porgram: x"}) {
    EXPECT_THAT(failures(absl::StrCat("// fused: tanh\n", wrong, "\n")),
                ::testing::Not(::testing::IsEmpty()))
        << wrong;
  }
  for (const absl::string_view header :
       {"", "// why: no expectation\n", "// fused: none\n",
        "// declined: tanh\n", "// bytes: 128\n// fused: tanh\n"}) {
    EXPECT_THAT(failures(header), ::testing::Not(::testing::IsEmpty()))
        << header;
  }
}

}  // namespace
}  // namespace oneshot
