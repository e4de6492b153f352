// Parts of what stands between two linears that one rank and several share: eight columns of a row a thread, rows longer
// than that in turns.
#pragma once
#include "kernels.h"

namespace mob {

constexpr int kShortRow = 8192; // columns that one turn of 1,024 threads takes

__device__ __forceinline__ void load8(const float *p, float v[8]) {
  const float4 a = *(const float4 *)p, b = *(const float4 *)(p + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
__device__ __forceinline__ void store8(float *p, const float v[8]) {
  *(float4 *)p = make_float4(v[0], v[1], v[2], v[3]);
  *(float4 *)(p + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

// The embedding of a row's token, on whichever GPU it is.
__device__ __forceinline__ const bf16 *embedded(const NormIn &in, int row) {
  const uint32_t ranks = in.embed.ranks, vocab = in.embed.vocab;
  int id = in.step.token[row];
  if (id < 0) id = in.step.last_token[-1 - id];
  const uint32_t token = min(max(id, 0), (int)vocab - 1), rank = ((token + 1) * ranks - 1) / vocab;
  const bf16 *part = in.embed.part[0];
#pragma unroll
  for (int r = 1; r < kMaxRanks; r++)
    if ((int)rank == r) part = in.embed.part[r];
  return part + (size_t)(token - vocab * rank / ranks) * in.hidden;
}

// What this rank adds to eight columns of x: a projection's part, and the experts that are here (row -1: on another rank).
__device__ __forceinline__ uint4 own_part(const NormIn &in, int row, int col) {
  constexpr int kBatch = 3; // loads in flight
  float u[8], sum[8] = {};
  if (!in.expert_y) return *(const uint4 *)(in.add + (size_t)row * in.hidden + col);
  if (in.add) unpack_bf16(*(const uint4 *)(in.add + (size_t)row * in.hidden + col), sum);
#pragma unroll 1
  for (int j = 0; j < in.expert_slots; j += kBatch) {
    uint4 part[kBatch];
    float weight[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int at = row * in.expert_slots + j + i, from = j + i < in.expert_slots ? in.expert_row[at] : -1;
      weight[i] = from < 0 ? 0.0f : in.expert_weight[at];
      part[i] = from < 0 ? make_uint4(0, 0, 0, 0) : *(const uint4 *)(in.expert_y + (size_t)from * in.hidden + col);
    }
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      unpack_bf16(part[i], u);
#pragma unroll
      for (int k = 0; k < 8; k++) sum[k] += weight[i] * u[k];
    }
  }
  return pack_bf16x8(sum);
}

// A word to `at`, behind bases[0], and to the same places behind the others.
template <class Word>
__device__ __forceinline__ void put_all(uint8_t *const (&bases)[kMaxRanks], int count, uint8_t *at, Word word) {
  const size_t offset = (size_t)(at - bases[0]);
#pragma unroll
  for (int i = 0; i < kMaxRanks; i++)
    if (i < count) *(Word *)(bases[i] + offset) = word;
}

// rsqrt(mean(x^2) + eps) of a row from every thread's sum of squares. Every thread of the block calls this.
__device__ __forceinline__ float norm_factor(const NormIn &in, float square, float *scratch) {
  return rsqrtf(block_sum(square, scratch) / in.hidden + in.eps);
}

// Eight columns of a row (zeros behind the last), normalised with their weights `w`, then to the row's records. Every thread of a warp
// calls this.
__device__ __forceinline__ void put_normed(const NormIn &in, const NormOut &out, int r, int col, float factor, float v[8], const float w[8]) {
  if (col < in.hidden) {
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] = w[k] * (v[k] * factor);
  }
  if (out.a.data) put_record(out.a, r, col, v, out.ue8m0, col < out.a_k);
  if (out.b.data) {
    put_record(out.b, r, col, v, out.ue8m0, col < out.b_k);
    if (out.b_split) { // what bf16 leaves, as a second set of columns
      float low[8];
#pragma unroll
      for (int k = 0; k < 8; k++) low[k] = v[k] - round_bf16(v[k]);
      put_record(out.b, r, out.b_k + col, low, out.ue8m0, col < out.b_k);
    }
  }
  if (out.f32 && col < in.hidden) store8(out.f32 + (size_t)r * in.hidden + col, v);
}
__device__ __forceinline__ void put_normed(const NormIn &in, const NormOut &out, int r, int col, float factor, float v[8]) {
  float w[8] = {};
  if (col < in.hidden) load8(in.w + col, w);
  put_normed(in, out, r, col, factor, v, w);
}

// The same for a row longer than the block's turn, whose columns are read again from x.
__device__ __forceinline__ void put_long(const NormIn &in, const NormOut &out, int r, const float *x, int width, float factor) {
#pragma unroll 1
  for (int first = 0; first < width; first += blockDim.x * 8) {
    const int col = first + threadIdx.x * 8;
    float v[8] = {};
    if (col < in.hidden) load8(x + col, v);
    put_normed(in, out, r, col, factor, v);
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
