// Weights on their way in: from rows as the checkpoint has them, or from the rule of dummy values, to the layouts of tiles.cuh.
//
// A thread takes a run of up to 16 columns of a row: 16 bytes of e4m3, so that an aligned run is one or two loads and stores.
#include <cmath>
#include <cuda_fp16.h>

#include "kernels.h"

namespace mob {
namespace {

enum { F32, BF16, F16, F8 }; // mob_dtype_t
constexpr int kRun = 16, kThreads = 256;

// Where packed elements go.
struct Sink {
  enum Kind { TILES_F8, TILES_B16, PLAIN, FLOAT } kind;
  uint8_t *dst;
  int64_t k; // tiles: column pairs; else elements from row to row
};

__device__ __forceinline__ float e4m3(uint8_t code) {
  const uint32_t h = e4m3x2_to_half2(code);
  return __half2float(__ushort_as_half((unsigned short)h));
}

__device__ __forceinline__ void store_values(const Sink &to, int64_t row, int64_t col, const float v[kRun], int n) {
  if (to.kind == Sink::FLOAT) {
#pragma unroll
    for (int j = 0; j < kRun; j++)
      if (j < n) ((float *)to.dst)[row * to.k + col + j] = v[j];
    return;
  }
  // The two halves of a run of bf16: 16 bytes each, whole pieces of the swizzle when the column is a multiple of 8.
  uint8_t *half[2];
  for (int i = 0; i < 2; i++)
    half[i] = to.kind == Sink::PLAIN ? to.dst + (row * to.k + col + i * 8) * 2 : to.dst + tile_offset(row, col * 2 + i * 16, to.k);
  if (n == kRun && col % 8 == 0 && (((uintptr_t)half[0] | (uintptr_t)half[1]) & 15) == 0) {
    *(uint4 *)half[0] = pack_bf16x8(v);
    *(uint4 *)half[1] = pack_bf16x8(v + 8);
    return;
  }
#pragma unroll
  for (int j = 0; j < kRun; j++) {
    if (j >= n) continue;
    uint8_t *at = to.kind == Sink::PLAIN ? to.dst + (row * to.k + col + j) * 2 : to.dst + tile_offset(row, (col + j) * 2, to.k);
    *(bf16 *)at = __float2bfloat16(v[j]);
  }
}

__device__ __forceinline__ void store_codes(const Sink &to, int64_t row, int64_t col, uint4 v, int n) {
  if (n == kRun && col % kRun == 0) {
    *(uint4 *)(to.dst + tile_offset(row, col, to.k)) = v;
    return;
  }
  const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int j = 0; j < kRun; j++)
    if (j < n) to.dst[tile_offset(row, col + j, to.k)] = (uint8_t)(w[j / 4] >> (j % 4 * 8));
}

// The scale of a tile is stored by whoever stores the tile's first element.
__device__ __forceinline__ void store_scale(const Sink &to, int64_t row, int64_t col, int n, float scale) {
  if (row % kTileRows) return;
  for (int64_t c = (col + 127) / 128 * 128; c < col + n; c += 128) *(float *)(to.dst + scale_offset(row, c, to.k)) = scale;
}

// ------------------------------------------------------------------------------------------ staged rows

__device__ __forceinline__ float scale_of(const PackSource &s, int64_t r, int64_t c) {
  if (!s.scales) return 1.0f;
  return s.scales[(s.scale_row0 + r) / s.block_rows * s.scale_ld + (s.scale_col0 + c) / s.block_cols];
}

// Any of four codes whose low seven bits are all set: adding 1 to them carries into the top bit only then.
__device__ __forceinline__ void check_codes(const PackSource &s, uint32_t codes) {
  if (((codes & 0x7f7f7f7f) + 0x01010101) & 0x80808080) *s.bad = s.tag + 1;
}

__device__ __forceinline__ uint4 load_codes(const PackSource &s, int64_t r, int64_t c, int n) {
  const uint8_t *p = (const uint8_t *)s.src + r * s.ld + c;
  uint32_t w[4] = {0, 0, 0, 0};
  if (n == kRun && ((uintptr_t)p & 15) == 0) {
    const uint4 v = *(const uint4 *)p;
    w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
  } else {
#pragma unroll
    for (int j = 0; j < kRun; j++)
      if (j < n) w[j / 4] |= (uint32_t)p[j] << (j % 4 * 8);
  }
  for (int i = 0; i < 4; i++) check_codes(s, w[i]);
  return make_uint4(w[0], w[1], w[2], w[3]);
}

__device__ __forceinline__ void load_values(const PackSource &s, int64_t r, int64_t c, int n, float v[kRun]) {
  const int64_t at = r * s.ld + c;
  if (s.dtype == F8) {
    const uint4 codes = load_codes(s, r, c, n);
    const uint32_t w[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int j = 0; j < kRun; j++)
      if (j < n) v[j] = e4m3((uint8_t)(w[j / 4] >> (j % 4 * 8))) * scale_of(s, r, c + j);
    return;
  }
  const bf16 *p = (const bf16 *)s.src + at;
  if (s.dtype == BF16 && n == kRun && ((uintptr_t)p & 15) == 0) {
    unpack_bf16(*(const uint4 *)p, v);
    unpack_bf16(*(const uint4 *)(p + 8), v + 8);
    return;
  }
#pragma unroll
  for (int j = 0; j < kRun; j++) {
    if (j >= n) continue;
    if (s.dtype == F32) v[j] = ((const float *)s.src)[at + j];
    else if (s.dtype == BF16) v[j] = __bfloat162float(p[j]);
    else v[j] = __half2float(((const __half *)s.src)[at + j]);
  }
}

__global__ void __launch_bounds__(kThreads) pack_kernel(const PackSource s, const Sink to) {
  depend_wait();
  const int64_t runs = (s.cols + kRun - 1) / kRun, step = (int64_t)gridDim.x * kThreads;
  for (int64_t i = (int64_t)blockIdx.x * kThreads + threadIdx.x; i < s.rows * runs; i += step) {
    const int64_t r = i / runs, c = i % runs * kRun, row = s.row0 + r, col = s.col0 + c;
    const int n = s.cols - c < kRun ? (int)(s.cols - c) : kRun;
    if (to.kind == Sink::TILES_F8) {
      store_codes(to, row, col, load_codes(s, r, c, n), n);
      store_scale(to, row, col, n, scale_of(s, r, c));
    } else {
      float v[kRun];
      load_values(s, r, c, n, v);
      store_values(to, row, col, v, n);
    }
  }
}

int grid_for(int64_t items, int threads, int most) {
  const int64_t blocks = (items + threads - 1) / threads;
  return (int)(blocks < most ? (blocks ? blocks : 1) : most);
}

void pack(const PackSource &s, const Sink &to, cudaStream_t stream) {
  PackSource from = s;
  if (from.ld == 0) from.ld = from.cols;
  launch(pack_kernel, grid_for(s.rows * ((s.cols + kRun - 1) / kRun), kThreads, 2112), kThreads, 0, stream, from, to);
}

Sink tiles(uint8_t *dst, int64_t k, Weights kind) {
  return kind == Weights::F8 ? Sink{Sink::TILES_F8, dst, k / 256} : Sink{Sink::TILES_B16, dst, k / 128};
}

// ------------------------------------------------------------------------------------------ dummy values

__device__ __forceinline__ uint64_t mix(uint64_t x) { // splitmix64, as engine/model/dummy.c
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}
__device__ __forceinline__ uint64_t group_bits(const DummySource &d, uint64_t group) {
  return mix(d.key + group * 0xd1342543de82ef95ull);
}

// Calls put(j, pick) for each element of a run, in order.
template <class F> __device__ __forceinline__ void picks(const DummySource &d, int64_t r, int64_t c, int n, F put) {
  const uint64_t index = (uint64_t)((d.from_row + r) * d.whole_cols + d.from_col + c);
  if (n == kRun && index % 4 == 0) {
#pragma unroll
    for (int g = 0; g < 4; g++) {
      const uint64_t bits = group_bits(d, index / 4 + g);
#pragma unroll
      for (int j = 0; j < 4; j++) put(g * 4 + j, (uint32_t)(bits >> (j * 16)) & 0xffff);
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < kRun; j++)
    if (j < n) put(j, (uint32_t)(group_bits(d, (index + j) / 4) >> ((index + j) % 4 * 16)) & 0xffff);
}

// The tables' lower halves, all negative, stand in shared memory: the upper ones are their mirror.
__device__ __forceinline__ uint32_t mirrored(uint32_t pick) { return pick & 0x8000 ? pick ^ 0xffff : pick; }
__device__ __forceinline__ uint8_t code_of(const uint8_t *table, uint32_t pick) {
  return table[mirrored(pick)] ^ (pick >> 8 & 0x80);
}
template <class T> __device__ __forceinline__ void load_table(T *to, const T *from) {
  for (int i = threadIdx.x; i < (int)(kDummyHalf * sizeof(T) / 16); i += blockDim.x) ((uint4 *)to)[i] = ((const uint4 *)from)[i];
  __syncthreads();
}

constexpr int kCodeThreads = 512, kValueThreads = 1024;

__global__ void __launch_bounds__(kCodeThreads) dummy_codes_kernel(const DummySource d, const Sink to) {
  __shared__ __align__(16) uint8_t table[kDummyHalf];
  depend_launch();
  load_table(table, d.codes); // which no kernel writes
  depend_wait();
  const int64_t runs = (d.cols + kRun - 1) / kRun, step = (int64_t)gridDim.x * kCodeThreads;
  for (int64_t i = (int64_t)blockIdx.x * kCodeThreads + threadIdx.x; i < d.rows * runs; i += step) {
    const int64_t r = i / runs, c = i % runs * kRun, row = d.row0 + r, col = d.col0 + c;
    const int n = d.cols - c < kRun ? (int)(d.cols - c) : kRun;
    uint32_t w[4] = {0, 0, 0, 0};
    picks(d, r, c, n, [&](int j, uint32_t pick) { w[j / 4] |= (uint32_t)code_of(table, pick) << (j % 4 * 8); });
    store_codes(to, row, col, make_uint4(w[0], w[1], w[2], w[3]), n);
    store_scale(to, row, col, n, d.scale);
  }
}

// A value as a tensor of that type would hold it.
__device__ __forceinline__ float rounded(float v, int dtype) {
  return dtype == BF16 ? __bfloat162float(__float2bfloat16(v)) : dtype == F16 ? __half2float(__float2half(v)) : v;
}

__global__ void __launch_bounds__(kValueThreads) dummy_values_kernel(const DummySource d, const Sink to) {
  DYNAMIC_SHARED_ALIGNED(16, float, quantiles);
  depend_launch();
  const bool constant = d.dtype != F8 && d.std != d.std;
  uint8_t *codes = (uint8_t *)quantiles;
  if (d.dtype == F8) load_table(codes, d.codes);
  else if (!constant) load_table(quantiles, d.quantile);
  depend_wait();
  const int64_t runs = (d.cols + kRun - 1) / kRun, step = (int64_t)gridDim.x * kValueThreads;
  for (int64_t i = (int64_t)blockIdx.x * kValueThreads + threadIdx.x; i < d.rows * runs; i += step) {
    const int64_t r = i / runs, c = i % runs * kRun;
    const int n = d.cols - c < kRun ? (int)(d.cols - c) : kRun;
    float v[kRun];
    if (constant) {
#pragma unroll
      for (int j = 0; j < kRun; j++) v[j] = rounded(d.constant, d.dtype);
    } else if (d.dtype == F8) {
      picks(d, r, c, n, [&](int j, uint32_t pick) { v[j] = e4m3(code_of(codes, pick)) * d.scale; });
    } else {
      picks(d, r, c, n, [&](int j, uint32_t pick) {
        const float q = quantiles[mirrored(pick)];
        v[j] = rounded(d.std * (pick & 0x8000 ? -q : q), d.dtype);
      });
    }
    store_values(to, d.row0 + r, d.col0 + c, v, n);
  }
}

void dummy(const DummySource &d, const Sink &to, cudaStream_t stream) {
  int device = 0, sms = 132;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device);
  const int64_t items = d.rows * ((d.cols + kRun - 1) / kRun);
  if (to.kind == Sink::TILES_F8) {
    launch(dummy_codes_kernel, grid_for(items, kCodeThreads, sms * 4), kCodeThreads, 0, stream, d, to);
    return;
  }
  const bool table = d.dtype != F8 && d.std == d.std;
  const size_t shared = table ? kDummyHalf * sizeof(float) : (size_t)kDummyHalf;
  cudaFuncSetAttribute(dummy_values_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(kDummyHalf * sizeof(float)));
  launch(dummy_values_kernel, grid_for(items, kValueThreads, sms), kValueThreads, shared, stream, d, to);
}

// ------------------------------------------------------------------------------------------ UK^T

// UK_h is rows [256 h, 256 h + 128) of kv_b, one 128 x 128 scale block high and four wide: its transpose keeps the scales. Its
// eight tiles of 64 rows x 128 columns stand in pairs, one below the other.
__global__ void pack_uk_kernel(const uint8_t *kv_b, uint8_t *uk, int heads) {
  depend_wait();
  const int64_t all = (int64_t)heads * 512 * 128, step = (int64_t)gridDim.x * blockDim.x;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += step) {
    const int64_t head = i / (512 * 128), c = i / 128 % 512, r = i % 128, tile = c / 64;
    uint8_t *pair = uk + (head * 4 + tile / 2) * kPairBytes;
    pair[tile % 2 * kTileBytes + c % 64 * 128 + (((r >> 4) ^ (c & 7)) << 4) + (r & 15)] = kv_b[tile_offset(head * 256 + r, c, 2)];
    if (c % 64 == 0 && r == 0) *(float *)(pair + kPairScales + tile % 2 * 4) = *(const float *)(kv_b + scale_offset(head * 256, c, 2));
  }
}

} // namespace

void pack_tiles(const PackSource &s, uint8_t *dst, int64_t k, Weights kind, cudaStream_t stream) { pack(s, tiles(dst, k, kind), stream); }
void pack_plain(const PackSource &s, bf16 *dst, int64_t ld, cudaStream_t stream) { pack(s, {Sink::PLAIN, (uint8_t *)dst, ld}, stream); }
void pack_float(const PackSource &s, float *dst, cudaStream_t stream) { pack(s, {Sink::FLOAT, (uint8_t *)dst, s.cols}, stream); }
void pack_uk(const uint8_t *kv_b, uint8_t *uk, int heads, cudaStream_t stream) {
  launch(pack_uk_kernel, grid_for((int64_t)heads * 512 * 128, kThreads, 2112), kThreads, 0, stream, kv_b, uk, heads);
}
void dummy_tiles(const DummySource &d, uint8_t *dst, int64_t k, Weights kind, cudaStream_t stream) { dummy(d, tiles(dst, k, kind), stream); }
void dummy_plain(const DummySource &d, bf16 *dst, int64_t ld, cudaStream_t stream) { dummy(d, {Sink::PLAIN, (uint8_t *)dst, ld}, stream); }
void dummy_float(const DummySource &d, float *dst, cudaStream_t stream) { dummy(d, {Sink::FLOAT, (uint8_t *)dst, d.cols}, stream); }

} // namespace mob
