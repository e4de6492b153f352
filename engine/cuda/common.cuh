// What all kernels share: bf16 words, activation records of both kinds, launches with programmatic dependence.
#pragma once
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "engine/cuda/ptx.cuh"
#include "tiles.cuh"

namespace mob {

using bf16 = __nv_bfloat16;

constexpr float kE4m3Max = 448.0f;

// Rows of activations as the linear kernels read them: records of tiles.cuh.
struct Records {
  uint8_t *data;
  int mp;   // rows, a multiple of 8
  int fp8;
};

__host__ __device__ inline size_t record_bytes(bool fp8, int64_t mp) { return (size_t)mp * (fp8 ? 264 : 256); }
// k: columns, padded to whole pairs (256 e4m3, 128 bf16)
__host__ __device__ inline size_t records_bytes(bool fp8, int64_t mp, int64_t k) {
  return (size_t)(k / (fp8 ? 256 : 128)) * record_bytes(fp8, mp);
}

__device__ __forceinline__ uint32_t pack_bf16(float a, float b) {
  const __nv_bfloat162 v = __floats2bfloat162_rn(a, b);
  return *(const uint32_t *)&v;
}
__device__ __forceinline__ void unpack_bf16(uint4 v, float out[8]) {
  const uint32_t w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    out[2 * i] = __uint_as_float(w[i] << 16);
    out[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
  }
}
__device__ __forceinline__ uint4 pack_bf16x8(const float v[8]) {
  return make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}
__device__ __forceinline__ float round_bf16(float v) { return __bfloat162float(__float2bfloat16(v)); }
__device__ __forceinline__ uint32_t pack_e4m3(float a, float b) { return __nv_cvt_float2_to_fp8x2(make_float2(a, b), __NV_SATFINITE, __NV_E4M3); }
__device__ __forceinline__ uint2 pack_e4m3x8(const float v[8], float inverse) {
  uint32_t w[4];
#pragma unroll
  for (int i = 0; i < 4; i++) w[i] = pack_e4m3(v[2 * i] * inverse, v[2 * i + 1] * inverse);
  return make_uint2(w[0] | w[1] << 16, w[2] | w[3] << 16);
}

// silu(gate) * up
__device__ __forceinline__ float swiglu(float gate, float up) { return gate / (1.0f + __expf(-gate)) * up; }

// Scale of 128 values whose largest magnitude is `amax`: engine convention max(amax, 1e-10) / 448, a power of two with ue8m0.
__device__ __forceinline__ float quant_scale(float amax, bool ue8m0) {
  float scale = fmaxf(amax, 1e-10f) / kE4m3Max;
  if (ue8m0) {
    const uint32_t bits = __float_as_uint(scale);
    scale = __uint_as_float((bits + 0x7fffff) & 0x7f800000);
  }
  return scale;
}

// Where a row's columns lie in records.
struct RecordRow {
  uint8_t *data;
  size_t pair_bytes;   // from a pair to the next
  uint8_t *scales;
  size_t pair_scales;  // bytes from a pair's scales to the next one's
  int rows, row;       // rows between a pair's two tiles; this one
  int fp8;
};

__device__ __forceinline__ RecordRow record_row(const Records &r, int row) {
  const size_t bytes = record_bytes(r.fp8, r.mp);
  return {r.data, bytes, r.data + (size_t)r.mp * 256, bytes, r.mp, row, r.fp8};
}

// Where a row's 16-byte chunk lies (0 to 7) in the first or the second tile of a pair of `rows` rows each.
__device__ __forceinline__ uint8_t *record_chunk(uint8_t *pair, int second, int rows, int row, int chunk) {
  return pair + ((size_t)second * rows + row) * 128 + ((chunk ^ (row & 7)) << 4);
}

// Eight columns (col % 8 == 0) of a row into records: `put(address, word)` stores words of 4 bytes (scales), 8 (e4m3) and 16 (bf16), and
// knows where else. All 16 lanes of a half-warp hold the 128 columns of a block, in order; every lane of the warp must call this (fp8
// shuffles), with `store` false where there is no such row or column. Values of columns at or behind the matrix's own must be 0.
template <class Put>
__device__ __forceinline__ void put_record_by(const RecordRow &to, int col, const float v[8], bool ue8m0, bool store, const Put &put) {
  if (to.fp8) {
    float amax = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) amax = fmaxf(amax, fabsf(v[i]));
#pragma unroll
    for (int s = 8; s; s >>= 1) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, s));
    if (!store) return;
    const float scale = quant_scale(amax, ue8m0);
    const int c = col % 128, second = col / 128 % 2;
    const uint2 word = pack_e4m3x8(v, 1.0f / scale);
    put(record_chunk(to.data + col / 256 * to.pair_bytes, second, to.rows, to.row, c >> 4) + (c & 15), word);
    if (c == 0) put(to.scales + col / 256 * to.pair_scales + ((size_t)second * to.rows + to.row) * 4, scale);
  } else if (store) {
    const uint4 word = pack_bf16x8(v);
    put(record_chunk(to.data + col / 128 * to.pair_bytes, col / 64 % 2, to.rows, to.row, col % 64 / 8), word);
  }
}
__device__ __forceinline__ void put_record(const RecordRow &to, int col, const float v[8], bool ue8m0, bool store = true) {
  put_record_by(to, col, v, ue8m0, store, [](uint8_t *at, auto word) { *(decltype(word) *)at = word; });
}
__device__ __forceinline__ void put_record(const Records &to, int row, int col, const float v[8], bool ue8m0, bool store = true) {
  put_record(record_row(to, row), col, v, ue8m0, store);
}

// Word i of lane k of each four lanes to word k of lane i.
__device__ __forceinline__ void turn_words(uint32_t (&v)[4]) {
  const bool odd = threadIdx.x & 1, high = threadIdx.x & 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(~0u, odd ? v[i] : v[i + 1], 1);
    if (odd) v[i] = got;
    else v[i + 1] = got;
  }
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const uint32_t got = __shfl_xor_sync(~0u, high ? v[i] : v[i + 2], 2);
    if (high) v[i] = got;
    else v[i + 2] = got;
  }
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int s = 16; s; s >>= 1) v += __shfl_xor_sync(~0u, v, s);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int s = 16; s; s >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, s));
  return v;
}
// Sum over a block of whole warps, the same order every time; `scratch` [33] is free again after the next barrier.
__device__ __forceinline__ float block_sum(float v, float *scratch) {
  v = warp_sum(v);
  const int warp = threadIdx.x / 32, warps = blockDim.x / 32;
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[warp] = v;
  __syncthreads();
  return warp_sum((int)threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : 0.0f);
}

// For measurements (MOB_CUDA_PROFILE): called before and after every launch. `launch_label` names what is launched next.
extern void (*launch_hook)(const void *kernel, cudaStream_t stream, bool before);
extern thread_local const char *launch_label;

// What a launch says: it may begin while the kernel before it drains, and its CTAs run in clusters of `cluster` beside each other.
struct ClusterLaunch {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute attributes[2] = {};
  ClusterLaunch(int cluster, dim3 grid, dim3 block, size_t smem, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = cluster;
    attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.attrs = attributes;
    config.numAttrs = cluster > 1 ? 2 : 1;
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = smem;
    config.stream = stream;
  }
  ClusterLaunch(const ClusterLaunch &) = delete;
};

// Every kernel calls depend_wait() before it reads or writes anything that an earlier kernel touches.
template <class... A, class... B>
inline cudaError_t launch_clusters(int cluster, void (*kernel)(A...), dim3 grid, dim3 block, size_t smem, cudaStream_t stream, B... args) {
  ClusterLaunch launch(cluster, grid, block, smem, stream);
  if (launch_hook) launch_hook((const void *)kernel, stream, true);
  const cudaError_t error = cudaLaunchKernelEx(&launch.config, kernel, A(args)...);
  if (launch_hook) launch_hook((const void *)kernel, stream, false);
  return error;
}
template <class... A, class... B>
inline cudaError_t launch(void (*kernel)(A...), dim3 grid, dim3 block, size_t smem, cudaStream_t stream, B... args) {
  return launch_clusters(1, kernel, grid, block, smem, stream, args...);
}

} // namespace mob
