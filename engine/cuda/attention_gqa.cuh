// What the grouped-query kernels share: a head's page in the cache, and how results leave as records.
#pragma once
#include "kernels.h"

namespace mob {

// Of each key head a page holds its 64 keys, then its 64 values, in boxes of 64 columns: one piece of memory.
template <int Dim> struct GqaPage {
  static constexpr int kBox = 8192, kBoxes = Dim / 64;
  static constexpr int kHalf = kBoxes * kBox, kBytes = 2 * kHalf; // keys; keys and values
};

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
    const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(v[0] * inverse, v[1] * inverse), __NV_SATFINITE, __NV_E4M3);
    if constexpr (N == 4) {
      const uint32_t high = __nv_cvt_float2_to_fp8x2(make_float2(v[2] * inverse, v[3] * inverse), __NV_SATFINITE, __NV_E4M3);
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
