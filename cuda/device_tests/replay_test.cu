// SPDX-License-Identifier: Apache-2.0
//
// Layers captured in CUDA graphs, replayed many times. Replays carry small
// integers, different in every replay: all sums are exact in every type, so
// devices can check them, and stale data cannot pass.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "cuda/device_tests/test_support.h"
#include "cuda/device_tests/virtual_ranks.h"
#include "cuda/program/float_formats.h"
#include "cuda/runtime/kernel_cache.h"
#include "cuda/runtime/launch.h"

namespace oneshot {
namespace {

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

}  // namespace

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

}  // namespace oneshot
