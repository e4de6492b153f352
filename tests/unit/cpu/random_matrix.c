#include "random_matrix.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"

static uint64_t seed = 1;

static uint32_t next_random(void) {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(seed >> 33);
}

static float uniform(void) {
  return (float)next_random() / 1073741824.0f - 1.0f;
} // [-1, 1)

float *random_floats(int64_t n) {
  float *x = mob_malloc((size_t)n * sizeof *x + 64);
  for (int64_t i = 0; i < n; i++) x[i] = uniform();
  return x;
}

mob_mat_t random_matrix(mob_dtype_t dtype, int64_t rows, int64_t cols, int64_t row0, int64_t col0,
                        uint8_t **block, float **scales) {
  size_t size = mob_dtype_size(dtype), stride = (size_t)(cols + 5) * size;
  *block = mob_malloc((size_t)rows * stride + 64);
  uint8_t *data = *block + 1;
  for (int64_t r = 0; r < rows; r++) {
    for (int64_t c = 0; c < cols; c++) {
      float f = uniform();
      uint16_t half = dtype == MOB_DT_BF16
                          ? mob_f32_to_bf16(f)
                          : (uint16_t)(next_random() % 0x3c00u | (next_random() & 0x8000u));
      uint8_t code = (uint8_t)next_random();
      if ((code & 0x7f) == 0x7f) code = 0;
      memcpy(data + (size_t)r * stride + (size_t)c * size,
             dtype == MOB_DT_F32      ? (void *)&f
             : dtype == MOB_DT_F8E4M3 ? (void *)&code
                                      : (void *)&half,
             size);
    }
  }
  mob_mat_t w = {.dtype = dtype,
                 .rows = rows,
                 .cols = cols,
                 .data = data,
                 .stride = stride,
                 .row0 = row0,
                 .col0 = col0};
  *scales = NULL;
  if (dtype == MOB_DT_F8E4M3) {
    w.block_rows = w.block_cols = 128;
    w.scale_stride = (col0 + cols + 127) / 128;
    *scales = random_floats(w.scale_stride * ((row0 + rows + 127) / 128));
    w.scales = *scales;
  }
  return w;
}
