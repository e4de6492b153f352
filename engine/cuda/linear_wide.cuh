// The dense FP8 linear of many tokens (bf16: linear_wide_b16.cuh): wgmma with the tokens on the M side, warpgroups of 64 or 128 tokens each, tiles of 128 to 256 tokens x
// `Outputs`. (The few-token kernel has the weights there. Here a thread's sums belong to two tokens, so that it needs two of their
// scales, not one for each of its columns.)
//
// y = sum_kb (sum_k W xq) ws xs, the inner sum on the tensor cores, promoted to fp32 with its scales every 128 columns; the
// warpgroups fill one another's gaps.
//
// Persistent CTAs, one an SM: whole tiles are dealt out in waves, what does not fill the last is cut into equal runs of column pairs
// where that pays (linear_wide.cu; stream-K). A tile in several runs is summed by the CTA with its first columns, in the order of
// columns: no atomics, the result does not depend on timing.
#pragma once
#include <type_traits>

#include "comm.cuh"
#include "common.cuh"
#include "linear_many.cuh"
#include "wide_tiles.cuh"

namespace mob {

struct LinearWide {
  const uint8_t *w;   // packed tiles
  const uint8_t *x;   // records of mp rows
  void *y;            // [rows][ldy], bf16 or fp32
  float *partial;     // [gridDim.x][tile], every bit set before and after
  Waits *waits;       // may be null
  int mp, ldy;
  int key_blocks;     // > 0: y is kv tiles (attention_prefill.cu), rows are keys
  int m, n;           // tokens, outputs
  int pairs, w_pairs; // column pairs of x; of w, which are read again from the first after the last
  int across, span;   // tiles of tokens; so many of them beside each other before the next outputs
  int tiles;          // in all
  int waves;          // whole tiles for every CTA
  int sharers, beside; // runs of the rest; each is taken by `beside` CTAs side by side, for as many tiles of tokens. 0: there is no rest
  int cluster;        // > 1, bf16: each tile of the rest is cut among the CTAs of a cluster of so many; no sharers
};

// Results leave as parts of rows with owners where .each > 0. Three warpgroups have no registers for it.
struct LinearWideParts : LinearWide {
  PartsOut parts;
};
constexpr bool wide_sends(int groups) { return groups == 2; }
template <int Groups> using LinearWideOf = std::conditional_t<wide_sends(Groups), LinearWideParts, LinearWide>;

template <int Groups, int Tall, int Outputs> struct WideShared {
  static constexpr int kTokens = Groups * Tall * 64, kBlocks = Outputs / kTileRows;
  // A stage: 128 bytes of columns of the tokens, of the weights, both's scales (the weights' of both halves in a pair's first).
  static constexpr int kW = kTokens * 128, kXScales = kW + kBlocks * kTileBytes, kWScales = kXScales + kTokens * 4;
  static constexpr int kStage = (kWScales + kBlocks * 16 + 1023) / 1024 * 1024;
  static constexpr int kStaging = 2048; // of a warp: 16 tokens x 64 results
  static constexpr int kRest = 1024 + Groups * 4 * kStaging + 256;
  static constexpr int kMost = (227 * 1024 - kRest) / kStage, kStages = kMost < 8 ? kMost : 8;
  static constexpr int kThreads = (Groups + 1) * 128, kBytes = kRest + kStages * kStage;
};

// The pieces of work of one CTA: whole tiles first, then its run of the rest. CTAs side by side have runs of the same outputs' column
// pairs, so that the weights come from memory once.
struct WidePieces {
  int at, end;           // column pairs of the rest, counted from its first tile
  int next_tile;         // of the waves
  int tile, first, last; // the current piece: column pairs [first, last)

  __device__ explicit WidePieces(const LinearWide &p) : at(0), end(0), next_tile(blockIdx.x) {
    if (p.cluster > 1) {
      const int of = blockIdx.x / p.cluster, rank = blockIdx.x % p.cluster;
      if (whole(p) + of >= p.tiles) return;
      at = of * p.pairs + p.pairs * rank / p.cluster;
      end = of * p.pairs + p.pairs * (rank + 1) / p.cluster;
      return;
    }
    const int run = p.sharers ? blockIdx.x / p.beside : 0;
    if (run >= p.sharers) return;
    at = (int)((int64_t)rest(p) * run / p.sharers);
    end = (int)((int64_t)rest(p) * (run + 1) / p.sharers);
  }
  static __device__ int whole(const LinearWide &p) { return p.waves * (int)gridDim.x; }
  static __device__ int rest(const LinearWide &p) { return (p.tiles - whole(p)) / p.beside * p.pairs; }
  __device__ bool next(const LinearWide &p) {
    if (next_tile < min(whole(p), p.tiles)) {
      tile = next_tile;
      next_tile += gridDim.x;
      first = 0;
      last = p.pairs;
      return true;
    }
    if (at >= end) return false;
    const int t = at / p.pairs;
    tile = whole(p) + t * p.beside + blockIdx.x % p.beside;
    first = at - t * p.pairs;
    last = min(p.pairs, end - t * p.pairs);
    at += last - first;
    return true;
  }
  // The last run with columns of the current tile.
  __device__ int last_run(const LinearWide &p) const {
    const int64_t tile_end = (int64_t)((tile - whole(p)) / p.beside + 1) * p.pairs;
    return (int)((tile_end * p.sharers - 1) / rest(p));
  }
};

struct WidePlace {
  int row, tokens, block; // first row of x and y; tokens of this tile; its first block of 64 outputs
};

template <int Tokens, int Outputs> __device__ __forceinline__ WidePlace wide_place(const LinearWide &p, int tile) {
  const int high = (p.n + Outputs - 1) / Outputs, each = p.span * high;
  const int band = tile / each, local = tile - band * each, width = min(p.span, p.across - band * p.span);
  const int row = (band * p.span + local % width) * Tokens;
  return {row, min(Tokens, p.m - row), local / width * (Outputs / kTileRows)};
}

template <int Words> __device__ __forceinline__ float (&part_of(float *sum, int part))[Words] {
  return *(float(*)[Words])(sum + part * Words);
}

// A warp's 16 tokens from `first` of the tile on, 64 results at a time by way of `own`.
template <int Blocks, class Wide>
__device__ __forceinline__ void store_wide(const Wide &p, const WidePlace &t, int first, int lane, uint8_t *own, const float *sum) {
  const int blocks = (p.n + kTileRows - 1) / kTileRows;
#pragma unroll
  for (int b = 0; b < Blocks; b++) {
    if (t.block + b >= blocks || first >= t.tokens) break;
    wide_stage(sum + b * 32, own, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int at = i * 4 + lane / 8, chunk = lane % 8, n = (t.block + b) * kTileRows + chunk * 8, row = t.row + first + at;
      if (first + at >= t.tokens) break;
      const uint4 *out = wide_staged(own, at, chunk);
      if (p.key_blocks) {
        *(uint4 *)((uint8_t *)p.y + kv_place(p.key_blocks, row, n, chunk)) = *out;
        continue;
      }
      if constexpr (std::is_same_v<Wide, LinearWideParts>) {
        if (p.parts.each) {
          send_part(p.parts, row, n, p.n, *out);
          continue;
        }
      }
      put_eight((bf16 *)p.y + (size_t)row * p.ldy + n, n, p.n, p.ldy, out);
    }
  }
}

struct WideRing {
  uint8_t *data;
  uint64_t *full, *empty;
  int s, phase; // of the consumers: the stage that is next
  __device__ __forceinline__ void next(int stages) {
    if (++s == stages) s = 0, phase ^= 1;
  }
};

// The producer, one thread: all stages of all pieces.
template <int Groups, int Tall, int Outputs>
__device__ __forceinline__ void wide_fill(const LinearWide &p, WidePieces &pieces, const WideRing &ring) {
  using S = WideShared<Groups, Tall, Outputs>;
  const int blocks = (p.n + kTileRows - 1) / kTileRows;
  const uint64_t once = policy_evict_first(), keep = policy_evict_last(), policy = p.across > 1 ? keep : once;
  const size_t record = record_bytes(true, p.mp);
  int s = 0, phase = 1;
  bool waited = false;
  while (pieces.next(p)) {
    const WidePlace t = wide_place<S::kTokens, Outputs>(p, pieces.tile);
    const int rows = (t.tokens + 7) / 8 * 8, here = min(S::kBlocks, blocks - t.block);
    const uint8_t *w = p.w + (size_t)t.block * p.w_pairs * kPairBytes;
    const uint8_t *x = p.x + (size_t)t.row * 128, *xs = p.x + (size_t)p.mp * 256 + (size_t)t.row * 4;
    auto load_w = [&](int half, uint8_t *stage, uint64_t *bar) {
      const int pair = half / 2, second = half % 2;
      const uint8_t *tile = w + (size_t)(pair >= p.w_pairs ? pair - p.w_pairs : pair) * kPairBytes;
      mbar_arrive_expect(bar, here * kTileBytes + rows * 132 + (!second ? here * 16 : 0));
#pragma unroll 1
      for (int b = 0; b < here; b++, tile += (size_t)p.w_pairs * kPairBytes) {
        bulk_load(stage + S::kW + b * kTileBytes, tile + second * kTileBytes, kTileBytes, bar, policy);
        if (!second) bulk_load(stage + S::kWScales + b * 16, tile + kPairScales, 16, bar, policy);
      }
    };
    auto load_x = [&](int half, uint8_t *stage, uint64_t *bar) {
      const size_t at = (size_t)(half / 2) * record, second = half % 2 * (size_t)p.mp;
      bulk_load(stage, x + at + second * 128, rows * 128, bar, keep);
      bulk_load(stage + S::kXScales, xs + at + second * 4, rows * 4, bar, keep);
    };
    int begin = pieces.first * 2;
    const int end = pieces.last * 2;
    if (!waited) { // weights do not depend on the kernel before
      const int ahead = min(S::kStages, end - begin);
#pragma unroll 1
      for (int i = 0; i < ahead; i++) load_w(begin + i, ring.data + i * S::kStage, &ring.full[i]);
      depend_wait();
      waited = true;
#pragma unroll 1
      for (int i = 0; i < ahead; i++) load_x(begin + i, ring.data + i * S::kStage, &ring.full[i]);
      begin += ahead;
      s = ahead % S::kStages;
      if (ahead == S::kStages) phase = 0;
    }
#pragma unroll 1
    for (int half = begin; half < end; half++) {
      mbar_wait(&ring.empty[s], phase);
      load_w(half, ring.data + s * S::kStage, &ring.full[s]);
      load_x(half, ring.data + s * S::kStage, &ring.full[s]);
      if (++s == S::kStages) s = 0, phase ^= 1;
    }
  }
  if (!waited) depend_wait();
}

// sum += the piece's products, of this warpgroup's tokens; `row`: the first of this thread's.
template <int Groups, int Tall, int Outputs>
__device__ __forceinline__ void wide_sums(const WidePieces &pieces, WideRing &ring, int group, int row, int lane, float (&sum)[Tall * Outputs / 2]) {
  using S = WideShared<Groups, Tall, Outputs>;
  float2 ws[S::kBlocks];
  for (int pair = pieces.first; pair < pieces.last; pair++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      mbar_wait(&ring.full[ring.s], ring.phase);
      const uint8_t *stage = ring.data + ring.s * S::kStage;
      wide_products<Tall>(sum, stage + group * Tall * 8192, stage + S::kW, (const float *)(stage + S::kXScales) + row, stage + S::kWScales, ws, half,
                          [&] {
                            if (lane == 0) mbar_arrive(&ring.empty[ring.s]);
                            ring.next(S::kStages);
                          });
    }
  }
}

template <int Groups, int Tall, int Outputs>
__global__ void __launch_bounds__((Groups + 1) * 128, 1) linear_wide_kernel(const LinearWideOf<Groups> p) {
  using S = WideShared<Groups, Tall, Outputs>;
  constexpr int kWords = Outputs / 2, kBlocks = S::kBlocks;
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *data = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023), *staging = data + S::kStage * S::kStages;
  uint64_t *full = (uint64_t *)(staging + Groups * 4 * S::kStaging);
  WideRing ring = {data, full, full + S::kStages, 0, 0};
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, group = warp / 4;

  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&ring.full[i], 1);
      mbar_init(&ring.empty[i], Groups * 4);
    }
    mbar_init_fence();
  }
  __syncthreads();
  WidePieces pieces(p);

  if (group == Groups) { // producer
    registers_shrink<Groups == 2 ? 40 : 56>();
    if (warp == Groups * 4 && lane == 0) wide_fill<Groups, Tall, Outputs>(p, pieces, ring);
    return;
  }

  registers_grow<Groups == 2 ? 232 : 152>();
  const int row = group * Tall * 64 + warp % 4 * 16 + lane / 4; // of the tile's tokens; also + 8, + 64 ...
  while (pieces.next(p)) {
    float sum[Tall * kWords];
#pragma unroll
    for (int i = 0; i < Tall * kWords; i++) sum[i] = 0;
    wide_sums<Groups, Tall, Outputs>(pieces, ring, group, row, lane, sum);
    float *partial = p.partial + (size_t)blockIdx.x * (S::kTokens * Outputs) + tid * 4;
    if (pieces.first > 0) { // another CTA has the first columns
      give_partial<Tall * kWords, Groups * 512>(partial, sum);
      continue;
    }
    if (pieces.last < p.pairs) {
      const int runs = pieces.last_run(p) - blockIdx.x / p.beside;
      for (int i = 1; i <= runs; i++)
        take_partial<Tall * kWords, Groups * 512>(partial + (size_t)i * p.beside * (S::kTokens * Outputs), sum, p.waits);
    }
    const WidePlace t = wide_place<S::kTokens, Outputs>(p, pieces.tile);
#pragma unroll
    for (int part = 0; part < Tall; part++)
      store_wide<kBlocks>(p, t, (group * Tall + part) * 64 + warp % 4 * 16, lane, staging + warp * S::kStaging, sum + part * kWords);
  }
}

// ---- linear_wide.cu
constexpr int kWideTiles = 4; // kinds of tiles that there may be
enum class WideDeal { kWhole, kCut, kBeside, kCluster };
// Tiles of p's tokens and outputs, all of them whole, or those of the last waves cut into runs (kCut, kBeside). False: there is no such way.
bool wide_deal(LinearWide *p, int tokens, int outputs, WideDeal how, int sms);
void linear_wide_prepare(); // once a device
// p: all but how the work is dealt out. The way that takes the least time is chosen.
void linear_wide(const LinearWide &p, int sms, cudaStream_t stream, const PartsOut &parts = {});
// A given way; false: these sizes have no such one.
bool linear_wide_try(LinearWide p, int tile, WideDeal how, int sms, cudaStream_t stream, const PartsOut &parts = {});

} // namespace mob
