// The linear of up to 16 tokens, dense or by expert. Reading weights bounds it, and what counts besides is that the memory does not
// rest between one linear and the next.
//
// Persistent CTAs, one an SM: a producer warp fills a deep ring of column pairs with bulk copies, two warpgroups of 64 outputs each
// consume them. The ring is full, 25 MB on all SMs together, before the kernels in front of this one have ended: weights depend on
// none of them. Where experts are chosen by a router, the shared ones, which are always among them, come first for that. Each of the
// two kinds is dealt out as in linear_many.cuh, in whole tiles and equal runs of column pairs; a tile in several runs is summed by the
// CTA with its first columns, in the order of columns: no atomics, the result does not depend on timing.
#pragma once
#include "kernels.h"
#include "sample.cuh"
#include "words.cuh"

namespace mob {

// Two forms: one matrix (no list), the same m tokens for every expert of a list.
struct LinearFew {
  const uint8_t *w;   // packed tiles; matrix e begins at e * w_stride
  size_t w_stride;
  const int *experts; // of the list; records of its i-th at x + i * x_stride, rows of y at i * m
  const int *active;  // [1] how many; the last `shared` of them are first_shared and those behind it, whatever the router chose
  int first_shared, shared;
  size_t x_stride;
  const uint8_t *x;   // records of mp rows
  int mp;
  void *y;            // [rows][ldy], bf16 or fp32
  int ldy;
  float *partial;     // [2][gridDim.x][128 * Tokens], every bit set before and after
  int m, n;           // tokens, outputs
  int pairs, w_pairs; // column pairs of x; of w, which are read again from the first after the last
  Waits *waits;       // may be null
  int min_run;        // column pairs that a CTA takes at least of a tile that is cut
  // > 0, dense and bf16: first block of up's rows; a tile is 64 outputs of gate's and the same of up's, n = 2 * inter, and `y` becomes bf16
  // records of silu(gate) * up, with act_rows rows
  int up_block, act_rows;
  // In place of `y`, dense and fp32: the best of a CTA's outputs, [m][gridDim.x]
  Key *best;
};

template <bool Fp8, int Tokens> struct LinearFewShared {
  static constexpr int kSlot = 17408; // a pair, so that the next begins at 1,024 again
  static constexpr int kX = 2 * kSlot;
  static constexpr int kStage = (kX + Tokens * (Fp8 ? 264 : 256) + 1023) / 1024 * 1024;
  static constexpr int kStages = 5, kThreads = 288;
  // Stages that are asked for at a time: what stands in the memory's queues delays all that CTAs, of the kernel in front too, say to each
  // other. Of the head, which is long and has but a norm in front, all.
  template <bool F32> static constexpr int kOnTheWay = F32 ? kStages : 2;
  static constexpr int kBytes = 1024 + kStage * kStages + (2 * kStages + 1) * 8;
};

// With 96 registers a thread: with more, no CTA would find room beside the router's last one (a quarter of an SM's registers is for three of
// its warps and two of that one's), and the experts' linear would be as late as the CTA that waits for it.
template <bool Fp8, int Tokens> constexpr bool kLittle = Fp8 && Tokens == 8;

// 64 outputs of the results: of a lane, rows `row` and row + 8 of two tokens for each four words.
template <bool F32, int Words>
__device__ __forceinline__ void put_results(const LinearFew &p, const float (&sum)[Words], int row0, int row, int t4) {
#pragma unroll
  for (int i = 0; i < Words; i++) {
    const int token = i / 4 * 8 + 2 * t4 + i % 2, n = row + (i % 4) / 2 * 8;
    if (token >= p.m || n >= p.n) continue;
    const size_t at = (size_t)(row0 + token) * p.ldy + n;
    if constexpr (F32) ((float *)p.y)[at] = sum[i];
    else ((bf16 *)p.y)[at] = __float2bfloat16(sum[i]);
  }
}

// 64 outputs of gate's and up's results, which are rounded to bf16 as rows of them would be: the second warpgroup hands its own to the first.
template <int Words> __device__ __forceinline__ void put_gated(const LinearFew &p, const float (&sum)[Words], int block, float *swap, int row, int t4) {
  const int tid = threadIdx.x;
  group_sync<256>(1); // what was there is read
  if (tid >= 128)
#pragma unroll
    for (int i = 0; i < Words; i++) swap[i * 128 + tid - 128] = sum[i];
  group_sync<256>(1);
  if (tid >= 128) return;
#pragma unroll
  for (int i = 0; i < Words; i++) {
    const int token = i / 4 * 8 + 2 * t4 + i % 2, col = block * kTileRows + row + (i % 4) / 2 * 8;
    if (token >= p.m) continue;
    const float gate = __bfloat162float(__float2bfloat16(sum[i])), up = __bfloat162float(__float2bfloat16(swap[i * 128 + tid]));
    *(bf16 *)((uint8_t *)p.y + (size_t)(col / 128) * record_bytes(false, p.act_rows) + ((size_t)(col / 64 % 2) * p.act_rows + token) * 128 +
              ((col % 64 / 8 ^ (token & 7)) << 4) + col % 8 * 2) = __float2bfloat16(swiglu(gate, up));
  }
}

// The best output of each token that a thread has words of.
template <int Tokens> struct BestOutputs {
  static constexpr int kEach = Tokens / 4;
  float top[kEach];
  int at[kEach];
  __device__ BestOutputs() {
#pragma unroll
    for (int k = 0; k < kEach; k++) top[k] = NAN, at[k] = -1;
  }
  // Outputs rise from call to call: the first of equals, numbers before NaN.
  template <int Words> __device__ __forceinline__ void take(const float (&sum)[Words], int row, int n) {
#pragma unroll
    for (int i = 0; i < Words; i++) {
      const int k = i / 4 * 2 + i % 2, output = row + (i % 4) / 2 * 8;
      if (output < n && (at[k] < 0 || sum[i] > top[k] || (top[k] != top[k] && sum[i] == sum[i]))) top[k] = sum[i], at[k] = output;
    }
  }
  // Of all consumers; every one of them calls this.
  __device__ __forceinline__ void put(const LinearFew &p) {
    __shared__ Key warps[8][Tokens];
    const int tid = threadIdx.x;
#pragma unroll
    for (int k = 0; k < kEach; k++) {
      Key key = at[k] < 0 ? 0 : key_of(top[k], at[k]);
#pragma unroll
      for (int s = 4; s < 32; s *= 2) {
        const Key other = __shfl_xor_sync(~0u, key, s);
        key = other > key ? other : key;
      }
      if (tid % 32 < 4) warps[tid / 32][k / 2 * 8 + 2 * (tid % 4) + k % 2] = key;
    }
    group_sync<256>(1);
    if (tid >= p.m) return;
    Key key = warps[0][tid];
#pragma unroll
    for (int i = 1; i < 8; i++) key = warps[i][tid] > key ? warps[i][tid] : key;
    p.best[(size_t)tid * gridDim.x + blockIdx.x] = key;
  }
};

// The column pairs of one CTA, one after the other.
struct FewPairs {
  Pieces pieces;
  int high_blocks, pair = 0, expert = 0, block = 0; // of its kind; first block of 64 outputs
  const uint8_t *w = nullptr;                       // where the block's weights begin: set by the user where `fresh`
  bool fresh = false;                               // first of a piece

  __device__ FewPairs(int tiles, const LinearFew &p) : pieces(tiles, p.pairs, gridDim.x, blockIdx.x, p.min_run), high_blocks((p.n + 127) / 128) {
    pieces.last = 0;
  }
  __device__ bool next() {
    fresh = ++pair >= pieces.last;
    if (!fresh) return true;
    if (!pieces.next()) return false;
    pair = pieces.first;
    expert = pieces.tile / high_blocks;
    block = pieces.tile % high_blocks * 2;
    return true;
  }
};

// Rows of activations of a column pair, to its stage.
template <bool Fp8, int Tokens>
__device__ __forceinline__ void load_rows(const LinearFew &p, const FewPairs &u, int in_list, uint8_t *stage, uint64_t *bar, uint64_t policy) {
  const int rows = min(p.mp, Tokens);
  const uint8_t *from = p.x + (size_t)in_list * p.x_stride + (size_t)u.pair * record_bytes(Fp8, p.mp), *scales = from + (size_t)p.mp * 256;
  stage += LinearFewShared<Fp8, Tokens>::kX;
  if (p.mp <= Tokens) {
    bulk_load(stage, from, rows * (Fp8 ? 264 : 256), bar, policy);
    return;
  }
  bulk_load(stage, from, rows * 128, bar, policy);
  bulk_load(stage + Tokens * 128, from + (size_t)p.mp * 128, rows * 128, bar, policy);
  if (!Fp8) return;
  bulk_load(stage + Tokens * 256, scales, rows * 4, bar, policy);
  bulk_load(stage + Tokens * 260, scales + (size_t)p.mp * 4, rows * 4, bar, policy);
}

// One thread: weights of all stages, rows of all but the ring's first filling.
template <bool Fp8, int Tokens, bool F32> __device__ __forceinline__ void produce(const LinearFew &p, uint8_t *ring, uint64_t *full, uint64_t *empty) {
  using S = LinearFewShared<Fp8, Tokens>;
  const uint64_t once = policy_evict_first(), keep = policy_evict_last();
  const bool dense = p.experts == nullptr;
  const int high_blocks = (p.n + 127) / 128, blocks = (p.n + kTileRows - 1) / kTileRows, row_bytes = min(p.mp, Tokens) * (Fp8 ? 264 : 256);
  const bool gated = !Fp8 && p.up_block > 0;
  const size_t second = (size_t)(gated ? p.up_block : 1) * p.w_pairs * kPairBytes; // from a tile's first block to its other one
  auto find_w = [&](FewPairs &u, bool chosen) {
    const int matrix = dense ? 0 : chosen ? p.experts[u.expert] : p.first_shared + u.expert;
    u.w = p.w + (size_t)matrix * p.w_stride + (size_t)(gated ? u.block / 2 : u.block) * p.w_pairs * kPairBytes;
  };
  int late = -S::template kOnTheWay<F32>; // the load that must have come before the next one is asked for
  auto load_w = [&](const FewPairs &u, int s, int with_rows) {
    if (late >= 0) mbar_wait(&full[late % S::kStages], late / S::kStages & 1);
    late++;
    const bool both = u.block + 1 < blocks;
    const uint8_t *from = u.w + (size_t)(u.pair >= p.w_pairs ? u.pair - p.w_pairs : u.pair) * kPairBytes;
    uint8_t *stage = ring + s * S::kStage;
    mbar_arrive_expect(&full[s], (both ? 2 : 1) * kPairUsed + with_rows);
    bulk_load(stage, from, kPairUsed, &full[s], once);
    if (both) bulk_load(stage + S::kSlot, from + second, kPairUsed, &full[s], once);
  };
  FewPairs known((dense ? 1 : p.shared) * high_blocks, p);
  int ahead = 0;
  for (; ahead < S::kStages && known.next(); ahead++) {
    if (known.fresh) find_w(known, false);
    load_w(known, ahead, 0);
  }
  depend_wait();
  const int chosen = dense ? 0 : *p.active - p.shared;
  int s = ahead % S::kStages, phase = ahead < S::kStages;
  auto load = [&](const FewPairs &u, int in_list) {
    mbar_wait(&empty[s], phase);
    load_w(u, s, row_bytes);
    load_rows<Fp8, Tokens>(p, u, in_list, ring + s * S::kStage, &full[s], keep);
    if (++s == S::kStages) s = 0, phase ^= 1;
  };
  while (ahead == S::kStages && known.next()) {
    if (known.fresh) find_w(known, false);
    load(known, chosen + known.expert);
  }
  FewPairs rest(chosen * high_blocks, p);
  while (rest.next()) {
    if (rest.fresh) find_w(rest, true);
    load(rest, rest.expert);
  }
}

// One thread of the consumers: rows of the ring's first filling, whose weights may still be on their way when the kernel in front has ended.
template <bool Fp8, int Tokens> struct FirstRows {
  using S = LinearFewShared<Fp8, Tokens>;
  FewPairs at;
  int ahead = 0;
  __device__ FirstRows(int tiles, const LinearFew &p) : at(tiles, p) {
    FewPairs count = at;
    while (ahead < S::kStages && count.next()) ahead++;
  }
  __device__ void load(const LinearFew &p, int chosen, uint8_t *ring, uint64_t *bar) {
    if (ahead == 0) return;
    const uint64_t keep = policy_evict_last();
    mbar_arrive_expect(bar, ahead * min(p.mp, Tokens) * (Fp8 ? 264 : 256));
    for (int i = 0; i < ahead; i++) {
      at.next();
      load_rows<Fp8, Tokens>(p, at, chosen + at.expert, ring + i * S::kStage, bar, keep);
    }
  }
};

// pair_sums() of bf16 and eight tokens by mma.sync: a wgmma of 64 x 8 takes as long as one of many tokens, so that a full ring would be
// consumed hardly faster than the memory fills it. Same words of the sums.
__device__ __forceinline__ void pair_sums_few(float (&sum)[4], const uint8_t *w, const uint8_t *x, int x_rows) {
  const int lane = threadIdx.x % 32, row = threadIdx.x % 128 / 32 * 16 + lane % 16, r8 = lane % 8;
  float odd[4] = {0, 0, 0, 0}; // two chains of sums
  uint32_t a[8][4], b[4][4];
#pragma unroll
  for (int half = 0; half < 2; half++) {
#pragma unroll
    for (int j = 0; j < 4; j++) load_matrices(a[4 * half + j], w + half * kTileBytes + row * 128 + (((2 * j + lane / 16) ^ r8) << 4));
#pragma unroll
    for (int j = 0; j < 2; j++) load_matrices(b[2 * half + j], x + (half * x_rows + r8) * 128 + (((4 * j + lane / 8) ^ r8) << 4));
  }
#pragma unroll
  for (int j = 0; j < 4; j++) {
    mma_16816_bf16(sum, a[j], b[j / 2] + j % 2 * 2);
    mma_16816_bf16(odd, a[4 + j], b[2 + j / 2] + j % 2 * 2);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) sum[i] += odd[i];
}

// A CTA's tiles and parts of tiles of one kind: `first` is the place in the list of its first expert. `at`: this thread's row of the
// tile's 128; it has row + 8 too.
template <bool Fp8, int Tokens, bool F32>
__device__ __forceinline__ void consume(const LinearFew &p, Pieces pieces, int first, float *partial, const uint8_t *ring, uint64_t *full,
                                        uint64_t *empty, int at, int &s, int &phase, BestOutputs<Tokens> &best) {
  using S = LinearFewShared<Fp8, Tokens>;
  constexpr int kWords = Tokens / 2;
  const int tid = threadIdx.x, group = tid / 128, t4 = tid % 4, high_blocks = (p.n + 127) / 128, x_rows = min(p.mp, Tokens);
  while (pieces.next()) {
    float sum[kWords];
#pragma unroll
    for (int j = 0; j < kWords; j++) sum[j] = 0;
    for (int pair = pieces.first; pair < pieces.last; pair++) {
      // Where there is no second block of 64, its group computes what lies there; that is not used.
      const uint8_t *stage = ring + s * S::kStage, *w = stage + group * S::kSlot, *x = stage + S::kX;
      mbar_wait(&full[s], phase);
      if constexpr (!Fp8 && Tokens == 8) pair_sums_few(sum, w, x, x_rows);
      else pair_sums<Fp8, Tokens>(sum, w, x, x_rows, t4);
      __syncwarp();
      if (tid % 32 == 0) mbar_arrive(&empty[s]);
      if (++s == S::kStages) s = 0, phase ^= 1;
    }
    float *mine = partial + (size_t)blockIdx.x * (128 * Tokens) + tid * 4;
    if (pieces.first > 0) { // another CTA has the first columns
      give_partial<kWords>(mine, sum);
      continue;
    }
    if (pieces.last < p.pairs)
      take_partials<kWords, kLittle<Fp8, Tokens> ? 8 : 64 / kWords>(mine + 128 * Tokens, pieces.last_cta() - (int)blockIdx.x, (size_t)(128 * Tokens),
                                                                    sum, p.waits);
    if constexpr (F32) {
      if (p.best) {
        best.take(sum, pieces.tile * 128 + at, p.n);
        continue;
      }
    }
    if constexpr (!Fp8 && !F32) {
      if (p.up_block > 0) {
        __shared__ float swap[kWords * 128];
        put_gated(p, sum, pieces.tile, swap, at % 64, t4);
        continue;
      }
    }
    put_results<F32>(p, sum, (first + pieces.tile / high_blocks) * p.m, pieces.tile % high_blocks * 128 + at, t4);
  }
}

template <bool Fp8, int Tokens, bool F32>
__global__ void __launch_bounds__(LinearFewShared<Fp8, Tokens>::kThreads) __maxnreg__((kLittle<Fp8, Tokens> ? 96 : 168)) linear_few_kernel(const LinearFew p) {
  using S = LinearFewShared<Fp8, Tokens>;
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *ring = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
  uint64_t *full = (uint64_t *)(ring + S::kStage * S::kStages), *empty = full + S::kStages, *first_rows = empty + S::kStages;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;

  if (!p.experts) depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], 8);
    }
    mbar_init(first_rows, 1);
    mbar_init_fence();
  }
  __syncthreads();
  if (warp == 8) {
    if (lane == 0) produce<Fp8, Tokens, F32>(p, ring, full, empty);
    return;
  }
  const int high_blocks = (p.n + 127) / 128, known_tiles = (p.experts ? p.shared : 1) * high_blocks;
  const int at = warp / 4 * 64 + warp % 4 * 16 + lane / 4;
  const Pieces known(known_tiles, p.pairs, gridDim.x, blockIdx.x, p.min_run);
  int chosen = 0;
  if (tid == 0) {
    FirstRows<Fp8, Tokens> first(known_tiles, p);
    depend_wait();
    chosen = p.experts ? *p.active - p.shared : 0;
    first.load(p, chosen, ring, first_rows);
  } else {
    depend_wait();
    chosen = p.experts ? *p.active - p.shared : 0;
  }
  __syncwarp();
  if (p.experts) depend_launch(); // so that what the next kernel reads of the router's choice before its own wait is there
  if (known.waves > 0 || known.at < known.end) mbar_wait(first_rows, 0);
  int s = 0, phase = 0;
  BestOutputs<Tokens> best;
  consume<Fp8, Tokens, F32>(p, known, chosen, p.partial, ring, full, empty, at, s, phase, best);
  if (F32 && p.best) best.put(p);
  if (!p.experts) return;
  const Pieces rest(chosen * high_blocks, p.pairs, gridDim.x, blockIdx.x, p.min_run);
  consume<Fp8, Tokens, F32>(p, rest, 0, p.partial + (size_t)gridDim.x * (128 * Tokens), ring, full, empty, at, s, phase, best);
}

} // namespace mob
