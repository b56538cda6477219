// SPDX-License-Identifier: Apache-2.0
//
// Time of one call inside a CUDA graph, without XLA.
//
//   kernel_bench [--devices 0,1] [--hidden 8192] [--rows 1,8,32,64]
//                [--dtype bf16] [--tune] [--cold] [--only NAME]
//
// Runs one rank per device and prints one line per case: the median over the
// samples of the slowest rank's time per call. --tune times every tuning that
// fits, and marks the one in use.
//
// --cold times calls as they are between the GEMMs of a decode step: before
// each call, one kernel reads more than the L2 holds and another writes x. The
// time of these two alone is subtracted.
//
// Three lower bounds of any such kernel are timed too: the launch of as many
// blocks, reading x and writing as much, and the trip of a packet from one rank
// to another.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <iterator>
#include <optional>
#include <regex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda/bench/graph_timer.h"
#include "cuda/bench/system_access.cuh"
#include "cuda/device_tests/virtual_ranks.h"
#include "cuda/kernel/launch_plan.h"
#include "cuda/kernel/nvrtc.h"
#include "cuda/runtime/kernel_cache.h"
#include "cuda/runtime/launch.h"

namespace oneshot {
namespace {

constexpr int kTuneSamples = 15;

constexpr int kTrips = 1000;  // there and back

// More than the L2 of an H200 holds.
constexpr size_t kFlushBytes = size_t{96} << 20;

__global__ void Nothing() {}

// Reads and writes a message, and no more.
__global__ void Copy(const uint4* x, uint4* out, int packets) {
  const int packet = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (packet < packets) out[packet] = x[packet];
}

// Reads much.
__global__ void Flush(const uint4* memory, int packets, uint4* never) {
  uint4 any = {};
  const int step = static_cast<int>(gridDim.x * blockDim.x);
  for (int packet = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
       packet < packets; packet += step) {
    const uint4 read = memory[packet];
    any.x |= read.x | read.y | read.z | read.w;
  }
  if (any.x != 0) *never = any;  // it is all zero
}

// Sends a packet to and fro. The kernel that serves first measures the time.
__global__ void Bounce(uint4* mine, uint4* theirs, bool serves,
                       unsigned long long* elapsed_ns) {
  unsigned long long start, stop;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  for (uint32_t trip = 1; trip <= kTrips; ++trip) {
    for (const bool sends : {serves, !serves}) {
      if (sends) {
        StoreSystem(theirs, make_uint4(trip, trip, trip, trip));
        continue;
      }
      uint4 seen;
      do {
        seen = LoadSystem(mine);
      } while (seen.x != trip || seen.y != trip || seen.z != trip ||
               seen.w != trip);
    }
  }
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(stop));
  if (serves) *elapsed_ns = stop - start;
}

// Microseconds to launch as many blocks, in clusters, that do nothing.
double MeasureLaunch(const VirtualRanks& ranks, int blocks, int threads,
                     int cluster) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = cluster;
  attribute.val.clusterDim.y = 1;
  attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.attrs = &attribute;
  config.numAttrs = cluster > 1 ? 1 : 0;
  return Measure(ranks, [&](const VirtualRank& rank) {
    config.stream = rank.stream;
    ONESHOT_CHECK_CUDA(cudaLaunchKernelEx(&config, Nothing));
  });
}

// Microseconds that a packet takes from one rank to another.
double MeasureTrip(const VirtualRank& server, const VirtualRank& client) {
  const VirtualRank* sides[] = {&server, &client};
  uint4* packets[2];
  unsigned long long* elapsed_ns = nullptr;
  ONESHOT_CHECK_CUDA(
      cudaHostAlloc(&elapsed_ns, sizeof(*elapsed_ns), cudaHostAllocPortable));
  for (int side = 0; side < 2; ++side) {
    sides[side]->MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaMalloc(&packets[side], sizeof(uint4)));
    ONESHOT_CHECK_CUDA(cudaMemset(packets[side], 0, sizeof(uint4)));
    ONESHOT_CHECK_CUDA(cudaDeviceSynchronize());
  }
  for (int side = 0; side < 2; ++side) {
    sides[side]->MakeCurrent();
    Bounce<<<1, 1, 0, sides[side]->stream>>>(packets[side], packets[1 - side],
                                             side == 0, elapsed_ns);
    ONESHOT_CHECK_CUDA(cudaGetLastError());
  }
  for (int side = 0; side < 2; ++side) {
    sides[side]->MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaStreamSynchronize(sides[side]->stream));
    ONESHOT_CHECK_CUDA(cudaFree(packets[side]));
  }
  const double trip = static_cast<double>(*elapsed_ns) / (2e3 * kTrips);
  ONESHOT_CHECK_CUDA(cudaFreeHost(elapsed_ns));
  return trip;
}

// Enqueues what is between two calls with --cold, for messages of so many
// bytes.
class Cooler {
 public:
  Cooler(const VirtualRanks& ranks, size_t bytes) : bytes_(bytes) {
    for (int r = 0; r < ranks.size(); ++r) {
      ranks[r].MakeCurrent();
      char* memory = nullptr;
      ONESHOT_CHECK_CUDA(cudaMalloc(&memory, kFlushBytes + bytes));
      ONESHOT_CHECK_CUDA(cudaMemset(memory, 0, kFlushBytes + bytes));
      ONESHOT_CHECK_CUDA(cudaDeviceSynchronize());
      memory_.push_back(memory);
    }
  }
  ~Cooler() {
    for (char* memory : memory_) cudaFree(memory);
  }
  Cooler(const Cooler&) = delete;
  Cooler& operator=(const Cooler&) = delete;

  void operator()(const VirtualRank& rank, const void* x) const {
    constexpr int kThreads = 512;
    char* memory = memory_[rank.view.rank];
    Flush<<<2 * rank.traits.limits.multiprocessors, kThreads, 0, rank.stream>>>(
        reinterpret_cast<uint4*>(memory),
        static_cast<int>(kFlushBytes / sizeof(uint4)),
        reinterpret_cast<uint4*>(memory + kFlushBytes));
    ONESHOT_CHECK_CUDA(cudaGetLastError());
    const int packets = static_cast<int>(bytes_ / sizeof(uint4));
    Copy<<<(packets + kThreads - 1) / kThreads, kThreads, 0, rank.stream>>>(
        reinterpret_cast<uint4*>(memory + kFlushBytes),
        static_cast<uint4*>(const_cast<void*>(x)), packets);
    ONESHOT_CHECK_CUDA(cudaGetLastError());
  }

 private:
  size_t bytes_;
  std::vector<char*> memory_;  // by rank
};

// The type of all tensors but quantized ones.
struct Element {
  const char* name;
  const char* rounding;  // suffix of an instruction
  int bytes;
};

const Element kElements[] = {
    {"bf16", ".bf16", 2}, {"f16", ".f16", 2}, {"f32", "", 4}};

// The programs that are timed. `%a` stands for 1 / hidden, bf16 for the type of
// the tensors.
struct Case {
  std::string name;
  std::string program;
};

std::vector<Case> Cases() {
  const std::string add = "v0 = sum.bf16; v1 = in0; v2 = add.bf16 v0 v1; ";
  const std::string norm =
      "x bf16; in0 element bf16; in1 column bf16; " + add +
      "v3 = multiply v2 v2; v4 = reduce_sum v3; v5 = constant %a; "
      "v6 = multiply v4 v5; v7 = constant 0x1p-20; v8 = add v6 v7; "
      "v9 = rsqrt v8; v10 = multiply.bf16 v2 v9; v11 = in1; "
      "v12 = multiply.bf16 v10 v11; ";
  return {
      {"sum", "x bf16; v0 = sum.bf16; out0 v0 bf16"},
      {"residual", "x bf16; in0 element bf16; " + add + "out0 v2 bf16"},
      {"residual+rms_norm", norm + "out0 v2 bf16; out1 v12 bf16"},
      {"residual+rms_norm+quantize",
       norm + "v13 = constant 0x1p+3; v14 = multiply v12 v13; v15 = constant "
              "-0x1.cp+8; "
              "v16 = maximum v14 v15; v17 = constant 0x1.cp+8; "
              "v18 = minimum v16 v17; out0 v2 bf16; out1 v18 f8e4m3fn"},
      {"residual+rms_norm+quantize by rows",
       norm + "v13 = abs v12; v14 = reduce_max v13; v15 = constant 0x1.cp+8; "
              "v16 = divide v14 v15; v17 = divide v12 v16; out0 v2 bf16; "
              "out1 v17 f8e4m3fn; out2 v16 f32"},
      {"bias+residual+layer_norm",
       "x bf16; in0 column bf16; in1 element bf16; in2 column bf16; "
       "in3 column bf16; v0 = sum.bf16; v1 = in0; v2 = add.bf16 v0 v1; "
       "v3 = in1; v4 = add.bf16 v2 v3; v5 = reduce_sum v4; v6 = constant %a; "
       "v7 = multiply v5 v6; v8 = subtract v4 v7; v9 = multiply v8 v8; "
       "v10 = reduce_sum v9; v11 = multiply v10 v6; v12 = constant 0x1p-20; "
       "v13 = add v11 v12; v14 = rsqrt v13; v15 = multiply v8 v14; v16 = in2; "
       "v17 = multiply v15 v16; v18 = in3; v19 = add v17 v18; "
       "v20 = convert.bf16 v19; out0 v4 bf16; out1 v20 bf16"},
  };
}

EpilogueProgram ProgramOf(const Case& timed, int hidden,
                          const Element& element) {
  char inverse[32];
  std::snprintf(inverse, sizeof(inverse), "%a", 1.0f / hidden);
  std::string text =
      std::regex_replace(timed.program, std::regex("%a"), inverse);
  text = std::regex_replace(text, std::regex("\\.bf16"), element.rounding);
  text = std::regex_replace(text, std::regex("\\bbf16"), element.name);
  EpilogueProgram program;
  std::string error;
  if (!FromText(text, &program, &error)) {
    std::fprintf(stderr, "%s: %s\n", timed.name.c_str(), error.c_str());
    std::exit(1);
  }
  return program;
}

// Everything in one piece of memory, filled with one small number.
struct RankBuffers {
  void* memory = nullptr;
  Buffers call;
};

RankBuffers Allocate(const EpilogueProgram& program, size_t bytes) {
  RankBuffers buffers;
  const size_t operands = program.operands.size();
  const size_t results = program.results.size();
  const size_t total = (1 + operands + results) * bytes;
  ONESHOT_CHECK_CUDA(cudaMalloc(&buffers.memory, total));
  ONESHOT_CHECK_CUDA(cudaMemset(buffers.memory, 0x3c, total));
  ONESHOT_CHECK_CUDA(cudaDeviceSynchronize());
  char* next = static_cast<char*>(buffers.memory);
  const auto take = [&] { return std::exchange(next, next + bytes); };
  buffers.call.x = take();
  for (size_t o = 0; o < operands; ++o) buffers.call.operands[o] = take();
  for (size_t r = 0; r < results; ++r) buffers.call.results[r] = take();
  return buffers;
}

// Microseconds to read a message and write it elsewhere, on every rank.
double MeasureCopy(const VirtualRanks& ranks, size_t bytes) {
  constexpr int kThreads = 128;
  const int packets = static_cast<int>(bytes / sizeof(uint4));
  std::vector<uint4*> memory(ranks.size());
  for (int r = 0; r < ranks.size(); ++r) {
    ranks[r].MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaMalloc(&memory[r], 2 * bytes));
    ONESHOT_CHECK_CUDA(cudaMemset(memory[r], 0, 2 * bytes));
    ONESHOT_CHECK_CUDA(cudaDeviceSynchronize());
  }
  const double time = Measure(ranks, [&](const VirtualRank& rank) {
    uint4* x = memory[rank.view.rank];
    const int blocks = (packets + kThreads - 1) / kThreads;
    Copy<<<blocks, kThreads, 0, rank.stream>>>(x, x + packets, packets);
    ONESHOT_CHECK_CUDA(cudaGetLastError());
  });
  for (int r = 0; r < ranks.size(); ++r) {
    ranks[r].MakeCurrent();
    ONESHOT_CHECK_CUDA(cudaFree(memory[r]));
  }
  return time;
}

// The plans of every tuning that fits and is not wasteful: blocks of a power of
// two, and those that a row fills. A row has so many packets; where all rows
// are one, it has all of them.
std::vector<LaunchPlan> AllPlans(const EpilogueProgram& program, int rows,
                                 int hidden, int ranks,
                                 const DeviceLimits& limits,
                                 int packets_per_row) {
  std::vector<LaunchPlan> plans;
  for (int cluster = 1; cluster <= limits.max_cluster; ++cluster) {
    for (const int packets : {1, 2, 4}) {
      const int shared = 32 * packets * cluster;
      // Clusters of other sizes are for the rows that fill them.
      const bool is_power_of_two = (cluster & (cluster - 1)) == 0;
      if (!is_power_of_two && packets_per_row % shared != 0) continue;
      const int fitting = (packets_per_row + shared - 1) / shared * 32;
      for (const int threads :
           std::set<int>{64, 128, 256, 512, 1024, fitting}) {
        // Twice the threads that a row has work for.
        if (threads * packets * cluster >= 2 * packets_per_row) continue;
        for (const bool two_shot : {false, true}) {
          if (two_shot && ranks == 2) continue;  // sends as much, a trip later
          const std::optional<LaunchPlan> plan =
              PlanLaunch(program, rows, hidden, ranks, limits,
                         Tuning{threads, packets, cluster, two_shot});
          if (plan) plans.push_back(*plan);
        }
      }
    }
  }
  return plans;
}

// Side by side, as each takes a fraction of a second.
std::vector<const Kernel*> CompileAll(const EpilogueProgram& program,
                                      const std::vector<LaunchPlan>& plans,
                                      const VirtualRanks& ranks) {
  std::vector<std::future<const Kernel*>> futures;
  for (const LaunchPlan& plan : plans) {
    futures.push_back(std::async(std::launch::async, [&] {
      std::string error;
      const Kernel* kernel =
          FindOrCompileKernel(program, plan, ranks.size(), /*aligned=*/true,
                              ranks[0].traits, &error);
      if (kernel == nullptr) {
        std::fprintf(stderr, "%s\n", error.c_str());
        std::exit(1);
      }
      return kernel;
    }));
  }
  std::vector<const Kernel*> kernels;
  for (auto& future : futures) {
    kernels.push_back(future.get());
    for (int r = 0; r < ranks.size(); ++r) {
      ranks[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(LoadKernel(*kernels.back()));
    }
  }
  return kernels;
}

std::string Launch(const VirtualRanks& ranks, const LaunchPlan& plan) {
  char text[64];
  std::snprintf(text, sizeof(text), "launch alone %.2f us",
                MeasureLaunch(ranks, plan.blocks, plan.tuning.threads,
                              plan.tuning.cluster));
  return text;
}

void Run(const std::vector<int>& devices, const std::vector<int>& row_counts,
         const std::vector<int>& hiddens, const Element& element, bool tune,
         bool cold, const std::string& only) {
  const VirtualRanks ranks(static_cast<int>(devices.size()), devices,
                           /*first_epoch=*/0);
  cudaDeviceProp properties;
  ONESHOT_CHECK_CUDA(cudaGetDeviceProperties(&properties, ranks[0].device));
  std::printf("on %zu x %s, %d multiprocessors, clusters of %d\n",
              devices.size(), properties.name,
              ranks[0].traits.limits.multiprocessors,
              ranks[0].traits.limits.max_cluster);
  std::printf("ranks=%d empty kernel: %.2f us\n", ranks.size(),
              MeasureLaunch(ranks, /*blocks=*/1, /*threads=*/32, 1));
  std::printf("ranks=%d trip of a packet: %.2f us\n", ranks.size(),
              MeasureTrip(ranks[0], ranks[1]));
  for (const int hidden : hiddens) {
    for (const int rows : row_counts) {
      const size_t bytes = size_t{1} * element.bytes * rows * hidden;
      std::printf("ranks=%d [%d,%d] %s copy: %.2f us\n", ranks.size(), rows,
                  hidden, element.name, MeasureCopy(ranks, bytes));
      const std::optional<Cooler> cool =
          cold ? std::make_optional<Cooler>(ranks, bytes) : std::nullopt;
      for (const Case& timed : Cases()) {
        if (!only.empty() && timed.name != only) continue;
        const EpilogueProgram program = ProgramOf(timed, hidden, element);
        const DeviceLimits& limits = ranks[0].traits.limits;
        const std::optional<LaunchPlan> used =
            PlanLaunch(program, rows, hidden, ranks.size(), limits);
        if (!used) {
          std::printf("ranks=%d [%d,%d] %s %s: does not fit\n", ranks.size(),
                      rows, hidden, element.name, timed.name.c_str());
          continue;
        }
        std::vector<RankBuffers> buffers(ranks.size());
        for (int r = 0; r < ranks.size(); ++r) {
          ranks[r].MakeCurrent();
          buffers[r] = Allocate(program, bytes);
        }
        const auto cool_down = [&](const VirtualRank& rank) {
          if (cool) (*cool)(rank, buffers[rank.view.rank].call.x);
        };
        const int launches = cool ? 2 : kLaunches;
        const double between = cool ? Measure(ranks, cool_down, launches) : 0;
        const std::vector<LaunchPlan> plans =
            tune ? AllPlans(program, rows, hidden, ranks.size(), limits,
                            used->packets_per_row)
                 : std::vector<LaunchPlan>{*used};
        for (const Kernel* kernel : CompileAll(program, plans, ranks)) {
          const double time = Measure(
              ranks,
              [&](const VirtualRank& rank) {
                cool_down(rank);
                ONESHOT_CHECK_CUDA(LaunchAllReduce(*kernel,
                                                   buffers[rank.view.rank].call,
                                                   rank.view, 0, rank.stream));
              },
              launches, tune ? kTuneSamples : kSamples);
          const LaunchPlan& plan = kernel->plan;
          std::printf(
              "ranks=%d [%d,%d] %s %s: %.2f us, %s  (%d blocks of %d, %d "
              "packets a thread, clusters of %d, %s)\n",
              ranks.size(), rows, hidden, element.name, timed.name.c_str(),
              time - between,
              tune ? (plan.tuning == used->tuning ? "in use" : "tried")
                   : Launch(ranks, plan).c_str(),
              plan.blocks, plan.tuning.threads, plan.tuning.packets,
              plan.tuning.cluster,
              plan.tuning.two_shot ? "two shots" : "one shot");
          std::fflush(stdout);
        }
        for (int r = 0; r < ranks.size(); ++r) {
          ranks[r].MakeCurrent();
          ONESHOT_CHECK_CUDA(cudaFree(buffers[r].memory));
        }
      }
    }
  }
}

}  // namespace
}  // namespace oneshot

int main(int argc, char** argv) {
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/1);
  std::vector<int> devices = {0, 1};
  std::vector<int> rows = {1, 8, 32, 64, 128};
  std::vector<int> hidden = {8192};
  const oneshot::Element* element = oneshot::kElements;
  bool tune = false;
  bool cold = false;
  std::string only;
  bool right = true;
  for (int i = 1; i < argc; ++i) {
    const bool has_value = i + 1 < argc;
    if (std::strcmp(argv[i], "--devices") == 0 && has_value) {
      devices = oneshot::ParseList(argv[++i]);
    } else if (std::strcmp(argv[i], "--rows") == 0 && has_value) {
      rows = oneshot::ParseList(argv[++i]);
    } else if (std::strcmp(argv[i], "--hidden") == 0 && has_value) {
      hidden = oneshot::ParseList(argv[++i]);
    } else if (std::strcmp(argv[i], "--dtype") == 0 && has_value) {
      const std::string name = argv[++i];
      element = std::find_if(
          std::begin(oneshot::kElements), std::end(oneshot::kElements),
          [&](const oneshot::Element& e) { return e.name == name; });
      right = right && element != std::end(oneshot::kElements);
    } else if (std::strcmp(argv[i], "--nvrtc") == 0 && has_value) {
      oneshot::SetNvrtcPath(argv[++i]);
    } else if (std::strcmp(argv[i], "--tune") == 0) {
      tune = true;
    } else if (std::strcmp(argv[i], "--cold") == 0) {
      cold = true;
    } else if (std::strcmp(argv[i], "--only") == 0 && has_value) {
      only = argv[++i];
      const std::vector<oneshot::Case> cases = oneshot::Cases();
      right = right && std::any_of(cases.begin(), cases.end(),
                                   [&](const oneshot::Case& c) {
                                     return c.name == only;
                                   });
    } else {
      right = false;
    }
  }
  if (!right) {
    std::fprintf(stderr,
                 "usage: %s [--devices 0,1] [--rows 1,8] [--hidden 8192] "
                 "[--dtype bf16|f16|f32] [--nvrtc DIR] [--tune] [--cold] "
                 "[--only NAME]\nnames:\n",
                 argv[0]);
    for (const oneshot::Case& timed : oneshot::Cases()) {
      std::fprintf(stderr, "  %s\n", timed.name.c_str());
    }
    return 2;
  }
  if (!oneshot::EnablePeerAccess(devices)) {
    std::fprintf(stderr, "the devices cannot access each other\n");
    return 2;
  }
  oneshot::Run(devices, rows, hidden, *element, tune, cold, only);
  return 0;
}
