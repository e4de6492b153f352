// The dispatch plan of a MoE layer, made on the device, and what stands between its grouped linears.
//   few tokens   every active expert computes all of them: row of y = (index among the active) * tokens + token, nothing moves
//   many tokens  tokens are gathered by expert, each expert's rows beginning at a multiple of 8 and cut into tiles
#include "moe_plan.cuh"
#include "route_many.h"

namespace mob {
namespace {

constexpr int kPlanThreads = 1024;

__global__ void __launch_bounds__(kPlanThreads) plan_few_kernel(const MoePlan p) {
  __shared__ int index[kPlanThreads];
  __shared__ int warp_counts[32];
  depend_launch();
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, experts = p.experts + p.shared;
  for (int e = tid; e < experts; e += kPlanThreads) index[e] = e >= p.experts;
  __syncthreads();
  depend_wait();
  const int count = *p.count;
  for (int i = tid; i < count * p.top_k; i += kPlanThreads) {
    const int e = here(p, p.ids[i]);
    if (e >= 0) index[e] = 1;
  }
  __syncthreads();
  const bool on = tid < experts && index[tid];
  const unsigned ballot = __ballot_sync(~0u, on);
  if (lane == 0) warp_counts[warp] = __popc(ballot);
  __syncthreads();
  int before = __popc(ballot & ((1u << lane) - 1)), all = 0;
  for (int w = 0; w < 32; w++) {
    if (w < warp) before += warp_counts[w];
    all += warp_counts[w];
  }
  if (on) {
    p.active_ids[before] = tid;
    index[tid] = before;
  }
  if (tid == 0) *p.active = all;
  __syncthreads();
  const int slots = p.top_k + p.shared;
  for (int i = tid; i < p.rows * slots; i += kPlanThreads) {
    const int t = i / slots, j = i % slots;
    const int e = j >= p.top_k ? p.experts + j - p.top_k : t < count ? here(p, p.ids[t * p.top_k + j]) : -1;
    p.expert_row[i] = e >= 0 ? index[e] * p.rows + t : p.elsewhere ? -1 : t;
  }
}

__device__ __forceinline__ int tile_count(const ExpertRows &e) { return e.tokens ? (e.tokens + e.each - 1) / e.each : 0; }
__device__ __forceinline__ int tile_tokens(const ExpertRows &e, int i) { return min(e.each, e.tokens - i * e.each); }

// A token's number among its expert's is what counting returns. Its order does not matter: each is its own column of the product.
__global__ void __launch_bounds__(kPlanThreads) plan_many_kernel(const MoePlan p) {
  constexpr int kBatch = 8; // loads in flight
  __shared__ int counts[kPlanThreads];
  __shared__ int2 warp_sums[kPlanThreads / 32];
  depend_launch();
  const int tid = threadIdx.x, slots = p.top_k + p.shared;
  counts[tid] = 0;
  __syncthreads();
  depend_wait();
  const int count = *p.count, routed = count * p.top_k;
  for (int from = tid; from < routed; from += kBatch * kPlanThreads) {
    int id[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; k++) id[k] = from + k * kPlanThreads < routed ? here(p, p.ids[from + k * kPlanThreads]) : -1;
#pragma unroll
    for (int k = 0; k < kBatch; k++) {
      const int i = from + k * kPlanThreads;
      if (id[k] >= 0) p.expert_row[i / p.top_k * slots + i % p.top_k] = atomicAdd(&counts[id[k]], 1);
    }
  }
  if (tid >= p.experts && tid < p.experts + p.shared) counts[tid] = count;
  __syncthreads();
  ExpertRows mine = {0, 8, counts[tid]};
  mine.each = tile_tokens_each(mine.tokens, p.most);
  int2 all;
  const int padded = (mine.tokens + 7) / 8 * 8, tiles = tile_count(mine);
  const int2 before = prefix_sum<kPlanThreads>(make_int2(padded, tiles), warp_sums, &all);
  mine.first = before.x;
  if (tid < p.experts + p.shared) p.rows_of[tid] = mine;
  for (int i = 0; i < tiles; i++) p.tiles[before.y + i] = {tid, mine.first + i * mine.each, tile_tokens(mine, i), i, tiles};
  for (int i = mine.tokens; i < padded; i++) p.place[mine.first + i] = -1;
  if (tid == 0) {
    *p.active = all.y;
    *p.gathered = all.x;
  }
}

// A row to all its experts: it is read once.
__global__ void __launch_bounds__(512) gather_kernel(const Records x, const MoePlan p, const TileRows out) {
  constexpr int kMostSlots = 32;
  __shared__ RecordRow to[kMostSlots];
  depend_launch();
  depend_wait();
  const int t = blockIdx.x, count = *p.count, slots = p.top_k + p.shared, chunks = out.pairs * 16;
  const RecordRow from = record_row(x, t);
  const uint64_t keep = policy_evict_last();
  for (int first = 0; first < slots; first += kMostSlots) {
    const int some = min(kMostSlots, slots - first), j = first + threadIdx.x;
    __syncthreads();
    if ((int)threadIdx.x < some) {
      const int e = t >= count ? -1 : j < p.top_k ? here(p, p.ids[t * p.top_k + j]) : p.experts + j - p.top_k;
      int row = p.elsewhere || t < count ? -1 : 0;
      RecordRow place = {};
      if (e >= 0) {
        const ExpertRows rows = p.rows_of[e];
        const int rank = j < p.top_k ? p.expert_row[t * slots + j] : t, tile = rank / rows.each;
        const int at = tile_place(rows.first + tile * rows.each, (tile_tokens(rows, tile) + 7) / 8 * 8);
        row = rows.first + rank;
        p.place[row] = at;
        place = tile_row(out, row, at);
      }
      p.expert_row[t * slots + j] = row;
      to[threadIdx.x] = place;
    }
    __syncthreads();
    if (t >= count) continue;
    for (int i = threadIdx.x; i < chunks; i += 512) {
      const int pair = i / 16, second = i / 8 % 2, c = i % 8;
      const uint4 v = *(const uint4 *)(from.data + pair * from.pair_bytes + ((size_t)second * from.rows + t) * 128 + ((c ^ (t & 7)) << 4));
      const float scale = x.fp8 && c == 0 ? ((const float *)(from.scales + pair * from.pair_scales))[second * from.rows + t] : 0;
      for (int k = 0; k < some; k++) {
        const RecordRow &r = to[k];
        if (!r.data) continue;
        *(uint4 *)(r.data + pair * r.pair_bytes + ((size_t)second * r.rows + r.row) * 128 + ((c ^ (r.row & 7)) << 4)) = v;
        if (x.fp8 && c == 0) store_policy((float *)(r.scales + pair * r.pair_scales) + second * r.rows + r.row, scale, keep);
      }
    }
  }
}

__global__ void __launch_bounds__(256) activate_kernel(const Activate p, int capacity) {
  depend_launch();
  depend_wait();
  const int rows = p.place ? *p.gathered : p.m ? *p.active * p.m : capacity;
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    const bf16 *y = p.y + (size_t)row * p.ldy;
    RecordRow to;
    if (p.place) {
      const int place = p.place[row];
      if (place < 0) continue; // padding
      to = tile_row(p.tiles, row, place);
    } else {
      to = record_row(p.out, p.m ? row % p.m : row);
      if (p.m) to.data += (size_t)(row / p.m) * p.stride, to.scales += (size_t)(row / p.m) * p.stride;
    }
    for (int from = blockIdx.y * 256 * 8; from < p.k; from += gridDim.y * 256 * 8) {
      const int col = from + threadIdx.x * 8;
      float v[8] = {};
      if (col + 8 <= p.inter && p.ldy % 8 == 0 && p.up_at % 8 == 0) {
        float u[8];
        unpack_bf16(*(const uint4 *)(y + col), v);
        unpack_bf16(*(const uint4 *)(y + p.up_at + col), u);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = swiglu(v[i], u[i]);
      } else {
        for (int i = 0; i < 8; i++) {
          if (col + i >= p.inter) continue;
          const float g = __bfloat162float(y[col + i]);
          v[i] = swiglu(g, __bfloat162float(y[p.up_at + col + i]));
        }
      }
      put_record(to, col, v, p.ue8m0, col < p.k);
    }
  }
}

} // namespace

void moe_plan_few(const MoePlan &p, cudaStream_t stream) { launch(plan_few_kernel, 1, kPlanThreads, 0, stream, p); }
void moe_plan_many(const MoePlan &p, cudaStream_t stream) { launch(plan_many_kernel, 1, kPlanThreads, 0, stream, p); }

void moe_gather(const Records &x, const MoePlan &p, const TileRows &out, cudaStream_t stream) {
  launch(gather_kernel, p.rows, 512, 0, stream, x, p, out);
}

void activate(const Activate &p, int rows, cudaStream_t stream) {
  const int parts = rows <= 64 ? (p.k + 2047) / 2048 : 1; // few rows: a CTA for every 2,048 columns
  launch(activate_kernel, dim3(rows < 4096 ? rows : 4096, parts), 256, 0, stream, p, rows);
}

} // namespace mob
