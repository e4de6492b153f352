// Attention over the paged cache. Every row of a step is a query of its own at its position (a prompt's rows are many queries of
// one sequence); keys [0, position] are visited page by page with an online softmax.
//   attend_plain  any head sizes, CUDA cores (grouped queries of 64 and 128: attention_gqa.cu, attention_gqa_prefill.cu)
//   attend_mla    512 + 64 of DeepSeek-V3 in absorbed form: 64 heads are the M side of wgmma, a page of 64 keys is read once
//                 for scores and values; keys are split over CTAs, whose parts absorb_v_mla merges
#include "kernels.h"
#include "engine/cuda/wgmma.cuh"

namespace mob {
namespace {

// ------------------------------------------------------------------------------------------ plain

constexpr int kMaxValues = 8; // value columns a thread: 128 x 8 = 1,024

__global__ void __launch_bounds__(128) attend_plain_kernel(const AttendPlain p, float *out_f32, bf16 *out) {
  DYNAMIC_SHARED(float, q); // [dim]
  __shared__ float prob[64], scratch[4];
  depend_launch();
  depend_wait();
  const int row = blockIdx.x, head = blockIdx.y, tid = threadIdx.x, kv = head / p.group;
  const int table = p.step.table[row], position = p.step.position[row];
  const size_t to = ((size_t)row * p.heads + head) * p.v_dim;
  if (table < 0) { // padding
    for (int c = tid; c < p.v_dim; c += 128) {
      if (out_f32) out_f32[to + c] = 0;
      else out[to + c] = __float2bfloat16(0);
    }
    return;
  }
  for (int i = tid; i < p.dim; i += 128) q[i] = __bfloat162float(p.q[(size_t)row * p.ldq + head * p.q_head + i]);
  const int key_at = kv * p.key_step, value_at = p.value_at + kv * p.value_step;
  float sum_out[kMaxValues] = {}, top = -INFINITY, sum = 0;
  for (int from = 0; from <= position; from += 64) {
    const uint8_t *page = p.cache + (size_t)p.step.pages[table + from / 64] * page_bytes(p.width);
    const int n = min(64, position + 1 - from);
    __syncthreads();
    // two threads a key, every second chunk of eight columns each
    const int key = tid / 2;
    float s = 0;
    if (key < n) {
      for (int c = tid % 2 * 8; c < p.dim; c += 16) {
        float k[8];
        unpack_bf16(*(const uint4 *)(page + page_offset(key, key_at + c)), k);
#pragma unroll
        for (int i = 0; i < 8; i++) s += q[c + i] * k[i];
      }
    }
    s += __shfl_xor_sync(~0u, s, 1);
    s = key < n ? s * p.scale : -INFINITY;
    float m = warp_max(s);
    if (tid % 32 == 0) scratch[tid / 32] = m;
    __syncthreads();
    m = fmaxf(fmaxf(fmaxf(scratch[0], scratch[1]), fmaxf(scratch[2], scratch[3])), top);
    if (tid % 2 == 0) prob[key] = key < n ? __expf(s - m) : 0;
    const float shrink = __expf(top - m);
    top = m;
    __syncthreads();
    sum *= shrink;
    for (int j = 0; j < n; j++) sum += prob[j];
#pragma unroll
    for (int i = 0; i < kMaxValues; i++) {
      const int c = tid + i * 128;
      if (c >= p.v_dim) break;
      float v = sum_out[i] * shrink;
      for (int j = 0; j < n; j++) v += prob[j] * __bfloat162float(*(const bf16 *)(page + page_offset(j, value_at + c)));
      sum_out[i] = v;
    }
  }
#pragma unroll
  for (int i = 0; i < kMaxValues; i++) {
    const int c = tid + i * 128;
    if (c >= p.v_dim) break;
    if (out_f32) out_f32[to + c] = sum_out[i] / sum;
    else out[to + c] = __float2bfloat16(sum_out[i] / sum);
  }
}

// -------------------------------------------------------------------------------------------- MLA

constexpr int kBox = 8192, kQ = 9 * kBox, kLatent = 8 * kBox;
// queries, two stages of latents, one of roped keys, probabilities
constexpr int kMlaShared = 1024 + kQ + 2 * kLatent + kBox + kBox;

__global__ void __launch_bounds__(384, 1) attend_mla_kernel(const AttendMla p) {
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *q = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023), *latent = q + kQ, *roped = latent + 2 * kLatent,
          *probs = roped + kBox;
  __shared__ uint64_t q_full, full[2], empty[2], rope_full, rope_empty;
  __shared__ float tops[2][64], sums[2][64];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int split = blockIdx.x, block = blockIdx.y, row = blockIdx.z, blocks = gridDim.y;
  depend_launch();
  if (tid == 0) {
    mbar_init(&q_full, 1);
    mbar_init(&rope_full, 1);
    mbar_init(&rope_empty, 8);
    for (int i = 0; i < 2; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], 8);
    }
    mbar_init_fence();
  }
  __syncthreads();
  depend_wait();
  const int at = p.row0 + row, table = p.step.table[at], keys = table < 0 ? 0 : p.step.position[at] + 1;
  const int pages = (keys + 63) / 64, each = (pages + p.splits - 1) / p.splits;
  const int first = min(pages, split * each), last = min(pages, first + each);
  const size_t to = ((size_t)row * p.splits + split) * p.heads + block * 64;
  const int heads = min(64, p.heads - block * 64);
  if (first >= last) {
    for (int h = tid; h < heads; h += 384) p.lse[to + h] = -INFINITY;
    return;
  }
  if (warp >= 8) { // producer
    registers_shrink<56>();
    if (warp != 8 || lane != 0) return;
    const uint64_t keep = policy_evict_last(), once = policy_evict_first();
    mbar_arrive_expect(&q_full, kQ);
    bulk_load(q, p.q + ((size_t)row * blocks + block) * kQ, kQ, &q_full, once);
    int phase = 1;
    for (int i = first; i < last; i++) {
      const int s = (i - first) & 1;
      const uint8_t *page = p.cache + (size_t)p.step.pages[table + i] * (9 * kBox);
      mbar_wait(&empty[s], phase);
      mbar_arrive_expect(&full[s], kLatent);
      for (int k = 0; k < 4; k++) bulk_load(latent + s * kLatent + k * 2 * kBox, page + k * 2 * kBox, 2 * kBox, &full[s], keep);
      mbar_wait(&rope_empty, ((i - first) & 1) ^ 1);
      mbar_arrive_expect(&rope_full, kBox);
      bulk_load(roped, page + kLatent, kBox, &rope_full, keep);
      if (s) phase ^= 1;
    }
    return;
  }

  registers_grow<224>();
  const int group = warp / 4, t4 = lane % 4, r = (warp % 4) * 16 + lane / 4; // this lane's heads: r and r + 8
  const float scale = p.scale * 1.4426950408889634f;
  float o[128], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 128; i++) o[i] = 0;
  mbar_wait(&q_full, 0);
  for (int i = first; i < last; i++) {
    const int s = (i - first) & 1, phase = (i - first) / 2 & 1;
    const uint8_t *kv = latent + s * kLatent;
    mbar_wait(&full[s], phase);
    mbar_wait(&rope_full, (i - first) & 1);
    // Scores of 64 heads and this warpgroup's half of the keys.
    float score[16];
    keep_registers(score);
    wgmma_fence();
#pragma unroll
    for (int box = 0; box < 9; box++) {
      const uint8_t *b = (box < 8 ? kv + box * kBox : roped) + group * 4096;
      const uint64_t da = swizzled_operand(q + box * kBox), db = swizzled_operand(b);
#pragma unroll
      for (int k = 0; k < 4; k++) WgmmaB16<32>::run(score, da + 2 * k, db + 2 * k, box + k > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(score);
    __syncwarp();
    if (lane == 0) mbar_arrive(&rope_empty);
    const int left = keys - i * 64 - group * 32; // valid keys of this half
    float high[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int k = 0; k < 16; k++) {
      if (k / 4 * 8 + 2 * t4 + k % 2 >= left) score[k] = -INFINITY;
      high[k % 4 / 2] = fmaxf(high[k % 4 / 2], score[k]);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      high[h] = fmaxf(high[h], __shfl_xor_sync(~0u, high[h], 1));
      high[h] = fmaxf(high[h], __shfl_xor_sync(~0u, high[h], 2));
      if (t4 == 0) tops[group][r + 8 * h] = high[h];
    }
    group_sync<256>(1);
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float m = fmaxf(top[h], fmaxf(tops[0][r + 8 * h], tops[1][r + 8 * h]));
      shrink[h] = exp2f((top[h] - m) * scale);
      top[h] = m;
      sum[h] *= shrink[h];
    }
#pragma unroll
    for (int k = 0; k < 16; k += 2) {
      const int h = k % 4 / 2;
      const float a = exp2f((score[k] - top[h]) * scale), b = exp2f((score[k + 1] - top[h]) * scale);
      const uint32_t pair = pack_bf16(a, b);
      sum[h] += __uint_as_float(pair << 16) + __uint_as_float(pair & 0xffff0000u);
      const int head = r + 8 * h, chunk = group * 4 + k / 4; // eight keys
      *(uint32_t *)(probs + head * 128 + ((chunk ^ (head & 7)) << 4) + t4 * 4) = pair;
    }
    async_fence();
    group_sync<256>(1);
#pragma unroll
    for (int k = 0; k < 128; k++) o[k] *= shrink[k % 4 / 2];
    // This warpgroup's 256 columns of the values.
    keep_registers(o);
    wgmma_fence();
    const uint64_t da = swizzled_operand(probs), db = swizzled_operand_mn(kv + group * 4 * kBox, kBox);
#pragma unroll
    for (int k = 0; k < 4; k++) WgmmaB16T<256>::run(o, da + 2 * k, db + 128 * k, 1);
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(o);
    __syncwarp();
    if (lane == 0) mbar_arrive(&empty[s]);
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    if (t4 == 0) sums[group][r + 8 * h] = sum[h];
  }
  group_sync<256>(1);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int head = r + 8 * h;
    if (head >= heads) continue;
    const float all = sums[0][head] + sums[1][head], inverse = 1.0f / all;
    __half *out = p.partial + (to + head) * 512 + group * 256 + 2 * t4;
#pragma unroll
    for (int j = 0; j < 32; j++)
      *(__half2 *)(out + j * 8) = __floats2half2_rn(o[4 * j + 2 * h] * inverse, o[4 * j + 2 * h + 1] * inverse);
    if (group == 0 && t4 == 0) p.lse[to + head] = top[h] * p.scale + logf(all);
  }
}

} // namespace

void attend_plain(const AttendPlain &p, float *out_f32, bf16 *out, int rows, cudaStream_t stream) {
  launch(attend_plain_kernel, dim3(rows, p.heads), 128, (p.dim + 8) * sizeof(float), stream, p, out_f32, out);
}

void attend_mla(const AttendMla &p, int rows, cudaStream_t stream) {
  launch(attend_mla_kernel, dim3(p.splits, (p.heads + 63) / 64, rows), 384, kMlaShared, stream, p);
}

void attention_prepare() {
  cudaFuncSetAttribute(attend_mla_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMlaShared);
}

} // namespace mob
