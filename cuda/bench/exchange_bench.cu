// SPDX-License-Identifier: Apache-2.0
//
// Ways to move a message to a peer and to know that it is there.
//
//   exchange_bench [--devices 0,1] [--kib 16,128,512,2048]
//
// Two ranks send each other a message and write what has arrived to a result,
// once per node of a CUDA graph. Prints one line per way: the median over the
// samples of the slower rank's time per call, with the block size that is best
// for it. What has arrived is compared with what was sent.
//
// These are the exchange of the kernel in cuda/kernel/device, without an
// epilogue, and the exchanges that it could have had instead. In all but the
// "counted" ones the kernel is told its epoch by a word that a kernel of its
// own advances, once a graph.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/bench/graph_timer.h"
#include "cuda/bench/system_access.cuh"
#include "cuda/device_tests/virtual_ranks.h"
#include "cuda/program/call_contract.h"

namespace oneshot {
namespace {

constexpr int kWarp = 32;
constexpr int kLargestBlock = 1024;

// Each on a cache line of its own, as in cuda/kernel/device/arguments.h.
struct Words {
  alignas(128) uint32_t graphs;  // so far
  alignas(128) uint32_t epoch;   // for "counted by the grid"
  alignas(128) uint32_t arrived;
};

// What one rank's kernel works on. An inbox has two slots, each with room for
// twice the message.
struct Exchange {
  const uint4* x;
  uint4* out;
  const uint4* peer_x;
  uint4* inbox;
  uint4* peer_inbox;
  uint32_t* flags;  // one for each warp, and as many again
  uint32_t* peer_flags;
  uint32_t* counts;  // one for each packet
  Words* words;
  int packets;

  __device__ uint4* Slot(uint4* of, uint32_t epoch) const {
    return of + epoch % 2 * 2 * packets;
  }
  __device__ uint32_t* Second(uint32_t* of) const {
    return of + (packets + kWarp - 1) / kWarp;
  }
};

// Sets a flag of the peer, and waits until the own one is that of this epoch or
// of the next: a peer may be one ahead.
__device__ __forceinline__ void Meet(uint32_t* theirs, const uint32_t* mine,
                                     uint32_t epoch) {
  asm volatile("st.release.sys.global.u32 [%0], %1;"
               :
               : "l"(theirs), "r"(epoch)
               : "memory");
  uint32_t seen;
  do {
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];"
                 : "=r"(seen)
                 : "l"(mine)
                 : "memory");
  } while (static_cast<int32_t>(seen - epoch) < 0);
}

__device__ __forceinline__ int Packet() {
  return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

// What is sent is different in every epoch, so that old data is noticed, and
// never the sentinel.
__device__ __forceinline__ uint4 Marked(uint4 packet, uint32_t epoch) {
  packet.x ^= epoch & 0x7FFFFFFFu;
  return packet;
}

// Sends a packet of x.
__device__ __forceinline__ void Send(const Exchange& a, uint32_t epoch,
                                     int packet, uint4 x) {
  StoreSystem(a.Slot(a.peer_inbox, epoch) + packet, Marked(x, epoch));
}

// Waits for a packet, takes it and clears its place.
__device__ __forceinline__ void Receive(const Exchange& a, uint32_t epoch,
                                        int packet) {
  uint4* place = a.Slot(a.inbox, epoch) + packet;
  uint4 came;
  do {
    came = LoadSystem(place);
  } while (came.x == kSentinel || came.y == kSentinel || came.z == kSentinel ||
           came.w == kSentinel);
  a.out[packet] = Marked(came, epoch);
  StoreSystem(place, make_uint4(kSentinel, kSentinel, kSentinel, kSentinel));
}

// The same where flags say what has come.
__device__ __forceinline__ void SendPlain(const Exchange& a, uint32_t epoch,
                                          int packet) {
  if (packet >= a.packets) return;
  a.Slot(a.peer_inbox, epoch)[packet] = Marked(a.x[packet], epoch);
}

__device__ __forceinline__ void ReceivePlain(const Exchange& a, uint32_t epoch,
                                             int packet) {
  if (packet >= a.packets) return;
  a.out[packet] = Marked(a.Slot(a.inbox, epoch)[packet], epoch);
}

// No exchange: reads x and writes it.
struct Nothing {
  __device__ static void Run(const Exchange& a, uint32_t epoch) {
    const int packet = Packet();
    if (packet < a.packets) {
      a.out[packet] = Marked(Marked(a.x[packet], epoch), epoch);
    }
  }
};

// Data and flag in the same word, as in the product.
struct Packets {
  __device__ static void Run(const Exchange& a, uint32_t epoch) {
    const int packet = Packet();
    if (packet >= a.packets) return;
    Send(a, epoch, packet, a.x[packet]);
    Receive(a, epoch, packet);
  }
};

// The same, and the grid itself counts the epochs, as the product does.
struct PacketsCountedByGrid {
  __device__ static void Run(const Exchange& a, uint32_t /*of graph*/) {
    const int packet = Packet();
    const uint4 x = packet < a.packets ? a.x[packet] : uint4{};
    const uint32_t epoch = *const_cast<volatile uint32_t*>(&a.words->epoch);
    if (packet < a.packets) Send(a, epoch, packet, x);
    __syncthreads();
    uint32_t before = 0;
    if (threadIdx.x == 0) {
      asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;"
                   : "=r"(before)
                   : "l"(&a.words->arrived), "r"(gridDim.x - 1)
                   : "memory");
    }
    if (packet < a.packets) Receive(a, epoch, packet);
    asm volatile("" : "+r"(before));
    if (threadIdx.x == 0 && before == gridDim.x - 1) {
      a.words->epoch = epoch + 1;
    }
  }
};

// The same, and every packet has a count of its own.
struct PacketsCountedByPacket {
  __device__ static void Run(const Exchange& a, uint32_t /*of graph*/) {
    const int packet = Packet();
    if (packet >= a.packets) return;
    const uint4 x = a.x[packet];
    const uint32_t epoch = *const_cast<volatile uint32_t*>(&a.counts[packet]);
    Send(a, epoch, packet, x);
    a.counts[packet] = epoch + 1;
    Receive(a, epoch, packet);
  }
};

// Eight bytes of data to a packet, and in the other eight a flag for each word.
// Nothing has to be cleared.
struct HalfPackets {
  __device__ static void Run(const Exchange& a, uint32_t epoch) {
    const int packet = Packet();
    if (packet >= a.packets) return;
    const uint4 x = Marked(a.x[packet], epoch);
    const uint32_t flag = epoch & 0x7FFFFFFFu;
    uint4* target = a.Slot(a.peer_inbox, epoch) + packet;
    StoreSystem(target, make_uint4(x.x, flag, x.y, flag));
    StoreSystem(target + a.packets, make_uint4(x.z, flag, x.w, flag));
    const uint4* place = a.Slot(a.inbox, epoch) + packet;
    uint4 low, high;
    do {
      low = LoadSystem(place);
      high = LoadSystem(place + a.packets);
    } while (low.y != flag || low.w != flag || high.y != flag ||
             high.w != flag);
    a.out[packet] = Marked(make_uint4(low.x, low.z, high.x, high.z), epoch);
  }
};

// Data, and behind it a flag of each block.
struct BlockFlags {
  __device__ static void Run(const Exchange& a, uint32_t epoch) {
    const int packet = Packet();
    SendPlain(a, epoch, packet);
    __syncthreads();
    if (threadIdx.x == 0) {
      Meet(&a.peer_flags[blockIdx.x], &a.flags[blockIdx.x], epoch);
    }
    __syncthreads();
    ReceivePlain(a, epoch, packet);
  }
};

// Data, and behind it a flag of each warp.
struct WarpFlags {
  __device__ static void Run(const Exchange& a, uint32_t epoch) {
    const int packet = Packet();
    SendPlain(a, epoch, packet);
    __syncwarp();
    if (threadIdx.x % kWarp == 0 && packet < a.packets) {
      Meet(&a.peer_flags[packet / kWarp], &a.flags[packet / kWarp], epoch);
    }
    __syncwarp();
    ReceivePlain(a, epoch, packet);
  }
};

// Sends the block's packets by one bulk copy out of shared memory.
struct Bulk {
  __device__ static void Send(const Exchange& a, uint32_t epoch) {
#if __CUDA_ARCH__ >= 900
    __shared__ alignas(128) uint4 staged[kLargestBlock];
    const int packet = Packet();
    if (packet < a.packets) staged[threadIdx.x] = Marked(a.x[packet], epoch);
    asm volatile("fence.proxy.async.shared::cta;" : : : "memory");
    __syncthreads();
    if (threadIdx.x == 0 && packet < a.packets) {
      const int count = min(static_cast<int>(blockDim.x), a.packets - packet);
      asm volatile(
          "cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
          "cp.async.bulk.commit_group;"
          :
          : "l"(a.Slot(a.peer_inbox, epoch) + packet),
            "r"(static_cast<uint32_t>(__cvta_generic_to_shared(staged))),
            "r"(count * kPacketBytes)
          : "memory");
    }
#endif
  }
};

struct BulkPackets {
  __device__ static void Run(const Exchange& a, uint32_t epoch) {
    Bulk::Send(a, epoch);
    const int packet = Packet();
    if (packet < a.packets) Receive(a, epoch, packet);
#if __CUDA_ARCH__ >= 900
    // Until then the copy reads the shared memory.
    if (threadIdx.x == 0) {
      asm volatile("cp.async.bulk.wait_group.read 0;" : : : "memory");
    }
#endif
  }
};

struct BulkFlags {
  __device__ static void Run(const Exchange& a, uint32_t epoch) {
    Bulk::Send(a, epoch);
    if (threadIdx.x == 0) {
#if __CUDA_ARCH__ >= 900
      asm volatile(
          "cp.async.bulk.wait_group 0;"
          "fence.proxy.async.global;"
          :
          :
          : "memory");
#endif
      Meet(&a.peer_flags[blockIdx.x], &a.flags[blockIdx.x], epoch);
    }
    __syncthreads();
    ReceivePlain(a, epoch, Packet());
  }
};

// Says that x is there, and reads the peer's. At the end it waits until the
// peer has read.
struct Pull {
  __device__ static void Run(const Exchange& a, uint32_t epoch) {
    if (threadIdx.x == 0) {
      Meet(&a.peer_flags[blockIdx.x], &a.flags[blockIdx.x], epoch);
    }
    __syncthreads();
    const int packet = Packet();
    if (packet < a.packets) a.out[packet] = LoadSystem(a.peer_x + packet);
    __syncthreads();
    if (threadIdx.x == 0) {
      Meet(&a.Second(a.peer_flags)[blockIdx.x], &a.Second(a.flags)[blockIdx.x],
           epoch);
    }
  }
};

template <typename Way>
__global__ void __launch_bounds__(kLargestBlock)
    RunWay(const __grid_constant__ Exchange exchange, uint32_t node) {
  const uint32_t graphs =
      *const_cast<volatile uint32_t*>(&exchange.words->graphs);
  Way::Run(exchange, graphs * kNodes + node);
}

__global__ void Advance(Words* words) { ++words->graphs; }

using Kernel = void (*)(Exchange, uint32_t);

struct Way {
  const char* name;
  Kernel kernel;
  bool sends = true;
  int min_compute_capability = 80;
};

const Way kWays[] = {
    {"nothing sent", RunWay<Nothing>, /*sends=*/false},
    {"packets", RunWay<Packets>},
    {"packets, counted by the grid", RunWay<PacketsCountedByGrid>},
    {"packets, counted by packet", RunWay<PacketsCountedByPacket>},
    {"packets of which half is flags", RunWay<HalfPackets>},
    {"a flag for each block", RunWay<BlockFlags>},
    {"a flag for each warp", RunWay<WarpFlags>},
    {"packets, by bulk copies", RunWay<BulkPackets>, true, 90},
    {"a flag for each bulk copy", RunWay<BulkFlags>, true, 90},
    {"read from the peer", RunWay<Pull>},
};

// The memory of both ranks, for messages of so many packets.
class Memory {
 public:
  Memory(const VirtualRanks& ranks, int packets)
      : ranks_(ranks), packets_(packets) {
    for (int r = 0; r < 2; ++r) {
      ranks[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(cudaMalloc(&x_[r], bytes_));
      ONESHOT_CHECK_CUDA(cudaMalloc(&out_[r], bytes_));
      ONESHOT_CHECK_CUDA(cudaMalloc(&inbox_[r], 4 * bytes_));
      ONESHOT_CHECK_CUDA(cudaMalloc(&flags_[r], flag_bytes_));
      ONESHOT_CHECK_CUDA(cudaMalloc(&counts_[r], count_bytes_));
      ONESHOT_CHECK_CUDA(cudaMalloc(&words_[r], sizeof(Words)));
      sent_[r].resize(bytes_ / sizeof(uint32_t));
      uint32_t random = 1 + r;
      for (uint32_t& word : sent_[r]) {
        random = random * 1664525 + 1013904223;
        word = random >> 1;
      }
      ONESHOT_CHECK_CUDA(
          cudaMemcpy(x_[r], sent_[r].data(), bytes_, cudaMemcpyHostToDevice));
    }
  }
  ~Memory() {
    for (int r = 0; r < 2; ++r) {
      for (void* memory :
           {static_cast<void*>(x_[r]), static_cast<void*>(out_[r]),
            static_cast<void*>(inbox_[r]), static_cast<void*>(flags_[r]),
            static_cast<void*>(counts_[r]), static_cast<void*>(words_[r])}) {
        cudaFree(memory);
      }
    }
  }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  // As before the first launch of a way.
  void Reset() const {
    for (int r = 0; r < 2; ++r) {
      ranks_[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(cudaMemset(out_[r], 0, bytes_));
      ONESHOT_CHECK_CUDA(cudaMemset(inbox_[r], 0xFF, 4 * bytes_));
      ONESHOT_CHECK_CUDA(cudaMemset(flags_[r], 0, flag_bytes_));
      ONESHOT_CHECK_CUDA(cudaMemset(counts_[r], 0, count_bytes_));
      ONESHOT_CHECK_CUDA(cudaMemset(words_[r], 0, sizeof(Words)));
      ONESHOT_CHECK_CUDA(cudaDeviceSynchronize());
    }
  }

  Exchange Of(int rank) const {
    const int peer = 1 - rank;
    return {x_[rank],     out_[rank],   x_[peer],     inbox_[rank],
            inbox_[peer], flags_[rank], flags_[peer], counts_[rank],
            words_[rank], packets_};
  }

  // Whether every rank has what it was sent.
  bool IsRight(bool sends) const {
    for (int r = 0; r < 2; ++r) {
      std::vector<uint32_t> got(sent_[r].size());
      ranks_[r].MakeCurrent();
      ONESHOT_CHECK_CUDA(cudaMemcpy(got.data(), out_[r],
                                    got.size() * sizeof(uint32_t),
                                    cudaMemcpyDeviceToHost));
      if (got != sent_[sends ? 1 - r : r]) return false;
    }
    return true;
  }

 private:
  const VirtualRanks& ranks_;
  const int packets_;
  const size_t bytes_ = size_t{kPacketBytes} * packets_;
  const size_t flag_bytes_ =
      2 * ((packets_ + kWarp - 1) / kWarp) * sizeof(uint32_t);
  const size_t count_bytes_ = sizeof(uint32_t) * packets_;
  std::vector<uint32_t> sent_[2];  // by rank, as is all else
  uint4* x_[2] = {};
  uint4* out_[2] = {};
  uint4* inbox_[2] = {};
  uint32_t* flags_[2] = {};
  uint32_t* counts_[2] = {};
  Words* words_[2] = {};
};

// False when a way has brought something else than what was sent.
bool Run(const std::vector<int>& devices, const std::vector<int>& kib) {
  const VirtualRanks ranks(2, devices, /*first_epoch=*/0);
  cudaDeviceProp properties;
  ONESHOT_CHECK_CUDA(cudaGetDeviceProperties(&properties, ranks[0].device));
  std::printf("on %zu x %s\n", devices.size(), properties.name);
  bool right = true;
  for (const int size : kib) {
    const int packets = size * 1024 / kPacketBytes;
    const Memory memory(ranks, packets);
    for (const Way& way : kWays) {
      if (ranks[0].traits.compute_capability < way.min_compute_capability) {
        continue;
      }
      double best = 0;
      int best_threads = 0;
      for (const int threads : {128, 256, 512, kLargestBlock}) {
        memory.Reset();
        uint32_t nodes[2] = {};
        const double time = Measure(ranks, [&](const VirtualRank& rank) {
          const int r = rank.view.rank;
          const Exchange exchange = memory.Of(r);
          if (nodes[r] == 0) {
            Advance<<<1, 1, 0, rank.stream>>>(exchange.words);
            ONESHOT_CHECK_CUDA(cudaGetLastError());
          }
          way.kernel<<<(packets + threads - 1) / threads, threads, 0,
                       rank.stream>>>(exchange, nodes[r]++);
          ONESHOT_CHECK_CUDA(cudaGetLastError());
        });
        if (!memory.IsRight(way.sends)) {
          std::printf("[%d KiB] %s, blocks of %d: WRONG\n", size, way.name,
                      threads);
          right = false;
        }
        if (best_threads == 0 || time < best) {
          best = time;
          best_threads = threads;
        }
      }
      std::printf("[%d KiB] %s: %.2f us  (blocks of %d)\n", size, way.name,
                  best, best_threads);
      std::fflush(stdout);
    }
  }
  return right;
}

}  // namespace
}  // namespace oneshot

int main(int argc, char** argv) {
  setenv("CUDA_MODULE_LOADING", "EAGER", /*overwrite=*/1);
  std::vector<int> devices = {0, 1};
  std::vector<int> kib = {16, 128, 512, 2048};
  for (int i = 1; i < argc; ++i) {
    const bool has_value = i + 1 < argc;
    if (std::strcmp(argv[i], "--devices") == 0 && has_value) {
      devices = oneshot::ParseList(argv[++i]);
    } else if (std::strcmp(argv[i], "--kib") == 0 && has_value) {
      kib = oneshot::ParseList(argv[++i]);
    } else {
      std::fprintf(stderr,
                   "usage: %s [--devices 0,1] [--kib 16,128,512,2048]\n",
                   argv[0]);
      return 2;
    }
  }
  if (!oneshot::EnablePeerAccess(devices)) {
    std::fprintf(stderr, "the devices cannot access each other\n");
    return 2;
  }
  return oneshot::Run(devices, kib) ? 0 : 1;
}
