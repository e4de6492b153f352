// Decode attention of 512 + 64 (DeepSeek-V3, absorbed form): every row is one query position; 64 of its heads are the M side of wgmma,
// a page of 64 keys is read once for scores and values.
//
// The pages of all rows, one row behind the other, are one long list that is cut into equal runs from the lengths on the device; a
// CTA takes a run for a block of 64 heads. A row that lies in several runs leaves a part in each, which absorb_v_mla merges; run k's
// part of row r is number r + k, so that a row's parts lie one behind the other.
//
// Two warpgroups take turns: warpgroup g computes scores and softmax of pages g, g + 2, ... and holds half of the 512 output columns
// for all pages. While one is in its softmax, the other's products run. Per page i, by its own warpgroup:
//   output half += P(i - 1) V(i - 1), P from shared memory, where the other left it with its reference r(i - 1)
//   scores of page i; r(i) = r(i - 1), unless the largest score is far above it; P(i) = exp(scores - r(i))
//   P(i) to shared memory (where the page's roped part was), output half += P(i) V(i), P from registers
// So page i - 1 is free for the next load before the scores of page i are computed: two stages of pages suffice.
// A reference that stays where it is costs the output no multiplication; probabilities may be up to 2^kSlack, which bf16 and
// fp32 sums hold as exactly as those below one.
#include "kernels.h"
#include "engine/cuda/wgmma.cuh"

namespace mob {
namespace {

constexpr int kBox = 8192, kQ = 9 * kBox, kPage = 9 * kBox, kMost = 512; // rows
constexpr int kShared = 1024 + kQ + 2 * kPage;
constexpr int kThreads = 384;
constexpr float kSlack = 8;

// ---------------------------------------------------------------------------------------------- runs

struct Lengths { // of a step's rows, in shared memory
  int keys[kMost], table[kMost]; // StepRows' table
  int sums[kThreads / 32], found[3];
};

// A run: pieces of rows, in order.
struct Run {
  const int *keys, *table;
  int row, page, left; // where the next piece begins; pages of the run that are left

  struct Piece {
    int row, first, last, keys; // pages; keys of the row
  };
  __device__ __forceinline__ bool next(Piece *piece) {
    if (left == 0) return false;
    int pages;
    while ((pages = (keys[row] + 63) / 64) == page) row++, page = 0; // padding has none
    const int n = min(left, pages - page);
    *piece = {row, page, page + n, keys[row]};
    left -= n;
    page += n;
    return true;
  }
};

// How many runs: whole rows, or the same number of runs for each, as long as that keeps nine of ten CTAs busy.
__device__ __forceinline__ int runs_of(int total, int rows, int most) {
  most = min(most, total);
  const int rounds = (rows + most - 1) / most, even = rows >= most ? (rows + rounds - 1) / rounds : most / rows * rows;
  return even * 10 >= most * 9 ? even : most;
}

// This CTA's run, number `index` of at most `most`; false: there is none. The CTA with `write` tells of the rows that begin in its run
// (the first run: of padding too) which parts they have.
__device__ bool find_run(const AttendMla &p, int rows, int index, int most, bool write, Lengths *lengths, Run *run) {
  const int tid = threadIdx.x, lane = tid % 32;
  constexpr int kEach = (kMost + kThreads - 1) / kThreads;
  int pages[kEach], mine = 0;
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    const int row = tid * kEach + i;
    int keys = 0;
    if (row < rows) {
      const int table = p.step.table[row], position = p.step.position[row]; // both on their way at once
      if (table >= 0) keys = position + 1;
      lengths->table[row] = table;
    }
    if (row < kMost) lengths->keys[row] = keys;
    pages[i] = (keys + 63) / 64;
    mine += pages[i] + (pages[i] ? 1 << 21 : 0); // pages below, rows above
  }
  int before = mine;
#pragma unroll
  for (int s = 1; s < 32; s *= 2) {
    const int v = __shfl_up_sync(~0u, before, s);
    if (lane >= s) before += v;
  }
  if (lane == 31) lengths->sums[tid / 32] = before;
  __syncthreads();
  before -= mine;
  int all = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; i++) {
    if (i < tid / 32) before += lengths->sums[i];
    all += lengths->sums[i];
  }
  const int total = all & ((1 << 21) - 1), runs = total ? runs_of(total, all >> 21, most) : 0;
  // Pages are fewer than 2^21, runs than 2^11.
  auto run_at = [&](int page) { return (int)((((uint32_t)page + 1) * runs - 1) / total); };
  const int from = total ? (int)((uint32_t)total * index / runs) : 0, to = total ? (int)((uint32_t)total * (index + 1) / runs) : 0;
  int at = before & ((1 << 21) - 1);
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    const int row = tid * kEach + i;
    if (index < runs && pages[i] && from >= at && from < at + pages[i]) lengths->found[0] = row, lengths->found[1] = from - at;
    if (write && row < rows) {
      if (pages[i] == 0 && index == 0) *(int2 *)(p.parts.of_row + 2 * row) = make_int2(0, 0);
      if (pages[i] && index < runs && at >= from && at < to)
        *(int2 *)(p.parts.of_row + 2 * row) = make_int2(row + index, run_at(at + pages[i] - 1) - index + 1);
    }
    at += pages[i];
  }
  __syncthreads();
  *run = {lengths->keys, lengths->table, lengths->found[0], lengths->found[1], to - from};
  return index < runs;
}

// ------------------------------------------------------------------------------------------- producer

struct Barriers {
  uint64_t q_full[5], q_empty;
  uint64_t full[2][5];     // of a page: each two boxes, and the last; q_full likewise
  uint64_t empty[2][2];    // the halves of a page's latents; the last box is free with the later one
  uint64_t probs[2];       // of a page, with what they are relative to
};

// One thread: queries and pages of the run into shared memory.
__device__ __forceinline__ void produce(const AttendMla &p, Run run, int block, int blocks, uint8_t *q, uint8_t *stages, Barriers *bar) {
  const int heads = min(64, p.heads - block * 64);
  const uint64_t once = policy_evict_first();
  bool waited = !p.single;
  int c = 0; // pages so far
  uint32_t q_phase = 1;
  Run::Piece piece;
  while (run.next(&piece)) {
    const int *list = p.step.pages + run.table[piece.row];
    bool has_q = false;
    int id = list[piece.first];
    const int group = c & 1; // whose scores are the piece's first
    auto load_q = [&] {
      if (!waited) depend_wait();
      waited = has_q = true;
      mbar_wait(&bar->q_empty, q_phase);
      const uint8_t *from = p.q + ((size_t)piece.row * blocks + block) * kQ;
      for (int i = 0; i < 5; i++) {
        const int pair = i == 4 ? 4 : i ^ group << 1, boxes = i == 4 ? 1 : 2;
        mbar_arrive_expect(&bar->q_full[pair], boxes * heads * 128);
        if (heads == 64) bulk_load(q + 2 * pair * kBox, from + 2 * pair * kBox, boxes * kBox, &bar->q_full[pair], once);
        else
          for (int box = 2 * pair; box < 2 * pair + boxes; box++)
            bulk_load(q + box * kBox, from + box * kBox, heads * 128, &bar->q_full[pair], once);
      }
      q_phase ^= 1;
    };
    for (int i = piece.first; i < piece.last; i++, c++) {
      // The first pages may come before the kernel in front is done, but for a row's last one: it holds this step's token.
      // Later pieces' first pages come before their queries, whose place is the last that the piece before leaves.
      if (!has_q && (waited ? i > piece.first : c == 2 || (i + 1) * 64 >= piece.keys)) load_q();
      const int s = c & 1, phase = (c >> 1 & 1) ^ 1;
      const uint8_t *page = p.cache + (size_t)id * kPage;
      uint8_t *to = stages + s * kPage;
      if (i + 1 < piece.last) id = list[i + 1];
#pragma unroll
      for (int k = 0; k < 4; k++) {
        const int pair = k ^ s << 1; // that half first whose columns are the page's own warpgroup's
        if (k % 2 == 0) mbar_wait(&bar->empty[s][pair / 2], phase);
        mbar_arrive_expect(&bar->full[s][pair], 2 * kBox);
        bulk_load(to + 2 * pair * kBox, page + 2 * pair * kBox, 2 * kBox, &bar->full[s][pair], once);
      }
      mbar_arrive_expect(&bar->full[s][4], kBox);
      bulk_load(to + 8 * kBox, page + 8 * kBox, kBox, &bar->full[s][4], once);
    }
    if (!has_q) load_q();
  }
}

// ------------------------------------------------------------------------------------------ arithmetic

// What a warpgroup has of 64 heads: sums of half of the columns; a lane's heads are r and r + 8.
struct Sums {
  float o[128], sum[2]; // `sum`: of this warpgroup's own pages
  float reference[2];   // scores that they are relative to
};

// Makes the sums relative to `to`; no product may be under way. A warp's lanes go the same way.
__device__ __forceinline__ void refer(Sums *to, const float (&reference)[2], float scale) {
  const bool moved = reference[0] != to->reference[0] || reference[1] != to->reference[1];
  if (__any_sync(~0u, moved && to->reference[0] != -INFINITY)) {
    float factor[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      factor[h] = exp2_approx((to->reference[h] - reference[h]) * scale);
      to->sum[h] *= factor[h];
    }
#pragma unroll
    for (int k = 0; k < 128; k++) to->o[k] *= factor[k % 4 / 2];
  }
#pragma unroll
  for (int h = 0; h < 2; h++) to->reference[h] = reference[h];
}

// The same in all lanes, which the compiler then knows: wgmma may not lie where lanes might part.
__device__ __forceinline__ int uniform(int v) { return __shfl_sync(~0u, v, 0); }

__device__ __forceinline__ void arrive(uint64_t *bar) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbar_arrive(bar);
}

struct Shared {
  Barriers bar;
  Lengths lengths;
  float reference[2][64], sums[2][2][64];
};

struct Group { // one warpgroup's view
  const AttendMla &p;
  Shared *shared;
  uint8_t *q, *stages;
  int group, r, t4;
  float scale; // of scores, for exp2

  // Scores of page c: its boxes in the order in which they come. `first`: of this warpgroup with the queries of piece `turn`.
  __device__ __forceinline__ void issue_scores(uint32_t c, bool first, int turn, float (&score)[32]) const {
    const int s = c & 1, phase = c >> 1 & 1;
    keep_registers(score);
#pragma unroll
    for (int i = 0; i < 5; i++) {
      const int k = i == 4 ? 4 : i ^ group << 1; // pair of boxes
      if (first) mbar_wait(&shared->bar.q_full[k], turn);
      mbar_wait(&shared->bar.full[s][k], phase);
      wgmma_fence();
#pragma unroll
      for (int box = 0; box < (i == 4 ? 1 : 2); box++) {
        const uint64_t a = swizzled_operand(q + (2 * k + box) * kBox), b = swizzled_operand(stages + s * kPage + (2 * k + box) * kBox);
#pragma unroll
        for (int step = 0; step < 4; step++) WgmmaB16<64>::run(score, a + 2 * step, b + 2 * step, i + box + step > 0);
      }
    }
    wgmma_commit();
  }
  __device__ __forceinline__ uint64_t values(uint32_t c) const {
    return swizzled_operand_mn(stages + (c & 1) * kPage + group * 4 * kBox, kBox);
  }
  // Page c of the other warpgroup.
  __device__ __forceinline__ void issue_values(uint32_t c, Sums *sums) const {
    keep_registers(sums->o);
    wgmma_fence();
    const uint64_t a = swizzled_operand(stages + (c & 1) * kPage + 8 * kBox), b = values(c);
#pragma unroll
    for (int k = 0; k < 4; k++) WgmmaB16T<256>::run(sums->o, a + 2 * k, b + 128 * k, 1);
    wgmma_commit();
  }
  // Page c of this one.
  __device__ __forceinline__ void issue_values(uint32_t c, const uint32_t (&prob)[4][4], Sums *sums) const {
    keep_registers(sums->o);
    wgmma_fence();
    const uint64_t b = values(c);
#pragma unroll
    for (int k = 0; k < 4; k++) WgmmaB16R<256>::run(sums->o, prob[k], b + 128 * k, 1);
    wgmma_commit();
  }
  __device__ __forceinline__ void read_reference(float (&reference)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; h++) reference[h] = shared->reference[group ^ 1][r + 8 * h];
  }
  // Exponentials of page c's scores, to registers and for the other warpgroup.
  __device__ __forceinline__ void weigh(uint32_t c, const float (&score)[32], const float (&reference)[2], uint32_t (&prob)[4][4],
                                        float (&added)[2]) const {
    uint8_t *to = stages + (c & 1) * kPage + 8 * kBox + r * 128 + t4 * 4;
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const float base = reference[h] * scale;
      added[h] = 0;
#pragma unroll
      for (int j = 0; j < 8; j++) {
        const uint32_t two = pack_bf16(exp2_approx(score[4 * j + 2 * h] * scale - base), exp2_approx(score[4 * j + 2 * h + 1] * scale - base));
        added[h] += __uint_as_float(two << 16) + __uint_as_float(two & 0xffff0000u);
        prob[j / 2][j % 2 * 2 + h] = two;
        *(uint32_t *)(to + 8 * h * 128 + ((j ^ (r & 7)) << 4)) = two;
      }
    }
    async_fence();
    arrive(&shared->bar.probs[group]);
  }
  // The pages [begin, end) of the run, those of one piece.
  __device__ __forceinline__ void attend(const Run::Piece &piece, uint32_t begin, uint32_t end, int turn, Sums *sums) const {
    Barriers *bar = &shared->bar;
    const uint32_t other = group ^ 1;
    float score[32], added[2];
    uint32_t c = begin + ((begin & 1) != (uint32_t)group);
    if (c >= end) arrive(&bar->q_empty);
    for (; c < end; c += 2) {
      float before[2] = {-INFINITY, -INFINITY}, reference[2];
      if (c > begin) {
        mbar_wait(&bar->probs[other], (c - 1) >> 1 & 1);
        read_reference(before);
        refer(sums, before, scale);
        issue_values(c - 1, sums);
      }
      issue_scores(c, c < begin + 2, turn, score);
      wgmma_wait<1>();
      if (c > begin) arrive(&bar->empty[(c - 1) & 1][group]);
      wgmma_wait<0>();
      keep_registers(score);
      keep_registers(sums->o);
      if (c + 2 >= end) arrive(&bar->q_empty);
      const int left = piece.keys - (piece.first + (int)(c - begin)) * 64; // valid keys of this page
      if (left < 64) {
#pragma unroll
        for (int k = 0; k < 32; k++)
          if (k / 4 * 8 + 2 * t4 + k % 2 >= left) score[k] = -INFINITY;
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float m = score[2 * h];
#pragma unroll
        for (int j = 0; j < 8; j++) m = fmaxf(m, fmaxf(score[4 * j + 2 * h], score[4 * j + 2 * h + 1]));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 1));
        m = fmaxf(m, __shfl_xor_sync(~0u, m, 2));
        reference[h] = (m - before[h]) * scale <= kSlack ? before[h] : m;
        if (t4 == 0) shared->reference[group][r + 8 * h] = reference[h];
      }
      uint32_t prob[4][4];
      weigh(c, score, reference, prob, added);
      refer(sums, reference, scale);
#pragma unroll
      for (int h = 0; h < 2; h++) sums->sum[h] += added[h];
      issue_values(c, prob, sums);
      wgmma_wait<0>();
      keep_registers(sums->o);
      arrive(&bar->empty[c & 1][group]);
    }
    if (((end - 1) & 1) == other) { // the last page
      mbar_wait(&bar->probs[other], (end - 1) >> 1 & 1);
      float reference[2];
      read_reference(reference);
      refer(sums, reference, scale);
      issue_values(end - 1, sums);
      wgmma_wait<0>();
      keep_registers(sums->o);
      arrive(&bar->empty[(end - 1) & 1][group]);
    }
    wgmma_wait<0>();
    keep_registers(sums->o);
  }
  // A part of a row: the sums of both warpgroups' pages, then this one's columns. `turn`: of the pieces.
  __device__ __forceinline__ void put_part(Sums *sums, int part, int block, int turn) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      sums->sum[h] += __shfl_xor_sync(~0u, sums->sum[h], 1);
      sums->sum[h] += __shfl_xor_sync(~0u, sums->sum[h], 2);
      if (t4 == 0) shared->sums[turn][group][r + 8 * h] = sums->sum[h];
    }
    group_sync<256>(1);
    const int heads = min(64, p.heads - block * 64);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      const int head = r + 8 * h;
      const float all = shared->sums[turn][0][head] + shared->sums[turn][1][head], inverse = __fdividef(1.0f, all);
      const size_t to = (size_t)part * p.heads + block * 64 + head;
      const bool odd = head & 1;
      // Of this lane's head and of the one four lanes away, of which it stores some.
      __half *out[2] = {p.parts.partial + (to - odd) * 512 + group * 256, p.parts.partial + (to + !odd) * 512 + group * 256};
#pragma unroll
      for (int j = 0; j < 32; j += 8) {
        // Four lanes have two columns each of eight chunks of eight columns. Afterwards each has two of the chunks; and eight lanes that have
        // two heads store a line of one, then of the other: lines in halves take three times as long.
        uint32_t v[2][4];
#pragma unroll
        for (int i = 0; i < 8; i++) {
          const __half2 two = __floats2half2_rn(sums->o[4 * (j + i) + 2 * h] * inverse, sums->o[4 * (j + i) + 2 * h + 1] * inverse);
          v[i / 4][i % 4] = *(const uint32_t *)&two;
        }
        turn_words(v[0]);
        turn_words(v[1]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const uint32_t got = __shfl_xor_sync(~0u, odd ? v[0][i] : v[1][i], 4);
          if (odd) v[0][i] = got;
          else v[1][i] = got;
        }
        const int column = (j + t4 + 4 * odd) * 8;
#pragma unroll
        for (int i = 0; i < 2; i++)
          if ((head & ~1) + i < heads) *(uint4 *)(out[i] + column) = make_uint4(v[i][0], v[i][1], v[i][2], v[i][3]);
      }
      if (group == 0 && t4 == 0 && head < heads) p.parts.lse[to] = sums->reference[h] * p.scale + logf(all);
    }
  }
};

__global__ void __launch_bounds__(kThreads, 1) attend_mla_kernel(const AttendMla p, int rows) {
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *q = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023), *stages = q + kQ;
  __shared__ Shared shared;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32;
  const int blocks = (p.heads + 63) / 64, block = blockIdx.x % blocks, index = blockIdx.x / blocks;
  depend_launch();
  if (tid == 0) {
    Barriers *bar = &shared.bar;
    mbar_init(&bar->q_empty, 8);
    for (int k = 0; k < 5; k++) mbar_init(&bar->q_full[k], 1);
    for (int i = 0; i < 2; i++) {
      for (int k = 0; k < 5; k++) mbar_init(&bar->full[i][k], 1);
      mbar_init(&bar->empty[i][0], 4);
      mbar_init(&bar->empty[i][1], 4);
      mbar_init(&bar->probs[i], 4);
    }
    mbar_init_fence();
  }
  // Heads that there are not: zeros, whose scores move no reference.
  const int heads = min(64, p.heads - block * 64);
  for (int i = tid; i < 9 * (64 - heads) * 8; i += kThreads) {
    const int line = i / 8;
    *(uint4 *)(q + line / (64 - heads) * kBox + (heads + line % (64 - heads)) * 128 + i % 8 * 16) = make_uint4(0, 0, 0, 0);
  }
  async_fence();
  if (!p.single) depend_wait(); // of_row is the same in all of a step's launches, or else must be read first
  Run run;
  // Its barriers show the others' work above.
  if (!find_run(p, rows, index, gridDim.x / blocks, block == 0, &shared.lengths, &run)) {
    depend_wait();
    return;
  }
  if (warp >= 8) {
    registers_shrink<56>();
    if (warp == 8 && lane == 0) produce(p, run, block, blocks, q, stages, &shared.bar);
    return;
  }

  registers_grow<224>();
  depend_wait();
  const Group group = {p, &shared, q, stages, uniform(warp / 4), warp % 4 * 16 + lane / 4, lane % 4, p.scale * 1.4426950408889634f};
  uint32_t at = 0;
  Run::Piece piece;
  for (int turn = 0; run.next(&piece); turn ^= 1) {
    Sums sums;
#pragma unroll
    for (int i = 0; i < 128; i++) sums.o[i] = 0;
#pragma unroll
    for (int h = 0; h < 2; h++) sums.sum[h] = 0, sums.reference[h] = -INFINITY;
    piece = {uniform(piece.row), uniform(piece.first), uniform(piece.last), uniform(piece.keys)};
    const uint32_t end = at + (uint32_t)(piece.last - piece.first);
    group.attend(piece, at, end, turn, &sums);
    group.put_part(&sums, piece.row + index, block, turn);
    at = end;
  }
}

} // namespace

void attend_mla(const AttendMla &p, int rows, cudaStream_t stream) {
  const int blocks = (p.heads + 63) / 64, runs = p.sms > blocks ? p.sms / blocks : 1;
  launch(attend_mla_kernel, runs * blocks, kThreads, kShared, stream, p, rows);
}

void attention_mla_prepare() {
  mla_attend_few_prepare();
  cudaFuncSetAttribute(attend_mla_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
}

} // namespace mob
