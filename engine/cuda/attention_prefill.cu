// Attention of long chunks (DeepSeek-V3's 192 / 128 heads) with keys and values expanded from the latent cache: per query, key and head
// 640 operations instead of the absorbed form's 2,176. Per layer: latents of the chunks' whole contexts to FP8 records, kv_b over
// them (its epilogue writes tiles), queries to tiles, then this kernel.
//   kv tiles    [head][key block of 64][4 boxes: k 0-63, k 64-127, v 0-63, v 64-127], each 64 keys of 128 bytes, swizzled
//   q tiles     [block of 64 queries][head][3 boxes: 0-63, 64-127, roped]
// The roped part of the keys is read from the cache's pages. A piece of work is 128 queries of one sequence and one head: two warpgroups,
// each with its own 64 queries, read the same keys from a ring. Probabilities stay in registers; while a block's softmax runs, the
// next block's scores are computed.
//
// CTAs stay, one an SM, and ask for pieces one after the other: keys of the next are on their way, and its queries as soon as the last
// scores are there, while a piece comes to its end. Within some heads, whose keys the L2 holds, the longest pieces come first.
#include <algorithm>

#include "kernels.h"
#include "engine/cuda/wgmma.cuh"

namespace mob {
namespace {

constexpr int kBox = 8192, kQ = 2 * 3 * kBox, kStage = 5 * kBox, kStages = 4;
constexpr float kSlack = 8;
constexpr int kShared = 1024 + kQ + kStages * kStage;
// Heads whose pieces are dealt out by length: the L2 should hold their keys and values, 32 KiB a block (16 MiB and 16 heads at most).
__device__ __forceinline__ int heads_beside(const AttendPrefill &p) { return max(1, min(16, 512 / p.key_blocks)); }

struct PrefillWork { // in shared memory
  PrefillPair pair;
  int head, blocks; // of keys; 0: there is no more
};
constexpr int kWorks = 2;

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

struct PrefillBars {
  uint64_t full[kStages], empty[kStages], work_full[kWorks], work_empty[kWorks], q_full[2], q_empty[2];
};

// One thread: deals the pieces, fetches their keys.
__device__ __forceinline__ void prefill_keys(const AttendPrefill &p, uint8_t *ring, PrefillWork *works, PrefillBars *bars) {
  const uint64_t keep = policy_evict_last();
  const int all = p.pair_count * p.heads, most = heads_beside(p);
  int next = blockIdx.x, s = 0, phase = 1;
  for (int turn = 0;; turn++) {
    PrefillWork work = {};
    if (next < all) {
      const int first = next / (most * p.pair_count) * most, beside = min(most, p.heads - first);
      const int local = next - first * p.pair_count;
      work.pair = p.pairs[p.pair_count - 1 - local / beside];
      work.head = first + local % beside;
      work.blocks = (work.pair.position + work.pair.count - 1) / 64 + 1;
    }
    mbar_wait(&bars->work_empty[turn % kWorks], turn / kWorks & 1 ^ 1);
    works[turn % kWorks] = work;
    mbar_arrive(&bars->work_full[turn % kWorks]);
    if (work.blocks == 0) break;
    const uint8_t *kv = p.kv + ((size_t)work.head * p.key_blocks + work.pair.keys) * 4 * kBox;
    for (int i = 0; i < work.blocks; i++) {
      if (i + 1 == work.blocks) next = gridDim.x + atomicAdd(p.dealt, 1);
      uint8_t *stage = ring + s * kStage;
      mbar_wait(&bars->empty[s], phase);
      mbar_arrive_expect(&bars->full[s], kStage);
      bulk_load(stage, kv + (size_t)i * 4 * kBox, 4 * kBox, &bars->full[s], keep);
      bulk_load(stage + 4 * kBox, p.cache + (size_t)p.key_pages[work.pair.keys + i] * (9 * kBox) + 8 * kBox, kBox, &bars->full[s], keep);
      if (++s == kStages) s = 0, phase ^= 1;
    }
  }
  if (atomicAdd(p.dealt + 1, 1) == (int)gridDim.x - 1) p.dealt[0] = p.dealt[1] = 0;
}

// One thread: the queries of the pieces, each warpgroup's as soon as it needs the last ones no more.
__device__ __forceinline__ void prefill_queries(const AttendPrefill &p, uint8_t *q, const PrefillWork *works, PrefillBars *bars) {
  const uint64_t once = policy_evict_first();
  for (int turn = 0;; turn++) {
    mbar_wait(&bars->work_full[turn % kWorks], turn / kWorks & 1);
    const PrefillWork &work = works[turn % kWorks];
    if (work.blocks == 0) return;
    for (int i = 0; i < 2; i++) {
      mbar_wait(&bars->q_empty[i], turn & 1 ^ 1);
      mbar_arrive_expect(&bars->q_full[i], 3 * kBox);
      bulk_load(q + i * 3 * kBox, p.q + ((size_t)(work.pair.block + i) * p.heads + work.head) * 3 * kBox, 3 * kBox, &bars->q_full[i], once);
    }
    mbar_arrive(&bars->work_empty[turn % kWorks]);
  }
}

// The results of a lane's queries r and r + 8: a head's 128 columns are one block of o_proj's input.
__device__ __forceinline__ void store_prefill(const AttendPrefill &p, const PrefillWork &work, int r, float (&o)[64], float (&sum)[2]) {
  const int t4 = threadIdx.x % 4, head = work.head;
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
    if (r + 8 * h >= work.pair.count) continue;
    const float unit = quant_scale(amax, p.ue8m0), by = 1.0f / unit;
    const int row = work.pair.row + r + 8 * h;
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

__global__ void __launch_bounds__(384, 1) attend_prefill_kernel(const AttendPrefill p) {
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *q = raw + (1024 - smem_address(raw) % 1024) % 1024, *ring = q + kQ;
  __shared__ PrefillBars bars;
  __shared__ PrefillWork works[kWorks];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < kStages; i++) {
      mbar_init(&bars.full[i], 1);
      mbar_init(&bars.empty[i], 8);
    }
    for (int i = 0; i < kWorks; i++) {
      mbar_init(&bars.work_full[i], 1);
      mbar_init(&bars.work_empty[i], 9);
    }
    for (int i = 0; i < 2; i++) {
      mbar_init(&bars.q_full[i], 1);
      mbar_init(&bars.q_empty[i], 4);
    }
    mbar_init_fence();
  }
  __syncthreads();
  depend_wait();
  if (warp >= 8) {
    registers_shrink<56>();
    if (tid == 256) prefill_keys(p, ring, works, &bars);
    if (tid == 288) prefill_queries(p, q, works, &bars);
    return;
  }

  registers_grow<224>();
  const int group = warp / 4, t4 = lane % 4, r = group * 64 + (warp % 4) * 16 + lane / 4; // this lane's queries: r and r + 8
  const float scale = p.scale * 1.4426950408889634f;
  int taken = 0; // key blocks, of all pieces before
  for (int turn = 0;; turn++) {
    mbar_wait(&bars.work_full[turn % kWorks], turn / kWorks & 1);
    const PrefillWork &work = works[turn % kWorks];
    const int blocks = work.blocks, position = work.pair.position;
    if (blocks == 0) return;
    const int first_position = position + group * 64;
    const int mine = min(blocks, (first_position + 63) / 64 + 1); // key blocks of this warpgroup's queries
    float o[64], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 64; i++) o[i] = 0;
    float score[32], next[32];
    auto issue_scores = [&](int block, float(&to)[32]) {
      const int at = taken + block, s = at % kStages;
      const uint8_t *stage = ring + s * kStage;
      mbar_wait(&bars.full[s], at / kStages & 1);
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
    auto give_back = [&](uint64_t *bar) {
      __syncwarp();
      if (lane == 0) mbar_arrive(bar);
    };
    mbar_wait(&bars.q_full[group], turn & 1);
    issue_scores(0, score);
    wgmma_wait<0>();
    keep_registers(score);
    if (mine == 1) give_back(&bars.q_empty[group]);
    for (int i = 0; i < mine; i++) {
      const int s = (taken + i) % kStages;
      if (i + 1 < mine) issue_scores(i + 1, next);
      if (i * 64 + 63 > first_position) { // on or behind the diagonal
#pragma unroll
        for (int k = 0; k < 32; k++)
          if (i * 64 + k / 4 * 8 + 2 * t4 + k % 2 > position + r + k % 4 / 2 * 8) score[k] = -INFINITY;
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
      give_back(&bars.empty[s]);
      if (i + 2 == mine) give_back(&bars.q_empty[group]); // the last scores are there
    }
    for (int i = mine; i < blocks; i++) { // keys that only the other warpgroup sees: given back when they have come, not before the last ones
      const int at = taken + i, s = at % kStages;
      mbar_wait(&bars.full[s], at / kStages & 1);
      give_back(&bars.empty[s]);
    }
    taken += blocks;
    store_prefill(p, work, r, o, sum);
    give_back(&bars.work_empty[turn % kWorks]);
  }
}

} // namespace

void latent_records(const uint8_t *cache, const int *pages, const Records &out, int blocks, bool ue8m0, cudaStream_t stream) {
  launch(latent_records_kernel, blocks, 256, 0, stream, cache, pages, out, ue8m0);
}

void query_tiles(const PrefillQueries &p, int rows, cudaStream_t stream) { launch(query_tiles_kernel, rows, 256, 0, stream, p); }

void attend_prefill(const AttendPrefill &p, int pairs, cudaStream_t stream) {
  AttendPrefill all = p;
  all.pair_count = pairs;
  launch(attend_prefill_kernel, std::min(p.sms, pairs * p.heads), 384, kShared, stream, all);
}

void attention_prefill_prepare() {
  cudaFuncSetAttribute(attend_prefill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
}

} // namespace mob
