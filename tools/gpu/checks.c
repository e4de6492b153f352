#include "tools/gpu/checks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/exec.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

enum { PAGE = MOB_PAGE_TOKENS, SHARED = PAGE, MAX_TEXTS = 8, MAX_PAGES = 16 };

// ------------------------------------------------------------------------------------------- report

static void say(check_t *c, const char *what, const check_model_t *m, check_shape_t s, double error, double limit, const char *note) {
  char where[128];
  snprintf(where, sizeof where, "%s, TP %d%s%s%.0d", m->name, s.tp, s.expert_parallel ? " EP" : "", s.pp > 1 ? ", PP " : "",
           s.pp > 1 ? s.pp : 0);
  check_line_t line = {what, where, error, limit, note, limit < 0 || error <= limit};
  c->lines++;
  if (!line.ok) c->failures++;
  c->line(c->arg, &line);
}

bool check_divides(const check_model_t *m, check_shape_t s, int devices) {
  const mob_model_desc_t *d = m->desc;
  int pp = s.pp > 1 ? s.pp : 1;
  if (s.tp * pp > devices || pp > d->n_layers || d->n_heads % s.tp || d->vocab % s.tp || d->intermediate % s.tp) return false;
  if (d->attn == MOB_ATTN_GQA && d->n_kv_heads % s.tp && s.tp % d->n_kv_heads) return false;
  if (!d->n_experts) return !s.expert_parallel;
  return s.expert_parallel ? s.tp > 1 && d->n_experts % s.tp == 0 : d->moe_intermediate % s.tp == 0;
}

// -------------------------------------------------------------------------------------------- texts

// Random texts that begin alike: `shared` tokens, a page.
typedef struct texts {
  int count;
  uint32_t n;
  int32_t *tokens[MAX_TEXTS];
} texts_t;

static texts_t make_texts(const check_t *c, const check_model_t *m) {
  texts_t t = {c->texts < MAX_TEXTS ? c->texts : MAX_TEXTS, c->tokens, {NULL}};
  uint32_t seed = 12345;
  for (int i = 0; i < t.count; i++) {
    t.tokens[i] = MOB_NEW_ARRAY(int32_t, t.n);
    for (uint32_t k = 0; k < t.n; k++) {
      seed = seed * 1664525u + 1013904223u;
      t.tokens[i][k] = i && k < SHARED ? t.tokens[0][k] : (int32_t)(seed >> 8) % m->desc->vocab;
    }
  }
  return t;
}

static void free_texts(texts_t *t) {
  for (int i = 0; i < t->count; i++) free(t->tokens[i]);
}

// --------------------------------------------------------------------------------------------- cuts

// How texts are cut into steps: pieces in order of step.
typedef struct piece {
  uint32_t step, text, start, count;
} piece_t;

typedef struct cut {
  piece_t *pieces;
  size_t count;
  bool hit; // all texts but the first find their first page in the cache
} cut_t;

enum { CUT_WHOLE, CUT_BATCH, CUT_CHUNKS, CUT_DECODE, CUT_MIXED, CUT_HIT, CUT_KINDS };

static void put_piece(cut_t *cut, uint32_t step, uint32_t text, uint32_t start, uint32_t count) {
  cut->pieces[cut->count++] = (piece_t){step, text, start, count};
}

static const char *cut_name(int kind) {
  static const char *const names[] = {"one by one", "at once", "chunks of 37", "decodes", "chunks beside decodes", "prefix in the cache"};
  return names[kind];
}

static cut_t make_cut(int kind, const texts_t *t) {
  cut_t cut = {MOB_NEW_ARRAY(piece_t, (size_t)t->count * t->n + 1), 0, kind == CUT_HIT};
  const uint32_t texts = (uint32_t)t->count, n = t->n;
  uint32_t step = 0;
  switch (kind) {
  case CUT_WHOLE:
    for (uint32_t i = 0; i < texts; i++) put_piece(&cut, step++, i, 0, n);
    break;
  case CUT_BATCH:
    for (uint32_t i = 0; i < texts; i++) put_piece(&cut, 0, i, 0, n);
    break;
  case CUT_CHUNKS:
    for (uint32_t i = 0; i < texts; i++)
      for (uint32_t at = 0; at < n; at += 37) put_piece(&cut, step++, i, at, n - at < 37 ? n - at : 37);
    break;
  case CUT_DECODE: // most of it as a prompt, then token by token, all texts together
    for (uint32_t i = 0; i < texts; i++) put_piece(&cut, step++, i, 0, n - n / 8);
    for (uint32_t at = n - n / 8; at < n; at++, step++)
      for (uint32_t i = 0; i < texts; i++) put_piece(&cut, step, i, at, 1);
    break;
  case CUT_MIXED: // the first text decodes while the others' chunks come in
    put_piece(&cut, step++, 0, 0, n / 2);
    uint32_t at = n / 2;
    for (uint32_t i = 1; i < texts; i++)
      for (uint32_t from = 0; from < n; from += 70, step++) {
        if (at < n) put_piece(&cut, step, 0, at++, 1);
        put_piece(&cut, step, i, from, n - from < 70 ? n - from : 70);
      }
    if (at < n) put_piece(&cut, step++, 0, at, n - at);
    break;
  default:
    put_piece(&cut, step++, 0, 0, n);
    for (uint32_t i = 1; i < texts; i++) put_piece(&cut, step++, i, SHARED, n - SHARED);
  }
  return cut;
}

// ---------------------------------------------------------------------------------------------- run

typedef struct rows { // [texts][n][hidden]
  uint32_t n;
  int hidden;
  float *x;
} rows_t;

static float *row_at(const rows_t *r, uint32_t text, uint32_t at) {
  return r->x + ((size_t)text * r->n + at) * (size_t)r->hidden;
}

static rows_t make_rows(const texts_t *t, int hidden) {
  return (rows_t){t->n, hidden, MOB_NEW_ARRAY(float, (size_t)t->count *t->n *(size_t)hidden)};
}

// How far a row's choice of experts is from another one, as the CPU saw it: the least difference of scores that would change it.
static float margin_of(const mob_exec_t *exec, uint32_t row) {
  const mob_model_desc_t *d = exec->desc;
  const mob_rank_t *rank = &exec->ranks[0];
  const float *score = rank->router + (size_t)row * (size_t)d->n_experts, *bias = rank->weights.layers[0].v[MOB_W_ROUTER_BIAS];
  float choice[512], group[64], margin = INFINITY;
  const int groups = d->topk_group < d->n_group ? d->n_group : 1, size = d->n_experts / groups;
  for (int e = 0; e < d->n_experts; e++) choice[e] = score[e] + (bias ? bias[e] : 0);
  for (int g = 0; g < groups; g++) {
    float best = -INFINITY, second = -INFINITY;
    for (int e = g * size; e < (g + 1) * size; e++) {
      if (choice[e] > best) second = best, best = choice[e];
      else if (choice[e] > second) second = choice[e];
    }
    group[g] = best + second;
  }
  bool kept[64];
  for (int g = 0; g < groups; g++) {
    int better = 0;
    for (int o = 0; o < groups; o++) better += group[o] > group[g] || (group[o] == group[g] && o < g);
    kept[g] = groups == 1 || better < d->topk_group;
  }
  for (int g = 0; g < groups; g++)
    for (int o = 0; o < groups; o++)
      if (kept[g] && !kept[o]) margin = fminf(margin, group[g] - group[o]);
  const int32_t *ids = rank->expert_ids + (size_t)row * (size_t)d->top_k;
  for (int k = 0; k < d->top_k; k++)
    for (int e = 0; e < d->n_experts; e++) {
      bool chosen = false;
      for (int j = 0; j < d->top_k; j++) chosen = chosen || ids[j] == e;
      if (!chosen && kept[e / size]) margin = fminf(margin, choice[ids[k]] - choice[e]);
    }
  return margin;
}

typedef struct run {
  const texts_t *texts;
  const cut_t *cut;
  const rows_t *in; // taped stages that are not the first
  rows_t *out;      // taped stages that are not the last
  float *margins;   // [texts][n], NULL: not wanted
} run_t;

static void text_pages(const cut_t *cut, uint32_t text, uint32_t n, uint32_t *pages, uint32_t total) {
  const uint32_t each = (n + PAGE - 1) / PAGE;
  for (uint32_t i = 0; i < each; i++) pages[i] = (1 + 5 * (text * each + i)) % total; // scattered
  if (cut->hit && text) pages[0] = 1 % total;
}

// Runs all steps of a cut, one after the other.
static mob_status run_cut(drive_t *d, const run_t *r, uint32_t total_pages) {
  mob_seq_step_t seqs[MAX_TEXTS];
  mob_seq_open_t open[MAX_TEXTS];
  uint32_t pages[MAX_TEXTS][MAX_PAGES], close[MAX_TEXTS];
  bool seen[MAX_TEXTS] = {false};
  const uint32_t n = r->texts->n;
  const int hidden = r->in ? r->in->hidden : r->out ? r->out->hidden : 0;
  float *x = MOB_NEW_ARRAY(float, (size_t)r->texts->count *n *(size_t)hidden + 1);
  mob_status status = MOB_OK;
  for (size_t i = 0, next; i < r->cut->count && status == MOB_OK; i = next) {
    mob_step_t step = {.seqs = seqs, .open = open, .close = close};
    for (next = i; next < r->cut->count && r->cut->pieces[next].step == r->cut->pieces[i].step; next++) {
      const piece_t *p = &r->cut->pieces[next];
      uint32_t k = step.seq_count++;
      text_pages(r->cut, p->text, n, pages[k], total_pages);
      seqs[k] = (mob_seq_step_t){.slot = p->text, .row = step.token_count, .start = p->start, .count = p->count,
                                 .tokens = r->texts->tokens[p->text] + p->start, .pages = pages[k],
                                 .page_count = (p->start + p->count + PAGE - 1) / PAGE};
      if (!seen[p->text])
        open[step.open_count++] = (mob_seq_open_t){.slot = p->text, .prompt = r->texts->tokens[p->text], .prompt_count = n,
                                                   .sampling = {.top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = -1,
                                                                .prompt_logprobs = DRIVE_TOP}};
      seen[p->text] = true;
      if (p->start + p->count == n) close[step.close_count++] = p->text;
      for (uint32_t at = 0; r->in && at < p->count; at++)
        memcpy(x + (size_t)(step.token_count + at) * (size_t)hidden, row_at(r->in, p->text, p->start + at), (size_t)hidden * sizeof *x);
      step.token_count += p->count;
    }
    if (r->in) drive_feed(d, x, step.token_count);
    status = drive_step(d, &step);
    for (uint32_t k = 0; status == MOB_OK && k < step.seq_count; k++)
      for (uint32_t at = 0; at < seqs[k].count; at++) {
        const uint32_t row = seqs[k].row + at, text = seqs[k].slot, position = seqs[k].start + at;
        if (r->out) memcpy(row_at(r->out, text, position), drive_taken(d) + (size_t)row * (size_t)hidden, (size_t)hidden * sizeof *x);
        if (r->margins) r->margins[text * n + position] = margin_of(drive_exec(d, 0), row);
      }
  }
  free(x);
  return status;
}

enum { TOTAL_PAGES = 61 };

static mob_status open_run(const drive_config_t *config, const run_t *r, drive_t **keep) {
  drive_config_t c = *config;
  c.max_tokens = r->texts->count * (int)r->texts->n;
  c.max_len = (int)r->texts->n;
  c.pages = TOTAL_PAGES;
  drive_t *d;
  MOB_TRY(drive_open(&c, &d));
  mob_status status = run_cut(d, r, TOTAL_PAGES);
  if (status != MOB_OK || !keep) drive_close(d);
  else *keep = d;
  return status;
}

// ------------------------------------------------------------------------------------------- layers

// Of scores: rows nearer to another choice of experts are left out; in FP8 models twice the largest change of any row's distance
// between two runs of the CPU, where that is more.
static const double least_tie = 0.01;

typedef struct error {
  double l2, worst;
  int counted, ties;
} error_t;

// What a layer adds to its input, b against a.
static void add_error(const rows_t *a, const rows_t *b, const rows_t *in, const float *margins, double tie, int texts, error_t *out) {
  double d = 0, s = 0;
  for (int text = 0; text < texts; text++)
    for (uint32_t at = 0; at < a->n; at++) {
      if (margins && margins[(uint32_t)text * a->n + at] < tie) {
        out->ties++;
        continue;
      }
      const float *x = row_at(in, (uint32_t)text, at), *u = row_at(a, (uint32_t)text, at), *v = row_at(b, (uint32_t)text, at);
      double dr = 0, sr = 0;
      for (int c = 0; c < a->hidden; c++) {
        dr += ((double)v[c] - u[c]) * ((double)v[c] - u[c]);
        sr += ((double)u[c] - x[c]) * ((double)u[c] - x[c]);
      }
      d += dr;
      s += sr;
      const double row = isfinite(dr) ? sqrt(dr / sr) : INFINITY;
      if (row > out->worst) out->worst = row;
      out->counted++;
    }
  const double l2 = isfinite(d) ? sqrt(d / s) : INFINITY;
  if (l2 > out->l2) out->l2 = l2;
}

typedef struct distance {
  double kl, top1, worst, cosine;
  int ties, n;
  bool same; // to the bit
} distance_t;

// b against a: divergence over a's best, agreement of the best outside near ties, largest difference of a token's own.
static void add_distance(const drive_place_t *a, const drive_place_t *b, uint32_t n, distance_t *d, double sums[3], int count[2]) {
  for (uint32_t i = 1; i < n; i++) {
    if (!a[i].known || !b[i].known) {
      d->kl = INFINITY;
      return;
    }
    double kl = 0;
    for (uint32_t k = 0; k < a[i].top_count; k++)
      for (uint32_t m = 0; m < b[i].top_count; m++)
        if (a[i].top[k].token == b[i].top[m].token) {
          double p = a[i].top[k].logprob, q = b[i].top[m].logprob;
          kl += exp(p) * (p - q) - exp(p) + exp(q);
          sums[0] += p * q, sums[1] += p * p, sums[2] += q * q;
        }
    d->kl += kl;
    d->n++;
    bool near = a[i].top_count > 1 && a[i].top[0].logprob - a[i].top[1].logprob < 0.05f;
    d->ties += near;
    if (!near) count[0]++, count[1] += a[i].top[0].token == b[i].top[0].token;
    double diff = fabs((double)a[i].chosen.logprob - (double)b[i].chosen.logprob);
    if (!(diff <= d->worst)) d->worst = diff;
    d->same = d->same && a[i].chosen.logprob == b[i].chosen.logprob && a[i].top_count == b[i].top_count;
    for (uint32_t k = 0; d->same && k < a[i].top_count; k++)
      d->same = a[i].top[k].token == b[i].top[k].token && a[i].top[k].logprob == b[i].top[k].logprob;
  }
}

static distance_t distance(const drive_t *a, const drive_t *b, const texts_t *t, uint32_t from) {
  distance_t d = {.same = true};
  double sums[3] = {0};
  int count[2] = {0};
  for (uint32_t text = 0; text < (uint32_t)t->count; text++) {
    const uint32_t skip = text ? from : 0;
    add_distance(drive_places(a, text) + skip, drive_places(b, text) + skip, t->n - skip, &d, sums, count);
  }
  d.kl = d.n ? d.kl / d.n : INFINITY;
  if (d.kl < 0) d.kl = -d.kl;
  d.top1 = count[0] ? 100.0 * count[1] / count[0] : 100;
  d.cosine = sums[0] / sqrt(sums[1] * sums[2]);
  return d;
}

// The inputs of all layers but the first: what the CPU, TP 1, prompts one by one, leaves before them. [0]: the embedding.
typedef struct tape {
  texts_t texts;
  rows_t *in;      // [n_layers]
  float **margins; // [n_layers]; NULL where there is no router
  double *ties;    // [n_layers] rows with less margin are left out
} tape_t;

// The CPU backend with another order of sums (its scalar code), and every norm's factor one unit in the last place up or down, as
// another order and an approximate rsqrt make it on a GPU. The order alone would not do: the factors of most rows
// come out equal to the bit.
static mob_cpu_ops_t moved_ops;
static void moved_rmsnorm(const float *x, const float *w, float eps, float *out, int64_t n) {
  uint32_t bits;
  memcpy(&bits, x, sizeof bits);
  const float factor = bits * 2654435761u >> 31 ? 1 + 0x1p-23f : 1 - 0x1p-23f;
  mob_cpu_ops_scalar.rmsnorm(x, w, eps, out, n);
  for (int64_t i = 0; i < n; i++) out[i] *= factor;
}
static mob_status open_moved(const mob_exec_spec_t *spec, mob_exec_t **out) {
  MOB_TRY(mob_backend_cpu.open(spec, out));
  moved_ops = mob_cpu_ops_scalar;
  moved_ops.rmsnorm = moved_rmsnorm;
  (*out)->ops = &moved_ops;
  return MOB_OK;
}
static mob_backend_t moved_cpu; // filled by is_reference()
static bool is_reference(const mob_backend_t *backend) {
  if (!moved_cpu.open) {
    moved_cpu = mob_backend_cpu;
    moved_cpu.open = open_moved;
  }
  return backend == &mob_backend_cpu || backend == &moved_cpu;
}

static drive_config_t layer_config(const check_t *c, const mob_backend_t *backend, const check_model_t *m, check_shape_t s, int layer) {
  return (drive_config_t){.backend = backend, .model = m->model, .tp = s.tp, .expert_parallel = s.expert_parallel,
                          .contract = is_reference(backend), .tensor_sums = !c->exact_sums,
                          .first_layer = layer, .last_layer = layer + 1};
}

static bool is_f8(const check_model_t *m) {
  const char *wish = getenv("MOB_CUDA_F8");
  return m->desc->quant_block_rows > 0 && !(wish && wish[0] == '0');
}

// The margin that a layer's rows need, from a second run on the same input.
static mob_status measure_tie(const check_t *c, const check_model_t *m, const tape_t *tape, const cut_t *cut, int layer, double *tie) {
  const size_t rows = (size_t)tape->texts.count * tape->texts.n;
  *tie = least_tie;
  if (!tape->margins[layer] || !is_f8(m) || c->exact_sums) return MOB_OK;
  float *margins = MOB_NEW_ARRAY(float, rows);
  rows_t out = make_rows(&tape->texts, m->desc->hidden);
  drive_config_t config = layer_config(c, &moved_cpu, m, (check_shape_t){1, 1, false}, layer);
  run_t run = {&tape->texts, cut, layer ? &tape->in[layer] : NULL, layer + 1 < m->desc->n_layers ? &out : NULL, margins};
  const mob_status status = open_run(&config, &run, NULL);
  for (size_t i = 0; i < rows && status == MOB_OK; i++) *tie = fmax(*tie, 2 * fabs((double)margins[i] - tape->margins[layer][i]));
  free(margins);
  free(out.x);
  return status;
}

static mob_status make_tape(const check_t *c, const check_model_t *m, tape_t *tape) {
  const int layers = m->desc->n_layers, hidden = m->desc->hidden;
  *tape = (tape_t){make_texts(c, m), MOB_NEW_ARRAY(rows_t, (size_t)layers), MOB_NEW_ARRAY(float *, (size_t)layers),
                    MOB_NEW_ARRAY(double, (size_t)layers)};
  cut_t cut = make_cut(CUT_WHOLE, &tape->texts);
  mob_status status = MOB_OK;
  for (int l = 0; l < layers; l++) tape->in[l] = make_rows(&tape->texts, hidden);
  for (int l = 0; l < layers && status == MOB_OK; l++) {
    if (m->desc->is_moe[l]) tape->margins[l] = MOB_NEW_ARRAY(float, (size_t)tape->texts.count *tape->texts.n);
    drive_config_t config = layer_config(c, &mob_backend_cpu, m, (check_shape_t){1, 1, false}, l);
    run_t run = {&tape->texts, &cut, l ? &tape->in[l] : NULL, l + 1 < layers ? &tape->in[l + 1] : NULL, tape->margins[l]};
    drive_t *d = NULL;
    status = open_run(&config, &run, &d);
    if (status == MOB_OK) status = measure_tie(c, m, tape, &cut, l, &tape->ties[l]);
    if (status != MOB_OK || l > 0) {
      drive_close(d);
      continue;
    }
    const mob_exec_t *exec = drive_exec(d, 0);
    for (int text = 0; text < tape->texts.count; text++)
      for (uint32_t at = 0; at < tape->texts.n; at++)
        exec->ops->row(&exec->ranks[0].weights.outer.m[MOB_W_EMBED], tape->texts.tokens[text][at],
                       row_at(&tape->in[0], (uint32_t)text, at));
    drive_close(d);
  }
  free(cut.pieces);
  return status;
}

static void free_tape(const check_model_t *m, tape_t *tape) {
  for (int l = 0; l < m->desc->n_layers; l++) {
    free(tape->in[l].x);
    free(tape->margins[l]);
  }
  free(tape->in);
  free(tape->margins);
  free(tape->ties);
  free_texts(&tape->texts);
}

typedef struct side { // of a comparison
  const mob_backend_t *backend;
  check_shape_t shape;
  int cut;
} side_t;

// Layer by layer on the tape's inputs: errors of the rows that leave, and the divergence behind the last layer.
static mob_status compare_layers(const check_t *c, const check_model_t *m, const tape_t *tape, side_t a, side_t b, error_t *error, double *kl) {
  const int layers = m->desc->n_layers;
  const side_t *sides[] = {&a, &b};
  mob_status status = MOB_OK;
  *error = (error_t){0};
  *kl = 0;
  for (int l = 0; l < layers && status == MOB_OK; l++) {
    drive_t *d[2] = {NULL, NULL};
    rows_t out[2];
    cut_t cuts[2];
    const bool last = l + 1 == layers;
    for (int i = 0; i < 2; i++) {
      out[i] = make_rows(&tape->texts, m->desc->hidden);
      cuts[i] = make_cut(sides[i]->cut, &tape->texts);
      drive_config_t config = layer_config(c, sides[i]->backend, m, sides[i]->shape, l);
      run_t run = {&tape->texts, &cuts[i], l ? &tape->in[l] : NULL, last ? NULL : &out[i], NULL};
      if (status == MOB_OK) status = open_run(&config, &run, &d[i]);
    }
    const bool hit = cuts[0].hit || cuts[1].hit; // whose rows of the first page are not computed again
    if (status == MOB_OK && !last) {
      for (uint32_t text = 1; hit && text < (uint32_t)tape->texts.count; text++)
        for (uint32_t at = 0; at < SHARED; at++)
          memcpy(row_at(&out[1], text, at), row_at(&out[0], text, at), (size_t)m->desc->hidden * sizeof(float));
      add_error(&out[0], &out[1], &tape->in[l], tape->margins[l], tape->ties[l], tape->texts.count, error);
    }
    if (status == MOB_OK && last && !tape->margins[l]) *kl = distance(d[0], d[1], &tape->texts, hit ? SHARED : 0).kl;
    for (int i = 0; i < 2; i++) {
      drive_close(d[i]);
      free(out[i].x);
      free(cuts[i].pieces);
    }
  }
  return status;
}

// FP8 layers: `apart` times the distance between two runs of the CPU whose norms differ by one unit in the last place. Behind four
// quantisations little is left in common: changes of 1e-6, 1e-5 and 1e-4 of the norms carry no further than 1.25 times what
// 1e-7 does, and the rest is what 400 rows of luck make.
static const double layer_limit = 1e-2, apart = 1.5;

static mob_status judge_layers(check_t *c, const char *what, const check_model_t *m, const tape_t *tape, side_t a, side_t b) {
  error_t e, base = {0};
  double kl, unused;
  char note[160];
  mob_status status = compare_layers(c, m, tape, a, b, &e, &kl);
  const bool measure = is_f8(m) && !(c->exact_sums && a.backend == &mob_backend_cpu);
  if (status == MOB_OK && measure) { // what the CPU makes of the same two ways
    side_t first = {&mob_backend_cpu, a.shape, a.cut}, second = {&moved_cpu, b.shape, b.cut};
    status = compare_layers(c, m, tape, first, second, &base, &unused);
  }
  if (status != MOB_OK) {
    say(c, what, m, b.shape, INFINITY, layer_limit, mob_errmsg());
    return MOB_OK;
  }
  int at = snprintf(note, sizeof note, "worst row %.1e, logits %.0e", e.worst, kl);
  if (e.ties) at += snprintf(note + at, sizeof note - (size_t)at, ", %d of %d rows near ties", e.ties, e.ties + e.counted);
  if (measure) snprintf(note + at, sizeof note - (size_t)at, "; on the CPU %.1e", base.l2);
  const double limit = fmax(layer_limit, apart * base.l2);
  say(c, what, m, b.shape, kl < 1e-3 || limit > layer_limit ? e.l2 : INFINITY, limit, note);
  return MOB_OK;
}

mob_status check_layers(check_t *c, const check_model_t *m, check_shape_t s) {
  tape_t tape;
  mob_status status = make_tape(c, m, &tape);
  if (status == MOB_OK)
    status = judge_layers(c, "layers / CPU", m, &tape, (side_t){&mob_backend_cpu, s, CUT_BATCH}, (side_t){c->backend, s, CUT_BATCH});
  free_tape(m, &tape);
  return status;
}

mob_status check_layers_tp(check_t *c, const check_model_t *m, check_shape_t s) {
  tape_t tape;
  mob_status status = make_tape(c, m, &tape);
  if (status == MOB_OK)
    status = judge_layers(c, "layers / TP 1", m, &tape, (side_t){c->backend, {1, 1, false}, CUT_BATCH},
                          (side_t){c->backend, s, CUT_BATCH});
  free_tape(m, &tape);
  return status;
}

mob_status check_layers_cuts(check_t *c, const check_model_t *m, check_shape_t s) {
  tape_t tape;
  mob_status status = make_tape(c, m, &tape);
  for (int kind = 0; kind < CUT_KINDS && status == MOB_OK; kind++) {
    if (kind == CUT_BATCH || (kind == CUT_WHOLE && c->exact_sums)) continue;
    char what[64];
    if (!c->exact_sums) { // else saved: both are held against the CPU, which computes them alike
      snprintf(what, sizeof what, "layers, %s / at once", cut_name(kind));
      status = judge_layers(c, what, m, &tape, (side_t){c->backend, s, CUT_BATCH}, (side_t){c->backend, s, kind});
    }
    snprintf(what, sizeof what, "layers, %s / CPU", cut_name(kind));
    if (status == MOB_OK)
      status = judge_layers(c, what, m, &tape, (side_t){&mob_backend_cpu, s, kind}, (side_t){c->backend, s, kind});
  }
  free_tape(m, &tape);
  return status;
}

// ------------------------------------------------------------------------------------------- engines

static mob_status run_engine(const check_t *c, const mob_backend_t *backend, const check_model_t *m, check_shape_t s, bool eager,
                             const texts_t *t, int kind, drive_t **out) {
  drive_config_t config = {.backend = backend, .model = m->model, .tp = s.tp, .pp = s.pp, .expert_parallel = s.expert_parallel,
                           .eager = eager, .contract = is_reference(backend), .tensor_sums = !c->exact_sums};
  cut_t cut = make_cut(kind, t);
  run_t run = {t, &cut, NULL, NULL, NULL};
  mob_status status = open_run(&config, &run, out);
  free(cut.pieces);
  return status;
}

mob_status check_engine(check_t *c, const check_model_t *m, check_shape_t s) {
  texts_t t = make_texts(c, m);
  drive_t *cpu = NULL, *gpu = NULL, *moved = NULL;
  double floor = 0;
  check_shape_t one = {s.tp, 1, s.expert_parallel};
  mob_status status = run_engine(c, &mob_backend_cpu, m, one, false, &t, CUT_BATCH, &cpu);
  if (status == MOB_OK) status = run_engine(c, &moved_cpu, m, one, false, &t, CUT_BATCH, &moved);
  if (status == MOB_OK) floor = distance(cpu, moved, &t, 0).kl;
  if (status == MOB_OK) status = run_engine(c, c->backend, m, s, false, &t, CUT_BATCH, &gpu);
  if (status != MOB_OK) {
    say(c, "engine / CPU, divergence", m, s, INFINITY, 1e-3, mob_errmsg());
  } else {
    const distance_t d = distance(cpu, gpu, &t, 0);
    char note[160];
    snprintf(note, sizeof note, "best token %.1f %% (%d of %d near ties), cosine %.6f; norms a unit apart on the CPU: %.0e", d.top1, d.ties,
             d.n, d.cosine, floor);
    const double limit = 4 * floor > 1e-3 ? 4 * floor : 1e-3;
    say(c, "engine / CPU, divergence", m, s, d.top1 >= 99 || floor > 1e-4 ? d.kl : INFINITY, limit, note);
  }
  drive_close(cpu);
  drive_close(moved);
  drive_close(gpu);
  free_texts(&t);
  return MOB_OK;
}

mob_status check_pipeline(check_t *c, const check_model_t *m, check_shape_t s) {
  texts_t t = make_texts(c, m);
  drive_t *one = NULL, *many = NULL;
  mob_status status = run_engine(c, c->backend, m, (check_shape_t){s.tp, 1, s.expert_parallel}, false, &t, CUT_DECODE, &one);
  if (status == MOB_OK) status = run_engine(c, c->backend, m, s, false, &t, CUT_DECODE, &many);
  if (status != MOB_OK) say(c, "engine / one stage, bitwise", m, s, INFINITY, 0, mob_errmsg());
  else {
    const distance_t d = distance(one, many, &t, 0);
    say(c, "engine / one stage, bitwise", m, s, d.same ? 0 : d.worst, 0, d.same ? "" : "log probabilities differ");
  }
  drive_close(one);
  drive_close(many);
  free_texts(&t);
  return MOB_OK;
}

mob_status check_graph(check_t *c, const check_model_t *m, check_shape_t s) {
  const int batches[] = {1, 2, 3, 8};
  for (size_t i = 0; i < MOB_LEN(batches); i++) {
    if (batches[i] > 2 * c->texts) break;
    check_t with = *c;
    with.texts = batches[i];
    texts_t t = make_texts(&with, m);
    drive_t *eager = NULL, *graph = NULL;
    char what[64];
    snprintf(what, sizeof what, "graph / eager, bitwise, %d sequence%s", batches[i], batches[i] > 1 ? "s" : "");
    mob_status status = run_engine(c, c->backend, m, s, true, &t, CUT_DECODE, &eager);
    if (status == MOB_OK) status = run_engine(c, c->backend, m, s, false, &t, CUT_DECODE, &graph);
    if (status != MOB_OK) say(c, what, m, s, INFINITY, 0, mob_errmsg());
    else {
      const distance_t d = distance(eager, graph, &t, 0);
      say(c, what, m, s, d.same ? 0 : d.worst, 0, d.same ? "" : "log probabilities differ");
    }
    drive_close(eager);
    drive_close(graph);
    free_texts(&t);
  }
  return MOB_OK;
}

// ------------------------------------------------------------------------------------ queue and abort

enum { QUEUED = 12 };

// Greedy tokens of two texts; `queue`: every decode names the token before as MOB_TOKEN_PREVIOUS and waits for nothing.
static mob_status generate(const check_t *c, const check_model_t *m, check_shape_t s, const texts_t *t, bool queue, int32_t out[2][QUEUED]) {
  drive_config_t config = {.backend = c->backend, .model = m->model, .tp = s.tp, .pp = s.pp, .expert_parallel = s.expert_parallel,
                           .max_tokens = 256, .max_len = 256, .pages = TOTAL_PAGES};
  drive_t *d;
  MOB_TRY(drive_open(&config, &d));
  mob_status status = MOB_OK;
  for (int at = 0; at < QUEUED && status == MOB_OK; at++) {
    mob_seq_step_t seqs[2];
    mob_seq_open_t open[2];
    uint32_t pages[2][MAX_PAGES];
    int32_t previous[2];
    mob_step_t step = {.seq_count = 2, .seqs = seqs, .open = open, .open_count = at ? 0 : 2};
    for (uint32_t i = 0; i < 2; i++) {
      const uint32_t n = 70 + 3 * i;
      for (uint32_t p = 0; p < MAX_PAGES; p++) pages[i][p] = (i + 2 * p) % TOTAL_PAGES;
      open[i] = (mob_seq_open_t){.slot = i, .prompt = t->tokens[i], .prompt_count = n,
                                 .sampling = {.top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1}};
      previous[i] = queue ? MOB_TOKEN_PREVIOUS : at ? out[i][at - 1] : 0;
      seqs[i] = (mob_seq_step_t){.slot = i, .row = step.token_count, .start = at ? n + (uint32_t)at - 1 : 0, .count = at ? 1 : n,
                                 .tokens = at ? &previous[i] : t->tokens[i], .pages = pages[i], .page_count = 2, .sample = true};
      step.token_count += seqs[i].count;
    }
    status = drive_queue(d, &step);
    if (status == MOB_OK && !queue) status = drive_wait(d);
    for (uint32_t i = 0; i < 2 && !queue; i++) out[i][at] = drive_last(d, i);
  }
  if (status == MOB_OK) status = drive_wait(d);
  for (uint32_t i = 0; i < 2 && queue; i++)
    for (uint32_t at = 0; at < QUEUED; at++) out[i][at] = drive_places(d, i)[70 + 3 * i + at].chosen.token;
  drive_close(d);
  return status;
}

mob_status check_queue(check_t *c, const check_model_t *m, check_shape_t s) {
  check_t with = *c;
  with.texts = 2;
  if (with.tokens < 80) with.tokens = 80;
  texts_t t = make_texts(&with, m);
  int32_t one[2][QUEUED], all[2][QUEUED];
  mob_status status = generate(&with, m, s, &t, false, one);
  if (status == MOB_OK) status = generate(&with, m, s, &t, true, all);
  int differ = 0;
  for (int i = 0; i < 2 * QUEUED && status == MOB_OK; i++) differ += one[i / QUEUED][i % QUEUED] != all[i / QUEUED][i % QUEUED];
  say(c, "tokens, all steps queued / one by one", m, s, status == MOB_OK ? differ : INFINITY, 0, status == MOB_OK ? "" : mob_errmsg());
  free_texts(&t);
  return MOB_OK;
}

mob_status check_abort(check_t *c, const check_model_t *m, check_shape_t s) {
  const uint64_t limit_ms = 5000;
  texts_t t = make_texts(c, m);
  drive_config_t config = {.backend = c->backend, .model = m->model, .tp = s.tp, .pp = s.pp, .expert_parallel = s.expert_parallel,
                           .max_tokens = (int)t.n, .max_len = (int)t.n, .pages = TOTAL_PAGES, .timeout_s = 20};
  drive_t *d;
  mob_status status = drive_open(&config, &d);
  if (status != MOB_OK) {
    say(c, "abort under way, ms", m, s, INFINITY, (double)limit_ms, mob_errmsg());
    free_texts(&t);
    return MOB_OK;
  }
  uint32_t pages[MAX_PAGES];
  for (uint32_t i = 0; i < MAX_PAGES; i++) pages[i] = i;
  mob_seq_open_t open = {.prompt = t.tokens[0], .prompt_count = t.n,
                         .sampling = {.top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1}};
  for (int i = 0; i < 3 && status == MOB_OK; i++) { // three whole prompts: the first is under way, the others wait
    open.slot = (uint32_t)i;
    mob_seq_step_t seq = {.slot = (uint32_t)i, .count = t.n, .tokens = t.tokens[0], .pages = pages, .page_count = (t.n + PAGE - 1) / PAGE,
                          .sample = true};
    mob_step_t step = {.token_count = t.n, .seq_count = 1, .seqs = &seq, .open = &open, .open_count = 1};
    status = drive_queue(d, &step);
  }
  const uint64_t begin = mob_now_ms();
  drive_abort(d);
  const mob_status ended = drive_wait(d);
  const uint64_t took = mob_now_ms() - begin;
  char note[64];
  snprintf(note, sizeof note, "steps ended with %s", mob_status_name(ended));
  // They may have been faster than the abort; but they must all have ended.
  const bool good = status == MOB_OK && (ended == MOB_E_ABORTED || ended == MOB_E_UNAVAILABLE || ended == MOB_OK);
  drive_close(d);
  say(c, "abort under way, ms", m, s, good ? (double)took : INFINITY, (double)limit_ms, note);
  free_texts(&t);
  return MOB_OK;
}
