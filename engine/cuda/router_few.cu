// The router of up to 4 rows in one kernel, from the residual stream to the dispatch plan: CTAs of two experts compute logits while
// others write the normed records; one more CTA takes the logits as they come, routes and plans. The factor of
// the norm belongs to the whole row, so that logits are multiplied by it last.
#include "norm.cuh"
#include "route.cuh"

namespace mob {
namespace {

constexpr int kThreads = 256, kTurns = 4, kTurn = kThreads * 8; // turns of columns whose weights are fetched before the wait
constexpr int kExperts = 2;                                     // of a CTA
constexpr int kPer = kFewExperts / 32;                          // experts of a lane that routes

struct Few {
  RouteFew p;
  NormIn in;
  NormOut out;
  float *x; // takes the residual stream
  int rows, width;
};

// Eight columns of the residual stream, what is added to it included.
template <bool Norm> __device__ __forceinline__ void stream8(const NormIn &in, int row, int col, float v[8]) {
  load8(in.x + (size_t)row * in.hidden + col, v);
  if (!Norm) return;
  float u[8];
  unpack_bf16(*(const uint4 *)(in.add + (size_t)row * in.hidden + col), u);
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] += u[i];
  if (!in.bias) return;
  load8(in.bias + col, u);
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] += u[i];
}

__device__ __forceinline__ float dot8(const float v[8], uint4 weights) {
  float w[8];
  unpack_bf16(weights, w);
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) sum += v[i] * w[i];
  return sum;
}

// Two experts' logits of all rows. A word with every bit set means "not there yet" (linear_many.cuh).
template <int Rows, bool Norm> __device__ __forceinline__ void logits_cta(const Few &f, float *scratch) {
  const NormIn &in = f.in;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, e = blockIdx.x * kExperts, experts = f.p.spec.experts;
  const bf16 *w[kExperts];
#pragma unroll
  for (int j = 0; j < kExperts; j++) w[j] = f.p.w + (size_t)min(e + j, experts - 1) * in.hidden;
  uint4 ahead[kTurns][kExperts];
  float norm[kTurns][8];
#pragma unroll
  for (int t = 0; t < kTurns; t++) {
    const int col = t * kTurn + threadIdx.x * 8;
    if (col >= in.hidden) break;
#pragma unroll
    for (int j = 0; j < kExperts; j++) ahead[t][j] = *(const uint4 *)(w[j] + col);
    if (Norm) load8(in.w + col, norm[t]);
  }
  depend_wait();
  float sum[Rows][kExperts + 1] = {}; // the last: of squares
  auto take = [&](int col, const uint4 (&weights)[kExperts], const float (&scale)[8]) {
#pragma unroll
    for (int r = 0; r < Rows; r++) {
      if (r >= f.rows) break;
      float v[8];
      stream8<Norm>(in, r, col, v);
      if (Norm) {
#pragma unroll
        for (int i = 0; i < 8; i++) {
          sum[r][kExperts] += v[i] * v[i];
          v[i] *= scale[i];
        }
      }
#pragma unroll
      for (int j = 0; j < kExperts; j++) sum[r][j] += dot8(v, weights[j]);
    }
  };
#pragma unroll
  for (int t = 0; t < kTurns; t++)
    if (t * kTurn + (int)threadIdx.x * 8 < in.hidden) take(t * kTurn + threadIdx.x * 8, ahead[t], norm[t]);
#pragma unroll 1
  for (int col = kTurns * kTurn + threadIdx.x * 8; col < in.hidden; col += kTurn) {
    uint4 weights[kExperts];
    float scale[8];
#pragma unroll
    for (int j = 0; j < kExperts; j++) weights[j] = *(const uint4 *)(w[j] + col);
    if (Norm) load8(in.w + col, scale);
    take(col, weights, scale);
  }
#pragma unroll
  for (int r = 0; r < Rows; r++)
#pragma unroll
    for (int j = 0; j < kExperts + Norm; j++) {
      const float s = warp_sum(sum[r][j]);
      if (lane == 0) scratch[(r * (kExperts + 1) + j) * 8 + warp] = s;
    }
  __syncthreads();
  const int j = threadIdx.x;
  if (j >= kExperts || e + j >= experts) return;
  float logit[4] = {};
#pragma unroll
  for (int r = 0; r < Rows; r++) {
    float dot = 0, square = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      dot += scratch[(r * (kExperts + 1) + j) * 8 + i];
      if (Norm) square += scratch[(r * (kExperts + 1) + kExperts) * 8 + i];
    }
    if (Norm) dot *= rsqrtf(square / in.hidden + in.eps);
    logit[r] = r < f.rows && dot == dot ? dot : __int_as_float(r < f.rows ? 0x7fc00000 : 0);
  }
  store_relaxed_gpu(f.p.words + (size_t)(e + j) * 4, make_float4(logit[0], logit[1], logit[2], logit[3]));
}

// A row's norm, as norm.cu's but for where the stream goes: every CTA sums the whole row and writes the columns of its turn.
__device__ __forceinline__ void norm_cta(const Few &f, int r, int turn, float *scratch) {
  const int own = turn * kTurn + threadIdx.x * 8, hidden = f.in.hidden;
  float v[kTurns][8], w[8] = {}, mine[8] = {}, square = 0;
  if (own < hidden) load8(f.in.w + own, w);
  depend_wait();
#pragma unroll
  for (int t = 0; t < kTurns; t++) {
    const int col = t * kTurn + threadIdx.x * 8;
    if (col < hidden) stream8<true>(f.in, r, col, v[t]);
  }
#pragma unroll
  for (int t = 0; t < kTurns; t++) {
    if (t * kTurn + (int)threadIdx.x * 8 >= hidden) break;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      square += v[t][i] * v[t][i];
      mine[i] = t == turn ? v[t][i] : mine[i];
    }
  }
  if (own < hidden) store8(f.x + (size_t)r * hidden + own, mine);
  put_normed(f.in, f.out, r, own, norm_factor(f.in, square, scratch), mine, w);
}

template <int Rows> __device__ __forceinline__ void route_cta(const Few &f) {
  __shared__ float scores[Rows][kPer * 32];
  __shared__ float groups[Rows][kPer * 32];
  __shared__ int ids[Rows * 32];
  __shared__ PlanFewShared plan;
  const RouteFew &p = f.p;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, n = p.spec.experts, first = lane * kPer, top_k = p.spec.top_k;
  float bias[kPer];
#pragma unroll
  for (int i = 0; i < kPer; i++) bias[i] = warp < Rows && p.spec.bias && first + i < n ? p.spec.bias[first + i] : 0.0f;
  depend_wait();
  const int count = *p.plan.count;
#pragma unroll 1
  for (int e = tid; e < kPer * 32; e += kThreads) {
    uint4 word[1] = {make_uint4(0xff800000, 0xff800000, 0xff800000, 0xff800000)};
    if (e < n) {
      wait_words(word, p.words + (size_t)e * 4, 0, 1, -1, p.waits);
      store_relaxed_gpu(p.words + (size_t)e * 4, not_there());
    }
    const uint32_t words[4] = {word[0].x, word[0].y, word[0].z, word[0].w};
#pragma unroll
    for (int r = 0; r < Rows; r++) {
      const float logit = __uint_as_float(words[r]);
      scores[r][e] = p.spec.sigmoid ? sigmoid(logit) : logit;
    }
  }
  __syncthreads();
  if (warp < f.rows) {
    float score[kPer];
#pragma unroll
    for (int i = 0; i < kPer; i++) score[i] = scores[warp][first + i];
    if (!p.spec.sigmoid) softmax_row(score);
    route_row<kPer>(p.spec, score, bias, groups[warp], ids + warp * top_k, p.weights + warp * p.weight_ld, p.weight_ld);
    __syncwarp();
    if (lane < top_k) p.ids[warp * top_k + lane] = ids[warp * top_k + lane];
  }
  __syncthreads();
  plan_few(p.plan, ids, count, plan);
}

template <int Rows, bool Norm> __global__ void __launch_bounds__(kThreads) route_few_kernel(const Few f) {
  __shared__ float scratch[Rows * (kExperts + 1) * 8 + 33];
  depend_launch();
  const int routers = (f.p.spec.experts + kExperts - 1) / kExperts, rest = (int)blockIdx.x - routers, turns = (f.width + kTurn - 1) / kTurn;
  if (rest < 0) logits_cta<Rows, Norm>(f, scratch);
  else if (Norm && rest < f.rows * turns) norm_cta(f, rest / turns, rest % turns, scratch);
  else route_cta<Rows>(f);
}

template <bool Norm> void launch_few(const Few &f, cudaStream_t stream) {
  const int grid = (f.p.spec.experts + kExperts - 1) / kExperts + (Norm ? f.rows * ((f.width + kTurn - 1) / kTurn) : 0) + 1;
  if (f.rows == 1) launch(route_few_kernel<1, Norm>, grid, kThreads, 0, stream, f);
  else launch(route_few_kernel<kFewRouter, Norm>, grid, kThreads, 0, stream, f);
}

} // namespace

void route_few(const RouteFew &p, const float *x, int hidden, int rows, cudaStream_t stream) {
  Few f = {};
  f.p = p;
  f.in.x = (float *)x;
  f.in.hidden = hidden;
  f.rows = rows;
  launch_few<false>(f, stream);
}

bool norm_route_serves(const NormIn &in, const NormOut &out) {
  return in.add && !in.from && !in.expert_y && !in.embed.part[0] && !in.rows && norm_width(in, out) <= kTurns * kTurn;
}

void norm_route_few(const RouteFew &p, const NormIn &in, const NormOut &out, float *x, int rows, cudaStream_t stream) {
  launch_few<true>({p, in, out, x, rows, norm_width(in, out)}, stream);
}

} // namespace mob
