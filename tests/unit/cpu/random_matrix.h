// Random vectors and matrices for tests of the operations.
#ifndef MOB_TESTS_CPU_RANDOM_MATRIX_H
#define MOB_TESTS_CPU_RANDOM_MATRIX_H

#include "engine/cpu/ops.h"

float *random_floats(int64_t n); // in [-1, 1); the caller frees them
// A shard that begins at (row0, col0) of its tensor, at an odd address. The caller frees *block and
// *scales.
mob_mat_t random_matrix(mob_dtype_t dtype, int64_t rows, int64_t cols, int64_t row0, int64_t col0,
                        uint8_t **block, float **scales);

#endif
