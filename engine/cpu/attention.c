// Attention of one layer on one rank's heads: projections, cache write, attention over pages,
// output projection.
//
// Latent attention (MLA) has two equal forms, chosen for each sequence of a step by what costs
// less:
//   absorbed: q_lat = UK^T q_nope; score = (q_lat . c + q_pe . k_pe) scale; out = UV (sum p c)   -
//   few new tokens expanded: k_nope = UK c, v = UV c for a page of keys, then ordinary attention -
//   many new tokens
// Keys are always visited page by page with an online softmax (running maximum and sum), so that a
// token's result does not depend on how its prompt was cut into chunks.
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/contract.h"
#include "runtime/base/mem.h"

enum { PAGE = MOB_PAGE_TOKENS, BATCH = 16 };

typedef struct attention {
  mob_rank_t *rank;
  const mob_job_t *job;
  const mob_layer_t *weights;
  uint8_t *cache; // of this layer
  int *splits;    // contract.h, with tiles; else NULL
} attention_t;

typedef struct softmax {
  float max, sum;
} softmax_t;

static uint8_t *cache_row(const attention_t *a, uint32_t page, uint32_t offset) {
  const mob_exec_t *exec = a->rank->exec;
  size_t width = (size_t)exec->kv_width * mob_dtype_size(exec->spec.kv_dtype);
  return a->cache + ((size_t)page * PAGE + offset) * width;
}

// One page of n keys for one query: updates the running softmax and `out` [v_dim]. `round`: the
// probabilities are BF16.
static void attend_page(const mob_cpu_ops_t *ops, bool round, softmax_t *s, const float *q, const void *keys,
                        const void *values, mob_dtype_t dtype, int64_t key_stride,
                        int64_t value_stride, int n, int64_t dim, int64_t v_dim, float scale,
                        float *out) {
  float p[PAGE];
  ops->scores(q, keys, dtype, key_stride, n, dim, scale, p);
  float max = ops->max(p, n);
  if (max > s->max) {
    float shrink = expf(s->max - max); // 0 at the first page
    for (int64_t i = 0; i < v_dim; i++) out[i] *= shrink;
    s->sum *= shrink;
    s->max = max;
  }
  float sum = ops->exp_sum(p, s->max, n);
  if (round) {
    mob__round_bf16(p, n);
    sum = 0;
    for (int j = 0; j < n; j++) sum += p[j];
  }
  s->sum += sum;
  ops->mix(p, values, dtype, value_stride, n, v_dim, out);
}

// A query at `position` over the whole cache of its sequence.
static void attend(const attention_t *a, const mob_seq_step_t *seq, uint32_t position,
                   const float *q, size_t key_at, size_t value_at, int64_t dim, int64_t v_dim,
                   float *out) {
  const mob_exec_t *exec = a->rank->exec;
  mob_dtype_t dtype = exec->spec.kv_dtype;
  size_t size = mob_dtype_size(dtype);
  softmax_t s = {-INFINITY, 0};
  memset(out, 0, (size_t)v_dim * sizeof *out);
  for (uint32_t from = 0; from <= position; from += PAGE) {
    const uint8_t *page = cache_row(a, seq->pages[from / PAGE], 0);
    int n = position + 1 - from < PAGE ? (int)(position + 1 - from) : PAGE;
    attend_page(exec->ops, false, &s, q, page + key_at * size, page + value_at * size, dtype,
                exec->kv_width, exec->kv_width, n, dim, v_dim, exec->desc->softmax_scale, out);
  }
  for (int64_t i = 0; i < v_dim; i++) out[i] /= s.sum;
}

// The same with keys split in parts (contract.h): each leaves as FP16 beside the logarithm of its
// sum, and so does what they are merged to.
static void attend_split(const attention_t *a, const mob_seq_step_t *seq, uint32_t position,
                         const float *q, int splits, int64_t dim, int64_t v_dim, float *part,
                         float *out) {
  const mob_exec_t *exec = a->rank->exec;
  mob_dtype_t dtype = exec->spec.kv_dtype;
  uint32_t pages = position / PAGE + 1, each = (pages + (uint32_t)splits - 1) / (uint32_t)splits;
  softmax_t all = {-INFINITY, 0}; // over the parts' logarithms
  memset(out, 0, (size_t)v_dim * sizeof *out);
  for (uint32_t first = 0; first < pages; first += each) {
    softmax_t s = {-INFINITY, 0};
    memset(part, 0, (size_t)v_dim * sizeof *part);
    for (uint32_t p = first; p < pages && p < first + each; p++) {
      const uint8_t *page = cache_row(a, seq->pages[p], 0);
      int n = position + 1 - p * PAGE < PAGE ? (int)(position + 1 - p * PAGE) : PAGE;
      attend_page(exec->ops, true, &s, q, page, page, dtype, exec->kv_width, exec->kv_width, n, dim,
                  v_dim, exec->desc->softmax_scale, part);
    }
    for (int64_t i = 0; i < v_dim; i++) part[i] /= s.sum;
    mob__round_f16(part, v_dim);
    float log_sum = s.max + logf(s.sum), top = fmaxf(all.max, log_sum);
    float shrink = expf(all.max - top), weight = expf(log_sum - top);
    for (int64_t i = 0; i < v_dim; i++) out[i] = out[i] * shrink + weight * part[i];
    all = (softmax_t){top, all.sum * shrink + weight};
  }
  for (int64_t i = 0; i < v_dim; i++) out[i] /= all.sum;
  mob__round_f16(out, v_dim);
}

// ------------------------------------------------------------------------------------------ MLA

static bool absorbed(const attention_t *a, const mob_seq_step_t *seq) {
  const mob_exec_t *exec = a->rank->exec;
  if (exec->spec.contract) return !a->splits || a->splits[seq->row] > 0;
  if (exec->mla) return exec->mla == 1;
  const mob_model_desc_t *d = exec->desc;
  double keys = (double)seq->start + seq->count, count = seq->count;
  double project = (double)d->kv_lora * (d->qk_nope + d->v_head_dim);
  double absorb = count * keys * (2.0 * d->kv_lora + d->qk_rope) + count * project;
  double expand = count * keys * (d->head_dim + d->v_head_dim) + keys * project;
  return absorb <= expand;
}

static void project_mla(const attention_t *a) {
  mob_rank_t *rank = a->rank;
  const mob_exec_t *exec = rank->exec;
  const mob_model_desc_t *d = exec->desc;
  const mob_layer_t *w = a->weights;
  int m = (int)a->job->step.token_count, width = d->kv_lora + d->qk_rope, half = d->rope.dim / 2;
  int64_t q_width = (int64_t)rank->heads * d->head_dim;
  mob__linear(rank, &w->m[MOB_W_KV_A], w->v[MOB_W_KV_A_BIAS], rank->norm, d->hidden, rank->kv_new,
              width, m);
  if (d->q_lora) {
    mob__linear(rank, &w->m[MOB_W_Q_A], w->v[MOB_W_Q_A_BIAS], rank->norm, d->hidden, rank->q_lora,
                d->q_lora, m);
    for (int i = 0; i < m; i++) {
      float *c = rank->q_lora + (int64_t)i * d->q_lora;
      exec->ops->rmsnorm(c, w->v[MOB_W_Q_A_NORM], d->lora_rms_eps, c, d->q_lora);
    }
    mob__linear(rank, &w->m[MOB_W_Q_B], NULL, rank->q_lora, d->q_lora, rank->q, q_width, m);
  } else {
    mob__linear(rank, &w->m[MOB_W_Q], NULL, rank->norm, d->hidden, rank->q, q_width, m);
  }
  for (int i = 0; i < m; i++) {
    const mob_seq_step_t *seq = &a->job->step.seqs[a->job->seq_of[i]];
    const float *angles = rank->cos_sin + (int64_t)i * half * 2;
    float *c = rank->kv_new + (int64_t)i * width;
    uint32_t position = a->job->positions[i];
    exec->ops->rmsnorm(c, w->v[MOB_W_KV_A_NORM], d->lora_rms_eps, c, d->kv_lora);
    mob__rope_apply(&d->rope, angles, c + d->kv_lora);
    exec->ops->store(c, exec->spec.kv_dtype,
                     cache_row(a, seq->pages[position / PAGE], position % PAGE), width);
    for (int h = 0; h < rank->heads; h++)
      mob__rope_apply(&d->rope, angles,
                      rank->q + i * q_width + (int64_t)h * d->head_dim + d->qk_nope);
    if (exec->spec.contract) mob__round_bf16(rank->q + i * q_width, q_width);
  }
}

// Absorbed rows of one head, at most BATCH.
static void absorbed_batch(const attention_t *a, int head, const int *rows, int n, float *scratch) {
  mob_rank_t *rank = a->rank;
  const mob_exec_t *exec = rank->exec;
  const mob_model_desc_t *d = exec->desc;
  const mob_mat_t *kv_b = &a->weights->m[MOB_W_KV_B];
  int64_t width = d->kv_lora + d->qk_rope, first = (int64_t)head * (d->qk_nope + d->v_head_dim);
  float *q_lat = scratch, *out = q_lat + BATCH * width, *weight = out + BATCH * d->kv_lora;
  const float *q[BATCH], *x[BATCH];
  float *y[BATCH];
  memset(q_lat, 0, (size_t)(n * width) * sizeof *q_lat);
  for (int i = 0; i < n; i++) {
    q[i] = rank->q + (int64_t)rows[i] * rank->heads * d->head_dim + (int64_t)head * d->head_dim;
    memcpy(q_lat + i * width + d->kv_lora, q[i] + d->qk_nope, (size_t)d->qk_rope * sizeof *q_lat);
    x[i] = out + (int64_t)i * d->kv_lora;
    y[i] = rank->attn + ((int64_t)rows[i] * rank->heads + head) * d->v_head_dim;
  }
  for (int r = 0; r < d->qk_nope; r++) {
    exec->ops->row(kv_b, first + r, weight);
    for (int i = 0; i < n; i++) exec->ops->axpy(q[i][r], weight, q_lat + i * width, d->kv_lora);
  }
  if (exec->spec.contract) mob__round_bf16(q_lat, n * width);
  for (int i = 0; i < n; i++) {
    const mob_seq_step_t *seq = &a->job->step.seqs[a->job->seq_of[rows[i]]];
    uint32_t position = a->job->positions[rows[i]];
    if (a->splits)
      attend_split(a, seq, position, q_lat + i * width, a->splits[rows[i]], width, d->kv_lora,
                   weight, (float *)x[i]);
    else
      attend(a, seq, position, q_lat + i * width, 0, 0, width, d->kv_lora, (float *)x[i]);
  }
  exec->ops->gemm(kv_b, first + d->qk_nope, first + d->qk_nope + d->v_head_dim, x, y, n);
  for (int i = 0; i < n && exec->spec.contract && !a->splits; i++)
    mob__round_bf16(y[i], d->v_head_dim);
}

// Keys and values of one page for one head: k [n][head_dim], v [n][v_head_dim].
static void expand_page(const attention_t *a, int head, const uint8_t *page, int n, float *latent,
                        float *k, float *v) {
  const mob_exec_t *exec = a->rank->exec;
  const mob_model_desc_t *d = exec->desc;
  const mob_mat_t *kv_b = &a->weights->m[MOB_W_KV_B];
  int64_t width = d->kv_lora + d->qk_rope, first = (int64_t)head * (d->qk_nope + d->v_head_dim);
  const float *x[PAGE];
  float *to_k[PAGE], *to_v[PAGE];
  mob_mat_t cache = {.dtype = exec->spec.kv_dtype,
                     .rows = n,
                     .cols = width,
                     .data = page,
                     .stride = (size_t)width * mob_dtype_size(exec->spec.kv_dtype)};
  for (int j = 0; j < n; j++) {
    exec->ops->row(&cache, j, latent + j * width);
    x[j] = latent + j * width;
    to_k[j] = k + (int64_t)j * d->head_dim;
    to_v[j] = v + (int64_t)j * d->v_head_dim;
    memcpy(to_k[j] + d->qk_nope, x[j] + d->kv_lora, (size_t)d->qk_rope * sizeof *k);
    if (a->splits) mob__contract_input(exec, kv_b, x[j], d->kv_lora, latent + j * width);
  }
  mob__contract_gemm(exec, kv_b, first, first + d->qk_nope, x, to_k, n);
  mob__contract_gemm(exec, kv_b, first + d->qk_nope, first + d->qk_nope + d->v_head_dim, x, to_v, n);
  if (!a->splits) return;
  mob__round_bf16(k, (int64_t)n * d->head_dim);
  mob__round_bf16(v, (int64_t)n * d->v_head_dim);
}

static void expanded_head(const attention_t *a, const mob_seq_step_t *seq, int head,
                          float *scratch) {
  mob_rank_t *rank = a->rank;
  const mob_exec_t *exec = rank->exec;
  const mob_model_desc_t *d = exec->desc;
  int64_t width = d->kv_lora + d->qk_rope;
  float *latent = scratch, *k = latent + PAGE * width, *v = k + PAGE * (int64_t)d->head_dim;
  softmax_t *states = (softmax_t *)(v + PAGE * (int64_t)d->v_head_dim); // [count]
  uint32_t end = seq->start + seq->count;
  for (uint32_t i = 0; i < seq->count; i++) {
    states[i] = (softmax_t){-INFINITY, 0};
    memset(rank->attn + ((int64_t)(seq->row + i) * rank->heads + head) * d->v_head_dim, 0,
           (size_t)d->v_head_dim * sizeof(float));
  }
  for (uint32_t from = 0; from < end; from += PAGE) {
    int keys = end - from < PAGE ? (int)(end - from) : PAGE;
    expand_page(a, head, cache_row(a, seq->pages[from / PAGE], 0), keys, latent, k, v);
    for (uint32_t i = 0; i < seq->count; i++) {
      int64_t visible = (int64_t)seq->start + i + 1 - from;
      if (visible <= 0) continue;
      int64_t row = (int64_t)(seq->row + i) * rank->heads + head;
      attend_page(exec->ops, a->splits != NULL, &states[i], rank->q + row * d->head_dim, k, v, MOB_DT_F32, d->head_dim,
                  d->v_head_dim, visible < keys ? (int)visible : keys, d->head_dim, d->v_head_dim,
                  d->softmax_scale, rank->attn + row * d->v_head_dim);
    }
  }
  for (uint32_t i = 0; i < seq->count; i++) {
    float *out = rank->attn + ((int64_t)(seq->row + i) * rank->heads + head) * d->v_head_dim;
    for (int c = 0; c < d->v_head_dim; c++) out[c] /= states[i].sum;
  }
}

// A unit is one head: first all absorbed rows of the step, then the expanded sequences.
static void mla_head(void *arg, int64_t head, int thread) {
  const attention_t *a = arg;
  const mob_step_t *step = &a->job->step;
  float *scratch = a->rank->scratch[thread];
  int rows[BATCH], n = 0;
  for (uint32_t s = 0; s < step->seq_count; s++) {
    const mob_seq_step_t *seq = &step->seqs[s];
    if (!absorbed(a, seq)) {
      expanded_head(a, seq, (int)head, scratch);
      continue;
    }
    for (uint32_t i = 0; i < seq->count; i++) {
      rows[n++] = (int)(seq->row + i);
      if (n == BATCH) {
        absorbed_batch(a, (int)head, rows, n, scratch);
        n = 0;
      }
    }
  }
  if (n) absorbed_batch(a, (int)head, rows, n, scratch);
}

// ------------------------------------------------------------------------------------------ GQA

static void project_gqa(const attention_t *a) {
  mob_rank_t *rank = a->rank;
  const mob_exec_t *exec = rank->exec;
  const mob_model_desc_t *d = exec->desc;
  const mob_layer_t *w = a->weights;
  int m = (int)a->job->step.token_count, half = d->rope.dim / 2;
  int64_t q_width = (int64_t)rank->heads * d->head_dim,
          kv_width = (int64_t)rank->kv_heads * d->head_dim;
  mob__linear(rank, &w->m[MOB_W_Q], w->v[MOB_W_Q_BIAS], rank->norm, d->hidden, rank->q, q_width, m);
  mob__linear(rank, &w->m[MOB_W_K], w->v[MOB_W_K_BIAS], rank->norm, d->hidden, rank->kv_new,
              2 * kv_width, m);
  mob__linear(rank, &w->m[MOB_W_V], w->v[MOB_W_V_BIAS], rank->norm, d->hidden,
              rank->kv_new + kv_width, 2 * kv_width, m);
  for (int i = 0; i < m; i++) {
    const mob_seq_step_t *seq = &a->job->step.seqs[a->job->seq_of[i]];
    const float *angles = rank->cos_sin + (int64_t)i * half * 2;
    uint32_t position = a->job->positions[i];
    float *k = rank->kv_new + i * 2 * kv_width;
    for (int h = 0; h < rank->heads + rank->kv_heads; h++) {
      bool is_q = h < rank->heads;
      float *x = is_q ? rank->q + i * q_width + (int64_t)h * d->head_dim
                      : k + (int64_t)(h - rank->heads) * d->head_dim;
      const float *norm = w->v[is_q ? MOB_W_Q_NORM : MOB_W_K_NORM];
      if (norm) exec->ops->rmsnorm(x, norm, d->rms_eps, x, d->head_dim);
      mob__rope_apply(&d->rope, angles, x);
    }
    exec->ops->store(k, exec->spec.kv_dtype,
                     cache_row(a, seq->pages[position / PAGE], position % PAGE), 2 * kv_width);
    if (exec->spec.contract) mob__round_bf16(rank->q + i * q_width, q_width);
  }
}

// One query by the tile kernels (contract.h). As a decode, four warps take 16 keys of every page
// each, with softmaxes of their own that meet at the end.
static void attend_grouped(const attention_t *a, const mob_seq_step_t *seq, uint32_t position,
                           const float *q, size_t key_at, size_t value_at, bool decode,
                           float *out) {
  const mob_exec_t *exec = a->rank->exec;
  int64_t dim = exec->desc->head_dim;
  size_t size = mob_dtype_size(exec->spec.kv_dtype);
  int parts = decode ? 4 : 1, each = PAGE / parts;
  float sums[4][256], top = -INFINITY, sum = 0;
  softmax_t s[4];
  for (int part = 0; part < parts; part++) {
    s[part] = (softmax_t){-INFINITY, 0};
    memset(sums[part], 0, sizeof sums[part]);
    for (uint32_t from = (uint32_t)(part * each); from <= position; from += PAGE) {
      const uint8_t *row = cache_row(a, seq->pages[from / PAGE], from % PAGE);
      int n = position + 1 - from < (uint32_t)each ? (int)(position + 1 - from) : each;
      attend_page(exec->ops, true, &s[part], q, row + key_at * size, row + value_at * size,
                  exec->spec.kv_dtype, exec->kv_width, exec->kv_width, n, dim, dim,
                  exec->desc->softmax_scale, sums[part]);
    }
    top = fmaxf(top, s[part].max);
  }
  memset(out, 0, (size_t)dim * sizeof *out);
  for (int part = 0; part < parts; part++) {
    float factor = expf(s[part].max - top);
    sum += s[part].sum * factor;
    for (int64_t i = 0; i < dim; i++) out[i] += sums[part][i] * factor;
  }
  for (int64_t i = 0; i < dim; i++) out[i] /= sum;
}

// A unit is one row and one key/value head with all its query heads.
static void gqa_row(void *arg, int64_t unit, int thread) {
  (void)thread;
  const attention_t *a = arg;
  const mob_rank_t *rank = a->rank;
  const mob_model_desc_t *d = rank->exec->desc;
  int64_t row = unit / rank->kv_heads, kv_head = unit % rank->kv_heads,
          group = rank->heads / rank->kv_heads;
  size_t key_at = (size_t)(kv_head * d->head_dim),
         value_at = key_at + (size_t)rank->kv_heads * (size_t)d->head_dim;
  const mob_seq_step_t *seq = &a->job->step.seqs[a->job->seq_of[row]];
  for (int64_t h = kv_head * group; a->splits && h < (kv_head + 1) * group; h++)
    attend_grouped(a, seq, a->job->positions[row], rank->q + (row * rank->heads + h) * d->head_dim,
                   key_at, value_at, a->splits[row] > 0,
                   rank->attn + (row * rank->heads + h) * d->head_dim);
  for (int64_t h = kv_head * group; !a->splits && h < (kv_head + 1) * group; h++)
    attend(a, seq, a->job->positions[row],
           rank->q + (row * rank->heads + h) * d->head_dim, key_at, value_at, d->head_dim,
           d->head_dim, rank->attn + (row * rank->heads + h) * d->head_dim);
  // By tiles, a head of 128 is a block of e4m3 and leaves at once.
  bool direct = a->splits && (a->weights->m[MOB_W_O].dtype != MOB_DT_F8E4M3 || d->head_dim == 128);
  if (rank->exec->spec.contract && !direct)
    mob__round_bf16(rank->attn + (row * rank->heads + kv_head * group) * d->head_dim,
                    group * d->head_dim);
}

// ------------------------------------------------------------------------------------------ both

size_t mob__attention_scratch(const mob_exec_t *exec) {
  const mob_model_desc_t *d = exec->desc;
  if (d->attn != MOB_ATTN_MLA) return 0;
  size_t width = (size_t)(d->kv_lora + d->qk_rope);
  size_t absorb = BATCH * (width + (size_t)d->kv_lora) + (size_t)d->kv_lora;
  size_t expand =
      PAGE * (width + (size_t)(d->head_dim + d->v_head_dim)) + 2 * (size_t)exec->spec.max_tokens;
  return absorb > expand ? absorb : expand;
}

// Multiplications, roughly, to decide whether helpers are worth waking.
static double attention_cost(const attention_t *a) {
  const mob_model_desc_t *d = a->rank->exec->desc;
  double cost = 0;
  for (uint32_t s = 0; s < a->job->step.seq_count; s++) {
    const mob_seq_step_t *seq = &a->job->step.seqs[s];
    cost += (double)seq->count * (seq->start + seq->count) * 2 * (d->kv_lora + d->head_dim);
    if (d->attn == MOB_ATTN_MLA) cost += (double)d->kv_lora * (d->qk_nope + d->v_head_dim);
  }
  return cost * a->rank->heads;
}

mob_status mob__attention(mob_rank_t *rank, const mob_job_t *job, int layer) {
  const mob_exec_t *exec = rank->exec;
  const mob_model_desc_t *d = exec->desc;
  const mob_layer_t *w = &rank->weights.layers[layer];
  int m = (int)job->step.token_count;
  attention_t a = {rank, job, w, rank->kv + (size_t)layer * exec->kv_layer_bytes, NULL};
  if (exec->contract_tiles) {
    a.splits = MOB_NEW_ARRAY(int, (size_t)m);
    mob__contract_plan(exec, job, rank->heads, a.splits);
  }
  mob__norm_rows(rank, rank->x, w->v[MOB_W_ATTN_NORM], rank->norm, m);
  if (d->attn == MOB_ATTN_MLA) {
    project_mla(&a);
    mob_team_run(rank->team, rank->heads, attention_cost(&a), mla_head, &a);
  } else {
    project_gqa(&a);
    mob_team_run(rank->team, (int64_t)m * rank->kv_heads, attention_cost(&a), gqa_row, &a);
  }
  mob__linear(rank, &w->m[MOB_W_O], NULL, rank->attn, (int64_t)rank->heads * d->v_head_dim,
              rank->part, d->hidden, m);
  free(a.splits);
  return mob__add_parts(rank, m, w->v[MOB_W_O_BIAS]);
}
