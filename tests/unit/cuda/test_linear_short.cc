// linear_short on the emulated device against sums in double of the same quantised inputs: every size of tile, K in one range and in
// several, CTAs with one block of outputs and with many.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cuda_runtime.h>

#include "engine/cuda/linear_short.h"
#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>

#include "engine/model/model.h"
}

#include "tests/unit/cuda/device.h"

using namespace mob;

static cudaStream_t stream;
static LinearScratch scratch;
static std::mt19937_64 rng(17);

// e4m3 codes of a matrix, or of rows, with a scale for every 128 columns (and 128 rows of a matrix).
struct Codes {
  int rows, k;
  std::vector<uint8_t> codes;
  std::vector<float> scales, values;
};

static Codes random_matrix(int n, int k) {
  std::normal_distribution<float> normal;
  Codes c = {n, k, {}, {}, {}};
  for (int i = 0; i < (n + 127) / 128 * (k / 128); i++) c.scales.push_back(0.001f + 0.0001f * (float)(rng() % 16));
  for (int i = 0; i < n * k; i++) {
    const __nv_fp8_e4m3 code(normal(rng) * 64);
    c.codes.push_back(code.__x);
    c.values.push_back((float)code * c.scales[(size_t)(i / k / 128 * (k / 128) + i % k / 128)]);
  }
  return c;
}

static Matrix packed(const Codes &c) {
  Matrix w = {nullptr, 0, c.rows, c.k, Weights::F8};
  const size_t bytes = (size_t)(c.rows / 64) * column_pairs(w) * kPairBytes;
  w.data = device<uint8_t>(bytes);
  PackSource from = {};
  from.src = upload(c.codes);
  from.dtype = MOB_DT_F8E4M3;
  from.rows = c.rows;
  from.cols = c.k;
  from.scales = upload(c.scales);
  from.scale_ld = c.k / 128;
  from.block_rows = from.block_cols = 128;
  from.bad = device<int>(1);
  pack_tiles(from, w.data, c.k, Weights::F8, stream);
  return w;
}

// What the records hold of rows x.
static std::vector<float> quantised(const std::vector<bf16> &x) {
  std::vector<float> out(x.begin(), x.end());
  for (size_t from = 0; from < out.size(); from += 128) {
    float amax = 0;
    for (int i = 0; i < 128; i++) amax = std::max(amax, std::fabs(out[from + i]));
    const float scale = std::max(amax, 1e-10f) / 448.0f, inverse = 1.0f / scale;
    for (int i = 0; i < 128; i++) out[from + i] = (float)__nv_fp8_e4m3(out[from + i] * inverse) * scale;
  }
  return out;
}

// `cuts` 0: as the kernel's own choice is.
static void check(int m, int n, int k, int cuts) {
  std::normal_distribution<float> normal;
  const Codes c = random_matrix(n, k);
  const Matrix w = packed(c);
  std::vector<bf16> x;
  for (int i = 0; i < m * k; i++) x.push_back(__float2bfloat16(normal(rng)));
  const Records records = {device<uint8_t>(records_bytes(true, padded_rows(m), k)), padded_rows(m), 1};
  pack_rows(upload(x), k, k, records, k, m, false, stream);
  const int ldy = n + 8;
  bf16 *y = device<bf16>((size_t)m * ldy);
  assert_true(cuts ? linear_short_cut(w, records, y, ldy, m, cuts, scratch, stream) : linear_short(w, records, y, ldy, m, scratch, stream));
  cuda(cudaStreamSynchronize(stream));
  const std::vector<float> rows = quantised(x);
  const std::vector<bf16> got = fetch(y, (size_t)m * ldy);
  double difference = 0, all = 0;
  for (int t = 0; t < m; t++)
    for (int o = t % 3; o < n; o += 3) {
      double sum = 0;
      for (int i = 0; i < k; i++) sum += (double)c.values[(size_t)o * k + i] * rows[(size_t)t * k + i];
      difference += ((float)got[(size_t)t * ldy + o] - sum) * ((float)got[(size_t)t * ldy + o] - sum);
      all += sum * sum;
    }
  const double error = std::sqrt(difference / all);
  if (!(error <= 3e-3)) fail_msg("%d x %d, %d tokens, %d cuts: relative error %.1e", n, k, m, cuts, error);
  for (uint32_t word : fetch((const uint32_t *)scratch.partial, (size_t)scratch.sms * kPartialFloats)) assert_int_equal(word, ~0u);
  free_all();
}

static void one_range(void **state) {
  (void)state;
  for (int m : {17, 32, 40, 64, 77, 96}) check(m, 192, 512, 1);
}

static void ranges(void **state) {
  (void)state;
  for (int m : {24, 64, 80, 90}) {
    check(m, 64, 1024, 4);
    check(m, 128, 1280, 2);
    check(m, 64, 1792, 3);
  }
}

static void many_blocks(void **state) {
  (void)state;
  check(64, 1088, 768, 1);  // 17 blocks of eight CTAs
  check(33, 1536, 1536, 1);
  check(96, 832, 512, 1);
}

static void its_own_choice(void **state) {
  (void)state;
  check(48, 128, 2560, 0);
  check(64, 512, 256, 0);
}

static void not_served(void **state) {
  (void)state;
  const Matrix ragged = {nullptr, 0, 100, 256, Weights::F8}, wide = {nullptr, 0, 64 * 4096, 1024, Weights::F8},
               half = {nullptr, 0, 128, 256, Weights::B16};
  const Records x = {nullptr, 64, 1}, more = {nullptr, 72, 1};
  assert_false(linear_short(ragged, x, nullptr, 100, 64, scratch, stream));
  assert_false(linear_short(wide, x, nullptr, 64 * 4096, 64, scratch, stream));
  assert_false(linear_short(half, x, nullptr, 128, 64, scratch, stream));
  assert_false(linear_short({nullptr, 0, 128, 256, Weights::F8}, more, nullptr, 128, 64, scratch, stream));
  assert_false(linear_short_cut({nullptr, 0, 1024, 1024, Weights::F8}, x, nullptr, 1024, 64, 2, scratch, stream)); // rounds of sums
}

static int open_device(void **state) {
  (void)state;
  cuda(cudaStreamCreate(&stream));
  linear_short_prepare();
  scratch.sms = 8;
  cuda(cudaMalloc(&scratch.partial, (size_t)scratch.sms * kPartialFloats * 4));
  cuda(cudaMemset(scratch.partial, 0xff, (size_t)scratch.sms * kPartialFloats * 4));
  return 0;
}
static int close_device(void **state) {
  (void)state;
  cuda(cudaFree(scratch.partial));
  cuda(cudaStreamDestroy(stream));
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_range),   cmocka_unit_test(ranges),     cmocka_unit_test(many_blocks),
      cmocka_unit_test(its_own_choice), cmocka_unit_test(not_served),
  };
  return cmocka_run_group_tests(tests, open_device, close_device);
}
