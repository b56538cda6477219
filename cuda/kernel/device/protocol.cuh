// SPDX-License-Identifier: Apache-2.0
//
// How packets get from rank to rank, and are added up.
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
// A peer that is late, or gone. Each time `notice_ns` of waiting have passed, a
// thread leaves a notice of what it waits for in `fault`, and goes on. After
// `timeout_ns` it reports the same there and ends the kernel with a trap: the
// run fails on this rank, and because its pushes stop, in turn on every other.
//
// Determinism. The sum runs over the ranks in order on all of them. A reduction
// along a row is a tree over the packets of the row that depends on the length
// of the row alone, not on the number of rows or how the row is spread over
// threads and blocks. So all ranks compute the same bits, and a row has the
// same result in every batch.

namespace oneshot {

// Marks a word of the workspace that no rank has written yet. As data it is a
// NaN in float32 and two NaNs in bfloat16 and float16, so another NaN is sent
// in its place; a float32 sum with either is the same canonical NaN.
constexpr uint32_t kSentinel = 0xFFFFFFFFu;
constexpr uint32_t kReplacement = kX == kF32 ? 0x7FFFFFFFu : 0x7FFF7FFFu;

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

// Leaves a notice of a wait, `passed` times `notice_ns` long, unless another
// thread of the device has left one of this epoch that says as much.
__device__ __noinline__ void LeaveNotice(const KernelArguments& args,
                                         uint32_t epoch, int peer,
                                         uint64_t passed) {
  const unsigned long long stamp =
      static_cast<unsigned long long>(epoch) << 32 | passed;
  unsigned long long* latest = &args.control->notice;
  unsigned long long seen = *static_cast<volatile unsigned long long*>(latest);
  do {
    if (seen >> 32 == epoch && seen >= stamp) return;
    const unsigned long long found = atomicCAS(latest, seen, stamp);
    if (found == seen) break;
    seen = found;
  } while (true);
  Notice& notice = args.fault->notice;
  notice.peer = peer;
  notice.rank = args.rank;
  notice.site = args.site;
  __threadfence_system();
  *static_cast<volatile unsigned long long*>(&notice.stamp) = stamp;
}

// A wait that takes long. Returns when it has begun.
__device__ __noinline__ uint64_t CheckDeadline(const KernelArguments& args,
                                               uint32_t epoch, int peer,
                                               uint64_t start) {
  const uint64_t now = Nanoseconds();
  if (start == 0) return now;
  if (now - start < args.timeout_ns) {
    if (const uint64_t passed = (now - start) / args.notice_ns; passed > 0) {
      LeaveNotice(args, epoch, peer, passed);
    }
    return start;
  }
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
    start = CheckDeadline(args, epoch, peer, start);
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

}  // namespace oneshot
