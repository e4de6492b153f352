#include "engine/cpu/tensor_sums.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/contract.h"
#include "runtime/base/mem.h"

enum { NO_EXPONENT = -100 }; // of a zero: below all that a product or a sum of products can have

// 128 values of a row, and the exponents they are stored with (-6 for those without a leading one).
typedef struct block {
  float value[MOB_TENSOR_BLOCK];
  int16_t exponent[MOB_TENSOR_BLOCK];
} block_t;

// Both of normal numbers.
static float power_of_two(int e) {
  union {
    uint32_t u;
    float f;
  } v = {(uint32_t)(e + 127) << 23};
  return v.f;
}

static int leading_bit(float value) {
  union {
    float f;
    uint32_t u;
  } v = {value};
  return (int)(v.u >> 23 & 255) - 127;
}

static int exponent_of(float value) {
  if (value == 0) return NO_EXPONENT;
  int e = leading_bit(value);
  return e < -6 ? -6 : e;
}

static float cut_off(float sum) {
  union {
    float f;
    uint32_t u;
  } v = {sum};
  v.u &= ~0u << (23 - MOB_TENSOR_BITS);
  return v.f;
}

// One instruction: `sum` and 32 products. Integers count units of the last bit kept: 32 products
// below 2^15 and a sum below 2^14 of them.
__attribute__((always_inline)) static inline float
add_group(const float *a, const int16_t *ea, const float *b, const int16_t *eb, float sum) {
  int16_t top = (int16_t)(sum == 0 ? 2 * NO_EXPONENT : leading_bit(sum));
  for (int k = 0; k < MOB_TENSOR_GROUP; k++) {
    int16_t e = (int16_t)(ea[k] + eb[k]);
    top = e > top ? e : top;
  }
  if (top < NO_EXPONENT / 2) return 0; // zeros alone
  const float unit = power_of_two(MOB_TENSOR_BITS - top);
  int32_t units = (int32_t)(sum * unit);
  for (int k = 0; k < MOB_TENSOR_GROUP; k++) units += (int32_t)(a[k] * b[k] * unit);
  return cut_off((float)units * power_of_two(top - MOB_TENSOR_BITS));
}

__attribute__((always_inline)) static inline float add_block(const block_t *a, const block_t *b) {
  float sum = 0;
  for (int k = 0; k < MOB_TENSOR_BLOCK; k += MOB_TENSOR_GROUP)
    sum = add_group(a->value + k, a->exponent + k, b->value + k, b->exponent + k, sum);
  return sum;
}

static void set_block(block_t *block, int at, float value) {
  block->value[at] = value;
  block->exponent[at] = (int16_t)exponent_of(value);
}

float mob_tensor_sum(const uint8_t *a, const uint8_t *b) {
  block_t x, y;
  for (int k = 0; k < MOB_TENSOR_BLOCK; k++) {
    if ((a[k] & 0x7f) == 0x7f || (b[k] & 0x7f) == 0x7f) return NAN;
    set_block(&x, k, mob_e4m3_to_f32(a[k]));
    set_block(&y, k, mob_e4m3_to_f32(b[k]));
  }
  return add_block(&x, &y);
}

// --------------------------------------------------------------------------------------------
// matrix

typedef struct table { // of e4m3 codes
  float value[256];
  int16_t exponent[256];
} table_t;

typedef struct gemm {
  const mob_mat_t *w;
  int64_t r0, r1, blocks;
  const block_t *x;   // [m][blocks]
  const float *scale; // [m][blocks]
  float *const *y;
  int m;
} gemm_t;

static void fill_table(table_t *t) {
  for (int code = 0; code < 256; code++) {
    const bool nan = (code & 0x7f) == 0x7f;
    t->value[code] = nan ? 0 : mob_e4m3_to_f32((uint8_t)code);
    t->exponent[code] = (int16_t)exponent_of(t->value[code]);
  }
}

// The codes that a quantised row came from, and its scales again: the largest of 128 values is 448
// times the scale, or, where that is a power of two, gives the same power of two or half of it.
static void split_row(const float *x, int64_t cols, bool ue8m0, block_t *blocks, float *scales) {
  for (int64_t from = 0; from < cols; from += MOB_TENSOR_BLOCK, blocks++, scales++) {
    const int n = cols - from < MOB_TENSOR_BLOCK ? (int)(cols - from) : MOB_TENSOR_BLOCK;
    float amax = 0;
    for (int k = 0; k < n; k++) amax = fmaxf(amax, fabsf(x[from + k]));
    *scales = mob__e4m3_scale(amax, ue8m0);
    memset(blocks, 0, sizeof *blocks);
    for (int k = 0; k < MOB_TENSOR_BLOCK; k++)
      set_block(blocks, k, k < n ? mob__round_e4m3(x[from + k] / *scales) : 0);
  }
}

__attribute__((always_inline)) static inline void run_rows(const gemm_t *g, const table_t *t,
                                                           block_t *weights) {
  const mob_mat_t *w = g->w;
  for (int64_t r = g->r0; r < g->r1; r++) {
    const uint8_t *row = w->data + (size_t)r * w->stride;
    for (int64_t c = 0; c < g->blocks * MOB_TENSOR_BLOCK; c++) {
      block_t *to = &weights[c / MOB_TENSOR_BLOCK];
      const uint8_t code = c < w->cols ? row[c] : 0;
      to->value[c % MOB_TENSOR_BLOCK] = t->value[code];
      to->exponent[c % MOB_TENSOR_BLOCK] = t->exponent[code];
    }
    const float *scales = w->scales + (w->row0 + r) / w->block_rows * w->scale_stride;
    for (int i = 0; i < g->m; i++) {
      float sum = 0;
      for (int64_t b = 0; b < g->blocks; b++) {
        const float scale = scales[(w->col0 + b * MOB_TENSOR_BLOCK) / w->block_cols];
        sum = fmaf(add_block(&g->x[i * g->blocks + b], &weights[b]),
                   scale * g->scale[i * g->blocks + b], sum);
      }
      g->y[i][r - g->r0] = sum;
    }
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void run_avx2(const gemm_t *g, const table_t *t,
                                                         block_t *weights) {
  run_rows(g, t, weights);
}
#endif
static void run_any(const gemm_t *g, const table_t *t, block_t *weights) {
  run_rows(g, t, weights);
}

void mob_tensor_gemm(const mob_mat_t *w, int64_t r0, int64_t r1, const float *const *x,
                     float *const *y, int m, bool ue8m0) {
  table_t table;
  fill_table(&table);
  gemm_t g = {w, r0, r1, (w->cols + MOB_TENSOR_BLOCK - 1) / MOB_TENSOR_BLOCK, NULL, NULL, y, m};
  block_t *blocks = mob_malloc((size_t)(g.blocks * (m + 1)) * sizeof *blocks);
  float *scales = mob_malloc((size_t)(g.blocks * m) * sizeof *scales);
  for (int i = 0; i < m; i++)
    split_row(x[i], w->cols, ue8m0, blocks + i * g.blocks, scales + i * g.blocks);
  g.x = blocks;
  g.scale = scales;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    run_avx2(&g, &table, blocks + (int64_t)m * g.blocks);
  else
#endif
    run_any(&g, &table, blocks + (int64_t)m * g.blocks);
  free(blocks);
  free(scales);
}
