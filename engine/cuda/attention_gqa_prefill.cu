// Attention of chunks of grouped queries over the paged cache. A CTA takes 128 queries of one sequence and one head: two warpgroups
// of 64 queries each read the same pages from a ring (wgmma, both operands in shared memory; probabilities stay in registers as the A
// operand of the second product); while a page's softmax runs, the next page's scores are computed. The heads of a group run side by
// side and find its pages in the L2. Query tiles come from gqa_prepare_fast.
#include "attention_gqa.cuh"
#include "engine/cuda/wgmma.cuh"

namespace mob {
namespace {

template <int Dim> struct PrefillShared {
  static constexpr int kTile = GqaPage<Dim>::kHalf; // 64 queries
  static constexpr int kStages = Dim == 128 ? 4 : 6;
  static constexpr int kBytes = 1024 + 2 * kTile + kStages * GqaPage<Dim>::kBytes;
};

template <int Dim>
__device__ __forceinline__ void produce(const AttendGqaPrefill &p, const PrefillPair &pair, int pages, uint8_t *q, uint8_t *ring,
                                        uint64_t *q_full, uint64_t *full, uint64_t *empty) {
  using S = PrefillShared<Dim>;
  using Page = GqaPage<Dim>;
  const int head = blockIdx.x, kv = head / (p.heads / p.kv_heads), tiles = pair.count > 64 ? 2 : 1;
  const uint64_t keep = policy_evict_last();
  mbar_arrive_expect(q_full, tiles * S::kTile);
  for (int i = 0; i < tiles; i++)
    bulk_load(q + i * S::kTile, p.q + ((size_t)(pair.block + i) * p.heads + head) * S::kTile, S::kTile, q_full, keep);
  const int *list = p.step.pages + p.step.table[pair.row];
  int next = list[0];
  for (int i = 0, s = 0, phase = 1; i < pages; i++) {
    const uint8_t *page = p.cache + ((size_t)next * p.kv_heads + kv) * Page::kBytes;
    if (i + 1 < pages) next = list[i + 1];
    mbar_wait(&empty[s], phase);
    mbar_arrive_expect(&full[s], Page::kBytes);
    bulk_load(ring + s * Page::kBytes, page, Page::kBytes, &full[s], keep);
    if (++s == S::kStages) s = 0, phase ^= 1;
  }
}

template <int Dim> __global__ void __launch_bounds__(384, 1) attend_gqa_prefill_kernel(const AttendGqaPrefill p) {
  using S = PrefillShared<Dim>;
  using Page = GqaPage<Dim>;
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *q = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023), *ring = q + 2 * S::kTile;
  __shared__ uint64_t q_full, full[S::kStages], empty[S::kStages];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, head = blockIdx.x;
  depend_launch();
  if (tid == 0) {
    mbar_init(&q_full, 1);
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], 8);
    }
    mbar_init_fence();
  }
  __syncthreads();
  depend_wait();
  // Long ones first, so that short ones fill the end.
  const PrefillPair pair = p.pairs[gridDim.y - 1 - blockIdx.y];
  const int pages = (pair.position + pair.count - 1) / 64 + 1;
  if (warp >= 8) { // producer
    registers_shrink<56>();
    if (warp == 8 && lane == 0) produce<Dim>(p, pair, pages, q, ring, &q_full, full, empty);
    return;
  }

  registers_grow<224>();
  const int group = warp / 4, t4 = lane % 4, r = group * 64 + (warp % 4) * 16 + lane / 4; // this lane's queries: r and r + 8
  const int first_position = pair.position + group * 64;
  const int mine = group * 64 >= pair.count ? 0 : min(pages, (first_position + 63) / 64 + 1); // pages that this warpgroup's queries see
  const float scale = p.scale * 1.4426950408889634f;
  float o[Dim / 2], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < Dim / 2; i++) o[i] = 0;
  float score[32], next[32];
  auto issue_scores = [&](int page, float(&to)[32]) {
    const uint8_t *stage = ring + page % S::kStages * Page::kBytes;
    mbar_wait(&full[page % S::kStages], page / S::kStages & 1);
    keep_registers(to);
    wgmma_fence();
#pragma unroll
    for (int box = 0; box < Page::kBoxes; box++) {
      const uint64_t a = swizzled_operand(q + group * S::kTile + box * Page::kBox), b = swizzled_operand(stage + box * Page::kBox);
#pragma unroll
      for (int k = 0; k < 4; k++) WgmmaB16<64>::run(to, a + 2 * k, b + 2 * k, box + k > 0);
    }
    wgmma_commit();
  };
  if (mine > 0) {
    mbar_wait(&q_full, 0);
    issue_scores(0, score);
    wgmma_wait<0>();
    keep_registers(score);
  }
  for (int i = 0; i < mine; i++) {
    const int s = i % S::kStages;
    if (i + 1 < mine) issue_scores(i + 1, next);
    if (i * 64 + 63 > first_position) { // on or behind the diagonal
#pragma unroll
      for (int k = 0; k < 32; k++)
        if (i * 64 + k / 4 * 8 + 2 * t4 + k % 2 > pair.position + r + k % 4 / 2 * 8) score[k] = -INFINITY;
    }
    float shrink[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float m = top[h];
#pragma unroll
      for (int j = 0; j < 8; j++) m = fmaxf(m, fmaxf(score[4 * j + 2 * h], score[4 * j + 2 * h + 1]));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
      shrink[h] = exp2f((top[h] - m) * scale);
      top[h] = m;
      sum[h] *= shrink[h];
    }
    uint32_t prob[4][4];
#pragma unroll
    for (int k = 0; k < 32; k += 2) {
      const int h = k % 4 / 2;
      const float base = top[h] * scale;
      const uint32_t two = pack_bf16(exp2f(score[k] * scale - base), exp2f(score[k + 1] * scale - base));
      sum[h] += __uint_as_float(two << 16) + __uint_as_float(two & 0xffff0000u);
      prob[k / 8][k % 8 / 4 * 2 + h] = two;
    }
#pragma unroll
    for (int k = 0; k < Dim / 2; k++) o[k] *= shrink[k % 4 / 2];
    keep_registers(o);
    wgmma_fence();
    const uint64_t v = swizzled_operand_mn(ring + s * Page::kBytes + Page::kHalf, Page::kBox);
#pragma unroll
    for (int k = 0; k < 4; k++) WgmmaB16R<Dim>::run(o, prob[k], v + 128 * k, 1);
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(o);
    keep_registers(next);
#pragma unroll
    for (int k = 0; k < 32; k++) score[k] = next[k];
    __syncwarp();
    if (lane == 0) mbar_arrive(&empty[s]);
  }
  for (int i = mine; i < pages; i++) { // that only the other warpgroup's queries see; arrivals must not run ahead of the ring
    mbar_wait(&full[i % S::kStages], i / S::kStages & 1);
    __syncwarp();
    if (lane == 0) mbar_arrive(&empty[i % S::kStages]);
  }
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    const float inverse = 1.0f / sum[h];
    float amax = 0;
#pragma unroll
    for (int j = 0; j < Dim / 8; j++) {
      o[4 * j + 2 * h] *= inverse;
      o[4 * j + 2 * h + 1] *= inverse;
      amax = fmaxf(amax, fmaxf(fabsf(o[4 * j + 2 * h]), fabsf(o[4 * j + 2 * h + 1])));
    }
    amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, 1));
    amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, 2));
    if (r + 8 * h >= pair.count) continue;
    const int row = pair.row + r + 8 * h;
    float by = 1;
    if (p.out.records.fp8 && !p.out.rows) { // a head is a block of 128
      const float unit = quant_scale(amax, p.out.ue8m0);
      by = 1.0f / unit;
      if (t4 == 0) put_scale(p.out, row, head * Dim, unit);
    }
#pragma unroll
    for (int j = 0; j < Dim / 8; j++) {
      const float two[2] = {o[4 * j + 2 * h], o[4 * j + 2 * h + 1]};
      put_columns(p.out, row, head * Dim + 8 * j + 2 * t4, two, by);
    }
    if (head == p.heads - 1) clear_columns(p.out, row, p.heads * Dim, t4, 4);
  }
}

template <int Dim> void attend(const AttendGqaPrefill &p, int pairs, cudaStream_t stream) {
  launch(attend_gqa_prefill_kernel<Dim>, dim3(p.heads, pairs), 384, PrefillShared<Dim>::kBytes, stream, p);
}
template <int Dim> void prepare() {
  cudaFuncSetAttribute(attend_gqa_prefill_kernel<Dim>, cudaFuncAttributeMaxDynamicSharedMemorySize, PrefillShared<Dim>::kBytes);
}

} // namespace

void attend_gqa_prefill(const AttendGqaPrefill &p, int pairs, cudaStream_t stream) {
  p.dim == 128 ? attend<128>(p, pairs, stream) : attend<64>(p, pairs, stream);
}

void attention_gqa_prefill_prepare() {
  prepare<128>();
  prepare<64>();
}

} // namespace mob
