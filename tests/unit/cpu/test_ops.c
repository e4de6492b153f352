// Every instruction set against the scalar operations on the same random vectors.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "random_matrix.h"
#include "runtime/base/mem.h"

static const char *const names[] = {"avx2", "avx512"};

static void check_gemm(const mob_cpu_ops_t *ops, mob_dtype_t dtype, int64_t rows, int64_t cols,
                       int64_t row0, int64_t col0) {
  enum { M = 13 };
  uint8_t *block;
  float *scales, *x = random_floats(M * cols);
  mob_mat_t w = random_matrix(dtype, rows, cols, row0, col0, &block, &scales);
  float *expected = random_floats(M * rows), *got = random_floats(M * rows),
        *single = random_floats(rows);
  const float *in[M];
  float *to[M], *want[M];
  for (int i = 0; i < M; i++) {
    in[i] = x + i * cols;
    to[i] = got + i * rows;
    want[i] = expected + i * rows;
  }
  mob_cpu_ops_scalar.gemm(&w, 0, rows, in, want, M);
  for (int m = 1; m <= M; m++) {
    ops->gemm(&w, 0, rows, in, to, m);
    for (int i = 0; i < m; i++)
      for (int64_t r = 0; r < rows; r++) {
        double magnitude = dtype == MOB_DT_F8E4M3 ? 448.0 : 1.0;
        assert_true(fabs(got[i * rows + r] - expected[i * rows + r]) <=
                    2e-6 * magnitude * sqrt((double)cols));
      }
    ops->gemm(&w, 0, rows, &in[m - 1], (float *[]){single}, 1); // alone: the same bits
    assert_memory_equal(single, to[m - 1], (size_t)rows * sizeof *single);
  }
  if (rows > 3) { // a range of rows
    ops->gemm(&w, 1, rows - 1, in, to, 1);
    assert_memory_equal(to[0], (ops->gemm(&w, 0, rows, in, (float *[]){single}, 1), single + 1),
                        (size_t)(rows - 2) * sizeof *single);
  }
  float *row = random_floats(cols), *row_expected = random_floats(cols);
  mob_cpu_ops_scalar.row(&w, rows - 1, row_expected);
  ops->row(&w, rows - 1, row);
  assert_memory_equal(row, row_expected, (size_t)cols * sizeof *row);
  free(row);
  free(row_expected);
  free(block);
  free(scales);
  free(x);
  free(expected);
  free(got);
  free(single);
}

static void test_matrix_products(void **state) {
  (void)state;
  static const int64_t shapes[][4] = {{1, 1, 0, 0},    {5, 7, 0, 0},      {32, 128, 0, 0},
                                      {9, 256, 0, 0},  {17, 300, 3, 0},   {12, 512, 120, 0},
                                      {10, 24, 0, 24}, {6, 200, 100, 72}, {33, 129, 0, 1},
                                      {8, 16, 0, 120}, {11, 1000, 5, 40}};
  for (size_t n = 0; n < MOB_LEN(names); n++) {
    const mob_cpu_ops_t *ops = mob_cpu_ops_named(names[n]);
    for (size_t s = 0; ops && s < MOB_LEN(shapes); s++)
      for (int dtype = 0; dtype < MOB_DT_COUNT; dtype++)
        check_gemm(ops, (mob_dtype_t)dtype, shapes[s][0], shapes[s][1], shapes[s][2], shapes[s][3]);
  }
}

static void test_all_fp8_codes(void **state) {
  (void)state;
  uint8_t codes[256];
  float scale = 1, expected[256], got[256];
  for (int i = 0; i < 256; i++) codes[i] = (i & 0x7f) == 0x7f ? 0 : (uint8_t)i;
  mob_mat_t w = {.dtype = MOB_DT_F8E4M3,
                 .rows = 1,
                 .cols = 256,
                 .data = codes,
                 .stride = 256,
                 .scales = &scale,
                 .scale_stride = 1,
                 .block_rows = 1,
                 .block_cols = 256};
  mob_cpu_ops_scalar.row(&w, 0, expected);
  assert_true(expected[1] == 0x1p-9f && expected[8] == 0x1p-6f && expected[0x38] == 1 &&
              expected[0x7e] == 448 && expected[0xb9] == -1.125f);
  for (size_t n = 0; n < MOB_LEN(names); n++) {
    const mob_cpu_ops_t *ops = mob_cpu_ops_named(names[n]);
    if (!ops) continue;
    ops->row(&w, 0, got);
    assert_memory_equal(got, expected, sizeof got);
  }
}

static void assert_close(const float *a, const float *b, int64_t n, float tolerance) {
  for (int64_t i = 0; i < n; i++)
    assert_true(fabsf(a[i] - b[i]) <= tolerance * (1.0f + fabsf(b[i])));
}

static void test_vectors(void **state) {
  (void)state;
  const mob_cpu_ops_t *scalar = &mob_cpu_ops_scalar;
  for (size_t k = 0; k < MOB_LEN(names); k++) {
    const mob_cpu_ops_t *ops = mob_cpu_ops_named(names[k]);
    for (int64_t n = 1; ops && n < 200; n += n < 40 ? 1 : 13) {
      float *x = random_floats(n), *w = random_floats(n), *a = random_floats(n),
            *b = random_floats(n);
      memcpy(b, a, (size_t)n * sizeof *a);
      ops->axpy(0.7f, x, a, n);
      scalar->axpy(0.7f, x, b, n);
      assert_close(a, b, n, 1e-6f);
      ops->rmsnorm(x, w, 1e-6f, a, n);
      scalar->rmsnorm(x, w, 1e-6f, b, n);
      assert_close(a, b, n, 3e-6f);
      for (int64_t i = 0; i < n; i++) x[i] *= i % 7 == 0 ? 100.0f : 8.0f;
      ops->silu_mul(x, w, a, n);
      scalar->silu_mul(x, w, b, n);
      assert_close(a, b, n, 1e-6f);
      assert_true(ops->max(x, n) == scalar->max(x, n));
      memcpy(a, x, (size_t)n * sizeof *a);
      memcpy(b, x, (size_t)n * sizeof *a);
      float top = scalar->max(x, n), s1 = ops->exp_sum(a, top, (int)n),
            s2 = scalar->exp_sum(b, top, (int)n);
      assert_close(a, b, n, 5e-7f);
      assert_true(fabsf(s1 - s2) <= 2e-6f * s2);
      for (int dtype = MOB_DT_BF16; dtype <= MOB_DT_F16; dtype++) {
        uint16_t h1[200], h2[200];
        ops->store(x, (mob_dtype_t)dtype, h1, n);
        scalar->store(x, (mob_dtype_t)dtype, h2, n);
        assert_memory_equal(h1, h2, (size_t)n * 2);
      }
      free(x);
      free(w);
      free(a);
      free(b);
    }
  }
}

static void test_attention(void **state) {
  (void)state;
  enum { KEYS = 64, STRIDE = 150 };
  for (size_t k = 0; k < MOB_LEN(names); k++) {
    const mob_cpu_ops_t *ops = mob_cpu_ops_named(names[k]);
    for (int64_t dim = 1; ops && dim < 150; dim += 21) {
      float *q = random_floats(dim), *keys = random_floats(KEYS * STRIDE), *p = random_floats(KEYS);
      uint16_t half[KEYS * STRIDE];
      for (int kind = MOB_DT_F32; kind <= MOB_DT_F16; kind++) {
        mob_dtype_t dtype = (mob_dtype_t)kind;
        const void *data = dtype == MOB_DT_F32 ? (void *)keys : half;
        if (dtype != MOB_DT_F32) mob_cpu_ops_scalar.store(keys, dtype, half, KEYS * STRIDE);
        for (int n = 1; n <= KEYS; n += 9) {
          float a[KEYS], b[KEYS], o1[150] = {0}, o2[150] = {0};
          ops->scores(q, data, dtype, STRIDE, n, dim, 0.25f, a);
          mob_cpu_ops_scalar.scores(q, data, dtype, STRIDE, n, dim, 0.25f, b);
          assert_close(a, b, n, 1e-5f);
          ops->mix(p, data, dtype, STRIDE, n, dim, o1);
          mob_cpu_ops_scalar.mix(p, data, dtype, STRIDE, n, dim, o2);
          assert_close(o1, o2, dim, 1e-5f);
        }
      }
      free(q);
      free(keys);
      free(p);
    }
  }
}

static void test_choice_of_instruction_set(void **state) {
  (void)state;
  setenv("MOB_CPU_ISA", "scalar", 1);
  assert_string_equal(mob_cpu_ops_pick()->name, "scalar");
  setenv("MOB_CPU_ISA", "mmx", 1); // warns and takes the best
  assert_non_null(mob_cpu_ops_pick());
  unsetenv("MOB_CPU_ISA");
  assert_null(mob_cpu_ops_named("mmx"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_matrix_products),
      cmocka_unit_test(test_all_fp8_codes),
      cmocka_unit_test(test_vectors),
      cmocka_unit_test(test_attention),
      cmocka_unit_test(test_choice_of_instruction_set),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
