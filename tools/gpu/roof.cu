#include "tools/gpu/roof.h"

#include <cstdint>
#include <cstdio>
#include <algorithm>
#include <cuda_runtime.h>

#include "engine/cuda/ptx.cuh"

namespace {

using namespace mob;

constexpr size_t kBytes = (size_t)8 << 30;
constexpr int kChunk = 16384, kChunks = 12, kRuns = 7;

__global__ void fill_any(uint64_t *x, size_t n) {
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
    x[i] = (i + 1) * 0x9e3779b97f4a7c15ull ^ i << 29;
}

__global__ void __launch_bounds__(256) read_plain(const uint4 *x, size_t n, uint32_t *out) {
  uint32_t s = 0;
  const size_t stride = (size_t)gridDim.x * 256;
  size_t i = (size_t)blockIdx.x * 256 + threadIdx.x;
  for (; i + 7 * stride < n; i += 8 * stride) {
    uint4 v[8];
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] = __ldcs(x + i + k * stride);
#pragma unroll
    for (int k = 0; k < 8; k++) s += v[k].x ^ v[k].y ^ v[k].z ^ v[k].w;
  }
  for (; i < n; i += stride) s += x[i].x;
  if (s == 0x12345678) *out = s;
}

__global__ void __launch_bounds__(64) read_copies(const uint8_t *x, size_t n, uint32_t *out) {
  extern __shared__ __align__(128) uint8_t smem[];
  uint64_t *full = (uint64_t *)(smem + kChunk * kChunks);
  if (threadIdx.x != 0) return;
  for (int i = 0; i < kChunks; i++) mbar_init(&full[i], 1);
  mbar_init_fence();
  const uint64_t once = policy_evict_first();
  const size_t total = n / kChunk, first = total * blockIdx.x / gridDim.x, last = total * (blockIdx.x + 1) / gridDim.x;
  uint32_t s = 0;
  auto issue = [&](size_t i) {
    const int at = (int)((i - first) % kChunks);
    mbar_arrive_expect(&full[at], kChunk);
    bulk_load(smem + at * kChunk, x + i * kChunk, kChunk, &full[at], once);
  };
  for (size_t i = first; i < last && i < first + kChunks; i++) issue(i);
  for (size_t i = first; i < last; i++) {
    const int at = (int)((i - first) % kChunks);
    mbar_wait(&full[at], (uint32_t)((i - first) / kChunks & 1));
    s += *(volatile uint32_t *)(smem + at * kChunk);
    if (i + kChunks < last) issue(i + kChunks);
  }
  if (s == 0x12345678) *out = s;
}

// The median of all runs but the first two, in bytes a second.
template <class F> double rate(F run) {
  cudaEvent_t from, to;
  cudaEventCreate(&from);
  cudaEventCreate(&to);
  float ms[kRuns];
  for (int i = 0; i < kRuns; i++) {
    cudaEventRecord(from);
    run();
    cudaEventRecord(to);
    cudaEventSynchronize(to);
    cudaEventElapsedTime(&ms[i], from, to);
  }
  cudaEventDestroy(from);
  cudaEventDestroy(to);
  std::sort(ms + 2, ms + kRuns);
  return (double)kBytes / ms[2 + (kRuns - 2) / 2] * 1e3;
}

} // namespace

int measure_read_roof(int device, read_roof_t *out) {
  uint8_t *x = nullptr;
  uint32_t *sink = nullptr;
  cudaDeviceProp properties;
  cudaSetDevice(device);
  cudaGetDeviceProperties(&properties, device);
  snprintf(out->device, sizeof out->device, "%s", properties.name);
  cudaMalloc(&x, kBytes);
  cudaMalloc(&sink, sizeof *sink);
  if (x && sink) {
    fill_any<<<4096, 256>>>((uint64_t *)x, kBytes / 8);
    const int sms = properties.multiProcessorCount, shared = kChunk * kChunks + 128;
    cudaFuncSetAttribute(read_copies, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    out->plain = rate([&] { read_plain<<<sms * 8, 256>>>((const uint4 *)x, kBytes / 16, sink); });
    out->bulk = rate([&] { read_copies<<<sms, 64, shared>>>(x, kBytes, sink); });
    out->best = std::max(out->plain, out->bulk);
  }
  cudaFree(x);
  cudaFree(sink);
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess && out->best > 0) return 0;
  fprintf(stderr, "reading memory of GPU %d: %s\n", device, cudaGetErrorString(error));
  return -1;
}
