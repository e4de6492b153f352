// Latent attention in absorbed form needs two small products per head and token:
//   before: q_lat = UK_h^T q_nope (nope -> kv_lora), beside it the roped part of q
//   after:  o = UV_h o_lat (kv_lora -> v), where o_lat first merges the parts of split keys by their log-sum-exp
// Here of any dimensions; DeepSeek-V3's: absorb_mla.cu.
#include "kernels.h"
#include "rope.cuh"

namespace mob {
namespace {

__global__ void __launch_bounds__(128) absorb_q_plain_kernel(const AbsorbPlain p, const bf16 *q, bf16 *out) {
  DYNAMIC_SHARED(float, qs); // [nope + rope]
  depend_launch();
  depend_wait();
  const int row = blockIdx.x, head = blockIdx.y, dim = p.nope + p.rope_dim, width = p.kv_lora + p.rope_dim;
  const bf16 *from = q + ((size_t)row * p.heads + head) * dim;
  bf16 *to = out + ((size_t)row * p.heads + head) * width;
  for (int i = threadIdx.x; i < dim; i += 128) qs[i] = __bfloat162float(from[i]);
  __syncthreads();
  const bf16 *w = p.kv_b + (size_t)head * (p.nope + p.v) * p.kv_lora;
  for (int c = threadIdx.x; c < p.kv_lora; c += 128) {
    float sum = 0;
    for (int r = 0; r < p.nope; r++) sum += qs[r] * __bfloat162float(w[(size_t)r * p.kv_lora + c]);
    to[c] = __float2bfloat16(sum);
  }
  const int half = p.rope.dim / 2, position = p.step.position[row];
  for (int k = threadIdx.x; k < half; k += 128) {
    const int a = p.rope.interleaved ? 2 * k : k, b = p.rope.interleaved ? 2 * k + 1 : k + half;
    const float2 cs = angle_of(p.rope, position, k);
    const float u = qs[p.nope + a], v = qs[p.nope + b];
    to[p.kv_lora + a] = __float2bfloat16(u * cs.x - v * cs.y);
    to[p.kv_lora + b] = __float2bfloat16(v * cs.x + u * cs.y);
  }
}

__global__ void __launch_bounds__(128) absorb_v_plain_kernel(const AbsorbPlain p, const float *latent, bf16 *out) {
  depend_launch();
  depend_wait();
  const int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32;
  const float *x = latent + ((size_t)row * p.heads + head) * p.kv_lora;
  const bf16 *w = p.kv_b + ((size_t)head * (p.nope + p.v) + p.nope) * p.kv_lora;
  for (int r = threadIdx.x / 32; r < p.v; r += 4) {
    float sum = 0;
    for (int c = lane; c < p.kv_lora; c += 32) sum += x[c] * __bfloat162float(w[(size_t)r * p.kv_lora + c]);
    sum = warp_sum(sum);
    if (lane == 0) out[((size_t)row * p.heads + head) * p.v + r] = __float2bfloat16(sum);
  }
}

} // namespace

void absorb_q_plain(const AbsorbPlain &p, const bf16 *q, bf16 *out, int rows, cudaStream_t stream) {
  launch(absorb_q_plain_kernel, dim3(rows, p.heads), 128, (p.nope + p.rope_dim) * sizeof(float), stream, p, q, out);
}

void absorb_v_plain(const AbsorbPlain &p, const float *latent, bf16 *out, int rows, cudaStream_t stream) {
  launch(absorb_v_plain_kernel, dim3(rows, p.heads), 128, 0, stream, p, latent, out);
}

} // namespace mob
