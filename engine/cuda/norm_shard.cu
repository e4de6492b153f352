// Sums over ranks, residual stream, norm and records of many rows, each by its owner (norm_shard.h).
//
// CTA b has the same run of every rank's rows: it sends its rank's parts of the first rows, and then takes its own rank's in turns with
// that, odd CTAs a row later: so links and memory are both busy. A row is waited for only when all ranks' CTAs b have sent theirs, and they
// begin in order; one CTA of a rank waits for the end of all.
#include <cstdlib>

#include "norm_shard.h"

#include "norm.cuh"

namespace mob {
namespace {

constexpr int kShardThreads = 448; // two CTAs an SM with 72 registers a thread
constexpr int kStaged = 8; // rows whose scales leave together

struct Shard { // of a launch
  int each, room;  // rows of a rank; parts of a rank that an inbox has
  int width;       // columns with those that are 0
  bool parts;      // something is added over ranks
};

// Of the place for the part of rank `rank` of a row.
__device__ __forceinline__ size_t part_at(const Peers &peers, const Shard &s, int hidden, int rank, int slot) {
  return peers.at.shard + ((size_t)rank * s.room + slot) * hidden * 2;
}

__device__ __forceinline__ void send_row(const NormShard &p, const Peers &peers, const Shard &s, int row, int owner, int slot) {
  uint8_t *to = inbox_of(peers, owner) + part_at(peers, s, p.in.hidden, peers.rank, slot);
#pragma unroll 2
  for (int col = threadIdx.x * 8; col < p.in.hidden; col += blockDim.x * 8)
    store_relaxed_sys(to + (size_t)col * 2, sealed(own_part(p.in, row, col)));
}

// The parts of ranks [first, first + 4), of which this rank's is `part[rank - first]` already; zeros where a wait ended without them.
__device__ __forceinline__ void take_parts(const Peers &p, uint8_t *from, size_t stride, int first, uint4 (&part)[4]) {
  take_words(part, from, stride, first, p.ranks, p.rank, -1, p.waits);
}

// Eight columns of a row that is this rank's, with all that is added; the residual stream has them, too, unless these are some rows.
__device__ __forceinline__ void gather_own(const NormShard &p, const Peers &peers, const Shard &s, const bf16 *begin, int row, int slot,
                                           int col, float v[8]) {
  float u[8];
  float *x = p.in.x + (size_t)row * p.in.hidden + col;
  if (begin) {
    unpack_bf16(*(const uint4 *)(begin + col), v);
    store8(x, v);
    return;
  }
  if (!s.parts) {
    load8(x, v);
    return;
  }
  const uint4 own = sealed(own_part(p.in, row, col));
  uint8_t *from = peers.inbox[0] + part_at(peers, s, p.in.hidden, 0, slot) + (size_t)col * 2;
  const size_t stride = (size_t)s.room * p.in.hidden * 2;
#pragma unroll 1
  for (int first = 0; first < peers.ranks; first += 4) {
    uint4 part[4];
#pragma unroll
    for (int i = 0; i < 4; i++) part[i] = own;
    take_parts(peers, from, stride, first, part);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (first + i >= peers.ranks) break;
      unpack_bf16(part[i], u);
#pragma unroll
      for (int k = 0; k < 8; k++) v[k] = first + i == 0 ? u[k] : v[k] + u[k];
    }
  }
  load8(x, u);
#pragma unroll
  for (int k = 0; k < 8; k++) v[k] += u[k];
  if (p.in.bias) {
    load8(p.in.bias + col, u);
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] += u[k];
  }
  if (!p.in.rows) store8(x, v);
}

// Eight normed columns to the records. `staged`: where their block's scale goes for now; nullptr: to its place.
__device__ __forceinline__ void put_own(const NormShard &p, int ranks, int row, int own_row, int col, const float v[8], float *staged) {
  const int a_ranks = p.a_own ? 1 : ranks, b_ranks = p.b_own ? 1 : ranks;
  if (p.out.a.data)
    put_record_by(record_row(p.out.a, p.a_own ? own_row : row), col, v, p.out.ue8m0, col < p.out.a_k, [&](uint8_t *at, auto word) {
      if (sizeof word == 4 && staged) *staged = *(const float *)&word;
      else put_all(p.a, a_ranks, at, word);
    });
  if (!p.out.b.data) return;
  const RecordRow b = record_row(p.out.b, p.b_own ? own_row : row);
  put_record_by(b, col, v, p.out.ue8m0, col < p.out.b_k, [&](uint8_t *at, auto word) { put_all(p.b, b_ranks, at, word); });
  if (!p.out.b_split) return;
  float low[8];
#pragma unroll
  for (int k = 0; k < 8; k++) low[k] = v[k] - round_bf16(v[k]);
  put_record_by(b, p.out.b_k + col, low, p.out.ue8m0, col < p.out.b_k, [&](uint8_t *at, auto word) { put_all(p.b, b_ranks, at, word); });
}

// A row of this rank's. row: of the step; to: of the records; kept [width]: shared memory, where its sum stays.
__device__ __forceinline__ void own_row(const NormShard &p, const Peers &peers, const Shard &s, int row, int to, int slot, float *kept,
                                        float *staged, float *scratch) {
  const bf16 *begin = p.in.embed.part[0] ? embedded(p.in, row) : nullptr;
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  float square = 0;
  __syncthreads(); // `scratch` and `kept` are free
#pragma unroll 1
  for (int first = 0, turn = 0; first < p.in.hidden; first += blockDim.x * 8, turn++) {
    const int col = first + threadIdx.x * 8;
    if (col < p.in.hidden) {
      float v[8];
      gather_own(p, peers, s, begin, row, slot, col, v);
#pragma unroll
      for (int k = 0; k < 8; k++) square += v[k] * v[k];
      if (p.in.w) store8(kept + col, v);
#pragma unroll
      for (int i = 1; i < kMaxRanks; i++)
        if (!p.in.w && i < peers.ranks && p.x[i]) store8(p.x[i] + (size_t)row * p.in.hidden + col, v);
    }
    if (s.width > kShortRow) continue;
    const float sum = warp_sum(square); // 256 columns, as a warp of norm.cu's has them
    if (lane == 0 && turn * warps + warp < 32) scratch[turn * warps + warp] = sum;
    square = 0;
  }
  if (!p.in.w) return;
  float factor;
  if (s.width > kShortRow) {
    factor = norm_factor(p.in, square, scratch);
  } else {
    __syncthreads();
    factor = rsqrtf(warp_sum(lane * 256 < p.in.hidden ? scratch[lane] : 0.0f) / p.in.hidden + p.in.eps);
  }
#pragma unroll 1
  for (int first = 0; first < s.width; first += blockDim.x * 8) {
    const int col = first + threadIdx.x * 8;
    float v[8] = {};
    if (col < p.in.hidden) {
      float w[8];
      load8(kept + col, v);
      load8(p.in.w + col, w);
#pragma unroll
      for (int k = 0; k < 8; k++) v[k] = w[k] * (v[k] * factor);
    }
    put_own(p, peers.ranks, to, row - peers.rank * s.each, col, v, staged ? staged + col / 128 : nullptr);
  }
}

// The scales of rows [to, to + n), a word of all of them after the other.
__device__ __forceinline__ void put_scales(const NormShard &p, int ranks, int to, int n, const float *staged) {
  const int blocks = p.out.a_k / 128;
  for (int i = threadIdx.x; i < blocks * n; i += blockDim.x) {
    const int block = i / n;
    const RecordRow row = record_row(p.out.a, to + i % n);
    put_all(p.a, p.a_own ? 1 : ranks, row.scales + block / 2 * row.pair_scales + ((size_t)(block % 2) * row.rows + row.row) * 4,
            staged[i % n * blocks + block]);
  }
}

// Every thread of the CTA, when all that it sends is on its way.
__device__ __forceinline__ void meet_all(const Peers &peers, int meeting) {
  const int tid = threadIdx.x, grid = gridDim.x;
  __syncthreads();
  if (tid < peers.ranks) { // to all, this one too: then nobody looks up the number of this meeting any more
    __threadfence_system();
    store_relaxed_sys_int((int *)(inbox_of(peers, tid) + peers.at.met) + peers.rank * kMeetCtas + blockIdx.x, meeting);
  }
  if (blockIdx.x != 0) return;
  const int *met = (const int *)(peers.inbox[0] + peers.at.met);
  for (int i = tid; i < peers.ranks * grid; i += blockDim.x) {
    const int from = i / grid;
    uint32_t start = 0;
    for (int tries = 0; load_acquire_sys_int(met + from * kMeetCtas + i % grid) - meeting < 0; tries++)
      if (!look_again(peers.waits, tries, &start, from)) break;
  }
  __syncthreads();
  if (tid == 0) *(int *)(peers.inbox[0] + peers.at.meeting) = meeting;
}
__device__ __forceinline__ int next_meeting(const Peers &peers) {
  return load_relaxed_sys_int((const int *)(peers.inbox[0] + peers.at.meeting)) + 1;
}

__global__ void __launch_bounds__(kShardThreads, 2) norm_shard_kernel(const NormShard p, const Peers peers, const Shard s) {
  DYNAMIC_SHARED_ALIGNED(16, float, kept);
  __shared__ float scratch[33];
  depend_launch();
  depend_wait();
  const int meeting = next_meeting(peers), rank = peers.rank, ranks = peers.ranks, b = blockIdx.x, grid = gridDim.x;
  if (p.in.rows) { // each with a place of its own in the inbox
    for (int r = b; s.parts && r < p.count; r += grid) {
      const int row = p.in.rows[r], owner = row / s.each;
      if (owner != rank) send_row(p, peers, s, row, owner, r);
    }
    for (int r = b; r < p.count; r += grid) {
      const int row = p.in.rows[r];
      if (row / s.each == rank) own_row(p, peers, s, row, r, r, kept, nullptr, scratch);
    }
  } else {
    const int lo = (int)((long long)s.each * b / grid), hi = (int)((long long)s.each * (b + 1) / grid);
    const int first = rank * s.each, end = min(hi, p.total - first), ahead = 1 + b % 2; // rows that are sent before one is taken
    float *staged = p.in.w && p.out.a.data && p.out.a.fp8 ? kept + s.width : nullptr;
    int begun = lo; // rows from here on have scales that have not left
    for (int k = lo; k < hi + ahead - 1; k++) {
      for (int i = 1; s.parts && !p.sent && k < hi && i < ranks; i++) {
        const int owner = rank + i < ranks ? rank + i : rank + i - ranks, row = owner * s.each + k;
        if (row < p.total) send_row(p, peers, s, row, owner, k);
      }
      const int own = k + 1 - ahead;
      if (own < lo || own >= end) continue;
      own_row(p, peers, s, first + own, first + own, own, kept, staged ? staged + (own - begun) * (p.out.a_k / 128) : nullptr, scratch);
      if (!staged || (own - begun < kStaged - 1 && own < end - 1)) continue;
      __syncthreads();
      put_scales(p, ranks, p.a_own ? begun : first + begun, own + 1 - begun, staged);
      begun = own + 1;
      __syncthreads();
    }
  }
  if (p.meet) meet_all(peers, meeting);
}

__global__ void __launch_bounds__(512) share_shards_kernel(const ShareShards s, const Peers peers) {
  depend_launch();
  depend_wait();
  const int meeting = next_meeting(peers);
  const size_t first = blockIdx.x * (size_t)512 + threadIdx.x, step = gridDim.x * (size_t)512;
#pragma unroll
  for (int k = 0; k < 2; k++) {
    if (k >= s.count) break;
    const size_t words = s.bytes[k] / 16, left = s.bytes[k] % 16 / 4;
#pragma unroll 4
    for (size_t i = first; i < words; i += step) {
      const uint4 word = ((const uint4 *)s.from[k])[i];
#pragma unroll
      for (int r = 0; r < kMaxRanks - 1; r++)
        if (r < peers.ranks - 1) ((uint4 *)s.to[k][r])[i] = word;
    }
    if (first >= left) continue;
    const int last = ((const int *)s.from[k])[words * 4 + first];
#pragma unroll
    for (int r = 0; r < kMaxRanks - 1; r++)
      if (r < peers.ranks - 1) ((int *)s.to[k][r])[words * 4 + first] = last;
  }
  meet_all(peers, meeting);
}

} // namespace

bool shard_serves(int rows, int ranks) {
  static const char *wish = getenv("MOB_CUDA_SHARD_ROWS"); // for tests and measurements
  return ranks > 1 && rows > kFewTokens && rows >= (wish ? atoi(wish) : 257);
}

PartsOut parts_out(const Peers &peers, bf16 *own, int hidden, int rows) {
  PartsOut out = {};
  out.each = shard_each(rows, peers.ranks);
  for (int i = 1; i < peers.ranks; i++)
    out.to[(peers.rank + i) % peers.ranks] = peers.inbox[i] + peers.at.shard + (size_t)peers.rank * out.each * hidden * 2;
  out.to[peers.rank] = (uint8_t *)(own + (size_t)peers.rank * out.each * hidden);
  return out;
}

void norm_shard(const NormShard &p, const Peers &peers, int sms, cudaStream_t stream) {
  const int width = norm_width(p.in, p.out), each = shard_each(p.total, peers.ranks);
  const Shard s = {each, p.in.rows ? p.count : each, width, p.in.add || p.in.expert_y};
  // A whole number of turns, two or as few as threads allow; two CTAs an SM.
  const int turns = width <= kShardThreads * 16 ? 2 : (width + kShardThreads * 8 - 1) / (kShardThreads * 8);
  const int threads = (width / 8 + 32 * turns - 1) / (32 * turns) * 32;
  const int wanted = p.in.rows ? p.count : each, most = 2 * sms < kMeetCtas ? 2 * sms : kMeetCtas, grid = wanted < most ? wanted : most;
  const size_t bytes = (size_t)(width + kStaged * (width / 128)) * 4;
  if (bytes > 40 * 1024) cudaFuncSetAttribute(norm_shard_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
  launch(norm_shard_kernel, grid, threads, bytes, stream, p, peers, s);
}

void share_shards(const ShareShards &s, const Peers &peers, int sms, cudaStream_t stream) {
  const int wanted = (int)(s.most / (512 * 16)) + 1;
  launch(share_shards_kernel, wanted < sms ? wanted : sms, 512, 0, stream, s, peers);
}

} // namespace mob
