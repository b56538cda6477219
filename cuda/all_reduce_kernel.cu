// SPDX-License-Identifier: Apache-2.0
//
// Protocol
//
// Every rank has an inbox with two slots of one message from each rank. Launch
// number e, the epoch, uses slot e % 2. A word that nobody has written holds
// the sentinel.
//
//   push   A rank writes its x to its place in the slot of every peer.
//   wait   It reads its own inbox until no word of the packet it is interested
//          in is the sentinel. Data and flag are the same word, so the arrival
//          of a packet costs one trip across the link and no ordering.
//   clear  The thread that read a packet writes the sentinel back.
//
// Writers and readers. A word of an inbox is written by one thread of one peer
// (push) and read and cleared by one thread of the owner. All accesses are
// relaxed at system scope.
//
// Two slots suffice, and there is no ABA. A rank pushes in epoch e + 2 after
// its kernel of epoch e + 1 ended, hence after it had read packets that every
// peer pushed in epoch e + 1, hence after every peer had ended its kernel of
// epoch e, clears included. So at the time of a push the slot is clear, and no
// peer's reader of an older epoch is left. The chain runs over kernel
// boundaries on one stream, which order memory, and over relaxed words: the
// clear is complete in the memory of the owner before the owner's next kernel
// begins, and the push that depends on that kernel is served by the same
// memory, later.
//
// The reader clears what it read, so that nothing about the shape of earlier
// launches is remembered: any sequence of shapes may share a workspace.
//
// Graph replay. The epoch lives in device memory and the kernel itself advances
// it. Every block reads it, then counts itself in; the last to do so knows that
// all have read it, resets the count and stores the next epoch.
//
// No deadlock when only a part of a grid is resident. Blocks are dispatched in
// order of their index and a block pushes everything it has to push before it
// waits for anything. A block waits only for what blocks of its own index or,
// where the grids differ, blocks with the same tiles push, and these never wait
// before they have pushed: so the waiting block of lowest index on any rank is
// always served. This needs a device per rank: ranks that share a device, as in
// tests, need all their blocks resident together.
//
// Determinism. The sum runs over the ranks in order on all of them, and a row's
// sum of squares has an order that depends on the length of the row alone, so
// all ranks compute the same bits.
#include "cuda/all_reduce_kernel.h"
#include "cuda/packet.cuh"

namespace oneshot {
namespace {

struct KernelArguments {
  LaunchPlan plan;
  Epilogue epilogue;
  Buffers buffers;
  WorkspaceView workspace;
};

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

// The place of one packet.
struct Place {
  int wire;    // packet of the message
  int column;  // first element of the packet within its row
  int index;   // the same within the whole array
  int count;   // elements of the packet; 0: the thread has none here
};

template <int kElements, int kPackets>
__device__ __forceinline__ Place Locate(const LaunchPlan& plan, int tile,
                                        int p) {
  // Usually a row is one tile; a division is slow where every cycle counts.
  const int row = plan.tiles_per_row == 1 ? tile : tile / plan.tiles_per_row;
  const int tile_in_row = tile - row * plan.tiles_per_row;
  const int packet = (tile_in_row * kPackets + p) * plan.threads +
                     static_cast<int>(threadIdx.x);
  Place place;
  place.wire = row * plan.packets_per_row + packet;
  place.column = packet * kElements;
  place.index = row * plan.hidden + place.column;
  place.count = packet < plan.packets_per_row
                    ? min(kElements, plan.hidden - place.column)
                    : 0;
  return place;
}

// What one packet needs of this device's memory, apart from the gain.
template <int kElements>
struct Operands {
  uint4 x;
  Raw<kElements> addends[kMaxAddends];
};

template <int kElements, bool kWide>
__device__ __forceinline__ uint4 LoadX(const KernelArguments& args,
                                       const Place& place) {
  // The width of the type is known here, and all that matters for a load.
  constexpr DType kWidth = kElements == 4 ? DType::kF32 : DType::kBf16;
  return ToPacket(LoadRaw<kElements, kWide>(args.buffers.x, kWidth, place.index,
                                            place.count));
}

template <int kElements, bool kWide>
__device__ __forceinline__ Operands<kElements> LoadOperands(
    const KernelArguments& args, const Place& place) {
  Operands<kElements> operands;
  operands.x = LoadX<kElements, kWide>(args, place);
#pragma unroll
  for (int a = 0; a < kMaxAddends; ++a) {
    if (a >= args.epilogue.num_addends) break;
    const Addend& addend = args.epilogue.addends[a];
    operands.addends[a] = LoadRaw<kElements, kWide>(
        args.buffers.addends[a], addend.dtype,
        addend.per_row ? place.index : place.column, place.count);
  }
  return operands;
}

template <int kElements, bool kWide>
__device__ __forceinline__ Raw<kElements> LoadGain(const KernelArguments& args,
                                                   const Place& place) {
  return LoadRaw<kElements, kWide>(args.buffers.gain, args.epilogue.gain_dtype,
                                   place.column, place.count);
}

// Waits for the packets of all peers and clears their places. Returns the sum
// over ranks, rounded. Ranks are taken kBatch at a time, as registers permit.
template <int kElements, int kRanks, int kBatch>
__device__ __forceinline__ void ReduceRanks(const KernelArguments& args,
                                            uint32_t epoch, const Place& place,
                                            uint4 own, float (&h)[kElements]) {
  const int ranks = kRanks == 2 ? 2 : args.workspace.ranks;
  const int rank = args.workspace.rank;
  uint4* inbox = static_cast<uint4*>(args.workspace.inboxes[rank]) +
                 (epoch % 2) * ranks * kPacketsPerMessage + place.wire;
  const unsigned peers = ((1u << ranks) - 1) & ~(1u << rank);

  // The neutral element of addition is -0, not 0: -0 + -0 must stay -0.
#pragma unroll
  for (int i = 0; i < kElements; ++i) h[i] = -0.0f;

#pragma unroll
  for (int first = 0; first < kRanks; first += kBatch) {
    uint4 packets[kBatch];
#pragma unroll
    for (int r = 0; r < kBatch; ++r) packets[r] = own;

    // One bit for every packet that is still to come. All are asked for at
    // once; those that arrived are not asked for again, to leave the L2 to the
    // others.
    unsigned pending = peers >> first & ((1u << kBatch) - 1);
    while (pending != 0) {
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        if (pending >> r & 1) {
          packets[r] = LoadSystem(inbox + (first + r) * kPacketsPerMessage);
        }
      }
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        if ((pending >> r & 1) && !HasSentinel(packets[r])) {
          pending &= ~(1u << r);
          StoreSystem(inbox + (first + r) * kPacketsPerMessage,
                      make_uint4(kSentinel, kSentinel, kSentinel, kSentinel));
        }
      }
    }

#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      if (first + r >= ranks) break;
      float values[kElements];
      DecodePacket(packets[r], args.epilogue.x_dtype, values);
#pragma unroll
      for (int i = 0; i < kElements; ++i) h[i] += values[i];
    }
  }
  Round(h, args.epilogue.sum_round);
}

template <int kElements>
__device__ __forceinline__ void AddAll(const Epilogue& epilogue,
                                       const Operands<kElements>& operands,
                                       float (&h)[kElements]) {
#pragma unroll
  for (int a = 0; a < kMaxAddends; ++a) {
    if (a >= epilogue.num_addends) break;
    float values[kElements];
    Decode(operands.addends[a], epilogue.addends[a].dtype, values);
#pragma unroll
    for (int i = 0; i < kElements; ++i) h[i] += values[i];
    Round(h, epilogue.addends[a].round);
  }
}

__device__ __forceinline__ float SumOverWarp(float value) {
#pragma unroll
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, mask);
  }
  return value;
}

// The sum over the block, the same in every thread. `partial` must not be one
// that the previous call used: a slow warp may still read that one.
__device__ __forceinline__ float SumOverBlock(float value,
                                              float (&partial)[kWarp]) {
  const int lane = threadIdx.x % kWarp;
  const int warps = blockDim.x / kWarp;
  value = SumOverWarp(value);
  if (lane == 0) partial[threadIdx.x / kWarp] = value;
  __syncthreads();
  return SumOverWarp(lane < warps ? partial[lane] : 0.0f);
}

// kElements: of the wire type to a packet. kRanks: the largest group. kPackets:
// of a tile to a thread. kWide: every packet is full and every access aligned.
template <int kElements, int kRanks, int kPackets, bool kWide>
__global__ void __launch_bounds__(kMaxThreads)
    AllReduceKernel(const __grid_constant__ KernelArguments args) {
  const LaunchPlan& plan = args.plan;
  const Epilogue& epilogue = args.epilogue;
  const WorkspaceView& workspace = args.workspace;
  const int ranks = kRanks == 2 ? 2 : workspace.ranks;
  const int tiles = plan.rows * plan.tiles_per_row;

  // A thread with a single packet to a tile asks for all that the first tile
  // needs from this device before its first wait of any kind. With more it has
  // no registers for that: these operands are asked for packet by packet.
  constexpr bool kHoldOperands = kPackets == 1;
  constexpr bool kHoldGain = kPackets == 1 && kRanks < 8;
  constexpr int kBatch = kPackets > 1 || kRanks < 4 ? 2 : 4;

  const uint32_t epoch = LoadNow32(&workspace.control->epoch);
  Operands<kElements> operands;
  if (kHoldOperands) {
    operands = LoadOperands<kElements, kWide>(
        args, Locate<kElements, kPackets>(plan, blockIdx.x, 0));
  }
  // With a norm a tile is a row: the gains are the same for every tile.
  Raw<kElements> gain;
  if (epilogue.has_gain) {
#pragma unroll
    for (int p = 0; p < kPackets; ++p) {
      const Place place = Locate<kElements, kPackets>(plan, blockIdx.x, p);
      if (kHoldGain) {
        gain = LoadGain<kElements, kWide>(args, place);
      } else if (place.count != 0) {
        PrefetchToL2(static_cast<const char*>(args.buffers.gain) +
                     place.column * ByteWidth(epilogue.gain_dtype));
      }
    }
  }

  const int64_t outbox =
      (static_cast<int64_t>(epoch % 2) * ranks + workspace.rank) *
      kPacketsPerMessage;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
#pragma unroll
    for (int p = 0; p < kPackets; ++p) {
      const Place place = Locate<kElements, kPackets>(plan, tile, p);
      if (place.count == 0) continue;
      const bool held = kHoldOperands && tile == blockIdx.x;
      const uint4 packet = WithoutSentinel<kElements>(
          held ? operands.x : LoadX<kElements, kWide>(args, place));
#pragma unroll
      for (int r = 0; r < kRanks; ++r) {
        if (r < ranks && r != workspace.rank) {
          StoreSystem(
              static_cast<uint4*>(workspace.inboxes[r]) + outbox + place.wire,
              packet);
        }
      }
    }
  }

  // The addresses above depend on the epoch, so every thread that uses it has
  // it in a register by now and the block may say so. Relaxed is enough: the
  // word that the last arrival allows to be overwritten is not read again by
  // this launch. Early, because the answer takes as long as a peer's packet.
  __syncthreads();
  unsigned arrival = 0;
  if (threadIdx.x == 0) arrival = atomicAdd(&workspace.control->arrived, 1u);

  __shared__ float partial[2][kWarp];
  int parity = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    float h[kPackets][kElements] = {};
    float squares = 0;
#pragma unroll
    for (int p = 0; p < kPackets; ++p) {
      const Place place = Locate<kElements, kPackets>(plan, tile, p);
      if (place.count != 0) {
        if (!kHoldOperands)
          operands = LoadOperands<kElements, kWide>(args, place);
        ReduceRanks<kElements, kRanks, kBatch>(args, epoch, place, operands.x,
                                               h[p]);
        AddAll(epilogue, operands, h[p]);
        if (epilogue.emit_sum) {
          Store<kElements, kWide>(args.buffers.sum, epilogue.sum_dtype,
                                  place.index, place.count, h[p]);
        }
#pragma unroll
        for (int i = 0; i < kElements; ++i) {
          // Elements beyond the end of the row are zero in every operand.
          squares = fmaf(h[p][i], h[p][i], squares);
        }
      }
    }
    // Of the next tile, ahead of the wait for it.
    if (kHoldOperands && tile + gridDim.x < tiles) {
      operands = LoadOperands<kElements, kWide>(
          args, Locate<kElements, kPackets>(plan, tile + gridDim.x, 0));
    }
    if (!epilogue.emit_norm) continue;

    const float mean_square =
        SumOverBlock(squares, partial[parity]) * epilogue.mean_scale;
    parity ^= 1;
    const float scale = rsqrtf(mean_square + epilogue.epsilon);
#pragma unroll
    for (int p = 0; p < kPackets; ++p) {
      const Place place = Locate<kElements, kPackets>(plan, tile, p);
      if (place.count == 0) continue;
#pragma unroll
      for (int i = 0; i < kElements; ++i) h[p][i] *= scale;
      Round(h[p], epilogue.norm_round);
      if (epilogue.has_gain) {
        if (!kHoldGain) gain = LoadGain<kElements, kWide>(args, place);
        float values[kElements];
        Decode(gain, epilogue.gain_dtype, values);
#pragma unroll
        for (int i = 0; i < kElements; ++i) h[p][i] *= values[i];
      }
      Store<kElements, kWide>(args.buffers.norm, epilogue.norm_dtype,
                              place.index, place.count, h[p]);
    }
  }

  if (threadIdx.x == 0 && arrival == gridDim.x - 1) {
    workspace.control->arrived = 0;
    workspace.control->epoch = epoch + 1;
  }
}

using Kernel = void (*)(KernelArguments);

template <int kElements, int kRanks, bool kWide>
Kernel KernelForPackets(int packets_per_thread) {
  switch (packets_per_thread) {
    case 1:
      return AllReduceKernel<kElements, kRanks, 1, kWide>;
    case 2:
      return AllReduceKernel<kElements, kRanks, 2, kWide>;
    default:
      return AllReduceKernel<kElements, kRanks, 4, kWide>;
  }
}

template <int kElements, bool kWide>
Kernel KernelForRanks(int ranks, int packets_per_thread) {
  if (ranks <= 2) {
    return KernelForPackets<kElements, 2, kWide>(packets_per_thread);
  }
  if (ranks <= 4) {
    return KernelForPackets<kElements, 4, kWide>(packets_per_thread);
  }
  return KernelForPackets<kElements, 8, kWide>(packets_per_thread);
}

const void* SelectKernel(int element_bytes, int ranks, int packets_per_thread,
                         bool wide) {
  Kernel kernel;
  if (element_bytes == 4) {
    kernel = wide ? KernelForRanks<4, true>(ranks, packets_per_thread)
                  : KernelForRanks<4, false>(ranks, packets_per_thread);
  } else {
    kernel = wide ? KernelForRanks<8, true>(ranks, packets_per_thread)
                  : KernelForRanks<8, false>(ranks, packets_per_thread);
  }
  return reinterpret_cast<const void*>(kernel);
}

// Whether all packets are full and start where wide accesses may. Absent
// buffers are null and thus aligned.
bool IsWide(const LaunchPlan& plan, const Epilogue& epilogue,
            const Buffers& buffers) {
  const int elements = kPacketBytes / ByteWidth(epilogue.x_dtype);
  if (plan.hidden % elements != 0) return false;
  uintptr_t bits = 0;
  for (const void* buffer :
       {buffers.x, buffers.addends[0], buffers.addends[1], buffers.gain,
        static_cast<const void*>(buffers.sum),
        static_cast<const void*>(buffers.norm)}) {
    bits |= reinterpret_cast<uintptr_t>(buffer);
  }
  return bits % kPacketBytes == 0;
}

}  // namespace

cudaError_t LaunchAllReduce(const LaunchPlan& plan, const Epilogue& epilogue,
                            const Buffers& buffers,
                            const WorkspaceView& workspace,
                            cudaStream_t stream) {
  if (plan.blocks == 0) return cudaSuccess;
  KernelArguments arguments{plan, epilogue, buffers, workspace};
  void* parameters[] = {&arguments};
  return cudaLaunchKernel(
      SelectKernel(ByteWidth(epilogue.x_dtype), workspace.ranks,
                   plan.packets_per_thread, IsWide(plan, epilogue, buffers)),
      dim3(plan.blocks), dim3(plan.threads), parameters, /*sharedMem=*/0,
      stream);
}

cudaError_t LoadAllReduceKernels(int ranks) {
  for (const int element_bytes : {2, 4}) {
    for (const int packets_per_thread : {1, 2, 4}) {
      for (const bool wide : {false, true}) {
        cudaFuncAttributes attributes;
        const cudaError_t error = cudaFuncGetAttributes(
            &attributes,
            SelectKernel(element_bytes, ranks, packets_per_thread, wide));
        if (error != cudaSuccess) return error;
      }
    }
  }
  return cudaSuccess;
}

}  // namespace oneshot
