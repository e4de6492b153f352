// The dispatch plan of a MoE layer, made on the device, and what stands between its grouped linears.
//   few tokens   every active expert computes all of them: row of y = (index among the active) * tokens + token, nothing moves
//   many tokens  tokens are gathered by expert, each expert's rows beginning at a multiple of 8
#include "kernels.h"

namespace mob {
namespace {

constexpr int kPlanThreads = 1024;

// Of a routed expert among those that are here; -1: it is elsewhere.
__device__ __forceinline__ int here(const MoePlan &p, int id) { return id >= p.first && id < p.first + p.experts ? id - p.first : -1; }

__global__ void __launch_bounds__(kPlanThreads) plan_few_kernel(const MoePlan p) {
  __shared__ int index[kMaxSegments];
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

__device__ __forceinline__ int4 add4(int4 a, int4 b) { return make_int4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w); }

__global__ void __launch_bounds__(kPlanThreads) plan_many_kernel(const MoePlan p) {
  __shared__ int counts[kPlanThreads], cursor[kPlanThreads];
  __shared__ int4 warp_sums[32];
  depend_launch();
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, slots = p.top_k + p.shared;
  counts[tid] = 0;
  __syncthreads();
  depend_wait();
  const int count = *p.count;
  for (int i = tid; i < count * p.top_k; i += kPlanThreads) {
    const int e = here(p, p.ids[i]);
    if (e >= 0) atomicAdd(&counts[e], 1);
  }
  if (tid >= p.experts && tid < p.experts + p.shared) counts[tid] = count;
  __syncthreads();
  const int mine = counts[tid], padded = (mine + 7) / 8 * 8, across = (mine + p.tile - 1) / p.tile;
  // prefix sums over experts: rows, segments, tiles of both linears
  int4 v = make_int4(padded, mine > 0, across * p.gate_up_blocks, across * p.down_blocks);
  const int4 own = v;
#pragma unroll
  for (int s = 1; s < 32; s <<= 1) {
    const int4 o = make_int4(__shfl_up_sync(~0u, v.x, s), __shfl_up_sync(~0u, v.y, s), __shfl_up_sync(~0u, v.z, s),
                             __shfl_up_sync(~0u, v.w, s));
    if (lane >= s) v = add4(v, o);
  }
  if (lane == 31) warp_sums[warp] = v;
  __syncthreads();
  for (int w = 0; w < warp; w++) v = add4(v, warp_sums[w]);
  const int4 first = make_int4(v.x - own.x, v.y - own.y, v.z - own.z, v.w - own.w);
  cursor[tid] = first.x;
  if (mine > 0) {
    p.gate_up[first.y] = {tid, first.x, mine, first.z};
    p.down[first.y] = {tid, first.x, mine, first.w};
    for (int i = mine; i < padded; i++) p.source[first.x + i] = -1;
  }
  if (tid == kPlanThreads - 1) {
    p.gate_up[v.y] = {0, v.x, 0, v.z};
    p.down[v.y] = {0, v.x, 0, v.w};
    *p.active = v.y;
  }
  __syncthreads();
  for (int i = tid; i < p.rows * slots; i += kPlanThreads) {
    const int t = i / slots, j = i % slots;
    if (t >= count) {
      p.expert_row[i] = p.elsewhere ? -1 : 0;
      continue;
    }
    // A shared expert has the tokens in order. Among a routed expert's rows the order does not matter: each is its own column
    // of the product.
    const int e = j < p.top_k ? here(p, p.ids[t * p.top_k + j]) : p.experts + j - p.top_k;
    if (e < 0) {
      p.expert_row[i] = -1;
      continue;
    }
    const int row = j < p.top_k ? atomicAdd(&cursor[e], 1) : cursor[e] + t;
    p.expert_row[i] = row;
    p.source[row] = t;
  }
}

__global__ void __launch_bounds__(256) gather_kernel(const Records x, const int *source, const Segment *segments, const int *active,
                                                     const Records out, int k) {
  depend_launch();
  depend_wait();
  const int rows = segments[*active].row;
  const int chunks = k / (x.fp8 ? 128 : 64) * 8;
  const size_t from_record = record_bytes(x.fp8, x.mp), to_record = record_bytes(x.fp8, out.mp);
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    const int token = source[row];
    if (token < 0) continue;
    for (int i = threadIdx.x; i < chunks; i += 256) {
      const int pair = i / 16, second = i / 8 % 2, c = i % 8;
      const uint8_t *from = x.data + pair * from_record;
      uint8_t *to = out.data + pair * to_record;
      *(uint4 *)(to + ((size_t)second * out.mp + row) * 128 + ((c ^ (row & 7)) << 4)) =
          *(const uint4 *)(from + ((size_t)second * x.mp + token) * 128 + ((c ^ (token & 7)) << 4));
      if (x.fp8 && c == 0)
        *(float *)(to + (size_t)out.mp * 256 + ((size_t)second * out.mp + row) * 4) =
            *(const float *)(from + (size_t)x.mp * 256 + ((size_t)second * x.mp + token) * 4);
    }
  }
}

__global__ void __launch_bounds__(256) activate_kernel(const Activate p, int capacity) {
  depend_launch();
  depend_wait();
  const int rows = p.segments ? p.segments[*p.active].row : p.m ? *p.active * p.m : capacity;
  for (int row = blockIdx.x; row < rows; row += gridDim.x) {
    const bf16 *y = p.y + (size_t)row * p.ldy;
    Records out = p.out;
    int to = row;
    if (p.m) {
      out.data += (size_t)(row / p.m) * p.stride;
      to = row % p.m;
    }
    for (int from = 0; from < p.k; from += 256 * 8) {
      const int col = from + threadIdx.x * 8;
      float v[8] = {};
      if (col + 8 <= p.inter && p.ldy % 8 == 0 && p.up_at % 8 == 0) {
        float u[8];
        unpack_bf16(*(const uint4 *)(y + col), v);
        unpack_bf16(*(const uint4 *)(y + p.up_at + col), u);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = v[i] / (1.0f + __expf(-v[i])) * u[i];
      } else {
        for (int i = 0; i < 8; i++) {
          if (col + i >= p.inter) continue;
          const float g = __bfloat162float(y[col + i]);
          v[i] = g / (1.0f + __expf(-g)) * __bfloat162float(y[p.up_at + col + i]);
        }
      }
      put_record(out, to, col, v, p.ue8m0, col < p.k);
    }
  }
}

} // namespace

void moe_plan_few(const MoePlan &p, cudaStream_t stream) { launch(plan_few_kernel, 1, kPlanThreads, 0, stream, p); }
void moe_plan_many(const MoePlan &p, cudaStream_t stream) { launch(plan_many_kernel, 1, kPlanThreads, 0, stream, p); }

void moe_gather(const Records &x, const int *source, const Segment *segments, const int *active, const Records &out, int k,
                int capacity, cudaStream_t stream) {
  launch(gather_kernel, capacity < 4096 ? capacity : 4096, 256, 0, stream, x, source, segments, active, out, k);
}

void activate(const Activate &p, int rows, cudaStream_t stream) {
  launch(activate_kernel, rows < 4096 ? rows : 4096, 256, 0, stream, p, rows);
}

} // namespace mob
