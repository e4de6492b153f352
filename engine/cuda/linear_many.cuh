// The dense linear of 17 to 96 tokens, bf16: to 32 (fewer: linear_few, more: linear_wide, linear_wide_b16), of more where an FP8 matrix is
// short: wgmma with the weights on the M side, so that a tile of 128 outputs takes 32 to 128 tokens as N. FP8: y = sum_kb (sum_k W xq) ws xs,
// the inner sum on the tensor cores, promoted to fp32 with its scales every 128 columns. bf16: one sum.
//
// Persistent CTAs, one an SM: a producer warp fills a ring of column pairs with bulk copies, two warpgroups of 64 outputs each
// consume them. Whole tiles are dealt out in waves, neighbours sharing weights through the L2; what does not fill the last
// wave is cut into equal runs of column pairs (stream-K). A tile in several runs is summed by the CTA with its first columns,
// in the order of columns: no atomics, the result does not depend on timing.
#pragma once
#include "common.cuh"
#include "words.cuh"
#include "engine/cuda/wgmma.cuh"

namespace mob {

struct LinearMany {
  const uint8_t *w;    // packed tiles
  const uint8_t *x;    // records of mp rows
  int mp;
  void *y;             // [rows][ldy], bf16
  int ldy;
  int key_blocks;      // > 0: y is kv tiles (attention_prefill.cu), rows are keys
  float *partial;      // [gridDim.x][128 * Tokens], every bit set before and after
  int m, n;            // tokens, outputs
  int pairs, w_pairs;  // column pairs of x; of w, which are read again from the first after the last
  Waits *waits;        // may be null
  int min_run;         // column pairs that a CTA takes at least of a tile that is cut
  // > 0, bf16: first block of up's rows; a tile is 64 outputs of gate's and the same of up's, n = 2 * inter, and `y` becomes bf16 records of
  // silu(gate) * up, with act_rows rows
  int up_block, act_rows;
};

template <bool Fp8, int Tokens> struct LinearManyShared {
  static constexpr int kSlot = 17408; // a pair, so that the next begins at 1,024 again
  static constexpr int kX = 2 * kSlot;
  static constexpr int kStage = (kX + Tokens * (Fp8 ? 264 : 256) + 1023) / 1024 * 1024;
  static constexpr int kStages = Tokens >= 80 ? 3 : 4;
  static constexpr int kPitch = 136, kStaged = 32; // tokens of results staged at a time
  static constexpr int kBytes = 1024 + kStage * kStages + kStaged * kPitch * 2 + 2 * kStages * 8;
};

template <bool Fp8, int N> struct WgmmaOf { using Type = WgmmaF8<N>; };
template <int N> struct WgmmaOf<false, N> { using Type = WgmmaB16<N>; };

// The pieces of work of one CTA: whole tiles first, then its run of the rest.
struct Pieces {
  int tiles, kb, grid, cta, waves; // waves of whole tiles
  int ctas;                        // that share the rest
  int at, end;                     // column pairs of the rest (less than two tiles a CTA), counted from its first tile
  int wave;
  int tile, first, last;           // the current piece: column pairs [first, last)

  __device__ Pieces(int tiles_, int kb_, int grid_, int cta_, int min_run) : tiles(tiles_), kb(kb_), grid(grid_), cta(cta_), wave(0) {
    waves = tiles % grid == 0 ? tiles / grid : tiles / grid > 0 ? tiles / grid - 1 : 0;
    const int rest = (tiles - waves * grid) * kb;
    ctas = min(grid, max(1, rest / min_run));
    at = cta < ctas ? rest * cta / ctas : 0;
    end = cta < ctas ? rest * (cta + 1) / ctas : 0;
  }
  __device__ bool next() {
    if (wave < waves) {
      tile = wave++ * grid + cta;
      first = 0;
      last = kb;
      return true;
    }
    if (at >= end) return false;
    const int t = at / kb;
    tile = waves * grid + t;
    first = at - t * kb;
    last = min(kb, end - t * kb);
    at += last - first;
    return true;
  }
  // The last CTA with columns of the current tile.
  __device__ int last_cta() const {
    const int rest = (tiles - waves * grid) * kb, tile_end = (tile - waves * grid + 1) * kb;
    return (tile_end * ctas - 1) / rest;
  }
};

struct TilePlace {
  int row, tokens, block; // first row of x and y; tokens of this tile; first block of 64 outputs
};

template <int Tokens> __device__ __forceinline__ TilePlace place_tile(const LinearMany &p, int tile) {
  const int across = (p.m + Tokens - 1) / Tokens, token = tile % across * Tokens;
  return {token, min(Tokens, p.m - token), tile / across * 2};
}

// One tile of 64 outputs x 128 bytes of columns: 4 instructions, in a group of their own.
template <class Mma, int Words> __device__ __forceinline__ void tile_group(float (&acc)[Words], const uint8_t *w, const uint8_t *x, int more) {
  const uint64_t a = swizzled_operand(w), b = swizzled_operand(x);
#pragma unroll
  for (int k = 0; k < 4; k++) Mma::run(acc, a + 2 * k, b + 2 * k, k == 0 ? more : 1);
  wgmma_commit();
}

template <int Words> __device__ __forceinline__ void promote(float (&sum)[Words], const float (&acc)[Words], float ws, const float *xs, int t4) {
#pragma unroll
  for (int j = 0; j < Words / 4; j++) {
    const float2 v = *(const float2 *)(xs + 8 * j + 2 * t4);
    const float s0 = ws * v.x, s1 = ws * v.y;
    sum[4 * j] += acc[4 * j] * s0;
    sum[4 * j + 1] += acc[4 * j + 1] * s1;
    sum[4 * j + 2] += acc[4 * j + 2] * s0;
    sum[4 * j + 3] += acc[4 * j + 3] * s1;
  }
}

// sum += a column pair's products: 64 outputs from `w`, the tokens' records of x_rows rows from `x`; all in shared memory.
template <bool Fp8, int Tokens>
__device__ __forceinline__ void pair_sums(float (&sum)[Tokens / 2], const uint8_t *w, const uint8_t *x, int x_rows, int t4) {
  using Mma = typename WgmmaOf<Fp8, Tokens>::Type;
  if constexpr (Fp8) {
    const float2 ws = *(const float2 *)(w + kPairScales);
    const float *xs = (const float *)(x + 256 * x_rows);
    float acc[Tokens / 2];
    if constexpr (Tokens <= 64) { // both tiles at once
      float acc2[Tokens / 2];
      keep_registers(acc);
      keep_registers(acc2);
      wgmma_fence();
      tile_group<Mma>(acc, w, x, 0);
      tile_group<Mma>(acc2, w + kTileBytes, x + 128 * x_rows, 0);
      wgmma_wait<1>();
      keep_registers(acc);
      promote(sum, acc, ws.x, xs, t4);
      wgmma_wait<0>();
      keep_registers(acc2);
      promote(sum, acc2, ws.y, xs + x_rows, t4);
    } else {
#pragma unroll
      for (int half = 0; half < 2; half++) {
        keep_registers(acc);
        wgmma_fence();
        tile_group<Mma>(acc, w + half * kTileBytes, x + half * 128 * x_rows, 0);
        wgmma_wait<0>();
        keep_registers(acc);
        promote(sum, acc, half ? ws.y : ws.x, xs + half * x_rows, t4);
      }
    }
  } else {
    keep_registers(sum);
    wgmma_fence();
    tile_group<Mma>(sum, w, x, 1);
    tile_group<Mma>(sum, w + kTileBytes, x + 128 * x_rows, 1);
    wgmma_wait<0>();
    keep_registers(sum);
  }
}

// Columns n .. n + 7 of a row of y, but those behind its last; `to`: the first one's place.
__device__ __forceinline__ void put_eight(bf16 *to, int n, int columns, int ldy, const void *eight) {
  if (n + 8 <= columns && ldy % 8 == 0) {
    *(uint4 *)to = *(const uint4 *)eight;
    return;
  }
#pragma unroll 1
  for (int k = 0; k < 8 && n + k < columns; k++) to[k] = ((const bf16 *)eight)[k];
}

// Where outputs n .. n + 7 of a key, `chunk` of their 64, lie in kv tiles (attention_prefill.cu): 256 outputs of 64 keys, four tiles of 64.
__device__ __forceinline__ size_t kv_place(int key_blocks, int key, int n, int chunk) {
  return (((size_t)(n / 256) * key_blocks + key / 64) * 4 + n % 256 / 64) * kTileBytes + key % 64 * 128 + ((chunk ^ (key & 7)) << 4);
}

// Eight columns of gate at `from`, of up 64 further.
__device__ __forceinline__ void put_gated(const LinearMany &p, const bf16 *from, int row, int col) {
  float gate[8], up[8];
  unpack_bf16(*(const uint4 *)from, gate);
  unpack_bf16(*(const uint4 *)(from + 64), up);
#pragma unroll
  for (int i = 0; i < 8; i++) gate[i] = swiglu(gate[i], up[i]);
  *(uint4 *)record_chunk((uint8_t *)p.y + (size_t)(col / 128) * record_bytes(false, p.act_rows), col / 64 % 2, p.act_rows, row, col % 64 / 8) =
      pack_bf16x8(gate);
}

// The producer, one thread: all stages of all pieces.
template <bool Fp8, int Tokens>
__device__ __forceinline__ void many_fill(const LinearMany &p, Pieces &pieces, uint8_t *ring, uint64_t *full, uint64_t *empty) {
  using S = LinearManyShared<Fp8, Tokens>;
  const int blocks = (p.n + kTileRows - 1) / kTileRows;
  const uint64_t once = policy_evict_first(), keep = policy_evict_last();
  const size_t record = record_bytes(Fp8, p.mp);
  int s = 0, phase = 1;
  bool waited = false;
  while (pieces.next()) {
    const TilePlace t = place_tile<Tokens>(p, pieces.tile);
    const int rows = (t.tokens + 7) / 8 * 8;
    const bool both = t.block + 1 < blocks, whole = rows == p.mp;
    const bool gated = !Fp8 && p.up_block > 0;
    const uint8_t *w = p.w + (size_t)(gated ? t.block / 2 : t.block) * p.w_pairs * kPairBytes;
    const size_t second = (size_t)(gated ? p.up_block : 1) * p.w_pairs * kPairBytes; // from a tile's first block to its other one
    const uint8_t *x = p.x + (size_t)t.row * 128, *xs = p.x + (size_t)p.mp * 256 + (size_t)t.row * 4;
    const uint32_t bytes = (both ? 2 : 1) * kPairUsed + rows * (Fp8 ? 264 : 256);
    const uint64_t policy = p.m > Tokens ? keep : once;
    auto load_w = [&](int pair, uint8_t *stage, uint64_t *bar) {
      const uint8_t *from = w + (size_t)(pair >= p.w_pairs ? pair - p.w_pairs : pair) * kPairBytes;
      mbar_arrive_expect(bar, bytes);
      bulk_load(stage, from, kPairUsed, bar, policy);
      if (both) bulk_load(stage + S::kSlot, from + second, kPairUsed, bar, policy);
    };
    auto load_x = [&](int pair, uint8_t *stage, uint64_t *bar) {
      const uint8_t *from = x + (size_t)pair * record, *scales = xs + (size_t)pair * record;
      if (whole) {
        bulk_load(stage + S::kX, from, rows * (Fp8 ? 264 : 256), bar, keep);
        return;
      }
      bulk_load(stage + S::kX, from, rows * 128, bar, keep);
      bulk_load(stage + S::kX + Tokens * 128, from + (size_t)p.mp * 128, rows * 128, bar, keep);
      if (!Fp8) return;
      bulk_load(stage + S::kX + Tokens * 256, scales, rows * 4, bar, keep);
      bulk_load(stage + S::kX + Tokens * 260, scales + (size_t)p.mp * 4, rows * 4, bar, keep);
    };
    int begin = pieces.first;
    if (!waited) { // weights do not depend on the kernel before
      const int ahead = min(S::kStages, pieces.last - pieces.first);
      for (int i = 0; i < ahead; i++) load_w(begin + i, ring + i * S::kStage, &full[i]);
      depend_wait();
      waited = true;
      for (int i = 0; i < ahead; i++) load_x(begin + i, ring + i * S::kStage, &full[i]);
      begin += ahead;
      s = ahead % S::kStages;
      if (ahead == S::kStages) phase = 0;
    }
    for (int pair = begin; pair < pieces.last; pair++) {
      mbar_wait(&empty[s], phase);
      load_w(pair, ring + s * S::kStage, &full[s]);
      load_x(pair, ring + s * S::kStage, &full[s]);
      if (++s == S::kStages) s = 0, phase ^= 1;
    }
  }
  if (!waited) depend_wait();
}

// A tile's results, of both warpgroups, by way of `staging`. A thread's: outputs `row` and row + 8 of two tokens of every eight.
template <bool Fp8, int Tokens>
__device__ __forceinline__ void many_store(const LinearMany &p, const TilePlace &t, const float (&sum)[Tokens / 2], int row, int t4, bf16 *staging) {
  using S = LinearManyShared<Fp8, Tokens>;
  constexpr int kWords = Tokens / 2;
  const int tid = threadIdx.x, n0 = t.block * kTileRows;
#pragma unroll
  for (int from = 0; from < Tokens; from += S::kStaged) {
    if (from >= t.tokens) break;
    group_sync<256>(1); // the staging is free
#pragma unroll
    for (int i = 0; i < S::kStaged / 2; i++) {
      if (from / 2 + i >= kWords) break;
      const int token = i / 4 * 8 + 2 * t4 + i % 2;
      staging[token * S::kPitch + row + (i % 4) / 2 * 8] = __float2bfloat16(sum[from / 2 + i]);
    }
    group_sync<256>(1);
    const int staged = min(S::kStaged, t.tokens - from);
    if (!Fp8 && p.up_block > 0) {
      for (int i = tid; i < staged * 8; i += 256) put_gated(p, staging + i / 8 * S::kPitch + i % 8 * 8, t.row + from + i / 8, n0 / 2 + i % 8 * 8);
      continue;
    }
    for (int i = tid; i < staged * 16; i += 256) {
      const int token = i / 16, n = n0 + i % 16 * 8;
      const bf16 *out = staging + token * S::kPitch + i % 16 * 8;
      if (p.key_blocks) {
        *(uint4 *)((uint8_t *)p.y + kv_place(p.key_blocks, t.row + from + token, n, n % 64 / 8)) = *(const uint4 *)out;
        continue;
      }
      put_eight((bf16 *)p.y + (size_t)(t.row + from + token) * p.ldy + n, n, p.n, p.ldy, out);
    }
  }
}

template <bool Fp8, int Tokens>
__global__ void __launch_bounds__(384, 1) linear_many_kernel(const LinearMany p) {
  using S = LinearManyShared<Fp8, Tokens>;
  constexpr int kWords = Tokens / 2;
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *ring = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
  bf16 *staging = (bf16 *)(ring + S::kStage * S::kStages);
  uint64_t *full = (uint64_t *)(staging + S::kStaged * S::kPitch), *empty = full + S::kStages;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;

  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], 8);
    }
    mbar_init_fence();
  }
  __syncthreads();
  const int high_blocks = (p.n + 127) / 128;
  const int tiles = (p.m + Tokens - 1) / Tokens * high_blocks;
  Pieces pieces(tiles, p.pairs, gridDim.x, blockIdx.x, p.min_run);

  if (warp >= 8) { // producer
    registers_shrink<72>();
    if (warp == 8 && lane == 0) many_fill<Fp8, Tokens>(p, pieces, ring, full, empty);
    return;
  }

  registers_grow<216>();
  const int group = warp / 4, t4 = lane % 4;
  const int row = group * 64 + (warp % 4) * 16 + lane / 4; // and row + 8, of the tile's 128
  int s = 0, phase = 0;
  while (pieces.next()) {
    const TilePlace t = place_tile<Tokens>(p, pieces.tile);
    const int x_rows = (t.tokens + 7) / 8 * 8 == p.mp ? p.mp : Tokens;
    float sum[kWords];
#pragma unroll
    for (int i = 0; i < kWords; i++) sum[i] = 0;
    for (int pair = pieces.first; pair < pieces.last; pair++) {
      const uint8_t *stage = ring + s * S::kStage, *w = stage + group * S::kSlot, *x = stage + S::kX;
      mbar_wait(&full[s], phase);
      pair_sums<Fp8, Tokens>(sum, w, x, x_rows, t4);
      __syncwarp();
      if (lane == 0) mbar_arrive(&empty[s]);
      if (++s == S::kStages) s = 0, phase ^= 1;
    }
    if (pieces.first > 0) { // another CTA has the first columns
      give_partial<kWords>(p.partial + (size_t)blockIdx.x * (128 * Tokens) + tid * 4, sum);
      continue;
    }
    if (pieces.last < p.pairs) {
      const int last = pieces.last_cta();
      for (int c = blockIdx.x + 1; c <= last; c++) take_partial<kWords>(p.partial + (size_t)c * (128 * Tokens) + tid * 4, sum, p.waits);
    }
    many_store<Fp8, Tokens>(p, t, sum, row, t4, staging);
  }
}

} // namespace mob
