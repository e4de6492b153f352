// Why every wait on the device ends: with what it waits for, or, after some seconds by the GPU's clock or when the host or another
// rank gives up, without it. Then the executor's words say so: what is left of the step waits for nothing, writes neither
// keys and values nor ids, and the host reports the step as failed.
#pragma once
#include "common.cuh"

namespace mob {

constexpr int kMaxRanks = 8;

struct Waits { // of one rank, in its device memory
  int halt;               // not 0: the step has failed. Set by this rank's kernels and by other ranks'
  int rank, ranks;
  uint32_t limit;         // clock_ticks()
  int *host;              // pinned, of all ranks: not 0 when the host or a rank gave up
  int *missing;           // pinned, of this rank: what its first wait that ran out waited for, 1 + rank
  int *peers[kMaxRanks];  // every rank's `halt`
};

__device__ __forceinline__ bool halted(const Waits *w) { return load_relaxed_sys_int(&w->halt) != 0; }

// The GPU's clock in units of 65.5 us; never 0.
__device__ __forceinline__ uint32_t clock_ticks() { return (uint32_t)(global_ns() >> 16) | 1; }

__device__ __forceinline__ void halt_here(Waits *w, int missing) {
  if (load_relaxed_sys_int(w->missing) == 0) store_relaxed_sys_int(w->missing, 1 + missing);
  store_relaxed_sys_int(&w->halt, 1);
}

// This rank's wait for `missing` ran out, or it learned that another's did: so all learn it.
__device__ __forceinline__ void halt_all(Waits *w) {
  store_relaxed_sys_int(w->host, 1);
#pragma unroll 1
  for (int r = 0; r < w->ranks; r++) store_relaxed_sys_int(w->peers[r], 1);
  __threadfence_system(); // the host's word is there before anything that this rank sends from now on
}

// A wait within this GPU, `waited` ticks old.
__device__ __forceinline__ bool give_up_here(Waits *w, uint32_t waited) {
  if (w == nullptr) return waited > 80000;
  if (waited > w->limit) halt_here(w, w->rank);
  return halted(w);
}

// Between looks number `tries` and the next at what this GPU makes: is it worth while? `start`: 0 before the first look.
__device__ __forceinline__ bool look_again_here(Waits *w, int tries, uint32_t *start) {
  spin_pause();
  if (tries % 1024 != 1023) return true;
  const uint32_t now = clock_ticks();
  if (*start == 0) *start = now;
  return !give_up_here(w, now - *start);
}

// The same of what rank `from` sends.
__device__ __forceinline__ bool look_again(Waits *w, int tries, uint32_t *start, int from) {
  spin_pause();
  if (tries % 64 != 63) return true;
  if (halted(w)) return false;
  const uint32_t now = clock_ticks();
  if (*start == 0) *start = now;
  const bool late = now - *start > w->limit;
  if (late) halt_here(w, from);
  if (!late && (tries % 1024 != 1023 || load_relaxed_sys_int(w->host) == 0)) return true; // the host's word is far away
  halt_all(w);
  return false;
}

} // namespace mob
