// SPDX-License-Identifier: Apache-2.0
//
// The protocol and the reductions of the kernel in sequences that a GPU hardly
// ever chooses: several launches of several kernels over one workspace.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/emulator/emulator.h"
#include "cuda/emulator/schedule_cases.h"
#include "cuda/kernel/device/arguments.h"
#include "cuda/program/call_contract.h"
#include "cuda/program/epilogue_program.h"
#include "cuda/program/interpreter.h"

namespace oneshot {

extern const EmulatedKernel kEmulatedKernels[];

namespace {

using Bytes = std::vector<char>;

constexpr uint32_t kFirstEpoch = 0xFFFFFFFEu;  // wraps around
constexpr char kGuard = 0x5A;
constexpr int kGuardBytes = 16;
constexpr int kTrials = 30;

// Words of each place of an inbox that messages of these sizes may reach.
constexpr int64_t kUsed = 16 << 10;

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

// One rank's memory. Of the inbox only what is used is made ready: what is
// written elsewhere is lost, and missed.
class Memory {
 public:
  explicit Memory(int ranks)
      : places_(2 * (ranks - 1)),
        stride_(MaxMessageBytes(ranks) / sizeof(uint32_t)),
        inbox_(static_cast<uint32_t*>(
            std::calloc(places_ * stride_, sizeof(uint32_t)))) {
    for (int p = 0; p < places_; ++p) {
      std::fill_n(inbox_.get() + p * stride_, kUsed, kSentinel);
    }
    control.epoch = kFirstEpoch;
  }

  uint32_t* inbox() const { return inbox_.get(); }

  bool IsClear() const {
    for (int p = 0; p < places_; ++p) {
      const uint32_t* place = inbox_.get() + p * stride_;
      for (int64_t i = 0; i < kUsed; ++i) {
        if (place[i] != kSentinel) return false;
      }
    }
    return true;
  }

  Control control = {};
  Fault fault = {};

 private:
  const int places_;
  const int64_t stride_;
  const std::unique_ptr<uint32_t, Free> inbox_;
};

// What a call of one rank reads and writes.
struct Call {
  Bytes x;
  std::vector<Bytes> operands;
  std::vector<Bytes> results;
  int32_t index = 1;  // of every slice

  Buffers buffers() {
    Buffers all;
    all.x = x.data();
    for (size_t o = 0; o < operands.size(); ++o) {
      all.operands[o] = operands[o].data();
    }
    for (auto& i : all.indices) i = &index;
    for (size_t r = 0; r < results.size(); ++r) {
      all.results[r] = results[r].data();
    }
    return all;
  }
};

int64_t Count(Extent extent, const ScheduleCase& c) {
  return extent == Extent::kElement  ? c.rows * c.hidden
         : extent == Extent::kRow    ? c.rows
         : extent == Extent::kColumn ? c.hidden
                                     : 1;
}

// Small numbers, with negative zeros and words that look like the sentinel.
Bytes Fill(DType dtype, int64_t count, std::mt19937_64& random) {
  Bytes bytes(count * ByteWidth(dtype));
  for (int64_t i = 0; i < count; ++i) {
    const auto what = random() % 64;
    const float number =
        static_cast<float>(static_cast<int>(random() % 4001) - 2000) / 64;
    StoreElement(bytes.data(), dtype, i, what == 0 ? -0.0f : number);
    if (what == 1) {
      std::memset(&bytes[i * ByteWidth(dtype)], 0xFF, ByteWidth(dtype));
    }
  }
  return bytes;
}

EpilogueProgram ProgramOf(const ScheduleCase& c) {
  EpilogueProgram program;
  std::string error;
  EXPECT_TRUE(FromText(c.program, &program, &error)) << error;
  return program;
}

// By rank; operands are the same everywhere.
std::vector<Call> MakeCalls(const ScheduleCase& c,
                            const EpilogueProgram& program,
                            std::mt19937_64& random) {
  const Analysis analysis = Analyze(program);
  Call call;
  for (const Operand& operand : program.operands) {
    const int64_t slices = std::max<int64_t>(1, operand.slices);
    call.operands.push_back(
        Fill(operand.dtype, slices * Count(operand.extent, c), random));
  }
  for (const Result& result : program.results) {
    const int64_t count = Count(analysis.extents[result.value], c);
    call.results.emplace_back(count * ByteWidth(result.dtype) + kGuardBytes,
                              kGuard);
  }
  std::vector<Call> calls(c.ranks, call);
  for (Call& of_rank : calls) {
    of_rank.x = Fill(program.x, c.rows * c.hidden, random);
  }
  return calls;
}

// Equal but for the sequence of a reduction, or both NaN.
bool IsClose(float value, float wanted, DType dtype) {
  if (std::isnan(value) || std::isnan(wanted)) {
    return std::isnan(value) && std::isnan(wanted);
  }
  if (value == wanted) return true;
  const float relative = dtype == DType::kF32 ? 1e-5f : 1.0f / 128;
  return std::fabs(value - wanted) <= relative * std::fabs(wanted) + 1e-4f;
}

void Compare(const ScheduleCase& c, const EpilogueProgram& program,
             const std::vector<Call>& calls, const std::vector<Call>& wanted) {
  for (size_t r = 0; r < program.results.size(); ++r) {
    const DType dtype = program.results[r].dtype;
    const Bytes& first = calls[0].results[r];
    const int64_t bytes = first.size() - kGuardBytes;
    for (int rank = 0; rank < c.ranks; ++rank) {
      const Bytes& result = calls[rank].results[r];
      EXPECT_TRUE(result == first) << "rank " << rank << ", result " << r;
      EXPECT_EQ(Bytes(result.end() - kGuardBytes, result.end()),
                Bytes(kGuardBytes, kGuard));
    }
    for (int64_t i = 0; i < bytes / ByteWidth(dtype); ++i) {
      const float value = LoadElement(first.data(), dtype, i);
      const float right = LoadElement(wanted[0].results[r].data(), dtype, i);
      ASSERT_TRUE(IsClose(value, right, dtype))
          << c.program << "\nresult " << r << " at " << i << ": " << value
          << ", not " << right;
    }
  }
}

// Several launches of the kernels between so many ranks, over one workspace.
void RunSequence(int ranks, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<int> kernels;
  for (size_t i = 0; i < std::size(kScheduleCases); ++i) {
    if (kScheduleCases[i].ranks == ranks) kernels.push_back(i);
  }
  std::vector<std::unique_ptr<Memory>> memory;
  for (int r = 0; r < ranks; ++r) {
    memory.push_back(std::make_unique<Memory>(ranks));
  }
  const int count = 3 + static_cast<int>(random() % 4);
  std::vector<int> sequence;
  std::vector<std::vector<Call>> calls;
  std::vector<std::vector<KernelArguments>> arguments(ranks);
  for (int l = 0; l < count; ++l) {
    sequence.push_back(kernels[random() % kernels.size()]);
    const ScheduleCase& c = kScheduleCases[sequence.back()];
    calls.push_back(MakeCalls(c, ProgramOf(c), random));
  }
  std::vector<std::vector<Call>> wanted = calls;
  std::vector<std::vector<EmulatedLaunch>> launches(ranks);
  for (int r = 0; r < ranks; ++r) {
    arguments[r].resize(count);
    for (int l = 0; l < count; ++l) {
      const Buffers buffers = calls[l][r].buffers();
      KernelArguments& a = arguments[r][l];
      a = {};
      a.x = buffers.x;
      std::copy(std::begin(buffers.operands), std::end(buffers.operands),
                a.operands);
      std::copy(std::begin(buffers.indices), std::end(buffers.indices),
                a.indices);
      std::copy(std::begin(buffers.results), std::end(buffers.results),
                a.results);
      for (int peer = 0; peer < ranks; ++peer) {
        a.inboxes[peer] = memory[peer]->inbox();
      }
      a.control = &memory[r]->control;
      a.fault = &memory[r]->fault;
      a.notice_ns = ~0ull;
      a.timeout_ns = ~0ull;
      a.rank = r;
      launches[r].push_back({&kEmulatedKernels[sequence[l]], &a});
    }
  }
  ASSERT_EQ(RunEmulated(launches, seed), "");
  for (int r = 0; r < ranks; ++r) {
    EXPECT_TRUE(memory[r]->IsClear()) << "rank " << r;
    EXPECT_EQ(memory[r]->control.arrived, 0u);
    EXPECT_EQ(memory[r]->control.epoch, kFirstEpoch + count);
  }
  for (int l = 0; l < count; ++l) {
    const ScheduleCase& c = kScheduleCases[sequence[l]];
    const EpilogueProgram program = ProgramOf(c);
    std::vector<Buffers> buffers;
    for (Call& call : wanted[l]) buffers.push_back(call.buffers());
    AllReduceOnHost(program, c.rows, c.hidden, buffers);
    Compare(c, program, calls[l], wanted[l]);
  }
}

class KernelScheduleTest : public ::testing::TestWithParam<int> {};

TEST_P(KernelScheduleTest, EndsAndIsRight) {
  for (uint64_t seed = 0; seed < kTrials && !HasFailure(); ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RunSequence(GetParam(), seed);
  }
}

INSTANTIATE_TEST_SUITE_P(Ranks, KernelScheduleTest,
                         ::testing::Values(2, 3, 4, 8));

}  // namespace
}  // namespace oneshot
