// Values of `--load-format dummy`: no files, but weights that keep activations of unit size and
// route evenly.
//   FP8 matrix     N(0, 64^2) in e4m3, clamped to +-448; its scales 1 / (64 sqrt(K)), K = columns
//   rounded up to blocks other matrix   N(0, 1/K); the embedding N(0, 1) norms 1, biases and the
//   router's correction bias 0
// Element (row, col) depends only on the tensor's name and row * cols + col, so that a shard is a
// slice of the whole on every rank and every backend.
#ifndef MOB_MODEL_DUMMY_H
#define MOB_MODEL_DUMMY_H

#include "engine/model/model.h"

// Writes [shard.rows][shard.cols] elements of `dtype` to `out`.
void mob_dummy_fill(const mob_slot_t *slot, mob_dtype_t dtype, const mob_shard_t *shard, void *out);
// The same for a backend that draws on its own device: element i of the whole tensor (row * cols +
// col) is
//   `constant` unless that is NaN, else quantile[pick] * std, for FP8 the code quantile_f8[pick],
//   where pick = 16 bits of splitmix64(key + i / 4 * 0xd1342543de82ef95), the i mod 4-th from below
typedef struct mob_dummy_rule {
  uint64_t key;
  float std, constant;
  const float *quantile;      // [65536] of N(0, 1)
  const uint8_t *quantile_f8; // [65536] of N(0, 64^2)
} mob_dummy_rule_t;
void mob_dummy_rule(const mob_slot_t *slot, mob_dummy_rule_t *out);
// The one value that all FP8 scales of the slot have.
float mob_dummy_scale(const mob_model_desc_t *desc, const mob_slot_t *slot);

#endif
