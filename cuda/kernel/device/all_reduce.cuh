// SPDX-License-Identifier: Apache-2.0
//
// The kernel: an all-reduce and the epilogue program that follows it.
//
// It is compiled at run time. kernel_source.cc joins arguments.h, the constants
// of one program, shape and number of ranks (kRanks, kHidden, ...), ptx.cuh,
// numbers.cuh, packets.cuh, protocol.cuh, row_reduction.cuh, this file and the
// program, which becomes `struct Program`.

namespace oneshot {

template <typename Program>
__device__ __forceinline__ void AllReduce(const KernelArguments& args) {
  RowPartials& partials = SharedMemory<RowPartials>();
  RowReducer reducer(partials);
  // First what the peers wait for. All else that the first tile needs is asked
  // for behind the push, but before the first wait for a peer. Often it is not
  // in the L2, and were it asked for earlier, the push would wait for it: the
  // machine has few ways to tell which of its loads have ended.
  uint4 own[kPackets];
  LoadTile(args, blockIdx.x, own);
  const uint32_t epoch = LoadEpoch(&args.control->epoch);
  Program program(args);

  PushTile(args, epoch, blockIdx.x, own);
  program.Open(args);
  program.Load(args, blockIdx.x);

  // The addresses above depend on the epoch, so every thread that uses it has
  // it in a register by now and the cluster may say so. Relaxed is enough: the
  // word that the last arrival allows to be overwritten is not read again by
  // this launch. Early, because the answer takes as long as a peer's packet.
  // The barrier also says that all blocks of the cluster run and have prepared
  // their shared memory, so that it may be written.
  if constexpr (kCluster == 1) {
    __syncthreads();
  } else {
    ClusterArrive();
    ClusterWait();
  }
  const bool counts = threadIdx.x == 0 && blockIdx.x % kCluster == 0;
  constexpr uint32_t kLast = kBlocks / kCluster - 1;
  uint32_t arrival = 0;
  if (counts) arrival = CountIn(&args.control->arrived, kLast);

  for (int tile = blockIdx.x;;) {
    // The next tile is on its way while this one is worked on. Sooner, and it
    // would leave the caches before it is read again, here and at the peers.
    const int next = tile + kBlocks;
    uint4 ahead[kPackets];
    if constexpr (!kOneTurn) {
      if (next < kTiles) {
        LoadTile(args, next, ahead);
        PushTile(args, epoch, next, ahead);
      }
    }
    if constexpr (kTwoShot) {
      // All of them before the first wait for a sum.
#pragma unroll
      for (int p = 0; p < kPackets; ++p) {
        const Place place = Locate(tile, p);
        if (place.count == 0) continue;
        own[p] =
            Receiver(args, epoch, place).Reduce(args, epoch, place, own[p]);
      }
    }
    program.Run(args, epoch, tile, own, reducer);
    if (kOneTurn || next >= kTiles) break;
    tile = next;
    program.Load(args, tile);
#pragma unroll
    for (int p = 0; p < kPackets; ++p) own[p] = ahead[p];
  }

  // The compiler would compare, and so wait, right away.
  NotEarlier(arrival);
  if (counts && arrival == kLast) StoreEpoch(&args.control->epoch, epoch + 1);
}

}  // namespace oneshot
