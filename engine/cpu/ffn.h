// A network and the rows it works on, in the passes of ffn.c and ffn_tiles.c.
#ifndef MOB_CPU_FFN_H
#define MOB_CPU_FFN_H

#include "engine/cpu/amx.h"
#include "engine/cpu/exec.h"

typedef struct task {
  const mob_ffn_t *net;
  const int32_t *rows;  // of the step; NULL: row i is i
  const float *weights; // NULL: 1
  int m;
  float *act;         // [m][net->gate.rows]
  int64_t first_unit; // of the first pass
} mob_task_t;

// Whether the passes below can compute the tasks.
bool mob__ffn_tiles_take(const mob_rank_t *rank, const mob_task_t *tasks, int count);
size_t mob__ffn_tiles_scratch(void); // floats of a thread
// act = silu(gate x) * (up x), then part += weight * down act, task after task.
void mob__ffn_tiles(mob_rank_t *rank, const mob_task_t *tasks, int count);

#endif
