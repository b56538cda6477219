// SPDX-License-Identifier: Apache-2.0
//
// Made by tune.py, between 2 x NVIDIA H100 80GB HBM3.
#ifndef ONESHOT_CUDA_KERNEL_TUNINGS_H_
#define ONESHOT_CUDA_KERNEL_TUNINGS_H_

#include "cuda/kernel/launch_plan.h"

namespace oneshot {

// The device that it was measured on.
constexpr DeviceLimits kMeasuredOn = {132, 8};

// By packets, then rows.
constexpr Measured kMeasured[] = {
    {256, 1, {64, 1, 4}},       // 2.28 us, 2.73 cold
    {256, 8, {64, 1, 4}},       // 2.48 us, 2.76 cold
    {256, 32, {256, 1, 1}},     // 2.74 us, 3.32 cold
    {256, 64, {256, 1, 1}},     // 3.13 us, 3.55 cold
    {256, 128, {128, 1, 2}},    // 3.95 us, 4.26 cold
    {256, 256, {128, 1, 2}},    // 5.38 us, 6.40 cold
    {256, 512, {128, 1, 2}},    // 8.33 us, 11.61 cold
    {512, 1, {64, 1, 8}},       // 2.42 us, 2.64 cold
    {512, 8, {128, 1, 4}},      // 2.60 us, 2.87 cold
    {512, 32, {256, 1, 2}},     // 3.25 us, 3.84 cold
    {512, 64, {512, 1, 1}},     // 3.95 us, 4.42 cold
    {512, 128, {256, 1, 2}},    // 5.40 us, 6.42 cold
    {512, 256, {256, 1, 2}},    // 8.39 us, 11.43 cold
    {512, 512, {256, 1, 2}},    // 14.14 us, 19.08 cold
    {1024, 1, {128, 1, 8}},     // 2.48 us, 2.83 cold
    {1024, 8, {128, 1, 8}},     // 2.89 us, 3.39 cold
    {1024, 32, {512, 1, 2}},    // 4.12 us, 4.81 cold
    {1024, 64, {256, 1, 4}},    // 5.61 us, 6.47 cold
    {1024, 128, {1024, 1, 1}},  // 8.69 us, 11.53 cold
    {1024, 256, {128, 1, 8}},   // 14.65 us, 19.45 cold
    {1024, 512, {1024, 1, 1}},  // 27.31 us, 33.08 cold
    {2048, 1, {256, 1, 8}},     // 2.65 us, 2.82 cold
    {2048, 8, {256, 1, 8}},     // 3.40 us, 3.51 cold
    {2048, 32, {256, 1, 8}},    // 5.72 us, 6.54 cold
    {2048, 64, {1024, 1, 2}},   // 8.83 us, 11.44 cold
    {2048, 128, {256, 1, 8}},   // 15.03 us, 19.48 cold
    {2048, 256, {1024, 1, 2}},  // 28.49 us, 33.97 cold
    {2048, 512, {1024, 1, 2}},  // 51.88 us, 54.61 cold
    {4096, 1, {512, 1, 8}},     // 3.04 us, 3.36 cold
    {4096, 8, {512, 1, 8}},     // 4.29 us, 4.87 cold
    {4096, 32, {256, 2, 8}},    // 9.48 us, 12.42 cold
    {4096, 64, {512, 1, 8}},    // 15.90 us, 20.78 cold
    {4096, 128, {512, 1, 8}},   // 28.42 us, 34.81 cold
    {4096, 256, {512, 1, 8}},   // 53.12 us, 55.55 cold
    {4096, 512, {512, 1, 8}},   // 103.26 us, 103.75 cold
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_KERNEL_TUNINGS_H_
