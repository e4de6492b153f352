// Linear for many tokens, dense or over segments (an expert and its tokens): wgmma with the weights on the M side, so that a
// tile of 128 outputs takes 16, 32, 64 or 128 tokens as N. FP8: y = sum_kb (sum_k W xq) ws xs, the inner sum on the tensor cores,
// promoted to fp32 with its scales every 128 columns. bf16: one sum.
//
// Persistent CTAs, one an SM: a producer warp fills a ring of column blocks with bulk copies, two warpgroups of 64 outputs each
// consume them. Whole tiles are dealt out in waves, neighbours sharing weights through the L2; what does not fill the last
// wave is cut into equal runs of column blocks (stream-K). A tile in several runs is summed by the CTA with its first columns,
// in the order of columns: no atomics, the result does not depend on timing.
#pragma once
#include "common.cuh"
#include "wgmma.cuh"

namespace mob {

struct Segment {
  int matrix, row, count, tile; // expert; first row of x and y (a multiple of 8); tokens; its first tile
};

constexpr int kMaxSegments = 520;

struct LinearMany {
  const uint8_t *w;    // packed tiles; matrix e begins at e * w_stride
  size_t w_stride;
  const Segment *segments; // and one behind the last, whose `tile` is the number of tiles; nullptr: one matrix, rows [0, m)
  const int *segment_count;
  const uint8_t *x;    // records of mp rows
  int mp;
  void *y;             // [rows][ldy], bf16 or fp32
  int ldy;
  float *partial;      // [gridDim.x][128 * Tokens]
  int *flags;          // [gridDim.x], zero before and after
  int m, n;            // tokens (without segments), outputs
  int kb, w_kb;        // column blocks of x; of w, which are read again from the first after the last
};

template <bool Fp8, int Tokens> struct LinearManyShared {
  static constexpr int kSlot = 9216; // a tile with its scale, so that the next begins at 1,024 again
  static constexpr int kX = 2 * kSlot;
  static constexpr int kXs = kX + Tokens * 128;
  static constexpr int kStage = (kXs + (Fp8 ? Tokens * 4 : 0) + 1023) / 1024 * 1024;
  static constexpr int kStages = Tokens == 128 ? 5 : Tokens == 64 ? 7 : Tokens == 32 ? 8 : 9;
  static constexpr int kPitch = 136; // of the staging of results
  static constexpr int kBytes = 1024 + kStage * kStages + Tokens * kPitch * 2 + (kMaxSegments + 1) * (int)sizeof(Segment) + 2 * kStages * 8;
};

template <bool Fp8, int N> struct WgmmaOf { using Type = WgmmaF8<N>; };
template <int N> struct WgmmaOf<false, N> { using Type = WgmmaB16<N>; };

// The pieces of work of one CTA: whole tiles first, then its run of the rest.
struct Pieces {
  int tiles, kb, grid, cta, waves; // waves of whole tiles
  int ctas;                        // that share the rest
  int64_t at, end;                 // column blocks of the rest, counted from its first tile
  int wave;
  int tile, first, last;           // the current piece: column blocks [first, last)

  __device__ Pieces(int tiles_, int kb_, int grid_, int cta_) : tiles(tiles_), kb(kb_), grid(grid_), cta(cta_), wave(0) {
    waves = tiles % grid == 0 ? tiles / grid : tiles / grid > 0 ? tiles / grid - 1 : 0;
    const int64_t rest = (int64_t)(tiles - waves * grid) * kb;
    ctas = (int)min((int64_t)grid, max((int64_t)1, rest / 4));
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
    const int t = (int)(at / kb);
    tile = waves * grid + t;
    first = (int)(at - (int64_t)t * kb);
    last = (int)min((int64_t)kb, end - (int64_t)t * kb);
    at += last - first;
    return true;
  }
  // The last CTA with columns of the current tile.
  __device__ int last_cta() const {
    const int64_t rest = (int64_t)(tiles - waves * grid) * kb, tile_end = (int64_t)(tile - waves * grid + 1) * kb;
    return (int)((tile_end * ctas - 1) / rest);
  }
};

struct TilePlace {
  int matrix, row, tokens, block; // first row of x and y, tokens of this tile, first block of 64 outputs
};

template <int Tokens>
__device__ __forceinline__ TilePlace place_tile(const Segment *segments, int count, int m, int tile) {
  int low = 0, high = count - 1;
  while (low < high) {
    const int mid = (low + high + 1) / 2;
    if (segments[mid].tile <= tile) low = mid;
    else high = mid - 1;
  }
  const Segment s = segments[low];
  const int across = (s.count + Tokens - 1) / Tokens, local = tile - s.tile;
  const int token = local % across * Tokens;
  return {s.matrix, s.row + token, min(Tokens, s.count - token), local / across * 2};
}

__device__ __forceinline__ uint64_t global_ns() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

// Waits for another CTA of this launch, which is resident; gives up after seconds, so that a broken device ends the kernel.
__device__ __forceinline__ void wait_flag(int *flag) {
  const uint64_t start = global_ns();
  int v;
  do {
    asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  } while (v == 0 && global_ns() - start < 4000000000ull);
  *(volatile int *)flag = 0;
}

template <bool Fp8, int Tokens, bool F32>
__global__ void __launch_bounds__(384, 1) linear_many_kernel(const LinearMany p) {
  using S = LinearManyShared<Fp8, Tokens>;
  using Mma = typename WgmmaOf<Fp8, Tokens>::Type;
  extern __shared__ uint8_t raw[];
  uint8_t *ring = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
  bf16 *staging = (bf16 *)(ring + S::kStage * S::kStages);
  Segment *segments = (Segment *)(staging + Tokens * S::kPitch);
  uint64_t *full = (uint64_t *)(segments + kMaxSegments + 1), *empty = full + S::kStages;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;

  depend_launch();
  const bool dense = p.segments == nullptr;
  int count = 1;
  if (!dense) {
    depend_wait();
    count = *p.segment_count;
    for (int i = tid; i <= count; i += 384) segments[i] = p.segments[i];
  } else if (tid == 0) {
    segments[0] = {0, 0, p.m, 0};
    segments[1].tile = (p.m + Tokens - 1) / Tokens * ((p.n + 127) / 128);
  }
  if (tid == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], 8);
    }
    mbar_init_fence();
  }
  __syncthreads();
  const int tiles = segments[count].tile;
  Pieces pieces(tiles, p.kb, gridDim.x, blockIdx.x);
  const int blocks = (p.n + kTileRows - 1) / kTileRows;

  if (warp >= 8) { // producer
    asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
    if (warp == 8 && lane == 0) {
      const uint64_t once = policy_evict_first(), keep = policy_evict_last();
      const size_t record = (size_t)p.mp * (Fp8 ? 132 : 128);
      int s = 0, phase = 1;
      bool waited = !dense;
      while (pieces.next()) {
        const TilePlace t = place_tile<Tokens>(segments, count, p.m, pieces.tile);
        const int rows = (t.tokens + 7) / 8 * 8;
        const bool both = t.block + 1 < blocks;
        const uint8_t *w = p.w + (size_t)t.matrix * p.w_stride + (size_t)t.block * p.w_kb * kTilePitch;
        const uint8_t *x = p.x + (size_t)t.row * 128, *xs = p.x + (size_t)p.mp * 128 + (size_t)t.row * 4;
        const uint32_t bytes = (both ? 2 : 1) * kTilePitch + rows * (Fp8 ? 132 : 128);
        const uint64_t policy = dense && p.m > Tokens ? keep : once;
        int begin = pieces.first;
        if (!waited) { // weights do not depend on the kernel before
          const int ahead = min(S::kStages, pieces.last - pieces.first);
          for (int i = 0; i < ahead; i++) {
            uint8_t *stage = ring + i * S::kStage;
            const uint8_t *from = w + (size_t)((begin + i) % p.w_kb) * kTilePitch;
            mbar_arrive_expect(&full[i], bytes);
            bulk_load(stage, from, kTilePitch, &full[i], policy);
            if (both) bulk_load(stage + S::kSlot, from + (size_t)p.w_kb * kTilePitch, kTilePitch, &full[i], policy);
          }
          depend_wait();
          waited = true;
          for (int i = 0; i < ahead; i++) {
            uint8_t *stage = ring + i * S::kStage;
            bulk_load(stage + S::kX, x + (size_t)(begin + i) * record, rows * 128, &full[i], keep);
            if (Fp8) bulk_load(stage + S::kXs, xs + (size_t)(begin + i) * record, rows * 4, &full[i], keep);
          }
          begin += ahead;
          s = ahead % S::kStages;
          if (ahead == S::kStages) phase = 0;
        }
        for (int kb = begin; kb < pieces.last; kb++) {
          uint8_t *stage = ring + s * S::kStage;
          const uint8_t *from = w + (size_t)(kb % p.w_kb) * kTilePitch;
          mbar_wait(&empty[s], phase);
          mbar_arrive_expect(&full[s], bytes);
          bulk_load(stage, from, kTilePitch, &full[s], policy);
          if (both) bulk_load(stage + S::kSlot, from + (size_t)p.w_kb * kTilePitch, kTilePitch, &full[s], policy);
          bulk_load(stage + S::kX, x + (size_t)kb * record, rows * 128, &full[s], keep);
          if (Fp8) bulk_load(stage + S::kXs, xs + (size_t)kb * record, rows * 4, &full[s], keep);
          if (++s == S::kStages) s = 0, phase ^= 1;
        }
      }
      if (!waited) depend_wait();
    }
    return;
  }

  asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
  const int group = warp / 4, t4 = lane % 4;
  const int row = group * 64 + (warp % 4) * 16 + lane / 4; // and row + 8, of the tile's 128
  int s = 0, phase = 0;
  while (pieces.next()) {
    const TilePlace t = place_tile<Tokens>(segments, count, p.m, pieces.tile);
    float acc[Tokens / 2], sum[Fp8 ? Tokens / 2 : 1];
    if (Fp8) {
#pragma unroll
      for (int i = 0; i < Tokens / 2; i++) sum[Fp8 ? i : 0] = 0;
    }
    for (int kb = pieces.first; kb < pieces.last; kb++) {
      const uint8_t *stage = ring + s * S::kStage;
      mbar_wait(&full[s], phase);
      const uint64_t a = swizzled_operand(stage + group * S::kSlot), b = swizzled_operand(stage + S::kX);
#pragma unroll
      for (int i = 0; i < Tokens / 2; i++) asm volatile("" : "+f"(acc[i])::"memory");
      wgmma_fence();
      const int more = Fp8 ? 0 : kb != pieces.first;
#pragma unroll
      for (int k = 0; k < 4; k++) Mma::run(acc, a + 2 * k, b + 2 * k, k == 0 ? more : 1);
      wgmma_commit();
      wgmma_wait<0>();
#pragma unroll
      for (int i = 0; i < Tokens / 2; i++) asm volatile("" : "+f"(acc[i])::"memory");
      if (Fp8) {
        const float ws = *(const float *)(stage + group * S::kSlot + kTileBytes);
        const float *xs = (const float *)(stage + S::kXs);
#pragma unroll
        for (int j = 0; j < Tokens / 8; j++) {
          const float2 v = *(const float2 *)(xs + 8 * j + 2 * t4);
          const float s0 = ws * v.x, s1 = ws * v.y;
          sum[Fp8 ? 4 * j : 0] += acc[4 * j] * s0;
          sum[Fp8 ? 4 * j + 1 : 0] += acc[4 * j + 1] * s1;
          sum[Fp8 ? 4 * j + 2 : 0] += acc[4 * j + 2] * s0;
          sum[Fp8 ? 4 * j + 3 : 0] += acc[4 * j + 3] * s1;
        }
      }
      __syncwarp();
      if (lane == 0) mbar_arrive(&empty[s]);
      if (++s == S::kStages) s = 0, phase ^= 1;
    }
    if (Fp8) {
#pragma unroll
      for (int i = 0; i < Tokens / 2; i++) acc[i] = sum[Fp8 ? i : 0];
    }
    if (pieces.first > 0) { // another CTA has the first columns
      float *to = p.partial + (size_t)blockIdx.x * (128 * Tokens) + tid;
#pragma unroll
      for (int i = 0; i < Tokens / 2; i++) __stcg(to + i * 256, acc[i]);
      __threadfence();
      asm volatile("bar.sync 1, 256;" ::: "memory");
      if (tid == 0) asm volatile("st.release.gpu.global.s32 [%0], 1;" ::"l"(p.flags + blockIdx.x) : "memory");
      continue;
    }
    if (pieces.last < p.kb) {
      const int last = pieces.last_cta();
      for (int c = blockIdx.x + 1; c <= last; c++) {
        if (tid == 0) wait_flag(p.flags + c);
        asm volatile("bar.sync 1, 256;" ::: "memory");
        const float *from = p.partial + (size_t)c * (128 * Tokens) + tid;
#pragma unroll
        for (int i = 0; i < Tokens / 2; i++) acc[i] += __ldcg(from + i * 256);
      }
    }
    const int n0 = t.block * kTileRows;
    if (F32) {
#pragma unroll
      for (int i = 0; i < Tokens / 2; i++) {
        const int token = i / 4 * 8 + 2 * t4 + i % 2, n = n0 + row + (i % 4) / 2 * 8;
        if (token < t.tokens && n < p.n) ((float *)p.y)[(size_t)(t.row + token) * p.ldy + n] = acc[i];
      }
      continue;
    }
    asm volatile("bar.sync 1, 256;" ::: "memory"); // the staging is free
#pragma unroll
    for (int i = 0; i < Tokens / 2; i++) {
      const int token = i / 4 * 8 + 2 * t4 + i % 2;
      staging[token * S::kPitch + row + (i % 4) / 2 * 8] = __float2bfloat16(acc[i]);
    }
    asm volatile("bar.sync 1, 256;" ::: "memory");
    for (int i = tid; i < t.tokens * 16; i += 256) {
      const int token = i / 16, n = n0 + i % 16 * 8;
      const bf16 *from = staging + token * S::kPitch + i % 16 * 8;
      bf16 *to = (bf16 *)p.y + (size_t)(t.row + token) * p.ldy + n;
      if (n + 8 <= p.n && p.ldy % 8 == 0) *(uint4 *)to = *(const uint4 *)from;
      else
        for (int k = 0; k < 8 && n + k < p.n; k++) to[k] = from[k];
    }
  }
}

} // namespace mob
