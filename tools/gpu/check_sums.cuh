// What the tensor core makes of 128 products of e4m3 codes, bit by bit what the CPU's contract mode takes it for
// (engine/cpu/tensor_sums.h). Part of check.cu.
#pragma once
#include "engine/cuda/wgmma.cuh"

extern "C" float mob_tensor_sum(const uint8_t *a, const uint8_t *b);

// A block: 64 x 8 sums of a [64][128] and b [8][128], four instructions of 32 products each, as the linears issue them.
__global__ void __launch_bounds__(128) tensor_sums(const uint8_t *a, const uint8_t *b, float *out) {
  __shared__ __align__(1024) uint8_t sa[64 * 128], sb[8 * 128];
  a += (size_t)blockIdx.x * sizeof sa;
  b += (size_t)blockIdx.x * sizeof sb;
  out += blockIdx.x * 512;
  const auto swizzled = [](int i) { return i / 128 * 128 + (i % 128 / 16 ^ i / 128 % 8) * 16 + i % 16; };
  for (int i = threadIdx.x; i < (int)sizeof sa; i += 128) sa[swizzled(i)] = a[i];
  for (int i = threadIdx.x; i < (int)sizeof sb; i += 128) sb[swizzled(i)] = b[i];
  async_fence();
  __syncthreads();
  float sum[4] = {};
  keep_registers(sum);
  wgmma_fence();
  for (int k = 0; k < 4; k++) WgmmaF8<8>::run(sum, swizzled_operand(sa) + 2 * k, swizzled_operand(sb) + 2 * k, k > 0);
  wgmma_commit();
  wgmma_wait<0>();
  keep_registers(sum);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
  for (int i = 0; i < 4; i++) out[(row + i / 2 * 8) * 8 + column + i % 2] = sum[i];
}

static void check_tensor_sums() {
  const int blocks = 64;
  static const char *const kinds[] = {"normal values", "any codes", "three of four zero"};
  std::normal_distribution<float> normal_value(0, 120);
  for (int kind = 0; kind < 3; kind++) {
    const auto code = [&]() -> uint8_t {
      if (kind == 0) return __nv_fp8_e4m3(normal_value(rng)).__x;
      const uint8_t any = (uint8_t)rng();
      return (any & 0x7f) == 0x7f || (kind == 2 && rng() % 4) ? 0 : any;
    };
    std::vector<uint8_t> a((size_t)blocks * 64 * 128), b((size_t)blocks * 8 * 128);
    for (uint8_t &c : a) c = code();
    for (uint8_t &c : b) c = code();
    uint8_t *da = upload(a), *db = upload(b);
    float *out = device<float>((size_t)blocks * 512);
    tensor_sums<<<blocks, 128, 0, stream>>>(da, db, out);
    CUDA(cudaStreamSynchronize(stream));
    const std::vector<float> got = fetch(out, (size_t)blocks * 512);
    int differ = 0;
    for (int i = 0; i < blocks * 512; i++)
      differ += got[(size_t)i] != mob_tensor_sum(&a[(size_t)(i / 512 * 64 + i % 512 / 8) * 128], &b[(size_t)(i / 512 * 8 + i % 8) * 128]);
    report("e4m3 sums, bits", kinds[kind], differ, 0, 0, 0, 0);
    for (void *p : {(void *)da, (void *)db, (void *)out}) cudaFree(p);
  }
}
