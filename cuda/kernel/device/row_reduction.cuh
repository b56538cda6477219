// SPDX-License-Identifier: Apache-2.0
//
// Reductions along a row: over the elements of a packet, then over the 32
// packets of a warp, then over those results, kPartials to a row.

namespace oneshot {

enum Reduction { kSumOf, kMaxOf, kMinOf };

template <Reduction kReduction>
__device__ __forceinline__ float Identity() {
  return kReduction == kSumOf   ? 0.0f
         : kReduction == kMaxOf ? __uint_as_float(0xFF800000u)
                                : __uint_as_float(0x7F800000u);
}

template <Reduction kReduction>
__device__ __forceinline__ float Combine(float x, float y) {
  return kReduction == kSumOf   ? x + y
         : kReduction == kMaxOf ? MaximumOrNan(x, y)
                                : MinimumOrNan(x, y);
}

// Takes in elements 2 * i and 2 * i + 1 of a packet.
template <Reduction kReduction>
__device__ __forceinline__ void Accumulate(float& partial, Pair value,
                                           const Place& place, int i) {
  if (kFull || 2 * i < place.count) {
    partial = Combine<kReduction>(partial, value.a);
  }
  if (kFull || 2 * i + 1 < place.count) {
    partial = Combine<kReduction>(partial, value.b);
  }
}

template <Reduction kReduction, int kLanes>
__device__ __forceinline__ float OverLanes(float value) {
#pragma unroll
  for (int mask = 1; mask < kLanes; mask *= 2) {
    value = Combine<kReduction>(value, __shfl_xor_sync(kAllLanes, value, mask));
  }
  return value;
}

// The blocks of a cluster share a row. Each holds all the partial results, in
// two sets in turn: a warp may be one reduction ahead of another. It cannot be
// two ahead: for that it needs shares of the reduction in between, which every
// warp of every block gives after it has taken the result of the one before.
// Warps without a packet give some, too, which nobody takes: one that was left
// behind by two would miss that its set was complete, and wait forever.
struct RowPartials {
  alignas(16) float values[2][kReductions][kPaddedPartials];
  // Complete when a set is; only in clusters of several blocks. The stores of
  // the shares themselves count on it, so that no block waits for all threads
  // of all others, as it would at a barrier of the cluster.
  uint64_t complete[2];
};

struct RowReducer {
  RowPartials& partials;
  int buffer = 0;
  uint32_t phases = 0;  // by set: the parity of the use that is next

  // To be followed by a barrier of the cluster, which may be relaxed: the fence
  // is made for this.
  __device__ __forceinline__ explicit RowReducer(RowPartials& partials)
      : partials(partials) {
    if constexpr (kCluster > 1) {
      if (threadIdx.x != 0) return;
#pragma unroll
      for (int b = 0; b < 2; ++b) MbarrierInit(&partials.complete[b]);
      FenceMbarrierInit();
    }
  }

  // Hands in the thread's share of reduction number `slot`.
  template <Reduction kReduction>
  __device__ __forceinline__ void StorePartials(
      int slot, int tile, const float (&values)[kPackets]) {
#pragma unroll
    for (int p = 0; p < kPackets; ++p) {
      const float value = OverLanes<kReduction, kWarp>(values[p]);
      const int lane = threadIdx.x % kWarp;
      const int partial = Locate(tile, p).packet / kWarp;
      if (lane >= kCluster || partial >= kStoredPartials) continue;
      float* target = &partials.values[buffer][slot][partial];
      if constexpr (kCluster == 1) {
        *target = value;
      } else {
        // Lane l writes to block l of the cluster.
        StAsync(target, value, &partials.complete[buffer], lane);
      }
    }
  }

  // Waits until the shares of `slots` reductions can be taken.
  __device__ __forceinline__ void WaitPartials(int slots) {
    if constexpr (kCluster == 1) {
      __syncthreads();
    } else {
      uint64_t* barrier = &partials.complete[buffer];
      if (threadIdx.x == 0) {
        MbarrierArriveExpectTx(barrier, slots * kStoredPartials * 4);
      }
      while (!MbarrierTryWait(barrier, phases >> buffer & 1)) {
      }
    }
  }

  // To be called when all results have been taken.
  __device__ __forceinline__ void FlipBuffer() {
    phases ^= 1u << buffer;
    buffer ^= 1;
  }

  // Every lane loads four shares, so that there is less to shuffle.
  template <Reduction kReduction>
  __device__ __forceinline__ float LoadReduced(int slot) const {
    const int lane = threadIdx.x % kLoadingLanes * 4;
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = Identity<kReduction>();
#pragma unroll
    for (int first = 0; first < kPartials; first += kWarp) {
      const float4 four = *reinterpret_cast<const float4*>(
          &partials.values[buffer][slot][first + lane]);
      const float loaded[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first + lane + i < kPartials) {
          values[i] = Combine<kReduction>(values[i], loaded[i]);
        }
      }
    }
    return OverLanes<kReduction, kLoadingLanes>(
        Combine<kReduction>(Combine<kReduction>(values[0], values[1]),
                            Combine<kReduction>(values[2], values[3])));
  }

 private:
  static constexpr int kLoadingLanes = kWarp / 4;
};

}  // namespace oneshot
