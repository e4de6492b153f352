// A block of the emulated GPU: its threads are fibers of one OS thread, which run until they wait. What device code sees of it.
//
// All waiting goes through three ways: a meeting of lanes (warp or warpgroup instructions: the last to come does the work of all), a barrier of
// the block, an mbarrier. A thread that looks again and again at memory calls spin(). When every thread waits and none can
// ever be woken, the process ends with a table of who waits where.
#ifndef MOB_EMU_BLOCK_H
#define MOB_EMU_BLOCK_H

#include <cstddef>
#include <cstdint>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Of an OS thread; hidden, so that their address is found fast in a library with much thread-local data.
#define EMU_LOCAL __thread __attribute__((visibility("hidden")))
extern EMU_LOCAL uint3 threadIdx, blockIdx;
extern EMU_LOCAL dim3 blockDim, gridDim;

namespace emu {

struct Place { // of the running thread in its block
  int index, lane, warp;
};
extern EMU_LOCAL const Place *here;

[[noreturn]] void broken(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Lanes of a warp named by `mask` that still run, each with `args`; the last to come calls work(args by lane; null where
// a lane does not take part) and all go on. `what` names the instruction: lanes that meet in different ones end the process.
using Work = void (*)(void *const *args);
void meet_warp(uint32_t mask, const char *what, void *args, Work work);
// The same for the 128 threads of this thread's warpgroup.
void meet_warpgroup(const char *what, void *args, Work work);

void block_barrier();                  // __syncthreads: of the threads that still run
int block_vote(bool yes);              // the same; how many of them said yes
void named_barrier(int id, int count); // bar.sync id, count
void spin();                           // what is looked at has not come yet

// mbarriers and copies to shared memory. A copy is made when somebody waits who cannot go on, not before: who reads without
// waiting reads what was there.
void mbarrier_init(uint64_t *bar, uint32_t arrivals);
void mbarrier_arrive(uint64_t *bar, uint32_t expect_bytes);
void mbarrier_wait(uint64_t *bar, uint32_t parity);
void copy_to_shared(void *dst, const void *src, uint32_t bytes, uint64_t *bar);

// Clusters: blocks that run on one OS thread, each with dynamic shared memory of its own (static __shared__ they would have together). A block that is
// in none is a cluster of its own. mbarriers and copies may be those of any of its blocks that runs.
constexpr int kMaxCluster = 8; // blocks
int cluster_rank();
void cluster_barrier(); // of the threads that still run
uint32_t cluster_address(const void *p, int rank);          // of what block `rank` has where this one has p
void *cluster_pointer(uint32_t address, uint32_t bytes);    // to that many, aligned so

void *dynamic_shared();
uint32_t shared_address(const void *p); // dynamic shared memory only
const uint8_t *shared_pointer(uint32_t address); // to 16 bytes

// wgmma (tensor.cc): queued by a thread, computed when the warpgroup waits for it.
struct WgmmaOp {
  enum Kind { E4M3, BF16, BF16_TURNED, BF16_REGISTERS, BF16_REGISTERS_TURNED, F16_REGISTERS } kind;
  int n, add;
  float *d;
  uint64_t a, b;
  uint32_t regs[4];
  uint32_t group;
};
void wgmma_issue(const WgmmaOp &op);
void wgmma_commit_group();
void wgmma_wait_groups(uint32_t left);
void wgmma_compute(const WgmmaOp *const *lanes); // of 128 threads
void mma_16816(float *d, const uint32_t *a, const uint32_t *b, bool bf16);
void load_matrices(uint32_t *d, const void *row, bool turned);
void store_matrices(void *row, const uint32_t *d, bool turned = false);
uint32_t turn_matrix(uint32_t v);

} // namespace emu

#endif
