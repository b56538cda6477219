// SPDX-License-Identifier: Apache-2.0
//
// From an epilogue program to the CUDA source of its kernel.
#ifndef ONESHOT_CUDA_KERNEL_SOURCE_H_
#define ONESHOT_CUDA_KERNEL_SOURCE_H_

#include <string>

#include "cuda/epilogue_program.h"
#include "cuda/launch_plan.h"

namespace oneshot {

// A complete translation unit for NVRTC, of one kernel that is named by
// Identifier(program) and takes one KernelArguments by value. It depends on
// nothing but the arguments, so equal sources mean equal kernels. With `wide`,
// all buffers must be aligned to 16 bytes; that is of use only where whole
// packets are, too.
std::string KernelSource(const EpilogueProgram& program, const LaunchPlan& plan,
                         int ranks, bool wide);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_KERNEL_SOURCE_H_
