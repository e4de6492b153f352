// A variant of the lab: faster than engine/cuda/linear_many.cuh at one token (66 against 72 us for nine experts' gate and
// up), but its layout is not one that wgmma can read.
//
// Few-token FP8 linear, dense or over a list of experts: y[m][n] = sum_kb (sum_k W[n][k] xq[m][k]) ws[n/128][kb] xs[m][kb].
// 1 to 16 tokens: bound by reading W once. Persistent CTAs, one an SM; the tiles of all row blocks, in row-block order,
// are cut into equal runs, one a CTA, so that every SM reads the same bytes whatever N and K are. Tiles and activation
// records come through a ring of bulk copies. e4m3 is unpacked to half (exact) and multiplied with mma.sync; sums of
// 128 columns are promoted to fp32 with their scales. A row block that several CTAs share is summed by the one with its
// first columns, in the order of columns: the result does not depend on timing.
// Needs: K % 256 == 0 (padded), layouts of pack.cuh, tokens M <= 8 * G.
#pragma once
#include <cuda_bf16.h>

#include "pack.cuh"
#include "engine/cuda/ptx.cuh"

namespace mob {

struct LinearFew {
  const uint8_t *w;       // packed tiles; expert e begins at e * w_stride
  size_t w_stride;
  const int *experts;     // ids of the active ones; nullptr: one matrix
  const int *expert_count; // device; nullptr: 1
  const uint8_t *x;       // records; the same for all experts, or per active expert at x_stride
  size_t x_stride;
  __nv_bfloat16 *y;       // [active][M][N]
  float4 *partial;        // [gridDim.x][kFewPartial<G>], every bit set before and after
  int m, n, k;
};

constexpr int kFewConsumers = 8;

// A stage holds two tiles, one for each group of four warps, and their two activation records.
template <int G> struct LinearFewShared {
  static constexpr int kStages = G == 1 ? 6 : 5; // so that two CTAs fit an SM
  static constexpr int kRecord = 8 * G * 132;
  static constexpr int kBytesIn = 2 * kTilePitch + 2 * kRecord;
  static constexpr int kStage = (kBytesIn + 127) / 128 * 128;
  static constexpr int kBytes = kStage * kStages + 64 * 8 * G * 4 + 2 * kStages * 8 + 128;
};

__device__ __forceinline__ void load_halves(const uint8_t *row, int near, int far, bool odd, uint4 out[2]) {
  const uint4 u = *(const uint4 *)(row + near), v = *(const uint4 *)(row + far);
  out[0] = odd ? v : u;
  out[1] = odd ? u : v;
}

// ---- partial sums between CTAs. A word with every bit set (a NaN that no sum has) means "not there yet", so a word is
// its own flag: no fence, no counter, one trip through the L2. The taker puts the mark back for the next launch.
template <int G> constexpr int kFewPartial = 128 * G; // float4s of one CTA's part

template <int G> __device__ __forceinline__ void give_partial(float4 *to, const float sum[G][4]) {
#pragma unroll
  for (int j = 0; j < G; j++) {
    float v[4];
#pragma unroll
    for (int q = 0; q < 4; q++) v[q] = sum[j][q] == sum[j][q] ? sum[j][q] : __int_as_float(0x7fc00000);
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to + j * 128), "f"(v[0]), "f"(v[1]), "f"(v[2]),
                 "f"(v[3])
                 : "memory");
  }
}

template <int G> __device__ __forceinline__ void take_partial(float4 *from, float sum[G][4]) {
#pragma unroll
  for (int j = 0; j < G; j++) {
    uint32_t v[4];
    do {
      asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                   : "l"(from + j * 128)
                   : "memory");
    } while (v[0] == ~0u || v[1] == ~0u || v[2] == ~0u || v[3] == ~0u);
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1,%1,%1,%1};" ::"l"(from + j * 128), "r"(~0u) : "memory");
#pragma unroll
    for (int q = 0; q < 4; q++) sum[j][q] += __uint_as_float(v[q]);
  }
}

template <int G, int V = 0>
__global__ void __launch_bounds__((kFewConsumers + 1) * 32, 1) linear_few_kernel(const LinearFew p) {
  using S = LinearFewShared<G>;
  extern __shared__ uint8_t raw[];
  uint8_t *ring = (uint8_t *)(((uintptr_t)raw + 127) & ~(uintptr_t)127);
  float *combine = (float *)(ring + S::kStage * S::kStages);
  uint64_t *full = (uint64_t *)(combine + 64 * 8 * G), *empty = full + S::kStages;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int kb_count = p.k / (2 * kTileCols), rb_count = (p.n + kTileRows - 1) / kTileRows;

  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], kFewConsumers);
    }
    mbar_init_fence();
  }
  __syncthreads();
  depend_launch(); // two CTAs fit an SM: the next kernel fills its ring while this one drains

  // Which experts are active is known only when the router has run, so only a dense matrix may be read ahead of it.
  const bool dense = p.experts == nullptr;
  if (!dense) depend_wait();
  const int active = dense ? 1 : *p.expert_count;
  const int tiles = active * rb_count * kb_count;
  const int ctas = min(tiles, (int)gridDim.x); // every one of these has a tile
  if ((int)blockIdx.x >= ctas) return;
  const int t0 = (int)((int64_t)tiles * blockIdx.x / ctas), t1 = (int)((int64_t)tiles * (blockIdx.x + 1) / ctas);

  if (warp == kFewConsumers) { // producer
    if (lane != 0) return;
    const uint64_t once = policy_evict_first(), keep = policy_evict_last();
    const int count = t1 - t0, ahead = dense ? min(count, S::kStages) : 0;
    int kb = t0 % kb_count, rb = t0 / kb_count % rb_count, slot = t0 / kb_count / rb_count;
    const uint8_t *w = p.w + (dense ? 0 : (size_t)p.experts[slot] * p.w_stride) + (size_t)(rb * kb_count + kb) * (2 * kTilePitch);
    const uint8_t *x = p.x + (size_t)slot * p.x_stride + (size_t)kb * (2 * S::kRecord);
    for (int i = 0; i < ahead; i++) { // weights do not depend on the previous kernel
      mbar_arrive_expect(&full[i], S::kBytesIn);
      bulk_load(ring + i * S::kStage, w + (size_t)i * (2 * kTilePitch), 2 * kTilePitch, &full[i], once);
    }
    if (dense) depend_wait();
    for (int i = 0, s = 0, phase = 1; i < count; i++) {
      uint8_t *stage = ring + s * S::kStage;
      if (i >= ahead) {
        mbar_wait(&empty[s], phase);
        mbar_arrive_expect(&full[s], S::kBytesIn);
        bulk_load(stage, w, 2 * kTilePitch, &full[s], once);
      }
      bulk_load(stage + 2 * kTilePitch, x, 2 * S::kRecord, &full[s], keep);
      if (++s == S::kStages) s = 0, phase ^= 1;
      w += 2 * kTilePitch;
      x += 2 * S::kRecord;
      if (++kb == kb_count) {
        kb = 0;
        x -= (size_t)kb_count * (2 * S::kRecord);
        if (++rb == rb_count) {
          rb = 0;
          if (++slot < active) {
            w = p.w + (size_t)p.experts[slot] * p.w_stride;
            x += p.x_stride;
          }
        }
      }
    }
    return;
  }

  // Consumers: two groups of four warps, one for each tile of a stage; a warp owns 16 rows.
  const int group = warp / 4, g = lane / 4, t4 = lane % 4;
  const int row = (warp % 4) * 16 + g;
  float sum[G][4] = {};
  int kb = t0 % kb_count, block = t0 / kb_count;
  for (int t = t0, s = 0, phase = 0; t < t1; t++, kb++) {
    if (kb == kb_count) kb = 0, block++;
    {
      const uint8_t *stage = ring + s * S::kStage;
      const uint8_t *tile = stage + group * kTilePitch, *xr = stage + 2 * kTilePitch + group * S::kRecord;
      mbar_wait(&full[s], phase);
      const float ws = *(const float *)(tile + kTileBytes);
      // A lane holds 16 columns of its rows from each half of the tile. Lanes of odd rows read the halves in the other
      // order, or two rows of a phase would meet in the same banks; the mma needs the same columns in all rows.
      const bool odd = g & 1;
      const int near = ((t4 + (odd ? 4 : 0)) ^ g) << 4, far = ((t4 + (odd ? 0 : 4)) ^ g) << 4;
      uint4 a0[2], a1[2], b[G][2];
      load_halves(tile + row * 128, near, far, odd, a0);
      load_halves(tile + (row + 8) * 128, near, far, odd, a1);
#pragma unroll
      for (int j = 0; j < G; j++) load_halves(xr + (j * 8 + g) * 128, near, far, odd, b[j]);
      float acc[G][4] = {};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const uint32_t *a0w = (const uint32_t *)&a0[half], *a1w = (const uint32_t *)&a1[half];
#pragma unroll
        for (int q = 0; q < 4; q++) {
          const uint32_t a[4] = {e4m3x2_to_half2((uint16_t)a0w[q]), e4m3x2_to_half2((uint16_t)a1w[q]),
                                 e4m3x2_to_half2((uint16_t)(a0w[q] >> 16)), e4m3x2_to_half2((uint16_t)(a1w[q] >> 16))};
#pragma unroll
          for (int j = 0; j < G; j++) {
            const uint32_t bw = ((const uint32_t *)&b[j][half])[q];
            const uint32_t bb[2] = {e4m3x2_to_half2((uint16_t)bw), e4m3x2_to_half2((uint16_t)(bw >> 16))};
            mma_16816(acc[j], a, bb);
          }
        }
      }
      const float *xs = (const float *)(xr + 8 * G * 128);
#pragma unroll
      for (int j = 0; j < G; j++) {
        const float s0 = ws * xs[j * 8 + 2 * t4], s1 = ws * xs[j * 8 + 2 * t4 + 1];
        sum[j][0] += acc[j][0] * s0;
        sum[j][1] += acc[j][1] * s1;
        sum[j][2] += acc[j][2] * s0;
        sum[j][3] += acc[j][3] * s1;
      }
      __syncwarp();
      if (lane == 0) mbar_arrive(&empty[s]);
    }
    if (++s == S::kStages) s = 0, phase ^= 1;
    if (kb != kb_count - 1 && t != t1 - 1) continue;

    // End of this CTA's part of the row block: add the two groups' halves.
    float4 *mine = (float4 *)combine + (warp % 4) * 32 + lane; // [G] at a stride of 128
    if (group == 1) {
#pragma unroll
      for (int j = 0; j < G; j++) mine[j * 128] = make_float4(sum[j][0], sum[j][1], sum[j][2], sum[j][3]);
    }
    asm volatile("bar.sync 1, 256;" ::: "memory");
    if (group == 0) {
      const int first = block * kb_count, end = first + kb_count;
#pragma unroll
      for (int j = 0; j < G; j++) {
        const float4 v = mine[j * 128];
        sum[j][0] += v.x, sum[j][1] += v.y, sum[j][2] += v.z, sum[j][3] += v.w;
      }
      if (t0 > first) {
        give_partial<G>(p.partial + (size_t)blockIdx.x * kFewPartial<G> + (warp % 4) * 32 + lane, sum);
      } else {
        // This CTA has the first columns and therefore, of all that share the row block, came to it last.
        const int c1 = (int)(((int64_t)end * ctas - 1) / tiles);
        for (int c = blockIdx.x + 1; V != 1 && c <= c1; c++)
          take_partial<G>(p.partial + (size_t)c * kFewPartial<G> + (warp % 4) * 32 + lane, sum);
        const int expert = block / rb_count, n0 = block % rb_count * kTileRows;
#pragma unroll
        for (int j = 0; j < G; j++)
#pragma unroll
          for (int q = 0; q < 4; q++) {
            const int token = j * 8 + 2 * t4 + (q & 1), n = n0 + row + (q >> 1) * 8;
            if (token < p.m && n < p.n) p.y[((size_t)expert * p.m + token) * p.n + n] = __float2bfloat16(sum[j][q]);
          }
      }
    }
    asm volatile("bar.sync 1, 256;" ::: "memory");
#pragma unroll
    for (int j = 0; j < G; j++)
#pragma unroll
      for (int q = 0; q < 4; q++) sum[j][q] = 0;
  }
}

} // namespace mob
