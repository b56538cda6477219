// SPDX-License-Identifier: Apache-2.0
//
// Writes the kernels of kernel_schedule_cases.h as C++ for the emulator: the
// very source that a GPU gets, but for its part about the machine.
#include <cstdio>
#include <iterator>
#include <optional>
#include <string>

#include "cuda/emulator/schedule_cases.h"
#include "cuda/kernel/kernel_source.h"
#include "cuda/program/call_contract.h"
#include "cuda/program/epilogue_program.h"

int main() {
  using namespace oneshot;
  std::puts("#include \"cuda/emulator/machine.h\"");
  std::string table;
  for (size_t i = 0; i < std::size(kScheduleCases); ++i) {
    const ScheduleCase& c = kScheduleCases[i];
    EpilogueProgram program;
    std::string error;
    if (!FromText(c.program, &program, &error)) {
      std::fprintf(stderr, "case %zu: %s\n", i, error.c_str());
      return 1;
    }
    const std::optional<LaunchPlan> plan = PlanLaunch(
        program, c.rows, c.hidden, c.ranks, kEmulatedDevice, c.tuning);
    if (!plan) {
      std::fprintf(stderr, "case %zu does not fit\n", i);
      return 1;
    }
    const bool vectorized = c.hidden * ByteWidth(program.x) % kPacketBytes == 0;
    const std::string space = "case_" + std::to_string(i);
    // The source stands in a namespace of its own, with all that it includes.
    std::printf(
        "#undef ONESHOT_CUDA_KERNEL_DEVICE_ARGUMENTS_H_\n"
        "#undef ONESHOT_CUDA_PROGRAM_QUANTIZED_FORMATS_H_\n"
        "#define %s kernel_%zu\n"
        "namespace %s {\n%s}\n"
        "#undef %s\n",
        Identifier(program).c_str(), i, space.c_str(),
        KernelSource(program, *plan, c.ranks, vectorized, Machine::kEmulator)
            .c_str(),
        Identifier(program).c_str());
    table += "    {[](const void* arguments) {\n       " + space + "::kernel_" +
             std::to_string(i) + "(*static_cast<const " + space +
             "::oneshot::KernelArguments*>(arguments));\n     },\n     " +
             std::to_string(plan->blocks) + ", " +
             std::to_string(plan->tuning.threads) + ", " +
             std::to_string(plan->tuning.cluster) + "},\n";
  }
  std::printf(
      "namespace oneshot {\n"
      "extern const EmulatedKernel kEmulatedKernels[] = {\n%s};\n"
      "}  // namespace oneshot\n",
      table.c_str());
  return 0;
}
