// Products on the tile unit against the scalar ones. Where the CPU has no such unit there is
// nothing to test but that it is not used.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/amx.h"
#include "random_matrix.h"
#include "runtime/base/mem.h"

// y of m rows, packed as one call wants them.
static void product(const mob_mat_t *w, int64_t r0, int64_t r1, const float *const *x,
                    float *const *y, int m) {
  int width = m < MOB_AMX_GROUP ? m : MOB_AMX_GROUP, groups = (m + width - 1) / width;
  size_t bytes = mob_amx_group_bytes(w, width);
  uint8_t *packed = aligned_alloc(64, (size_t)groups * bytes);
  assert_non_null(packed);
  for (int g = 0; g < groups; g++)
    mob_amx_pack(w, x + g * width, m - g * width < width ? m - g * width : width, width,
                 packed + (size_t)g * bytes);
  mob_amx_gemm(w, r0, r1, packed, y, m);
  free(packed);
}

static void check(mob_dtype_t dtype, const int64_t shape[4]) {
  enum { M = 75 };
  int64_t rows = shape[0], cols = shape[1];
  uint8_t *block;
  float *scales, *x = random_floats(M * cols), *expected = random_floats(M * rows),
                 *fp32 = random_floats(M * rows), *got = random_floats(M * rows),
                 *other = random_floats(M * rows);
  mob_mat_t w = random_matrix(dtype, rows, cols, shape[2], shape[3], &block, &scales);
  const float *in[M];
  float *to[M], *want[M], *beside[M], *vector[M];
  for (int i = 0; i < M; i++) {
    in[i] = x + i * cols;
    to[i] = got + i * rows;
    want[i] = expected + i * rows;
    beside[i] = other + i * rows;
    vector[i] = fp32 + i * rows;
  }
  // As near to the exact sum as fp32 arithmetic is.
  mob_cpu_ops_named("avx512")->gemm(&w, 0, rows, in, vector, M);
  float *row = random_floats(cols);
  double error = 0, fp32_error = 0;
  product(&w, 0, rows, in, to, M);
  for (int64_t r = 0; r < rows; r++) {
    mob_cpu_ops_scalar.row(&w, r, row);
    for (int i = 0; i < M; i++) {
      double sum = 0;
      for (int64_t c = 0; c < cols; c++) sum += (double)row[c] * in[i][c];
      want[i][r] = (float)sum;
      error += (to[i][r] - sum) * (to[i][r] - sum);
      fp32_error += (vector[i][r] - sum) * (vector[i][r] - sum);
    }
  }
  double magnitude = dtype == MOB_DT_F8E4M3 ? 448.0 : 1.0;
  assert_true(sqrt(error / (double)(M * rows)) <=
              3 * sqrt(fp32_error / (double)(M * rows)) + 1e-8 * magnitude * sqrt((double)cols));
  for (int64_t k = 0; k < M * rows; k++)
    assert_true(fabs(got[k] - expected[k]) <= 2e-6 * magnitude * sqrt((double)cols));
  // Fewer rows of x, and other rows of W beside: the same bits.
  static const int counts[] = {1, 2, 7, 15, 16, 17, 31, 33, 48, 64};
  for (size_t n = 0; n < MOB_LEN(counts); n++) {
    int m = counts[n], from = M - m;
    product(&w, 0, rows, in + from, beside + from, m);
    assert_memory_equal(beside[from], to[from], (size_t)(m * rows) * sizeof *got);
  }
  if (rows > 3) {
    product(&w, 1, rows - 1, in, beside, 20);
    for (int i = 0; i < 20; i++)
      assert_memory_equal(beside[i], to[i] + 1, (size_t)(rows - 2) * sizeof *got);
  }
  free(row);
  free(block);
  free(scales);
  free(x);
  free(expected);
  free(fp32);
  free(got);
  free(other);
}

static void test_tiles_are_as_exact_as_fp32(void **state) {
  (void)state;
  static const int64_t shapes[][4] = {{1, 1, 0, 0},    {5, 7, 0, 0},      {32, 128, 0, 0},
                                      {9, 256, 0, 0},  {17, 300, 3, 0},   {12, 512, 120, 0},
                                      {10, 24, 0, 24}, {6, 200, 100, 72}, {33, 129, 0, 1},
                                      {128, 64, 0, 0}, {8, 16, 0, 120},   {70, 1000, 100, 40}};
  if (!mob_amx_usable()) skip();
  for (size_t s = 0; s < MOB_LEN(shapes); s++) {
    check(MOB_DT_F8E4M3, shapes[s]);
    check(MOB_DT_BF16, shapes[s]);
  }
}

static void test_all_fp8_codes_and_magnitudes(void **state) {
  (void)state;
  if (!mob_amx_usable()) skip();
  uint8_t codes[128];
  float x[128] = {0}, y, *to = &y;
  const float *in = x;
  for (int i = 0; i < 128; i++) codes[i] = (uint8_t)i == 0x7f ? 0 : (uint8_t)i;
  float scale = 1;
  mob_mat_t w = {.dtype = MOB_DT_F8E4M3,
                 .rows = 1,
                 .cols = 128,
                 .data = codes,
                 .stride = 128,
                 .scales = &scale,
                 .scale_stride = 1,
                 .block_rows = 128,
                 .block_cols = 128};
  for (int i = 0; i < 128; i++)
    for (int sign = 0; sign < 2; sign++)
      for (int e = -100; e <= 100; e += 25) {
        codes[i] = (uint8_t)((codes[i] & 0x7f) | sign << 7);
        x[i] = ldexpf(1.2345678f, e);
        product(&w, 0, 1, &in, &to, 1);
        assert_true(y == mob_e4m3_to_f32(codes[i]) * x[i] ||
                    fabsf(y - mob_e4m3_to_f32(codes[i]) * x[i]) <= 2e-7f * fabsf(y));
        x[i] = 0;
      }
}

static void test_another_set_by_name_keeps_off_the_tiles(void **state) {
  (void)state;
  setenv("MOB_CPU_ISA", "scalar", 1);
  assert_false(mob_amx_usable());
  setenv("MOB_CPU_ISA", "amx", 1);
  assert_non_null(mob_cpu_ops_pick());
  unsetenv("MOB_CPU_ISA");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_tiles_are_as_exact_as_fp32),
      cmocka_unit_test(test_all_fp8_codes_and_magnitudes),
      cmocka_unit_test(test_another_set_by_name_keeps_off_the_tiles),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
