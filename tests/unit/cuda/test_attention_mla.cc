// Latent attention on the emulated device: tools/gpu/check_mla.cuh's checks with small shapes.
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
  uint8_t *codes;
  float *scales;
  int *bad;
};
static Source make_source(int64_t n, int64_t k, bool) {
  std::normal_distribution<float> value;
  std::uniform_real_distribution<float> scale(0.5f, 1.5f);
  std::vector<uint8_t> codes((size_t)(n * k));
  std::vector<float> scales((size_t)((n + 127) / 128 * ((k + 127) / 128)));
  for (uint8_t &c : codes) c = __nv_fp8_e4m3(value(rng) * 64.0f).__x;
  for (float &s : scales) s = scale(rng) / 4096.0f;
  return {n, k, upload(codes), upload(scales), upload(std::vector<int>{0})};
}
static void free_source(Source &s) {
  for (void *p : {(void *)s.codes, (void *)s.scales, (void *)s.bad}) cudaFree(p);
}
static Matrix pack(const Source &s, bool, int count) {
  Matrix m = {nullptr, 0, (int)s.n, (int)s.k, Weights::F8};
  m.stride = (size_t)((s.n + 63) / 64) * column_pairs(m) * kPairBytes;
  CUDA(cudaMalloc(&m.data, m.stride * count));
  CUDA(cudaMemset(m.data, 0, m.stride * count));
  return m;
}
static void pack_into(const Source &s, const Matrix &m, int index, bool) {
  const PackSource from = {s.codes, 3, s.n, s.k, 0, 0, s.scales, (s.k + 127) / 128, 0, 0, 128, 128, s.bad};
  pack_tiles(from, m.data + m.stride * index, m.k, m.kind, 0);
}

#include "tools/gpu/check_mla.cuh"

static void test_decode(void **) {
  check_mla(2, 1, 130, false); // keys in more parts than pages
  check_mla(3, 9, 200, false);
  check_mla(34, 1, 300, false); // kernels of few rows
  check_mla(64, 2, 150, false);
  check_mla(66, 2, 70, false); // more heads than a block has
  check_mla(2, 26, 70, false);
  check_mla(1, 40, 70, false);  // several CTAs a head
  check_mla(2, 50, 70, false);
  check_mla(2, 150, 70, false); // several tiles of tokens a CTA
}

static void test_prefill(void **) {
  check_mla(2, 150, 150, true);
  check_mla(1, 70, 270, true); // behind others
  check_mla(1, 129, 330, true, false, true);
  check_mla(2, 65, 66, true); // one query alone in a warpgroup, behind one
}

static int set_up(void **) {
  CUDA(cudaStreamCreate(&stream));
  absorb_prepare();
  attention_mla_prepare();
  attention_prefill_prepare();
  linear_prepare();
  scratch.sms = 3;
  scratch.partial = device<float>((size_t)scratch.sms * kPartialFloats);
  scratch.dealt = upload(std::vector<int>(2));
  return 0;
}

int main() {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_decode),
      cmocka_unit_test(test_prefill),
  };
  return cmocka_run_group_tests(tests, set_up, nullptr);
}
