// What the kernels of sampling share: the order of logits, the random numbers.
#pragma once
#include "common.cuh"
#include "engine/cuda/sampling.h"

namespace mob {

using Key = unsigned long long;

constexpr uint32_t kInPrompt = 1u << 31; // of a token's count; the bits below: times in the output

// Orders as the floats do (-0 as 0, NaN lowest).
__device__ __forceinline__ uint32_t ordered_of(float v) {
  const uint32_t bits = __float_as_uint(v + 0.0f);
  return v != v ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float value_of(uint32_t ordered) {
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}
// Then by falling id.
__device__ __forceinline__ Key key_of(float v, int id) { return (Key)ordered_of(v) << 32 | (uint32_t)~id; }
__device__ __forceinline__ float key_value(Key key) { return value_of((uint32_t)(key >> 32)); }
__device__ __forceinline__ int key_id(Key key) { return (int)~(uint32_t)key; }

__device__ __forceinline__ Key warp_best(Key v) {
#pragma unroll
  for (int s = 16; s; s >>= 1) {
    const Key o = __shfl_xor_sync(~0u, v, s);
    v = o > v ? o : v;
  }
  return v;
}

// Philox 4x32-10 (Salmon et al., 2011): a uniform value in [0, 1) for (seed, index), as the CPU's sampler.
__device__ __forceinline__ double philox_uniform(unsigned long long seed, uint32_t index) {
  uint32_t c[4] = {index, 0, 0, 0}, k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (int round = 0; round < 10; round++) {
    const unsigned long long a = 0xD2511F53ull * c[0], b = 0xCD9E8D57ull * c[2];
    const uint32_t c0 = (uint32_t)(b >> 32) ^ c[1] ^ k[0], c2 = (uint32_t)(a >> 32) ^ c[3] ^ k[1];
    c[0] = c0;
    c[1] = (uint32_t)b;
    c[2] = c2;
    c[3] = (uint32_t)a;
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return (double)(((unsigned long long)c[0] << 32 | c[1]) >> 11) * 0x1p-53;
}

} // namespace mob
