// Products on the tile unit of a core (AMX-BF16), as exact as fp32 products: an activation is split
// in three BF16 parts whose sum it is (8 + 8 + 8 bits of its significand), FP8 and BF16 weights are
// BF16 values as they are, and a product of two BF16 values is exact in fp32. Sums are fp32; the
// scale of an FP8 block is multiplied onto the block's fp32 sum.
//
// A result does not depend on how many rows are computed together. It differs from the other
// instruction sets' by the order of additions, so a step of fewer than MOB_AMX_LEAST rows, which is
// left to those, agrees with a longer one within fp32 rounding, not bit for bit.
#ifndef MOB_CPU_AMX_H
#define MOB_CPU_AMX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/cpu/ops.h"

enum {
  MOB_AMX_PARTS = 3,
  MOB_AMX_LEAST = 4, // rows of a step that are worth it: fewer are bound by memory, not by products
  MOB_AMX_GROUP = 16, // rows of x in a tile
  MOB_AMX_ROWS = 512, // most rows of W in a call
  MOB_AMX_BATCH = 256 // most rows of x in a call
};

// This CPU and build have it, the kernel lets this process use it, and MOB_CPU_ISA does not name
// another set.
bool mob_amx_usable(void);

// Only FP8 and BF16 weights are exact as BF16.
static inline bool mob_amx_takes(const mob_mat_t *w) {
  return w->dtype == MOB_DT_F8E4M3 || w->dtype == MOB_DT_BF16;
}

// Bytes of a packed group of `width` rows (1 to MOB_AMX_GROUP) for products with w.
size_t mob_amx_group_bytes(const mob_mat_t *w, int width);
// Splits and packs n <= width rows; the others are zero. `out` is 64-byte aligned.
void mob_amx_pack(const mob_mat_t *w, const float *const *x, int n, int width, void *out);
// y[i][r - r0] = sum over c of W[r][c] * x[i][c] for i < m and r0 <= r < r1; `packed` holds the
// groups of x behind one another: of MOB_AMX_GROUP rows, or one of m rows where m is less.
void mob_amx_gemm(const mob_mat_t *w, int64_t r0, int64_t r1, const void *packed, float *const *y,
                  int m);

#endif
