// The head's best logits on the emulated device: tools/gpu/check_best.cuh's check with small shapes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>

#include "engine/cuda/kernels.h"
extern "C" {
#include <cmocka.h>
}

using namespace mob;

static cudaStream_t stream;
static LinearScratch scratch;
static std::mt19937_64 rng(20251122);

#include "tests/unit/cuda/gpu_check.h"

struct Source { // a matrix as the checkpoint has it
  int64_t n, k;
  bf16 *values;
};
static Source make_source(int64_t n, int64_t k, bool) { return {n, k, normal_bf16((size_t)(n * k), 0.02f)}; }
static void free_source(Source &s) { cudaFree(s.values); }
static Matrix pack(const Source &s, bool, int count) {
  Matrix m = {nullptr, 0, (int)s.n, (int)((s.k + 127) / 128 * 128), Weights::B16};
  m.stride = (size_t)((s.n + 63) / 64) * column_pairs(m) * kPairBytes;
  CUDA(cudaMalloc(&m.data, m.stride * count));
  CUDA(cudaMemset(m.data, 0, m.stride * count));
  return m;
}
static void pack_into(const Source &s, const Matrix &m, int index, bool) {
  const PackSource from = {s.values, 1, s.n, s.k, 0, 0, nullptr, 0, 0, 0, 0, 0, nullptr};
  pack_tiles(from, m.data + m.stride * index, m.k, m.kind, 0);
}

#include "tools/gpu/check_best.cuh"

static void test_best(void **) {
  for (int m : {1, 16, 17, 33, 64, 65, 128}) check_best(m, 700, 384);
  check_best(100, 130, 200); // fewer outputs than the CTAs' tiles have
}

static int set_up(void **) {
  CUDA(cudaStreamCreate(&stream));
  linear_prepare();
  scratch.sms = 3;
  scratch.partial = device<float>((size_t)scratch.sms * kPartialFloats);
  scratch.dealt = upload(std::vector<int>(2));
  return 0;
}

int main() {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_best)};
  return cmocka_run_group_tests(tests, set_up, nullptr);
}
