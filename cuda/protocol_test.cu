// SPDX-License-Identifier: Apache-2.0
//
// The kernel on real devices, without XLA: against the host implementation, and
// under what could break the protocol. Prints a line per case and a summary;
// the status is 0 only if every case passed, 3 if a case hung.
//
//   protocol_test [--devices 0,1] [--quick] [--replays 10000] [--only NAME]
//
// Ranks are spread over the devices; with one device they share it.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cuda/all_reduce_kernel.h"
#include "cuda/bootstrap.h"
#include "cuda/host_epilogue.h"
#include "cuda/launch_plan.h"
#include "cuda/limits.h"
#include "cuda/virtual_ranks.h"
#include "cuda/workspace.h"

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

// What x is filled with.
enum class Data { kRandom, kNegativeZero, kSentinel, kSpecial };

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
  }
  return "";
}

struct Call {
  Epilogue epilogue;
  int64_t rows = 1;
  int64_t hidden = 1;
  Data data = Data::kRandom;
  bool misaligned = false;  // buffers start one element late
  bool in_place = false;    // the sum is written over the residual
  bool delayed = false;     // ranks start at different times

  int64_t elements() const { return rows * hidden; }
  std::string ToString() const {
    std::string text = std::to_string(rows) + "x" + std::to_string(hidden) +
                       " " + Name(epilogue.x_dtype) + ">" +
                       Name(epilogue.sum_round);
    for (int a = 0; a < epilogue.num_addends; ++a) {
      const Addend& addend = epilogue.addends[a];
      text += std::string(addend.per_row ? " +residual:" : " +bias:") +
              Name(addend.dtype) + ">" + Name(addend.round);
    }
    if (epilogue.emit_norm) {
      text += std::string(" rms>") + Name(epilogue.norm_round);
      if (epilogue.has_gain)
        text += std::string("*") + Name(epilogue.gain_dtype);
    }
    text += " =>";
    if (epilogue.emit_sum)
      text += std::string(" sum:") + Name(epilogue.sum_dtype);
    if (epilogue.emit_norm) {
      text += std::string(" norm:") + Name(epilogue.norm_dtype);
    }
    text += std::string(" ") + Name(data);
    if (misaligned) text += " misaligned";
    if (in_place) text += " in-place";
    if (delayed) text += " delayed";
    return text;
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

Bytes Fill(std::mt19937& random, Data data, DType dtype, int64_t elements) {
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
  static constexpr size_t kCapacity = 2 * kMaxMessageBytes + 4 * kGuard;
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

struct RankBuffers {
  explicit RankBuffers(const VirtualRank& rank)
      : x(rank),
        bias(rank),
        residual(rank),
        gain(rank),
        sum(rank),
        norm(rank) {}
  GuardedBuffer x, bias, residual, gain, sum, norm;
};

// Half a step of a type, relative to the smallest number of a binade.
double HalfStep(DType dtype) {
  return dtype == DType::kF32    ? 0x1p-24
         : dtype == DType::kBf16 ? 0x1p-8
                                 : 0x1p-11;
}

double SmallestStep(DType dtype) {
  return dtype == DType::kF32    ? 0x1p-149
         : dtype == DType::kBf16 ? 0x1p-133
                                 : 0x1p-24;
}

double Largest(DType dtype) {
  return dtype == DType::kF16
             ? 65504.0
             : static_cast<double>(std::numeric_limits<float>::max());
}

bool SameNumber(float a, float b) {
  if (std::isnan(a) || std::isnan(b)) return std::isnan(a) && std::isnan(b);
  return host::Bits(a) == host::Bits(b);  // tells -0 from 0
}

// The norm in float64 from exact float32 h, without any of its roundings.
bool NormIsClose(const Call& call, const std::vector<float>& h,
                 const Bytes& gain, const Bytes& got) {
  const Epilogue& e = call.epilogue;
  for (int64_t row = 0; row < call.rows; ++row) {
    double squares = 0;
    for (int64_t i = 0; i < call.hidden; ++i) {
      const float value = h[row * call.hidden + i];
      squares +=
          value * value;  // float32: where the kernel overflows, so do we
    }
    const float mean = static_cast<float>(squares) * e.mean_scale;
    const double scale = 1 / std::sqrt(static_cast<double>(mean + e.epsilon));
    for (int64_t i = 0; i < call.hidden; ++i) {
      const int64_t index = row * call.hidden + i;
      const double n = h[index] * scale;
      const double g =
          e.has_gain ? LoadElement(gain.data(), e.gain_dtype, i) : 1.0;
      const double want = n * g;
      const float actual = LoadElement(got.data(), e.norm_dtype, index);
      if (std::isnan(want)) {
        if (!std::isnan(actual)) {
          std::printf("  norm[%ld,%ld]: got %g want nan\n", row, i, actual);
          return false;
        }
        continue;
      }
      const double tolerance =
          std::abs(want) *
              (1.01 * (HalfStep(e.norm_round) + HalfStep(e.norm_dtype)) +
               4e-6) +
          SmallestStep(e.norm_round) * std::max(1.0, std::abs(g)) +
          SmallestStep(e.norm_dtype);
      // Beyond the range infinity is right, at its border both are.
      const double edge =
          Largest(e.norm_dtype) *
          (1 - 2 * HalfStep(e.norm_dtype) - HalfStep(e.norm_round) - 4e-6);
      const bool may_overflow =
          std::abs(want) >= edge || std::abs(n) >= Largest(e.norm_round) * 0.99;
      if (may_overflow && std::isinf(actual)) continue;
      if (!(std::abs(actual - want) <= tolerance)) {
        std::printf("  norm[%ld,%ld]: got %.9g want %.9g +- %.3g\n", row, i,
                    actual, want, tolerance);
        return false;
      }
    }
  }
  return true;
}

class CallTester {
 public:
  CallTester(const VirtualRanks& ranks, uint32_t epoch)
      : ranks_(ranks), epoch_(epoch) {
    for (int r = 0; r < ranks.size(); ++r) {
      buffers_.push_back(std::make_unique<RankBuffers>(ranks[r]));
    }
  }

  // False when the call does not fit the workspace and was skipped.
  static bool Fits(const Call& call) {
    return PlanLaunch(call.epilogue, call.rows, call.hidden, 132).has_value();
  }

  bool Run(const Call& call, std::mt19937& random) {
    const Epilogue& e = call.epilogue;
    const int64_t n = call.elements();
    // Inputs on the host. All but x are the same on all ranks.
    std::vector<Bytes> x;
    for (int r = 0; r < ranks_.size(); ++r) {
      x.push_back(Fill(random, call.data, e.x_dtype, n));
    }
    Bytes addends[kMaxAddends];
    for (int a = 0; a < e.num_addends; ++a) {
      addends[a] = Fill(
          random, call.data == Data::kNegativeZero ? call.data : Data::kRandom,
          e.addends[a].dtype, e.addends[a].per_row ? n : call.hidden);
    }
    Bytes gain;
    if (e.has_gain) {
      gain = Fill(random, Data::kRandom, e.gain_dtype, call.hidden);
    }

    // Inputs and poisoned outputs on the devices.
    std::vector<Buffers> device(ranks_.size());
    for (int r = 0; r < ranks_.size(); ++r) {
      RankBuffers& b = *buffers_[r];
      const auto shift = [&](DType dtype) {
        return call.misaligned ? ByteWidth(dtype) : 0;
      };
      device[r].x = b.x.Reset(x[r].size(), shift(e.x_dtype), &x[r]);
      void* residual = nullptr;
      for (int a = 0; a < e.num_addends; ++a) {
        GuardedBuffer& buffer = e.addends[a].per_row ? b.residual : b.bias;
        void* data = buffer.Reset(addends[a].size(), shift(e.addends[a].dtype),
                                  &addends[a]);
        if (e.addends[a].per_row) residual = data;
        device[r].addends[a] = data;
      }
      if (e.has_gain) {
        device[r].gain = b.gain.Reset(gain.size(), shift(e.gain_dtype), &gain);
      }
      if (e.emit_sum) {
        device[r].sum = call.in_place
                            ? residual
                            : b.sum.Reset(n * ByteWidth(e.sum_dtype),
                                          shift(e.sum_dtype), nullptr);
      }
      if (e.emit_norm) {
        device[r].norm = b.norm.Reset(n * ByteWidth(e.norm_dtype),
                                      shift(e.norm_dtype), nullptr);
      }
    }

    for (int r = 0; r < ranks_.size(); ++r) {
      const VirtualRank& rank = ranks_[r];
      rank.MakeCurrent();
      if (call.delayed && random() % 2) {
        Delay<<<1, 1, 0, rank.stream>>>(random() % 400000);
        ONESHOT_CHECK_CUDA(cudaGetLastError());
      }
      const std::optional<LaunchPlan> plan =
          PlanLaunch(e, call.rows, call.hidden, rank.multiprocessors);
      ONESHOT_CHECK_CUDA(
          LaunchAllReduce(*plan, e, device[r], rank.view, rank.stream));
    }
    ++epoch_;
    ranks_.Wait(call.ToString().c_str());
    return Check(call, x, addends, gain) && ranks_.IsQuiet(epoch_);
  }

 private:
  bool Check(const Call& call, const std::vector<Bytes>& x,
             const Bytes (&addends)[kMaxAddends], const Bytes& gain) {
    const Epilogue& e = call.epilogue;
    const int64_t n = call.elements();
    // h exactly: float32 additions in a given order leave nothing open.
    std::vector<float> h(n);
    Epilogue only_sum = e;
    only_sum.emit_sum = true;
    only_sum.emit_norm = only_sum.has_gain = false;
    only_sum.sum_dtype = DType::kF32;
    std::vector<Buffers> host(x.size());
    for (size_t r = 0; r < x.size(); ++r) {
      host[r].x = x[r].data();
      for (int a = 0; a < e.num_addends; ++a) {
        host[r].addends[a] = addends[a].data();
      }
      host[r].sum = h.data();
    }
    AllReduceOnHost(only_sum, call.rows, call.hidden, host);

    if (e.emit_sum) {
      const std::optional<Bytes> sum = FetchAlike(
          "sum", n * ByteWidth(e.sum_dtype),
          call.in_place ? &RankBuffers::residual : &RankBuffers::sum);
      if (!sum) return false;
      for (int64_t i = 0; i < n; ++i) {
        const float got = LoadElement(sum->data(), e.sum_dtype, i);
        const float want = RoundTo(e.sum_dtype, h[i]);
        if (!SameNumber(got, want)) {
          std::printf("  sum[%ld]: got %.9g want %.9g\n", i, got, want);
          return false;
        }
      }
    }
    if (e.emit_norm) {
      const std::optional<Bytes> norm =
          FetchAlike("norm", n * ByteWidth(e.norm_dtype), &RankBuffers::norm);
      if (!norm || !NormIsClose(call, h, gain, *norm)) return false;
    }
    return true;
  }

  // A result of `size` bytes; nothing if a rank wrote around it or the ranks
  // have different bits.
  std::optional<Bytes> FetchAlike(const char* name, size_t size,
                                  GuardedBuffer RankBuffers::* buffer) const {
    Bytes first;
    for (int r = 0; r < ranks_.size(); ++r) {
      const Bytes got = ((*buffers_[r]).*buffer).Fetch();
      if (got.size() != size) {
        std::printf("  rank %d: wrote outside of the %s\n", r, name);
        return std::nullopt;
      }
      if (r == 0) first = got;
      if (got != first) {
        std::printf("  rank %d: %s differs from that of rank 0\n", r, name);
        return std::nullopt;
      }
    }
    return first;
  }

  const VirtualRanks& ranks_;
  uint32_t epoch_;
  std::vector<std::unique_ptr<RankBuffers>> buffers_;
};

// The epilogues, by addends ("b", "r", "br", "rb" or none) and results ("s",
// "n", "g": norm with gain, or combinations).
struct Kind {
  const char* addends;
  const char* results;
};
constexpr Kind kKinds[] = {{"", "s"},   {"b", "s"},   {"r", "s"},  {"br", "s"},
                           {"rb", "s"}, {"", "n"},    {"", "g"},   {"r", "sg"},
                           {"b", "g"},  {"br", "sg"}, {"rb", "sn"}};

Epilogue MakeEpilogue(const Kind& kind, DType wire, int64_t hidden,
                      std::mt19937& random) {
  const auto any = [&] { return kDTypes[random() % 3]; };
  Epilogue e;
  e.x_dtype = wire;
  e.sum_round = random() % 2 ? wire : DType::kF32;
  for (const char* c = kind.addends; *c; ++c) {
    Addend& addend = e.addends[e.num_addends++];
    addend.per_row = *c == 'r';
    addend.dtype = any();
    addend.round = any();
  }
  for (const char* c = kind.results; *c; ++c) {
    if (*c == 's') {
      e.emit_sum = true;
      e.sum_dtype = any();
    } else {
      e.emit_norm = true;
      e.norm_dtype = any();
      e.norm_round = any();
      e.has_gain = *c == 'g';
      e.gain_dtype = any();
      e.epsilon = 1e-6f;
      e.mean_scale = 1.0f / static_cast<float>(hidden);
    }
  }
  return e;
}

void TestCalls(const Options& options, Report& report) {
  const std::vector<int64_t> hidden_sizes =
      options.quick
          ? std::vector<int64_t>{1, 7, 96, 1000, 8192}
          : std::vector<int64_t>{1,    7,    64,   96,   1000,  1003,
                                 2048, 4096, 5120, 8192, 16384, 32768};
  constexpr int64_t kRows[] = {1, 2, 3, 5, 8, 13, 33};
  for (int ranks = kMinRanks; ranks <= kMaxRanks; ++ranks) {
    if (options.quick && ranks != 2 && ranks != 3 && ranks != 8) continue;
    // Near the wrap-around: the epoch must only count modulo 2^32.
    constexpr uint32_t kFirstEpoch = 0xFFFFFFFDu;
    VirtualRanks group(ranks, options.devices, kFirstEpoch);
    CallTester tester(group, kFirstEpoch);
    std::mt19937 random(ranks);
    for (const DType wire : kDTypes) {
      for (const int64_t hidden : hidden_sizes) {
        // One line for all epilogues of a shape; failures are printed apart.
        int calls = 0;
        int failures = 0;
        for (const Kind& kind : kKinds) {
          Call call;
          call.hidden = hidden;
          call.rows = kRows[random() % 7];
          call.epilogue = MakeEpilogue(kind, wire, hidden, random);
          call.data = static_cast<Data>(random() % 8 < 5 ? 0 : random() % 4);
          call.misaligned = random() % 6 == 0;
          call.delayed = random() % 3 == 0;
          call.in_place = call.epilogue.emit_sum && random() % 3 == 0 &&
                          std::strchr(kind.addends, 'r') != nullptr;
          for (int a = 0; a < call.epilogue.num_addends; ++a) {
            const Addend& addend = call.epilogue.addends[a];
            if (call.in_place && addend.per_row) {
              call.epilogue.sum_dtype = addend.dtype;
            }
          }
          while (call.rows > 1 && !CallTester::Fits(call)) call.rows /= 2;
          if (!CallTester::Fits(call)) continue;
          ++calls;
          if (!tester.Run(call, random)) {
            std::printf("  in: %d ranks %s\n", ranks, call.ToString().c_str());
            ++failures;
          }
        }
        if (calls == 0) continue;
        report.Case("calls ranks=" + std::to_string(ranks) + " wire=" +
                        Name(wire) + " hidden=" + std::to_string(hidden) +
                        " calls=" + std::to_string(calls) +
                        (failures ? " failed=" + std::to_string(failures) : ""),
                    failures == 0);
      }
    }
    // The largest message, and every kind of data in every wire type.
    for (const DType wire : kDTypes) {
      Call call;
      call.epilogue = MakeEpilogue(kKinds[0], wire, 1, random);
      call.hidden = kMaxMessageBytes / ByteWidth(wire);
      report.Case(
          "largest ranks=" + std::to_string(ranks) + " " + call.ToString(),
          tester.Run(call, random));
      for (const Data data :
           {Data::kNegativeZero, Data::kSentinel, Data::kSpecial}) {
        call.rows = 4;
        call.hidden = 2048;
        call.epilogue = MakeEpilogue(kKinds[7], wire, call.hidden, random);
        call.data = data;
        report.Case(
            "data ranks=" + std::to_string(ranks) + " " + call.ToString(),
            tester.Run(call, random));
      }
    }
  }
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
                       Epilogue epilogue, Buffers buffers, int hidden,
                       unsigned long long* errors) {
  __shared__ unsigned long long squares;
  if (threadIdx.x == 0) squares = 0;
  __syncthreads();
  const auto expected = [&](int index) {
    float h = 0;
    for (int r = 0; r < ranks; ++r) h += SmallInteger(*replay, layer, r, index);
    if (epilogue.num_addends == 1) {
      h += SmallInteger(*replay, layer, kResidualSource, index);
    }
    return h;
  };
  const int row = blockIdx.x * hidden;
  unsigned long long mine = 0;
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    const float h = expected(row + i);
    mine += static_cast<unsigned long long>(h * h);
    if (epilogue.emit_sum &&
        Take(buffers.sum, epilogue.sum_dtype, row + i) != h) {
      atomicAdd(errors, 1ull);
    }
  }
  atomicAdd(&squares, mine);
  __syncthreads();
  if (!epilogue.emit_norm) return;
  const float scale =
      1 / sqrtf(static_cast<float>(squares) * epilogue.mean_scale +
                epilogue.epsilon);
  for (int i = threadIdx.x; i < hidden; i += blockDim.x) {
    const float want = expected(row + i) * scale;
    const float got = Take(buffers.norm, epilogue.norm_dtype, row + i);
    const float tolerance =
        epilogue.norm_dtype == DType::kBf16 ? 0x1p-7f : 0x1p-10f;
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
};

// Shapes that grow, shrink and leave rows unaligned, so that what one launch
// leaves in a slot is never what the next one overwrites.
constexpr Layer kLayers[] = {
    {8, 8192, DType::kBf16, true, true}, {1, 7, DType::kF32, false, false},
    {4, 1003, DType::kF16, true, true},  {1, 65536, DType::kBf16, false, false},
    {1, 8192, DType::kBf16, true, true}, {2, 16384, DType::kF32, true, true},
    {33, 96, DType::kF16, false, true},  {3, 16384, DType::kBf16, true, true},
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

void CaptureLayers(const VirtualRank& rank, ReplayRank& state) {
  struct Prepared {
    Epilogue epilogue;
    Buffers buffers;
    LaunchPlan plan;
    void* x;
    void* residual;
  };
  std::vector<Prepared> prepared;
  for (const Layer& layer : kLayers) {
    Prepared p = {};
    const size_t bytes = sizeof(float) * layer.rows * layer.hidden;
    Epilogue& e = p.epilogue;
    e.x_dtype = e.sum_round = e.sum_dtype = e.norm_dtype = layer.wire;
    e.emit_sum = true;
    p.x = state.Allocate(bytes);
    p.buffers.x = p.x;
    p.buffers.sum = state.Allocate(bytes);
    if (layer.residual) {
      e.num_addends = 1;
      e.addends[0].dtype = e.addends[0].round = layer.wire;
      p.residual = state.Allocate(bytes);
      p.buffers.addends[0] = p.residual;
    }
    if (layer.norm) {
      e.emit_norm = true;
      e.epsilon = 1e-6f;
      e.mean_scale = 1.0f / layer.hidden;
      p.buffers.norm = state.Allocate(bytes);
    }
    p.plan = *PlanLaunch(e, layer.rows, layer.hidden, rank.multiprocessors);
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
        LaunchAllReduce(p.plan, p.epilogue, p.buffers, rank.view, rank.stream));
    Verify<<<layer.rows, 256, 0, rank.stream>>>(
        state.replay, l, rank.view.ranks, p.epilogue, p.buffers, layer.hidden,
        state.errors);
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
           c.error.find("same device") != std::string::npos;
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
           workspace->view.ranks == ranks && workspace->multiprocessors > 0;
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
    } else if (flag == "--only" && value != nullptr) {
      options.only = argv[++i];
    } else {
      std::fprintf(stderr,
                   "usage: %s [--devices 0,1] [--quick] [--replays N] "
                   "[--only workspaces|calls|replays]\n",
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
  if (wanted("replays")) oneshot::TestReplays(options, report);
  return report.Finish();
}
