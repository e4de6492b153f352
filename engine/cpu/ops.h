// The arithmetic of the CPU backend: one table of operations per instruction set. The scalar table
// is the specification; the others are held against it on the same vectors.
//
// Everything is computed in fp32. A result never depends on how many rows are computed together:
// each dot product has its own accumulators and a fixed order, so that batch, chunk and thread
// count do not change a bit.
#ifndef MOB_CPU_OPS_H
#define MOB_CPU_OPS_H

#include <stddef.h>
#include <stdint.h>

#include "engine/model/desc.h"

// A weight matrix as one rank sees it, in place in the mapped file: row r begins at data + r *
// stride. FP8 values are multiplied by scales[(row0 + r) / block_rows][(col0 + c) / block_cols]: a
// shard may begin and end inside a block.
typedef struct mob_mat {
  mob_dtype_t dtype;
  mob_slot_id_t id; // which of the model's weights
  int64_t rows, cols; // of this shard; rows = 0: absent
  const uint8_t *data;
  size_t stride;       // bytes from row to row; data needs no alignment
  const float *scales; // FP8 only: of the whole tensor, scale_stride floats a row
  int64_t scale_stride, row0, col0;
  int block_rows, block_cols;
} mob_mat_t;

typedef struct mob_cpu_ops {
  const char *name;
  // y[i][r - r0] = sum over c of W[r][c] * x[i][c], for i < m and r0 <= r < r1.
  void (*gemm)(const mob_mat_t *w, int64_t r0, int64_t r1, const float *const *x, float *const *y,
               int m);
  // out[c] = W[r][c], dequantised.
  void (*row)(const mob_mat_t *w, int64_t r, float *out);
  // y[c] += a * x[c]
  void (*axpy)(float a, const float *x, float *y, int64_t n);
  // out[i] = x[i] * w[i] / sqrt(mean(x^2) + eps); out may be x
  void (*rmsnorm)(const float *x, const float *w, float eps, float *out, int64_t n);
  // out[i] = silu(gate[i]) * up[i]; out may be gate
  void (*silu_mul)(const float *gate, const float *up, float *out, int64_t n);
  // scores[j] = scale * sum over d of q[d] * keys[j][d], for j < n; keys are `dtype` (F32, BF16 or
  // F16) rows of `stride` elements.
  void (*scores)(const float *q, const void *keys, mob_dtype_t dtype, int64_t stride, int n,
                 int64_t dim, float scale, float *scores);
  // out[d] += sum over j of p[j] * values[j][d], in order of j
  void (*mix)(const float *p, const void *values, mob_dtype_t dtype, int64_t stride, int n,
              int64_t dim, float *out);
  // p[j] = exp(p[j] - max); returns the sum
  float (*exp_sum)(float *p, float max, int n);
  // out = x as F32, BF16 or F16 (nearest, ties to even)
  void (*store)(const float *x, mob_dtype_t dtype, void *out, int64_t n);
  float (*max)(const float *x, int64_t n);
} mob_cpu_ops_t;

extern const mob_cpu_ops_t mob_cpu_ops_scalar, mob_cpu_ops_avx2, mob_cpu_ops_avx512;

// The best table for this CPU; MOB_CPU_ISA=scalar|avx2|avx512 forces one that the CPU has (and keeps
// off the tile unit, amx.h).
const mob_cpu_ops_t *mob_cpu_ops_pick(void);
// By name; NULL when this CPU or this build lacks it.
const mob_cpu_ops_t *mob_cpu_ops_named(const char *name);

float mob_e4m3_to_f32(uint8_t code); // 0x7F and 0xFF are NaN
float mob_f16_to_f32(uint16_t bits);
static inline float mob_bf16_to_f32(uint16_t bits) {
  union {
    uint32_t u;
    float f;
  } v = {(uint32_t)bits << 16};
  return v.f;
}
static inline uint16_t mob_f32_to_bf16(float value) { // nearest, ties to even; NaN stays NaN
  union {
    float f;
    uint32_t u;
  } v = {value};
  if (value != value) return (uint16_t)(v.u >> 16 | 0x40);
  return (uint16_t)((v.u + 0x7fff + (v.u >> 16 & 1)) >> 16);
}

#endif
