// Attention over the paged cache. Every row of a step is a query of its own at its position (a prompt's rows are many queries of
// one sequence); keys [0, position] are visited page by page with an online softmax.
// Any head sizes, on CUDA cores; the sizes of common models have kernels of their own (attention_mla.cu, attention_prefill.cu,
// attention_gqa.cu, attention_gqa_prefill.cu).
#include "kernels.h"

namespace mob {
namespace {

constexpr int kMaxValues = 8; // value columns a thread: 128 x 8 = 1,024

__global__ void __launch_bounds__(128) attend_plain_kernel(const AttendPlain p, float *out_f32, bf16 *out) {
  DYNAMIC_SHARED(float, q); // [dim]
  __shared__ float prob[64], scratch[4];
  depend_launch();
  depend_wait();
  const int row = blockIdx.x, head = blockIdx.y, tid = threadIdx.x, kv = head / p.group;
  const int table = p.step.table[row], position = p.step.position[row];
  const size_t to = ((size_t)row * p.heads + head) * p.v_dim;
  if (table < 0) { // padding
    for (int c = tid; c < p.v_dim; c += 128) {
      if (out_f32) out_f32[to + c] = 0;
      else out[to + c] = __float2bfloat16(0);
    }
    return;
  }
  for (int i = tid; i < p.dim; i += 128) q[i] = __bfloat162float(p.q[(size_t)row * p.ldq + head * p.q_head + i]);
  const int key_at = kv * p.key_step, value_at = p.value_at + kv * p.value_step;
  float sum_out[kMaxValues] = {}, top = -INFINITY, sum = 0;
  for (int from = 0; from <= position; from += 64) {
    const uint8_t *page = p.cache + (size_t)p.step.pages[table + from / 64] * page_bytes(p.width);
    const int n = min(64, position + 1 - from);
    __syncthreads();
    // two threads a key, every second chunk of eight columns each
    const int key = tid / 2;
    float s = 0;
    if (key < n) {
      for (int c = tid % 2 * 8; c < p.dim; c += 16) {
        float k[8];
        unpack_bf16(*(const uint4 *)(page + page_offset(key, key_at + c)), k);
#pragma unroll
        for (int i = 0; i < 8; i++) s += q[c + i] * k[i];
      }
    }
    s += __shfl_xor_sync(~0u, s, 1);
    s = key < n ? s * p.scale : -INFINITY;
    float m = warp_max(s);
    if (tid % 32 == 0) scratch[tid / 32] = m;
    __syncthreads();
    m = fmaxf(fmaxf(fmaxf(scratch[0], scratch[1]), fmaxf(scratch[2], scratch[3])), top);
    if (tid % 2 == 0) prob[key] = key < n ? __expf(s - m) : 0;
    const float shrink = __expf(top - m);
    top = m;
    __syncthreads();
    sum *= shrink;
    for (int j = 0; j < n; j++) sum += prob[j];
#pragma unroll
    for (int i = 0; i < kMaxValues; i++) {
      const int c = tid + i * 128;
      if (c >= p.v_dim) break;
      float v = sum_out[i] * shrink;
      for (int j = 0; j < n; j++) v += prob[j] * __bfloat162float(*(const bf16 *)(page + page_offset(j, value_at + c)));
      sum_out[i] = v;
    }
  }
#pragma unroll
  for (int i = 0; i < kMaxValues; i++) {
    const int c = tid + i * 128;
    if (c >= p.v_dim) break;
    if (out_f32) out_f32[to + c] = sum_out[i] / sum;
    else out[to + c] = __float2bfloat16(sum_out[i] / sum);
  }
}

} // namespace

void attend_plain(const AttendPlain &p, float *out_f32, bf16 *out, int rows, cudaStream_t stream) {
  launch(attend_plain_kernel, dim3(rows, p.heads), 128, (p.dim + 8) * sizeof(float), stream, p, out_f32, out);
}

} // namespace mob
