// What the grouped-query kernels share: a head's page in the cache, and how results leave as records.
#pragma once
#include "kernels.h"

namespace mob {

// Of each key head a page holds its 64 keys, then its 64 values, in boxes of 64 columns: one piece of memory.
template <int Dim> struct GqaPage {
  static constexpr int kBox = 8192, kBoxes = Dim / 64;
  static constexpr int kHalf = kBoxes * kBox, kBytes = 2 * kHalf; // keys; keys and values
};

// A head over a warp: a lane has Dim / 32 columns beside each other. The other column of a pair that turns together is the lane's own
// (interleaved) or that of the lane 16 further.
template <int Dim> struct HeadTurns { // of a position; in shared memory
  float2 of[Dim / 2];
  // Angles rounded to fp32 as the reference does, then an exact sine (no fast-math).
  __device__ __forceinline__ void compute(const Rope &rope, int position, int thread) {
    if (thread >= Dim / 2) return;
    float s, c;
    sincosf((float)position * rope.inv_freq[thread], &s, &c);
    of[thread] = make_float2(c * rope.factor, s * rope.factor);
  }
};

// `bias`, of the head, may be null.
template <int Dim> __device__ __forceinline__ void head_load(const bf16 *from, const float *bias, float (&x)[Dim / 32]) {
  const int col = threadIdx.x % 32 * (Dim / 32);
  __nv_bfloat162 loaded[Dim / 64];
  if constexpr (Dim == 128) *(uint2 *)loaded = *(const uint2 *)(from + col);
  else *(uint32_t *)loaded = *(const uint32_t *)(from + col);
#pragma unroll
  for (int i = 0; i < Dim / 32; i++) x[i] = __bfloat162float(i % 2 ? loaded[i / 2].y : loaded[i / 2].x) + (bias ? bias[col + i] : 0);
}

// Of queries and keys: the norm of heads, if there is one, and the turn.
template <int Dim>
__device__ __forceinline__ void head_turn(const float *norm, float eps, bool interleaved, const HeadTurns<Dim> &turns, float (&x)[Dim / 32]) {
  const int lane = threadIdx.x % 32, col = lane * (Dim / 32);
  if (norm) {
    float square = 0;
#pragma unroll
    for (int i = 0; i < Dim / 32; i++) square += x[i] * x[i];
    const float factor = rsqrtf(warp_sum(square) / Dim + eps);
#pragma unroll
    for (int i = 0; i < Dim / 32; i++) x[i] = norm[col + i] * (x[i] * factor);
  }
  float other[Dim / 32];
#pragma unroll
  for (int i = 0; i < Dim / 32; i++) other[i] = interleaved ? x[i ^ 1] : __shfl_xor_sync(~0u, x[i], 16);
#pragma unroll
  for (int i = 0; i < Dim / 32; i++) {
    const bool second = interleaved ? i % 2 : lane >= 16;
    const float2 turn = turns.of[interleaved ? (col + i) / 2 : (col + i) % (Dim / 2)];
    x[i] = x[i] * turn.x + (second ? other[i] : -other[i]) * turn.y;
  }
}

template <int Dim> __device__ __forceinline__ void head_store(void *to, const float (&x)[Dim / 32]) {
  if constexpr (Dim == 128) *(uint2 *)to = make_uint2(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]));
  else *(uint32_t *)to = pack_bf16(x[0], x[1]);
}

// N (2 or 4) columns from `col` on; `inverse`: of the scale of their block of 128, for e4m3.
template <int N>
__device__ __forceinline__ void put_columns(const HeadsOut &to, int row, int col, const float (&v)[N], float inverse) {
  static_assert(N == 2 || N == 4, "two or four columns");
  uint8_t *at;
  if (to.rows) {
    at = (uint8_t *)(to.rows + (size_t)row * to.ld + col);
  } else if (to.records.fp8) {
    uint8_t *record = to.records.data + (size_t)(col / 256) * to.records.mp * 264;
    at = record + ((size_t)(col / 128 % 2) * to.records.mp + row) * 128 + (((col % 128 >> 4) ^ (row & 7)) << 4) + (col & 15);
    const uint32_t low = pack_e4m3(v[0] * inverse, v[1] * inverse);
    if constexpr (N == 4) {
      const uint32_t high = pack_e4m3(v[2] * inverse, v[3] * inverse);
      *(uint32_t *)at = low | high << 16;
    } else {
      *(uint16_t *)at = (uint16_t)low;
    }
    return;
  } else {
    uint8_t *record = to.records.data + (size_t)(col / 128) * to.records.mp * 256;
    at = record + ((size_t)(col / 64 % 2) * to.records.mp + row) * 128 + (((col % 64 / 8) ^ (row & 7)) << 4) + (col & 7) * 2;
  }
  if constexpr (N == 4) *(uint2 *)at = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
  else *(uint32_t *)at = pack_bf16(v[0], v[1]);
}

__device__ __forceinline__ void put_scale(const HeadsOut &to, int row, int col, float scale) {
  uint8_t *record = to.records.data + (size_t)(col / 256) * to.records.mp * 264;
  *(float *)(record + (size_t)to.records.mp * 256 + ((size_t)(col / 128 % 2) * to.records.mp + row) * 4) = scale;
}

// Zeros in the columns [from, to.k) of a row: behind the last head, where the weights are padded. `thread` of `threads`.
__device__ __forceinline__ void clear_columns(const HeadsOut &to, int row, int from, int thread, int threads) {
  const float zero[4] = {0, 0, 0, 0};
  for (int col = from + thread * 4; col < to.k; col += threads * 4) {
    put_columns(to, row, col, zero, 1);
    if (to.records.fp8 && !to.rows && col % 128 == 0) put_scale(to, row, col, 1);
  }
}

} // namespace mob
