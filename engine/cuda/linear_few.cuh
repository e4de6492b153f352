// Few-token FP8 linear, dense or over a list of experts: y[m][n] = sum_kb (sum_k W[n][k] xq[m][k]) ws[n/128][kb] xs[m][kb].
// 1 to 16 tokens: bound by reading W once. Persistent CTAs, one an SM; the tiles of all row blocks, in row-block order,
// are cut into equal runs, one a CTA, so that every SM reads the same bytes whatever N and K are. Tiles and activation
// records come through a ring of bulk copies. e4m3 is unpacked to half (exact) and multiplied with mma.sync; sums of
// 128 columns are promoted to fp32 with their scales. A row block that several CTAs share is summed by the last of them to
// finish, in the order of columns: the result does not depend on timing.
// Needs: K % 128 == 0, layouts of pack.cuh, tokens M <= 8 * G.
#pragma once
#include <cuda_bf16.h>

#include "pack.cuh"
#include "ptx.cuh"

namespace mob {

struct LinearFew {
  const uint8_t *w;       // packed tiles; expert e begins at e * w_stride
  size_t w_stride;
  const int *experts;     // ids of the active ones; nullptr: one matrix
  const int *expert_count; // device; nullptr: 1
  const uint8_t *x;       // records; the same for all experts, or per active expert at x_stride
  size_t x_stride;
  __nv_bfloat16 *y;       // [active][M][N]
  float *partial;         // [gridDim.x][2][64][8 * G]
  int *arrived;           // [row blocks of all active experts], zero before and after
  int m, n, k;
};

constexpr int kFewStages = 10, kFewConsumers = 8;

template <int G> struct LinearFewShared {
  static constexpr int kRecord = 8 * G * 132;
  static constexpr int kStage = (kTilePitch + kRecord + 127) / 128 * 128;
  static constexpr int kBytes = kStage * kFewStages + 64 * 8 * G * 4 + 2 * kFewStages * 8 + 16 + 128;
};

__device__ __forceinline__ void load_halves(const uint8_t *row, int near, int far, bool odd, uint4 out[2]) {
  const uint4 u = *(const uint4 *)(row + near), v = *(const uint4 *)(row + far);
  out[0] = odd ? v : u;
  out[1] = odd ? u : v;
}

template <int G>
__global__ void __launch_bounds__((kFewConsumers + 1) * 32, 1) linear_few_kernel(const LinearFew p) {
  using S = LinearFewShared<G>;
  extern __shared__ uint8_t raw[];
  uint8_t *ring = (uint8_t *)(((uintptr_t)raw + 127) & ~(uintptr_t)127);
  float *combine = (float *)(ring + S::kStage * kFewStages);
  uint64_t *full = (uint64_t *)(combine + 64 * 8 * G), *empty = full + kFewStages;
  int *last = (int *)(empty + kFewStages);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int kb_count = p.k / kTileCols, rb_count = (p.n + kTileRows - 1) / kTileRows;

  if (threadIdx.x == 0) {
    for (int i = 0; i < kFewStages; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], 4);
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
    const int count = t1 - t0, ahead = dense ? min(count, kFewStages) : 0;
    int kb = t0 % kb_count, rb = t0 / kb_count % rb_count, slot = t0 / kb_count / rb_count;
    const uint8_t *w = p.w + (dense ? 0 : (size_t)p.experts[slot] * p.w_stride) + (size_t)(rb * kb_count + kb) * kTilePitch;
    const uint8_t *x = p.x + (size_t)slot * p.x_stride + (size_t)kb * S::kRecord;
    for (int i = 0; i < ahead; i++) { // weights do not depend on the previous kernel
      mbar_arrive_expect(&full[i], kTilePitch + S::kRecord);
      bulk_load(ring + i * S::kStage, w + (size_t)i * kTilePitch, kTilePitch, &full[i], once);
    }
    if (dense) depend_wait();
    for (int i = 0, s = 0, phase = 1; i < count; i++) {
      uint8_t *stage = ring + s * S::kStage;
      if (i >= ahead) {
        mbar_wait(&empty[s], phase);
        mbar_arrive_expect(&full[s], kTilePitch + S::kRecord);
        bulk_load(stage, w, kTilePitch, &full[s], once);
      }
      bulk_load(stage + kTilePitch, x, S::kRecord, &full[s], keep);
      if (++s == kFewStages) s = 0, phase ^= 1;
      w += kTilePitch;
      x += S::kRecord;
      if (++kb == kb_count) {
        kb = 0;
        x -= (size_t)kb_count * S::kRecord;
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

  // Consumers: two groups of four warps take turns at tiles; a warp owns 16 rows.
  const int group = warp / 4, g = lane / 4, t4 = lane % 4;
  const int row = (warp % 4) * 16 + g;
  float sum[G][4] = {};
  int kb = t0 % kb_count, block = t0 / kb_count;
  for (int t = t0, s = 0, phase = 0; t < t1; t++, kb++) {
    if (kb == kb_count) kb = 0, block++;
    if (((t - t0) & 1) == group) {
      const uint8_t *tile = ring + s * S::kStage, *xr = tile + kTilePitch;
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
    if (++s == kFewStages) s = 0, phase ^= 1;
    if (kb != kb_count - 1 && t != t1 - 1) continue;

    // End of this CTA's part of the row block: add the two groups, then either store or leave a partial sum.
    if (group == 1) {
#pragma unroll
      for (int j = 0; j < G; j++)
#pragma unroll
        for (int q = 0; q < 4; q++) combine[((warp % 4) * 32 + lane) * (4 * G) + j * 4 + q] = sum[j][q];
    }
    asm volatile("bar.sync 1, 256;" ::: "memory");
    const int first = block * kb_count, end = first + kb_count;
    const bool whole = t0 <= first && end <= t1;
    const int expert = block / rb_count, n0 = block % rb_count * kTileRows;
    if (group == 0) {
#pragma unroll
      for (int j = 0; j < G; j++)
#pragma unroll
        for (int q = 0; q < 4; q++) {
          const float v = sum[j][q] + combine[((warp % 4) * 32 + lane) * (4 * G) + j * 4 + q];
          const int token = j * 8 + 2 * t4 + (q & 1), r = row + (q >> 1) * 8;
          if (whole) {
            if (token < p.m && n0 + r < p.n)
              p.y[((size_t)expert * p.m + token) * p.n + n0 + r] = __float2bfloat16(v);
          } else {
            // A CTA has at most two parts of row blocks: one that it begins with and one that it ends with.
            const int side = t0 > first ? 0 : 1;
            p.partial[((size_t)(blockIdx.x * 2 + side) * 64 + r) * (8 * G) + token] = v;
          }
        }
    }
    if (!whole) {
      __threadfence();
      asm volatile("bar.sync 1, 256;" ::: "memory");
      // CTAs that share this row block: those whose runs meet [first, end).
      const int c0 = (int)(((int64_t)(first + 1) * ctas - 1) / tiles), c1 = (int)(((int64_t)end * ctas - 1) / tiles);
      if (threadIdx.x == 0) {
        int *counter = &p.arrived[block];
        *last = atomicAdd(counter, 1) == c1 - c0;
        if (*last) *counter = 0; // for the next launch
        __threadfence();
      }
      asm volatile("bar.sync 1, 256;" ::: "memory");
      if (*last) {
        for (int i2 = threadIdx.x; i2 < 64 * 8 * G; i2 += 256) {
          const int r = i2 % 64, token = i2 / 64;
          float v = 0;
          for (int c = c0; c <= c1; c++) {
            const int side = (int64_t)tiles * c / ctas > first ? 0 : 1;
            v += __ldcg(&p.partial[((size_t)(c * 2 + side) * 64 + r) * (8 * G) + token]);
          }
          if (token < p.m && n0 + r < p.n)
            p.y[((size_t)expert * p.m + token) * p.n + n0 + r] = __float2bfloat16(v);
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
