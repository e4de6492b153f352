// Decode attention of grouped queries: every row is one query position, all query heads of a key head are computed together, so
// that a page of its keys and values is read once.
//
// The pages of all (row, key head) pairs, one pair behind the other, are one long list that the CTAs cut into equal runs from the
// lengths on the device: long and short sequences share the SMs evenly, and a graph holds for any lengths. A CTA streams its run through a ring
// of bulk copies; each of four warps takes 16 keys of every page by itself (keys, then columns of the values, as M of mma.sync, eight
// heads as N; its own online softmax), and they meet only at a pair's end. A pair that lies in one run leaves as records at once. One in several: the runs leave partial
// results and the last of its CTAs adds them in the order of the keys, so that the result does not depend on timing.
//
// Before the kernel in front (it writes this step's token) is done, pages of earlier steps are already on their way.
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
  return p.step.table[row] < 0 || (p.tile_row && p.tile_row[row] >= 0) ? 0 : p.step.position[row] / 64 + 1;
}

// How the list of `total` pages of `pairs` pairs is cut: whole pairs, or the same number of runs for each, as long as that keeps
// nine of ten CTAs busy.
__device__ __forceinline__ int runs_of(int64_t total, int64_t pairs) {
  const int64_t most = max((int64_t)1, min((int64_t)gridDim.x, total / kMinPages));
  const int64_t rounds = (pairs + most - 1) / most;
  const int64_t even = pairs >= most ? (pairs + rounds - 1) / rounds : most / pairs * pairs;
  return (int)(even * 10 >= most * 9 ? even : most);
}

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
  const int64_t total = (int64_t)(all & (kOne - 1)) * p.kv_heads;
  if (total == 0) return false;
  run->total = (int)total;
  run->runs = runs_of(total, (int64_t)(all >> 40) * p.kv_heads);
  if ((int)blockIdx.x >= run->runs) return false;
  run->at = (int)(total * blockIdx.x / run->runs);
  run->end = (int)(total * (blockIdx.x + 1) / run->runs);
  int64_t left = (int64_t)(before & (kOne - 1)) * p.kv_heads;
  if (run->at >= left && run->at < left + (int64_t)(mine & (kOne - 1)) * p.kv_heads) {
    int row = from, n;
    for (; n = pages_of(p, row), run->at >= left + (int64_t)n * p.kv_heads; row++) left += (int64_t)n * p.kv_heads;
    found[0] = row;
    found[1] = (int)(left / p.kv_heads);
  }
  __syncthreads();
  run->row = found[0];
  run->pages = pages_of(p, run->row);
  const int row_begin = found[1] * p.kv_heads;
  run->kv = (run->at - row_begin) / run->pages;
  run->begin = row_begin + run->kv * run->pages;
  return true;
}

// One warp: queries and pages of the run into shared memory.
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
    const int table = p.step.table[run.row];
    bool has_q = waited;
    if (has_q) load_q();
    for (int from = run.first; from < run.last; from += 32) {
      const int n = min(32, run.last - from), mine = lane < n ? p.step.pages[table + from + lane] : 0;
      for (int i = 0; i < n; i++) {
        const int page = __shfl_sync(~0u, mine, i);
        if (!has_q && (issued == S::kStages || from + i == run.pages - 1)) { // the last one holds this step's token
          load_q();
          has_q = true;
        }
        if (lane == 0) {
          mbar_wait(&empty[s], phase);
          mbar_arrive_expect(&full[s], Page::kBytes);
          bulk_load(ring + s * Page::kBytes, p.cache + (size_t)page * page_size + (size_t)run.kv * Page::kBytes, Page::kBytes,
                    &full[s], once);
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

// A piece of a pair: leaves its sums, and, when it is the last to come, adds all of them.
template <int Dim, bool Wide>
__device__ __forceinline__ void merge_pieces(const AttendGqa &p, const Run &run, float (&v)[Dim / Shared<Dim, Wide>::kColumns][4],
                                             float top, float sum, float scale) {
  using At = Place<Dim, Wide>;
  __shared__ bool last;
  const int r = At::row(), head = threadIdx.x % At::kLanes, cta = (int)blockIdx.x;
  const int first = run.run_at(run.begin), pieces = run.run_at(run.begin + run.pages - 1) - first + 1;
  // A run has two places: [1] for the pair that begins in it, [0] for the one that it goes on with.
  auto place = [&](int i) { return p.partial + ((size_t)(first + i) * 2 + (i == 0)) * kGqaPartial; };
  float *mine = place(cta - first);
#pragma unroll
  for (int i = 0; i < At::kPasses; i++)
    *(float4 *)(mine + r * 128 + At::col(i)) = make_float4(v[i][0], v[i][1], v[i][2], v[i][3]);
  if (head == 0) *(float2 *)(mine + kGqaGroup * 128 + 2 * r) = make_float2(top, sum);
  __threadfence();
  group_sync<kWarps * 32>(1);
  if (threadIdx.x == 0) {
    last = atomicAdd(p.arrived + first, 1) == pieces - 1;
    if (last) p.arrived[first] = 0;
  }
  group_sync<kWarps * 32>(1);
  if (!last) return;
  __threadfence();
  // A row's lanes look at its pieces' weights side by side; the sums are added in the order of the keys.
  auto weights = [&](int i) { return __ldcg((const float2 *)(place(i) + kGqaGroup * 128 + 2 * r)); };
  top = -INFINITY;
  for (int i = head; i < pieces; i += At::kLanes) top = fmaxf(top, weights(i).x);
#pragma unroll
  for (int s = At::kLanes / 2; s; s >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, s));
  sum = 0;
#pragma unroll
  for (int i = 0; i < At::kPasses; i++)
#pragma unroll
    for (int k = 0; k < 4; k++) v[i][k] = 0;
  for (int from = 0; from < pieces; from += At::kLanes) {
    const int n = min(At::kLanes, pieces - from);
    const float2 of = head < n ? weights(from + head) : make_float2(-INFINITY, 0);
    const float mine_of = exp2f((of.x - top) * scale);
    sum += of.y * mine_of;
#pragma unroll 4
    for (int i = 0; i < n; i++) {
      const float factor = __shfl_sync(~0u, mine_of, i, At::kLanes);
#pragma unroll
      for (int j = 0; j < At::kPasses; j++) {
        const float4 o = __ldcg((const float4 *)(place(from + i) + r * 128 + At::col(j)));
        v[j][0] += o.x * factor, v[j][1] += o.y * factor, v[j][2] += o.z * factor, v[j][3] += o.w * factor;
      }
    }
  }
#pragma unroll
  for (int s = At::kLanes / 2; s; s >>= 1) sum += __shfl_xor_sync(~0u, sum, s);
  put_result<Dim, Wide>(p, run.row, run.kv, v, 1.0f / sum);
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
    return;
  }
  if (warp == kWarps) {
    produce<Dim, Wide>(p, run, ring, q, full, empty, &q_full, &q_empty);
    return;
  }

  depend_wait();
  const int r8 = lane % 8, quad = lane / 8;
  const float scale = p.scale * 1.4426950408889634f;
  int s = 0, phase = 0, q_phase = 0;
  Run *mine = &shared_run[warp]; // registers are short
  if (lane == 0) *mine = run;
  for (;;) {
    __syncwarp();
    if (lane == 0) more[warp] = mine->next(p);
    __syncwarp();
    if (!more[warp]) break;
    uint32_t query[kTiles][Dim / 16][2];
    mbar_wait(&q_full, q_phase);
    q_phase ^= 1;
    load_queries<Dim, Wide>(q, query);
    __syncwarp();
    if (lane == 0) mbar_arrive(&q_empty);
    Sums<Dim, Wide> state;
    state.clear();
    const int keys = p.step.position[mine->row] + 1, end = mine->last;
    for (int page = mine->first; page < end; page++) {
      const uint8_t *k_at = ring + s * Page::kBytes + (warp * 16 + quad % 2 * 8 + r8) * 128;
      const uint8_t *v_at = ring + s * Page::kBytes + Page::kHalf + (warp * 16 + quad / 2 * 8 + r8) * 128;
      mbar_wait(&full[s], phase);
      const int left = keys - page * 64 - warp * 16; // of this warp's keys
      if (left > 0) attend_page<Dim, Wide>(k_at, v_at, left, scale, query, &state);
      __syncwarp();
      if (lane == 0) mbar_arrive(&empty[s]);
      if (++s == S::kStages) s = 0, phase ^= 1;
    }

    float v[At::kPasses][4], high, all;
    meet_warps<Dim, Wide>(state, scale, merge, tops, sums, v, &high, &all);
    if (mine->first == 0 && mine->last == mine->pages) put_result<Dim, Wide>(p, mine->row, mine->kv, v, 1.0f / all);
    else merge_pieces<Dim, Wide>(p, *mine, v, high, all, scale);
  }
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
