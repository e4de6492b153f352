// The two passes of a feed-forward layer on the tile unit. Tasks are cut into slices of at most
// MOB_AMX_BATCH rows, and as many slices as can be packed together make a wave: packed in one loop
// of the team, multiplied in the next.
#include "engine/cpu/ffn.h"
#include "engine/cpu/tiles.h"

enum { WAVE = 128 };

typedef struct slice {
  const mob_task_t *task;
  int from, m;
  int64_t first_unit, unit_rows;
} slice_t;

typedef struct wave {
  mob_rank_t *rank;
  mob_pack_t packs[WAVE];
  slice_t slices[WAVE];
  int count;
  int64_t units, unit_rows;
  double cost;
} wave_t;

bool mob__ffn_tiles_take(const mob_rank_t *rank, const mob_task_t *tasks, int count) {
  if (!rank->exec->tiles) return false;
  for (int k = 0; k < count; k++) {
    const mob_ffn_t *net = tasks[k].net;
    if (!mob_amx_takes(&net->gate) || !mob_amx_takes(&net->up) || !mob_amx_takes(&net->down))
      return false;
  }
  return true;
}

size_t mob__ffn_tiles_scratch(void) {
  return (size_t)MOB_AMX_ROWS * MOB_AMX_BATCH;
}

static void gate_up(void *arg, int64_t unit, int thread) {
  const wave_t *wave = arg;
  mob_rank_t *rank = wave->rank;
  int low = 0, high = wave->count - 1;
  while (low < high) { // the last slice that begins at or before `unit`
    int mid = (low + high + 1) / 2;
    if (wave->slices[mid].first_unit <= unit)
      low = mid;
    else
      high = mid - 1;
  }
  const slice_t *s = &wave->slices[low];
  const mob_ffn_t *net = s->task->net;
  int64_t inter = net->gate.rows, r0 = (unit - s->first_unit) * s->unit_rows;
  int64_t r1 = r0 + s->unit_rows < inter ? r0 + s->unit_rows : inter;
  float *gate[MOB_AMX_BATCH], *up[MOB_AMX_BATCH];
  for (int i = 0; i < s->m; i++) {
    gate[i] = s->task->act + (s->from + i) * inter + r0;
    up[i] = rank->scratch[thread] + (int64_t)i * MOB_AMX_ROWS;
  }
  mob_amx_gemm(&net->gate, r0, r1, wave->packs[low].packed, gate, s->m);
  mob_amx_gemm(&net->up, r0, r1, wave->packs[low].packed, up, s->m);
  for (int i = 0; i < s->m; i++) rank->exec->ops->silu_mul(gate[i], up[i], gate[i], r1 - r0);
}

static void down(void *arg, int64_t unit, int thread) {
  const wave_t *wave = arg;
  mob_rank_t *rank = wave->rank;
  int64_t hidden = rank->exec->desc->hidden, r0 = unit * wave->unit_rows;
  int64_t r1 = r0 + wave->unit_rows < hidden ? r0 + wave->unit_rows : hidden;
  float *y[MOB_AMX_BATCH];
  for (int i = 0; i < MOB_AMX_BATCH; i++) y[i] = rank->scratch[thread] + (int64_t)i * MOB_AMX_ROWS;
  for (int k = 0; k < wave->count; k++) {
    const slice_t *s = &wave->slices[k];
    const mob_task_t *t = s->task;
    mob_amx_gemm(&t->net->down, r0, r1, wave->packs[k].packed, y, s->m);
    for (int i = 0; i < s->m; i++) {
      int64_t row = t->rows ? t->rows[s->from + i] : s->from + i;
      rank->exec->ops->axpy(t->weights ? t->weights[s->from + i] : 1.0f, y[i],
                            rank->part + row * hidden + r0, r1 - r0);
    }
  }
}

static void run_wave(wave_t *wave, bool first) {
  mob_rank_t *rank = wave->rank;
  int64_t hidden = rank->exec->desc->hidden;
  mob__tiles_pack(rank, wave->packs, wave->count);
  if (first) {
    mob_team_run(rank->team, wave->units, 2 * wave->cost, gate_up, wave);
  } else {
    wave->unit_rows = mob__tiles_unit(rank, hidden, MOB_AMX_BATCH);
    mob_team_run(rank->team, (hidden + wave->unit_rows - 1) / wave->unit_rows, wave->cost, down,
                 wave);
  }
  wave->count = 0;
  wave->units = 0;
  wave->cost = 0;
}

static void pass(mob_rank_t *rank, const mob_task_t *tasks, int count, bool first) {
  const mob_exec_t *exec = rank->exec;
  wave_t wave = {.rank = rank};
  size_t room = exec->packed_bytes, bytes;
  int64_t rows = 0; // of W, of all tasks
  for (int k = 0; k < count; k++) rows += tasks[k].net->gate.rows;
  for (int k = 0; k < count; k++) {
    const mob_task_t *t = &tasks[k];
    const mob_mat_t *w = first ? &t->net->gate : &t->net->down;
    for (int from = 0, m; from < t->m; from += m) {
      m = mob__pack_fits(w, t->m - from, room, &bytes);
      if (m == 0 || wave.count == WAVE) {
        run_wave(&wave, first);
        room = exec->packed_bytes;
        m = mob__pack_fits(w, t->m - from, room, &bytes);
      }
      room -= bytes;
      wave.packs[wave.count] = (mob_pack_t){.w = w,
                                            .x = first ? rank->norm : t->act + from * w->cols,
                                            .index = first && t->rows ? t->rows + from : NULL,
                                            .ldx = first ? exec->desc->hidden : w->cols,
                                            .m = m};
      if (first && !t->rows) wave.packs[wave.count].x += from * exec->desc->hidden;
      slice_t *s = &wave.slices[wave.count++];
      *s = (slice_t){t, from, m, wave.units, mob__tiles_unit(rank, rows, m)};
      wave.units += (t->net->gate.rows + s->unit_rows - 1) / s->unit_rows;
      wave.cost += (double)m * (double)t->net->gate.rows * exec->desc->hidden;
    }
  }
  if (wave.count) run_wave(&wave, first);
}

void mob__ffn_tiles(mob_rank_t *rank, const mob_task_t *tasks, int count) {
  pass(rank, tasks, count, true);
  pass(rank, tasks, count, false);
}
