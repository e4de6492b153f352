// A router's product for 5 to 256 rows, whose bf16 records hold hi parts, then lo parts of its matrix's columns: x w^T in parts by columns.
//
// A CTA has two column pairs of 128 experts, which are in its shared memory before the kernels in front have ended, and some tokens' hi
// and lo parts of the same columns: everything is asked for at once. The tokens of a CTA are so few that about all SMs have work.
#pragma once
#include "kernels.h"

namespace mob {

struct RouterMany {
  const uint8_t *w, *x; // packed tiles; records of mp rows, the lo parts `pairs` column pairs behind the hi parts
  int mp;
  float *y;             // [parts][m][n]
  int m, n, pairs;      // tokens, experts; column pairs of w
};

template <int Tokens> struct RouterManyShared {
  static constexpr int kPairs = 2, kSlot = 17408, kX = Tokens * 256, kThreads = 288;
  static constexpr int kBytes = 1024 + kPairs * (2 * kSlot + 2 * kX) + kPairs * 8;
};

template <int Tokens> __global__ void __launch_bounds__(RouterManyShared<Tokens>::kThreads) router_many_kernel(const RouterMany p) {
  using S = RouterManyShared<Tokens>;
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *w = raw + (1024 - smem_address(raw) % 1024) % 1024, *x = w + S::kPairs * 2 * S::kSlot;
  uint64_t *full = (uint64_t *)(x + S::kPairs * 2 * S::kX);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int part = blockIdx.x, block = blockIdx.y * 2, token0 = blockIdx.z * Tokens, tokens = min(Tokens, p.m - token0);
  const int first = part * S::kPairs, pairs = min(S::kPairs, p.pairs - first), blocks = (p.n + kTileRows - 1) / kTileRows;

  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kPairs; i++) mbar_init(&full[i], 1);
    mbar_init_fence();
  }
  __syncthreads();
  if (warp == 8) {
    if (lane != 0) return;
    const uint64_t keep = policy_evict_last(), once = policy_evict_first();
    const bool both = block + 1 < blocks;
    const size_t record = record_bytes(false, p.mp);
    const int rows = (tokens + 7) / 8 * 8;
    for (int i = 0; i < pairs; i++) {
      const uint8_t *from = p.w + ((size_t)block * p.pairs + first + i) * kPairBytes;
      mbar_arrive_expect(&full[i], (both ? 2 : 1) * kPairUsed + 2 * rows * 256);
      bulk_load(w + 2 * i * S::kSlot, from, kPairUsed, &full[i], once);
      if (both) bulk_load(w + (2 * i + 1) * S::kSlot, from + (size_t)p.pairs * kPairBytes, kPairUsed, &full[i], once);
    }
    depend_wait();
    for (int i = 0; i < pairs; i++) {
      for (int low = 0; low < 2; low++) {
        const uint8_t *from = p.x + (size_t)(first + i + low * p.pairs) * record + (size_t)token0 * 128;
        uint8_t *to = x + (2 * i + low) * S::kX;
        bulk_load(to, from, rows * 128, &full[i], keep);
        bulk_load(to + Tokens * 128, from + (size_t)p.mp * 128, rows * 128, &full[i], keep);
      }
    }
    return;
  }
  const int group = warp / 4, t4 = lane % 4;
  float sum[Tokens / 2];
#pragma unroll
  for (int k = 0; k < Tokens / 2; k++) sum[k] = 0;
  for (int i = 0; i < pairs; i++) {
    mbar_wait(&full[i], 0);
    // Where there is no second block of 64, its group computes what lies there; that is not used.
    const uint8_t *mine = w + (2 * i + group) * S::kSlot, *hi = x + 2 * i * S::kX;
    pair_sums<false, Tokens>(sum, mine, hi, Tokens, t4);
    pair_sums<false, Tokens>(sum, mine, hi + S::kX, Tokens, t4);
  }
  float *y = p.y + ((size_t)part * p.m + token0) * p.n;
  const int n = (block + group) * kTileRows + warp % 4 * 16 + lane / 4;
#pragma unroll
  for (int k = 0; k < Tokens / 2; k++) {
    const int token = k / 4 * 8 + 2 * t4 + k % 2, at = n + (k % 4) / 2 * 8;
    if (token < tokens && at < p.n) y[(size_t)token * p.n + at] = sum[k];
  }
}

} // namespace mob
