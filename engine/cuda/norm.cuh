// Parts of what stands between two linears that one rank and several share: eight columns of a row a thread and turn.
#pragma once
#include "kernels.h"

namespace mob {

constexpr int kNormTurns = 4; // 1,024 threads x 8 columns x 4 turns = 32,768 columns

__device__ __forceinline__ void load8(const float *p, float v[8]) {
  const float4 a = *(const float4 *)p, b = *(const float4 *)(p + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void store8(float *p, const float v[8]) {
  *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]);
  *(float4 *)(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

// A row whose squares sum to `square` over the whole block: normalised, then to its records. Every thread of the block calls this.
template <int Turns>
__device__ __forceinline__ void put_normed(const NormIn &in, const NormOut &out, int r, int turns, float square, float v[Turns][8],
                                           float *scratch) {
  const float factor = rsqrtf(block_sum(square, scratch) / in.hidden + in.eps);
#pragma unroll
  for (int i = 0; i < Turns; i++) {
    if (i >= turns) break;
    const int col = (i * blockDim.x + threadIdx.x) * 8;
    if (col < in.hidden) {
      float w[8];
      load8(in.w + col, w);
#pragma unroll
      for (int k = 0; k < 8; k++) v[i][k] = w[k] * (v[i][k] * factor);
    }
    if (out.a.data) put_record(out.a, r, col, v[i], out.ue8m0, col < out.a_k);
    if (out.b.data) {
      put_record(out.b, r, col, v[i], out.ue8m0, col < out.b_k);
      if (out.b_split) { // what bf16 leaves, as a second set of columns
        float low[8];
#pragma unroll
        for (int k = 0; k < 8; k++) low[k] = v[i][k] - __bfloat162float(__float2bfloat16(v[i][k]));
        put_record(out.b, r, out.b_k + col, low, out.ue8m0, col < out.b_k);
      }
    }
    if (out.f32 && col < in.hidden) store8(out.f32 + (size_t)r * in.hidden + col, v[i]);
  }
}

inline int norm_width(const NormIn &in, const NormOut &out) {
  int width = in.hidden;
  if (out.a.data && out.a_k > width) width = out.a_k;
  if (out.b.data && out.b_k > width) width = out.b_k;
  return width;
}
inline int norm_threads(int width) {
  const int threads = (width / 8 + 31) / 32 * 32;
  return threads > 1024 ? 1024 : threads;
}

} // namespace mob
