// SPDX-License-Identifier: Apache-2.0
//
// From an epilogue program to the CUDA source of its kernel.
#ifndef ONESHOT_CUDA_KERNEL_KERNEL_SOURCE_H_
#define ONESHOT_CUDA_KERNEL_KERNEL_SOURCE_H_

#include <string>

#include "cuda/kernel/launch_plan.h"
#include "cuda/program/epilogue_program.h"

namespace oneshot {

// Where the kernel runs: on a GPU, or in the emulator of tests, whose part
// (emulated_machine.h) whoever compiles the source puts in front.
enum class Machine { kGpu, kEmulator };

// A complete translation unit for NVRTC, of one kernel that is named by
// Identifier(program) and takes one KernelArguments by value. It depends on
// nothing but the arguments, so equal sources mean equal kernels. With
// `vectorized`, all buffers must be aligned to 16 bytes; that is of use only
// where whole packets are, too.
std::string KernelSource(const EpilogueProgram& program, const LaunchPlan& plan,
                         int ranks, bool vectorized,
                         Machine machine = Machine::kGpu);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_KERNEL_KERNEL_SOURCE_H_
