// What this GPU can do, measured: bytes read from memory, products of e4m3 and of bf16 a second. Part of check.cu.
#pragma once
#include "engine/cuda/wgmma.cuh"

static struct Roofs {
  double read, e4m3, bf16; // bytes a second, operations a second
} roofs;

__global__ void __launch_bounds__(64) read_bulk(const uint8_t *x, size_t n, uint32_t *out) {
  constexpr int kChunk = 16384, kCount = 12;
  extern __shared__ __align__(128) uint8_t smem[];
  uint64_t *full = (uint64_t *)(smem + kChunk * kCount);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kCount; i++) mbar_init(&full[i], 1);
    mbar_init_fence();
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const uint64_t once = policy_evict_first();
  const size_t total = n / kChunk, c0 = total * blockIdx.x / gridDim.x, c1 = total * (blockIdx.x + 1) / gridDim.x;
  uint32_t s = 0;
  auto issue = [&](size_t i) {
    const int at = (int)((i - c0) % kCount);
    mbar_arrive_expect(&full[at], kChunk);
    bulk_load(smem + at * kChunk, x + i * kChunk, kChunk, &full[at], once);
  };
  for (size_t i = c0; i < c1 && i < c0 + kCount; i++) issue(i);
  for (size_t i = c0; i < c1; i++) {
    const int at = (int)((i - c0) % kCount);
    mbar_wait(&full[at], (uint32_t)((i - c0) / kCount & 1));
    s += *(volatile uint32_t *)(smem + at * kChunk);
    if (i + kCount < c1) issue(i + kCount);
  }
  if (s == 0x12345678) *out = s;
}

// Two warpgroups multiply what lies in shared memory, 64 x 128 x 128 bytes of K at a time, each with sums of its own.
template <bool F8> __global__ void __launch_bounds__(256) multiply(const uint8_t *x, int times, float *out) {
  extern __shared__ __align__(1024) uint8_t operands[]; // two A of 8 KB, B of 16 KB
  for (int i = threadIdx.x; i < 2048; i += 256) ((uint4 *)operands)[i] = ((const uint4 *)x)[i];
  async_fence();
  __syncthreads();
  float sum[64] = {};
  const uint64_t a = swizzled_operand(operands + threadIdx.x / 128 * 8192), b = swizzled_operand(operands + 16384);
  for (int i = 0; i < times; i++) {
    keep_registers(sum);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if constexpr (F8) WgmmaF8<128>::run(sum, a + 2 * k, b + 2 * k, 1);
      else WgmmaB16<128>::run(sum, a + 2 * k, b + 2 * k, 1);
    }
    wgmma_commit();
    wgmma_wait<0>();
    keep_registers(sum);
  }
  float s = 0;
  for (float v : sum) s += v;
  if (s == 1.2345e-30f) *out = s;
}

template <bool F8> static double multiply_rate(const uint8_t *x, float *out) {
  constexpr int kTimes = 20000;
  const double us = time_us([&](int) { multiply<F8><<<2 * sms, 256, 32768 + 1024, stream>>>(x, kTimes, out); }, 1);
  return 2.0 * sms * 2 * kTimes * 2.0 * 64 * 128 * (F8 ? 128 : 64) / us * 1e6;
}

static void measure_roofs() {
  const size_t n = (size_t)8 << 30;
  uint8_t *x;
  CUDA(cudaMalloc(&x, n));
  random_e4m3<<<4096, 256>>>(x, n, 7);
  uint32_t *out = device<uint32_t>(1);
  CUDA(cudaFuncSetAttribute(read_bulk, cudaFuncAttributeMaxDynamicSharedMemorySize, 200 * 1024));
  const double us = time_us([&](int) { read_bulk<<<sms, 64, 16384 * 12 + 128, stream>>>(x, n, out); }, 1);
  roofs.read = n / us * 1e6;
  roofs.e4m3 = multiply_rate<true>(x, (float *)out);
  random_bf16<<<64, 256>>>((bf16 *)x, 16384, 8, 1);
  roofs.bf16 = multiply_rate<false>(x, (float *)out);
  printf("roofs: %.0f GB/s read (bulk copies over 8 GiB), %.0f TFLOP/s of e4m3, %.0f of bf16 (wgmma out of shared memory)\n", roofs.read / 1e9,
         roofs.e4m3 / 1e12, roofs.bf16 / 1e12);
  cudaFree(x);
  cudaFree(out);
}
