// What the FP8 kernels of many tokens share, dense (linear_wide.cuh) and by expert (linear_segments_wide.cu): a warpgroup's products with the
// tokens on the M side, and their way to rows of results. A thread has two tokens of every 64: lane / 4 of its warp's 16 and that + 8.
#pragma once
#include "linear_many.cuh"

namespace mob {

// sum += 128 bytes of columns of Tall x 64 tokens at `x` and of Blocks x 64 outputs at `w`. Scales: `xs`, of this thread's first token;
// `w_scales`, 16 bytes a block, those of both halves of a pair, read with the first into `ws`. `read`: all warps' lanes call it, when the
// operands are read.
template <int Tall, int Blocks, int Words, class Read>
__device__ __forceinline__ void wide_products(float (&sum)[Words], const uint8_t *x, const uint8_t *w, const float *xs, const uint8_t *w_scales,
                                              float2 (&ws)[Blocks], int half, const Read &read) {
  constexpr int kWords = Blocks * 32;
  static_assert(Words == Tall * kWords, "a thread's sums");
#pragma unroll
  for (int part = 0; part < Tall; part++) {
    float acc[kWords];
    keep_registers(acc);
    wgmma_fence();
    tile_group<WgmmaF8<Blocks * 64>>(acc, x + part * kTileBytes, w, 0);
    const float x0 = xs[part * 64], x1 = xs[part * 64 + 8];
    float s0[Blocks], s1[Blocks];
#pragma unroll
    for (int b = 0; b < Blocks; b++) {
      if (half == 0 && part == 0) ws[b] = *(const float2 *)(w_scales + b * 16);
      s0[b] = x0 * (half ? ws[b].y : ws[b].x);
      s1[b] = x1 * (half ? ws[b].y : ws[b].x);
    }
    wgmma_wait<0>();
    keep_registers(acc);
    if (part + 1 == Tall) {
      __syncwarp();
      read();
    }
#pragma unroll
    for (int j = 0; j < kWords / 4; j++) {
      sum[part * kWords + 4 * j] += acc[4 * j] * s0[j / 8];
      sum[part * kWords + 4 * j + 1] += acc[4 * j + 1] * s0[j / 8];
      sum[part * kWords + 4 * j + 2] += acc[4 * j + 2] * s1[j / 8];
      sum[part * kWords + 4 * j + 3] += acc[4 * j + 3] * s1[j / 8];
    }
  }
}

// A warp's 16 tokens x 64 results from its lanes' 32 sums each, as bf16 to `own` [2048] in shared memory: rows of them, 16-byte chunks
// swizzled, for lanes to store whole rows.
__device__ __forceinline__ const uint4 *wide_staged(const uint8_t *own, int token, int chunk) {
  return (const uint4 *)(own + token * 128 + ((chunk ^ (token & 7)) << 4));
}
__device__ __forceinline__ void wide_stage(const float *sum, uint8_t *own, int lane) {
  __syncwarp(); // what was there is read
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    const float *v = sum + j * 4;
    const uint32_t d[4] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
    store_matrices((void *)wide_staged(own, lane % 16, j + lane / 16), d);
  }
  __syncwarp();
}

} // namespace mob
