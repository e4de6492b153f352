// The dense linear of many tokens: wgmma with the weights on the M side, two warpgroups of 64 outputs each, tiles of 128 outputs x
// `Tokens`. Two neighbouring blocks are a cluster of 256 outputs that shares its tokens: each fetches half of them for both, because
// what comes out of the L2 bounds tiles of this size before the tensor cores do.
//
// FP8: y = sum_kb (sum_k W xq) ws xs, the inner sum on the tensor cores, promoted to fp32 with its scales every 128 columns. While one
// warpgroup promotes, the other's sums run: they take turns. bf16: one sum, the next products queued before the last are done.
//
// Persistent clusters: whole tiles are dealt out in waves, what does not fill the last is cut into equal runs of column pairs
// where that pays (wide_plan; stream-K). A tile in several runs is summed by the cluster with its first columns, in the order of
// columns: no atomics, the result does not depend on timing.
#pragma once
#include "common.cuh"
#include "linear_many.cuh"
#include "waits.cuh"
#include "engine/cuda/wgmma.cuh"

namespace mob {

constexpr int kWideCluster = 2;

struct LinearWide {
  const uint8_t *w;   // packed tiles
  const uint8_t *x;   // records of mp rows
  void *y;            // [rows][ldy], bf16 or fp32
  float *partial;     // [gridDim.x][128 * Tokens], every bit set before and after
  Waits *waits;       // may be null
  int mp, ldy;
  int key_blocks;     // > 0: y is kv tiles (attention_prefill.cu), rows are keys
  int m, n;           // tokens, outputs
  int pairs, w_pairs; // column pairs of x; of w, which are read again from the first after the last
  int across, span;   // tiles of tokens; so many of them beside each other before the next outputs
  int tiles;          // of a cluster, in all
  int waves, sharers; // whole tiles for every cluster; clusters that share the rest, 0: there is none
};

template <bool Fp8, int Groups, int Tokens> struct WideShared {
  // A stage: 128 bytes of columns of the weights, of the tokens, both's scales (the weights' only in a pair's first half).
  static constexpr int kX = Groups * kTileBytes, kXScales = kX + Tokens * 128, kWScales = kXScales + Tokens * 4;
  static constexpr int kStage = ((Fp8 ? kWScales + Groups * 16 : kXScales) + 1023) / 1024 * 1024;
  static constexpr int kStaged = 32, kStaging = kStaged * 128; // tokens of a group's results staged at a time, two buffers
  static constexpr int kRest = 1024 + Groups * 2 * kStaging + 256;
  static constexpr int kMost = (227 * 1024 - kRest) / kStage, kStages = kMost < 8 ? kMost : 8;
  static constexpr int kThreads = (Groups + 1) * 128, kBytes = kRest + kStages * kStage;
};

// The pieces of work of one cluster: whole tiles first, then its run of the rest.
struct WidePieces {
  int pairs, clusters, cluster, tiles, waves, sharers, rest;
  int at, end;           // column pairs of the rest, counted from its first tile
  int wave;
  int tile, first, last; // the current piece: column pairs [first, last)

  __device__ WidePieces(const LinearWide &p, int clusters_, int cluster_)
      : pairs(p.pairs), clusters(clusters_), cluster(cluster_), tiles(p.tiles), waves(p.waves), sharers(p.sharers), wave(0) {
    rest = sharers ? (tiles - waves * clusters) * pairs : 0;
    at = cluster < sharers ? rest * cluster / sharers : 0;
    end = cluster < sharers ? rest * (cluster + 1) / sharers : 0;
  }
  __device__ bool next() {
    if (wave < waves) {
      tile = wave++ * clusters + cluster;
      if (tile >= tiles) return false;
      first = 0;
      last = pairs;
      return true;
    }
    if (at >= end) return false;
    const int t = at / pairs;
    tile = waves * clusters + t;
    first = at - t * pairs;
    last = min(pairs, end - t * pairs);
    at += last - first;
    return true;
  }
  // The last cluster with columns of the current tile.
  __device__ int last_cluster() const {
    const int tile_end = (tile - waves * clusters + 1) * pairs;
    return (tile_end * sharers - 1) / rest;
  }
};

struct WidePlace {
  int row, tokens, block; // first row of x and y; tokens of this tile; first block of 64 outputs of this CTA
};

template <int Groups, int Cluster> __device__ __forceinline__ WidePlace wide_place(const LinearWide &p, int tile, int rank, int tokens) {
  const int high = (p.n + Cluster * Groups * kTileRows - 1) / (Cluster * Groups * kTileRows), each = p.span * high;
  const int band = tile / each, local = tile - band * each, width = min(p.span, p.across - band * p.span);
  const int token = (band * p.span + local % width) * tokens;
  return {token, min(tokens, p.m - token), (local / width * Cluster + rank) * Groups};
}

// What waits for its turn at the tensor cores has the other's sums still running.
enum class WideOrder { kFree, kTurns, kTwo };

template <bool Fp8, int Groups, int Tokens, bool F32, int Cluster, WideOrder Order>
__global__ void __launch_bounds__((Groups + 1) * 128, 1) linear_wide_kernel(const LinearWide p) {
  using S = WideShared<Fp8, Groups, Tokens>;
  using Mma = typename WgmmaOf<Fp8, Tokens>::Type;
  constexpr int kWords = Tokens / 2, kShare = Tokens / Cluster;
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *ring = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
  uint8_t *staging = ring + S::kStage * S::kStages;
  uint64_t *full = (uint64_t *)(staging + Groups * 2 * S::kStaging), *empty = full + S::kStages, *turn = empty + S::kStages;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, group = warp / 4;
  const int rank = Cluster > 1 ? (int)cluster_rank() : 0;

  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], Groups * 4 * Cluster);
    }
    for (int i = 0; i < 2; i++) mbar_init(&turn[i], 4);
    mbar_init_fence();
  }
  if constexpr (Cluster > 1) cluster_sync();
  else __syncthreads();
  const int blocks = (p.n + kTileRows - 1) / kTileRows;
  WidePieces pieces(p, gridDim.x / Cluster, blockIdx.x / Cluster);

  if (group == Groups) { // producer
    registers_shrink<Groups == 2 ? 64 : 32>();
    if (warp == Groups * 4 && lane == 0) {
      const uint64_t once = policy_evict_first(), keep = policy_evict_last(), policy = p.across > 1 ? keep : once;
      const size_t record = record_bytes(Fp8, p.mp);
      int s = 0, phase = 1;
      bool waited = false;
      while (pieces.next()) {
        const WidePlace t = wide_place<Groups, Cluster>(p, pieces.tile, rank, Tokens);
        const int rows = (t.tokens + 7) / 8 * 8, groups = max(0, min(Groups, blocks - t.block));
        const int from = rank * kShare, share = max(0, min(kShare, rows - from)); // this CTA's part of the tokens
        const uint8_t *w = p.w + (size_t)t.block * p.w_pairs * kPairBytes;
        const uint8_t *x = p.x + (size_t)(t.row + from) * 128, *xs = p.x + (size_t)p.mp * 256 + (size_t)(t.row + from) * 4;
        const uint32_t bytes = groups * kTileBytes + rows * (Fp8 ? 132 : 128);
        auto load_w = [&](int half, uint8_t *stage, uint64_t *bar) {
          const int pair = half / 2, second = half % 2;
          const uint8_t *tiles = w + (size_t)(pair >= p.w_pairs ? pair - p.w_pairs : pair) * kPairBytes;
          mbar_arrive_expect(bar, bytes + (Fp8 && !second ? groups * 16 : 0));
#pragma unroll 1
          for (int g = 0; g < groups; g++) {
            const uint8_t *tile = tiles + (size_t)g * p.w_pairs * kPairBytes;
            bulk_load(stage + g * kTileBytes, tile + second * kTileBytes, kTileBytes, bar, policy);
            if (Fp8 && !second) bulk_load(stage + S::kWScales + g * 16, tile + kPairScales, 16, bar, policy);
          }
        };
        auto load_x = [&](int half, uint8_t *stage, uint64_t *bar) {
          if (share == 0) return;
          const size_t at = (size_t)(half / 2) * record, second = half % 2 * (size_t)p.mp;
          if constexpr (Cluster > 1) {
            bulk_load_cluster(stage + S::kX + from * 128, x + at + second * 128, share * 128, bar, (1 << Cluster) - 1, keep);
            if (Fp8) bulk_load_cluster(stage + S::kXScales + from * 4, xs + at + second * 4, share * 4, bar, (1 << Cluster) - 1, keep);
          } else {
            bulk_load(stage + S::kX, x + at + second * 128, share * 128, bar, keep);
            if (Fp8) bulk_load(stage + S::kXScales, xs + at + second * 4, share * 4, bar, keep);
          }
        };
        int begin = pieces.first * 2;
        const int end = pieces.last * 2;
        if (!waited) { // weights do not depend on the kernel before
          const int ahead = min(S::kStages, end - begin);
#pragma unroll 1
          for (int i = 0; i < ahead; i++) load_w(begin + i, ring + i * S::kStage, &full[i]);
          depend_wait();
          waited = true;
#pragma unroll 1
          for (int i = 0; i < ahead; i++) load_x(begin + i, ring + i * S::kStage, &full[i]);
          begin += ahead;
          s = ahead % S::kStages;
          if (ahead == S::kStages) phase = 0;
        }
#pragma unroll 1
        for (int half = begin; half < end; half++) {
          mbar_wait(&empty[s], phase);
          load_w(half, ring + s * S::kStage, &full[s]);
          load_x(half, ring + s * S::kStage, &full[s]);
          if (++s == S::kStages) s = 0, phase ^= 1;
        }
      }
      if (!waited) depend_wait();
    }
  } else {
    registers_grow<Groups == 2 ? 224 : 160>();
    const int t4 = lane % 4, in_group = tid % 128;
    int s = 0, phase = 0, turns = group ^ 1; // the first turn of group 0 is free
    auto wait_full = [&]() { mbar_wait(&full[s], phase); };
    auto next_stage = [&]() {
      if (++s == S::kStages) s = 0, phase ^= 1;
    };
    auto release = [&](int stage) { // by this warp, to all who fill it
      __syncwarp();
      if constexpr (Cluster > 1) {
        if (lane < Cluster) mbar_arrive_cluster(&empty[stage], lane);
      } else if (lane == 0) mbar_arrive(&empty[stage]);
    };
    auto before = [&]() {
      if constexpr (Order == WideOrder::kTurns) {
        mbar_wait(&turn[group], turns);
        turns ^= 1;
      }
    };
    auto behind = [&]() {
      if constexpr (Order == WideOrder::kTurns) {
        if (lane == 0) mbar_arrive(&turn[group ^ 1]);
      }
    };
    while (pieces.next()) {
      const WidePlace t = wide_place<Groups, Cluster>(p, pieces.tile, rank, Tokens);
      float sum[kWords];
#pragma unroll
      for (int i = 0; i < kWords; i++) sum[i] = 0;
      if constexpr (!Fp8) {
        int last_stage = -1;
        for (int half = pieces.first * 2; half < pieces.last * 2; half++) {
          wait_full();
          const uint8_t *stage = ring + s * S::kStage;
          keep_registers(sum);
          wgmma_fence();
          tile_group<Mma>(sum, stage + group * kTileBytes, stage + S::kX, 1);
          wgmma_wait<1>();
          if (last_stage >= 0) release(last_stage);
          last_stage = s;
          next_stage();
        }
        wgmma_wait<0>();
        keep_registers(sum);
        release(last_stage);
      } else if constexpr (Order == WideOrder::kTwo) {
        float acc[kWords], acc2[kWords];
        auto issue = [&](float (&to)[kWords]) {
          wait_full();
          const uint8_t *stage = ring + s * S::kStage;
          keep_registers(to);
          wgmma_fence();
          tile_group<Mma>(to, stage + group * kTileBytes, stage + S::kX, 0);
        };
        auto finish = [&](float (&from)[kWords], int stage, float ws) {
          keep_registers(from);
          promote(sum, from, ws, (const float *)(ring + stage * S::kStage + S::kXScales), t4);
          release(stage);
        };
        issue(acc);
        for (int pair = pieces.first; pair < pieces.last; pair++) {
          const int one = s;
          const float2 ws = *(const float2 *)(ring + s * S::kStage + S::kWScales + group * 16);
          next_stage();
          issue(acc2);
          const int two = s;
          next_stage();
          wgmma_wait<1>();
          finish(acc, one, ws.x);
          if (pair + 1 < pieces.last) {
            issue(acc);
            wgmma_wait<1>();
          } else {
            wgmma_wait<0>();
          }
          finish(acc2, two, ws.y);
        }
      } else {
        float acc[kWords];
        float2 ws;
        for (int pair = pieces.first; pair < pieces.last; pair++) {
#pragma unroll
          for (int half = 0; half < 2; half++) {
            wait_full();
            const uint8_t *stage = ring + s * S::kStage;
            if (half == 0) ws = *(const float2 *)(stage + S::kWScales + group * 16);
            before();
            keep_registers(acc);
            wgmma_fence();
            tile_group<Mma>(acc, stage + group * kTileBytes, stage + S::kX, 0);
            behind();
            wgmma_wait<0>();
            keep_registers(acc);
            promote(sum, acc, half ? ws.y : ws.x, (const float *)(stage + S::kXScales), t4);
            release(s);
            next_stage();
          }
        }
      }
      const int block = t.block + group;
      if (block >= blocks) continue;
      float *partial = p.partial + tid * 4;
      if (pieces.first > 0) { // another cluster has the first columns
        give_partial<kWords, Groups * 512>(partial + (size_t)blockIdx.x * (Groups * 64 * Tokens), sum);
        continue;
      }
      if (pieces.last < p.pairs) {
        const int last = pieces.last_cluster();
        for (int c = blockIdx.x / Cluster + 1; c <= last; c++)
          take_partial<kWords, Groups * 512>(partial + (size_t)(c * Cluster + rank) * (Groups * 64 * Tokens), sum, p.waits);
      }
      const int n0 = block * kTileRows;
      if constexpr (F32) {
        const int row = warp % 4 * 16 + lane / 4;
#pragma unroll
        for (int i = 0; i < kWords; i++) {
          const int token = i / 4 * 8 + 2 * t4 + i % 2, n = n0 + row + (i % 4) / 2 * 8;
          if (token < t.tokens && n < p.n) ((float *)p.y)[(size_t)(t.row + token) * p.ldy + n] = sum[i];
        }
      } else {
        uint8_t *own = staging + group * 2 * S::kStaging;
#pragma unroll
        for (int from = 0; from < Tokens; from += S::kStaged) {
          if (from >= t.tokens) break;
          uint8_t *buffer = own + from / S::kStaged % 2 * S::kStaging; // rows of 64 outputs, 16-byte chunks swizzled
#pragma unroll
          for (int j = 0; j < S::kStaged / 8; j += 2) {
            const float *v = sum + (from / 8 + j) * 4;
            const uint32_t d[4] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
            const int token = (j + lane / 16) * 8 + lane % 8, chunk = warp % 4 * 2 + lane / 8 % 2;
            store_matrices_turned(buffer + token * 128 + ((chunk ^ (token & 7)) << 4), d);
          }
          group_sync<128>(1 + group);
          const int staged = min(S::kStaged, t.tokens - from);
          for (int i = in_group; i < staged * 8; i += 128) {
            const int token = i / 8, chunk = i % 8, n = n0 + chunk * 8, row = t.row + from + token;
            const uint4 *out = (const uint4 *)(buffer + token * 128 + ((chunk ^ (token & 7)) << 4));
            if (p.key_blocks) {
              *(uint4 *)((uint8_t *)p.y + (((size_t)(n / 256) * p.key_blocks + row / 64) * 4 + n % 256 / 64) * 8192 + row % 64 * 128 +
                         ((n % 64 / 8 ^ (row & 7)) << 4)) = *out;
              continue;
            }
            bf16 *to = (bf16 *)p.y + (size_t)row * p.ldy + n;
            if (n + 8 <= p.n && p.ldy % 8 == 0) *(uint4 *)to = *out;
            else
              for (int k = 0; k < 8 && n + k < p.n; k++) to[k] = ((const bf16 *)out)[k];
          }
        }
        group_sync<128>(1 + group); // before the next tile's results go there
      }
    }
  }
  if constexpr (Cluster > 1) cluster_sync(); // the other block reaches into this one's memory
}

} // namespace mob
