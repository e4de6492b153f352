// Parts of a dispatch plan's kernels.
#pragma once
#include "kernels.h"

namespace mob {

// A routed expert's number among those that are on this rank; -1: it is elsewhere.
__device__ __forceinline__ int here(const MoePlan &p, int id) { return id >= p.first && id < p.first + p.experts ? id - p.first : -1; }

__device__ __forceinline__ int2 add2(int2 a, int2 b) { return make_int2(a.x + b.x, a.y + b.y); }

// Sum over the threads before this one; `all`: over all. Every thread of the block calls this; warps [Threads / 32].
template <int Threads> __device__ __forceinline__ int2 prefix_sum(int2 own, int2 *warps, int2 *all) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int2 v = own;
#pragma unroll
  for (int s = 1; s < 32; s <<= 1) {
    const int2 before = make_int2(__shfl_up_sync(~0u, v.x, s), __shfl_up_sync(~0u, v.y, s));
    if (lane >= s) v = add2(v, before);
  }
  if (lane == 31) warps[warp] = v;
  __syncthreads();
  int2 sum = make_int2(0, 0);
#pragma unroll
  for (int w = 0; w < Threads / 32; w++) {
    if (w == warp) v = add2(v, sum);
    sum = add2(sum, warps[w]);
  }
  *all = sum;
  return make_int2(v.x - own.x, v.y - own.y);
}

} // namespace mob
