// Sums as a Hopper tensor core makes them (engine/cpu/tensor_sums.h).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/contract.h"
#include "engine/cpu/tensor_sums.h"
#include "random_matrix.h"
#include "runtime/base/mem.h"

enum { N = MOB_TENSOR_BLOCK };

static uint32_t seed = 4711;
static uint32_t draw(void) {
  return (seed = seed * 1664525u + 1013904223u) >> 8;
}

static uint8_t any_code(void) {
  uint8_t code;
  do code = (uint8_t)draw();
  while ((code & 0x7f) == 0x7f);
  return code;
}

static double truncated(double value, int exponent) {
  return trunc(ldexp(value, -exponent)) * ldexp(1, exponent);
}

// The header's words in double precision.
static double said(const uint8_t *a, const uint8_t *b) {
  double sum = 0;
  for (int from = 0; from < N; from += MOB_TENSOR_GROUP) {
    int top = sum == 0 ? -1000 : ilogb(sum);
    for (int k = from; k < from + MOB_TENSOR_GROUP; k++) {
      int e = (a[k] & 0x78 ? (a[k] >> 3 & 15) - 7 : -6) + (b[k] & 0x78 ? (b[k] >> 3 & 15) - 7 : -6);
      if ((a[k] & 0x7f) && (b[k] & 0x7f) && e > top) top = e;
    }
    if (top == -1000) continue;
    double next = truncated(sum, top - MOB_TENSOR_BITS);
    for (int k = from; k < from + MOB_TENSOR_GROUP; k++)
      next +=
          truncated((double)mob_e4m3_to_f32(a[k]) * mob_e4m3_to_f32(b[k]), top - MOB_TENSOR_BITS);
    sum = next == 0 ? 0 : truncated(next, ilogb(next) - MOB_TENSOR_BITS);
  }
  return sum;
}

static void sums_are_what_the_header_says(void **state) {
  (void)state;
  for (int round = 0; round < 4000; round++) {
    uint8_t a[N], b[N];
    for (int k = 0; k < N; k++) {
      a[k] = any_code();
      b[k] = any_code();
      if (round % 4 == 1 && draw() % 3) a[k] = 0x80;  // zeros of either sign
      if (round % 4 == 2) a[k] &= 0x87, b[k] &= 0x8f; // without a leading one
      if (round % 4 == 3) a[k] = (uint8_t)(a[k] % 15 + 0x70 - (k % 5) * 16);
    }
    assert_true((double)mob_tensor_sum(a, b) == said(a, b));
  }
}

static void small_products_are_lost(void **state) {
  (void)state;
  uint8_t a[N] = {0}, b[N] = {0};
  a[0] = b[0] = 0x78;                              // 256 x 256
  for (int k = 1; k < 32; k++) a[k] = b[k] = 0x38; // 1 x 1: 2^-16 of it
  assert_true(mob_tensor_sum(a, b) == 65536);
  a[1] = b[1] = 0x50; // 8 x 8 is beyond the last bit, 2^3, of the group
  assert_true(mob_tensor_sum(a, b) == 65536 + 64);
  a[40] = 0x7f;
  assert_true(isnan(mob_tensor_sum(a, b)));
}

// A shard of a matrix, rows as they leave mob__quantise_e4m3: near the full sums, and bit by bit
// what the blocks' sums and their scales give.
static void matrices_of_blocks(bool ue8m0) {
  enum { ROWS = 70, COLS = 3 * N - 32, M = 3 };
  uint8_t *memory;
  float *scales, *x = random_floats(M * COLS), y[M][ROWS], z[M][ROWS], *to[M], *exact[M];
  mob_mat_t w = random_matrix(MOB_DT_F8E4M3, ROWS, COLS, 64, 128, &memory, &scales);
  const float *from[M];
  for (int i = 0; i < M; i++) {
    float *row = x + i * COLS;
    for (int c = 0; c < COLS; c++) row[c] *= expf(4 * fminf(row[(c + 1) % COLS], 1));
    mob__quantise_e4m3(row, COLS, ue8m0, row);
    from[i] = row;
    to[i] = y[i];
    exact[i] = z[i];
  }
  mob_tensor_gemm(&w, 0, ROWS, from, to, M, ue8m0);
  mob_cpu_ops_scalar.gemm(&w, 0, ROWS, from, exact, M);
  double d = 0, s = 0;
  for (int i = 0; i < M; i++)
    for (int r = 0; r < ROWS; r++) {
      d += ((double)y[i][r] - z[i][r]) * ((double)y[i][r] - z[i][r]);
      s += (double)z[i][r] * z[i][r];
    }
  const double error = sqrt(d / s);
  assert_true(error < 2e-3);
  assert_true(error > 1e-6); // it is not the full sum

  for (int i = 0; i < M; i++)
    for (int r = 0; r < ROWS; r++) {
      float sum = 0;
      for (int block = 0; block * N < COLS; block++) {
        uint8_t a[N] = {0}, b[N] = {0};
        float largest = 0;
        for (int k = 0; k < N && block * N + k < COLS; k++)
          largest = fmaxf(largest, fabsf(from[i][block * N + k]));
        const float scale = mob__e4m3_scale(largest, ue8m0);
        for (int k = 0; k < N && block * N + k < COLS; k++) {
          a[k] = w.data[(size_t)r * w.stride + (size_t)(block * N + k)];
          const float value = from[i][block * N + k] / scale;
          for (int code = 0; code < 256; code++)
            if (fabsf(mob_e4m3_to_f32((uint8_t)code) - value) <= 1e-5f * fabsf(value))
              b[k] = (uint8_t)code;
        }
        const float ws = w.scales[(w.row0 + r) / w.block_rows * w.scale_stride +
                                  (w.col0 + block * N) / w.block_cols];
        sum = fmaf(mob_tensor_sum(a, b), ws * scale, sum);
      }
      assert_true(sum == y[i][r]);
    }
  free(x);
  free(memory);
  free(scales);
}

static void matrices(void **state) {
  (void)state;
  matrices_of_blocks(false);
  matrices_of_blocks(true);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(sums_are_what_the_header_says),
      cmocka_unit_test(small_products_are_lost),
      cmocka_unit_test(matrices),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
