// Greedy sampling: the largest logit, the smaller id among equals, NaN never.
#include "kernels.h"

namespace mob {
namespace {

constexpr int kParts = 32;

// Orders as the floats do, then by falling id.
__device__ __forceinline__ unsigned long long key_of(float v, int id) {
  const uint32_t bits = __float_as_uint(v);
  const uint32_t ordered = v != v ? 0 : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (unsigned long long)ordered << 32 | (uint32_t)~id;
}

__device__ __forceinline__ unsigned long long warp_best(unsigned long long v) {
#pragma unroll
  for (int s = 16; s; s >>= 1) {
    const unsigned long long o = __shfl_xor_sync(~0u, v, s);
    v = o > v ? o : v;
  }
  return v;
}

__global__ void __launch_bounds__(256) best_kernel(const float *logits, int vocab, int ld, unsigned long long *best) {
  __shared__ unsigned long long warps[8];
  depend_launch();
  depend_wait();
  const int row = blockIdx.y, part = blockIdx.x;
  const int v0 = (int)((int64_t)vocab * part / kParts), v1 = (int)((int64_t)vocab * (part + 1) / kParts);
  unsigned long long b = 0;
  for (int i = v0 + threadIdx.x; i < v1; i += 256) {
    const unsigned long long key = key_of(logits[(size_t)row * ld + i], i);
    b = key > b ? key : b;
  }
  b = warp_best(b);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = b;
  __syncthreads();
  if (threadIdx.x < 32) {
    b = warp_best(threadIdx.x < 8 ? warps[threadIdx.x] : 0);
    if (threadIdx.x == 0) best[(size_t)row * kParts + part] = b;
  }
}

__global__ void __launch_bounds__(32) pick_kernel(const unsigned long long *best, const int *slots, int *ids, int *last_token) {
  depend_launch();
  depend_wait();
  const int row = blockIdx.x;
  const unsigned long long b = warp_best(best[(size_t)row * kParts + threadIdx.x]);
  if (threadIdx.x != 0) return;
  const int id = (int)~(uint32_t)b;
  ids[row] = id;
  if (slots[row] >= 0) last_token[slots[row]] = id;
}

} // namespace

void sample_greedy(const float *logits, int vocab, int ld, unsigned long long *best, const int *slots, int *ids, int *last_token,
                   int rows, cudaStream_t stream) {
  launch(best_kernel, dim3(kParts, rows), 256, 0, stream, logits, vocab, ld, best);
  launch(pick_kernel, rows, 32, 0, stream, best, slots, ids, last_token);
}

} // namespace mob
