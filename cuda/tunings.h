// SPDX-License-Identifier: Apache-2.0
//
// Made by tune.py, between 2 x NVIDIA H100 80GB HBM3.
#ifndef ONESHOT_CUDA_TUNINGS_H_
#define ONESHOT_CUDA_TUNINGS_H_

#include "cuda/launch_plan.h"

namespace oneshot {

// The fastest tuning for so many rows, of so many packets, that are reduced.
struct Measured {
  int packets;
  int rows;
  Tuning tuning;
};

// The device that it was measured on.
constexpr DeviceLimits kMeasuredOn = {132, 8};

// By packets, then rows.
constexpr Measured kMeasured[] = {
    {512, 1, {128, 1, 4}},      // 3.15 us
    {512, 8, {128, 1, 4}},      // 3.42 us
    {512, 32, {256, 1, 2}},     // 4.14 us
    {512, 128, {256, 1, 2}},    // 6.79 us
    {1024, 1, {128, 1, 8}},     // 3.35 us
    {1024, 8, {128, 1, 8}},     // 3.67 us
    {1024, 32, {128, 1, 8}},    // 5.19 us
    {1024, 128, {1024, 1, 1}},  // 12.42 us
    {2048, 1, {256, 1, 8}},     // 3.51 us
    {2048, 8, {256, 1, 8}},     // 4.19 us
    {2048, 32, {256, 1, 8}},    // 7.23 us
    {2048, 128, {1024, 1, 2}},  // 21.13 us
};

}  // namespace oneshot

#endif  // ONESHOT_CUDA_TUNINGS_H_
