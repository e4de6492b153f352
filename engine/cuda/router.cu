// Which experts a token goes to, from logits that a linear left (up to 4 rows: router_few.cu).
#include "route.cuh"

namespace mob {
namespace {

// A lane's logits of a row, [first, first + kPer), summed over the parts [part, end), all loads in flight.
template <int kPer>
__device__ __forceinline__ void sum_parts(const float *logits, int part, int end, size_t stride, int first, int n, float (&sum)[kPer]) {
#pragma unroll
  for (int i = 0; i < kPer; i++) sum[i] = 0;
  if (n % 4 == 0) {
#pragma unroll 14
    for (int p = part; p < end; p++)
#pragma unroll
      for (int i = 0; i < kPer; i += 4) {
        if (first + i >= n) break;
        const float4 v = *(const float4 *)(logits + (size_t)p * stride + first + i);
        sum[i] += v.x, sum[i + 1] += v.y, sum[i + 2] += v.z, sum[i + 3] += v.w;
      }
    return;
  }
  for (int p = part; p < end; p++)
#pragma unroll
    for (int i = 0; i < kPer; i++)
      if (first + i < n) sum[i] += logits[(size_t)p * stride + first + i];
}

// A warp a row.
template <int kPer>
__global__ void __launch_bounds__(128) route_kernel(const RouterSpec spec, const float *logits, int *ids, float *weights,
                                                    int weight_ld, int rows) {
  __shared__ float groups[4][kPer * 32];
  depend_launch();
  const int warp = threadIdx.x / 32, row = blockIdx.x * 4 + warp, n = spec.experts, first = (int)threadIdx.x % 32 * kPer;
  float bias[kPer], score[kPer];
#pragma unroll
  for (int i = 0; i < kPer; i++) bias[i] = spec.bias && first + i < n ? spec.bias[first + i] : 0.0f;
  depend_wait();
  if (row >= rows) return;
  const float *x = logits + (size_t)row * n;
#pragma unroll
  for (int i = 0; i < kPer; i++) score[i] = first + i < n ? x[first + i] : -INFINITY;
  score_row<kPer>(spec, score);
  route_row<kPer>(spec, score, bias, groups[warp], ids + (size_t)row * spec.top_k, weights + (size_t)row * weight_ld, weight_ld);
}

// Logits in parts, each [rows][experts]. A block a row: each of four warps sums a quarter of the parts, the first warp the quarters.
template <int kPer>
__global__ void __launch_bounds__(128) route_parts_kernel(const RouterSpec spec, const float *logits, int parts, size_t stride, int *ids,
                                                          float *weights, int weight_ld) {
  __shared__ float sums[4][kPer * 32], groups[kPer * 32];
  depend_launch();
  const int row = blockIdx.x, n = spec.experts, warp = threadIdx.x / 32, first = (int)threadIdx.x % 32 * kPer;
  float bias[kPer], score[kPer];
#pragma unroll
  for (int i = 0; i < kPer; i++) bias[i] = threadIdx.x < 32 && spec.bias && first + i < n ? spec.bias[first + i] : 0.0f;
  depend_wait();
  sum_parts<kPer>(logits + (size_t)row * n, parts * warp / 4, parts * (warp + 1) / 4, stride, first, n, score);
#pragma unroll
  for (int i = 0; i < kPer; i++) sums[warp][first + i] = score[i];
  __syncthreads();
  if (warp > 0) return;
#pragma unroll
  for (int i = 0; i < kPer; i++) score[i] = first + i < n ? score[i] + sums[1][first + i] + sums[2][first + i] + sums[3][first + i] : -INFINITY;
  score_row<kPer>(spec, score);
  route_row<kPer>(spec, score, bias, groups, ids + (size_t)row * spec.top_k, weights + (size_t)row * weight_ld, weight_ld);
}

// The same for up to 256 experts, in groups that are whole warps or none: a thread an expert, so that a row's chain of instructions is short.
constexpr int kRowThreads = 256, kMostChoices = 8;

__global__ void __launch_bounds__(kRowThreads) route_row_kernel(const RouterSpec spec, const float *logits, int parts, size_t stride, int *ids,
                                                               float *weights, int weight_ld) {
  constexpr int kWarps = kRowThreads / 32, kLoads = 28; // in flight
  __shared__ float scratch[2][kWarps], groups[kWarps], chosen_score[kMostChoices];
  __shared__ __align__(16) uint32_t best[kWarps * kMostChoices];
  __shared__ uint32_t chosen[kWarps];
  __shared__ int chosen_id[kMostChoices];
  depend_launch();
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, row = blockIdx.x, n = spec.experts;
  const float bias = spec.bias && tid < n ? spec.bias[tid] : 0.0f;
  if (lane < kMostChoices) best[warp * kMostChoices + lane] = 0;
  if (lane == 0) groups[warp] = -INFINITY;
  depend_wait();
  float score = 0;
  if (tid < n) {
    const float *x = logits + (size_t)row * n + tid;
#pragma unroll 1
    for (int from = 0; from < parts; from += kLoads) {
      float v[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; i++) v[i] = from + i < parts ? x[(size_t)(from + i) * stride] : 0.0f;
#pragma unroll
      for (int i = 0; i < kLoads; i++) score += v[i];
    }
  } else {
    score = -INFINITY;
  }
  if (spec.sigmoid) {
    score = sigmoid(score);
  } else {
    const float top = warp_max(score);
    if (lane == 0) scratch[0][warp] = top;
    __syncthreads();
    const float most = warp_max(scratch[0][lane % kWarps]), power = expf(score - most), sum = warp_sum(power);
    if (lane == 0) scratch[1][warp] = sum;
    __syncthreads();
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; w++) all += scratch[1][w];
    score = power * (1.0f / all);
  }
  const float choice = tid < n ? score + bias : -INFINITY;
  uint32_t key = ordered_of(choice);
  if (key <= kNotChosen) key = 0;
  // How many of the warp's are in front of each, by key, then by number.
  int ahead = 0;
#pragma unroll 8
  for (int o = 0; o < 32; o++) {
    const uint32_t other = __shfl_sync(~0u, key, o);
    ahead += other > key || (other == key && o < lane);
  }
  if (spec.top_groups < spec.groups) { // a warp is a group: the sum of its two best
    const unsigned first = __ballot_sync(~0u, ahead == 0), second = __ballot_sync(~0u, ahead == 1);
    const float two = __shfl_sync(~0u, choice, __ffs(first) - 1) + __shfl_sync(~0u, choice, __ffs(second) - 1);
    if (lane == 0) groups[warp] = two;
    __syncthreads();
    int in_front = 0;
#pragma unroll
    for (int g = 0; g < kWarps; g++) in_front += groups[g] > two || (groups[g] == two && g < warp);
    if (in_front >= spec.top_groups) key = 0;
  }
  if (key && ahead < spec.top_k) best[warp * kMostChoices + ahead] = key;
  __syncthreads();
  bool mine = key && ahead < spec.top_k;
  if (mine) { // and of the other warps', which are in order
#pragma unroll 4
    for (int i = 0; i < kWarps * kMostChoices; i += 4) {
      const uint4 other = *(const uint4 *)(best + i);
      const int w = i / kMostChoices;
      const uint32_t from = key + (w >= warp); // equal ones of warps in front count
      ahead += w == warp ? 0 : (other.x >= from) + (other.y >= from) + (other.z >= from) + (other.w >= from);
    }
    mine = ahead < spec.top_k;
  }
  const unsigned mask = __ballot_sync(~0u, mine);
  if (lane == 0) chosen[warp] = mask;
  __syncthreads();
  int before = __popc(mask & ((1u << lane) - 1)), numbers = 0;
#pragma unroll
  for (int w = 0; w < kWarps; w++) {
    if (w < warp) before += __popc(chosen[w]);
    numbers += __popc(chosen[w]);
  }
  if (mine) chosen_id[before] = tid, chosen_score[before] = score;
  __syncthreads();
  if (warp > 0) return;
  const float own = lane < numbers ? chosen_score[lane] : 0.0f;
  const float sum = warp_sum(own) + (spec.sigmoid ? 1e-20f : 0.0f), factor = spec.norm ? spec.routed_scale / sum : spec.routed_scale;
  if (lane < spec.top_k) { // fewer than top_k only when scores are not numbers: stays in bounds
    ids[(size_t)row * spec.top_k + lane] = lane < numbers ? chosen_id[lane] : lane;
    weights[(size_t)row * weight_ld + lane] = lane < numbers ? own * factor : 0;
  } else if (lane < weight_ld) {
    weights[(size_t)row * weight_ld + lane] = 1.0f; // shared experts
  }
}

bool by_threads(const RouterSpec &s) {
  return s.experts <= kRowThreads && s.top_k <= kMostChoices && (s.top_groups >= s.groups || s.experts == 32 * s.groups);
}

} // namespace

void route(const RouterSpec &spec, const RouterParts &from, int *ids, float *weights, int weight_ld, int rows, cudaStream_t stream) {
  const bool small = spec.experts <= 256;
  if (from.parts > 1 && by_threads(spec)) {
    launch(route_row_kernel, rows, kRowThreads, 0, stream, spec, from.logits, from.parts, from.stride, ids, weights, weight_ld);
    return;
  }
  if (from.parts > 1) {
    if (small) launch(route_parts_kernel<8>, rows, 128, 0, stream, spec, from.logits, from.parts, from.stride, ids, weights, weight_ld);
    else launch(route_parts_kernel<16>, rows, 128, 0, stream, spec, from.logits, from.parts, from.stride, ids, weights, weight_ld);
    return;
  }
  const dim3 grid((rows + 3) / 4);
  if (small) launch(route_kernel<8>, grid, 128, 0, stream, spec, from.logits, ids, weights, weight_ld, rows);
  else launch(route_kernel<16>, grid, 128, 0, stream, spec, from.logits, ids, weights, weight_ld, rows);
}

} // namespace mob
