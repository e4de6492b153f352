// The dispatch plan and its gathering for few rows. Every CTA, one a row, makes the plan for itself from all choices: counts of all experts,
// and its own row's places, a row's number among its expert's being that of the rows before it. So nothing waits for a plan's kernel.
#include "moe_plan.cuh"
#include "route_many.h"

namespace mob {
namespace {

constexpr int kThreads = 512, kEach = 4, kMostSlots = 32; // experts; choices of a thread

__global__ void __launch_bounds__(kThreads) plan_gather_kernel(const Records x, const MoePlan p, const TileRows out) {
  __shared__ int counts[kThreads], slot_of[kThreads], before[kMostSlots]; // rows; of this row's choices, + 1; rows in front that chose the same
  __shared__ int2 warps[kThreads / 32];
  __shared__ RecordRow to[kMostSlots];
  depend_launch();
  const int tid = threadIdx.x, t = blockIdx.x, slots = p.top_k + p.shared, chunks = out.pairs * 16;
  counts[tid] = slot_of[tid] = 0;
  if (tid < kMostSlots) before[tid] = 0, to[tid].data = nullptr;
  __syncthreads();
  depend_wait();
  const int count = *p.count, routed = p.rows * p.top_k;
  int id[kEach];
#pragma unroll
  for (int k = 0; k < kEach; k++) id[k] = tid + k * kThreads < routed ? p.ids[tid + k * kThreads] : -1;
  const int own = tid < p.top_k ? here(p, p.ids[t * p.top_k + tid]) : -1;
  const RecordRow from = record_row(x, t);
  auto chunk_of = [&](int i) {
    return *(const uint4 *)(from.data + i / 16 * from.pair_bytes + ((size_t)(i / 8 % 2) * from.rows + t) * 128 + ((i % 8 ^ (t & 7)) << 4));
  };
  auto scale_of = [&](int i) {
    return x.fp8 && i % 8 == 0 ? ((const float *)(from.scales + i / 16 * from.pair_scales))[i / 8 % 2 * from.rows + t] : 0.0f;
  };
  uint4 chunk = {};
  float scale = 0;
  if (tid < chunks) chunk = chunk_of(tid), scale = scale_of(tid);
  if (own >= 0) slot_of[own] = tid + 1;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kEach; k++) {
    const int row = (tid + k * kThreads) / p.top_k, e = row < count ? here(p, id[k]) : -1;
    if (e < 0) continue;
    atomicAdd(&counts[e], 1);
    if (row < t && slot_of[e]) atomicAdd(&before[slot_of[e] - 1], 1);
  }
  __syncthreads();
  // A thread an expert.
  const bool shared = tid >= p.experts && tid < p.experts + p.shared;
  const int tokens = shared ? count : counts[tid], padded = (tokens + 7) / 8 * 8;
  const int each = tile_tokens_each(tokens, p.most), tiles = (tokens + each - 1) / each;
  int2 all;
  const int2 at = prefix_sum<kThreads>(make_int2(padded, tiles), warps, &all);
  const int slot = shared ? p.top_k + tid - p.experts : slot_of[tid] - 1;
  if (t < count && slot >= 0) {
    const int rank = shared ? t : before[slot], tile = rank / each, row = at.x + rank;
    const int place = tile_place(at.x + tile * each, (min(each, tokens - tile * each) + 7) / 8 * 8);
    p.place[row] = place;
    p.expert_row[t * slots + slot] = row;
    to[slot] = tile_row(out, row, place);
  }
  if (t == 0) {
    if (tid < p.experts + p.shared) p.rows_of[tid] = {at.x, each, tokens};
    for (int i = 0; i < tiles; i++) p.tiles[at.y + i] = {tid, at.x + i * each, min(each, tokens - i * each), i, tiles};
    for (int i = tokens; i < padded; i++) p.place[at.x + i] = -1;
    if (tid == 0) *p.active = all.y, *p.gathered = all.x;
  }
  // An expert on another rank; of a row that has none of its own (scores that are no numbers), the same one twice.
  if (tid < slots && (t >= count || (tid < p.top_k && (own < 0 || slot_of[own] != tid + 1)))) p.expert_row[t * slots + tid] = p.elsewhere ? -1 : 0;
  if (t >= count) return;
  __syncthreads();
  for (int i = tid; i < chunks; i += kThreads) {
    if (i != tid) chunk = chunk_of(i), scale = scale_of(i);
    const int pair = i / 16, second = i / 8 % 2, c = i % 8;
    for (int k = 0; k < slots; k++) {
      const RecordRow &r = to[k];
      if (!r.data) continue;
      *(uint4 *)(r.data + pair * r.pair_bytes + ((size_t)second * r.rows + r.row) * 128 + ((c ^ (r.row & 7)) << 4)) = chunk;
      if (x.fp8 && c == 0) ((float *)(r.scales + pair * r.pair_scales))[second * r.rows + r.row] = scale;
    }
  }
}

} // namespace

bool moe_plan_gather_serves(const MoePlan &p) {
  return p.rows * p.top_k <= kEach * kThreads && p.experts + p.shared <= kThreads && p.top_k + p.shared <= kMostSlots;
}

void moe_plan_gather(const Records &x, const MoePlan &p, const TileRows &out, cudaStream_t stream) {
  launch(plan_gather_kernel, p.rows, kThreads, 0, stream, x, p, out);
}

} // namespace mob
