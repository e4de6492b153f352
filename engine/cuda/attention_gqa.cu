// Decode attention of grouped queries: every row is one query position, all query heads of a key head are computed together, so
// that a page of its keys and values is read once.
//
// The pages of all (row, key head) pairs, one pair behind the other, are one long list that the CTAs cut into equal runs from the
// lengths on the device: long and short sequences share the SMs evenly, and a graph holds for any lengths. A CTA streams its run through a ring
// of bulk copies; each of four warps takes 16 keys of every page by itself (keys, then columns of the values, as M of mma.sync, eight
// heads as N; its own online softmax), and they meet only at a pair's end. A pair that lies in one run leaves as records at once. One in
// several: the runs leave partial results, and the CTA with the pair's end adds them at the end of its run, in the order of the keys, so
// that the result does not depend on timing.
//
// Before the kernel in front is done, pages of earlier steps are already on their way. Where every row is a sequence of its own the rest of
// what comes between projection and attention is done here too: a run's warps turn its queries, and the one with the key of this step's
// token puts key and value into the page in shared memory and into the cache.
#include "attention_gqa.cuh"

namespace mob {
namespace {

constexpr int kWarps = 4, kThreads = 160; // that compute; with the producer
constexpr int kMinPages = 2;              // of a CTA, where there are few: a partial result costs what half a page does

template <int Dim, bool Wide> struct Shared { // Wide: 9 to 16 query heads a key head
  static constexpr int kRows = Wide ? 16 : 8;
  static constexpr int kStages = 3 * 128 / Dim;
  static constexpr int kRing = kStages * GqaPage<Dim>::kBytes;
  static constexpr int kQ = kRows * Dim * 2;
  static constexpr int kColumns = Wide ? 32 : 64;      // of the warps' sums that are added at a time
  static constexpr int kPitch = kColumns + 4;          // heads of a lane's four neighbours lie in different banks
  static constexpr int kBytes = 1024 + kRing + kQ + kWarps * kRows * kPitch * 4;
};

__device__ __forceinline__ int pages_of(const AttendGqa &p, int row) {
  const int table = p.step.table[row], position = p.step.position[row], tile = p.tile_row ? p.tile_row[row] : -1; // all on their way at once
  return table < 0 || tile >= 0 ? 0 : position / 64 + 1;
}

// How the list of `total` pages of `pairs` pairs is cut: whole pairs, or the same number of runs for each, as long as that keeps
// nine of ten CTAs busy.
__device__ __forceinline__ int runs_of(int total, int pairs) {
  const int most = max(1, min((int)gridDim.x, total / kMinPages)), rounds = (pairs + most - 1) / most;
  const int even = pairs >= most ? (pairs + rounds - 1) / rounds : most / pairs * pairs;
  return even * 10 >= most * 9 ? even : most;
}
// floor(total * i / runs), without long divisions, which a CTA would begin with.
__device__ __forceinline__ int run_begin(int total, int i, int runs) { return total / runs * i + total % runs * i / runs; }

// A run: pieces of pairs, in order.
struct Run {
  int total, begin, at, end; // pages: of all; before the pair; up to the next piece; up to the run's end
  int runs, row, kv, pages;  // of the pair
  int first, last;           // pages of the piece

  __device__ __forceinline__ bool next(const AttendGqa &p) {
    if (at >= end) return false;
    if (at == begin + pages) {
      begin += pages;
      if (++kv == p.kv_heads) {
        kv = 0;
        do pages = pages_of(p, ++row);
        while (!pages);
      }
    }
    first = at - begin;
    last = min(pages, end - begin);
    at = begin + last;
    return true;
  }
  __device__ __forceinline__ int run_at(int page) const { return (int)((((int64_t)page + 1) * runs - 1) / total); }
};

// This CTA's run; false: there is none.
__device__ bool find_run(const AttendGqa &p, int rows, Run *run) {
  __shared__ uint64_t sums[kThreads / 32];
  __shared__ int found[2];
  const int tid = threadIdx.x, lane = tid % 32, each = (rows + kThreads - 1) / kThreads;
  const int from = min(rows, tid * each), to = min(rows, from + each);
  constexpr uint64_t kOne = (uint64_t)1 << 40; // rows above, pages below
  uint64_t mine = 0;
  for (int r = from; r < to; r++) {
    const int n = pages_of(p, r);
    mine += n ? kOne + (uint64_t)n : 0;
  }
  uint64_t before = mine;
#pragma unroll
  for (int s = 1; s < 32; s *= 2) {
    const uint64_t v = __shfl_up_sync(~0u, before, s);
    if (lane >= s) before += v;
  }
  if (lane == 31) sums[tid / 32] = before;
  __syncthreads();
  before -= mine;
  uint64_t all = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; i++) {
    if (i < tid / 32) before += sums[i];
    all += sums[i];
  }
  const int total = (int)(all & (kOne - 1)) * p.kv_heads;
  if (total == 0) return false;
  run->total = total;
  run->runs = runs_of(total, (int)(all >> 40) * p.kv_heads);
  if ((int)blockIdx.x >= run->runs) return false;
  run->at = run_begin(total, blockIdx.x, run->runs);
  run->end = run_begin(total, blockIdx.x + 1, run->runs);
  int left = (int)(before & (kOne - 1)); // pages of one key head before this thread's rows
  if (run->at >= left * p.kv_heads && run->at < (left + (int)(mine & (kOne - 1))) * p.kv_heads) {
    int row = from, n;
    for (; n = pages_of(p, row), run->at >= (left + n) * p.kv_heads; row++) left += n;
    found[0] = row;
    found[1] = left;
  }
  __syncthreads();
  run->row = found[0];
  run->pages = pages_of(p, run->row);
  const int row_begin = found[1] * p.kv_heads;
  run->kv = (run->at - row_begin) / run->pages;
  run->begin = row_begin + run->kv * run->pages;
  return true;
}

// Rows that are padding get zeros: linears compute them too, so they must be numbers.
__device__ __forceinline__ void clear_padding(const AttendGqa &p, int rows, int thread, int threads) {
  for (int r = blockIdx.x; r < rows; r += gridDim.x)
    if (p.step.table[r] < 0) clear_columns(p.out, r, 0, thread, threads);
}

// One warp: queries, unless they are prepared here, and pages of the run into shared memory. Of a sequence's last page only what is used.
template <int Dim, bool Wide>
__device__ __forceinline__ void produce(const AttendGqa &p, Run run, uint8_t *ring, uint8_t *q, uint64_t *full, uint64_t *empty,
                                        uint64_t *q_full, uint64_t *q_empty) {
  using S = Shared<Dim, Wide>;
  using Page = GqaPage<Dim>;
  const int lane = threadIdx.x % 32, group = p.heads / p.kv_heads;
  const size_t page_size = (size_t)p.kv_heads * Page::kBytes;
  const uint64_t once = policy_evict_first();
  bool waited = !p.single;
  if (waited) depend_wait();
  int s = 0, phase = 1, q_phase = 1, issued = 0;
  auto load_q = [&] {
    if (!waited) depend_wait();
    waited = true;
    if (lane == 0) {
      const uint32_t bytes = (uint32_t)group * Dim * 2;
      mbar_wait(q_empty, q_phase);
      mbar_arrive_expect(q_full, bytes);
      bulk_load(q, p.q + (size_t)run.row * p.ldq + (size_t)run.kv * group * Dim, bytes, q_full, once);
    }
    q_phase ^= 1;
  };
  while (run.next(p)) {
    const int table = p.step.table[run.row], last_rows = (p.step.position[run.row] % 64 / 16 + 1) * 16;
    bool has_q = waited || p.prepares;
    if (!p.prepares && has_q) load_q();
    for (int from = run.first; from < run.last; from += 32) {
      const int n = min(32, run.last - from), mine = lane < n ? p.step.pages[table + from + lane] : 0;
      for (int i = 0; i < n; i++) {
        const int page = __shfl_sync(~0u, mine, i);
        const bool newest = from + i == run.pages - 1; // it holds this step's token
        if (!has_q && (issued == S::kStages || newest)) {
          load_q();
          has_q = true;
        }
        if (lane == 0) {
          const uint8_t *at = p.cache + (size_t)page * page_size + (size_t)run.kv * Page::kBytes;
          uint8_t *stage = ring + s * Page::kBytes;
          mbar_wait(&empty[s], phase);
          if (!newest || last_rows == 64) {
            mbar_arrive_expect(&full[s], Page::kBytes);
            bulk_load(stage, at, Page::kBytes, &full[s], once);
          } else {
            mbar_arrive_expect(&full[s], 2 * Page::kBoxes * last_rows * 128);
#pragma unroll 1
            for (int box = 0; box < 2 * Page::kBoxes; box++)
              bulk_load(stage + box * Page::kBox, at + box * Page::kBox, last_rows * 128, &full[s], once);
          }
        }
        issued++;
        if (++s == S::kStages) s = 0, phase ^= 1;
      }
    }
    if (!has_q) load_q();
    __syncwarp();
  }
}

// A thread's columns of a row of results: first of them in the i-th of the passes over a head.
template <int Dim, bool Wide> struct Place {
  using S = Shared<Dim, Wide>;
  static constexpr int kLanes = S::kColumns / 4, kPasses = Dim / S::kColumns;
  static __device__ __forceinline__ int row() { return threadIdx.x / kLanes; }
  static __device__ __forceinline__ int col(int pass) { return pass * S::kColumns + threadIdx.x % kLanes * 4; }
};

// `v`: this thread's columns of its row's head, times `inverse` into the records. All of the 128 threads come here.
template <int Dim, bool Wide>
__device__ __forceinline__ void put_result(const AttendGqa &p, int row, int kv, float (&v)[Dim / Shared<Dim, Wide>::kColumns][4],
                                           float inverse) {
  using At = Place<Dim, Wide>;
  const int group = p.heads / p.kv_heads, r = At::row(), at = (kv * group + r) * Dim;
  float amax = 0;
#pragma unroll
  for (int i = 0; i < At::kPasses; i++)
#pragma unroll
    for (int k = 0; k < 4; k++) {
      v[i][k] *= inverse;
      amax = fmaxf(amax, fabsf(v[i][k]));
    }
  float by = 1;
  if (p.out.records.fp8 && !p.out.rows) { // a head is a block of 128
#pragma unroll
    for (int s = At::kLanes / 2; s; s >>= 1) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, s));
    const float scale = quant_scale(amax, p.out.ue8m0);
    by = 1.0f / scale;
    if (r < group && threadIdx.x % At::kLanes == 0) put_scale(p.out, row, at, scale);
  }
  if (r < group) {
#pragma unroll
    for (int i = 0; i < At::kPasses; i++) put_columns(p.out, row, at + At::col(i), v[i], by);
  }
  if (kv == p.kv_heads - 1) clear_columns(p.out, row, p.heads * Dim, threadIdx.x, kWarps * 32);
}

// Where CTA `cta` leaves its piece of a pair that is cut: a run has two places, [1] for the pair that begins in it and goes on, [0] for
// the one that it goes on with. A word is its own flag (words.cuh).
__device__ __forceinline__ float *piece_place(const AttendGqa &p, int cta, bool begins) { return p.partial + ((size_t)cta * 2 + begins) * kGqaPartial; }

template <int Dim, bool Wide>
__device__ __forceinline__ void leave_piece(const AttendGqa &p, bool begins, const float (&v)[Dim / Shared<Dim, Wide>::kColumns][4], float top,
                                            float sum) {
  using At = Place<Dim, Wide>;
  float *to = piece_place(p, blockIdx.x, begins);
#pragma unroll
  for (int i = 0; i < At::kPasses; i++) give_partial<4>(to + At::row() * 128 + At::col(i), v[i]);
  const float weight[4] = {top, sum, 0, 0};
  if (threadIdx.x % At::kLanes == 0) give_partial<4>(to + kGqaGroup * 128 + 4 * At::row(), weight);
}

// A pair's `pieces`, of CTAs from `first` on, become its result: in the order of its keys.
template <int Dim, bool Wide>
__device__ __forceinline__ void join_pieces(const AttendGqa &p, int row, int kv, int first, int pieces, float scale) {
  using At = Place<Dim, Wide>;
  constexpr int kBatch = 4; // pieces whose words are in flight
  float v[At::kPasses][4] = {}, top = -INFINITY, sum = 0;
#pragma unroll 1
  for (int from = 0; from < pieces; from += kBatch) {
    uint4 part[kBatch][At::kPasses], weight[kBatch];
    uint32_t start = 0;
    auto place = [&](int g) { return piece_place(p, first + from + g, from + g == 0); };
    for (int tries = 0;; tries++) {
      bool all = true;
#pragma unroll
      for (int g = 0; g < kBatch; g++) {
        if (from + g >= pieces) break;
        weight[g] = load_relaxed_gpu(place(g) + kGqaGroup * 128 + 4 * At::row());
#pragma unroll
        for (int i = 0; i < At::kPasses; i++) part[g][i] = load_relaxed_gpu(place(g) + At::row() * 128 + At::col(i));
      }
#pragma unroll
      for (int g = 0; g < kBatch; g++) {
        if (from + g >= pieces) break;
        all = all && is_there(weight[g]);
#pragma unroll
        for (int i = 0; i < At::kPasses; i++) all = all && is_there(part[g][i]);
      }
      if (all || !look_again_here(p.waits, tries, &start)) break;
    }
    __syncwarp(); // a row's lanes have all seen its weights
    float high = top;
#pragma unroll
    for (int g = 0; g < kBatch; g++) {
      if (from + g >= pieces) break;
      if (threadIdx.x % At::kLanes == 0) store_relaxed_gpu(place(g) + kGqaGroup * 128 + 4 * At::row(), not_there());
#pragma unroll
      for (int i = 0; i < At::kPasses; i++) store_relaxed_gpu(place(g) + At::row() * 128 + At::col(i), not_there());
      high = fmaxf(high, __uint_as_float(weight[g].x));
    }
    const float shrink = exp2f((top - high) * scale);
    top = high;
    sum *= shrink;
#pragma unroll
    for (int i = 0; i < At::kPasses; i++)
#pragma unroll
      for (int k = 0; k < 4; k++) v[i][k] *= shrink;
#pragma unroll
    for (int g = 0; g < kBatch; g++) {
      if (from + g >= pieces) break;
      const float factor = exp2f((__uint_as_float(weight[g].x) - high) * scale);
      sum += __uint_as_float(weight[g].y) * factor;
#pragma unroll
      for (int i = 0; i < At::kPasses; i++) {
        v[i][0] += __uint_as_float(part[g][i].x) * factor, v[i][1] += __uint_as_float(part[g][i].y) * factor;
        v[i][2] += __uint_as_float(part[g][i].z) * factor, v[i][3] += __uint_as_float(part[g][i].w) * factor;
      }
    }
  }
  put_result<Dim, Wide>(p, row, kv, v, 1.0f / sum);
}

// What a warp has of a pair: of its own keys, for heads 2 (lane % 4) and the next of each tile of eight.
template <int Dim, bool Wide> struct Sums {
  static constexpr int kTiles = Wide ? 2 : 1;
  float o[kTiles][Dim / 16][4]; // columns lane / 4 and that + 8 of each 16, two heads each
  float top[kTiles][2], sum[kTiles][2];
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < kTiles; t++) {
      top[t][0] = top[t][1] = -INFINITY;
      sum[t][0] = sum[t][1] = 0;
#pragma unroll
      for (int j = 0; j < Dim / 16; j++)
#pragma unroll
        for (int k = 0; k < 4; k++) o[t][j][k] = 0;
    }
  }
};

// Queries as projected to queries as load_queries() wants them, a warp every fourth head. The warp that has this step's token among its
// keys puts it into the cache and keeps its columns of key and value.
template <int Dim, bool Wide>
__device__ __forceinline__ void prepare_piece(const AttendGqa &p, const Run &run, bool wait, uint8_t *q, HeadTurns<Dim> *turns,
                                              uint32_t (&token)[2][Dim / 64]) {
  constexpr int kMost = Wide ? kGqaGroup / kWarps : 2, kColumns = Dim / 32;
  const GqaPrepare &f = p.fresh;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = p.heads / p.kv_heads, col = lane * kColumns, kv = run.kv;
  const int position = p.step.position[run.row], offset = position % 64;
  const bool mine = run.last == run.pages && offset / 16 == warp;
  turns->compute(f.rope, position, threadIdx.x);
  group_sync<kWarps * 32>(1);
  if (wait) depend_wait();
  float x[kMost][kColumns], key[kColumns], value[kColumns];
  const bf16 *from = f.q + (size_t)run.row * f.ldq;
#pragma unroll
  for (int i = 0; i < kMost; i++) {
    const int head = kv * group + min(warp + i * kWarps, group - 1);
    head_load<Dim>(from + head * Dim, f.q_bias ? f.q_bias + head * Dim : nullptr, x[i]);
  }
  if (mine) {
    head_load<Dim>(f.k + (size_t)run.row * f.ldk + kv * Dim, f.k_bias ? f.k_bias + kv * Dim : nullptr, key);
    head_load<Dim>(f.v + (size_t)run.row * f.ldv + kv * Dim, f.v_bias ? f.v_bias + kv * Dim : nullptr, value);
  }
#pragma unroll
  for (int i = 0; i < kMost; i++) {
    const int head = warp + i * kWarps;
    if (head >= group) break;
    head_turn<Dim>(f.q_norm, f.eps, f.rope.interleaved, *turns, x[i]);
    head_store<Dim>(q + head * Dim * 2 + ((col / 8 ^ (head & 7)) << 4) + col % 8 * 2, x[i]);
  }
  if (!mine) return;
  head_turn<Dim>(f.k_norm, f.eps, f.rope.interleaved, *turns, key);
  head_store<Dim>(token[0], key);
  head_store<Dim>(token[1], value);
  if (p.step.waits && halted(p.step.waits)) return;
  uint8_t *page = f.cache + ((size_t)p.step.pages[p.step.table[run.row] + position / 64] * p.kv_heads + kv) * GqaPage<Dim>::kBytes;
  head_store<Dim>(page + page_offset(offset, col), key);
  head_store<Dim>(page + page_offset(offset, Dim + col), value);
}

// This step's token into its page in shared memory.
template <int Dim> __device__ __forceinline__ void put_token(uint8_t *page, int offset, const uint32_t (&token)[2][Dim / 64]) {
  const int col = threadIdx.x % 32 * (Dim / 32);
#pragma unroll
  for (int i = 0; i < 2; i++) {
    uint8_t *to = page + page_offset(offset, i * Dim + col);
    if constexpr (Dim == 128) *(uint2 *)to = make_uint2(token[i][0], token[i][1]);
    else *(uint32_t *)to = token[i][0];
  }
  async_fence(); // the next copy into this stage
  __syncwarp();
}

template <int Dim, bool Wide> __device__ __forceinline__ void load_queries(const uint8_t *q, uint32_t (&query)[Wide ? 2 : 1][Dim / 16][2]) {
  const int lane = threadIdx.x % 32, r8 = lane % 8, quad = lane / 8;
#pragma unroll
  for (int t = 0; t < (Wide ? 2 : 1); t++)
#pragma unroll
    for (int j = 0; j < Dim / 32; j++) {
      uint32_t part[4];
      load_matrices(part, q + (t * 8 + r8) * (Dim * 2) + (((4 * j + quad) ^ r8) << 4));
#pragma unroll
      for (int k = 0; k < 4; k++) query[t][2 * j + k / 2][k % 2] = part[k];
    }
}

// Sixteen keys, the first `left` of them, and their values; k_at, v_at: of this lane's row of ldmatrix.
template <int Dim, bool Wide>
__device__ __forceinline__ void attend_page(const uint8_t *k_at, const uint8_t *v_at, int left, float scale,
                                            const uint32_t (&query)[Wide ? 2 : 1][Dim / 16][2], Sums<Dim, Wide> *to) {
  using Page = GqaPage<Dim>;
  constexpr int kTiles = Wide ? 2 : 1;
  const int lane = threadIdx.x % 32, r8 = lane % 8, quad = lane / 8, r = lane / 4;
  float score[kTiles][4] = {}, odd[kTiles][4] = {}; // keys r and r + 8; one tile alone has two chains of sums
#pragma unroll
  for (int j = 0; j < Dim / 16; j++) {
    const int chunk = 2 * j + quad / 2;
    uint32_t a[4];
    load_matrices(a, k_at + chunk / 8 * Page::kBox + ((chunk % 8 ^ r8) << 4));
#pragma unroll
    for (int t = 0; t < kTiles; t++) mma_16816_bf16(!Wide && j % 2 ? odd[t] : score[t], a, query[t][j]);
  }
  uint32_t prob[kTiles][2];
#pragma unroll
  for (int t = 0; t < kTiles; t++) {
#pragma unroll
    for (int k = 0; k < 4; k++) score[t][k] = r + k / 2 * 8 < left ? (Wide ? score[t][k] : score[t][k] + odd[t][k]) : -INFINITY;
    float shrink[2], weight[4];
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float m = fmaxf(score[t][h], score[t][2 + h]);
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 4));
      m = fmaxf(m, __shfl_xor_sync(~0u, m, 8));
      m = fmaxf(fmaxf(m, __shfl_xor_sync(~0u, m, 16)), to->top[t][h]);
      shrink[h] = exp2f((to->top[t][h] - m) * scale);
      to->top[t][h] = m;
      weight[h] = exp2f((score[t][h] - m) * scale);
      weight[2 + h] = exp2f((score[t][2 + h] - m) * scale);
    }
    const uint32_t low = pack_bf16(weight[0], weight[1]), high = pack_bf16(weight[2], weight[3]);
    to->sum[t][0] = to->sum[t][0] * shrink[0] + (__uint_as_float(low << 16) + __uint_as_float(high << 16));
    to->sum[t][1] = to->sum[t][1] * shrink[1] + (__uint_as_float(low & 0xffff0000u) + __uint_as_float(high & 0xffff0000u));
    prob[t][0] = turn_matrix(low);
    prob[t][1] = turn_matrix(high);
#pragma unroll
    for (int j = 0; j < Dim / 16; j++)
#pragma unroll
      for (int k = 0; k < 4; k++) to->o[t][j][k] *= shrink[k % 2];
  }
#pragma unroll
  for (int j = 0; j < Dim / 16; j++) {
    const int chunk = 2 * j + quad % 2;
    uint32_t a[4];
    load_matrices_turned(a, v_at + chunk / 8 * Page::kBox + ((chunk % 8 ^ r8) << 4));
#pragma unroll
    for (int t = 0; t < kTiles; t++) mma_16816_bf16(to->o[t][j], a, prob[t]);
  }
}

// The warps' sums become one: this thread's columns of its row (Place), the row's largest score and sum of weights.
template <int Dim, bool Wide>
__device__ __forceinline__ void meet_warps(const Sums<Dim, Wide> &of, float scale, float *merge, float (&tops)[kWarps][16],
                                           float (&sums)[kWarps][16], float (&v)[Dim / Shared<Dim, Wide>::kColumns][4], float *high,
                                           float *all) {
  using S = Shared<Dim, Wide>;
  using At = Place<Dim, Wide>;
  constexpr int kTiles = Wide ? 2 : 1;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, r = lane / 4, t4 = lane % 4;
#pragma unroll
  for (int t = 0; t < kTiles; t++)
#pragma unroll
    for (int h = 0; h < 2; h++) {
      float sum = of.sum[t][h];
#pragma unroll
      for (int k = 4; k < 32; k *= 2) sum += __shfl_xor_sync(~0u, sum, k);
      if (r == 0) tops[warp][t * 8 + 2 * t4 + h] = of.top[t][h], sums[warp][t * 8 + 2 * t4 + h] = sum;
    }
  group_sync<kWarps * 32>(1);
  auto most = [&](int head) { return fmaxf(fmaxf(tops[0][head], tops[1][head]), fmaxf(tops[2][head], tops[3][head])); };
  float factor[kTiles][2];
#pragma unroll
  for (int t = 0; t < kTiles; t++)
#pragma unroll
    for (int h = 0; h < 2; h++) factor[t][h] = exp2f((of.top[t][h] - most(t * 8 + 2 * t4 + h)) * scale);
  *high = most(At::row());
  *all = 0;
#pragma unroll
  for (int w = 0; w < kWarps; w++) *all += sums[w][At::row()] * exp2f((tops[w][At::row()] - *high) * scale);
#pragma unroll
  for (int i = 0; i < At::kPasses; i++) {
    if (i) group_sync<kWarps * 32>(1); // the columns before are read
#pragma unroll
    for (int t = 0; t < kTiles; t++)
#pragma unroll
      for (int j = 0; j < S::kColumns / 16; j++)
#pragma unroll
        for (int k = 0; k < 4; k++)
          merge[(warp * S::kRows + t * 8 + 2 * t4 + k % 2) * S::kPitch + 16 * j + r + k / 2 * 8] =
              of.o[t][i * (S::kColumns / 16) + j][k] * factor[t][k % 2];
    group_sync<kWarps * 32>(1);
#pragma unroll
    for (int k = 0; k < 4; k++) v[i][k] = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) {
      const float4 part = *(const float4 *)(merge + (w * S::kRows + At::row()) * S::kPitch + At::col(i) - i * S::kColumns);
      v[i][0] += part.x, v[i][1] += part.y, v[i][2] += part.z, v[i][3] += part.w;
    }
  }
}

template <int Dim, bool Wide> __global__ void __launch_bounds__(kThreads, 2) attend_gqa_kernel(const AttendGqa p, int rows) {
  using S = Shared<Dim, Wide>;
  using Page = GqaPage<Dim>;
  using At = Place<Dim, Wide>;
  constexpr int kTiles = Wide ? 2 : 1; // of eight heads
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *ring = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023), *q = ring + S::kRing;
  float *merge = (float *)(q + S::kQ);
  __shared__ uint64_t full[S::kStages], empty[S::kStages], q_full, q_empty;
  __shared__ float tops[kWarps][16], sums[kWarps][16];
  __shared__ Run shared_run[kWarps];
  __shared__ HeadTurns<Dim> turns;
  __shared__ bool more[kWarps];
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, group = p.heads / p.kv_heads;
  depend_launch();
  if (tid == 0) {
    mbar_init(&q_full, 1);
    mbar_init(&q_empty, kWarps);
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&full[i], 1);
      mbar_init(&empty[i], kWarps);
    }
    mbar_init_fence();
  }
  for (int i = group * Dim * 2 + tid * 16; i < S::kQ; i += kThreads * 16) *(uint4 *)(q + i) = make_uint4(0, 0, 0, 0); // no such heads
  Run run;
  if (!find_run(p, rows, &run)) { // its barriers show the others' work above
    depend_wait();
    if (p.prepares) clear_padding(p, rows, tid, kThreads);
    return;
  }
  if (warp == kWarps) {
    produce<Dim, Wide>(p, run, ring, q, full, empty, &q_full, &q_empty);
    if (!p.prepares) return;
    depend_wait();
    clear_padding(p, rows, lane, 32);
    return;
  }

  if (!p.prepares) depend_wait();
  bool wait = p.prepares;
  const int r8 = lane % 8, quad = lane / 8;
  const float scale = p.scale * 1.4426950408889634f;
  int s = 0, phase = 0, q_phase = 0;
  struct { int row, kv, first; } ended = {-1, 0, 0};
  Run *mine = &shared_run[warp]; // registers are short
  if (lane == 0) *mine = run;
  for (;;) {
    __syncwarp();
    if (lane == 0) more[warp] = mine->next(p);
    __syncwarp();
    if (!more[warp]) break;
    uint32_t query[kTiles][Dim / 16][2], token[2][Dim / 64];
    if (p.prepares) {
      prepare_piece<Dim, Wide>(p, *mine, wait, q, &turns, token);
      wait = false;
      group_sync<kWarps * 32>(1); // the queries of the piece before were read before its warps met
      load_queries<Dim, Wide>(q, query);
    } else {
      mbar_wait(&q_full, q_phase);
      q_phase ^= 1;
      load_queries<Dim, Wide>(q, query);
      __syncwarp();
      if (lane == 0) mbar_arrive(&q_empty);
    }
    Sums<Dim, Wide> state;
    state.clear();
    const int keys = p.step.position[mine->row] + 1, end = mine->last;
    for (int page = mine->first; page < end; page++) {
      const uint8_t *k_at = ring + s * Page::kBytes + (warp * 16 + quad % 2 * 8 + r8) * 128;
      const uint8_t *v_at = ring + s * Page::kBytes + Page::kHalf + (warp * 16 + quad / 2 * 8 + r8) * 128;
      mbar_wait(&full[s], phase);
      const int left = keys - page * 64 - warp * 16; // of this warp's keys
      if (p.prepares && left > 0 && left <= 16) put_token<Dim>(ring + s * Page::kBytes, warp * 16 + left - 1, token);
      if (left > 0) attend_page<Dim, Wide>(k_at, v_at, left, scale, query, &state);
      __syncwarp();
      if (lane == 0) mbar_arrive(&empty[s]);
      if (++s == S::kStages) s = 0, phase ^= 1;
    }

    float v[At::kPasses][4], high, all;
    meet_warps<Dim, Wide>(state, scale, merge, tops, sums, v, &high, &all);
    if (mine->first == 0 && mine->last == mine->pages) {
      put_result<Dim, Wide>(p, mine->row, mine->kv, v, 1.0f / all);
      continue;
    }
    leave_piece<Dim, Wide>(p, mine->first == 0, v, high, all);
    if (mine->last < mine->pages) continue;
    ended = {mine->row, mine->kv, mine->run_at(mine->begin)};
  }
  // At the end, when this CTA keeps no other one waiting: the pair that earlier runs began and this one ended.
  if (ended.row >= 0) join_pieces<Dim, Wide>(p, ended.row, ended.kv, ended.first, (int)blockIdx.x - ended.first + 1, scale);
}

template <int Dim, bool Wide> void attend(const AttendGqa &p, int rows, cudaStream_t stream) {
  launch(attend_gqa_kernel<Dim, Wide>, gqa_grid(p.sms), kThreads, Shared<Dim, Wide>::kBytes, stream, p, rows);
}
template <int Dim, bool Wide> void prepare() {
  cudaFuncSetAttribute(attend_gqa_kernel<Dim, Wide>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shared<Dim, Wide>::kBytes);
}

} // namespace

void attend_gqa(const AttendGqa &p, int rows, cudaStream_t stream) {
  const bool wide = p.heads / p.kv_heads > 8;
  if (p.dim == 128) wide ? attend<128, true>(p, rows, stream) : attend<128, false>(p, rows, stream);
  else wide ? attend<64, true>(p, rows, stream) : attend<64, false>(p, rows, stream);
}

void attention_gqa_prefill_prepare();

void attention_gqa_prepare() {
  prepare<128, false>();
  prepare<128, true>();
  prepare<64, false>();
  prepare<64, true>();
  attention_gqa_prefill_prepare();
}

} // namespace mob
