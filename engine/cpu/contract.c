#include "engine/cpu/contract.h"
#include "engine/cpu/tensor_sums.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/half.h"
#include "runtime/base/mem.h"

// ------------------------------------------------------------------------------------------
// rounding

void mob__round_bf16(float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = mob_bf16_to_f32(mob_f32_to_bf16(x[i]));
}

void mob__round_f16(float *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = mob_f16_to_f32(mob_f32_to_f16(x[i]));
}

// Nearest e4m3 value, ties to even, saturating at 448: 3 bits behind the leading one, and never
// finer than 2^-9.
float mob__round_e4m3(float x) {
  union {
    float f;
    uint32_t u;
  } step = {fabsf(x)};
  if (step.f < 0x1p-6f) step.f = 0x1p-6f;
  step.u &= 0x7f800000;
  step.f *= 0x1p-3f;
  float r = nearbyintf(x / step.f) * step.f;
  return r > 448 ? 448 : r < -448 ? -448 : r;
}

float mob__e4m3_scale(float amax, bool ue8m0) {
  union {
    float f;
    uint32_t u;
  } scale = {fmaxf(amax, 1e-10f) / 448.0f};
  if (ue8m0) scale.u = (scale.u + 0x7fffff) & 0x7f800000;
  return scale.f;
}

void mob__quantise_e4m3(const float *x, int64_t n, bool ue8m0, float *out) {
  for (int64_t from = 0; from < n; from += 128) {
    int64_t end = from + 128 < n ? from + 128 : n;
    float amax = 0;
    for (int64_t i = from; i < end; i++) amax = fmaxf(amax, fabsf(x[i]));
    const float scale = mob__e4m3_scale(amax, ue8m0), inverse = 1.0f / scale;
    for (int64_t i = from; i < end; i++) out[i] = mob__round_e4m3(x[i] * inverse) * scale;
  }
}

void mob__contract_input(const mob_exec_t *exec, const mob_mat_t *w, const float *x, int64_t cols,
                         float *out) {
  if (w->dtype == MOB_DT_F8E4M3) {
    mob__quantise_e4m3(x, cols, exec->desc->quant_ue8m0, out);
    return;
  }
  if (out != x) memcpy(out, x, (size_t)cols * sizeof *out);
  if (w->id != MOB_W_ROUTER) mob__round_bf16(out, cols);
}

// -------------------------------------------------------------------------------------------
// linear

enum { TILE_ROWS = 32, BATCH = 64 };

void mob__contract_gemm(const mob_exec_t *exec, const mob_mat_t *w, int64_t r0, int64_t r1,
                        const float *const *x, float *const *y, int m) {
  if (exec->spec.tensor_sums && w->dtype == MOB_DT_F8E4M3)
    mob_tensor_gemm(w, r0, r1, x, y, m, exec->desc->quant_ue8m0);
  else
    exec->ops->gemm(w, r0, r1, x, y, m);
}

typedef struct linear {
  const mob_exec_t *exec;
  const mob_mat_t *w;
  const float *bias, *x;
  float *rounded, *y;
  int64_t ldx, ldy;
  int m;
} linear_t;

static void round_row(void *arg, int64_t row, int thread) {
  (void)thread;
  const linear_t *l = arg;
  mob__contract_input(l->exec, l->w, l->x + row * l->ldx, l->w->cols,
                      l->rounded + row * l->w->cols);
}

static void run_tile(void *arg, int64_t tile, int thread) {
  (void)thread;
  const linear_t *l = arg;
  int64_t r0 = tile * TILE_ROWS, r1 = r0 + TILE_ROWS < l->w->rows ? r0 + TILE_ROWS : l->w->rows;
  const float *x[BATCH];
  float *y[BATCH];
  bool fp32 = l->w->id == MOB_W_ROUTER || l->w->id == MOB_W_HEAD;
  for (int from = 0; from < l->m; from += BATCH) {
    int n = l->m - from < BATCH ? l->m - from : BATCH;
    for (int i = 0; i < n; i++) {
      x[i] = l->rounded + (from + i) * l->w->cols;
      y[i] = l->y + (from + i) * l->ldy + r0;
    }
    mob__contract_gemm(l->exec, l->w, r0, r1, x, y, n);
    for (int i = 0; i < n; i++) {
      if (!fp32) mob__round_bf16(y[i], r1 - r0);
      if (l->bias)
        for (int64_t r = r0; r < r1; r++) y[i][r - r0] += l->bias[r];
    }
  }
}

void mob__contract_linear(mob_rank_t *rank, const mob_mat_t *w, const float *bias, const float *x,
                          int64_t ldx, float *y, int64_t ldy, int m) {
  float *rounded = mob_malloc((size_t)m * (size_t)w->cols * sizeof *rounded);
  linear_t l = {rank->exec, w, bias, x, rounded, y, ldx, ldy, m};
  mob_team_run(rank->team, m, (double)m * (double)w->cols * 8, round_row, &l);
  mob_team_run(rank->team, (w->rows + TILE_ROWS - 1) / TILE_ROWS,
               (double)w->rows * (double)w->cols * m, run_tile, &l);
  free(rounded);
}

// ------------------------------------------------------------------------------------------
// weights

// Held as FP8 by the CUDA backend? (engine/cuda/weights: every tile inside one block of scales.)
static bool keeps_f8(const mob_model_desc_t *d, const mob_mat_t *m) {
  const char *wish = getenv("MOB_CUDA_F8"); // 0: that backend, too, holds every matrix as BF16
  if (wish && wish[0] == '0') return false;
  return m->dtype == MOB_DT_F8E4M3 && d->quant_block_rows > 0 && d->quant_block_rows % 64 == 0 &&
         d->quant_block_cols > 0 && d->quant_block_cols % 128 == 0 && m->row0 % 64 == 0 &&
         m->col0 % 128 == 0;
}

static mob_status to_bf16(mob_exec_t *exec, mob_mat_t *m) {
  if (m->rows == 0 || m->dtype == MOB_DT_BF16) return MOB_OK;
  uint16_t *data = NULL;
  if (posix_memalign((void **)&data, 64, (size_t)(m->rows * m->cols) * sizeof *data) != 0)
    return mob_fail(MOB_E_NO_RESOURCES, "no memory for a matrix of %lld x %lld in bfloat16",
                    (long long)m->rows, (long long)m->cols);
  *mob_vec_push(&exec->store.owned) = data;
  float *row = mob_malloc((size_t)m->cols * sizeof *row);
  for (int64_t r = 0; r < m->rows; r++) {
    exec->ops->row(m, r, row);
    exec->ops->store(row, MOB_DT_BF16, data + r * m->cols, m->cols);
  }
  free(row);
  m->dtype = MOB_DT_BF16;
  m->data = (const uint8_t *)data;
  m->stride = (size_t)m->cols * sizeof *data;
  m->scales = NULL;
  return MOB_OK;
}

// The forms of a layer's groups, in the order in which they are settled: FP8 only where every
// rank's part can be. The first pass over the ranks only asks.
typedef struct forms {
  bool ask, f8[16];
  int at;
} forms_t;

static mob_status settle(mob_exec_t *exec, forms_t *forms, mob_mat_t *const *m, int count,
                         bool f8) {
  bool *form = &forms->f8[forms->at++];
  for (int i = 0; i < count; i++) f8 = f8 && (m[i]->rows == 0 || keeps_f8(exec->desc, m[i]));
  *form = *form && f8;
  if (forms->ask) return MOB_OK;
  f8 = *form;
  for (int i = 0; i < count && !f8; i++) MOB_TRY(to_bf16(exec, m[i]));
  return MOB_OK;
}

// Each of several shared experts leaves its own rounded result.
static mob_ffn_t *part_shared(const mob_ffn_t *shared, int count) {
  mob_ffn_t *parts = MOB_NEW_ARRAY(mob_ffn_t, (size_t)count);
  int64_t rows = shared->gate.rows / count;
  for (int i = 0; i < count; i++) {
    mob_mat_t *up[] = {&parts[i].gate, &parts[i].up}, *down = &parts[i].down;
    parts[i] = *shared;
    for (size_t k = 0; k < MOB_LEN(up); k++) {
      up[k]->rows = rows;
      up[k]->row0 += i * rows;
      up[k]->data += (size_t)(i * rows) * up[k]->stride;
    }
    down->cols = rows;
    down->col0 += i * rows;
    down->data += (size_t)(i * rows) * mob_dtype_size(down->dtype);
  }
  return parts;
}

// Shared experts stand behind the routed ones there, each as wide as a routed one.
// With whole experts on ranks they are one network for all rows instead.
static mob_status settle_experts(mob_exec_t *exec, forms_t *forms, mob_layer_t *layer) {
  const mob_model_desc_t *d = exec->desc;
  int shared = exec->spec.expert_parallel ? 0 : d->n_shared, count = d->n_experts + (shared > 0);
  int64_t pieces = shared > 1 ? shared : 1;
  if (!shared && d->n_shared) {
    mob_mat_t *const both[] = {&layer->shared.gate, &layer->shared.up}, *const one[] = {
                                                                            &layer->shared.down};
    MOB_TRY(settle(exec, forms, both, 2, true));
    MOB_TRY(settle(exec, forms, one, 1, true));
  }
  bool whole = pieces == 1 || (layer->shared.gate.rows / pieces % 64 == 0 &&
                               layer->shared.down.cols / pieces % 128 == 0);
  mob_mat_t **up = MOB_NEW_ARRAY(mob_mat_t *, 2 * (size_t)count),
            **down = MOB_NEW_ARRAY(mob_mat_t *, (size_t)count);
  for (int e = 0; e < count; e++) {
    mob_ffn_t *f = e < d->n_experts ? &layer->experts[e] : &layer->shared;
    up[2 * e] = &f->gate;
    up[2 * e + 1] = &f->up;
    down[e] = &f->down;
  }
  mob_status status = settle(exec, forms, up, 2 * count, whole);
  if (status == MOB_OK) status = settle(exec, forms, down, count, whole);
  free(up);
  free(down);
  if (status == MOB_OK && !forms->ask && pieces > 1 && layer->shared.gate.rows)
    layer->shared_parts = part_shared(&layer->shared, (int)pieces);
  return status;
}

static mob_status settle_layer(mob_exec_t *exec, forms_t *forms, mob_layer_t *layer, bool moe) {
  mob_mat_t *m = layer->m;
  bool mla = exec->desc->attn == MOB_ATTN_MLA;
  mob_mat_t *const groups[][3] = {
      {&m[MOB_W_Q_A], &m[MOB_W_KV_A], &m[MOB_W_KV_A]},
      {mla ? &m[MOB_W_Q] : &m[MOB_W_Q_B], &m[MOB_W_Q_B], &m[MOB_W_Q_B]},
      {mla ? &m[MOB_W_K] : &m[MOB_W_Q], &m[MOB_W_K], &m[MOB_W_V]},
      {&m[MOB_W_KV_B], &m[MOB_W_KV_B], &m[MOB_W_KV_B]},
      {&m[MOB_W_O], &m[MOB_W_O], &m[MOB_W_O]},
      {&layer->dense.gate, &layer->dense.up, &layer->dense.up},
      {&layer->dense.down, &layer->dense.down, &layer->dense.down},
  };
  for (size_t i = 0; i < MOB_LEN(groups); i++) MOB_TRY(settle(exec, forms, groups[i], 3, true));
  if (!forms->ask) MOB_TRY(to_bf16(exec, &m[MOB_W_ROUTER]));
  return moe ? settle_experts(exec, forms, layer) : MOB_OK;
}

// Heads that the tile kernels of grouped queries take.
static bool has_grouped_tiles(const mob_exec_t *exec) {
  const mob_model_desc_t *d = exec->desc;
  int heads = exec->ranks[0].heads, kv_heads = exec->ranks[0].kv_heads;
  return d->attn == MOB_ATTN_GQA && (d->head_dim == 64 || d->head_dim == 128) &&
         d->rope.dim == d->head_dim && heads % kv_heads == 0 && heads / kv_heads <= 16;
}

// One matrix is shared by ranks as a view; what is copied is what a rank uses of it.
mob_status mob__contract_weights(mob_exec_t *exec) {
  const mob_model_desc_t *d = exec->desc;
  const mob_exec_spec_t *s = &exec->spec;
  exec->contract_tiles = d->attn == MOB_ATTN_MLA && d->kv_lora == 512 && d->qk_rope == 64 &&
                         d->qk_nope == 128 && d->v_head_dim == 128 && d->quant_block_rows == 128 &&
                         d->quant_block_cols == 128;
  for (int r = 0; r < s->tp; r++) {
    mob_rank_weights_t *w = &exec->ranks[r].weights;
    MOB_TRY(to_bf16(exec, &w->outer.m[MOB_W_HEAD]));
    if (r == 0)
      MOB_TRY(to_bf16(exec, &w->outer.m[MOB_W_EMBED]));
    else
      w->outer.m[MOB_W_EMBED] = exec->ranks[0].weights.outer.m[MOB_W_EMBED];
  }
  for (int l = 0; l < s->last_layer - s->first_layer; l++) {
    forms_t forms = {.ask = true};
    memset(forms.f8, true, sizeof forms.f8);
    for (int pass = 0; pass < 2; pass++, forms.ask = false)
      for (int r = 0; r < s->tp; r++) {
        mob_layer_t *layer = &exec->ranks[r].weights.layers[l];
        forms.at = 0;
        MOB_TRY(settle_layer(exec, &forms, layer, d->is_moe[s->first_layer + l]));
      }
    exec->contract_tiles = exec->contract_tiles &&
                           exec->ranks[0].weights.layers[l].m[MOB_W_KV_B].dtype == MOB_DT_F8E4M3;
  }
  // Without tiles the small products per head read kv_b as BF16.
  for (int r = 0; r < s->tp && d->attn == MOB_ATTN_MLA && !exec->contract_tiles; r++)
    for (int l = 0; l < s->last_layer - s->first_layer; l++)
      MOB_TRY(to_bf16(exec, &exec->ranks[r].weights.layers[l].m[MOB_W_KV_B]));
  if (d->attn == MOB_ATTN_GQA) exec->contract_tiles = has_grouped_tiles(exec);
  return MOB_OK;
}

// Rows of a step from which on each has an owner among the ranks, who adds all parts in fp32.
static int owned_rows(void) {
  const char *wish = getenv("MOB_CUDA_SHARD_ROWS"); // as the backend
  int rows = wish ? atoi(wish) : 257;
  return rows > 9 ? rows : 9;
}

// Of ranks: parts are BF16, and where every rank sums some rows for all, so are the sums.
void mob__contract_sum(const mob_exec_t *exec, float *sum, int m) {
  if (m >= owned_rows()) return;
  int64_t hidden = exec->desc->hidden, ranks = exec->spec.tp, seqs = exec->spec.max_seqs;
  int64_t most = (exec->spec.max_tokens + 7) / 8 * 8;
  int64_t graph = ((seqs < 256 ? seqs : 256) + 7) / 8 * 8 + 8;
  if (graph > most) most = graph;
  if (most > 256) most = 256;
  for (int64_t from = 0; from < m; from += 256) {
    int64_t rows = m - from < 256 ? m - from : 256, part = rows * hidden * 2;
    if (ranks * rows > 2 * most + 8 || part * (ranks - 1) * (ranks - 2) / ranks > (int64_t)1 << 20)
      mob__round_bf16(sum + from * hidden, rows * hidden);
  }
}

// ---------------------------------------------------------------------------------------------
// plan

enum { GRAPH_ROWS = 256, ATTEND_ROWS = 512 };

// Rows of the graph that the CUDA backend runs for a pure decode step; 0: none.
static int graph_rows(const mob_exec_t *exec, const mob_job_t *job) {
  uint32_t n = job->step.token_count;
  if (exec->spec.eager || n > GRAPH_ROWS || job->step.seq_count != n) return 0;
  if (exec->spec.last_layer == exec->desc->n_layers && job->logits.len != n) return 0;
  return n <= 1 ? 1 : n <= 2 ? 2 : n <= 4 ? 4 : (int)(n + 7) / 8 * 8;
}

static int key_splits(int rows, int heads) {
  int want = 264 / (rows * ((heads + 63) / 64));
  return want < 1 ? 1 : want > 32 ? 32 : want;
}

static void absorb_range(int from, int to, int heads, int *splits) {
  for (int row = from; row < to; row += ATTEND_ROWS) {
    int n = to - row < ATTEND_ROWS ? to - row : ATTEND_ROWS;
    for (int i = 0; i < n; i++) splits[row + i] = key_splits(n, heads);
  }
}

void mob__contract_plan(const mob_exec_t *exec, const mob_job_t *job, int heads, int *splits) {
  const mob_step_t *step = &job->step;
  int rows = (int)step->token_count, graph = graph_rows(exec, job);
  if (graph) {
    for (int i = 0; i < rows; i++) splits[i] = key_splits(graph, heads);
    return;
  }
  const mob_mat_t *o = &exec->ranks[0].weights.layers[0].m[MOB_W_O];
  bool mla = exec->desc->attn == MOB_ATTN_MLA, allowed = !mla || o->dtype == MOB_DT_F8E4M3;
  uint32_t least = mla ? 64 : 32;
  int64_t max_tokens = exec->spec.max_tokens, key_blocks = 0, pairs = 0;
  int64_t max_blocks = max_tokens < 64 ? 0 : max_tokens / 64 * 2 < 128 ? 128 : max_tokens / 64 * 2;
  int from = 0; // first row of the run in absorbed form
  for (uint32_t i = 0; i < step->seq_count; i++) {
    const mob_seq_step_t *seq = &step->seqs[i];
    int64_t blocks = mla ? (seq->start + seq->count + 63) / 64 : 0, mine = (seq->count + 127) / 128;
    if (!allowed || seq->count < least || key_blocks + blocks > max_blocks ||
        pairs + mine > max_tokens / 64 + 1)
      continue;
    key_blocks += blocks;
    pairs += mine;
    absorb_range(from, (int)seq->row, heads, splits);
    for (uint32_t k = 0; k < seq->count; k++) splits[seq->row + k] = 0;
    from = (int)(seq->row + seq->count);
  }
  absorb_range(from, rows, heads, splits);
}
