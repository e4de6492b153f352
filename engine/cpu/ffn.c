// Feed-forward part of a layer: dense, or router, grouped experts and shared expert. Two passes
// over one list of "tasks" (a network and the rows it works on): gate/up into `act`, then down,
// where a thread owns a range of hidden columns and adds the tasks in order: no two threads write
// the same place and the order of adding is fixed.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/contract.h"
#include "engine/cpu/ffn.h"
#include "runtime/base/mem.h"

enum { TILE_ROWS = 64, BATCH = 96 };

typedef struct ffn {
  mob_rank_t *rank;
  mob_task_t *tasks;
  int count;
  uint32_t rows; // of the step
  float *other;  // by the contract: inputs of networks in another form than the first one's
  int64_t units;
} ffn_t;

static void gate_up_tile(void *arg, int64_t unit, int thread) {
  const ffn_t *f = arg;
  mob_rank_t *rank = f->rank;
  const mob_cpu_ops_t *ops = rank->exec->ops;
  int low = 0, high = f->count - 1;
  while (low < high) { // the last task that begins at or before `unit`
    int mid = (low + high + 1) / 2;
    if (f->tasks[mid].first_unit <= unit)
      low = mid;
    else
      high = mid - 1;
  }
  const mob_task_t *t = &f->tasks[low];
  bool other = f->other && t->net->gate.dtype != f->tasks[0].net->gate.dtype;
  const float *inputs = other ? f->other : rank->norm;
  int64_t inter = t->net->gate.rows, r0 = (unit - t->first_unit) * TILE_ROWS;
  int64_t r1 = r0 + TILE_ROWS < inter ? r0 + TILE_ROWS : inter;
  const float *x[BATCH];
  float *gate[BATCH], *up[BATCH], *scratch = rank->scratch[thread];
  for (int from = 0; from < t->m; from += BATCH) {
    int n = t->m - from < BATCH ? t->m - from : BATCH;
    for (int i = 0; i < n; i++) {
      int64_t row = t->rows ? t->rows[from + i] : from + i;
      x[i] = inputs + row * rank->exec->desc->hidden;
      gate[i] = t->act + (from + i) * inter + r0;
      up[i] = scratch + i * TILE_ROWS;
    }
    mob__contract_gemm(rank->exec, &t->net->gate, r0, r1, x, gate, n);
    mob__contract_gemm(rank->exec, &t->net->up, r0, r1, x, up, n);
    for (int i = 0; i < n; i++) {
      if (rank->exec->spec.contract) {
        mob__round_bf16(gate[i], r1 - r0);
        mob__round_bf16(up[i], r1 - r0);
      }
      ops->silu_mul(gate[i], up[i], gate[i], r1 - r0);
    }
  }
}

static void down_tile(void *arg, int64_t unit, int thread) {
  const ffn_t *f = arg;
  mob_rank_t *rank = f->rank;
  const mob_cpu_ops_t *ops = rank->exec->ops;
  int64_t hidden = rank->exec->desc->hidden, r0 = unit * TILE_ROWS;
  int64_t r1 = r0 + TILE_ROWS < hidden ? r0 + TILE_ROWS : hidden;
  const float *x[BATCH];
  float *y[BATCH], *scratch = rank->scratch[thread];
  for (int k = 0; k < f->count; k++) {
    const mob_task_t *t = &f->tasks[k];
    for (int from = 0; from < t->m; from += BATCH) {
      int n = t->m - from < BATCH ? t->m - from : BATCH;
      for (int i = 0; i < n; i++) {
        x[i] = t->act + (from + i) * t->net->gate.rows;
        y[i] = scratch + i * TILE_ROWS;
      }
      mob__contract_gemm(rank->exec, &t->net->down, r0, r1, x, y, n);
      for (int i = 0; i < n; i++) {
        int64_t row = t->rows ? t->rows[from + i] : from + i;
        if (rank->exec->spec.contract) mob__round_bf16(y[i], r1 - r0);
        ops->axpy(t->weights ? t->weights[from + i] : 1.0f, y[i], rank->part + row * hidden + r0,
                  r1 - r0);
      }
    }
  }
}

// ------------------------------------------------------------------------------------------ router

typedef struct router {
  mob_rank_t *rank;
  const float *bias;
  int32_t *chosen;      // as mob_routes_t says, of this layer; NULL: not wanted
  const int32_t *given; // NULL: nothing is
} router_t;

// The `count` best groups of experts stay, all others get -inf in `choice`. A group's score is the
// sum of its two best.
static void keep_groups(const mob_model_desc_t *d, float *choice) {
  int size = d->n_experts / d->n_group;
  float score[d->n_group];
  for (int g = 0; g < d->n_group; g++) {
    float best = -INFINITY, second = -INFINITY;
    for (int e = g * size; e < (g + 1) * size; e++) {
      if (choice[e] > best) {
        second = best;
        best = choice[e];
      } else if (choice[e] > second) {
        second = choice[e];
      }
    }
    score[g] = best + second;
  }
  for (int g = 0; g < d->n_group; g++) {
    int better = 0;
    for (int o = 0; o < d->n_group; o++)
      better += score[o] > score[g] || (score[o] == score[g] && o < g);
    if (better >= d->topk_group)
      for (int e = g * size; e < (g + 1) * size; e++) choice[e] = -INFINITY;
  }
}

// Experts and weights of one row, in ascending order of expert.
static void route_row(void *arg, int64_t row, int thread) {
  (void)thread;
  const router_t *r = arg;
  mob_rank_t *rank = r->rank;
  const mob_model_desc_t *d = rank->exec->desc;
  float *score = rank->router + row * d->n_experts, choice[d->n_experts];
  if (d->scoring == MOB_SCORE_SIGMOID) {
    for (int e = 0; e < d->n_experts; e++) score[e] = 1.0f / (1.0f + expf(-score[e]));
  } else {
    float max = score[0], sum = 0;
    for (int e = 1; e < d->n_experts; e++) max = score[e] > max ? score[e] : max;
    for (int e = 0; e < d->n_experts; e++) sum += score[e] = expf(score[e] - max);
    for (int e = 0; e < d->n_experts; e++) score[e] /= sum;
  }
  for (int e = 0; e < d->n_experts; e++) choice[e] = score[e] + (r->bias ? r->bias[e] : 0.0f);
  if (d->topk_group < d->n_group) keep_groups(d, choice);
  int32_t *ids = rank->expert_ids + row * d->top_k;
  float *weights = rank->expert_weights + row * d->top_k, sum = 0;
  for (int k = 0; k < d->top_k; k++) {
    int best = -1;
    for (int e = 0; e < d->n_experts; e++)
      if (choice[e] > -INFINITY && (best < 0 || choice[e] > choice[best])) best = e;
    if (best < 0) best = k; // only when scores are not numbers; stays in bounds
    choice[best] = -INFINITY;
    int at = k;
    for (; at > 0 && ids[at - 1] > best; at--) ids[at] = ids[at - 1];
    ids[at] = best;
    sum += score[best];
  }
  if (r->chosen) memcpy(r->chosen + row * d->top_k, ids, (size_t)d->top_k * sizeof *ids);
  if (r->given) {
    sum = 0;
    for (int k = 0; k < d->top_k; k++) sum += score[ids[k] = r->given[row * d->top_k + k]];
  }
  if (d->scoring == MOB_SCORE_SIGMOID) sum += 1e-20f;
  for (int k = 0; k < d->top_k; k++)
    weights[k] = (d->norm_topk_prob ? score[ids[k]] / sum : score[ids[k]]) * d->routed_scale;
}

static void route(mob_rank_t *rank, const mob_layer_t *w, int layer, int m) {
  const mob_exec_t *exec = rank->exec;
  const mob_model_desc_t *d = exec->desc;
  const mob_routes_t *routes = exec->spec.routes;
  mob__linear(rank, &w->m[MOB_W_ROUTER], NULL, rank->norm, d->hidden, rank->router, d->n_experts,
              m);
  router_t r = {rank, w->v[MOB_W_ROUTER_BIAS], NULL, NULL};
  if (routes && routes->on) {
    const size_t at = (size_t)layer * (size_t)exec->spec.max_tokens * (size_t)d->top_k;
    if (routes->chosen && rank == exec->ranks) r.chosen = routes->chosen + at;
    if (routes->given) r.given = routes->given + at;
  }
  mob_team_run(rank->team, m, (double)m * d->n_experts * (d->top_k + 8), route_row, &r);
}

// One task for every expert with rows, in ascending order; fills group_rows and group_weights.
static int group(mob_rank_t *rank, const mob_layer_t *w, int m, mob_task_t *tasks, float **act) {
  const mob_model_desc_t *d = rank->exec->desc;
  int begin[d->n_experts + 1], count = 0;
  memset(begin, 0, sizeof begin);
  for (int i = 0; i < m * d->top_k; i++) begin[rank->expert_ids[i] + 1]++;
  for (int e = 0; e < d->n_experts; e++) begin[e + 1] += begin[e];
  int at[d->n_experts];
  memcpy(at, begin, sizeof at);
  for (int i = 0; i < m * d->top_k; i++) {
    int slot = at[rank->expert_ids[i]]++;
    rank->group_rows[slot] = i / d->top_k;
    rank->group_weights[slot] = rank->expert_weights[i];
  }
  for (int e = 0; e < d->n_experts; e++) {
    int rows = begin[e + 1] - begin[e];
    if (rows == 0 || w->experts[e].gate.rows == 0)
      continue; // nobody wants it, or another rank has it
    tasks[count++] = (mob_task_t){
        &w->experts[e], rank->group_rows + begin[e], rank->group_weights + begin[e], rows, *act, 0};
    *act += (int64_t)rows * w->experts[e].gate.rows;
  }
  return count;
}

size_t mob__ffn_task_bytes(const mob_exec_t *exec) {
  return ((size_t)exec->desc->n_experts + (size_t)exec->desc->n_shared + 1) * sizeof(mob_task_t);
}

size_t mob__ffn_scratch(const mob_exec_t *exec) {
  return exec->tiles ? mob__ffn_tiles_scratch() : (size_t)TILE_ROWS * BATCH;
}

// Shared experts: one network as wide as all of them, or, by the contract, each its own.
static int share(mob_rank_t *rank, const mob_layer_t *w, int m, mob_task_t *tasks, float *act) {
  int parts = w->shared_parts ? rank->exec->desc->n_shared : 1;
  for (int i = 0; i < parts; i++) {
    const mob_ffn_t *net = w->shared_parts ? &w->shared_parts[i] : &w->shared;
    tasks[i] = (mob_task_t){net, NULL, NULL, m, act, 0};
    act += (int64_t)m * net->gate.rows;
  }
  return parts;
}

// The contract's rounding of what the first linears read, and of what the second ones read.
static void round_inputs(ffn_t *f) {
  const mob_exec_t *exec = f->rank->exec;
  int64_t hidden = exec->desc->hidden;
  const mob_mat_t *other = NULL; // a slice of shared experts may be BF16 beside whole FP8 ones
  for (int k = 1; k < f->count; k++)
    if (f->tasks[k].net->gate.dtype != f->tasks[0].net->gate.dtype) other = &f->tasks[k].net->gate;
  if (other) f->other = mob_malloc(f->rows * (size_t)hidden * sizeof *f->other);
  for (uint32_t i = 0; f->count && i < f->rows; i++) {
    float *x = f->rank->norm + i * hidden;
    if (other) mob__contract_input(exec, other, x, hidden, f->other + i * hidden);
    mob__contract_input(exec, &f->tasks[0].net->gate, x, hidden, x);
  }
}

static void round_activations(const ffn_t *f) {
  for (int k = 0; k < f->count; k++) {
    const mob_task_t *t = &f->tasks[k];
    int64_t inter = t->net->gate.rows;
    for (int i = 0; i < t->m; i++)
      mob__contract_input(f->rank->exec, &t->net->down, t->act + i * inter, inter,
                          t->act + i * inter);
  }
}

mob_status mob__ffn(mob_rank_t *rank, const mob_job_t *job, int layer) {
  const mob_exec_t *exec = rank->exec;
  const mob_model_desc_t *d = exec->desc;
  const mob_layer_t *w = &rank->weights.layers[layer];
  int m = (int)job->step.token_count;
  float *act = rank->act;
  mob_task_t *tasks = rank->tasks;
  ffn_t f = {.rank = rank, .tasks = tasks, .rows = job->step.token_count};
  mob__norm_rows(rank, rank->x, w->v[MOB_W_FFN_NORM], rank->norm, m);
  if (d->is_moe[exec->spec.first_layer + layer]) {
    route(rank, w, layer, m);
    f.count = group(rank, w, m, tasks, &act);
    const mob_routes_t *routes = exec->spec.routes;
    if (routes && routes->on && routes->experts && rank == exec->ranks) routes->experts[layer] = f.count;
    if (d->n_shared) f.count += share(rank, w, m, tasks + f.count, act);
  } else {
    tasks[f.count++] = (mob_task_t){&w->dense, NULL, NULL, m, act, 0};
  }
  if (m >= MOB_AMX_LEAST && mob__ffn_tiles_take(rank, tasks, f.count)) {
    memset(rank->part, 0, (size_t)m * (size_t)d->hidden * sizeof(float));
    mob__ffn_tiles(rank, tasks, f.count);
    return mob__add_parts(rank, m, NULL);
  }
  double cost = 0;
  for (int k = 0; k < f.count; k++) {
    tasks[k].first_unit = f.units;
    f.units += (tasks[k].net->gate.rows + TILE_ROWS - 1) / TILE_ROWS;
    cost += (double)tasks[k].m * (double)tasks[k].net->gate.rows * d->hidden;
  }
  if (exec->spec.contract) round_inputs(&f);
  mob_team_run(rank->team, f.units, 2 * cost, gate_up_tile, &f);
  if (exec->spec.contract) round_activations(&f);
  memset(rank->part, 0, (size_t)m * (size_t)d->hidden * sizeof(float));
  mob_team_run(rank->team, (d->hidden + TILE_ROWS - 1) / TILE_ROWS, cost, down_tile, &f);
  free(f.other);
  return mob__add_parts(rank, m, NULL);
}
