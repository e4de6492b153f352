#include "engine/cpu/tiles.h"

enum { ROOM_GROUPS = 64 }; // groups of the widest rows that are packed together

static size_t widest(const mob_mat_t *w, size_t most) {
  size_t bytes = w->rows && mob_amx_takes(w) ? mob_amx_group_bytes(w, MOB_AMX_GROUP) : 0;
  return bytes > most ? bytes : most;
}

static size_t widest_ffn(const mob_ffn_t *net, size_t most) {
  return widest(&net->down, widest(&net->gate, most));
}

size_t mob__tiles_memory(const mob_exec_t *exec) {
  const mob_exec_spec_t *s = &exec->spec;
  size_t most = 0;
  if (!exec->tiles) return 0;
  for (int r = 0; r < s->tp; r++) {
    const mob_rank_weights_t *weights = &exec->ranks[r].weights;
    most = widest(&weights->outer.m[MOB_W_HEAD], most);
    for (int l = 0; l < s->last_layer - s->first_layer; l++) {
      const mob_layer_t *layer = &weights->layers[l];
      for (int i = 0; i < MOB_W_COUNT; i++) most = widest(&layer->m[i], most);
      most = widest_ffn(&layer->dense, widest_ffn(&layer->shared, most));
      for (int e = 0; layer->experts && e < exec->desc->n_experts; e++)
        most = widest_ffn(&layer->experts[e], most);
    }
  }
  return most * ROOM_GROUPS;
}

int mob__pack_fits(const mob_mat_t *w, int m, size_t room, size_t *bytes) {
  m = m < MOB_AMX_BATCH ? m : MOB_AMX_BATCH;
  int width = mob__pack_width(m), groups = (m + width - 1) / width;
  size_t group = mob_amx_group_bytes(w, width);
  if ((size_t)groups * group > room) {
    groups = (int)(room / group);
    m = groups * width;
  }
  *bytes = (size_t)groups * group;
  return m;
}

typedef struct packing {
  const mob_pack_t *packs;
  int count;
} packing_t;

static void pack_group(void *arg, int64_t unit, int thread) {
  (void)thread;
  const packing_t *all = arg;
  int low = 0, high = all->count - 1;
  while (low < high) { // the last one that begins at or before `unit`
    int mid = (low + high + 1) / 2;
    if (all->packs[mid].first_unit <= unit)
      low = mid;
    else
      high = mid - 1;
  }
  const mob_pack_t *p = &all->packs[low];
  int width = mob__pack_width(p->m), from = (int)(unit - p->first_unit) * width;
  int n = p->m - from < width ? p->m - from : width;
  const float *x[MOB_AMX_GROUP];
  for (int i = 0; i < n; i++) x[i] = p->x + (p->index ? p->index[from + i] : from + i) * p->ldx;
  mob_amx_pack(p->w, x, n, width,
               p->packed + (size_t)(unit - p->first_unit) * mob_amx_group_bytes(p->w, width));
}

void mob__tiles_pack(mob_rank_t *rank, mob_pack_t *packs, int count) {
  uint8_t *to = rank->packed;
  int64_t units = 0;
  double cost = 0;
  for (int k = 0; k < count; k++) {
    int width = mob__pack_width(packs[k].m), groups = (packs[k].m + width - 1) / width;
    packs[k].packed = to;
    packs[k].first_unit = units;
    to += (size_t)groups * mob_amx_group_bytes(packs[k].w, width);
    units += groups;
    cost += 8.0 * packs[k].m * (double)packs[k].w->cols;
  }
  packing_t all = {packs, count};
  mob_team_run(rank->team, units, cost, pack_group, &all);
}

int64_t mob__tiles_unit(const mob_rank_t *rank, int64_t rows, int m) {
  int64_t unit = m <= MOB_AMX_GROUP ? 64 : MOB_AMX_ROWS;
  while (unit > 64 && rows < 2 * unit * mob_team_size(rank->team)) unit /= 2;
  return unit;
}

typedef struct linear {
  const mob_mat_t *w;
  const float *bias;
  const uint8_t *packed;
  float *y;
  int64_t ldy, unit_rows;
  int m;
} linear_t;

static void run_unit(void *arg, int64_t unit, int thread) {
  (void)thread;
  const linear_t *l = arg;
  int64_t r0 = unit * l->unit_rows, r1 = r0 + l->unit_rows;
  if (r1 > l->w->rows) r1 = l->w->rows;
  float *y[MOB_AMX_BATCH];
  for (int i = 0; i < l->m; i++) y[i] = l->y + i * l->ldy + r0;
  mob_amx_gemm(l->w, r0, r1, l->packed, y, l->m);
  for (int i = 0; l->bias && i < l->m; i++)
    for (int64_t r = r0; r < r1; r++) y[i][r - r0] += l->bias[r];
}

void mob__tiles_linear(mob_rank_t *rank, const mob_mat_t *w, const float *bias, const float *x,
                       int64_t ldx, float *y, int64_t ldy, int m) {
  size_t bytes;
  for (int from = 0, n; from < m; from += n) {
    n = mob__pack_fits(w, m - from, rank->exec->packed_bytes, &bytes);
    mob_pack_t pack = {.w = w, .x = x + from * ldx, .ldx = ldx, .m = n};
    mob__tiles_pack(rank, &pack, 1);
    linear_t l = {w, bias, pack.packed, y + from * ldy, ldy, mob__tiles_unit(rank, w->rows, n), n};
    mob_team_run(rank->team, (w->rows + l.unit_rows - 1) / l.unit_rows,
                 (double)w->rows * (double)w->cols * n, run_unit, &l);
  }
}
