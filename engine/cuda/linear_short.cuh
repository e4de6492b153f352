// The e4m3 linear of 17 to 96 tokens where the matrix is so short that neither its bytes nor its products bound it, but the way of
// activations and of partial sums through the L2.
//
// K is cut into a few equal ranges of column pairs. A CTA has all the activations of one range in shared memory, loaded once, and
// takes blocks of 64 outputs one after the other, its weights through a ring that is full before the kernels in front have ended. Two
// warpgroups take the column pairs in turns. The ranges' sums of a block are added by all their CTAs, each for some of the tokens,
// in the order of ranges: one trip through the L2 with all loads in flight, no atomics, the result does not depend on timing.
#pragma once
#include "kernels.h"

namespace mob {

struct LinearShort {
  const uint8_t *w, *x; // packed tiles; records of mp rows
  int mp;               // m padded to 8, at most Tokens
  bf16 *y;              // [m][ldy]
  int ldy;
  float *partial;       // [blocks][cuts][64 * Tokens], every bit set before and after
  int m, blocks, pairs; // tokens; blocks of 64 outputs; column pairs
  int cuts, w_slots;    // ranges of column pairs; slots of weights, an even number: a slot is always the same warpgroup's
  Waits *waits;         // may be null
};

template <int Tokens> struct LinearShortShared {
  static constexpr int kThreads = 288, kMostPairs = 8, kMostCuts = 4, kMostSlots = 12;
  static constexpr int kW = 17408; // a pair, so that the next begins at 1,024 again
  static constexpr int kX = (Tokens * 264 + 1023) / 1024 * 1024;
  static constexpr int kSums = 64 * Tokens * 4; // what the warpgroups exchange
  static constexpr int kBars = (kMostPairs + 2 * kMostSlots) * 8;
  static constexpr int kMost = 232448;
  // `rounds`: blocks that a CTA takes. With one, activations are of no use any more when sums are exchanged.
  static constexpr int fixed_bytes(int pairs, int rounds) { return 1024 + pairs * kX + (rounds > 1 ? kSums : 0) + kBars; }
};

// Words [0, 4) of a group of eight tokens, of 64 outputs: two of output `row`, two of row + 8.
__device__ __forceinline__ void put_short(const LinearShort &p, const float *v, int token0, int n) {
  const int lane = threadIdx.x % 32, token = token0 + lane / 4;
  const uint32_t low = turn_matrix(pack_bf16(v[0], v[1])), high = turn_matrix(pack_bf16(v[2], v[3]));
  if (token >= p.m) return;
  bf16 *to = p.y + (size_t)token * p.ldy + n + lane % 4 * 2;
  *(uint32_t *)to = low;
  *(uint32_t *)(to + 8) = high;
}

// Adds what the other ranges' CTAs left of a group of eight tokens, in the order of ranges; `at`: where range 0 leaves it.
template <int Most> __device__ __forceinline__ void take_short(const LinearShort &p, float *at, size_t step, int cut, float *sum) {
  uint4 v[Most];
  wait_words(v, at, step, p.cuts, cut, p.waits);
  float all[4] = {};
#pragma unroll
  for (int c = 0; c < Most; c++) {
    if (c >= p.cuts) break;
    if (c != cut) store_relaxed_gpu(at + (size_t)c * step, not_there());
    all[0] += c == cut ? sum[0] : __uint_as_float(v[c].x);
    all[1] += c == cut ? sum[1] : __uint_as_float(v[c].y);
    all[2] += c == cut ? sum[2] : __uint_as_float(v[c].z);
    all[3] += c == cut ? sum[3] : __uint_as_float(v[c].w);
  }
#pragma unroll
  for (int k = 0; k < 4; k++) sum[k] = all[k];
}

// Each warpgroup gets the other's sums of half of the tokens, by way of `exchange` [2][half of a block's sums].
template <int Tokens>
__device__ __forceinline__ void exchange_halves(float *exchange, const float (&sum)[Tokens / 2], float (&half)[Tokens / 4]) {
  constexpr int kWords = Tokens / 2, kHalf = 64 * Tokens / 2; // floats of a half
  const int group = threadIdx.x / 128, in_group = threadIdx.x % 128;
  float *mine = exchange + group * kHalf + in_group * 4, *others = exchange + (group ^ 1) * kHalf + in_group * 4;
  group_sync<256>(1); // activations, or what was exchanged before, are read
#pragma unroll
  for (int k = 0; k < kWords / 2; k += 4) {
    float *to = others + k * 128;
    if (group == 0) *(float4 *)to = make_float4(sum[kWords / 2 + k], sum[kWords / 2 + k + 1], sum[kWords / 2 + k + 2], sum[kWords / 2 + k + 3]);
    else *(float4 *)to = make_float4(sum[k], sum[k + 1], sum[k + 2], sum[k + 3]);
  }
  group_sync<256>(1);
#pragma unroll
  for (int k = 0; k < kWords / 2; k += 4) {
    const float4 v = *(const float4 *)(mine + k * 128);
    half[k] = (group ? sum[kWords / 2 + k] : sum[k]) + v.x;
    half[k + 1] = (group ? sum[kWords / 2 + k + 1] : sum[k + 1]) + v.y;
    half[k + 2] = (group ? sum[kWords / 2 + k + 2] : sum[k + 2]) + v.z;
    half[k + 3] = (group ? sum[kWords / 2 + k + 3] : sum[k + 3]) + v.w;
  }
}

template <int Tokens> __global__ void __launch_bounds__(LinearShortShared<Tokens>::kThreads, 1) linear_short_kernel(const LinearShort p) {
  using S = LinearShortShared<Tokens>;
  constexpr int kWords = Tokens / 2, kGroups = Tokens / 16; // a thread's sums; groups of eight tokens of a warpgroup's half
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *base = raw + (1024 - smem_address(raw) % 1024) % 1024;
  const int cut = blockIdx.x % p.cuts, lanes = (int)gridDim.x / p.cuts, first_block = blockIdx.x / p.cuts;
  const int first = p.pairs * cut / p.cuts, count = p.pairs * (cut + 1) / p.cuts - first;
  const int rounds = (p.blocks - first_block + lanes - 1) / lanes, most = (p.pairs + p.cuts - 1) / p.cuts;
  uint8_t *ring = base, *x = ring + p.w_slots * S::kW, *after = x + most * S::kX;
  const bool one_round = p.blocks <= lanes;
  float *exchange = (float *)(one_round ? x : after);
  uint64_t *x_full = (uint64_t *)(one_round ? after : after + S::kSums), *full = x_full + S::kMostPairs, *empty = full + S::kMostSlots;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;

  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kMostPairs; i++) mbar_init(&x_full[i], 1);
    for (int i = 0; i < S::kMostSlots; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], 4);
    }
    mbar_init_fence();
  }
  __syncthreads();
  if (warp == 8) {
    if (lane != 0) return;
    const uint64_t once = policy_evict_first(), keep = policy_evict_last();
    const uint32_t record = (uint32_t)p.mp * 264;
    const uint8_t *w = p.w + ((size_t)first_block * p.pairs + first) * kPairBytes;
    int i = 0, left = rounds * count, s = 0, phase = 1, ahead = min(p.w_slots, left);
    auto load_w = [&] {
      mbar_arrive_expect(&full[s], kPairUsed);
      bulk_load(ring + s * S::kW, w + (size_t)i * kPairBytes, kPairUsed, &full[s], once);
      if (++i == count) i = 0, w += (size_t)lanes * p.pairs * kPairBytes;
      if (++s == p.w_slots) s = 0, phase ^= 1;
      left--;
    };
    for (; ahead > 0; ahead--) load_w();
    depend_wait();
    for (int k = 0; k < count; k++) {
      mbar_arrive_expect(&x_full[k], record);
      bulk_load(x + k * S::kX, p.x + (size_t)(first + k) * record, record, &x_full[k], keep);
    }
    while (left > 0) {
      mbar_wait(&empty[s], phase);
      load_w();
    }
    return;
  }

  const int group = warp / 4, t4 = lane % 4, in_group = tid % 128;
  int s = group, phase = 0, turn = group; // this warpgroup's next slot; its next pair, counted from the block's first
  for (int round = 0; round < rounds; round++) {
    const int block = first_block + round * lanes;
    float sum[kWords];
#pragma unroll
    for (int k = 0; k < kWords; k++) sum[k] = 0;
    for (; turn < count; turn += 2) {
      if (round == 0) mbar_wait(&x_full[turn], 0);
      mbar_wait(&full[s], phase);
      pair_sums<true, Tokens>(sum, ring + s * S::kW, x + turn * S::kX, p.mp, t4);
      __syncwarp();
      if (lane == 0) mbar_arrive(&empty[s]);
      s += 2;
      if (s >= p.w_slots) s -= p.w_slots, phase ^= 1;
    }
    turn -= count;
    float half[kWords / 2];
    exchange_halves<Tokens>(exchange, sum, half);
    const int n = block * kTileRows + warp % 4 * 16, token0 = group * (Tokens / 2);
    const int from = kGroups * cut / p.cuts, to = kGroups * (cut + 1) / p.cuts; // groups that this CTA adds
    float *partial = p.partial + (size_t)block * p.cuts * (64 * Tokens) + group * (32 * Tokens) + in_group * 4;
    const size_t step = 64 * Tokens;
#pragma unroll
    for (int g = 0; g < kGroups; g++)
      if (g < from || g >= to) give_partial<4>(partial + (size_t)cut * step + g * 512, half + 4 * g);
#pragma unroll
    for (int g = 0; g < kGroups; g++) {
      if (g < from || g >= to) continue;
      if (p.cuts > 1) take_short<S::kMostCuts>(p, partial + g * 512, step, cut, half + 4 * g);
      put_short(p, half + 4 * g, token0 + 8 * g, n);
    }
  }
}

} // namespace mob
