// SPDX-License-Identifier: Apache-2.0
//
// Made by tune.py, between 2 x NVIDIA H100 80GB HBM3.
#ifndef ONESHOT_CUDA_TUNINGS_H_
#define ONESHOT_CUDA_TUNINGS_H_

#include "cuda/launch_plan.h"

namespace oneshot {

// The device that it was measured on.
constexpr DeviceLimits kMeasuredOn = {132, 8};

// By packets, then rows.
constexpr Measured kMeasured[] = {
    {256, 1, {128, 1, 2}},      // 2.29 us, 2.66 cold
    {256, 8, {64, 1, 4}},       // 2.50 us, 2.70 cold
    {256, 32, {256, 1, 1}},     // 2.75 us, 3.05 cold
    {256, 64, {256, 1, 1}},     // 3.14 us, 3.44 cold
    {256, 128, {128, 1, 2}},    // 3.92 us, 4.27 cold
    {256, 256, {128, 1, 2}},    // 5.35 us, 6.20 cold
    {512, 1, {64, 1, 8}},       // 2.39 us, 2.65 cold
    {512, 8, {128, 1, 4}},      // 2.61 us, 2.64 cold
    {512, 32, {256, 1, 2}},     // 3.25 us, 3.23 cold
    {512, 64, {512, 1, 1}},     // 3.96 us, 4.49 cold
    {512, 128, {256, 1, 2}},    // 5.42 us, 6.45 cold
    {512, 256, {256, 1, 2}},    // 8.47 us, 11.56 cold
    {1024, 1, {128, 1, 8}},     // 2.45 us, 2.90 cold
    {1024, 8, {128, 1, 8}},     // 2.90 us, 3.32 cold
    {1024, 32, {512, 1, 2}},    // 4.13 us, 4.60 cold
    {1024, 64, {256, 1, 4}},    // 5.62 us, 6.73 cold
    {1024, 128, {1024, 1, 1}},  // 8.67 us, 11.71 cold
    {1024, 256, {1024, 1, 1}},  // 15.50 us, 20.73 cold
    {2048, 1, {256, 1, 8}},     // 2.61 us, 2.98 cold
    {2048, 8, {256, 1, 8}},     // 3.36 us, 3.47 cold
    {2048, 32, {256, 1, 8}},    // 5.75 us, 6.73 cold
    {2048, 64, {1024, 1, 2}},   // 8.91 us, 11.51 cold
    {2048, 128, {1024, 2, 1}},  // 16.11 us, 20.92 cold
    {2048, 256, {1024, 2, 1}},  // 31.63 us, 37.69 cold
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_TUNINGS_H_
