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

} // namespace

void route(const RouterSpec &spec, const RouterParts &from, int *ids, float *weights, int weight_ld, int rows, cudaStream_t stream) {
  const bool small = spec.experts <= 256;
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
