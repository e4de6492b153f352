// Which experts a token goes to: fp32 logits, scores, the best groups, the best experts in them (DeepSeek-V3's noaux_tc; softmax
// routers have one group). Ids leave in ascending order, so that results are summed in the order of experts.
#include "kernels.h"

namespace mob {
namespace {

// A CTA an expert, up to four tokens.
__global__ void __launch_bounds__(256) router_logits_kernel(const float *x, const bf16 *w, float *logits, int experts, int hidden,
                                                            int rows) {
  __shared__ float sums[8][4];
  depend_launch();
  const int e = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  uint4 first = make_uint4(0, 0, 0, 0); // the weights do not depend on the kernel before
  if ((int)threadIdx.x * 8 < hidden) first = *(const uint4 *)(w + (size_t)e * hidden + threadIdx.x * 8);
  depend_wait();
  float sum[4] = {};
  for (int c = threadIdx.x * 8; c < hidden; c += 2048) {
    float a[8];
    unpack_bf16(c < 2048 ? first : *(const uint4 *)(w + (size_t)e * hidden + c), a);
#pragma unroll
    for (int t = 0; t < 4; t++) {
      if (t >= rows) break;
      const float4 u = *(const float4 *)(x + (size_t)t * hidden + c), v = *(const float4 *)(x + (size_t)t * hidden + c + 4);
      sum[t] += a[0] * u.x + a[1] * u.y + a[2] * u.z + a[3] * u.w + a[4] * v.x + a[5] * v.y + a[6] * v.z + a[7] * v.w;
    }
  }
#pragma unroll
  for (int t = 0; t < 4; t++) {
    const float s = warp_sum(sum[t]);
    if (lane == 0) sums[warp][t] = s;
  }
  __syncthreads();
  if ((int)threadIdx.x < rows) {
    float s = 0;
    for (int i = 0; i < 8; i++) s += sums[i][threadIdx.x];
    logits[(size_t)threadIdx.x * experts + e] = s;
  }
}

struct Best {
  float value;
  int index;
};
__device__ __forceinline__ bool better(const Best &a, const Best &b) {
  return a.value > b.value || (a.value == b.value && a.index < b.index);
}
__device__ __forceinline__ Best warp_best(Best b) {
#pragma unroll
  for (int s = 16; s; s >>= 1) {
    const Best o = {__shfl_xor_sync(~0u, b.value, s), __shfl_xor_sync(~0u, b.index, s)};
    if (better(o, b)) b = o;
  }
  return b;
}

// A warp a token; lane l keeps the experts [l * kPer, (l + 1) * kPer) in registers.
template <int kPer>
__global__ void __launch_bounds__(128) route_kernel(const RouterSpec spec, const float *logits, int *ids, float *weights,
                                                    int weight_ld, int rows) {
  __shared__ float choices[4][kPer * 32];
  depend_launch();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.x * 4 + warp, n = spec.experts, first = lane * kPer;
  float bias[kPer], score[kPer], choice[kPer];
#pragma unroll
  for (int i = 0; i < kPer; i++) bias[i] = spec.bias && first + i < n ? spec.bias[first + i] : 0.0f;
  depend_wait();
  if (row >= rows) return;
  const float *x = logits + (size_t)row * n;
#pragma unroll
  for (int i = 0; i < kPer; i++) score[i] = first + i < n ? x[first + i] : -INFINITY;
  if (spec.sigmoid) {
#pragma unroll
    for (int i = 0; i < kPer; i++) score[i] = 1.0f / (1.0f + expf(-score[i]));
  } else {
    float top = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < kPer; i++) top = fmaxf(top, score[i]);
    top = warp_max(top);
#pragma unroll
    for (int i = 0; i < kPer; i++) sum += score[i] = expf(score[i] - top);
    sum = warp_sum(sum);
#pragma unroll
    for (int i = 0; i < kPer; i++) score[i] /= sum;
  }
#pragma unroll
  for (int i = 0; i < kPer; i++) choice[i] = first + i < n ? score[i] + bias[i] : -INFINITY;
  if (spec.top_groups < spec.groups) { // a group's score is the sum of its two best; at most 64 groups
    float *all = choices[warp];
#pragma unroll
    for (int i = 0; i < kPer; i++) all[first + i] = choice[i];
    __syncwarp();
    const int size = n / spec.groups;
    float mine[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const int group = lane + 32 * i;
      float best = -INFINITY, second = -INFINITY;
      if (group < spec.groups) {
#pragma unroll 8
        for (int k = 0; k < size; k++) { // lanes begin at different experts: no two in one bank
          const float c = all[group * size + (k + lane) % size];
          second = fmaxf(second, fminf(best, c));
          best = fmaxf(best, c);
        }
      }
      mine[i] = group < spec.groups ? best + second : -INFINITY;
    }
    int ahead[2] = {0, 0}; // groups before mine
    for (int o = 0; o < spec.groups; o++) {
      const float low = __shfl_sync(~0u, mine[0], o % 32), high = __shfl_sync(~0u, mine[1], o % 32);
      const float other = o < 32 ? low : high;
#pragma unroll
      for (int i = 0; i < 2; i++) ahead[i] += other > mine[i] || (other == mine[i] && o < lane + 32 * i);
    }
    const unsigned kept_low = __ballot_sync(~0u, ahead[0] < spec.top_groups), kept_high = __ballot_sync(~0u, ahead[1] < spec.top_groups);
#pragma unroll
    for (int i = 0; i < kPer; i++) {
      const int group = min((first + i) / size, 63);
      if (!((group < 32 ? kept_low : kept_high) >> group % 32 & 1)) choice[i] = -INFINITY;
    }
  }
  int id = n; // lane k keeps the k-th chosen
  float value = 0, sum = 0;
  for (int k = 0; k < spec.top_k; k++) {
    Best b = {-INFINITY, n};
    float own = 0;
#pragma unroll
    for (int i = 0; i < kPer; i++)
      if (choice[i] > b.value) b = {choice[i], first + i}, own = score[i];
    const int before = b.index;
    b = warp_best(b);
    const bool none = b.index >= n; // only when scores are not numbers
    const unsigned owner = __ballot_sync(~0u, !none && before == b.index);
    const float s = none ? 0.0f : __shfl_sync(~0u, own, owner ? __ffs(owner) - 1 : 0);
    if (none) b.index = k; // stays in bounds
    sum += s;
    if (lane == k) id = b.index, value = s;
#pragma unroll
    for (int i = 0; i < kPer; i++)
      if (first + i == b.index) choice[i] = -INFINITY;
  }
  if (spec.sigmoid) sum += 1e-20f;
  int rank = 0;
  for (int k = 0; k < spec.top_k; k++) {
    const int other = __shfl_sync(~0u, id, k);
    rank += other < id || (other == id && k < lane);
  }
  if (lane < spec.top_k) {
    ids[(size_t)row * spec.top_k + rank] = id;
    weights[(size_t)row * weight_ld + rank] = (spec.norm ? value / sum : value) * spec.routed_scale;
  } else if (lane < weight_ld) {
    weights[(size_t)row * weight_ld + lane] = 1.0f; // shared experts
  }
}

} // namespace

void router_logits(const float *x, const bf16 *w, float *logits, int experts, int hidden, int rows, cudaStream_t stream) {
  launch(router_logits_kernel, experts, 256, 0, stream, x, w, logits, experts, hidden, rows);
}

void route(const RouterSpec &spec, const float *logits, int *ids, float *weights, int weight_ld, int rows, cudaStream_t stream) {
  const dim3 grid((rows + 3) / 4);
  if (spec.experts <= 256) launch(route_kernel<8>, grid, 128, 0, stream, spec, logits, ids, weights, weight_ld, rows);
  else launch(route_kernel<16>, grid, 128, 0, stream, spec, logits, ids, weights, weight_ld, rows);
}

} // namespace mob
