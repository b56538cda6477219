// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cuda/device_tests/test_support.h"
#include "cuda/program/interpreter.h"

namespace oneshot {
namespace {

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
Bytes EveryRounding() {
  Bytes bytes(kRoundings * sizeof(uint32_t));
  for (uint32_t i = 0; i < kRoundings; ++i) {
    const uint32_t word = i / 6 << 16 | kLowerHalves[i % 6];
    std::memcpy(bytes.data() + i * sizeof(word), &word, sizeof(word));
  }
  return bytes;
}

}  // namespace

const char* Name(DType dtype) {
  return dtype == DType::kF32 ? "f32" : dtype == DType::kBf16 ? "bf16" : "f16";
}

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

std::string WithSumOfWireType(std::string pattern) {
  for (const char* sum : {"= sum.?;", "= sum;"}) {
    const size_t at = pattern.find(sum);
    if (at != std::string::npos) {
      pattern.replace(at, std::strlen(sum), "= sum.%w;");
    }
  }
  return pattern;
}

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

}  // namespace oneshot
