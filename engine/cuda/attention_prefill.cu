// Attention of long chunks (DeepSeek-V3's 192 / 128 heads) with keys and values expanded from the latent cache: per query, key and head
// 640 operations instead of the absorbed form's 2,176. Per layer: latents of the chunks' whole contexts to FP8 records, kv_b over
// them (its epilogue writes tiles), queries to tiles, then this kernel.
//   kv tiles    [head][key block of 64][4 boxes: k 0-63, k 64-127, v 0-63, v 64-127], each 64 keys of 128 bytes, swizzled
//   q tiles     [block of 64 queries][head][3 boxes: 0-63, 64-127, roped]
// The roped part of the keys is read from the cache's pages. A CTA takes 128 queries of one sequence and one head: two warpgroups,
// each with its own 64 queries, read the same keys from a ring. Probabilities stay in registers; while a block's softmax runs, the
// next block's scores are computed.
#include "kernels.h"
#include "engine/cuda/wgmma.cuh"

namespace mob {
namespace {

constexpr int kBox = 8192, kQ = 2 * 3 * kBox, kStage = 5 * kBox, kStages = 4;
constexpr float kSlack = 8;
constexpr int kShared = 1024 + kQ + kStages * kStage;

// 64 keys of a page: the latent's 512 columns, quantised 1 x 128.
__global__ void __launch_bounds__(256) latent_records_kernel(const uint8_t *cache, const int *pages, const Records out, bool ue8m0) {
  depend_launch();
  depend_wait();
  const int block = blockIdx.x, col = threadIdx.x % 64 * 8;
  const uint8_t *page = cache + (size_t)pages[block] * page_bytes(576);
#pragma unroll 4
  for (int key = threadIdx.x / 64; key < 64; key += 4) {
    float v[8];
    unpack_bf16(*(const uint4 *)(page + page_offset(key, col)), v);
    put_record(out, block * 64 + key, col, v, ue8m0);
  }
}

// One row's queries of all heads, the last 64 columns roped.
__global__ void __launch_bounds__(256) query_tiles_kernel(const PrefillQueries p) {
  __shared__ float2 angle[32];
  depend_launch();
  depend_wait();
  const int row = blockIdx.x, at = p.tile_row[row];
  if (at < 0) return;
  if (threadIdx.x < 32) {
    float s, c;
    sincosf((float)p.step.position[row] * p.rope.inv_freq[threadIdx.x], &s, &c);
    angle[threadIdx.x] = make_float2(c * p.rope.factor, s * p.rope.factor);
  }
  __syncthreads();
  const bf16 *q = p.q + (size_t)row * p.heads * 192;
  const int block = at / 64, r = at % 64;
  for (int i = threadIdx.x; i < p.heads * 24; i += 256) {
    const int head = i / 24, chunk = i % 24;
    const bf16 *from = q + head * 192;
    float v[8];
    unpack_bf16(*(const uint4 *)(from + chunk * 8), v);
    if (chunk >= 16) {
      const int c = (chunk - 16) * 8;
      if (p.rope.interleaved) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
          const float2 cs = angle[c / 2 + k];
          const float a = v[2 * k], b = v[2 * k + 1];
          v[2 * k] = a * cs.x - b * cs.y;
          v[2 * k + 1] = b * cs.x + a * cs.y;
        }
      } else {
        float u[8];
        unpack_bf16(*(const uint4 *)(from + 128 + (c ^ 32)), u);
#pragma unroll
        for (int k = 0; k < 8; k++) {
          const float2 cs = angle[c % 32 + k];
          v[k] = c < 32 ? v[k] * cs.x - u[k] * cs.y : v[k] * cs.x + u[k] * cs.y;
        }
      }
    }
    *(uint4 *)(p.tiles + (((size_t)block * p.heads + head) * 3 + chunk / 8) * kBox + r * 128 + ((chunk % 8 ^ (r & 7)) << 4)) =
        pack_bf16x8(v);
  }
}

__global__ void __launch_bounds__(384, 1) attend_prefill_kernel(const AttendPrefill p) {
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *q = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023), *ring = q + kQ;
  __shared__ uint64_t q_full, full[kStages], empty[kStages];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, head = blockIdx.y;
  depend_launch();
  if (tid == 0) {
    mbar_init(&q_full, 1);
    for (int i = 0; i < kStages; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], 8);
    }
    mbar_init_fence();
  }
  __syncthreads();
  depend_wait();
  // Long ones first, so that short ones fill the end.
  const PrefillPair pair = p.pairs[gridDim.x - 1 - blockIdx.x];
  const int blocks = (pair.position + pair.count - 1) / 64 + 1;
  if (warp >= 8) { // producer
    registers_shrink<56>();
    if (warp != 8 || lane != 0) return;
    const uint64_t keep = policy_evict_last();
    mbar_arrive_expect(&q_full, kQ);
    for (int i = 0; i < 2; i++)
      bulk_load(q + i * 3 * kBox, p.q + ((size_t)(pair.block + i) * p.heads + head) * 3 * kBox, 3 * kBox, &q_full, keep);
    for (int i = 0, s = 0, phase = 1; i < blocks; i++) {
      uint8_t *stage = ring + s * kStage;
      mbar_wait(&empty[s], phase);
      mbar_arrive_expect(&full[s], kStage);
      bulk_load(stage, p.kv + ((size_t)head * p.key_blocks + pair.keys + i) * 4 * kBox, 4 * kBox, &full[s], keep);
      bulk_load(stage + 4 * kBox, p.cache + (size_t)p.key_pages[pair.keys + i] * (9 * kBox) + 8 * kBox, kBox, &full[s], keep);
      if (++s == kStages) s = 0, phase ^= 1;
    }
    return;
  }

  registers_grow<224>();
  const int group = warp / 4, t4 = lane % 4, r = group * 64 + (warp % 4) * 16 + lane / 4; // this lane's queries: r and r + 8
  const int first_position = pair.position + group * 64;
  const int mine = min(blocks, (first_position + 63) / 64 + 1); // key blocks of this warpgroup's queries
  const float scale = p.scale * 1.4426950408889634f;
  float o[64], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 64; i++) o[i] = 0;
  float score[32], next[32];
  auto issue_scores = [&](int block, float(&to)[32]) {
    const int s = block % kStages;
    const uint8_t *stage = ring + s * kStage;
    mbar_wait(&full[s], block / kStages & 1);
    keep_registers(to);
    wgmma_fence();
#pragma unroll
    for (int box = 0; box < 3; box++) {
      const uint64_t a = swizzled_operand(q + (group * 3 + box) * kBox), b = swizzled_operand(stage + (box < 2 ? box : 4) * kBox);
#pragma unroll
      for (int k = 0; k < 4; k++) WgmmaB16<64>::run(to, a + 2 * k, b + 2 * k, box + k > 0);
    }
    wgmma_commit();
  };
  mbar_wait(&q_full, 0);
  issue_scores(0, score);
  wgmma_wait<0>();
  keep_registers(score);
  for (int i = 0; i < mine; i++) {
    const int s = i % kStages;
    if (i + 1 < mine) issue_scores(i + 1, next);
    if (i * 64 + 63 > first_position) { // on or behind the diagonal
#pragma unroll
      for (int k = 0; k < 32; k++)
        if (i * 64 + k / 4 * 8 + 2 * t4 + k % 2 > pair.position + r + k % 4 / 2 * 8) score[k] = -INFINITY;
    }
    // What the sums are relative to moves only when a score is far above it: see attention_mla.cu.
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float m = score[2 * h];
#pragma unroll
      for (int j = 0; j < 8; j++) m = fmaxf(m, fmaxf(score[4 * j + 2 * h], score[4 * j + 2 * h + 1]));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
      if ((m - top[h]) * scale <= kSlack) m = top[h];
      shrink[h] = exp2_approx((top[h] - m) * scale);
      top[h] = m;
    }
    if (__any_sync(~0u, shrink[0] != 1 || shrink[1] != 1)) {
      sum[0] *= shrink[0];
      sum[1] *= shrink[1];
#pragma unroll
      for (int k = 0; k < 64; k++) o[k] *= shrink[k % 4 / 2];
    }
    uint32_t prob[4][4];
#pragma unroll
    for (int k = 0; k < 32; k += 2) {
      const int h = k % 4 / 2;
      const float base = top[h] * scale;
      const uint32_t two = pack_bf16(exp2_approx(score[k] * scale - base), exp2_approx(score[k + 1] * scale - base));
      sum[h] += __uint_as_float(two << 16) + __uint_as_float(two & 0xffff0000u);
      prob[k / 8][k % 8 / 4 * 2 + h] = two;
    }
    keep_registers(o);
    wgmma_fence();
    const uint64_t v = swizzled_operand_mn(ring + s * kStage + 2 * kBox, kBox);
#pragma unroll
    for (int k = 0; k < 4; k++) WgmmaB16R<128>::run(o, prob[k], v + 128 * k, 1);
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(o);
    keep_registers(next);
#pragma unroll
    for (int k = 0; k < 32; k++) score[k] = next[k];
    __syncwarp();
    if (lane == 0) mbar_arrive(&empty[s]);
  }
  for (int i = mine; i < blocks; i++)
    if (lane == 0) mbar_arrive(&empty[i % kStages]); // keys that only the other warpgroup sees
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    const float inverse = 1.0f / sum[h];
    float amax = 0;
#pragma unroll
    for (int j = 0; j < 16; j++) {
      o[4 * j + 2 * h] *= inverse;
      o[4 * j + 2 * h + 1] *= inverse;
      amax = fmaxf(amax, fmaxf(fabsf(o[4 * j + 2 * h]), fabsf(o[4 * j + 2 * h + 1])));
    }
    amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, 1));
    amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, 2));
    if (r + 8 * h >= pair.count) continue;
    // A head's 128 columns are one block of o_proj's input.
    const float unit = quant_scale(amax, p.ue8m0), by = 1.0f / unit;
    const int row = pair.row + r + 8 * h;
    uint8_t *record = p.out.data + (size_t)(head / 2) * p.out.mp * 264;
    uint8_t *to = record + ((size_t)(head % 2) * p.out.mp + row) * 128;
#pragma unroll
    for (int j = 0; j < 16; j++) {
      const int c = 8 * j + 2 * t4;
      *(uint16_t *)(to + (((c >> 4) ^ (row & 7)) << 4) + (c & 15)) = __nv_cvt_float2_to_fp8x2(
          make_float2(o[4 * j + 2 * h] * by, o[4 * j + 2 * h + 1] * by), __NV_SATFINITE, __NV_E4M3);
    }
    if (t4 == 0) *(float *)(record + (size_t)p.out.mp * 256 + ((size_t)(head % 2) * p.out.mp + row) * 4) = unit;
  }
}

} // namespace

void latent_records(const uint8_t *cache, const int *pages, const Records &out, int blocks, bool ue8m0, cudaStream_t stream) {
  launch(latent_records_kernel, blocks, 256, 0, stream, cache, pages, out, ue8m0);
}

void query_tiles(const PrefillQueries &p, int rows, cudaStream_t stream) { launch(query_tiles_kernel, rows, 256, 0, stream, p); }

void attend_prefill(const AttendPrefill &p, int pairs, cudaStream_t stream) {
  launch(attend_prefill_kernel, dim3(pairs, p.heads), 384, kShared, stream, p);
}

void attention_prefill_prepare() {
  cudaFuncSetAttribute(attend_prefill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
}

} // namespace mob
