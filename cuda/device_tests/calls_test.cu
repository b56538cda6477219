// SPDX-License-Identifier: Apache-2.0
//
// Single calls on the device against the host.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cuda/device_tests/test_support.h"
#include "cuda/device_tests/virtual_ranks.h"
#include "cuda/program/call_contract.h"
#include "cuda/program/interpreter.h"
#include "cuda/runtime/kernel_cache.h"
#include "cuda/runtime/launch.h"

namespace oneshot {
namespace {

__global__ void Delay(long long cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
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

// True if host and device agree to the last bit. They don't where a row
// is summed, in another order, nor in functions of mathematical libraries.
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

// The relative error that a difference in the last bit may grow to: one step of
// every type that the program rounds to.
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

}  // namespace

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

}  // namespace oneshot
