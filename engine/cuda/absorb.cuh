// What the kernels share that multiply by a head's UK or UV: e4m3 weights, unpacked to half (exact), times halves.
#pragma once
#include "kernels.h"

namespace mob {

constexpr int kHeadBytes = 4 * kPairBytes; // of UK_h^T, and of UV_h

// All of a head's tiles into shared memory.
__device__ __forceinline__ void load_head(uint8_t *to, const uint8_t *from, uint64_t *bar) {
  if (threadIdx.x == 0) {
    mbar_init(bar, 1);
    mbar_init_fence();
    mbar_arrive_expect(bar, kHeadBytes);
    const uint64_t keep = policy_evict_last();
    for (int i = 0; i < 4; i++)
      bulk_load(to + i * (kHeadBytes / 4), from + i * (kHeadBytes / 4), kHeadBytes / 4, bar, keep);
  }
  __syncthreads();
}

// 16 rows x half (64) of the columns of a tile (rows `row` and + 8) times G groups of eight tokens, unpacked once: b holds a lane's 16
// columns of token g of a group as halves, columns half * 64 + t4 * 16 and on.
template <int G>
__device__ __forceinline__ void tile_mma(const uint8_t *tile, int row, int t4, int half, const uint32_t (&b)[G][8], float (&acc)[G][4]) {
  const int chunk = t4 + 4 * half;
  const uint4 u = *(const uint4 *)(tile + row * 128 + ((chunk ^ (row & 7)) << 4));
  const uint4 v = *(const uint4 *)(tile + (row + 8) * 128 + ((chunk ^ (row & 7)) << 4));
  const uint32_t a0[4] = {u.x, u.y, u.z, u.w}, a1[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int q = 0; q < 4; q++) {
    const uint32_t a[4] = {e4m3x2_to_half2((uint16_t)a0[q]), e4m3x2_to_half2((uint16_t)a1[q]),
                           e4m3x2_to_half2((uint16_t)(a0[q] >> 16)), e4m3x2_to_half2((uint16_t)(a1[q] >> 16))};
#pragma unroll
    for (int i = 0; i < G; i++) mma_16816(acc[i], a, b[i] + q * 2);
  }
}

} // namespace mob
