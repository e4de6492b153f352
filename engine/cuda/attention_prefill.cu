// Attention of long chunks (DeepSeek-V3's 192 / 128 heads) with keys and values expanded from the latent cache: per query, key and head
// 640 operations instead of the absorbed form's 2,176. Per layer: latents of the chunks' whole contexts to FP8 records, kv_b over
// them (its epilogue writes tiles), then this kernel.
//   kv tiles    [head][key block of 64][4 boxes: k 0-63, k 64-127, v 0-63, v 64-127], each 64 keys of 128 bytes, swizzled
// The roped part of the keys is read from the cache's pages, queries from the rows that q_b leaves. A piece of work is 128 queries of one
// sequence and one head: two warpgroups, each with its own 64 queries in registers, read the same keys from a ring. Probabilities stay in
// registers; while a block's softmax runs, the next block's scores are computed.
//
// CTAs stay, one an SM, and ask for pieces one after the other: keys and queries of the next are on their way while a piece comes to its
// end, and the next one's first scores are computed beside the last one's values. Within some heads, whose keys the L2 holds, the longest pieces come first.
#include <algorithm>
#include <type_traits>

#include "rope.cuh"
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

constexpr int kKeysEach = 16, kRowsEach = 64; // of a CTA

// Keys of a page: the latent's 512 columns, quantised 1 x 128; the last CTAs: rows' angles.
__global__ void __launch_bounds__(256) prefill_prepare_kernel(const PrefillPrepare p, int blocks, int rows) {
  depend_launch();
  depend_wait();
  const int records = blocks * (64 / kKeysEach);
  if ((int)blockIdx.x >= records) {
    const int row = ((int)blockIdx.x - records) * kRowsEach + threadIdx.x / 4, first = threadIdx.x % 4 * 8;
    if (row >= rows) return;
#pragma unroll 1
    for (int k = first; k < first + 8; k++) p.angles[row * 32 + k] = angle_of(p.rope, p.step.position[row], k);
    return;
  }
  const int block = blockIdx.x / (64 / kKeysEach), col = threadIdx.x % 64 * 8, first = blockIdx.x % (64 / kKeysEach) * kKeysEach;
  const uint8_t *page = p.cache + (size_t)p.pages[block] * page_bytes(576);
#pragma unroll
  for (int key = first + threadIdx.x / 64; key < first + kKeysEach; key += 4) {
    float v[8];
    unpack_bf16(*(const uint4 *)(page + page_offset(key, col)), v);
    put_record(p.latents, block * 64 + key, col, v, p.ue8m0);
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
#pragma unroll 1
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
#pragma unroll 1
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

// One warp: a warpgroup's queries of the pieces, as soon as it needs the last ones no more. Behind the last query they are that one again.
__device__ __forceinline__ void prefill_queries(const AttendPrefill &p, uint8_t *q, int group, int lane, const PrefillWork *works, PrefillBars *bars) {
  const size_t row_bytes = (size_t)p.heads * 384;
  q += group * 3 * kBox;
  for (int turn = 0;; turn++) {
    mbar_wait(&bars->work_full[turn % kWorks], turn / kWorks & 1);
    const PrefillWork &work = works[turn % kWorks];
    if (work.blocks == 0) return;
    const int last = work.pair.row + work.pair.count - 1, row = min(work.pair.row + group * 64, last), chunk = lane % 8;
    const uint8_t *from = (const uint8_t *)p.q + work.head * 384 + chunk * 16;
    mbar_wait(&bars->q_empty[group], turn & 1 ^ 1);
#pragma unroll 4
    for (int r = lane / 8; r < 64; r += 4) {
      const uint8_t *at = from + (size_t)min(row + r, last) * row_bytes;
      uint8_t *to = q + r * 128 + ((chunk ^ (r & 7)) << 4);
#pragma unroll
      for (int box = 0; box < 3; box++) async_copy_16(to + box * kBox, at + box * 128);
    }
    async_copies_arrive(&bars->q_full[group]);
    __syncwarp();
    if (lane == 0) mbar_arrive(&bars->work_empty[turn % kWorks]);
  }
}

// A pair of columns turned, or the same two columns of the first and the second half of the roped part.
__device__ __forceinline__ uint32_t turn_pair(uint32_t v, float2 cs) {
  const float a = __uint_as_float(v << 16), b = __uint_as_float(v & 0xffff0000u);
  return pack_bf16(a * cs.x - b * cs.y, b * cs.x + a * cs.y);
}
__device__ __forceinline__ void turn_halves(uint32_t &u, uint32_t &v, float4 cs) {
  const float a0 = __uint_as_float(u << 16), a1 = __uint_as_float(u & 0xffff0000u);
  const float b0 = __uint_as_float(v << 16), b1 = __uint_as_float(v & 0xffff0000u);
  u = pack_bf16(a0 * cs.x - b0 * cs.y, a1 * cs.z - b1 * cs.w);
  v = pack_bf16(b0 * cs.x + a0 * cs.y, b1 * cs.z + a1 * cs.w);
}

// Angles of a lane's two queries as the operands of the roped columns need them, of one query and the other in turns.
__device__ __forceinline__ void take_angles(const AttendPrefill &p, const PrefillWork &work, float4 (&angles)[8]) {
  const int tid = compute_here(threadIdx.x), t4 = tid % 4, r = tid / 32 * 16 + tid % 32 / 4, last = work.pair.count - 1;
  const float2 *row[2] = {p.angles + (work.pair.row + min(r, last)) * 32, p.angles + (work.pair.row + min(r + 8, last)) * 32};
#pragma unroll
  for (int k = 0; k < 8; k++) {
    if (p.interleaved) {
      const float2 a = row[k % 2][k / 2 * 8 + t4], b = row[k % 2][k / 2 * 8 + 4 + t4];
      angles[k] = make_float4(a.x, a.y, b.x, b.y);
    } else {
      angles[k] = *(const float4 *)(row[k % 2] + k / 2 * 8 + 2 * t4);
    }
  }
}

// Queries of a warp as operands, 16 columns each.
__device__ __forceinline__ void take_queries(const uint8_t *q, uint32_t (&query)[12][4]) {
  const int tid = compute_here(threadIdx.x), lane = tid % 32, row = tid / 32 % 4 * 16 + lane % 16;
#pragma unroll
  for (int k = 0; k < 12; k++)
    load_matrices(query[k], q + k / 4 * kBox + row * 128 + (((k % 4 * 2 + lane / 16) ^ (row & 7)) << 4));
}
__device__ __forceinline__ void turn_queries(const float4 (&angles)[8], bool interleaved, uint32_t (&query)[12][4]) {
#pragma unroll
  for (int k = 0; k < 8; k++) {
    const float4 cs = angles[k];
    if (interleaved) {
      uint32_t(&v)[4] = query[8 + k / 2];
      v[k % 2] = turn_pair(v[k % 2], make_float2(cs.x, cs.y));
      v[k % 2 + 2] = turn_pair(v[k % 2 + 2], make_float2(cs.z, cs.w));
    } else {
      turn_halves(query[8 + k / 4][k % 4], query[10 + k / 4][k % 4], cs);
    }
  }
}

// The results of a lane's two queries: a head's 128 columns are one block of o_proj's input. Four lanes have a row's columns in
// turns of two: they exchange them for 16 beside each other.
__device__ __forceinline__ void store_prefill(const AttendPrefill &p, const PrefillWork &work, float (&o)[64], float (&sum)[2]) {
  const int tid = compute_here(threadIdx.x), t4 = tid % 4, r = tid / 32 * 16 + tid % 32 / 4, head = work.head;
  uint8_t *record = p.out.data + (size_t)(head / 2) * p.out.mp * 264;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
    float amax = 0;
#pragma unroll
    for (int j = 0; j < 16; j++) amax = fmaxf(amax, fmaxf(fabsf(o[4 * j + 2 * h]), fabsf(o[4 * j + 2 * h + 1])));
    amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, 1));
    amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, 2));
    const float inverse = 1.0f / sum[h], unit = quant_scale(amax * inverse, p.ue8m0), by = inverse / unit;
    const bool there = r + 8 * h < work.pair.count;
    const int row = work.pair.row + r + 8 * h;
    uint8_t *to = record + ((size_t)(head % 2) * p.out.mp + row) * 128;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t word[4]; // of four chunks of 16 columns, this lane's four of each
#pragma unroll
      for (int c = 0; c < 4; c++) {
        const float *v = o + (half * 4 + c) * 8 + 2 * h;
        word[c] = pack_e4m3(v[0] * by, v[1] * by) | pack_e4m3(v[4] * by, v[5] * by) << 16;
      }
      turn_words(word); // of one chunk, all four lanes'
      const uint4 chunk = make_uint4(__byte_perm(word[0], word[1], 0x5410), __byte_perm(word[2], word[3], 0x5410),
                                     __byte_perm(word[0], word[1], 0x7632), __byte_perm(word[2], word[3], 0x7632));
      if (there) *(uint4 *)(to + (((half * 4 + t4) ^ (row & 7)) << 4)) = chunk;
    }
    if (t4 == 0 && there) *(float *)(record + (size_t)p.out.mp * 256 + ((size_t)(head % 2) * p.out.mp + row) * 4) = unit;
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
      mbar_init(&bars.work_empty[i], 8 + 2); // the consumers' warps, those that fetch queries
    }
    for (int i = 0; i < 2; i++) {
      mbar_init(&bars.q_full[i], 32); // lanes
      mbar_init(&bars.q_empty[i], 4);
    }
    mbar_init_fence();
  }
  __syncthreads();
  depend_wait();
  if (warp >= 8) {
    registers_shrink<56>();
    if (tid == 256) prefill_keys(p, ring, works, &bars);
    if (warp == 9 || warp == 10) prefill_queries(p, q, warp - 9, lane, works, &bars);
    return;
  }

  registers_grow<224>();
  // What is the same in all lanes, said so: operands' addresses are then computed once.
  const int group = __shfl_sync(~0u, warp / 4, 0), t4 = lane % 4, r = warp % 4 * 16 + lane / 4; // this lane's queries of the group's 64: r and r + 8
  const uint32_t ring_word = operand_word(ring);
  const float scale = p.scale * 1.4426950408889634f;
  int s = 0, phase = 0; // of the stage with the block whose scores are next
  float o[64], even[32], odd[32], top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
  uint32_t query[12][4];
  auto give_back = [&](uint64_t *bar) {
    __syncwarp();
    if (lane == 0) mbar_arrive(bar);
  };
  auto next_stage = [&] {
    if (++s == kStages) s = 0, phase ^= 1;
  };
  auto score_products = [&](float(&to)[32], int first, int end) {
    const uint32_t word = ring_word + s * (kStage >> 4);
#pragma unroll
    for (int k = 0; k < 12; k++)
      if (k >= first && k < end) WgmmaB16A<64>::run(to, query[k], operand_of(word + (k < 8 ? k / 4 : 4) * (kBox >> 4) + k % 4 * 2), k > 0);
  };
  auto issue_scores = [&](float(&to)[32]) {
    mbar_wait(&bars.full[s], phase);
    keep_registers(to);
    wgmma_fence();
    score_products(to, 0, 12);
    wgmma_commit();
  };
  // A piece's queries and its first scores, under way. Its key blocks; 0: there is no such piece.
  auto begin = [&](int turn) {
    mbar_wait(&bars.work_full[turn % kWorks], turn / kWorks & 1);
    const PrefillWork &work = works[turn % kWorks];
    const int blocks = __shfl_sync(~0u, work.blocks, 0);
    if (blocks == 0) return 0;
    float4 angles[8];
    take_angles(p, work, angles);
    mbar_wait(&bars.q_full[group], turn & 1);
    take_queries(q + group * 3 * kBox, query);
    give_back(&bars.q_empty[group]);
    mbar_wait(&bars.full[s], phase);
    keep_registers(even);
    wgmma_fence();
    score_products(even, 0, 8);
    turn_queries(angles, p.interleaved, query); // while the tensor cores have the others
    wgmma_fence();
    score_products(even, 8, 12);
    wgmma_commit();
    return blocks;
  };
  // Softmax of a block's scores, and its values under way. last: the last key that this lane's first query sees, from its first on.
  auto values = [&](const float(&scores)[32], int stage, int last, bool more, auto masked) {
    float score[32];
#pragma unroll
    for (int k = 0; k < 32; k++) score[k] = decltype(masked)::value && k / 4 * 8 + k % 2 - k % 4 / 2 * 8 > last ? -INFINITY : scores[k];
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
      const float base = top[h] * scale, a = exp2_approx(score[k] * scale - base), b = exp2_approx(score[k + 1] * scale - base);
      sum[h] += a + b;
      prob[k / 8][k % 8 / 4 * 2 + h] = pack_bf16(a, b);
    }
    const uint32_t word = ring_word + stage * (kStage >> 4) + 2 * (kBox >> 4) + ((kBox >> 4) - 1 << 16);
    keep_registers(o);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) WgmmaB16R<128>::run(o, prob[k], operand_of(word + 128 * k), more || k > 0);
    wgmma_commit();
  };
  // Scores are there: their values, with the next block's scores under way.
  auto step = [&](int i, const float(&scores)[32], float(&next)[32], int last, auto masked) {
    const int here = s;
    next_stage();
    issue_scores(next);
    values(scores, here, last - i * 64, i > 0, masked);
    wgmma_wait<0>();
    keep_registers(o);
    keep_registers(next);
    give_back(&bars.empty[here]);
  };

  int blocks = begin(0);
  wgmma_wait<0>();
  keep_registers(even);
#pragma unroll 1
  for (int turn = 0; blocks; turn++) {
    const PrefillWork &work = works[turn % kWorks];
    const int position = __shfl_sync(~0u, work.pair.position, 0) + group * 64, last = position + r - 2 * t4;
    const int mine = min(blocks, (position + 63) / 64 + 1); // key blocks of this warpgroup's queries
    const int before = min(mine - 1, (position + 1) / 64);  // those before the diagonal
    int i = 0;
#pragma unroll 1
    for (; i + 2 <= before; i += 2) {
      step(i, even, odd, last, std::false_type());
      step(i + 1, odd, even, last, std::false_type());
    }
    bool turned = false; // the scores are in `odd`
#pragma unroll 1
    while (i + 1 < mine) {
      step(i++, even, odd, last, std::true_type());
      if ((turned = i + 1 == mine)) break;
      step(i++, odd, even, last, std::true_type());
    }
    if (!turned) {
#pragma unroll
      for (int k = 0; k < 32; k++) odd[k] = even[k];
    }
    // The last block, with the next piece's first scores under way.
    const int here = s;
    next_stage();
#pragma unroll 1
    for (int k = mine; k < blocks; k++) { // keys that only the other warpgroup sees: given back when they have come, not before the last ones
      mbar_wait(&bars.full[s], phase);
      give_back(&bars.empty[s]);
      next_stage();
    }
    blocks = begin(turn + 1);
    values(odd, here, last - i * 64, i > 0, std::true_type());
    wgmma_wait<0>();
    keep_registers(o);
    keep_registers(even);
    give_back(&bars.empty[here]);
    store_prefill(p, work, o, sum);
    give_back(&bars.work_empty[turn % kWorks]);
    top[0] = top[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
}

} // namespace

void prefill_prepare(const PrefillPrepare &p, int blocks, int rows, cudaStream_t stream) {
  launch(prefill_prepare_kernel, blocks * (64 / kKeysEach) + (rows + kRowsEach - 1) / kRowsEach, 256, 0, stream, p, blocks, rows);
}

void attend_prefill(const AttendPrefill &p, int pairs, cudaStream_t stream) {
  AttendPrefill all = p;
  all.pair_count = pairs;
  launch(attend_prefill_kernel, std::min(p.sms, pairs * p.heads), 384, kShared, stream, all);
}

void attention_prefill_prepare() {
  cudaFuncSetAttribute(attend_prefill_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
}

} // namespace mob
