// The vector operations, once for all widths. Included by ops_avx2.c and ops_avx512.c, which define
// before:
//   W                      floats in a vector
//   vf                     the vector type
//   v_load v_store v_zero v_set1 v_fma(a, b, c) = a b + c, v_add v_mul v_max v_sum v_top
//   v_sum4(p, v)           p[k] = v_sum(v[k]) for four vectors, the lanes added in the same order
//   v_bf16(p) v_f16(p)     W weights widened to fp32; p needs no alignment
//   v_e4m3(p)              W weights widened, times 2^-8 (the factor is put back with the block's
//   scale) v_exp(x)               e^x for x <= 88, relative error below 2e-7 v_store_bf16(p, x)
//   v_store_f16(p, x)   nearest, ties to even DIRECT_ROWS, TILE_M    rows of W computed together
//   for few rows of x; rows of x for many OPS_NAME, OPS_TABLE    of the table
//
// Order of every dot product, whatever is computed beside it: x is multiplied by the scale of its
// block first; lane l of one accumulator takes columns l, l + W, ... of a scale block (the whole
// row when there are no scales), block after block; the lanes are added at the end.
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "engine/cpu/ops.h"
#include "engine/model/half.h"

#define UNROLL _Pragma("GCC unroll 8") // so that arrays of accumulators become registers
#define INLINE static inline __attribute__((always_inline))

INLINE vf v_weight(mob_dtype_t dtype, const uint8_t *p) {
  switch (dtype) {
  case MOB_DT_F32:
    return v_load((const float *)p);
  case MOB_DT_BF16:
    return v_bf16(p);
  case MOB_DT_F16:
    return v_f16(p);
  default:
    return v_e4m3(p);
  }
}

INLINE size_t size_of(mob_dtype_t dtype) {
  return dtype == MOB_DT_F32 ? 4 : dtype == MOB_DT_F8E4M3 ? 1 : 2;
}

// The last n < W weights of a block, zeros behind them.
INLINE vf v_weight_tail(mob_dtype_t dtype, const uint8_t *p, int64_t n) {
  uint8_t padded[W * 4] = {0};
  memcpy(padded, p, (size_t)n * size_of(dtype));
  return v_weight(dtype, padded);
}

INLINE vf v_load_tail(const float *p, int64_t n) {
  float padded[W] = {0};
  memcpy(padded, p, (size_t)n * sizeof *p);
  return v_load(padded);
}

INLINE int64_t segment_end(const mob_mat_t *w, int64_t c) {
  if (!w->scales) return w->cols;
  int64_t end = ((w->col0 + c) / w->block_cols + 1) * w->block_cols - w->col0;
  return end < w->cols ? end : w->cols;
}

// First row behind the scale block that row r lies in.
INLINE int64_t row_block_end(const mob_mat_t *w, int64_t r, int64_t last) {
  if (!w->scales) return last;
  int64_t end = ((w->row0 + r) / w->block_rows + 1) * w->block_rows - w->row0;
  return end < last ? end : last;
}

// The factor 256 is what v_e4m3() leaves out.
INLINE float segment_scale(const mob_mat_t *w, int64_t r, int64_t c) {
  return w->scales[(w->row0 + r) / w->block_rows * w->scale_stride +
                   (w->col0 + c) / w->block_cols] *
         256.0f;
}

// 64 bytes of one row against M rows of x.
INLINE void direct_line(mob_dtype_t dtype, const int M, const uint8_t *p, const float *const *x,
                        int64_t c, vf *part) {
  const int vectors = 64 / (int)size_of(dtype) / W;
#ifdef WIDE_E4M3
  if (dtype == MOB_DT_F8E4M3) {
    vf weight[4];
    v_e4m3x4(p, weight);
    UNROLL for (int q = 0; q < 4; q++) UNROLL for (int i = 0; i < M; i++) part[i] =
        v_fma(weight[q], v_load(x[i] + c + q * W), part[i]);
    return;
  }
#endif
  UNROLL for (int q = 0; q < vectors; q++) {
    vf weight = v_weight(dtype, p + (size_t)(q * W) * size_of(dtype));
    UNROLL for (int i = 0; i < M; i++) part[i] = v_fma(weight, v_load(x[i] + c + q * W), part[i]);
  }
}

// ROWS rows of W from r against M rows of x, which are scaled.
INLINE void direct(mob_dtype_t dtype, const int ROWS, const int M, const mob_mat_t *w, int64_t r,
                   const float *const *x, float *const *y, int64_t at) {
  const size_t size = size_of(dtype);
  const uint8_t *row[8];
  const size_t ahead = (size_t)ROWS * w->stride; // prefetching behind the last row does no harm
  vf total[8][4];
  UNROLL for (int k = 0; k < ROWS; k++) {
    row[k] = w->data + (size_t)(r + k) * w->stride;
    UNROLL for (int i = 0; i < M; i++) total[k][i] = v_zero();
  }
  for (int64_t c = 0; c < w->cols;) {
    int64_t end = segment_end(w, c);
    // 64 bytes of every row at a time. Rows follow one another in memory, and short ones are over
    // before the hardware has seen a stream: what the next rows need is asked for here.
    const int64_t line = 64 / (int64_t)size;
    for (; c + line <= end; c += line) {
      UNROLL for (int k = 0; k < ROWS; k++) {
        const uint8_t *p = row[k] + (size_t)c * size;
        if (M == 1) __builtin_prefetch(p + ahead, 0, 3);
        direct_line(dtype, M, p, x, c, total[k]);
      }
    }
    for (; c + W <= end; c += W) UNROLL for (int k = 0; k < ROWS; k++) {
        vf weight = v_weight(dtype, row[k] + (size_t)c * size);
        UNROLL for (int i = 0; i < M; i++) total[k][i] =
            v_fma(weight, v_load(x[i] + c), total[k][i]);
      }
    if (c < end) {
      UNROLL for (int k = 0; k < ROWS; k++) {
        vf weight = v_weight_tail(dtype, row[k] + (size_t)c * size, end - c);
        UNROLL for (int i = 0; i < M; i++) total[k][i] =
            v_fma(weight, v_load_tail(x[i] + c, end - c), total[k][i]);
      }
      c = end;
    }
  }
  UNROLL for (int i = 0; i < M; i++) UNROLL for (int k = 0; k < ROWS; k++) y[i][at + k] =
      v_sum(total[k][i]);
}

// x times the scales of row r's blocks.
INLINE void scale_row(const mob_mat_t *w, int64_t r, const float *x, float *out) {
  for (int64_t c = 0; c < w->cols;) {
    int64_t end = segment_end(w, c);
    vf scale = v_set1(segment_scale(w, r, c));
    for (; c + W <= end; c += W) v_store(out + c, v_mul(scale, v_load(x + c)));
    for (; c < end; c++) out[c] = segment_scale(w, r, c) * x[c];
  }
}

// One or two rows of x, all rows of W.
INLINE void direct_all(mob_dtype_t dtype, const int M, const mob_mat_t *w, int64_t r0, int64_t r1,
                       const float *const *x, float *const *y) {
  const int rows = M == 1 ? DIRECT_ROWS : 4;
  float scaled[w->scales ? M * w->cols : 1];
  const float *in[2];
  for (int i = 0; i < M; i++) in[i] = w->scales ? scaled + i * w->cols : x[i];
  for (int64_t r = r0, end; r < r1;) {
    end = row_block_end(w, r, r1);
    if (w->scales)
      for (int i = 0; i < M; i++) scale_row(w, r, x[i], scaled + i * w->cols);
    for (; r + rows <= end; r += rows) direct(dtype, rows, M, w, r, in, y, r - r0);
    for (; r < end; r++) direct(dtype, 1, M, w, r, in, y, r - r0);
  }
}

#define DIRECT(dtype)                                                                              \
  if (m == 1)                                                                                      \
    direct_all(dtype, 1, w, r0, r1, x, y);                                                         \
  else                                                                                             \
    direct_all(dtype, 2, w, r0, r1, x, y)

static void few_rows(const mob_mat_t *w, int64_t r0, int64_t r1, const float *const *x,
                     float *const *y, int m) {
  switch (w->dtype) {
  case MOB_DT_F32:
    DIRECT(MOB_DT_F32);
    break;
  case MOB_DT_BF16:
    DIRECT(MOB_DT_BF16);
    break;
  case MOB_DT_F16:
    DIRECT(MOB_DT_F16);
    break;
  default:
    DIRECT(MOB_DT_F8E4M3);
  }
}

#include "engine/cpu/gemm_vec.h"

static void vec_gemm(const mob_mat_t *w, int64_t r0, int64_t r1, const float *const *x,
                     float *const *y, int m) {
  if (m >= TILE_M) {
    many_rows(w, r0, r1, x, y, m);
    return;
  }
  for (int i = 0; i < m; i += 2) few_rows(w, r0, r1, x + i, y + i, m - i < 2 ? m - i : 2);
}

INLINE void row_of(mob_dtype_t dtype, const mob_mat_t *w, int64_t r, float *out) {
  const uint8_t *row = w->data + (size_t)r * w->stride;
  for (int64_t c = 0; c < w->cols;) {
    int64_t end = segment_end(w, c);
    vf scale = v_set1(w->scales ? segment_scale(w, r, c) : 1.0f);
    for (; c + W <= end; c += W)
      v_store(out + c, v_mul(scale, v_weight(dtype, row + (size_t)c * size_of(dtype))));
    if (c < end) {
      float padded[W];
      v_store(padded,
              v_mul(scale, v_weight_tail(dtype, row + (size_t)c * size_of(dtype), end - c)));
      memcpy(out + c, padded, (size_t)(end - c) * sizeof *out);
      c = end;
    }
  }
}

static void vec_row(const mob_mat_t *w, int64_t r, float *out) {
  switch (w->dtype) {
  case MOB_DT_F32:
    row_of(MOB_DT_F32, w, r, out);
    break;
  case MOB_DT_BF16:
    row_of(MOB_DT_BF16, w, r, out);
    break;
  case MOB_DT_F16:
    row_of(MOB_DT_F16, w, r, out);
    break;
  default:
    row_of(MOB_DT_F8E4M3, w, r, out);
  }
}

static void vec_axpy(float a, const float *x, float *y, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) v_store(y + i, v_fma(v_set1(a), v_load(x + i), v_load(y + i)));
  for (; i < n; i++) y[i] = fmaf(a, x[i], y[i]);
}

static void vec_rmsnorm(const float *x, const float *w, float eps, float *out, int64_t n) {
  vf sum = v_zero();
  int64_t i = 0;
  for (; i + W <= n; i += W) sum = v_fma(v_load(x + i), v_load(x + i), sum);
  if (i < n) sum = v_fma(v_load_tail(x + i, n - i), v_load_tail(x + i, n - i), sum);
  float factor = 1.0f / sqrtf(v_sum(sum) / (float)n + eps);
  for (i = 0; i + W <= n; i += W)
    v_store(out + i, v_mul(v_load(w + i), v_mul(v_load(x + i), v_set1(factor))));
  for (; i < n; i++) out[i] = w[i] * (x[i] * factor);
}

INLINE vf silu_mul(vf gate, vf up) {
  // exp(-88) is the smallest that does not vanish: beyond it silu(x) is x or 0 anyway.
  vf e = v_exp(v_max(v_mul(v_set1(-1.0f), gate), v_set1(-88.0f)));
  return v_mul(v_div(gate, v_add(v_set1(1.0f), e)), up);
}

static void vec_silu_mul(const float *gate, const float *up, float *out, int64_t n) {
  int64_t i = 0;
  for (; i + W <= n; i += W) v_store(out + i, silu_mul(v_load(gate + i), v_load(up + i)));
  if (i < n) {
    float padded[W];
    v_store(padded, silu_mul(v_load_tail(gate + i, n - i), v_load_tail(up + i, n - i)));
    memcpy(out + i, padded, (size_t)(n - i) * sizeof *out);
  }
}

INLINE void scores_of(mob_dtype_t dtype, const int KEYS, const float *q, const uint8_t *keys,
                      int64_t bytes, int64_t dim, float scale, float *scores) {
  vf sum[4];
  UNROLL for (int k = 0; k < KEYS; k++) sum[k] = v_zero();
  int64_t d = 0;
  for (; d + W <= dim; d += W) {
    vf v = v_load(q + d);
    UNROLL for (int k = 0; k < KEYS; k++) sum[k] =
        v_fma(v, v_weight(dtype, keys + k * bytes + d * (int64_t)size_of(dtype)), sum[k]);
  }
  if (d < dim) {
    vf v = v_load_tail(q + d, dim - d);
    UNROLL for (int k = 0; k < KEYS; k++) sum[k] = v_fma(
        v, v_weight_tail(dtype, keys + k * bytes + d * (int64_t)size_of(dtype), dim - d), sum[k]);
  }
  UNROLL for (int k = 0; k < KEYS; k++) scores[k] = v_sum(sum[k]) * scale;
}

INLINE void scores_all(mob_dtype_t dtype, const float *q, const void *keys, int64_t stride, int n,
                       int64_t dim, float scale, float *scores) {
  int64_t bytes = stride * (int64_t)size_of(dtype);
  const uint8_t *p = keys;
  int j = 0;
  for (; j + 4 <= n; j += 4) scores_of(dtype, 4, q, p + j * bytes, bytes, dim, scale, scores + j);
  for (; j < n; j++) scores_of(dtype, 1, q, p + j * bytes, bytes, dim, scale, scores + j);
}

static void vec_scores(const float *q, const void *keys, mob_dtype_t dtype, int64_t stride, int n,
                       int64_t dim, float scale, float *scores) {
  if (dtype == MOB_DT_F32)
    scores_all(MOB_DT_F32, q, keys, stride, n, dim, scale, scores);
  else if (dtype == MOB_DT_F16)
    scores_all(MOB_DT_F16, q, keys, stride, n, dim, scale, scores);
  else
    scores_all(MOB_DT_BF16, q, keys, stride, n, dim, scale, scores);
}

INLINE void mix_columns(mob_dtype_t dtype, const int VECTORS, const float *p, const uint8_t *values,
                        int64_t bytes, int n, float *out) {
  vf sum[4];
  UNROLL for (int k = 0; k < VECTORS; k++) sum[k] = v_load(out + k * W);
  for (int j = 0; j < n; j++) {
    vf a = v_set1(p[j]);
    UNROLL for (int k = 0; k < VECTORS; k++) sum[k] =
        v_fma(a, v_weight(dtype, values + j * bytes + k * W * (int64_t)size_of(dtype)), sum[k]);
  }
  UNROLL for (int k = 0; k < VECTORS; k++) v_store(out + k * W, sum[k]);
}

INLINE void mix_all(mob_dtype_t dtype, const float *p, const void *values, int64_t stride, int n,
                    int64_t dim, float *out) {
  int64_t size = (int64_t)size_of(dtype), bytes = stride * size, d = 0;
  const uint8_t *v = values;
  for (; d + 4 * W <= dim; d += 4 * W) mix_columns(dtype, 4, p, v + d * size, bytes, n, out + d);
  for (; d + W <= dim; d += W) mix_columns(dtype, 1, p, v + d * size, bytes, n, out + d);
  if (d == dim) return;
  vf sum = v_load_tail(out + d, dim - d);
  for (int j = 0; j < n; j++)
    sum = v_fma(v_set1(p[j]), v_weight_tail(dtype, v + j * bytes + d * size, dim - d), sum);
  float padded[W];
  v_store(padded, sum);
  memcpy(out + d, padded, (size_t)(dim - d) * sizeof *out);
}

static void vec_mix(const float *p, const void *values, mob_dtype_t dtype, int64_t stride, int n,
                    int64_t dim, float *out) {
  if (dtype == MOB_DT_F32)
    mix_all(MOB_DT_F32, p, values, stride, n, dim, out);
  else if (dtype == MOB_DT_F16)
    mix_all(MOB_DT_F16, p, values, stride, n, dim, out);
  else
    mix_all(MOB_DT_BF16, p, values, stride, n, dim, out);
}

static float vec_exp_sum(float *p, float max, int n) {
  vf sum = v_zero(), top = v_set1(-max);
  int j = 0;
  for (; j + W <= n; j += W) {
    vf e = v_exp(v_max(v_add(v_load(p + j), top), v_set1(-88.0f)));
    v_store(p + j, e);
    sum = v_add(sum, e);
  }
  if (j < n) {
    float padded[W];
    for (int k = 0; k < W; k++) padded[k] = j + k < n ? p[j + k] : -INFINITY;
    v_store(padded, v_exp(v_max(v_add(v_load(padded), top), v_set1(-88.0f))));
    for (int k = 0; k < W; k++) padded[k] = j + k < n ? padded[k] : 0;
    sum = v_add(sum, v_load(padded));
    memcpy(p + j, padded, (size_t)(n - j) * sizeof *p);
  }
  return v_sum(sum);
}

static void vec_store(const float *x, mob_dtype_t dtype, void *out, int64_t n) {
  if (dtype == MOB_DT_F32) {
    memcpy(out, x, (size_t)n * sizeof *x);
    return;
  }
  uint16_t *half = out;
  int64_t i = 0;
  if (dtype == MOB_DT_F16) {
    for (; i + W <= n; i += W) v_store_f16(half + i, v_load(x + i));
    for (; i < n; i++) half[i] = mob_f32_to_f16(x[i]);
    return;
  }
  for (; i + W <= n; i += W) v_store_bf16(half + i, v_load(x + i));
  for (; i < n; i++) half[i] = mob_f32_to_bf16(x[i]);
}

static float vec_max(const float *x, int64_t n) {
  vf best = v_set1(-INFINITY);
  int64_t i = 0;
  for (; i + W <= n; i += W) best = v_max(best, v_load(x + i));
  float max = v_top(best);
  for (; i < n; i++) max = x[i] > max ? x[i] : max;
  return max;
}

const mob_cpu_ops_t OPS_TABLE = {OPS_NAME,    vec_gemm,     vec_row,    vec_axpy,
                                 vec_rmsnorm, vec_silu_mul, vec_scores, vec_mix,
                                 vec_exp_sum, vec_store,    vec_max};
