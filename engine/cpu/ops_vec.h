// The vector operations, once for all widths. Included by ops_avx2.c and ops_avx512.c, which define
// before:
//   W                      floats in a vector
//   vf                     the vector type
//   v_load v_store v_zero v_set1 v_fma(a, b, c) = a b + c, v_add v_mul v_max v_sum v_top
//   v_bf16(p) v_f16(p)     W weights widened to fp32; p needs no alignment
//   v_e4m3(p)              W weights widened, times 2^-8 (the factor is put back with the block's
//   scale) v_exp(x)               e^x for x <= 88, relative error below 2e-7 v_store_bf16(p, x)
//   v_store_f16(p, x)   nearest, ties to even DIRECT_ROWS, TILE_M    rows of W computed together
//   for few rows of x; rows of x for many OPS_NAME, OPS_TABLE    of the table
//
// Order of every dot product, whatever is computed beside it: lane l of an accumulator takes
// columns l, l + W, ... of a scale block (the whole row when there are no scales); block sums are
// added lane by lane times their scale; the lanes are added at the end.
#include <math.h>
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

// ROWS rows of W from r against M rows of x.
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
    int64_t begin = c, end = segment_end(w, c);
    vf part[8][4];
    UNROLL for (int k = 0; k < ROWS; k++) UNROLL for (int i = 0; i < M; i++) part[k][i] = v_zero();
    // 64 bytes of every row at a time. Rows follow one another in memory, and short ones are over
    // before the hardware has seen a stream: what the next rows need is asked for here.
    const int64_t line = 64 / (int64_t)size;
    for (; c + line <= end; c += line) {
      UNROLL for (int k = 0; k < ROWS; k++) {
        const uint8_t *p = row[k] + (size_t)c * size;
        if (M == 1) __builtin_prefetch(p + ahead, 0, 3);
        direct_line(dtype, M, p, x, c, part[k]);
      }
    }
    for (; c + W <= end; c += W) UNROLL for (int k = 0; k < ROWS; k++) {
        vf weight = v_weight(dtype, row[k] + (size_t)c * size);
        UNROLL for (int i = 0; i < M; i++) part[k][i] = v_fma(weight, v_load(x[i] + c), part[k][i]);
      }
    if (c < end) {
      UNROLL for (int k = 0; k < ROWS; k++) {
        vf weight = v_weight_tail(dtype, row[k] + (size_t)c * size, end - c);
        UNROLL for (int i = 0; i < M; i++) part[k][i] =
            v_fma(weight, v_load_tail(x[i] + c, end - c), part[k][i]);
      }
      c = end;
    }
    UNROLL for (int k = 0; k < ROWS; k++) {
      vf scale = w->scales ? v_set1(segment_scale(w, r + k, begin)) : v_set1(1.0f);
      UNROLL for (int i = 0; i < M; i++) total[k][i] = v_fma(scale, part[k][i], total[k][i]);
    }
  }
  UNROLL for (int i = 0; i < M; i++) UNROLL for (int k = 0; k < ROWS; k++) y[i][at + k] =
      v_sum(total[k][i]);
}

INLINE void direct_all(mob_dtype_t dtype, const mob_mat_t *w, int64_t r0, int64_t r1,
                       const float *const *x, float *const *y, int m) {
  int64_t r = r0;
  if (m == 1) {
    for (; r + DIRECT_ROWS <= r1; r += DIRECT_ROWS)
      direct(dtype, DIRECT_ROWS, 1, w, r, x, y, r - r0);
    for (; r < r1; r++) direct(dtype, 1, 1, w, r, x, y, r - r0);
    return;
  }
  int i = 0;
  for (; i + 2 <= m; i += 2) {
    for (r = r0; r + 4 <= r1; r += 4) direct(dtype, 4, 2, w, r, x + i, y + i, r - r0);
    for (; r < r1; r++) direct(dtype, 1, 2, w, r, x + i, y + i, r - r0);
  }
  if (i < m) {
    for (r = r0; r + 4 <= r1; r += 4) direct(dtype, 4, 1, w, r, x + i, y + i, r - r0);
    for (; r < r1; r++) direct(dtype, 1, 1, w, r, x + i, y + i, r - r0);
  }
}

// Many rows of x: four rows of W are widened once, then every TILE_M rows of x pass over them.
INLINE void tile(const mob_mat_t *w, const float *wide, int64_t ld, int64_t r, const int ROWS,
                 const int M, const float *const *x, float *const *y, int64_t at) {
  vf total[4][6];
  UNROLL for (int k = 0; k < ROWS; k++) UNROLL for (int i = 0; i < M; i++) total[k][i] = v_zero();
  const float *in = wide; // segments stand padded to whole vectors
  for (int64_t c = 0; c < w->cols;) {
    int64_t begin = c, end = segment_end(w, c);
    vf part[4][6];
    UNROLL for (int k = 0; k < ROWS; k++) UNROLL for (int i = 0; i < M; i++) part[k][i] = v_zero();
    for (; c < end; c += W, in += W) {
      vf v[6];
      UNROLL for (int i = 0; i < M; i++) v[i] =
          c + W <= end ? v_load(x[i] + c) : v_load_tail(x[i] + c, end - c);
      UNROLL for (int k = 0; k < ROWS; k++) {
        vf weight = v_load(in + k * ld);
        UNROLL for (int i = 0; i < M; i++) part[k][i] = v_fma(weight, v[i], part[k][i]);
      }
    }
    c = end;
    UNROLL for (int k = 0; k < ROWS; k++) {
      vf scale = w->scales ? v_set1(segment_scale(w, r + k, begin)) : v_set1(1.0f);
      UNROLL for (int i = 0; i < M; i++) total[k][i] = v_fma(scale, part[k][i], total[k][i]);
    }
  }
  UNROLL for (int i = 0; i < M; i++) UNROLL for (int k = 0; k < ROWS; k++) y[i][at + k] =
      v_sum(total[k][i]);
}

// Row r widened, each segment padded to whole vectors; without the scales.
INLINE void widen(mob_dtype_t dtype, const mob_mat_t *w, int64_t r, float *out) {
  const uint8_t *row = w->data + (size_t)r * w->stride;
  for (int64_t c = 0; c < w->cols;) {
    int64_t end = segment_end(w, c);
    for (; c + W <= end; c += W, out += W)
      v_store(out, v_weight(dtype, row + (size_t)c * size_of(dtype)));
    if (c < end) {
      v_store(out, v_weight_tail(dtype, row + (size_t)c * size_of(dtype), end - c));
      out += W;
      c = end;
    }
  }
}

static void widen_any(const mob_mat_t *w, int64_t r, float *out) {
  switch (w->dtype) {
  case MOB_DT_F32:
    widen(MOB_DT_F32, w, r, out);
    break;
  case MOB_DT_BF16:
    widen(MOB_DT_BF16, w, r, out);
    break;
  case MOB_DT_F16:
    widen(MOB_DT_F16, w, r, out);
    break;
  default:
    widen(MOB_DT_F8E4M3, w, r, out);
  }
}

static void tiles(const mob_mat_t *w, int64_t r0, int64_t r1, const float *const *x,
                  float *const *y, int m) {
  int64_t segments = w->scales ? w->cols / w->block_cols + 2 : 1, ld = w->cols + segments * W;
  float wide[4 * ld] __attribute__((aligned(64)));
  for (int64_t r = r0; r < r1; r += 4) {
    int rows = r1 - r < 4 ? (int)(r1 - r) : 4;
    for (int k = 0; k < rows; k++) widen_any(w, r + k, wide + k * ld);
    int i = 0;
    if (rows == 4) {
      for (; i + TILE_M <= m; i += TILE_M) tile(w, wide, ld, r, 4, TILE_M, x + i, y + i, r - r0);
      for (; i < m; i++) tile(w, wide, ld, r, 4, 1, x + i, y + i, r - r0);
    }
    for (; i < m; i++)
      for (int k = 0; k < rows; k++)
        tile(w, wide + k * ld, ld, r + k, 1, 1, x + i, y + i, r + k - r0);
  }
}

static void vec_gemm(const mob_mat_t *w, int64_t r0, int64_t r1, const float *const *x,
                     float *const *y, int m) {
  if (m >= TILE_M) {
    tiles(w, r0, r1, x, y, m);
    return;
  }
  switch (w->dtype) {
  case MOB_DT_F32:
    direct_all(MOB_DT_F32, w, r0, r1, x, y, m);
    break;
  case MOB_DT_BF16:
    direct_all(MOB_DT_BF16, w, r0, r1, x, y, m);
    break;
  case MOB_DT_F16:
    direct_all(MOB_DT_F16, w, r0, r1, x, y, m);
    break;
  default:
    direct_all(MOB_DT_F8E4M3, w, r0, r1, x, y, m);
  }
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
