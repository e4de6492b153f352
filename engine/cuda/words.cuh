// Words that are their own flag: with every bit set (a NaN that no result has) a word is "not there yet". So who waits for it needs
// no fence and no counter, and it takes one trip. Who takes it puts the mark back for the next time. Every such wait ends (waits.cuh).
#pragma once
#include "waits.cuh"

namespace mob {

__device__ __forceinline__ uint4 not_there() { return make_uint4(~0u, ~0u, ~0u, ~0u); }
__device__ __forceinline__ bool is_there(uint4 v) { return v.x != ~0u && v.y != ~0u && v.z != ~0u && v.w != ~0u; }

// Words of this GPU's CTAs at `from` + i * step, i < count, but the `skip`-th: looks until all are there. The marks stay.
template <int Most>
__device__ __forceinline__ void wait_words(uint4 (&v)[Most], const float *from, size_t step, int count, int skip, Waits *waits) {
  uint32_t start = 0;
  for (int tries = 0;; tries++) {
    bool there = true;
#pragma unroll
    for (int i = 0; i < Most; i++)
      if (i < count && i != skip) v[i] = load_relaxed_gpu(from + i * step);
#pragma unroll
    for (int i = 0; i < Most; i++)
      if (i < count && i != skip) there = there && is_there(v[i]);
    if (there || !look_again_here(waits, tries, &start)) return;
  }
}

// Takes words of ranks first, first + 1 ... of those before `end`, at `from` + rank * step, but rank `own`'s, which is there already. Zeros
// where the wait ended without one. sender: who sends them, if not those ranks (-1).
template <int Most>
__device__ __forceinline__ void take_words(uint4 (&v)[Most], uint8_t *from, size_t step, int first, int end, int own, int sender, Waits *waits) {
  uint32_t start = 0;
  int missing = -1;
  for (int tries = 0;; tries++) {
    missing = -1;
#pragma unroll
    for (int i = 0; i < Most; i++)
      if (first + i < end && first + i != own) v[i] = load_relaxed_sys(from + (first + i) * step);
#pragma unroll
    for (int i = 0; i < Most; i++)
      if (first + i < end && first + i != own && !is_there(v[i])) missing = first + i;
    if (missing < 0 || !look_again(waits, tries, &start, sender < 0 ? missing : sender)) break;
  }
#pragma unroll
  for (int i = 0; i < Most; i++) {
    if (first + i >= end || first + i == own) continue;
    if (missing >= 0 && !is_there(v[i])) v[i] = make_uint4(0, 0, 0, 0);
    store_relaxed_sys(from + (first + i) * step, not_there());
  }
}

__device__ __forceinline__ void add_words(float *sum, uint4 v) {
  sum[0] += __uint_as_float(v.x);
  sum[1] += __uint_as_float(v.y);
  sum[2] += __uint_as_float(v.z);
  sum[3] += __uint_as_float(v.w);
}

// ---- partial sums between CTAs. Threads' four words beside each other, the next four `Stride` floats further.
template <int Words, int Stride = 1024> __device__ __forceinline__ void give_partial(float *to, const float *sum) {
#pragma unroll
  for (int j = 0; j < Words / 4; j++) {
    float v[4];
#pragma unroll
    for (int q = 0; q < 4; q++) v[q] = sum[4 * j + q] == sum[4 * j + q] ? sum[4 * j + q] : __int_as_float(0x7fc00000);
    store_relaxed_gpu(to + j * Stride, make_float4(v[0], v[1], v[2], v[3]));
  }
}

template <int Words, int Stride = 1024> __device__ __forceinline__ void take_partial(float *from, float *sum, Waits *waits) {
  constexpr int kLoads = Words / 4, kBatch = kLoads < 8 ? kLoads : 8; // in all; in flight
#pragma unroll
  for (int first = 0; first < kLoads; first += kBatch) {
    uint4 v[kBatch];
    wait_words(v, from + first * Stride, Stride, kLoads - first, -1, waits);
#pragma unroll
    for (int j = 0; j < kBatch; j++) {
      if (first + j >= kLoads) break;
      store_relaxed_gpu(from + (first + j) * Stride, not_there());
      add_words(sum + 4 * (first + j), v[j]);
    }
  }
}

// The same of `givers` CTAs, `step` floats from one to the next: added to `sum` in their order. Givers: how many's are in flight.
// Words are compared one by one: is_there() of this many makes a flag of each first, 0.1 us a launch.
template <int Words, int Givers, int Stride = 1024>
__device__ __forceinline__ void take_partials(float *from, int givers, size_t step, float (&sum)[Words], Waits *waits) {
  constexpr int kEach = Words / 4;
  uint32_t start = 0;
#pragma unroll 1
  for (int first = 0; first < givers; first += Givers) {
    uint4 v[Givers][kEach];
    for (int tries = 0;; tries++) {
      bool there = true;
#pragma unroll
      for (int g = 0; g < Givers; g++)
#pragma unroll
        for (int j = 0; j < kEach; j++)
          if (first + g < givers) v[g][j] = load_relaxed_gpu(from + (size_t)(first + g) * step + j * Stride);
#pragma unroll
      for (int g = 0; g < Givers; g++)
#pragma unroll
        for (int j = 0; j < kEach; j++)
          if (first + g < givers) there = there && v[g][j].x != ~0u && v[g][j].y != ~0u && v[g][j].z != ~0u && v[g][j].w != ~0u;
      if (there || !look_again_here(waits, tries, &start)) break;
    }
#pragma unroll
    for (int g = 0; g < Givers; g++) {
      if (first + g >= givers) break;
#pragma unroll
      for (int j = 0; j < kEach; j++) {
        store_relaxed_gpu(from + (size_t)(first + g) * step + j * Stride, not_there());
        add_words(sum + 4 * j, v[g][j]);
      }
    }
  }
}

} // namespace mob
