// The kernel lab: roof of the memory, then every variant at its true shapes, checked and timed in one run.
// `lab` prints one line a case: microseconds (median over graph replays, weights rotating through more than the L2), GB/s,
// share of the roof, and the relative L2 error against a scalar reference on the same quantised inputs.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cmath>
#include <cuda_fp8.h>
#include <vector>

#include "tools/gpu/linear_few.cuh"

using namespace mob;

#define CUDA(call)                                                                                 \
  do {                                                                                             \
    cudaError_t e_ = (call);                                                                       \
    if (e_ != cudaSuccess) {                                                                       \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));       \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

// ------------------------------------------------------------------------------------------- roof

__global__ void __launch_bounds__(512) read_plain(const uint4 *x, size_t n, uint32_t *out) {
  uint32_t s = 0;
  const size_t step = (size_t)gridDim.x * blockDim.x * 4;
  for (size_t i = (size_t)blockIdx.x * blockDim.x * 4 + threadIdx.x; i < n; i += step) {
#pragma unroll
    for (int j = 0; j < 4; j++) {
      const size_t at = i + (size_t)j * blockDim.x;
      if (at < n) {
        const uint4 v = __ldcs(&x[at]);
        s += v.x ^ v.y ^ v.z ^ v.w;
      }
    }
  }
  if (s == 0x12345678) *out = s;
}

__global__ void __launch_bounds__(64) read_bulk(const uint8_t *x, size_t n, int chunk, int stages, uint32_t *out) {
  extern __shared__ __align__(128) uint8_t smem[];
  uint64_t *full = (uint64_t *)(smem + (size_t)chunk * stages);
  if (threadIdx.x == 0) {
    for (int i = 0; i < stages; i++) mbar_init(&full[i], 1);
    mbar_init_fence();
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  const uint64_t once = policy_evict_first();
  const size_t total = n / chunk, c0 = total * blockIdx.x / gridDim.x, c1 = total * (blockIdx.x + 1) / gridDim.x;
  uint32_t s = 0;
  auto issue = [&](size_t i) {
    const int at = (int)((i - c0) % stages);
    mbar_arrive_expect(&full[at], chunk);
    bulk_load(smem + (size_t)at * chunk, x + i * chunk, chunk, &full[at], once);
  };
  for (size_t i = c0; i < c1 && i < c0 + stages; i++) issue(i);
  for (size_t i = c0; i < c1; i++) {
    const int at = (int)((i - c0) % stages);
    mbar_wait(&full[at], (uint32_t)((i - c0) / stages & 1));
    s += *(volatile uint32_t *)(smem + (size_t)at * chunk);
    if (i + stages < c1) issue(i + stages);
  }
  if (s == 0x12345678) *out = s;
}

template <class F> static double median_us(F f, int n) {
  cudaEvent_t a, b;
  CUDA(cudaEventCreate(&a));
  CUDA(cudaEventCreate(&b));
  std::vector<float> t;
  for (int i = 0; i < n + 3; i++) {
    CUDA(cudaEventRecord(a));
    f();
    CUDA(cudaEventRecord(b));
    CUDA(cudaEventSynchronize(b));
    float ms;
    CUDA(cudaEventElapsedTime(&ms, a, b));
    if (i >= 3) t.push_back(ms * 1000);
  }
  std::sort(t.begin(), t.end());
  return t[t.size() / 2];
}

static int sms;
static double roof; // bytes per second

static void measure_roof() {
  const size_t n = (size_t)8 << 30;
  uint8_t *x;
  uint32_t *out;
  CUDA(cudaMalloc(&x, n));
  CUDA(cudaMalloc(&out, 4));
  CUDA(cudaMemset(x, 0x5a, n));
  double plain = 0, bulk = 0;
  for (int per : {2, 4, 8}) {
    const double us = median_us([&] { read_plain<<<sms * per, 512>>>((const uint4 *)x, n / 16, out); }, 7);
    plain = std::max(plain, n / us * 1e6);
  }
  CUDA(cudaFuncSetAttribute(read_bulk, cudaFuncAttributeMaxDynamicSharedMemorySize, 220 * 1024));
  for (int chunk : {8192, 16384})
    for (int stages : {6, 12}) {
      const int bytes = chunk * stages + stages * 8;
      if (bytes > 220 * 1024) continue;
      const double us = median_us([&] { read_bulk<<<sms, 64, bytes>>>(x, n, chunk, stages, out); }, 7);
      printf("roof: bulk %5d x %2d: %.0f GB/s\n", chunk, stages, n / us / 1e3);
      bulk = std::max(bulk, n / us * 1e6);
    }
  CUDA(cudaGetLastError());
  roof = std::max(plain, bulk);
  printf("roof: plain %.0f GB/s, bulk %.0f GB/s\n", plain / 1e9, bulk / 1e9);
  CUDA(cudaFree(x));
  CUDA(cudaFree(out));
}

// ------------------------------------------------------------------------- values by logical index

__host__ __device__ inline uint32_t mix(uint64_t x) {
  x ^= x >> 33; x *= 0xff51afd7ed558ccdull; x ^= x >> 33; x *= 0xc4ceb9fe1a85ec53ull; x ^= x >> 33;
  return (uint32_t)x;
}
__device__ inline float normal(uint64_t key) {
  const float u = (mix(key * 2 + 1) + 1.0f) * 2.3283064e-10f, v = mix(key * 2 + 2) * 2.3283064e-10f;
  return sqrtf(-2 * logf(u)) * cospif(2 * v);
}
__device__ inline uint8_t weight_value(uint64_t seed, int64_t n, int64_t k, int64_t cols) {
  return __nv_fp8_e4m3(normal(seed * 0x9E3779B97F4A7C15ull + (uint64_t)(n * cols + k)) * 64.0f).__x;
}
__device__ inline uint8_t act_value(uint64_t seed, int m, int64_t k) {
  return __nv_fp8_e4m3(normal(seed * 77777 + (uint64_t)m * 1000003 + (uint64_t)k) * 100.0f).__x;
}
__host__ __device__ inline float weight_scale(uint64_t seed, int64_t nb, int64_t kb) {
  return (0.5f + (mix(seed * 31 + nb * 4099 + kb) & 1023) / 1024.0f) / 4096.0f;
}
__host__ __device__ inline float act_scale(uint64_t seed, int m, int64_t kb) {
  return (0.5f + (mix(seed * 17 + m * 7919 + kb) & 1023) / 1024.0f) / 100.0f;
}

__global__ void fill_weights(uint8_t *w, uint64_t seed, int64_t n, int64_t k, bool fast) {
  const int64_t padded = (n + 63) / 64 * 64;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < padded * k; i += (int64_t)gridDim.x * blockDim.x) {
    const int64_t r = i / k, c = i % k;
    const uint8_t v = r >= n ? 0 : fast ? (uint8_t)(mix(i) & 0x7e) : weight_value(seed, r, c, k);
    w[tile_offset(r, c, k)] = v;
    if (r % 64 == 0 && c % 128 == 0) *(float *)(w + tile_offset(r, c, k) + kTileBytes) = weight_scale(seed, r / 128, c / 128);
  }
}
__global__ void fill_acts(uint8_t *x, uint64_t seed, int m, int64_t k, int padded) {
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < padded * k; i += (int64_t)gridDim.x * blockDim.x) {
    const int t = (int)(i / k);
    const int64_t c = i % k;
    x[record_offset(t, c, padded)] = t < m ? act_value(seed, t, c) : 0;
    if (c % 128 == 0) *(float *)(x + c / 128 * record_bytes(padded) + padded * 128 + t * 4) = t < m ? act_scale(seed, t, c / 128) : 0;
  }
}
__device__ inline float e4m3(uint8_t v) { __nv_fp8_e4m3 f; f.__x = v; return (float)f; }
__global__ void reference(float *y, uint64_t wseed, uint64_t xseed, int m, int64_t n, int64_t k) {
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < m * n; i += (int64_t)gridDim.x * blockDim.x) {
    const int t = (int)(i / n);
    const int64_t r = i % n;
    double total = 0;
    for (int64_t kb = 0; kb < k / 128; kb++) {
      float s = 0;
      for (int64_t c = kb * 128; c < kb * 128 + 128; c++) s += e4m3(weight_value(wseed, r, c, k)) * e4m3(act_value(xseed, t, c));
      total += (double)s * weight_scale(wseed, r / 128, kb) * act_scale(xseed, t, kb);
    }
    y[i] = (float)total;
  }
}

static double relative_l2(const std::vector<__nv_bfloat16> &y, const std::vector<float> &ref) {
  double d = 0, r = 0;
  for (size_t i = 0; i < ref.size(); i++) {
    const double v = __bfloat162float(y[i]);
    d += (v - ref[i]) * (v - ref[i]);
    r += (double)ref[i] * ref[i];
  }
  return std::sqrt(d / r);
}

// -------------------------------------------------------------------------------- few-token linear

static int variant; // 1: leaves partial sums unsummed, to see what summing costs

static void launch_few(const LinearFew &p, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  cudaLaunchAttribute dependent = {};
  dependent.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  dependent.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &dependent;
  config.numAttrs = 1;
  config.gridDim = sms;
  config.blockDim = (kFewConsumers + 1) * 32;
  config.stream = stream;
  if (p.m <= 8) {
    config.dynamicSmemBytes = LinearFewShared<1>::kBytes;
    CUDA(variant == 1 ? cudaLaunchKernelEx(&config, linear_few_kernel<1, 1>, p) : cudaLaunchKernelEx(&config, linear_few_kernel<1>, p));
  } else {
    config.dynamicSmemBytes = LinearFewShared<2>::kBytes;
    CUDA(cudaLaunchKernelEx(&config, linear_few_kernel<2>, p));
  }
}

// `experts` > 0: that many active experts of `experts` * 2 resident ones.
static void bench_few(const char *name, int m, int64_t n, int64_t k, int experts) {
  const int padded = (m + 7) / 8 * 8, pool = experts ? experts * 2 : 1, active = experts ? experts : 1;
  const size_t one = (size_t)((n + 63) / 64) * (k / 128) * kTilePitch;
  const size_t touched = one * active;
  const int copies = (int)std::max<size_t>(2, std::min<size_t>(40, ((size_t)400 << 20) / touched + 1));
  std::vector<uint8_t *> w(copies);
  for (int i = 0; i < copies; i++) {
    CUDA(cudaMalloc(&w[i], one * pool));
    for (int e = 0; e < pool; e++)
      fill_weights<<<sms * 4, 256>>>(w[i] + one * e, 100 + e, n, k, i > 0);
  }
  uint8_t *x;
  __nv_bfloat16 *y;
  float4 *partial;
  float *ref;
  int *ids, *count;
  CUDA(cudaMalloc(&x, k / 128 * record_bytes(padded)));
  CUDA(cudaMalloc(&y, (size_t)active * m * n * 2));
  CUDA(cudaMemset(y, 0xff, (size_t)active * m * n * 2));
  CUDA(cudaMalloc(&partial, (size_t)sms * 64 * padded * 4));
  CUDA(cudaMemset(partial, 0xff, (size_t)sms * 64 * padded * 4));
  CUDA(cudaMalloc(&ref, (size_t)m * n * 4));
  CUDA(cudaMalloc(&ids, active * 4));
  CUDA(cudaMalloc(&count, 4));
  std::vector<int> host_ids(active);
  for (int i = 0; i < active; i++) host_ids[i] = experts ? i * 2 + 1 : 0;
  CUDA(cudaMemcpy(ids, host_ids.data(), active * 4, cudaMemcpyHostToDevice));
  CUDA(cudaMemcpy(count, &active, 4, cudaMemcpyHostToDevice));
  fill_acts<<<sms * 2, 256>>>(x, 5, m, k, padded);
  LinearFew p = {w[0], one, experts ? ids : nullptr, experts ? count : nullptr, x, 0, y, partial, m, (int)n, (int)k};
  cudaStream_t stream;
  CUDA(cudaStreamCreate(&stream));
  CUDA(cudaDeviceSynchronize());
  launch_few(p, stream);
  CUDA(cudaStreamSynchronize(stream));
  double error = 0;
  for (int e = 0; e < active; e += std::max(1, active - 1)) {
    reference<<<sms * 8, 128>>>(ref, 100 + (experts ? host_ids[e] : 0), 5, m, n, k);
    std::vector<__nv_bfloat16> hy((size_t)m * n);
    std::vector<float> hr((size_t)m * n);
    CUDA(cudaMemcpy(hy.data(), y + (size_t)e * m * n, hy.size() * 2, cudaMemcpyDeviceToHost));
    CUDA(cudaMemcpy(hr.data(), ref, hr.size() * 4, cudaMemcpyDeviceToHost));
    error = std::max(error, relative_l2(hy, hr));
  }
  const int chain = 40;
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < chain; i++) {
    p.w = w[i % copies];
    launch_few(p, stream);
  }
  CUDA(cudaStreamEndCapture(stream, &graph));
  CUDA(cudaGraphInstantiate(&exec, graph, 0));
  const double us = median_us([&] { CUDA(cudaGraphLaunch(exec, 0)); }, 15) / chain;
  const double bytes = (double)touched;
  printf("%-28s m %2d  %6lld x %6lld x %3d  %8.2f us  %6.0f GB/s  %5.1f %% of roof  floor %7.2f us  error %.1e %s\n", name, m,
         (long long)n, (long long)k, active, us, bytes / us / 1e3, 100 * bytes / us * 1e6 / roof, bytes / roof * 1e6, error,
         error < 3e-3 ? "ok" : "WRONG");
  fflush(stdout);
  CUDA(cudaGraphExecDestroy(exec));
  CUDA(cudaGraphDestroy(graph));
  CUDA(cudaStreamDestroy(stream));
  for (int i = 0; i < copies; i++) cudaFree(w[i]);
  cudaFree(x); cudaFree(y); cudaFree(partial); cudaFree(ref); cudaFree(ids); cudaFree(count);
}

// How fast the unpacking instruction is: conversions of two a clock and SM.
__global__ void convert_rate(uint32_t *out, long long *clocks) {
  uint32_t v[8];
  for (int i = 0; i < 8; i++) v[i] = threadIdx.x * 77 + i;
  __syncthreads();
  const long long t = clock64();
#pragma unroll 1
  for (int i = 0; i < 256; i++)
#pragma unroll
    for (int j = 0; j < 8; j++) v[j] = e4m3x2_to_half2((uint16_t)v[j]);
  __syncthreads();
  if (threadIdx.x == 0) *clocks = clock64() - t;
  uint32_t s = 0;
  for (int i = 0; i < 8; i++) s += v[i];
  if (s == 0x12345) *out = s;
}

int main() {
  {
    long long *clocks, host;
    uint32_t *out;
    CUDA(cudaMalloc(&clocks, 8));
    CUDA(cudaMalloc(&out, 4));
    convert_rate<<<1, 512>>>(out, clocks);
    CUDA(cudaMemcpy(&host, clocks, 8, cudaMemcpyDeviceToHost));
    printf("convert: %.1f e4m3 pairs a clock and SM\n", 512.0 * 256 * 8 / host);
  }
  cudaDeviceProp prop;
  CUDA(cudaGetDeviceProperties(&prop, 0));
  sms = prop.multiProcessorCount;
  printf("%s, %d SMs\n", prop.name, sms);
  measure_roof();
  CUDA(cudaFuncSetAttribute(linear_few_kernel<1>, cudaFuncAttributeMaxDynamicSharedMemorySize, LinearFewShared<1>::kBytes));
  CUDA(cudaFuncSetAttribute(linear_few_kernel<2>, cudaFuncAttributeMaxDynamicSharedMemorySize, LinearFewShared<2>::kBytes));
  CUDA(cudaFuncSetAttribute(linear_few_kernel<1, 1>, cudaFuncAttributeMaxDynamicSharedMemorySize, LinearFewShared<1>::kBytes));
  for (variant = 1; variant >= 0; variant--) {
    bench_few(variant ? "q_b tp8 (unsummed)" : "q_b tp8", 1, 3072, 1536, 0);
    bench_few(variant ? "qkv_a (unsummed)" : "qkv_a", 1, 2112, 7168, 0);
    bench_few(variant ? "whole blocks (unsummed)" : "whole blocks", 1, 8448, 1536, 0);
  }
  variant = 0;
  for (int m : {1, 8, 16}) {
    bench_few("qkv_a", m, 2112, 7168, 0);
    bench_few("q_b tp1", m, 24576, 1536, 0);
    bench_few("q_b tp4", m, 6144, 1536, 0);
    bench_few("q_b tp8", m, 3072, 1536, 0);
    bench_few("kv_b tp1", m, 32768, 512, 0);
    bench_few("o tp1", m, 7168, 16384, 0);
    bench_few("o tp4", m, 7168, 4096, 0);
    bench_few("o tp8", m, 7168, 2048, 0);
    bench_few("dense gate_up tp1", m, 36864, 7168, 0);
    bench_few("shared gate_up tp1", m, 4096, 7168, 0);
    bench_few("shared down tp1", m, 7168, 2048, 0);
    bench_few("experts gate_up tp1", m, 4096, 7168, m == 1 ? 9 : m == 8 ? 57 : 102);
    bench_few("experts down tp1", m, 7168, 2048, m == 1 ? 9 : m == 8 ? 57 : 102);
    bench_few("experts gate_up tp4", m, 1024, 7168, m == 1 ? 9 : m == 8 ? 57 : 102);
    bench_few("experts down tp4", m, 7168, 512, m == 1 ? 9 : m == 8 ? 57 : 102);
    bench_few("experts gate_up tp8", m, 512, 7168, m == 1 ? 9 : m == 8 ? 57 : 102);
    bench_few("experts down tp8", m, 7168, 256, m == 1 ? 9 : m == 8 ? 57 : 102);
  }
  CUDA(cudaDeviceSynchronize());
  return 0;
}
