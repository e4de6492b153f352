#include <math.h>

#include "engine/cpu/exec.h"

void mob__rope_table(const mob_model_desc_t *desc, const uint32_t *positions, int m,
                     float *cos_sin) {
  int half = desc->rope.dim / 2;
  for (int i = 0; i < m; i++) {
    for (int k = 0; k < half; k++) {
      // The angle is rounded to fp32 as transformers does; its sine is exact.
      float angle = (float)positions[i] * desc->rope.inv_freq[k];
      cos_sin[(i * half + k) * 2] = (float)cos((double)angle) * desc->rope.factor;
      cos_sin[(i * half + k) * 2 + 1] = (float)sin((double)angle) * desc->rope.factor;
    }
  }
}

void mob__rope_apply(const mob_rope_t *rope, const float *cos_sin, float *x) {
  int half = rope->dim / 2;
  for (int k = 0; k < half; k++) {
    int a = rope->interleaved ? 2 * k : k, b = rope->interleaved ? 2 * k + 1 : k + half;
    float c = cos_sin[2 * k], s = cos_sin[2 * k + 1], u = x[a], v = x[b];
    x[a] = u * c - v * s;
    x[b] = v * c + u * s;
  }
}
