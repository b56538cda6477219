// SPDX-License-Identifier: Apache-2.0
#include "cuda/emulator/emulator.h"

#include <cstdlib>
#include <cstring>
#include <deque>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <random>
#include <utility>

// Leaves the running fiber, whose stack pointer goes to *from, for another.
extern "C" void OneshotSwitchFiber(void** from, void* to);
asm(R"(
.globl OneshotSwitchFiber
OneshotSwitchFiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");

namespace oneshot {
namespace {

constexpr int kWarp = 32;
constexpr int kSavedRegisters = 6;
constexpr size_t kStackBytes = 32 << 10;

// Rounds in which nothing changes, after which nothing ever will.
constexpr int kHang = 20000;

constexpr int kMostResident = 5;    // clusters
constexpr int kMostUnderWay = 400;  // words

struct Warp;
struct Block;
struct Rank;

struct Fiber {
  Warp* warp = nullptr;
  int lane = 0;
  std::unique_ptr<char[]> stack;
  void* stack_pointer = nullptr;
  bool done = false;
};

// What lanes that are named by one mask hand each other. A lane is at most one
// exchange ahead of another, so two sets suffice.
struct Exchanges {
  unsigned count[kWarp] = {};
  unsigned values[2][kWarp] = {};
};

struct Warp {
  Block* block = nullptr;
  int index = 0;
  int slowness = 1;
  bool done = false;
  std::deque<Fiber> lanes;
  std::map<unsigned, Exchanges> exchanges;  // by mask
};

// An mbarrier, in the eight bytes that the kernel has for it.
struct Barrier {
  int16_t pending;
  uint16_t phase;
  int32_t bytes;  // expected and not come yet
};
static_assert(sizeof(Barrier) == sizeof(uint64_t));

struct Cluster {
  Rank* rank = nullptr;
  std::deque<Block> blocks;
  int arrived = 0;
  int generation = 0;
};

struct Block {
  Cluster* cluster = nullptr;
  int index = 0;
  int live = 0;  // threads
  int synced = 0;
  int generation = 0;
  std::vector<uint64_t> shared;
  std::deque<Warp> warps;
};

struct Word {
  unsigned* address;
  unsigned value;
};

struct Rank {
  std::vector<EmulatedLaunch> launches;
  size_t launch = 0;
  int next_cluster = 0;
  size_t most_resident = 1;
  std::list<Cluster> resident;
  std::vector<Word> under_way;

  bool done() const { return launch == launches.size(); }
};

class Emulator {
 public:
  Emulator(const std::vector<std::vector<EmulatedLaunch>>& launches,
           uint64_t seed)
      : random_(seed), most_under_way_(Random(2) * Random(kMostUnderWay)) {
    for (const auto& of_rank : launches) {
      Rank& rank = ranks_.emplace_back();
      rank.launches = of_rank;
      rank.most_resident = 1 + Random(kMostResident);
      Dispatch(rank);
    }
  }

  std::string Run() {
    int idle = 0;
    while (failure_.empty()) {
      const uint64_t before = changes_;
      bool done = true;
      for (Rank& rank : ranks_) {
        if (rank.done()) continue;
        done = false;
        if (Random(3) != 0) Step(rank);
      }
      if (done) break;
      idle = changes_ == before ? idle + 1 : 0;
      if (idle == kHang) return "nothing goes on:" + Waiting();
    }
    return failure_;
  }

  void Yield() { OneshotSwitchFiber(&current_->stack_pointer, scheduler_); }

  void Fail(const std::string& why) {
    failure_ = why + " in " + Name(*current_->warp);
    while (true) Yield();
  }

  const unsigned* Exchange(unsigned lanes, unsigned mine) {
    const int lane = current_->lane;
    if ((lanes >> lane & 1) == 0) Fail("a lane that is not in its own mask");
    Exchanges& exchanges = current_->warp->exchanges[lanes];
    const unsigned number = ++exchanges.count[lane];
    unsigned* values = exchanges.values[number % 2];
    values[lane] = mine;
    for (int other = 0; other < kWarp; ++other) {
      if ((lanes >> other & 1) == 0) continue;
      while (exchanges.count[other] < number) Yield();
    }
    return values;
  }

  void SyncThreads() {
    Block& block = *current_->warp->block;
    const int generation = block.generation;
    if (++block.synced == static_cast<int>(block.warps.size()) * kWarp) {
      block.synced = 0;
      ++block.generation;
      ++changes_;
    }
    while (block.generation == generation) Yield();
  }

  void StoreRemotely(unsigned* address, const unsigned* words, int count) {
    std::vector<Word>& under_way = Here().rank->under_way;
    for (int i = 0; i < count; ++i) {
      under_way.push_back({address + i, words[i]});
    }
    while (under_way.size() > most_under_way_) Deliver(under_way);
    if (Random(4) == 0) Yield();
  }

  void* Shared(size_t bytes) {
    std::vector<uint64_t>& shared = current_->warp->block->shared;
    // Whatever was there before. 16 bytes more, for alignment.
    if (shared.empty()) shared.resize(bytes / 8 + 3, 0xA5A5A5A5A5A5A5A5u);
    return SharedOf(*current_->warp->block);
  }

  void ClusterArrive() {
    Cluster& cluster = Here();
    if (++cluster.arrived == Threads(cluster)) {
      cluster.arrived = 0;
      ++cluster.generation;
      ++changes_;
    }
  }

  // Behind ClusterArrive, so that there is one generation to wait for: the
  // kernel has one such barrier.
  void ClusterWait() {
    while (Here().generation == 0) Yield();
  }

  void StAsync(float* target, float value, Barrier* barrier, int index) {
    Block& mine = *current_->warp->block;
    Block& other = mine.cluster->blocks[index];
    if (other.live == 0) Fail("a store into a block that has ended");
    if (other.shared.empty()) Fail("a store into a block that has not begun");
    const auto there = [&](void* here) {
      return SharedOf(other) + (static_cast<char*>(here) - SharedOf(mine));
    };
    std::memcpy(there(target), &value, sizeof(value));
    auto* counts = reinterpret_cast<Barrier*>(there(barrier));
    counts->bytes -= sizeof(value);
    Complete(*counts);
    if (Random(3) == 0) Yield();
  }

  void MbarrierArriveExpectTx(Barrier* barrier, uint32_t bytes) {
    Yield();
    barrier->bytes += static_cast<int32_t>(bytes);
    --barrier->pending;
    Complete(*barrier);
  }

  const Fiber& current() const { return *current_; }

 private:
  uint64_t Random(uint64_t below) { return random_() % below; }

  Cluster& Here() { return *current_->warp->block->cluster; }

  static int Threads(const Cluster& cluster) {
    const Block& block = cluster.blocks.front();
    return static_cast<int>(cluster.blocks.size() * block.warps.size()) * kWarp;
  }

  static char* SharedOf(Block& block) {
    const auto address = reinterpret_cast<uintptr_t>(block.shared.data());
    return reinterpret_cast<char*>((address + 15) / 16 * 16);
  }

  static std::string Name(const Warp& warp) {
    return "warp " + std::to_string(warp.index) + " of block " +
           std::to_string(warp.block->index);
  }

  // Of the clusters that are resident.
  std::string Waiting() const {
    std::string text;
    for (size_t r = 0; r < ranks_.size(); ++r) {
      for (const Cluster& cluster : ranks_[r].resident) {
        for (const Block& block : cluster.blocks) {
          for (const Warp& warp : block.warps) {
            if (warp.done) continue;
            text += " rank " + std::to_string(r) + " launch " +
                    std::to_string(ranks_[r].launch) + " " + Name(warp) + ",";
          }
        }
      }
    }
    return text;
  }

  void Complete(Barrier& barrier) {
    ++changes_;
    if (barrier.pending != 0 || barrier.bytes != 0) return;
    ++barrier.phase;
    barrier.pending = 1;
  }

  void Deliver(std::vector<Word>& under_way) {
    Word& word = under_way[Random(under_way.size())];
    *word.address = word.value;
    word = under_way.back();
    under_way.pop_back();
    ++changes_;
  }

  // Lets as many clusters begin as there is room for, in order of their index.
  void Dispatch(Rank& rank) {
    const EmulatedKernel& kernel = *rank.launches[rank.launch].kernel;
    while (rank.resident.size() < rank.most_resident &&
           rank.next_cluster < kernel.blocks / kernel.cluster) {
      Cluster& cluster = rank.resident.emplace_back();
      cluster.rank = &rank;
      for (int b = 0; b < kernel.cluster; ++b) {
        Block& block = cluster.blocks.emplace_back();
        block.cluster = &cluster;
        block.index = rank.next_cluster * kernel.cluster + b;
        block.live = kernel.threads;
        for (int w = 0; w < kernel.threads / kWarp; ++w) AddWarp(block, w);
      }
      ++rank.next_cluster;
      ++changes_;
    }
  }

  void AddWarp(Block& block, int index) {
    constexpr int kSlowness[] = {1, 2, 4, 16, 64};
    Warp& warp = block.warps.emplace_back();
    warp.block = &block;
    warp.index = index;
    warp.slowness = kSlowness[Random(std::size(kSlowness))];
    for (int lane = 0; lane < kWarp; ++lane) {
      Fiber& fiber = warp.lanes.emplace_back();
      fiber.warp = &warp;
      fiber.lane = lane;
      if (stacks_.empty()) stacks_.emplace_back(new char[kStackBytes]);
      fiber.stack = std::move(stacks_.back());
      stacks_.pop_back();
      // As if it had just left: the registers, and where to go on. The ABI
      // wants the stack eight bytes off a multiple of 16 there.
      const auto end = reinterpret_cast<uintptr_t>(fiber.stack.get());
      auto** top = reinterpret_cast<void**>((end + kStackBytes) / 16 * 16);
      *--top = nullptr;
      *--top = reinterpret_cast<void*>(&Begin);
      for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
      fiber.stack_pointer = top;
    }
  }

  static void Begin();

  void Step(Rank& rank) {
    for (uint64_t n = Random(8); n > 0 && !rank.under_way.empty(); --n) {
      Deliver(rank.under_way);
    }
    for (auto cluster = rank.resident.begin();
         cluster != rank.resident.end();) {
      bool done = true;
      for (Block& block : cluster->blocks) {
        for (Warp& warp : block.warps) {
          if (!warp.done && Random(warp.slowness) == 0) Advance(warp);
          done = done && warp.done;
        }
      }
      cluster = done ? Retire(rank, cluster) : std::next(cluster);
    }
    if (failure_.empty() && rank.resident.empty()) {
      Dispatch(rank);
      if (!rank.resident.empty()) return;
      // The end of a kernel: all that it stored is there.
      while (!rank.under_way.empty()) Deliver(rank.under_way);
      rank.next_cluster = 0;
      if (++rank.launch < rank.launches.size()) Dispatch(rank);
    } else if (failure_.empty()) {
      Dispatch(rank);
    }
  }

  std::list<Cluster>::iterator Retire(Rank& rank,
                                      std::list<Cluster>::iterator cluster) {
    for (Block& block : cluster->blocks) {
      for (Warp& warp : block.warps) {
        for (Fiber& fiber : warp.lanes) {
          stacks_.push_back(std::move(fiber.stack));
        }
      }
    }
    ++changes_;
    return rank.resident.erase(cluster);
  }

  // Lets each lane go on until it yields, several times.
  void Advance(Warp& warp) {
    for (uint64_t n = 1 + Random(6); n > 0 && !warp.done; --n) {
      warp.done = true;
      for (Fiber& fiber : warp.lanes) {
        if (fiber.done) continue;
        current_ = &fiber;
        OneshotSwitchFiber(&scheduler_, fiber.stack_pointer);
        if (fiber.done) --warp.block->live;
        warp.done = warp.done && fiber.done;
      }
    }
  }

  std::mt19937_64 random_;
  const size_t most_under_way_;
  std::deque<Rank> ranks_;
  std::vector<std::unique_ptr<char[]>> stacks_;  // free ones
  Fiber* current_ = nullptr;
  void* scheduler_ = nullptr;
  uint64_t changes_ = 0;
  std::string failure_;
};

Emulator* running = nullptr;

void Emulator::Begin() {
  Fiber& fiber = *running->current_;
  const Rank& rank = *fiber.warp->block->cluster->rank;
  const EmulatedLaunch& launch = rank.launches[rank.launch];
  launch.kernel->run(launch.arguments);
  fiber.done = true;
  running->Yield();
  std::abort();  // nobody goes on with it
}

}  // namespace

std::string RunEmulated(const std::vector<std::vector<EmulatedLaunch>>& ranks,
                        uint64_t seed) {
  Emulator emulator(ranks, seed);
  running = &emulator;
  std::string why = emulator.Run();
  running = nullptr;
  return why;
}

namespace emulation {

Index Thread() {
  const Fiber& fiber = running->current();
  return {fiber.warp->index * kWarp + fiber.lane};
}
Index Block() { return {running->current().warp->block->index}; }
void Yield() { running->Yield(); }
void Trap() { running->Fail("a trap"); }
const unsigned* Exchange(unsigned lanes, unsigned mine) {
  return running->Exchange(lanes, mine);
}
void SyncThreads() { running->SyncThreads(); }
void StoreRemotely(unsigned* address, const unsigned* words, int count) {
  running->StoreRemotely(address, words, count);
}
void* Shared(size_t bytes) { return running->Shared(bytes); }
void ClusterArrive() { running->ClusterArrive(); }
void ClusterWait() { running->ClusterWait(); }
void MbarrierInit(uint64_t* barrier) {
  *reinterpret_cast<Barrier*>(barrier) = {1, 0, 0};
}
void StAsync(float* target, float value, uint64_t* barrier, int block) {
  running->StAsync(target, value, reinterpret_cast<Barrier*>(barrier), block);
}
void MbarrierArriveExpectTx(uint64_t* barrier, uint32_t bytes) {
  running->MbarrierArriveExpectTx(reinterpret_cast<Barrier*>(barrier), bytes);
}
bool MbarrierTryWait(const uint64_t* barrier, uint32_t parity) {
  running->Yield();
  return reinterpret_cast<const Barrier*>(barrier)->phase % 2 != parity;
}

}  // namespace emulation
}  // namespace oneshot
