// The scalar operations: what every other table must compute. Formulas: reference of each function
// in ops.h.
#include <math.h>
#include <string.h>

#include "engine/cpu/ops.h"
#include "engine/model/half.h"

static float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

float mob_e4m3_to_f32(uint8_t code) { // 1 sign, 4 exponent (bias 7), 3 mantissa; no infinity
  uint32_t sign = (uint32_t)(code & 0x80) << 24, rest = code & 0x7f;
  if (rest == 0x7f) return from_bits(sign | 0x7fc00000);
  if (rest < 8) return (sign ? -0x1p-9f : 0x1p-9f) * (float)rest;
  return from_bits(sign | ((rest << 20) + (120u << 23)));
}

float mob_f16_to_f32(uint16_t bits) { // 1 sign, 5 exponent (bias 15), 10 mantissa
  uint32_t sign = (uint32_t)(bits & 0x8000) << 16, rest = bits & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 1023) << 13);
  if (rest < 1024) return (sign ? -0x1p-24f : 0x1p-24f) * (float)rest;
  return from_bits(sign | ((rest << 13) + (112u << 23)));
}

// Element c of a row, without its scale.
static float element(mob_dtype_t dtype, const uint8_t *row, int64_t c) {
  uint16_t half;
  float value;
  switch (dtype) {
  case MOB_DT_F32:
    memcpy(&value, row + 4 * c, 4);
    return value;
  case MOB_DT_BF16:
    memcpy(&half, row + 2 * c, 2);
    return mob_bf16_to_f32(half);
  case MOB_DT_F16:
    memcpy(&half, row + 2 * c, 2);
    return mob_f16_to_f32(half);
  default:
    return mob_e4m3_to_f32(row[c]);
  }
}

// First column behind the scale block that column c lies in.
static int64_t block_end(const mob_mat_t *w, int64_t c) {
  if (!w->scales) return w->cols;
  int64_t end = ((w->col0 + c) / w->block_cols + 1) * w->block_cols - w->col0;
  return end < w->cols ? end : w->cols;
}

static float block_scale(const mob_mat_t *w, int64_t r, int64_t c) {
  if (!w->scales) return 1.0f;
  return w->scales[(w->row0 + r) / w->block_rows * w->scale_stride + (w->col0 + c) / w->block_cols];
}

static void scalar_gemm(const mob_mat_t *w, int64_t r0, int64_t r1, const float *const *x,
                        float *const *y, int m) {
  for (int64_t r = r0; r < r1; r++) {
    const uint8_t *row = w->data + (size_t)r * w->stride;
    for (int i = 0; i < m; i++) {
      float sum = 0;
      for (int64_t c = 0; c < w->cols;) {
        int64_t end = block_end(w, c);
        float scale = block_scale(w, r, c), part = 0;
        for (; c < end; c++) part += element(w->dtype, row, c) * x[i][c];
        sum += scale * part;
      }
      y[i][r - r0] = sum;
    }
  }
}

static void scalar_row(const mob_mat_t *w, int64_t r, float *out) {
  const uint8_t *row = w->data + (size_t)r * w->stride;
  for (int64_t c = 0; c < w->cols; c++) out[c] = element(w->dtype, row, c) * block_scale(w, r, c);
}

static void scalar_axpy(float a, const float *x, float *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] += a * x[i];
}

static void scalar_rmsnorm(const float *x, const float *w, float eps, float *out, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  float factor = 1.0f / sqrtf(sum / (float)n + eps);
  for (int64_t i = 0; i < n; i++) out[i] = w[i] * (x[i] * factor);
}

static void scalar_silu_mul(const float *gate, const float *up, float *out, int64_t n) {
  for (int64_t i = 0; i < n; i++) out[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

static void scalar_scores(const float *q, const void *keys, mob_dtype_t dtype, int64_t stride,
                          int n, int64_t dim, float scale, float *scores) {
  for (int j = 0; j < n; j++) {
    const uint8_t *key = (const uint8_t *)keys + (size_t)(j * stride) * mob_dtype_size(dtype);
    float sum = 0;
    for (int64_t d = 0; d < dim; d++) sum += q[d] * element(dtype, key, d);
    scores[j] = sum * scale;
  }
}

static void scalar_mix(const float *p, const void *values, mob_dtype_t dtype, int64_t stride, int n,
                       int64_t dim, float *out) {
  for (int j = 0; j < n; j++) {
    const uint8_t *value = (const uint8_t *)values + (size_t)(j * stride) * mob_dtype_size(dtype);
    for (int64_t d = 0; d < dim; d++) out[d] += p[j] * element(dtype, value, d);
  }
}

static float scalar_exp_sum(float *p, float max, int n) {
  float sum = 0;
  for (int j = 0; j < n; j++) sum += p[j] = expf(p[j] - max);
  return sum;
}

static void scalar_store(const float *x, mob_dtype_t dtype, void *out, int64_t n) {
  if (dtype == MOB_DT_F32) {
    memcpy(out, x, (size_t)n * sizeof *x);
    return;
  }
  uint16_t *half = out;
  for (int64_t i = 0; i < n; i++)
    half[i] = dtype == MOB_DT_BF16 ? mob_f32_to_bf16(x[i]) : mob_f32_to_f16(x[i]);
}

static float scalar_max(const float *x, int64_t n) {
  float max = -INFINITY;
  for (int64_t i = 0; i < n; i++) max = x[i] > max ? x[i] : max;
  return max;
}

const mob_cpu_ops_t mob_cpu_ops_scalar = {
    "scalar",      scalar_gemm, scalar_row,     scalar_axpy,  scalar_rmsnorm, scalar_silu_mul,
    scalar_scores, scalar_mix,  scalar_exp_sum, scalar_store, scalar_max};
