// Weights on their way in: from rows as the checkpoint has them to the layouts of tiles.cuh, and dummy values.
#include <cmath>
#include <cuda_fp16.h>

#include "kernels.h"

namespace mob {
namespace {

enum { F32, BF16, F16, F8 }; // mob_dtype_t

__device__ __forceinline__ float e4m3(uint8_t code) {
  const uint32_t h = e4m3x2_to_half2(code);
  return __half2float(__ushort_as_half((unsigned short)h));
}

__device__ __forceinline__ float element(const PackSource &s, int64_t i) {
  switch (s.dtype) {
  case F32: return ((const float *)s.src)[i];
  case BF16: return __bfloat162float(((const bf16 *)s.src)[i]);
  case F16: return __half2float(((const __half *)s.src)[i]);
  default: return e4m3(((const uint8_t *)s.src)[i]);
  }
}

__device__ __forceinline__ float scale_of(const PackSource &s, int64_t r, int64_t c) {
  if (!s.scales) return 1.0f;
  return s.scales[(s.scale_row0 + r) / s.block_rows * s.scale_ld + (s.scale_col0 + c) / s.block_cols];
}

__device__ __forceinline__ void check_code(const PackSource &s, uint8_t code) {
  if ((code & 0x7f) == 0x7f) *s.bad = 1;
}

__global__ void pack_f8_kernel(const PackSource s, uint8_t *dst, int64_t pairs) {
  const uint8_t *src = (const uint8_t *)s.src;
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  if (s.cols % 16 == 0 && s.col0 % 16 == 0) {
    const int64_t chunks = s.cols / 16;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < s.rows * chunks; i += step) {
      const int64_t r = i / chunks, c = i % chunks * 16, row = s.row0 + r, col = s.col0 + c;
      const uint4 v = *(const uint4 *)(src + i * 16);
      const uint32_t w[4] = {v.x, v.y, v.z, v.w};
      for (int j = 0; j < 16; j++) check_code(s, (uint8_t)(w[j / 4] >> (j % 4 * 8)));
      *(uint4 *)(dst + tile_offset(row, col, pairs)) = v;
      if (row % kTileRows == 0 && col % 128 == 0) *(float *)(dst + scale_offset(row, col, pairs)) = scale_of(s, r, c);
    }
    return;
  }
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < s.rows * s.cols; i += step) {
    const int64_t r = i / s.cols, c = i % s.cols, row = s.row0 + r, col = s.col0 + c;
    check_code(s, src[i]);
    dst[tile_offset(row, col, pairs)] = src[i];
    if (row % kTileRows == 0 && col % 128 == 0) *(float *)(dst + scale_offset(row, col, pairs)) = scale_of(s, r, c);
  }
}

// bf16 tiles: 64 rows x 64 columns, the same bytes.
__global__ void pack_b16_kernel(const PackSource s, uint8_t *dst, int64_t pairs) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < s.rows * s.cols; i += step) {
    const int64_t r = i / s.cols, c = i % s.cols, row = s.row0 + r, col = s.col0 + c;
    if (s.dtype == F8) check_code(s, ((const uint8_t *)s.src)[i]);
    *(bf16 *)(dst + tile_offset(row, col * 2, pairs)) = __float2bfloat16(element(s, i) * scale_of(s, r, c));
  }
}

__global__ void pack_plain_kernel(const PackSource s, bf16 *dst, int64_t ld) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < s.rows * s.cols; i += step) {
    const int64_t r = i / s.cols, c = i % s.cols;
    if (s.dtype == F8) check_code(s, ((const uint8_t *)s.src)[i]);
    dst[(s.row0 + r) * ld + s.col0 + c] = __float2bfloat16(element(s, i) * scale_of(s, r, c));
  }
}

__global__ void pack_float_kernel(const PackSource s, float *dst) {
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < s.rows * s.cols; i += (int64_t)gridDim.x * blockDim.x)
    dst[s.row0 * s.cols + i] = element(s, i);
}

// UK_h is rows [256 h, 256 h + 128) of kv_b, one 128 x 128 scale block high and four wide: its transpose keeps the scales. Its
// eight tiles of 64 rows x 128 columns stand in pairs, one below the other.
__global__ void pack_uk_kernel(const uint8_t *kv_b, uint8_t *uk, int heads) {
  const int64_t all = (int64_t)heads * 512 * 128, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += step) {
    const int64_t head = i / (512 * 128), c = i / 128 % 512, r = i % 128, tile = c / 64;
    uint8_t *pair = uk + (head * 4 + tile / 2) * kPairBytes;
    pair[tile % 2 * kTileBytes + c % 64 * 128 + (((r >> 4) ^ (c & 7)) << 4) + (r & 15)] = kv_b[tile_offset(head * 256 + r, c, 2)];
    if (c % 64 == 0 && r == 0) *(float *)(pair + kPairScales + tile % 2 * 4) = *(const float *)(kv_b + scale_offset(head * 256, c, 2));
  }
}

__device__ __forceinline__ uint64_t mix(uint64_t x) { // splitmix64, as engine/model/dummy.c
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}

__global__ void fill_dummy_kernel(const DummySource d, void *dst, int dtype, int64_t rows, int64_t cols) {
  const int64_t step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < rows * cols; i += step) {
    const uint64_t index = (uint64_t)((d.row0 + i / cols) * d.cols_whole + d.col0 + i % cols);
    const uint64_t bits = mix(d.key + index / 4 * 0xd1342543de82ef95ull);
    const uint32_t pick = (uint32_t)(bits >> (index % 4 * 16)) & 0xffff;
    if (dtype == F8) {
      ((uint8_t *)dst)[i] = d.quantile_f8[pick];
      continue;
    }
    const float v = d.std == d.std ? d.std * d.quantile[pick] : d.constant;
    if (dtype == F32) ((float *)dst)[i] = v;
    else if (dtype == BF16) ((bf16 *)dst)[i] = __float2bfloat16(v);
    else ((__half *)dst)[i] = __float2half(v);
  }
}

int grid_for(int64_t items) {
  const int64_t blocks = (items + 255) / 256;
  return (int)(blocks < 2112 ? (blocks ? blocks : 1) : 2112);
}

} // namespace

void pack_tiles(const PackSource &s, uint8_t *dst, int64_t k, Weights kind, cudaStream_t stream) {
  if (kind == Weights::F8) pack_f8_kernel<<<grid_for(s.rows * s.cols / 16 + 1), 256, 0, stream>>>(s, dst, k / 256);
  else pack_b16_kernel<<<grid_for(s.rows * s.cols), 256, 0, stream>>>(s, dst, k / 128);
}
void pack_plain(const PackSource &s, bf16 *dst, int64_t ld, cudaStream_t stream) {
  pack_plain_kernel<<<grid_for(s.rows * s.cols), 256, 0, stream>>>(s, dst, ld);
}
void pack_float(const PackSource &s, float *dst, cudaStream_t stream) {
  pack_float_kernel<<<grid_for(s.rows * s.cols), 256, 0, stream>>>(s, dst);
}
void pack_uk(const uint8_t *kv_b, uint8_t *uk, int heads, cudaStream_t stream) {
  pack_uk_kernel<<<grid_for((int64_t)heads * 512 * 128), 256, 0, stream>>>(kv_b, uk, heads);
}
void fill_dummy(const DummySource &d, void *dst, int dtype, int64_t rows, int64_t cols, cudaStream_t stream) {
  fill_dummy_kernel<<<grid_for(rows * cols), 256, 0, stream>>>(d, dst, dtype, rows, cols);
}

} // namespace mob
