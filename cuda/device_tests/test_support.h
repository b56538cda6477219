// SPDX-License-Identifier: Apache-2.0
//
// What the device tests share: options and the report, programs to run, data
// to fill buffers with, and kernels by call.
#ifndef ONESHOT_CUDA_DEVICE_TESTS_TEST_SUPPORT_H_
#define ONESHOT_CUDA_DEVICE_TESTS_TEST_SUPPORT_H_

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "cuda/device_tests/virtual_ranks.h"
#include "cuda/kernel/launch_plan.h"
#include "cuda/program/call_contract.h"
#include "cuda/program/epilogue_program.h"
#include "cuda/runtime/kernel_cache.h"

namespace oneshot {

struct Options {
  std::vector<int> devices = {0};
  bool quick = false;
  int replays = 10000;
  std::string only;
};

class Report {
 public:
  void Case(const std::string& name, bool passed) {
    std::printf("%s %s\n", passed ? "ok  " : "FAIL", name.c_str());
    std::fflush(stdout);
    ++(passed ? passed_ : failed_);
  }
  int Finish() const {
    std::printf("%d passed, %d failed\n", passed_, failed_);
    return failed_ == 0 && passed_ > 0 ? 0 : 1;
  }

 private:
  int passed_ = 0;
  int failed_ = 0;
};

// The tests, in the order in which they run.
void TestWorkspaces(const Options& options, Report& report);
void TestCalls(const Options& options, Report& report);
void TestInvariance(const Options& options, Report& report);
void TestLateRank(const Options& options, Report& report);
void TestReplays(const Options& options, Report& report);

constexpr DType kDTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

const char* Name(DType dtype);

// What x is filled with. kNegativeZero and kRoundings fill the operands, too.
enum class Data { kRandom, kNegativeZero, kSentinel, kSpecial, kRoundings };

const char* Name(Data data);

using Bytes = std::vector<uint8_t>;

// The number of elements that Data::kRoundings fills, whatever is asked for.
inline constexpr int64_t kRoundings = 6 << 16;

Bytes Fill(std::mt19937& random, Data data, DType dtype, int64_t elements);

// A device buffer of a rank, between guards that show whether a kernel has
// written out of bounds.
class GuardedBuffer {
 public:
  static constexpr size_t kGuard = 256;
  static constexpr size_t kCapacity = 2 * MaxMessageBytes(2) + 4 * kGuard;
  static constexpr uint8_t kPoison = 0xCD;

  explicit GuardedBuffer(const VirtualRank& rank) : rank_(rank) {
    rank_.MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaMalloc(&memory_, kCapacity));
  }
  ~GuardedBuffer() {
    rank_.MakeCurrent();
    cudaFree(memory_);
  }
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  // Places `size` bytes, poison unless given, `shift` bytes late.
  void* Reset(size_t size, size_t shift, const Bytes* content) {
    size_ = size;
    offset_ = kGuard + shift;
    Bytes image(offset_ + size + kGuard, kPoison);
    if (image.size() > kCapacity) {
      std::printf("test buffer too small\n");
      std::exit(1);
    }
    if (content != nullptr) {
      std::copy(content->begin(), content->end(), image.begin() + offset_);
    }
    rank_.MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaMemcpyAsync(memory_, image.data(), image.size(),
                                       cudaMemcpyHostToDevice, rank_.stream));
    ONESHOT_CHECK_CUDA(cudaStreamSynchronize(rank_.stream));
    return memory_ + offset_;
  }

  // The content; empty if something around it changed.
  Bytes Fetch() const {
    Bytes image(offset_ + size_ + kGuard);
    rank_.MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaMemcpyAsync(image.data(), memory_, image.size(),
                                       cudaMemcpyDeviceToHost, rank_.stream));
    ONESHOT_CHECK_CUDA(cudaStreamSynchronize(rank_.stream));
    for (size_t i = 0; i < image.size(); ++i) {
      const bool inside = i >= offset_ && i < offset_ + size_;
      if (!inside && image[i] != kPoison) return {};
    }
    return Bytes(image.begin() + offset_, image.begin() + offset_ + size_);
  }

 private:
  const VirtualRank& rank_;
  uint8_t* memory_ = nullptr;
  size_t size_ = 0;
  size_t offset_ = 0;
};

// Programs. `%w` stands for the wire type, `%1` to `%4` for any type, `%n` for
// 1 / hidden, `.?` for rounding to any type or not at all.
inline constexpr const char* kPrograms[] = {
    // A bare sum.
    "x %w; v0 = sum.?; out0 v0 %1",
    // Bias; residual; both.
    "x %w; in0 column %1; v0 = sum.?; v1 = in0; v2 = add.? v0 v1; out0 v2 %2",
    "x %w; in0 element %1; v0 = sum.?; v1 = in0; v2 = add.? v0 v1; out0 v2 %2",
    "x %w; in0 element %1; in1 column %2; v0 = sum.?; v1 = in0; "
    "v2 = add.? v0 v1; v3 = in1; v4 = add.? v2 v3; out0 v4 %3",
    // RMSNorm with residual and gain; the gain a slice; both results.
    "x %w; in0 element %1; in1 column %2 slice 4 at i0; v0 = sum.?; v1 = in0; "
    "v2 = add.? v0 v1; v3 = multiply v2 v2; v4 = reduce_sum v3; "
    "v5 = constant %n; v6 = multiply v4 v5; v7 = constant 0x1p-20; "
    "v8 = add v6 v7; v9 = rsqrt v8; v10 = multiply.? v2 v9; v11 = in1; "
    "v12 = multiply v10 v11; out0 v2 %3; out1 v12 %4",
    // RMSNorm alone, without a gain.
    "x %w; v0 = sum.?; v1 = multiply v0 v0; v2 = reduce_sum v1; "
    "v3 = constant %n; v4 = multiply v2 v3; v5 = constant 0x1p-20; "
    "v6 = add v4 v5; v7 = sqrt v6; v8 = divide v0 v7; out0 v8 %1",
    // LayerNorm in two passes, with the statistics as results.
    "x %w; in0 column %1; in1 column %2; v0 = sum.?; v1 = reduce_sum v0; "
    "v2 = constant %n; v3 = multiply v1 v2; v4 = subtract v0 v3; "
    "v5 = multiply v4 v4; v6 = reduce_sum v5; v7 = multiply v6 v2; "
    "v8 = constant 0x1p-10; v9 = add v7 v8; v10 = rsqrt v9; "
    "v11 = multiply v4 v10; v12 = in0; v13 = multiply.? v11 v12; v14 = in1; "
    "v15 = add v13 v14; out0 v15 %3; out1 v3 f32; out2 v10 f32",
    // LayerNorm in one pass: two reductions at once.
    "x %w; v0 = sum; v1 = reduce_sum v0; v2 = multiply v0 v0; "
    "v3 = reduce_sum v2; v4 = constant %n; v5 = multiply v1 v4; "
    "v6 = multiply v3 v4; v7 = multiply v5 v5; v8 = subtract v6 v7; "
    "v9 = constant 0x0p+0; v10 = maximum v8 v9; v11 = constant 0x1p-10; "
    "v12 = add v10 v11; v13 = rsqrt v12; v14 = subtract v0 v5; "
    "v15 = multiply v14 v13; out0 v15 %1",
    // Norm, residual, norm.
    "x %w; in0 element %1; in1 column %2; v0 = sum.?; v1 = multiply v0 v0; "
    "v2 = reduce_sum v1; v3 = constant %n; v4 = multiply v2 v3; "
    "v5 = constant 0x1p-20; v6 = add v4 v5; v7 = rsqrt v6; "
    "v8 = multiply.? v0 v7; v9 = in0; v10 = add.? v8 v9; "
    "v11 = multiply v10 v10; v12 = reduce_sum v11; v13 = multiply v12 v3; "
    "v14 = add v13 v5; v15 = rsqrt v14; v16 = multiply v10 v15; v17 = in1; "
    "v18 = multiply v16 v17; out0 v10 %3; out1 v18 %4",
    // Softmax: a maximum, then a sum.
    "x %w; v0 = sum; v1 = reduce_max v0; v2 = subtract v0 v1; v3 = exp v2; "
    "v4 = reduce_sum v3; v5 = divide v3 v4; out0 v5 %1; out1 v1 f32",
    // Scaled by values of every extent, with a predicate.
    "x %w; in0 row %1; in1 scalar %2; in2 column %3; v0 = sum.?; v1 = in0; "
    "v2 = multiply v0 v1; v3 = in1; v4 = gt v2 v3; v5 = in2; "
    "v6 = multiply v2 v5; v7 = negate v6; v8 = select.? v4 v6 v7; out0 v8 %4; "
    "out1 v0 %1",
    // Activations.
    "x %w; in0 element %1; v0 = sum; v1 = logistic v0; v2 = multiply v0 v1; "
    "v3 = tanh v2; v4 = in0; v5 = erf v4; v6 = multiply v3 v5; out0 v6 %2",
    // Quantization by the largest of a row.
    "x %w; in0 column %1; v0 = sum.?; v1 = in0; v2 = multiply v0 v1; "
    "v3 = abs v2; v4 = reduce_max v3; v5 = divide v2 v4; "
    "v6 = constant 0x1.fcp+6; v7 = multiply v5 v6; out0 v7 f8e4m3fn; "
    "out1 v7 f8e5m2; out2 v7 s8; out3 v4 %2",
};

EpilogueProgram MakeProgram(const std::string& pattern, DType wire,
                            int64_t hidden, std::mt19937& random);

// A message travels in two shots only if its sum has the type of the wire.
std::string WithSumOfWireType(std::string pattern);

// The plan that the product makes, or the same plan with two shots.
std::optional<LaunchPlan> PlanOf(const EpilogueProgram& program, int64_t rows,
                                 int64_t hidden, bool two_shot,
                                 const VirtualRank& rank);

const Kernel* KernelOf(const EpilogueProgram& program, int64_t rows,
                       int64_t hidden, bool two_shot, bool aligned,
                       const VirtualRank& rank, std::string* error);

}  // namespace oneshot

#endif  // ONESHOT_CUDA_DEVICE_TESTS_TEST_SUPPORT_H_
