// SPDX-License-Identifier: Apache-2.0
//
// Packets: 16 bytes of x, and as many elements of everything else. Which of
// them a thread has, how a row is spread over threads, warps and blocks, and
// how packets are loaded and stored.

namespace oneshot {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kPairs = kElements / 2;
constexpr int kTiles = kRows * kTilesPerRow;
constexpr int kPartials = (kPacketsPerRow + kWarp - 1) / kWarp;
// Shares of a reduction that are given. In a cluster also those of warps that
// the row has nothing for: see RowPartials.
constexpr int kStoredPartials =
    kCluster == 1 ? kPartials : kTilesPerRow * kPackets * kThreads / kWarp;
constexpr int kPaddedPartials = (kStoredPartials + kWarp - 1) / kWarp * kWarp;
// Whether every packet of a row is full.
constexpr bool kFull = kHidden % kElements == 0;
// Whether every thread has all its packets in every tile.
constexpr bool kAllBusy = kPacketsPerRow == kTilesPerRow * kPackets * kThreads;
// Whether a block has one tile only. What more would take is left out then: the
// weights that a decode step reads have pushed the code out of the caches, too.
constexpr bool kOneTurn = kBlocks == kTiles;

// The place of one packet.
struct Place {
  int row;
  int packet;  // within the row
  int count;   // elements of the packet; 0: the thread has none here

  __device__ __forceinline__ int wire() const {  // packet of the message
    return row * kPacketsPerRow + packet;
  }
  __device__ __forceinline__ int column() const { return packet * kElements; }
  __device__ __forceinline__ int index() const {  // within the whole array
    return row * kHidden + column();
  }
};

// The threads of a tile are next to each other in the row, and so are its
// packets: those of one warp are always 32 that begin at a multiple of 32.
__device__ __forceinline__ Place Locate(int tile, int p) {
  const int row = tile / kTilesPerRow;
  const int tile_in_row = tile - row * kTilesPerRow;
  Place place;
  place.row = row;
  place.packet =
      (tile_in_row * kPackets + p) * kThreads + static_cast<int>(threadIdx.x);
  place.count = !kAllBusy && place.packet >= kPacketsPerRow ? 0
                : kFull                                     ? kElements
                        : min(kElements, kHidden - place.column());
  return place;
}

// kElements of a type as they lie in memory.
template <DType kType>
struct Raw {
  static constexpr int kWords = kElements * kBytes<kType> / 4;
  uint32_t words[kWords];

  __device__ __forceinline__ static Raw From(const Pair (&values)[kPairs]) {
    Raw raw = {};
#pragma unroll
    for (int i = 0; i < kPairs; ++i) {
      if constexpr (kBytes<kType> == 4) {
        raw.words[2 * i] = __float_as_uint(values[i].a);
        raw.words[2 * i + 1] = __float_as_uint(values[i].b);
      } else if constexpr (kBytes<kType> == 2) {
        raw.words[i] = Encode<kType>(values[i]);
      } else {
        raw.words[i / 2] |= Encode<kType>(values[i]) << i % 2 * 16;
      }
    }
    return raw;
  }

  __device__ __forceinline__ Pair Get(int pair) const {
    if constexpr (kType == kF32) {
      return Decode<kType>(words[2 * pair], words[2 * pair + 1]);
    } else {
      return Decode<kType>(words[pair]);
    }
  }
};

// Loads `count` elements from `index` on; the rest is zero.
template <DType kType>
__device__ __forceinline__ Raw<kType> Load(const void* data, int index,
                                           int count) {
  Raw<kType> raw = {};
  if (count == 0) return raw;
  const char* source = static_cast<const char*>(data) +
                       static_cast<int64_t>(index) * kBytes<kType>;
  if constexpr (kVectorized && Raw<kType>::kWords >= 4) {
#pragma unroll
    for (int i = 0; i < Raw<kType>::kWords; i += 4) {
      const uint4 quad = LoadNow128(source + 4 * i);
      raw.words[i] = quad.x;
      raw.words[i + 1] = quad.y;
      raw.words[i + 2] = quad.z;
      raw.words[i + 3] = quad.w;
    }
  } else if constexpr (kVectorized) {
    const uint2 two = LoadNow64(source);
    raw.words[0] = two.x;
    raw.words[1] = two.y;
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (i >= count) break;
      if constexpr (kType == kF32) {
        raw.words[i] = LoadNow32(source + 4 * i);
      } else {
        raw.words[i / 2] |= LoadNow16(source + 2 * i) << i % 2 * 16;
      }
    }
  }
  return raw;
}

template <DType kType>
__device__ __forceinline__ float LoadOne(const void* data, int index) {
  if (kType == kF32) {
    return __uint_as_float(LoadNow32(static_cast<const float*>(data) + index));
  }
  return Decode<kType>(LoadNow16(static_cast<const uint16_t*>(data) + index)).a;
}

template <DType kType>
__device__ __forceinline__ void StoreOne(void* data, int index, float value) {
  if constexpr (kBytes<kType> == 4) {
    static_cast<float*>(data)[index] = value;
  } else if constexpr (kBytes<kType> == 2) {
    static_cast<uint16_t*>(data)[index] =
        static_cast<uint16_t>(Encode<kType>(Pair(value)));
  } else {
    static_cast<unsigned char*>(data)[index] =
        static_cast<unsigned char>(EncodeBytes<kType>(Pair(value)));
  }
}

// Stores the elements of one packet.
template <DType kType>
__device__ __forceinline__ void Store(void* data, const Place& place,
                                      const Pair (&values)[kPairs]) {
  const Raw<kType> raw = Raw<kType>::From(values);
  const auto& words = raw.words;
  char* target = static_cast<char*>(data) +
                 static_cast<int64_t>(place.index()) * kBytes<kType>;
  if constexpr (kVectorized && Raw<kType>::kWords >= 4) {
#pragma unroll
    for (int i = 0; i < Raw<kType>::kWords; i += 4) {
      *reinterpret_cast<uint4*>(target + 4 * i) =
          make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
    }
  } else if constexpr (kVectorized && Raw<kType>::kWords == 2) {
    *reinterpret_cast<uint2*>(target) = make_uint2(words[0], words[1]);
  } else if constexpr (kVectorized) {
    *reinterpret_cast<uint32_t*>(target) = words[0];
  } else {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      if (i >= place.count) break;
      if constexpr (kBytes<kType> == 4) {
        reinterpret_cast<uint32_t*>(target)[i] = words[i];
      } else if constexpr (kBytes<kType> == 2) {
        reinterpret_cast<uint16_t*>(target)[i] =
            static_cast<uint16_t>(words[i / 2] >> i % 2 * 16);
      } else {
        reinterpret_cast<unsigned char*>(target)[i] =
            static_cast<unsigned char>(words[i / 4] >> i % 4 * 8);
      }
    }
  }
}

// The thread's packets of x in a tile.
__device__ __forceinline__ void LoadTile(const KernelArguments& args, int tile,
                                         uint4 (&packets)[kPackets]) {
#pragma unroll
  for (int p = 0; p < kPackets; ++p) {
    const Place place = Locate(tile, p);
    const Raw<kX> raw = Load<kX>(args.x, place.index(), place.count);
    packets[p] =
        make_uint4(raw.words[0], raw.words[1], raw.words[2], raw.words[3]);
  }
}

}  // namespace oneshot
