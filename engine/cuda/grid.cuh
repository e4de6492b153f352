// Meetings of all CTAs of a launch, for kernels that do several dependent products in one launch. The CTAs must be resident together: at most
// one grid's worth, an SM each. What must not wait (weights on their way into a ring) goes on during a meeting.
#pragma once
#include "waits.cuh"

namespace mob {

constexpr int kGridMeets = 15; // of one launch, at most

// Words of a launch's meetings, in global memory: zero before and after every launch.
struct GridWords {
  int met[kGridMeets]; // arrivals at the i-th
  int left;            // that have waited for the last time
};

// An arrival at meeting `i`. One thread, behind a barrier of those threads whose stores the others are to read.
__device__ __forceinline__ void grid_arrive(GridWords *words, int i) { add_release_gpu_int(&words->met[i], 1); }

// Until `count` have come, or the step has failed: then without them. What they stored before may be read by the threads that meet with
// this one afterwards.
__device__ __forceinline__ void grid_wait_for(GridWords *words, int i, int count, Waits *waits) {
  uint32_t start = 0;
  for (int tries = 0; load_acquire_gpu_int(&words->met[i]) < count; tries++) {
    spin_pause();
    if (tries % 1024 != 1023) continue;
    const uint32_t now = clock_ticks();
    if (!start) start = now;
    if (give_up_here(waits, now - start)) return;
  }
}

// Once in every CTA, by one thread, when nothing of it waits any more and it has arrived everywhere: the last one clears the words.
__device__ __forceinline__ void grid_leave(GridWords *words) {
  if (atomicAdd(&words->left, 1) != (int)gridDim.x - 1) return;
  for (int i = 0; i < kGridMeets; i++) words->met[i] = 0;
  words->left = 0;
}

} // namespace mob
