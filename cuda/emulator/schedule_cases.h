// SPDX-License-Identifier: Apache-2.0
//
// Kernels that kernel_schedule_test.cc runs; emulated_kernels.cc compiles them.
#ifndef ONESHOT_CUDA_EMULATOR_SCHEDULE_CASES_H_
#define ONESHOT_CUDA_EMULATOR_SCHEDULE_CASES_H_

#include <cstdint>

#include "cuda/kernel/launch_plan.h"

namespace oneshot {

struct ScheduleCase {
  const char* program;
  int64_t rows;
  int64_t hidden;
  int ranks;
  Tuning tuning;
};

// So few multiprocessors that blocks have several tiles.
inline constexpr DeviceLimits kEmulatedDevice = {1, 8};

inline constexpr char kNorm[] =
    "x bf16; in0 element bf16; in1 column f32; v0 = sum.bf16; v1 = in0; "
    "v2 = add.bf16 v0 v1; v3 = multiply v2 v2; v4 = reduce_sum v3; "
    "v5 = constant 0x1p-10; v6 = multiply v4 v5; v7 = rsqrt v6; "
    "v8 = multiply v2 v7; v9 = in1; v10 = multiply.bf16 v8 v9; out0 v2 bf16; "
    "out1 v10 bf16";
// Three reductions in turn.
inline constexpr char kChain[] =
    "x f32; in0 row f32; in1 element f32 slice 3 at i0; v0 = sum; v1 = in0; "
    "v2 = add v0 v1; v3 = reduce_max v2; v4 = subtract v2 v3; "
    "v5 = reduce_min v4; v6 = in1; v7 = subtract v6 v5; v8 = reduce_max v7; "
    "v9 = add v7 v8; out0 v9 f32; out1 v8 f32; out2 v2 bf16";
inline constexpr char kSum[] = "x f16; v0 = sum.f16; out0 v0 f16";
inline constexpr char kQuantized[] =
    "x f16; in0 column f16 slice 2 at i0; v0 = sum.f16; v1 = reduce_min v0; "
    "v2 = in0; v3 = add v2 v1; v4 = gt v0 v3; v5 = select v4 v0 v3; "
    "out0 v5 f16; out1 v5 f8e5m2; out2 v5 s8";

// Some rows fill a cluster, some leave warps or whole blocks without a packet.
// Those of as many ranks stand together.
inline constexpr ScheduleCase kScheduleCases[] = {
    {kNorm, 5, 1024, 2, {32, 1, 4}},      // all busy
    {kNorm, 9, 640, 2, {32, 1, 4}},       // a block idles
    {kNorm, 9, 520, 2, {64, 1, 2}},       // a warp idles
    {kChain, 7, 330, 2, {32, 1, 8}},      // five blocks idle
    {kNorm, 6, 1280, 2, {32, 1, 5}},      // all busy, in odd clusters
    {kSum, 3, 5001, 2, {64, 2, 1}},       // packets that are not full
    {kQuantized, 5, 777, 2, {32, 4, 1}},  // two shots are of no use
    {kNorm, 4, 1304, 3, {64, 1, 4}},      // one shot
    {kChain, 5, 330, 3, {32, 2, 2, true}},
    {kSum, 1, 3001, 3, {32, 1, 1, true}},
    {kChain, 3, 384, 3, {32, 1, 3}},
    {kNorm, 5, 640, 4, {32, 1, 4, true}},
    {kChain, 3, 130, 4, {32, 1, 2}},
    {kQuantized, 3, 515, 4, {32, 1, 4, true}},
    {kSum, 2, 2001, 4, {64, 1, 1}},
    {kNorm, 3, 1792, 4, {32, 1, 7, true}},
    {kNorm, 3, 600, 8, {32, 1, 4, true}},
    {kChain, 2, 65, 8, {32, 1, 1}},
    {kSum, 1, 999, 8, {32, 1, 1, true}},
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_EMULATOR_SCHEDULE_CASES_H_
