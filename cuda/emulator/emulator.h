// SPDX-License-Identifier: Apache-2.0
//
// Runs kernels of several ranks on one CPU thread, in a sequence that no GPU
// would choose: to find what depends on one. Threads are fibers and go on at
// random; warps have speeds that differ by a lot; few blocks are resident; a
// word that was stored for a peer arrives whenever it likes until the kernel
// ends, words of one packet apart. The seed decides it all.
//
// What it can't tell: whether the memory model of a GPU allows what it does.
#ifndef ONESHOT_CUDA_EMULATOR_EMULATOR_H_
#define ONESHOT_CUDA_EMULATOR_EMULATOR_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace oneshot {

// A kernel that was compiled behind emulated_machine.h.
struct EmulatedKernel {
  void (*run)(const void* arguments);  // by each thread; a KernelArguments
  int blocks;
  int threads;  // in a block
  int cluster;  // blocks of one
};

struct EmulatedLaunch {
  const EmulatedKernel* kernel;
  const void* arguments;
};

// Runs the launches of every rank, one after the other on each. Empty if all
// have ended; else who waits, when nothing changes any more.
std::string RunEmulated(const std::vector<std::vector<EmulatedLaunch>>& ranks,
                        uint64_t seed);

// For the kernels, on behalf of the thread that runs.
namespace emulation {

struct Index {
  int x;
};
Index Thread();
Index Block();

void Yield();  // to others; where something may have changed meanwhile
void Trap();

// The values of the lanes of a warp, which are here together.
const unsigned* Exchange(unsigned lanes, unsigned mine);
void SyncThreads();

// Words that are there for others some time later.
void StoreRemotely(unsigned* address, const unsigned* words, int count);

void* Shared(size_t bytes);
void ClusterArrive();
void ClusterWait();
void MbarrierInit(uint64_t* barrier);
void StAsync(float* target, float value, uint64_t* barrier, int block);
void MbarrierArriveExpectTx(uint64_t* barrier, uint32_t bytes);
bool MbarrierTryWait(const uint64_t* barrier, uint32_t parity);

}  // namespace emulation
}  // namespace oneshot

#endif  // ONESHOT_CUDA_EMULATOR_EMULATOR_H_
