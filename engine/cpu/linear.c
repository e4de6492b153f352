#include "engine/cpu/contract.h"
#include "engine/cpu/tiles.h"

enum { TILE_ROWS = 64, BATCH = 96 };

typedef struct linear {
  const mob_cpu_ops_t *ops;
  const mob_mat_t *w;
  const float *bias, *x;
  float *y;
  int64_t ldx, ldy;
  int m;
} linear_t;

static void run_tile(void *arg, int64_t tile, int thread) {
  (void)thread;
  const linear_t *l = arg;
  int64_t r0 = tile * TILE_ROWS, r1 = r0 + TILE_ROWS < l->w->rows ? r0 + TILE_ROWS : l->w->rows;
  const float *x[BATCH];
  float *y[BATCH];
  for (int from = 0; from < l->m; from += BATCH) {
    int n = l->m - from < BATCH ? l->m - from : BATCH;
    for (int i = 0; i < n; i++) {
      x[i] = l->x + (from + i) * l->ldx;
      y[i] = l->y + (from + i) * l->ldy + r0;
    }
    l->ops->gemm(l->w, r0, r1, x, y, n);
    if (l->bias)
      for (int i = 0; i < n; i++)
        for (int64_t r = r0; r < r1; r++) y[i][r - r0] += l->bias[r];
  }
}

void mob__linear(mob_rank_t *rank, const mob_mat_t *w, const float *bias, const float *x,
                 int64_t ldx, float *y, int64_t ldy, int m) {
  if (rank->exec->spec.contract) {
    mob__contract_linear(rank, w, bias, x, ldx, y, ldy, m);
    return;
  }
  if (rank->exec->tiles && m >= MOB_AMX_LEAST && mob_amx_takes(w)) {
    mob__tiles_linear(rank, w, bias, x, ldx, y, ldy, m);
    return;
  }
  linear_t l = {rank->exec->ops, w, bias, x, y, ldx, ldy, m};
  mob_team_run(rank->team, (w->rows + TILE_ROWS - 1) / TILE_ROWS,
               (double)w->rows * (double)w->cols * m, run_tile, &l);
}

typedef struct norm {
  const mob_cpu_ops_t *ops;
  const float *x, *w;
  float *out, eps;
  int64_t hidden;
} norm_t;

static void norm_row(void *arg, int64_t row, int thread) {
  (void)thread;
  const norm_t *n = arg;
  n->ops->rmsnorm(n->x + row * n->hidden, n->w, n->eps, n->out + row * n->hidden, n->hidden);
}

void mob__norm_rows(mob_rank_t *rank, const float *x, const float *w, float *out, int m) {
  const mob_model_desc_t *d = rank->exec->desc;
  norm_t n = {rank->exec->ops, x, w, out, d->rms_eps, d->hidden};
  mob_team_run(rank->team, m, (double)m * d->hidden, norm_row, &n);
}

mob_status mob__add_parts(mob_rank_t *rank, int m, const float *bias) {
  const mob_exec_t *exec = rank->exec;
  int64_t hidden = exec->desc->hidden;
  bool round = exec->spec.contract && exec->spec.tp > 1;
  if (round) mob__round_bf16(rank->part, m * hidden);
  MOB_TRY(mob_comm_host.all_reduce(exec->comm, rank->index, rank->part, (size_t)(m * hidden)));
  if (round) mob__contract_sum(exec, rank->part, m);
  exec->ops->axpy(1.0f, rank->part, rank->x, m * hidden);
  if (bias)
    for (int i = 0; i < m; i++) exec->ops->axpy(1.0f, bias, rank->x + i * hidden, hidden);
  return MOB_OK;
}
