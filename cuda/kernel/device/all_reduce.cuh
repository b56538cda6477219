// SPDX-License-Identifier: Apache-2.0
//
// The kernel: an all-reduce and the epilogue program that follows it.
// It is compiled at run time, behind kernel_arguments.h, the constants that
// kernel_source.cc writes for one program, shape and number of ranks (kRanks,
// kHidden, ...) and kernel_machine.cuh, and in front of the program, which
// becomes `struct Program`.
//
// Protocol
//
// Every rank has an inbox with two slots of one message from each peer. Launch
// number e, the epoch, uses slot e % 2. A word that nobody has written holds
// the sentinel.
//
//   push   A rank writes its x to its place in the slot of every peer.
//   wait   It reads its own inbox until no word of the packet it is interested
//          in is the sentinel. Data and flag are the same word, so the arrival
//          of a packet costs one trip across the link and no ordering.
//   clear  The thread that read a packet writes the sentinel back.
//
// That is the one-shot all-reduce: one trip, and every rank adds up everything.
// A large message between many ranks is limited by the link, though. The
// two-shot one sends less for one more trip. Each packet has an owner:
//
//   push   A rank writes its x to its place in the slot of the owner alone.
//   reduce The owner waits for the packets of its peers, adds them up and
//          writes the sum to its own place in the slot of every peer. No x
//          comes to such a place: the owner keeps its own.
//   wait   The others wait for the sum.
//
// Both leave the same bits, in the same inboxes, in any sequence.
//
// Writers and readers. A word of an inbox is written by one thread of one peer
// (push) and read and cleared by one thread of the owner. All accesses are
// relaxed at system scope.
//
// Two slots suffice, and there is no ABA. A rank pushes in epoch e + 2 after
// its kernel of epoch e + 1 ended, hence after it had read packets that every
// peer pushed in epoch e + 1 (or a sum, which its owner made of such), hence
// after every peer had ended its kernel of epoch e, clears included. So at the
// time of a push the slot is clear, and no peer's reader of an older epoch is
// left. The chain runs over kernel boundaries on one stream, which order
// memory, and over relaxed words: the clear is complete in the memory of the
// owner before the owner's next kernel begins, and the push that depends on
// that kernel is served by the same memory, later.
//
// The reader clears what it read, so that nothing about the shape of earlier
// launches is remembered: any sequence of shapes may share a workspace.
//
// Graph replay. The epoch lives in device memory and the kernel itself advances
// it. Every cluster reads it, then counts itself in. The last to do so knows
// that all have read it, and stores the next epoch; the count, which wraps, is
// zero again.
//
// No deadlock when only a part of a grid is resident. A block with several
// tiles takes them in ascending order, and pushes a tile before it waits for
// the one before it. Clusters are dispatched in order of their index. Of all
// waiting blocks, on any rank, take those of lowest index, and of these one
// that waits for the earliest tile. What it waits for comes from the block of
// the same index of a peer. That one is resident, as no block of lower index
// waits, and does not wait for an earlier tile: so it has pushed this one, or
// is about to. With two shots it may wait for a sum. The owner's block does not
// wait for an earlier tile either, and if it waits for this one, then for
// pushes, which come by the same argument. Blocks of a cluster, which wait for
// each other, are resident together. All this is for grids of one size. Where
// they differ, on GPUs of different kinds, all blocks have to be resident,
// which launch_plan.cc sees to while nothing else is running, and so they have
// to for ranks that share a device, as in tests. Then the block that waits for
// the earliest tile of all is served, whichever blocks that comes from.
//
// A peer that is gone. After `timeout_ns` of waiting a thread reports what it
// waited for in `fault` and ends the kernel with a trap: the run fails on this
// rank, and because its pushes stop, in turn on every other.
//
// Determinism. The sum runs over the ranks in order on all of them. A reduction
// along a row is a tree over the packets of the row that depends on the length
// of the row alone, not on the number of rows or how the row is spread over
// threads and blocks. So all ranks compute the same bits, and a row has the
// same result in every batch.

namespace oneshot {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;
constexpr int kPairs = kElements / 2;
constexpr int kTiles = kRows * kTilesPerRow;
constexpr int kPartials = (kPacketsPerRow + kWarp - 1) / kWarp;
// Shares of a reduction that are given. In a cluster also those of warps that
// the row has nothing for: see RowShares.
constexpr int kGiven =
    kCluster == 1 ? kPartials : kTilesPerRow * kPackets * kThreads / kWarp;
constexpr int kPaddedPartials = (kGiven + kWarp - 1) / kWarp * kWarp;
// Whether every packet of a row is full.
constexpr bool kFull = kHidden % kElements == 0;
// Whether every thread has all its packets in every tile.
constexpr bool kAllBusy = kPacketsPerRow == kTilesPerRow * kPackets * kThreads;
// Whether a block has one tile only. What more would take is left out then: the
// weights that a decode step reads have pushed the code out of the caches, too.
constexpr bool kOneTurn = kBlocks == kTiles;

// Marks a word of the workspace that no rank has written yet. As data it is a
// NaN in float32 and two NaNs in bfloat16 and float16, so another NaN is sent
// in its place; a float32 sum with either is the same canonical NaN.
constexpr uint32_t kSentinel = 0xFFFFFFFFu;
constexpr uint32_t kReplacement = kX == kF32 ? 0x7FFFFFFFu : 0x7FFF7FFFu;

// ---------------------------------------------------------------------------
// Numbers. A thread computes with two elements at a time, because conversions
// to the narrow types come in twos.

struct Pair {
  float a, b;
  Pair() = default;
  __device__ __forceinline__ Pair(float both) : a(both), b(both) {}
  __device__ __forceinline__ Pair(float a, float b) : a(a), b(b) {}
};

struct TruthPair {
  bool a, b;
  TruthPair() = default;
  __device__ __forceinline__ TruthPair(bool both) : a(both), b(both) {}
  __device__ __forceinline__ TruthPair(bool a, bool b) : a(a), b(b) {}
};

template <DType kType>
constexpr int kBytes = kType == kF32                     ? 4
                       : kType == kBf16 || kType == kF16 ? 2
                                                         : 1;

// Two elements as they lie in memory; float32 takes two words.
template <DType kType>
__device__ __forceinline__ Pair Decode(uint32_t word, uint32_t second = 0) {
  if (kType == kF32)
    return Pair(__uint_as_float(word), __uint_as_float(second));
  if (kType == kBf16) {
    return Pair(__uint_as_float(word << 16),
                __uint_as_float(word & 0xFFFF0000u));
  }
  Pair pair;
  DecodeF16(word, pair.a, pair.b);
  return pair;
}

// Two elements of one byte, as quantized_formats.h defines them: with the
// instructions of the device where it has them.
template <DType kType>
__device__ __forceinline__ uint32_t EncodeBytes(Pair pair) {
  if (kType == kS8) {
    const auto byte = [](float value) {  // NaN becomes 0 on the way
      return max(-128, min(127, __float2int_rz(value))) & 0xFF;
    };
    return byte(pair.a) | byte(pair.b) << 8;
  }
#if __CUDA_ARCH__ >= 890
  // These end at the largest number, even for infinities.
  if (kType == kF8E4M3FN) {
    const auto limited = [](float value) {
      return fabsf(value) > 464.0f ? __uint_as_float(0x7FFFFFFFu) : value;
    };
    return EncodeFiniteF8E4M3FN(limited(pair.a), limited(pair.b));
  }
  const uint32_t bytes = EncodeFiniteF8E5M2(pair.a, pair.b);
  // An infinity has the bits of the largest number, and one more.
  return bytes + (fabsf(pair.a) >= 61440.0f ? 1u : 0u) +
         (fabsf(pair.b) >= 61440.0f ? 0x100u : 0u);
#else
  const auto byte = [](float value) {
    return kType == kF8E5M2 ? EncodeF8E5M2(__float_as_uint(value))
                            : EncodeF8E4M3FN(__float_as_uint(value));
  };
  return byte(pair.a) | byte(pair.b) << 8;
#endif
}

// To one of the narrow types, to nearest even, but for integers.
template <DType kType>
__device__ __forceinline__ uint32_t Encode(Pair pair) {
  uint32_t word;
  if (kBytes<kType> == 1) {
    word = EncodeBytes<kType>(pair);
  } else if (kType == kBf16) {
    word = EncodeBf16(pair.a, pair.b);
  } else {
    word = EncodeF16(pair.a, pair.b);
  }
  return word;
}

// The nearest values of the type, as float32.
template <DType kType>
__device__ __forceinline__ Pair Round(Pair pair) {
  return kType == kF32 ? pair : Decode<kType>(Encode<kType>(pair));
}
template <DType kType>
__device__ __forceinline__ float Round(float value) {
  return Round<kType>(Pair(value)).a;
}

#define ONESHOT_UNARY(Name, expression)                                 \
  __device__ __forceinline__ float Name(float x) { return expression; } \
  __device__ __forceinline__ Pair Name(Pair x) {                        \
    return Pair(Name(x.a), Name(x.b));                                  \
  }
ONESHOT_UNARY(Abs, fabsf(x))
ONESHOT_UNARY(Cbrt, cbrtf(x))
ONESHOT_UNARY(Ceil, ceilf(x))
ONESHOT_UNARY(Cos, cosf(x))
ONESHOT_UNARY(Erf, erff(x))
ONESHOT_UNARY(Exp, expf(x))
ONESHOT_UNARY(Expm1, expm1f(x))
ONESHOT_UNARY(Floor, floorf(x))
ONESHOT_UNARY(Log, logf(x))
ONESHOT_UNARY(Log1p, log1pf(x))
ONESHOT_UNARY(Logistic, 1.0f / (1.0f + expf(-x)))
ONESHOT_UNARY(Negate, -x)
ONESHOT_UNARY(RoundNearestAfz, roundf(x))
ONESHOT_UNARY(RoundNearestEven, rintf(x))
ONESHOT_UNARY(Rsqrt, rsqrtf(x))
ONESHOT_UNARY(Sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x)
ONESHOT_UNARY(Sin, sinf(x))
ONESHOT_UNARY(Sqrt, sqrtf(x))
ONESHOT_UNARY(Tan, tanf(x))
ONESHOT_UNARY(Tanh, tanhf(x))
#undef ONESHOT_UNARY

#define ONESHOT_BINARY(Name, expression)                    \
  __device__ __forceinline__ float Name(float x, float y) { \
    return expression;                                      \
  }                                                         \
  __device__ __forceinline__ Pair Name(Pair x, Pair y) {    \
    return Pair(Name(x.a, y.a), Name(x.b, y.b));            \
  }
ONESHOT_BINARY(Add, x + y)
ONESHOT_BINARY(Atan2, atan2f(x, y))
ONESHOT_BINARY(Divide, x / y)
ONESHOT_BINARY(Maximum, MaximumOrNan(x, y))
ONESHOT_BINARY(Minimum, MinimumOrNan(x, y))
ONESHOT_BINARY(Multiply, x* y)
ONESHOT_BINARY(Power, powf(x, y))
ONESHOT_BINARY(Remainder, fmodf(x, y))
ONESHOT_BINARY(Subtract, x - y)
#undef ONESHOT_BINARY

#define ONESHOT_COMPARE(Name, expression)                     \
  __device__ __forceinline__ bool Name(float x, float y) {    \
    return expression;                                        \
  }                                                           \
  __device__ __forceinline__ TruthPair Name(Pair x, Pair y) { \
    return TruthPair(Name(x.a, y.a), Name(x.b, y.b));         \
  }
ONESHOT_COMPARE(Eq, x == y)
ONESHOT_COMPARE(Ge, x >= y)
ONESHOT_COMPARE(Gt, x > y)
ONESHOT_COMPARE(Le, x <= y)
ONESHOT_COMPARE(Lt, x < y)
ONESHOT_COMPARE(Ne, x != y)
#undef ONESHOT_COMPARE

#define ONESHOT_LOGIC(Name, expression)                                       \
  __device__ __forceinline__ bool Name(bool x, bool y) { return expression; } \
  __device__ __forceinline__ TruthPair Name(TruthPair x, TruthPair y) {       \
    return TruthPair(Name(x.a, y.a), Name(x.b, y.b));                         \
  }
ONESHOT_LOGIC(And, x&& y)
ONESHOT_LOGIC(Or, x || y)
ONESHOT_LOGIC(Xor, x != y)
#undef ONESHOT_LOGIC

__device__ __forceinline__ bool Not(bool x) { return !x; }
__device__ __forceinline__ TruthPair Not(TruthPair x) {
  return TruthPair(!x.a, !x.b);
}
__device__ __forceinline__ bool IsFinite(float x) {
  return fabsf(x) < __uint_as_float(0x7F800000u);
}
__device__ __forceinline__ TruthPair IsFinite(Pair x) {
  return TruthPair(IsFinite(x.a), IsFinite(x.b));
}
__device__ __forceinline__ float Convert(float x) { return x; }
__device__ __forceinline__ Pair Convert(Pair x) { return x; }
__device__ __forceinline__ float Convert(bool x) { return x ? 1.0f : 0.0f; }
__device__ __forceinline__ Pair Convert(TruthPair x) {
  return Pair(Convert(x.a), Convert(x.b));
}
__device__ __forceinline__ float Select(bool p, float x, float y) {
  return p ? x : y;
}
__device__ __forceinline__ Pair Select(TruthPair p, Pair x, Pair y) {
  return Pair(p.a ? x.a : y.a, p.b ? x.b : y.b);
}
template <typename T>
__device__ __forceinline__ T Clamp(T low, T x, T high) {
  return Minimum(Maximum(low, x), high);
}

// ---------------------------------------------------------------------------
// Packets: 16 bytes of x, and as many elements of everything else.

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
  if constexpr (kWide && Raw<kType>::kWords >= 4) {
#pragma unroll
    for (int i = 0; i < Raw<kType>::kWords; i += 4) {
      const uint4 quad = LoadNow128(source + 4 * i);
      raw.words[i] = quad.x;
      raw.words[i + 1] = quad.y;
      raw.words[i + 2] = quad.z;
      raw.words[i + 3] = quad.w;
    }
  } else if constexpr (kWide) {
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
  if constexpr (kWide && Raw<kType>::kWords >= 4) {
#pragma unroll
    for (int i = 0; i < Raw<kType>::kWords; i += 4) {
      *reinterpret_cast<uint4*>(target + 4 * i) =
          make_uint4(words[i], words[i + 1], words[i + 2], words[i + 3]);
    }
  } else if constexpr (kWide && Raw<kType>::kWords == 2) {
    *reinterpret_cast<uint2*>(target) = make_uint2(words[0], words[1]);
  } else if constexpr (kWide) {
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

// ---------------------------------------------------------------------------
// The all-reduce

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

__device__ __forceinline__ bool HasSentinel(uint4 packet) {
  return packet.x == kSentinel || packet.y == kSentinel ||
         packet.z == kSentinel || packet.w == kSentinel;
}

__device__ __forceinline__ uint4 WithoutSentinel(uint4 packet) {
  if (packet.x == kSentinel) packet.x = kReplacement;
  if (packet.y == kSentinel) packet.y = kReplacement;
  if (packet.z == kSentinel) packet.z = kReplacement;
  if (packet.w == kSentinel) packet.w = kReplacement;
  return packet;
}

// The rank that adds up a packet of a two-shot all-reduce: the warps of a row
// in turn, so that all ranks have as much to do.
__device__ __forceinline__ int OwnerOf(const Place& place) {
  return (place.row + place.packet / kWarp) % kRanks;
}

// All peers for k from 1 to kRanks - 1. Each rank begins with another one, so
// that they do not all send to the same.
__device__ __forceinline__ int PeerBehind(int rank, int k) {
  const int peer = rank + k;
  return peer < kRanks ? peer : peer - kRanks;
}

// The place of a packet in an inbox, as far as it does not depend on who writes
// it.
__device__ __forceinline__ int64_t SlotOf(uint32_t epoch, const Place& place) {
  return static_cast<int64_t>(epoch % 2) * kPeers * kMessagePackets +
         place.wire();
}

// And as far as it does: messages are in the order of the ranks, without that
// of the reader.
__device__ __forceinline__ int64_t MessageOf(int writer, int reader) {
  if (kRanks == 2) return 0;
  return static_cast<int64_t>(writer - (writer > reader ? 1 : 0)) *
         kMessagePackets;
}

// Writes a packet, which has no sentinel, to this rank's place at all peers, or
// at the owner alone.
template <bool kToOwner>
__device__ __forceinline__ void Send(const KernelArguments& args,
                                     uint32_t epoch, const Place& place,
                                     uint4 packet) {
  const int64_t slot = SlotOf(epoch, place);
  const auto send = [&](int peer) {
    StoreSystem(static_cast<uint4*>(args.inboxes[peer]) + slot +
                    MessageOf(args.rank, peer),
                packet);
  };
  if constexpr (kToOwner) {
    const int owner = OwnerOf(place);
    if (owner != args.rank) send(owner);
  } else {
#pragma unroll
    for (int k = 1; k < kRanks; ++k) send(PeerBehind(args.rank, k));
  }
}

__device__ __forceinline__ void PushTile(const KernelArguments& args,
                                         uint32_t epoch, int tile,
                                         const uint4 (&packets)[kPackets]) {
#pragma unroll
  for (int p = 0; p < kPackets; ++p) {
    const Place place = Locate(tile, p);
    if (place.count == 0) continue;
    Send<kTwoShot>(args, epoch, place, WithoutSentinel(packets[p]));
  }
}

constexpr int kNobody = -1;

// The lanes of this warp that have a packet in this tile, as it is for all of
// them.
__device__ __forceinline__ unsigned LanesOf(const Place& place) {
  if (kAllBusy) return kAllLanes;
  const int first = place.packet - static_cast<int>(threadIdx.x) % kWarp;
  const int count = kPacketsPerRow - first;
  return count >= kWarp ? kAllLanes : (1u << count) - 1;
}

// A wait that takes long. Returns when it has begun.
__device__ __noinline__ uint64_t Look(const KernelArguments& args,
                                      uint32_t epoch, int peer,
                                      uint64_t start) {
  const uint64_t now = Nanoseconds();
  if (start == 0) return now;
  if (now - start < args.timeout_ns) return start;
  // One thread of the device reports, which one does not matter, and ends the
  // kernel; the others wait for that, so that no trap overtakes the report.
  while (atomicExch(&args.control->faulted, 1u) != 0) __nanosleep(1000000);
  args.fault->epoch = epoch;
  args.fault->peer = peer;
  args.fault->rank = args.rank;
  args.fault->site = args.site;
  args.fault->waited_ns = now - start;
  __threadfence_system();
  *static_cast<volatile unsigned*>(&args.fault->raised) = 1;
  __threadfence_system();
  __trap();
  return start;
}

// Asks until nobody is missing. `missing` loads what has not come yet and
// returns a rank that it has nothing from, or kNobody: the same for all lanes.
// A warp waits as one, because lanes that leave a loop one after the other are
// slow to meet again. The clock is read only now and then.
template <typename Missing>
__device__ __forceinline__ void Await(const KernelArguments& args,
                                      uint32_t epoch, const Missing& missing) {
  constexpr int kTurns = 4096;
  uint64_t start = 0;
  while (true) {
    int peer = kNobody;
#pragma unroll 1
    for (int turn = 0; turn < kTurns; ++turn) {
      peer = missing();
      if (peer == kNobody) return;
    }
    start = Look(args, epoch, peer, start);
  }
}

// Receives the packets of the peers, at one place of the message.
struct Receiver {
  uint4* slot;  // at the place in the first message
  int rank;
  int owner;  // of the packet, with two shots
  unsigned lanes;

  __device__ __forceinline__ Receiver(const KernelArguments& args,
                                      uint32_t epoch, const Place& place)
      : slot(static_cast<uint4*>(args.inboxes[args.rank]) +
             SlotOf(epoch, place)),
        rank(args.rank),
        owner(OwnerOf(place)),
        lanes(LanesOf(place)) {}

  // Between the two shots: adds up a packet that this rank owns, and sends the
  // sum. Returns it, as it is sent; for packets of others, what it was given.
  __device__ __forceinline__ uint4 Reduce(const KernelArguments& args,
                                          uint32_t epoch, const Place& place,
                                          uint4 own) const {
    if (owner != args.rank) return own;
    Pair sum[kPairs];
    AddUp(args, epoch, own, sum);
    const Raw<kX> raw = Raw<kX>::From(sum);
    const uint4 packet = WithoutSentinel(
        make_uint4(raw.words[0], raw.words[1], raw.words[2], raw.words[3]));
    Send</*kToOwner=*/false>(args, epoch, place, packet);
    return packet;
  }

  // Waits for what is missing. Returns the sum over the ranks. `own` is what
  // Reduce has returned, where there are two shots.
  __device__ __forceinline__ void Sum(const KernelArguments& args,
                                      uint32_t epoch, uint4 own,
                                      Pair (&sum)[kPairs]) const {
    if constexpr (kTwoShot) {
      const uint4 packet = owner == args.rank ? own : Wait(args, epoch, owner);
      const Raw<kX> raw = {{packet.x, packet.y, packet.z, packet.w}};
#pragma unroll
      for (int i = 0; i < kPairs; ++i) sum[i] = raw.Get(i);
    } else {
      AddUp(args, epoch, own, sum);
    }
  }

  // Makes the places ready for the launch after the next. Apart from Sum, so
  // that nothing waits for these stores to be issued.
  __device__ __forceinline__ void Clear(const KernelArguments& args) const {
#pragma unroll
    for (int k = 1; k < kRanks; ++k) {
      const int peer = PeerBehind(args.rank, k);
      if (kTwoShot && owner != args.rank && peer != owner) continue;
      StoreSystem(PlaceOf(peer),
                  make_uint4(kSentinel, kSentinel, kSentinel, kSentinel));
    }
  }

 private:
  __device__ __forceinline__ uint4* PlaceOf(int peer) const {
    return slot + MessageOf(peer, rank);
  }

  // Waits for the packets of all peers and adds them to the own one.
  __device__ __forceinline__ void AddUp(const KernelArguments& args,
                                        uint32_t epoch, uint4 own,
                                        Pair (&sum)[kPairs]) const {
    // The neutral element of addition is -0, not 0: -0 + -0 must stay -0.
#pragma unroll
    for (int i = 0; i < kPairs; ++i) sum[i] = Pair(-0.0f);
    if constexpr (kRanks == 2) {
      // Whose packet is added to whose makes no difference.
      AddTo(sum, own);
      AddTo(sum, Wait(args, epoch, 1 - args.rank));
    } else {
      // As many ranks at a time as registers permit.
      constexpr int kBatch = kRanks < 4 ? kRanks : 4;
#pragma unroll
      for (int first = 0; first < kRanks; first += kBatch) {
        AddBatch<kBatch>(args, epoch, own, first, sum);
      }
    }
  }

  __device__ __forceinline__ static void AddTo(Pair (&sum)[kPairs],
                                               uint4 packet) {
    const Raw<kX> raw = {{packet.x, packet.y, packet.z, packet.w}};
#pragma unroll
    for (int i = 0; i < kPairs; ++i) sum[i] = Add(sum[i], raw.Get(i));
  }

  __device__ __forceinline__ uint4 Wait(const KernelArguments& args,
                                        uint32_t epoch, int peer) const {
    const uint4* place = PlaceOf(peer);
    uint4 packet;
    Await(args, epoch, [&] {
      packet = LoadSystem(place);
      return __any_sync(lanes, HasSentinel(packet)) ? peer : kNobody;
    });
    return packet;
  }

  template <int kBatch>
  __device__ __forceinline__ void AddBatch(const KernelArguments& args,
                                           uint32_t epoch, uint4 own, int first,
                                           Pair (&sum)[kPairs]) const {
    uint4 packets[kBatch];
#pragma unroll
    for (int r = 0; r < kBatch; ++r) packets[r] = own;
    // One bit for every rank of which a lane still misses a packet. All are
    // asked at once; those of which the warp has all are not asked again, to
    // leave the L2 to the others.
    constexpr unsigned kAll = (1u << kRanks) - 1;
    unsigned pending =
        (kAll & ~(1u << args.rank)) >> first & ((1u << kBatch) - 1);
    Await(args, epoch, [&] {
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        if (pending >> r & 1) packets[r] = LoadSystem(PlaceOf(first + r));
      }
      unsigned mine = 0;
#pragma unroll
      for (int r = 0; r < kBatch; ++r) {
        if (HasSentinel(packets[r])) mine |= 1u << r;
      }
      pending &= __reduce_or_sync(lanes, mine);
      return pending == 0 ? kNobody : first + __ffs(pending) - 1;
    });
#pragma unroll
    for (int r = 0; r < kBatch; ++r) {
      if (first + r < kRanks) AddTo(sum, packets[r]);
    }
  }
};

// ---------------------------------------------------------------------------
// Reductions along a row: over the elements of a packet, then over the 32
// packets of a warp, then over those results, kPartials to a row.

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
struct RowShares {
  alignas(16) float partials[2][kReductions][kPaddedPartials];
  // Complete when a set is; only in clusters of several blocks. The stores of
  // the shares themselves count on it, so that no block waits for all threads
  // of all others, as it would at a barrier of the cluster.
  uint64_t complete[2];
};

struct RowReducer {
  RowShares& shares;
  int set = 0;
  uint32_t phases = 0;  // by set: the parity of the use that is next

  // To be followed by a barrier of the cluster, which may be relaxed: the fence
  // is made for this.
  __device__ __forceinline__ explicit RowReducer(RowShares& shares)
      : shares(shares) {
    if constexpr (kCluster > 1) {
      if (threadIdx.x != 0) return;
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        InitBarrier(&shares.complete[s]);
      }
      FenceBarriers();
    }
  }

  // Hands in the thread's share of reduction number `slot`.
  template <Reduction kReduction>
  __device__ __forceinline__ void Give(int slot, int tile,
                                       const float (&values)[kPackets]) {
#pragma unroll
    for (int p = 0; p < kPackets; ++p) {
      const float value = OverLanes<kReduction, kWarp>(values[p]);
      const int lane = threadIdx.x % kWarp;
      const int partial = Locate(tile, p).packet / kWarp;
      if (lane >= kCluster || partial >= kGiven) continue;
      float* target = &shares.partials[set][slot][partial];
      if constexpr (kCluster == 1) {
        *target = value;
      } else {
        // Lane l writes to block l of the cluster.
        StoreShared(target, value, &shares.complete[set], lane);
      }
    }
  }

  // Waits until the shares of `slots` reductions can be taken.
  __device__ __forceinline__ void Meet(int slots) {
    if constexpr (kCluster == 1) {
      __syncthreads();
    } else {
      uint64_t* barrier = &shares.complete[set];
      if (threadIdx.x == 0) ArriveExpecting(barrier, slots * kGiven * 4);
      while (!IsComplete(barrier, phases >> set & 1)) {
      }
    }
  }

  // To be called when all results have been taken.
  __device__ __forceinline__ void Next() {
    phases ^= 1u << set;
    set ^= 1;
  }

  // Every lane loads four shares, so that there is less to shuffle.
  template <Reduction kReduction>
  __device__ __forceinline__ float Take(int slot) const {
    const int lane = threadIdx.x % kTakers * 4;
    float values[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) values[i] = Identity<kReduction>();
#pragma unroll
    for (int first = 0; first < kPartials; first += kWarp) {
      const float4 four = *reinterpret_cast<const float4*>(
          &shares.partials[set][slot][first + lane]);
      const float loaded[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (first + lane + i < kPartials) {
          values[i] = Combine<kReduction>(values[i], loaded[i]);
        }
      }
    }
    return OverLanes<kReduction, kTakers>(
        Combine<kReduction>(Combine<kReduction>(values[0], values[1]),
                            Combine<kReduction>(values[2], values[3])));
  }

 private:
  static constexpr int kTakers = kWarp / 4;
};

// ---------------------------------------------------------------------------

template <typename Program>
__device__ __forceinline__ void AllReduce(const KernelArguments& args) {
  RowShares& shares = SharedMemory<RowShares>();
  RowReducer reducer(shares);
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
