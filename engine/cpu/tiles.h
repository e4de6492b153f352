// Products on the tile unit (amx.h) over a rank's team: rows are packed in one loop of the team and
// multiplied in the next.
#ifndef MOB_CPU_TILES_H
#define MOB_CPU_TILES_H

#include "engine/cpu/amx.h"
#include "engine/cpu/exec.h"

// Rows that are packed together, at most MOB_AMX_BATCH.
typedef struct mob_pack {
  const mob_mat_t *w;   // any matrix of the products: its columns say how x is cut
  const float *x;       // rows of ldx floats
  const int32_t *index; // row i is index[i]; NULL: i
  int64_t ldx;
  int m;
  uint8_t *packed; // set by mob__tiles_pack()
  int64_t first_unit;
} mob_pack_t;

static inline int mob__pack_width(int m) {
  return m < MOB_AMX_GROUP ? m : MOB_AMX_GROUP;
}

size_t mob__tiles_memory(const mob_exec_t *exec); // bytes of rank->packed
// How many of `m` rows fit into `room` bytes (0: none).
int mob__pack_fits(const mob_mat_t *w, int m, size_t room, size_t *bytes);
// Packs all into rank->packed, where they fit.
void mob__tiles_pack(mob_rank_t *rank, mob_pack_t *packs, int count);
// Rows of W that a unit of a loop takes, so that `rows` keep the team busy.
int64_t mob__tiles_unit(const mob_rank_t *rank, int64_t rows, int m);
void mob__tiles_linear(mob_rank_t *rank, const mob_mat_t *w, const float *bias, const float *x,
                       int64_t ldx, float *y, int64_t ldy, int m);

#endif
