// SPDX-License-Identifier: Apache-2.0
//
// How the time of the passes grows with the module. Prints, for modules of
// several forms at a quarter, half and all of their size, the CPU time of each
// pass and of what XLA's reading, verifying and writing take beside it:
//
//   bazel run //xla_plugin/pass:pass_time_bench

#include <cstdio>
#include <ctime>
#include <functional>
#include <string>
#include <utility>

#include "absl/log/check.h"
#include "absl/strings/str_cat.h"
#include "xla/hlo/ir/hlo_module.h"
#include "xla/service/hlo.pb.h"
#include "xla/service/hlo_verifier.h"
#include "xla_plugin/module/module_codec.h"
#include "xla_plugin/pass/all_reduce_epilogue_fusion.h"
#include "xla_plugin/pass/all_reduce_reassociation.h"
#include "xla_plugin/pass/unshard_slices.h"
#include "xla_plugin/testing/hlo_modules.h"

namespace oneshot {
namespace {

constexpr char kShape[] = "f32[8,128]";

// A module of `count` parameters p0, p1, ... and a body.
std::string Module(int count, const std::string& body) {
  std::string text = R"(HloModule m, num_partitions=2
add { a = f32[] parameter(0)
      b = f32[] parameter(1)
      ROOT s = f32[] add(a, b) }
ENTRY e {
)";
  for (int i = 0; i < count; ++i) {
    absl::StrAppend(&text, "p", i, " = ", kShape, " parameter(", i, ")\n");
  }
  return absl::StrCat(text, body, "}\n");
}

std::string AllReduce(const std::string& name, const std::string& operand) {
  return absl::StrCat(name, " = ", kShape, " all-reduce(", operand,
                      "), channel_id=1, replica_groups={{0,1}}, "
                      "use_global_device_ids=true, to_apply=add\n");
}

// `elements` e0, e1, ... as the result.
std::string RootTuple(int elements) {
  std::string shapes, names;
  for (int i = 0; i < elements; ++i) {
    const char* comma = i == 0 ? "" : ", ";
    absl::StrAppend(&shapes, comma, kShape);
    absl::StrAppend(&names, comma, "e", i);
  }
  return absl::StrCat("ROOT out = (", shapes, ") tuple(", names, ")\n");
}

// One all-reduce after the other, each with 99 operations behind it.
std::string Chain(int all_reduces) {
  constexpr int kOperations = 99;
  std::string body, last = "p0";
  for (int i = 0; i < all_reduces; ++i) {
    std::string next = absl::StrCat("ar", i);
    body += AllReduce(next, last);
    for (int k = 0; k < kOperations; ++k) {
      last = std::exchange(next, absl::StrCat("v", i, "_", k));
      absl::StrAppend(&body, next, " = ", kShape, " tanh(", last, ")\n");
    }
    last = next;
  }
  return Module(
      1, absl::StrCat(body, "ROOT out = ", kShape, " negate(", last, ")\n"));
}

std::string Independent(int all_reduces) {
  std::string body;
  for (int i = 0; i < all_reduces; ++i) {
    body += AllReduce(absl::StrCat("ar", i), absl::StrCat("p", i));
    absl::StrAppend(&body, "e", i, " = ", kShape, " tanh(ar", i, ")\n");
  }
  return Module(all_reduces, body + RootTuple(all_reduces));
}

// One all-reduce with many operands, like XLA's combiner makes.
std::string OneOfMany(int operands) {
  std::string shapes, names, body;
  for (int i = 0; i < operands; ++i) {
    const char* comma = i == 0 ? "" : ", ";
    absl::StrAppend(&shapes, comma, kShape);
    absl::StrAppend(&names, comma, "p", i);
    absl::StrAppend(&body, "sum_", i, " = ", kShape,
                    " get-tuple-element(ar), index=", i, "\ne", i, " = ",
                    kShape, " tanh(sum_", i, ")\n");
  }
  return Module(operands,
                absl::StrCat("ar = (", shapes, ") all-reduce(", names,
                             "), channel_id=1, replica_groups={{0,1}}, "
                             "use_global_device_ids=true, to_apply=add\n",
                             body, RootTuple(operands)));
}

// The mean of the gradients of `leaves` parameters, and a step of Adam.
std::string Adam(int leaves) {
  std::string body;
  const auto constant = [&](const char* name, const char* value) {
    absl::StrAppend(&body, name, "_ = f32[] constant(", value, ")\n", name,
                    " = ", kShape, " broadcast(", name, "_), dimensions={}\n");
  };
  constant("half", "0.5");
  constant("b1", "0.9");
  constant("c1", "0.1");
  constant("b2", "0.999");
  constant("c2", "0.001");
  constant("eps", "1e-8");
  constant("rate", "1e-3");
  for (int i = 0; i < leaves; ++i) {
    const auto name = [&](const char* of) { return absl::StrCat(of, i); };
    const auto line = [&](const char* result, const std::string& value) {
      absl::StrAppend(&body, result, i, " = ", kShape, " ", value, "\n");
    };
    const auto parameter = [&](int k) { return absl::StrCat("p", 4 * i + k); };
    body += AllReduce(name("ar"), parameter(0));
    line("g", absl::StrCat("multiply(ar", i, ", half)"));
    line("md", absl::StrCat("multiply(", parameter(1), ", b1)"));
    line("mn", absl::StrCat("multiply(g", i, ", c1)"));
    absl::StrAppend(&body, "e", 3 * i, " = ", kShape, " add(md", i, ", mn", i,
                    ")\n");
    line("vd", absl::StrCat("multiply(", parameter(2), ", b2)"));
    line("gg", absl::StrCat("multiply(g", i, ", g", i, ")"));
    line("vn", absl::StrCat("multiply(gg", i, ", c2)"));
    absl::StrAppend(&body, "e", 3 * i + 1, " = ", kShape, " add(vd", i, ", vn",
                    i, ")\n");
    line("root", absl::StrCat("sqrt(e", 3 * i + 1, ")"));
    line("below", absl::StrCat("add(root", i, ", eps)"));
    line("step", absl::StrCat("divide(e", 3 * i, ", below", i, ")"));
    line("scaled", absl::StrCat("multiply(step", i, ", rate)"));
    absl::StrAppend(&body, "e", 3 * i + 2, " = ", kShape, " subtract(",
                    parameter(3), ", scaled", i, ")\n");
  }
  return Module(4 * leaves, body + RootTuple(3 * leaves));
}

// All-reduces whose results are added, which AllReduceReassociation makes one.
std::string Added(int all_reduces) {
  std::string body, sum = "p0";
  for (int i = 0; i < all_reduces; ++i) {
    body += AllReduce(absl::StrCat("ar", i), absl::StrCat("p", i));
    absl::StrAppend(&body, "sum_", i, " = ", kShape, " add(", sum, ", ar", i,
                    ")\n");
    sum = absl::StrCat("sum_", i);
  }
  return Module(all_reduces, absl::StrCat(body, "ROOT out = ", kShape, " tanh(",
                                          sum, ")\n"));
}

double Seconds(const std::function<void()>& work) {
  const std::clock_t start = std::clock();
  work();
  return static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

void Measure(const char* name, const std::string& text) {
  const std::string bytes = ParseModule(text)->ToProto().SerializeAsString();
  absl::StatusOr<DecodedModule> decoded;
  const double decode =
      Seconds([&] { decoded = DecodedModule::Decode(bytes); });
  CHECK_OK(decoded.status());
  xla::HloModule* module = decoded->module();
  const auto run = [&](xla::HloModulePass& pass) {
    return Seconds([&] { CHECK_OK(pass.Run(module).status()); });
  };
  UnshardSlices unshard_slices(/*has_layouts=*/false);
  AllReduceReassociation reassociation;
  AllReduceEpilogueFusion fusion(Platform::kCuda);
  const int64_t instructions = module->instruction_count();
  const double unsharding = run(unshard_slices);
  const double reassociating = run(reassociation);
  const double fusing = run(fusion);
  xla::HloVerifier verifier(/*layout_sensitive=*/false,
                            /*allow_mixed_precision=*/true);
  const double verifying =
      Seconds([&] { CHECK_OK(verifier.Run(module).status()); });
  const double encoding =
      Seconds([&] { CHECK_OK(decoded->Encode().status()); });
  std::printf("| %s | %lld | %lld | %.3f | %.3f | %.3f | %.3f |\n", name,
              static_cast<long long>(instructions),
              static_cast<long long>(fusion.report().fired()), unsharding,
              reassociating, fusing, decode + verifying + encoding);
  std::fflush(stdout);
}

void Main() {
  std::printf(
      "| module | instructions | fused | UnshardSlices, s | "
      "AllReduceReassociation, s | AllReduceEpilogueFusion, s | "
      "read, verify, write, s |\n|---|---|---|---|---|---|---|\n");
  const struct {
    const char* name;
    std::string (*make)(int);
    int size;
  } kModules[] = {
      {"chain", Chain, 1000},           {"independent", Independent, 3000},
      {"one of many", OneOfMany, 1000}, {"Adam", Adam, 1000},
      {"added", Added, 1000},
  };
  for (const auto& [name, make, size] : kModules) {
    for (const int part : {4, 2, 1}) Measure(name, make(size / part));
  }
}

}  // namespace
}  // namespace oneshot

int main() { oneshot::Main(); }
