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
    {256, 1, {64, 1, 4}},       // 2.54 us
    {256, 8, {64, 1, 4}},       // 2.86 us
    {256, 32, {256, 1, 1}},     // 3.42 us
    {256, 64, {64, 1, 4}},      // 3.74 us
    {256, 128, {128, 1, 2}},    // 4.71 us
    {256, 256, {128, 1, 2}},    // 6.73 us
    {512, 1, {64, 1, 8}},       // 2.77 us
    {512, 8, {128, 1, 4}},      // 3.13 us
    {512, 32, {256, 1, 2}},     // 3.86 us
    {512, 64, {256, 1, 2}},     // 4.74 us
    {512, 128, {256, 1, 2}},    // 7.01 us
    {512, 256, {256, 1, 2}},    // 12.01 us
    {1024, 1, {128, 1, 8}},     // 3.19 us
    {1024, 8, {128, 1, 8}},     // 3.45 us
    {1024, 32, {128, 1, 8}},    // 5.11 us
    {1024, 64, {256, 1, 4}},    // 7.24 us
    {1024, 128, {128, 1, 8}},   // 11.98 us
    {1024, 256, {1024, 1, 1}},  // 20.68 us
    {2048, 1, {256, 1, 8}},     // 3.44 us
    {2048, 8, {256, 1, 8}},     // 3.96 us
    {2048, 32, {256, 1, 8}},    // 7.10 us
    {2048, 64, {1024, 1, 2}},   // 12.17 us
    {2048, 128, {1024, 1, 2}},  // 21.12 us
    {2048, 256, {1024, 2, 1}},  // 37.47 us
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_TUNINGS_H_
