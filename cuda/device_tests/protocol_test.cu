// SPDX-License-Identifier: Apache-2.0
//
// The kernel on real devices, without XLA: against the host implementation, and
// under what could break the protocol. Prints a line per case and a summary;
// the status is 0 only if every case passed, 3 if a case hung.
//
//   protocol_test [--devices 0,1] [--quick] [--replays 10000] [--only NAME]
//                 [--nvrtc DIR]
//
// Ranks are spread over the devices; with one device they share it.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device_tests/virtual_ranks.h"
#include "cuda/kernel/launch_plan.h"
#include "cuda/kernel/nvrtc.h"
#include "cuda/program/call_contract.h"
#include "cuda/program/interpreter.h"
#include "cuda/runtime/bootstrap.h"
#include "cuda/runtime/launch.h"
#include "cuda/runtime/workspace.h"

namespace oneshot {
namespace {

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

const char* Name(DType dtype) {
  return dtype == DType::kF32 ? "f32" : dtype == DType::kBf16 ? "bf16" : "f16";
}

constexpr DType kDTypes[] = {DType::kF32, DType::kBf16, DType::kF16};

__global__ void Delay(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}

// ---------------------------------------------------------------------------
// Single calls against the host
// ---------------------------------------------------------------------------

// What x is filled with, and for some of them the operands.
enum class Data { kRandom, kNegativeZero, kSentinel, kSpecial, kRoundings };

const char* Name(Data data) {
  switch (data) {
    case Data::kRandom:
      return "random";
    case Data::kNegativeZero:
      return "negative-zero";
    case Data::kSentinel:
      return "sentinel";
    case Data::kSpecial:
      return "special";
    case Data::kRoundings:
      return "roundings";
  }
  return "";
}

struct Call {
  EpilogueProgram program;
  int64_t rows = 1;
  int64_t hidden = 1;
  Data data = Data::kRandom;
  bool misaligned = false;  // buffers start one element late
  bool delayed = false;     // ranks start at different times
  bool two_shot = false;    // though the message is small

  int64_t elements() const { return rows * hidden; }
  int64_t Elements(Extent extent) const {
    return (extent == Extent::kElement || extent == Extent::kRow ? rows : 1) *
           (extent == Extent::kElement || extent == Extent::kColumn ? hidden
                                                                    : 1);
  }
  std::string ToString() const {
    std::string text =
        std::to_string(rows) + "x" + std::to_string(hidden) + " " + Name(data);
    if (misaligned) text += " misaligned";
    if (delayed) text += " delayed";
    if (two_shot) text += " two-shot";
    return text + " {" + ToText(program) + "}";
  }
};

using Bytes = std::vector<uint8_t>;

constexpr uint32_t kSpecialWords[] = {
    0x80000000u, 0x00000000u, 0x7F800000u, 0xFF800000u, 0x7FC00000u,
    0x7FFFFFFFu, 0xFFFFFFFFu, 0xFFFFFFFEu, 0x7F800001u, 0x00000001u,
    0x807FFFFFu, 0x00800000u, 0x7F7FFFFFu, 0xFF7FFFFFu, 0x3F800000u,
    0xBF800000u, 0x80008000u, 0x7F80FF80u, 0xFFFF0000u, 0x0000FFFFu,
    0x7FFF7FFFu, 0x00010001u, 0x7C00FC00u, 0x7BFFFBFFu, 0x3F803F80u,
};

// Normally distributed elements. Copied from a pool, because drawing and
// rounding them one by one would take longer than everything else.
Bytes Random(std::mt19937& random, DType dtype, int64_t elements) {
  constexpr int64_t kPool = 1 << 16;
  static const std::vector<Bytes> pools = [] {
    std::mt19937 generator(0);
    std::normal_distribution<float> normal;
    std::vector<Bytes> result;
    for (const DType type : kDTypes) {
      result.emplace_back(kPool * ByteWidth(type));
      for (int64_t i = 0; i < kPool; ++i) {
        StoreElement(result.back().data(), type, i, normal(generator));
      }
    }
    return result;
  }();
  const Bytes& pool = pools[static_cast<int>(dtype)];
  const int64_t width = ByteWidth(dtype);
  Bytes bytes(elements * width);
  for (int64_t done = 0; done < elements;) {
    const int64_t from = random() % kPool;
    const int64_t count = std::min(elements - done, kPool - from);
    std::copy_n(pool.begin() + from * width, count * width,
                bytes.begin() + done * width);
    done += count;
  }
  return bytes;
}

// Floats with all upper halves, exact and a little less and more than that and
// than half way to the next: all there is to rounding to six bits or fewer.
constexpr uint32_t kLowerHalves[] = {0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF};
constexpr int64_t kRoundings = 6 << 16;
Bytes EveryRounding() {
  Bytes bytes(kRoundings * sizeof(uint32_t));
  for (uint32_t i = 0; i < kRoundings; ++i) {
    const uint32_t word = i / 6 << 16 | kLowerHalves[i % 6];
    std::memcpy(bytes.data() + i * sizeof(word), &word, sizeof(word));
  }
  return bytes;
}

Bytes Fill(std::mt19937& random, Data data, DType dtype, int64_t elements) {
  if (data == Data::kRoundings) return EveryRounding();
  Bytes bytes = Random(random, dtype, elements);
  if (data == Data::kRandom) return bytes;
  const int width = ByteWidth(dtype);
  for (int64_t i = 0; i < elements; ++i) {
    uint32_t word = kSentinel;
    if (data == Data::kNegativeZero) {
      word = dtype == DType::kF32 ? 0x80000000u : 0x8000u;
    } else if (data == Data::kSpecial) {
      if (random() % 4 == 0) continue;
      word = kSpecialWords[random() % (sizeof(kSpecialWords) / 4)];
    }
    std::memcpy(bytes.data() + i * width, &word, width);
  }
  return bytes;
}

// A device buffer of a rank, with room to check that nothing beside the part in
// use is written.
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

// One buffer for x, then the operands, then the results.
class RankBuffers {
 public:
  explicit RankBuffers(const VirtualRank& rank) {
    for (int i = 0; i < 1 + kMaxOperands + kMaxResults; ++i) {
      buffers_.push_back(std::make_unique<GuardedBuffer>(rank));
    }
    rank.MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaMalloc(&indices, kMaxIndices * sizeof(int32_t)));
  }
  ~RankBuffers() { cudaFree(indices); }
  GuardedBuffer& x() { return *buffers_[0]; }
  GuardedBuffer& operand(int o) { return *buffers_[1 + o]; }
  GuardedBuffer& result(int r) { return *buffers_[1 + kMaxOperands + r]; }

  int32_t* indices = nullptr;

 private:
  std::vector<std::unique_ptr<GuardedBuffer>> buffers_;
};

// Half a step of a type, relative to the smallest number of a binade.
double HalfStep(DType dtype) {
  return dtype == DType::kF32    ? 0x1p-24
         : dtype == DType::kBf16 ? 0x1p-8
                                 : 0x1p-11;
}

bool SameNumber(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return Bits(a) == Bits(b);  // tells -0 from 0
}

// Whether host and device agree to the last bit: a reduction has another order,
// and the functions of the mathematical libraries differ in the last places.
bool IsExact(const EpilogueProgram& program) {
  for (const Instruction& instruction : program.instructions) {
    switch (instruction.op) {
      case Op::kSum:
      case Op::kOperand:
      case Op::kConstant:
      case Op::kConvert:
      case Op::kAbs:
      case Op::kAdd:
      case Op::kClamp:
      case Op::kDivide:
      case Op::kGt:
      case Op::kMaximum:
      case Op::kMultiply:
      case Op::kNegate:
      case Op::kReduceMax:
      case Op::kSelect:
      case Op::kSubtract:
        break;
      default:
        return false;
    }
  }
  return true;
}

// What a last bit of difference may grow to: a step of every type that is
// rounded to on the way.
double Tolerance(const EpilogueProgram& program) {
  double tolerance = 2e-5;
  for (const Instruction& instruction : program.instructions) {
    if (instruction.round != DType::kF32) {
      tolerance += 2 * HalfStep(instruction.round);
    }
  }
  for (const Result& result : program.results) {
    tolerance += 2 * HalfStep(result.dtype);
  }
  return tolerance;
}

// The plan in use, or the same with two shots.
std::optional<LaunchPlan> PlanOf(const EpilogueProgram& program, int64_t rows,
                                 int64_t hidden, bool two_shot,
                                 const VirtualRank& rank) {
  std::optional<LaunchPlan> plan =
      PlanLaunch(program, rows, hidden, rank.view.ranks, rank.traits.limits);
  if (!plan || !two_shot) return plan;
  plan->tuning.two_shot = true;
  return PlanLaunch(program, rows, hidden, rank.view.ranks, rank.traits.limits,
                    plan->tuning);
}

const Kernel* KernelOf(const EpilogueProgram& program, int64_t rows,
                       int64_t hidden, bool two_shot, bool aligned,
                       const VirtualRank& rank, std::string* error) {
  const std::optional<LaunchPlan> plan =
      PlanOf(program, rows, hidden, two_shot, rank);
  if (!plan) {
    *error = "does not fit";
    return nullptr;
  }
  return FindOrCompileKernel(program, *plan, rank.view.ranks, aligned,
                             rank.traits, error);
}

class CallTester {
 public:
  CallTester(const VirtualRanks& ranks, uint32_t epoch)
      : ranks_(ranks), epoch_(epoch) {
    for (int r = 0; r < ranks.size(); ++r) {
      buffers_.push_back(std::make_unique<RankBuffers>(ranks[r]));
    }
  }

  bool Fits(const Call& call) const {
    return PlanOf(call.program, call.rows, call.hidden, call.two_shot,
                  ranks_[0])
        .has_value();
  }

  // Compiles the kernels of many calls side by side.
  void Prepare(const std::vector<Call>& calls) const {
    std::atomic<size_t> next = 0;
    std::vector<std::thread> threads;
    for (unsigned t = 0; t < std::thread::hardware_concurrency(); ++t) {
      threads.emplace_back([&] {
        for (size_t c = next++; c < calls.size(); c = next++) {
          std::string error;
          KernelOf(calls[c].program, calls[c].rows, calls[c].hidden,
                   calls[c].two_shot, !calls[c].misaligned, ranks_[0], &error);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  bool Run(const Call& call, std::mt19937& random) {
    const EpilogueProgram& program = call.program;
    const int operands = static_cast<int>(program.operands.size());
    const int results = static_cast<int>(program.results.size());
    const Analysis analysis = Analyze(program);
    // Inputs on the host. All but x are the same on all ranks.
    std::vector<Bytes> x;
    for (int r = 0; r < ranks_.size(); ++r) {
      x.push_back(Fill(random, call.data, program.x, call.elements()));
    }
    std::vector<Bytes> inputs;
    for (const Operand& operand : program.operands) {
      const bool as_x =
          call.data == Data::kNegativeZero || call.data == Data::kRoundings;
      const Data data = as_x ? call.data : Data::kRandom;
      inputs.push_back(Fill(random, data, operand.dtype,
                            call.Elements(operand.extent) *
                                std::max<int64_t>(1, operand.slices)));
    }
    // Some out of range: they count as the nearest slice.
    std::vector<int32_t> indices(kMaxIndices);
    for (int32_t& index : indices) index = static_cast<int>(random() % 9) - 3;

    // Inputs and poisoned outputs on the devices.
    std::vector<Buffers> device(ranks_.size());
    for (int r = 0; r < ranks_.size(); ++r) {
      RankBuffers& b = *buffers_[r];
      const auto shift = [&](DType dtype) {
        return call.misaligned ? ByteWidth(dtype) : 0;
      };
      device[r].x = b.x().Reset(x[r].size(), shift(program.x), &x[r]);
      for (int o = 0; o < operands; ++o) {
        device[r].operands[o] = b.operand(o).Reset(
            inputs[o].size(), shift(program.operands[o].dtype), &inputs[o]);
      }
      ONESHOT_CHECK_CUDA(cudaMemcpyAsync(
          b.indices, indices.data(), indices.size() * sizeof(int32_t),
          cudaMemcpyHostToDevice, ranks_[r].stream));
      for (int i = 0; i < kMaxIndices; ++i) {
        device[r].indices[i] = b.indices + i;
      }
      for (int o = 0; o < results; ++o) {
        const Result& result = program.results[o];
        device[r].results[o] =
            b.result(o).Reset(call.Elements(analysis.extents[result.value]) *
                                  ByteWidth(result.dtype),
                              shift(result.dtype), nullptr);
      }
    }

    std::vector<const Kernel*> kernels;
    for (int r = 0; r < ranks_.size(); ++r) {
      const VirtualRank& rank = ranks_[r];
      std::string error;
      kernels.push_back(KernelOf(program, call.rows, call.hidden, call.two_shot,
                                 IsAligned(device[r]), rank, &error));
      if (kernels.back() == nullptr) {
        std::printf("  %s\n", error.c_str());
        return false;
      }
      rank.MakeCurrent();
      ONESHOT_CHECK_CUDA(LoadKernel(*kernels.back()));
    }
    for (int r = 0; r < ranks_.size(); ++r) {
      const VirtualRank& rank = ranks_[r];
      rank.MakeCurrent();
      if (call.delayed && random() % 2) {
        Delay<<<1, 1, 0, rank.stream>>>(random() % 400000);
        ONESHOT_CHECK_CUDA(cudaGetLastError());
      }
      ONESHOT_CHECK_CUDA(LaunchAllReduce(*kernels[r], device[r], rank.view,
                                         /*site=*/0, rank.stream));
    }
    ++epoch_;
    ranks_.Wait(call.ToString().c_str());
    return Check(call, analysis, x, inputs, indices) && ranks_.IsQuiet(epoch_);
  }

 private:
  bool Check(const Call& call, const Analysis& analysis,
             const std::vector<Bytes>& x, const std::vector<Bytes>& inputs,
             const std::vector<int32_t>& indices) {
    const EpilogueProgram& program = call.program;
    std::vector<Bytes> want;
    for (const Result& result : program.results) {
      want.emplace_back(call.Elements(analysis.extents[result.value]) *
                        ByteWidth(result.dtype));
    }
    std::vector<Buffers> host(x.size());
    for (size_t r = 0; r < x.size(); ++r) {
      host[r].x = x[r].data();
      for (size_t o = 0; o < inputs.size(); ++o) {
        host[r].operands[o] = inputs[o].data();
      }
      for (int i = 0; i < kMaxIndices; ++i) host[r].indices[i] = &indices[i];
      // All write the same.
      for (size_t o = 0; o < want.size(); ++o) {
        host[r].results[o] = want[o].data();
      }
    }
    AllReduceOnHost(program, call.rows, call.hidden, host);

    const bool exact = IsExact(program);
    const double tolerance = Tolerance(program);
    for (size_t o = 0; o < want.size(); ++o) {
      const std::optional<Bytes> got = FetchAlike(o, want[o].size());
      if (!got) return false;
      const DType dtype = program.results[o].dtype;
      const int64_t count = want[o].size() / ByteWidth(dtype);
      double scale = 1e-30;  // of the result as a whole
      for (int64_t i = 0; i < count; ++i) {
        const double value = std::abs(LoadElement(want[o].data(), dtype, i));
        if (std::isfinite(value)) scale = std::max(scale, value);
      }
      for (int64_t i = 0; i < count; ++i) {
        const float w = LoadElement(want[o].data(), dtype, i);
        const float g = LoadElement(got->data(), dtype, i);
        if (SameNumber(w, g)) continue;
        const double error = std::abs(static_cast<double>(g) - w);
        if (!exact && error <= tolerance * (std::abs(w) + 0.2 * scale)) {
          continue;
        }
        // Where infinities meet, the last bit decides between all and nothing.
        if (!exact && call.data == Data::kSpecial) continue;
        std::printf("  out%zu[%ld]: got %.9g want %.9g\n", o, i, g, w);
        return false;
      }
    }
    return true;
  }

  // A result of `size` bytes; nothing if a rank wrote around it or the ranks
  // have different bits.
  std::optional<Bytes> FetchAlike(int result, size_t size) const {
    Bytes first;
    for (int r = 0; r < ranks_.size(); ++r) {
      const Bytes got = buffers_[r]->result(result).Fetch();
      if (got.size() != size) {
        std::printf("  rank %d: wrote outside of result %d\n", r, result);
        return std::nullopt;
      }
      if (r == 0) first = got;
      if (got != first) {
        std::printf("  rank %d: result %d differs from that of rank 0\n", r,
                    result);
        return std::nullopt;
      }
    }
    return first;
  }

  const VirtualRanks& ranks_;
  uint32_t epoch_;
  std::vector<std::unique_ptr<RankBuffers>> buffers_;
};

// Programs. `%w` stands for the wire type, `%1` to `%4` for any type, `%n` for
// 1 / hidden, `.?` for rounding to any type or not at all.
constexpr const char* kPrograms[] = {
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
                            int64_t hidden, std::mt19937& random) {
  std::string text;
  for (const char* c = pattern.c_str(); *c != '\0'; ++c) {
    if (*c == '.' && c[1] == '?') {
      ++c;
      if (random() % 2) text += std::string(".") + Name(kDTypes[random() % 3]);
    } else if (*c == '%') {
      ++c;
      char inverse[32];
      std::snprintf(inverse, sizeof(inverse), "%a",
                    static_cast<double>(1.0f / static_cast<float>(hidden)));
      text += *c == 'w'   ? Name(wire)
              : *c == 'n' ? inverse
                          : Name(kDTypes[random() % 3]);
    } else {
      text += *c;
    }
  }
  // float32 is the absence of a rounding.
  for (size_t at = text.find(".f32"); at != std::string::npos;
       at = text.find(".f32")) {
    text.erase(at, 4);
  }
  EpilogueProgram program;
  std::string error;
  if (!FromText(text, &program, &error)) {
    std::printf("%s: %s\n", error.c_str(), text.c_str());
    std::exit(1);
  }
  return program;
}

// Two shots can be had only like this.
std::string WithSumOfWireType(std::string pattern) {
  for (const char* sum : {"= sum.?;", "= sum;"}) {
    const size_t at = pattern.find(sum);
    if (at != std::string::npos) {
      pattern.replace(at, std::strlen(sum), "= sum.%w;");
    }
  }
  return pattern;
}

void TestCalls(const Options& options, Report& report) {
  const std::vector<int64_t> hidden_sizes =
      options.quick ? std::vector<int64_t>{7, 1000, 8192}
                    : std::vector<int64_t>{1,    7,    64,   96,    1003,
                                           2048, 5120, 8192, 16384, 32768};
  constexpr int64_t kRows[] = {1, 2, 3, 5, 8, 13, 33};
  for (int ranks = kMinRanks; ranks <= kMaxRanks; ++ranks) {
    if (options.quick && ranks != 2 && ranks != 3 && ranks != 8) continue;
    // Near the wrap-around: the epoch must only count modulo 2^32.
    constexpr uint32_t kFirstEpoch = 0xFFFFFFFDu;
    VirtualRanks group(ranks, options.devices, kFirstEpoch);
    CallTester tester(group, kFirstEpoch);
    std::mt19937 random(ranks);
    struct Case {
      std::string name;
      std::vector<Call> calls;
    };
    std::vector<Case> cases;
    for (const DType wire : kDTypes) {
      for (const int64_t hidden : hidden_sizes) {
        Case one;
        for (const char* pattern : kPrograms) {
          // Every program with every wire type, not with every length.
          if (random() % 3 != 0) continue;
          Call call;
          call.hidden = hidden;
          call.rows = kRows[random() % 7];
          call.two_shot = random() % 2 == 0;
          call.program =
              MakeProgram(call.two_shot ? WithSumOfWireType(pattern) : pattern,
                          wire, hidden, random);
          call.data = static_cast<Data>(random() % 8 < 5 ? 0 : random() % 4);
          call.misaligned = random() % 6 == 0;
          call.delayed = random() % 3 == 0;
          while (call.rows > 1 && !tester.Fits(call)) call.rows /= 2;
          if (tester.Fits(call)) one.calls.push_back(std::move(call));
        }
        if (one.calls.empty()) continue;
        one.name = "calls ranks=" + std::to_string(ranks) +
                   " wire=" + Name(wire) + " hidden=" + std::to_string(hidden) +
                   " calls=" + std::to_string(one.calls.size());
        cases.push_back(std::move(one));
      }
    }
    // The largest message, and every kind of data in every wire type.
    for (const DType wire : kDTypes) {
      Call call;
      call.program = MakeProgram(kPrograms[0], wire, 1, random);
      call.hidden = MaxMessageBytes(ranks) / ByteWidth(wire);
      cases.push_back(
          {"largest ranks=" + std::to_string(ranks) + " wire=" + Name(wire),
           {call}});
      for (const Data data :
           {Data::kNegativeZero, Data::kSentinel, Data::kSpecial}) {
        call.rows = 4;
        call.hidden = 2048;
        call.two_shot = ranks % 2 == 0;
        call.program = MakeProgram(WithSumOfWireType(kPrograms[4]), wire,
                                   call.hidden, random);
        call.data = data;
        cases.push_back({"data ranks=" + std::to_string(ranks) +
                             " wire=" + Name(wire) + " " + Name(data),
                         {call}});
      }
    }
    // More rows than are resident at once. No rank is delayed where it shares a
    // device: the kernel that delays it would wait for a multiprocessor that no
    // other rank has a block on.
    for (const DType wire : kDTypes) {
      for (const bool two_shot : {false, true}) {
        Call call;
        call.rows = 700;
        call.hidden = 1000;
        call.program = MakeProgram(WithSumOfWireType(kPrograms[4]), wire,
                                   call.hidden, random);
        call.two_shot = two_shot;
        call.delayed = ranks <= static_cast<int>(options.devices.size());
        cases.push_back({"turns ranks=" + std::to_string(ranks) + " wire=" +
                             Name(wire) + " shots=" + (two_shot ? "2" : "1"),
                         {call}});
      }
    }
    {
      Call call;
      call.program = MakeProgram(
          "x %w; in0 element %w; v0 = sum; v1 = in0; out0 v1 f8e4m3fn; "
          "out1 v1 f8e5m2; out2 v1 s8; out3 v0 bf16",
          DType::kF32, 1, random);
      call.rows = 48;
      call.hidden = kRoundings / call.rows;
      call.data = Data::kRoundings;
      cases.push_back({"roundings ranks=" + std::to_string(ranks), {call}});
    }
    std::vector<Call> all;
    for (const Case& one : cases) {
      all.insert(all.end(), one.calls.begin(), one.calls.end());
    }
    tester.Prepare(all);
    for (const Case& one : cases) {
      int failures = 0;
      for (const Call& call : one.calls) {
        if (tester.Run(call, random)) continue;
        std::printf("  in: %d ranks %s\n", ranks, call.ToString().c_str());
        ++failures;
      }
      report.Case(one.name, failures == 0);
    }
  }
}

// The result of a row is the same bits in every batch and with every tuning.
void TestInvariance(const Options& options, Report& report) {
  constexpr int kHidden = 8192;
  constexpr int kRows = 12;
  VirtualRanks group(std::max<int>(2, options.devices.size()), options.devices,
                     /*first_epoch=*/0);
  std::mt19937 random(1);
  const EpilogueProgram program = MakeProgram(WithSumOfWireType(kPrograms[5]),
                                              DType::kBf16, kHidden, random);
  const DType out = program.results[0].dtype;
  std::vector<Buffers> buffers(group.size());
  for (int r = 0; r < group.size(); ++r) {
    group[r].MakeCurrent();
    const Bytes x = Fill(random, Data::kRandom, DType::kBf16, kRows * kHidden);
    void* memory = nullptr;
    ONESHOT_CHECK_CUDA(cudaMalloc(&memory, x.size()));
    ONESHOT_CHECK_CUDA(
        cudaMemcpy(memory, x.data(), x.size(), cudaMemcpyHostToDevice));
    buffers[r].x = memory;
    ONESHOT_CHECK_CUDA(cudaMalloc(&buffers[r].results[0], 4 * x.size()));
  }
  Bytes first;
  int different = 0;
  int tunings = 0;
  for (const int rows : {kRows, 1, 5}) {
    for (const Tuning& tuning :
         {Tuning{128, 1, 8}, Tuning{256, 1, 4}, Tuning{512, 2, 1},
          Tuning{1024, 1, 1}, Tuning{128, 2, 4}, Tuning{64, 4, 4},
          Tuning{128, 1, 8, true}, Tuning{512, 2, 1, true},
          Tuning{64, 4, 4, true}}) {
      const std::optional<LaunchPlan> plan = PlanLaunch(
          program, rows, kHidden, group.size(), group[0].traits.limits, tuning);
      if (!plan) continue;  // no clusters on this device
      std::string error;
      const Kernel* kernel = FindOrCompileKernel(program, *plan, group.size(),
                                                 true, group[0].traits, &error);
      if (kernel == nullptr) {
        report.Case("invariance: " + error, false);
        return;
      }
      for (int r = 0; r < group.size(); ++r) {
        group[r].MakeCurrent();
        ONESHOT_CHECK_CUDA(LoadKernel(*kernel));
      }
      for (int r = 0; r < group.size(); ++r) {
        group[r].MakeCurrent();
        ONESHOT_CHECK_CUDA(LaunchAllReduce(*kernel, buffers[r], group[r].view,
                                           0, group[r].stream));
      }
      group.Wait("invariance");
      Bytes got(rows * kHidden * ByteWidth(out));
      ONESHOT_CHECK_CUDA(cudaMemcpy(got.data(), buffers[0].results[0],
                                    got.size(), cudaMemcpyDeviceToHost));
      if (first.empty()) first = got;
      ++tunings;
      different += !std::equal(got.begin(), got.end(), first.begin());
    }
  }
  report.Case("invariance tunings=" + std::to_string(tunings) +
                  " different=" + std::to_string(different),
              different == 0 && tunings > 0);
}

// ---------------------------------------------------------------------------
// Graph replay
// ---------------------------------------------------------------------------

// Replays carry small integers, different in every replay: all sums are exact
// in every type, so devices can check them, and stale data cannot pass.
__device__ uint32_t Mix(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  uint32_t h =
      a * 0x9E3779B1u ^ b * 0x85EBCA77u ^ c * 0xC2B2AE3Du ^ d * 0x27D4EB2Fu;
  h ^= h >> 15;
  h *= 0x2C1B3C6Du;
  h ^= h >> 12;
  h *= 0x297A2D39u;
  return h ^ h >> 15;
}

__device__ float SmallInteger(uint32_t replay, uint32_t layer, uint32_t source,
                              uint32_t index) {
  return static_cast<float>(
             static_cast<int>(Mix(replay, layer, source, index) % 17)) -
         8.0f;
}

constexpr uint32_t kResidualSource = 100;
constexpr float kEpsilon = 0x1p-20f;

__device__ void Put(void* data, DType dtype, int index, float value) {
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[index] = value;
  } else {
    static_cast<uint16_t*>(data)[index] =
        dtype == DType::kBf16 ? EncodeBf16(value) : EncodeF16(value);
  }
}

__device__ float Take(const void* data, DType dtype, int index) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[index];
  const uint16_t bits = static_cast<const uint16_t*>(data)[index];
  return dtype == DType::kBf16 ? DecodeBf16(bits) : DecodeF16(bits);
}

// Makes the inputs of a layer, at a time that differs between the ranks.
__global__ void Produce(const uint32_t* replay, uint32_t layer, uint32_t rank,
                        void* x, DType x_dtype, void* residual,
                        DType residual_dtype, int elements) {
  const uint32_t lottery = Mix(*replay, layer, rank, 0xABCDu);
  if (lottery % 8 == 0) {
    const long long start = clock64();
    while (clock64() - start < lottery / 8 % 40000) {
    }
  }
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < elements;
       i += gridDim.x * blockDim.x) {
    Put(x, x_dtype, i, SmallInteger(*replay, layer, rank, i));
    if (residual != nullptr) {
      Put(residual, residual_dtype, i,
          SmallInteger(*replay, layer, kResidualSource, i));
    }
  }
}

// Checks the results of a layer: one block per row.
__global__ void Verify(const uint32_t* replay, uint32_t layer, int ranks,
                       DType dtype, bool residual, const void* sum,
                       const void* norm, int hidden,
                       unsigned long long* errors) {
  __shared__ unsigned long long squares;
  if (threadIdx.x == 0) squares = 0;
  __syncthreads();
  const auto expected = [&](int index) {
    float h = 0;
    for (int r = 0; r < ranks; ++r) h += SmallInteger(*replay, layer, r, index);
    if (residual) {
      h += SmallInteger(*replay, layer, kResidualSource, index);
    }
    return h;
  };
  const int row = blockIdx.x * hidden;
  unsigned long long mine = 0;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    const float h = expected(row + i);
    mine += static_cast<unsigned long long>(h * h);
    if (Take(sum, dtype, row + i) != h) atomicAdd(errors, 1ull);
  }
  atomicAdd(&squares, mine);
  __syncthreads();
  if (norm == nullptr) return;
  const float scale =
      1 / sqrtf(static_cast<float>(squares) / static_cast<float>(hidden) +
                kEpsilon);
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    const float want = expected(row + i) * scale;
    const float got = Take(norm, dtype, row + i);
    const float tolerance = dtype == DType::kBf16 ? 0x1p-7f : 0x1p-10f;
    if (!(fabsf(got - want) <= fabsf(want) * tolerance)) {
      atomicAdd(errors, 1ull);
    }
  }
}

__global__ void NextReplay(uint32_t* replay) { ++*replay; }

struct Layer {
  int rows;
  int hidden;
  DType wire;
  bool residual;
  bool norm;
  bool two_shot;
};

// Shapes that grow, shrink and leave rows unaligned, so that what one launch
// leaves in a slot is never what the next one overwrites; one shot or two.
constexpr Layer kLayers[] = {
    {8, 8192, DType::kBf16, true, true, false},
    {1, 7, DType::kF32, false, false, true},
    {4, 1003, DType::kF16, true, true, false},
    {1, 65536, DType::kBf16, false, false, true},
    {1, 8192, DType::kBf16, true, true, true},
    {2, 16384, DType::kF32, true, true, false},
    {33, 96, DType::kF16, false, true, true},
    {3, 16384, DType::kBf16, true, true, true},
};

struct ReplayRank {
  uint32_t* replay = nullptr;
  unsigned long long* errors = nullptr;
  std::vector<void*> memory;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;

  void* Allocate(size_t bytes) {
    void* data = nullptr;
    ONESHOT_CHECK_CUDA(cudaMalloc(&data, bytes));
    ONESHOT_CHECK_CUDA(cudaMemset(data, 0, bytes));
    memory.push_back(data);
    return data;
  }
};

EpilogueProgram ProgramOf(const Layer& layer) {
  std::string text = "x %w; ";
  if (layer.residual) text += "in0 element %w; ";
  text += "v0 = sum.%w; ";
  text += layer.residual ? "v1 = in0; v2 = add v0 v1; "
                         : "v1 = constant 0x0p+0; v2 = add v0 v1; ";
  if (layer.norm) {
    text +=
        "v3 = multiply v2 v2; v4 = reduce_sum v3; v5 = constant %n; "
        "v6 = multiply v4 v5; v7 = constant 0x1p-20; v8 = add v6 v7; "
        "v9 = rsqrt v8; v10 = multiply v2 v9; ";
  }
  text += "out0 v2 %w";
  if (layer.norm) text += "; out1 v10 %w";
  std::mt19937 unused;
  return MakeProgram(text, layer.wire, layer.hidden, unused);
}

void CaptureLayers(const VirtualRank& rank, ReplayRank& state) {
  struct Prepared {
    const Kernel* kernel;
    Buffers buffers;
    void* x;
    void* residual;
  };
  std::vector<Prepared> prepared;
  for (const Layer& layer : kLayers) {
    Prepared p = {};
    const size_t bytes = sizeof(float) * layer.rows * layer.hidden;
    p.x = state.Allocate(bytes);
    p.buffers.x = p.x;
    p.buffers.results[0] = state.Allocate(bytes);
    if (layer.residual) {
      p.residual = state.Allocate(bytes);
      p.buffers.operands[0] = p.residual;
    }
    if (layer.norm) p.buffers.results[1] = state.Allocate(bytes);
    const EpilogueProgram program = ProgramOf(layer);
    std::string error;
    p.kernel = KernelOf(program, layer.rows, layer.hidden, layer.two_shot,
                        IsAligned(p.buffers), rank, &error);
    if (p.kernel == nullptr) {
      std::printf("%s\n", error.c_str());
      std::exit(1);
    }
    ONESHOT_CHECK_CUDA(LoadKernel(*p.kernel));
    prepared.push_back(p);
  }
  ONESHOT_CHECK_CUDA(cudaDeviceSynchronize());

  ONESHOT_CHECK_CUDA(
      cudaStreamBeginCapture(rank.stream, cudaStreamCaptureModeThreadLocal));
  for (size_t l = 0; l < prepared.size(); ++l) {
    const Prepared& p = prepared[l];
    const Layer& layer = kLayers[l];
    Produce<<<8, 256, 0, rank.stream>>>(state.replay, l, rank.view.rank, p.x,
                                        layer.wire, p.residual, layer.wire,
                                        layer.rows * layer.hidden);
    ONESHOT_CHECK_CUDA(cudaGetLastError());
    ONESHOT_CHECK_CUDA(
        LaunchAllReduce(*p.kernel, p.buffers, rank.view, 0, rank.stream));
    Verify<<<layer.rows, 256, 0, rank.stream>>>(
        state.replay, l, rank.view.ranks, layer.wire, layer.residual,
        p.buffers.results[0], p.buffers.results[1], layer.hidden, state.errors);
    ONESHOT_CHECK_CUDA(cudaGetLastError());
  }
  NextReplay<<<1, 1, 0, rank.stream>>>(state.replay);
  ONESHOT_CHECK_CUDA(cudaGetLastError());
  ONESHOT_CHECK_CUDA(cudaStreamEndCapture(rank.stream, &state.graph));
  ONESHOT_CHECK_CUDA(cudaGraphInstantiate(&state.executable, state.graph, 0));
  ONESHOT_CHECK_CUDA(cudaGraphUpload(state.executable, rank.stream));
  ONESHOT_CHECK_CUDA(cudaStreamSynchronize(rank.stream));
}

void TestReplays(const Options& options, Report& report) {
  const int replays =
      options.quick ? std::min(options.replays, 50) : options.replays;
  const int num_devices = static_cast<int>(options.devices.size());
  std::vector<int> sizes = {std::max(2, num_devices)};
  if (!options.quick) sizes.insert(sizes.end(), {3, 4, 8});
  for (const int ranks : sizes) {
    // Sharing a device is about interleaving, not about endurance.
    const int count =
        ranks <= num_devices ? replays : std::max(1, replays / 10);
    constexpr uint32_t kFirstEpoch = 0xFFFFFFFDu;
    VirtualRanks group(ranks, options.devices, kFirstEpoch);
    std::vector<ReplayRank> states(ranks);
    for (int r = 0; r < ranks; ++r) {
      group[r].MakeCurrent();
      states[r].replay =
          static_cast<uint32_t*>(states[r].Allocate(sizeof(uint32_t)));
      states[r].errors = static_cast<unsigned long long*>(
          states[r].Allocate(sizeof(unsigned long long)));
      CaptureLayers(group[r], states[r]);
    }
    // In batches: enough in flight for ranks to run ahead of each other, but
    // not more than the launch queues hold, where launching would block.
    constexpr int kBatch = 20;
    for (int done = 0; done < count; done += kBatch) {
      for (int i = done; i < std::min(done + kBatch, count); ++i) {
        for (int r = 0; r < ranks; ++r) {
          group[r].MakeCurrent();
          ONESHOT_CHECK_CUDA(
              cudaGraphLaunch(states[r].executable, group[r].stream));
        }
      }
      group.Wait(("graph replay after " + std::to_string(done)).c_str(), 60);
    }
    unsigned long long errors = 0;
    bool counted = true;
    for (int r = 0; r < ranks; ++r) {
      group[r].MakeCurrent();
      unsigned long long rank_errors = 0;
      uint32_t replay = 0;
      ONESHOT_CHECK_CUDA(cudaMemcpy(&rank_errors, states[r].errors,
                                    sizeof(rank_errors),
                                    cudaMemcpyDeviceToHost));
      ONESHOT_CHECK_CUDA(cudaMemcpy(&replay, states[r].replay, sizeof(replay),
                                    cudaMemcpyDeviceToHost));
      errors += rank_errors;
      counted = counted && replay == static_cast<uint32_t>(count);
    }
    const uint32_t launches =
        static_cast<uint32_t>(count) * (sizeof(kLayers) / sizeof(Layer));
    const bool quiet = group.IsQuiet(kFirstEpoch + launches);
    report.Case("replay ranks=" + std::to_string(ranks) + " replays=" +
                    std::to_string(count) + " errors=" + std::to_string(errors),
                errors == 0 && counted && quiet);
    for (int r = 0; r < ranks; ++r) {
      group[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(cudaGraphExecDestroy(states[r].executable));
      ONESHOT_CHECK_CUDA(cudaGraphDestroy(states[r].graph));
      for (void* data : states[r].memory) ONESHOT_CHECK_CUDA(cudaFree(data));
    }
  }
}

// ---------------------------------------------------------------------------
// Workspaces
// ---------------------------------------------------------------------------

// Ranks that are threads.
class ThreadBootstrap : public Bootstrap {
 public:
  struct Room {
    explicit Room(int size) : size(size) {}
    const int size;
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<uint8_t> data;
    int arrived = 0;
    int left = 0;
  };

  ThreadBootstrap(Room& room, int rank) : room_(room), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return room_.size; }
  bool AllGather(const void* mine, size_t bytes, void* all,
                 std::string*) override {
    std::unique_lock<std::mutex> lock(room_.mutex);
    room_.changed.wait(lock, [&] { return room_.left == 0; });
    room_.data.resize(room_.size * bytes);
    std::memcpy(room_.data.data() + rank_ * bytes, mine, bytes);
    ++room_.arrived;
    room_.changed.notify_all();
    room_.changed.wait(lock, [&] { return room_.arrived == room_.size; });
    std::memcpy(all, room_.data.data(), room_.data.size());
    if (++room_.left == room_.size) room_.arrived = room_.left = 0;
    room_.changed.notify_all();
    return true;
  }

 private:
  Room& room_;
  const int rank_;
};

struct Created {
  std::unique_ptr<Workspace> workspace;
  std::string error;
};

std::vector<Created> CreateOnThreads(const std::vector<int>& devices) {
  const int ranks = static_cast<int>(devices.size());
  ThreadBootstrap::Room room(ranks);
  std::vector<Created> created(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      ThreadBootstrap bootstrap(room, r);
      created[r].workspace =
          CreateWorkspace(bootstrap, devices[r], &created[r].error);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return created;
}

void TestWorkspaces(const Options& options, Report& report) {
  const int device = options.devices[0];
  const std::vector<Created> refused = CreateOnThreads({device, device});
  bool same = true;
  for (const Created& c : refused) {
    same = same && c.workspace == nullptr && c.error == refused[0].error &&
           c.error.find("rank 0") != std::string::npos &&
           c.error.find("no peer access") != std::string::npos;
  }
  report.Case("workspace refused by all alike: " + refused[0].error, same);

  if (options.devices.size() < 2) return;
  const std::vector<Created> granted = CreateOnThreads(options.devices);
  const int ranks = static_cast<int>(granted.size());
  bool good = true;
  for (int r = 0; r < ranks; ++r) {
    const Workspace* workspace = granted[r].workspace.get();
    if (workspace == nullptr) {
      std::printf("  rank %d: %s\n", r, granted[r].error.c_str());
      good = false;
      continue;
    }
    good = good && workspace->view.rank == r &&
           workspace->view.ranks == ranks &&
           workspace->device.limits.multiprocessors > 0;
    for (int p = 0; p < ranks && good; ++p) {
      good =
          workspace->view.inboxes[p] == granted[p].workspace->view.inboxes[p];
    }
  }
  report.Case("workspace on " + std::to_string(ranks) + " devices", good);
}

}  // namespace
}  // namespace oneshot

int main(int argc, char** argv) {
  // Many ranks on one device need a hardware queue each, and no kernel may be
  // loaded while another one spins.
  setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", /*overwrite=*/1);
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/1);

  oneshot::Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : nullptr;
    if (flag == "--quick") {
      options.quick = true;
    } else if (flag == "--devices" && value != nullptr) {
      options.devices = oneshot::ParseList(argv[++i]);
    } else if (flag == "--replays" && value != nullptr) {
      options.replays = std::atoi(argv[++i]);
    } else if (flag == "--nvrtc" && value != nullptr) {
      oneshot::SetNvrtcPath(argv[++i]);
    } else if (flag == "--only" && value != nullptr) {
      options.only = argv[++i];
    } else {
      std::fprintf(stderr,
                   "usage: %s [--devices 0,1] [--quick] [--replays N] "
                   "[--nvrtc DIR] [--only workspaces|calls|invariance|replays]"
                   "\n",
                   argv[0]);
      return 2;
    }
  }
  if (options.devices.empty() || !oneshot::EnablePeerAccess(options.devices)) {
    std::fprintf(stderr, "no devices, or they cannot access each other\n");
    return 2;
  }
  oneshot::Report report;
  const auto wanted = [&](const char* name) {
    return options.only.empty() || options.only == name;
  };
  if (wanted("workspaces")) oneshot::TestWorkspaces(options, report);
  if (wanted("calls")) oneshot::TestCalls(options, report);
  if (wanted("invariance")) oneshot::TestInvariance(options, report);
  if (wanted("replays")) oneshot::TestReplays(options, report);
  return report.Finish();
}
