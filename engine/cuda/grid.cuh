// A meeting of all CTAs of a launch, for a kernel that does two dependent products in one. The CTAs must be resident together: at most one
// grid's worth, an SM each. What must not wait (weights on their way into a ring) goes on during the meeting.
#pragma once
#include "waits.cuh"

namespace mob {

// Words of the meeting, in global memory: zero before and after every launch.
struct GridWords {
  int met;  // arrivals
  int left; // CTAs that wait no more
};

// An arrival. One thread, behind a barrier of those threads whose stores the others are to read.
__device__ __forceinline__ void grid_arrive(GridWords *words) { add_release_gpu_int(&words->met, 1); }

// Until `count` have come, or the step has failed: then without them. What they stored before may be read by the threads that meet with
// this one afterwards.
__device__ __forceinline__ void grid_wait_for(GridWords *words, int count, Waits *waits) {
  uint32_t start = 0;
  for (int tries = 0; load_acquire_gpu_int(&words->met) < count; tries++)
    if (!look_again_here(waits, tries, &start)) return;
}

// Once in every CTA, by one thread, when nothing of it waits any more and it has arrived: the last one clears the words.
__device__ __forceinline__ void grid_leave(GridWords *words) {
  if (atomicAdd(&words->left, 1) != (int)gridDim.x - 1) return;
  words->met = words->left = 0;
}

} // namespace mob
