#include "tools/gpu/runs.h"

#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/exec.h"
#include "runtime/base/mem.h"

enum { PAGE = MOB_PAGE_TOKENS };

// -------------------------------------------------------------------------------------------- texts

texts_t texts_make(const check_t *c, const check_model_t *m) {
  texts_t t = {c->texts < RUNS_TEXTS ? c->texts : RUNS_TEXTS, c->tokens, {NULL}};
  uint32_t seed = 12345;
  for (int i = 0; i < t.count; i++) {
    t.tokens[i] = MOB_NEW_ARRAY(int32_t, t.n);
    for (uint32_t k = 0; k < t.n; k++) {
      seed = seed * 1664525u + 1013904223u;
      t.tokens[i][k] = i && k < RUNS_SHARED ? t.tokens[0][k] : (int32_t)(seed >> 8) % m->desc->vocab;
    }
  }
  return t;
}

void texts_free(texts_t *t) {
  for (int i = 0; i < t->count; i++) free(t->tokens[i]);
}

// --------------------------------------------------------------------------------------------- cuts

// How texts are cut into steps: pieces in order of step.
typedef struct piece {
  uint32_t step, text, start, count;
} piece_t;

typedef struct cut {
  cut_kind kind;
  piece_t *pieces;
  size_t count;
  bool hit; // all texts but the first find their first page in the cache
} cut_t;

static void put_piece(cut_t *cut, uint32_t step, uint32_t text, uint32_t start, uint32_t count) {
  cut->pieces[cut->count++] = (piece_t){step, text, start, count};
}

const char *cut_name(cut_kind kind) {
  static const char *const names[] = {"one by one", "at once", "chunks of 37", "decodes", "chunks beside decodes", "prefix in the cache"};
  return names[kind];
}

static cut_t make_cut(cut_kind kind, const texts_t *t) {
  cut_t cut = {kind, MOB_NEW_ARRAY(piece_t, (size_t)t->count * t->n + 1), 0, kind == CUT_HIT};
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
    for (uint32_t i = 1; i < texts; i++) put_piece(&cut, step++, i, RUNS_SHARED, n - RUNS_SHARED);
  }
  return cut;
}

// -------------------------------------------------------------------------------------------- steps

float *row_at(const rows_t *r, uint32_t text, uint32_t at) {
  return r->x + ((size_t)text * r->n + at) * (size_t)r->hidden;
}

static rows_t make_rows(const texts_t *t, int hidden) {
  return (rows_t){t->n, hidden, MOB_NEW_ARRAY(float, (size_t)t->count *t->n *(size_t)hidden)};
}

// How far a row's choice of experts is from another one, as the CPU saw it: the least difference of scores that would change it. Negative
// where it computes with experts that it would not have chosen.
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
  int first_layer, last_layer; // that are run
  int top_k;
  const rows_t *in;            // taped stages that are not the first
  rows_t *out;                 // taped stages that are not the last
  float *margins;              // [texts][n], NULL: not wanted
  int32_t *const *given;       // [n_layers]: [texts][n][top_k]; NULL: every router chooses for itself
  int32_t *const *chosen;      // [n_layers] likewise; entries NULL: not wanted
} run_t;

static void text_pages(const texts_t *t, const cut_t *cut, uint32_t text, uint32_t *pages) {
  const uint32_t each = (t->n + PAGE - 1) / PAGE;
  const uint32_t base = (uint32_t)cut->kind * (uint32_t)t->count * each; // a cut does not find what another one left
  for (uint32_t i = 0; i < each; i++) pages[i] = (1 + 5 * (base + text * each + i)) % RUNS_PAGES; // scattered
  if (cut->hit && text) pages[0] = (1 + 5 * base) % RUNS_PAGES;
}

// The experts of a step's rows, between the drive and a run's own order.
static void move_ids(drive_t *d, const run_t *r, const mob_seq_step_t *seq, bool give) {
  const size_t k = (size_t)r->top_k;
  for (int l = r->first_layer; l < r->last_layer; l++) {
    int32_t *of_run = give ? r->given ? r->given[l] : NULL : r->chosen ? r->chosen[l] : NULL;
    if (!of_run) continue;
    of_run += ((size_t)seq->slot * r->texts->n + seq->start) * k;
    if (give) memcpy(drive_given(d, l) + seq->row * k, of_run, seq->count * k * sizeof *of_run);
    else memcpy(of_run, drive_chosen(d, l) + seq->row * k, seq->count * k * sizeof *of_run);
  }
}

static void take_rows(drive_t *d, const run_t *r, const mob_seq_step_t *seq) {
  for (uint32_t at = 0; at < seq->count; at++) {
    const uint32_t row = seq->row + at, position = seq->start + at;
    if (r->out)
      memcpy(row_at(r->out, seq->slot, position), drive_taken(d) + (size_t)row * (size_t)r->out->hidden, (size_t)r->out->hidden * sizeof(float));
    if (r->margins) r->margins[seq->slot * r->texts->n + position] = margin_of(drive_exec(d, 0), row);
  }
  move_ids(d, r, seq, false);
}

// Runs all steps of a cut, one after the other.
static mob_status run_cut(drive_t *d, const run_t *r, const cut_t *cut) {
  mob_seq_step_t seqs[RUNS_TEXTS];
  mob_seq_open_t open[RUNS_TEXTS];
  uint32_t pages[RUNS_TEXTS][RUNS_MOST_PAGES], close[RUNS_TEXTS];
  bool seen[RUNS_TEXTS] = {false};
  const uint32_t n = r->texts->n;
  const size_t hidden = r->in ? (size_t)r->in->hidden : 0;
  float *x = MOB_NEW_ARRAY(float, (size_t)r->texts->count *n *hidden + 1);
  mob_status status = MOB_OK;
  drive_forget(d);
  for (size_t i = 0, next; i < cut->count && status == MOB_OK; i = next) {
    mob_step_t step = {.seqs = seqs, .open = open, .close = close};
    for (next = i; next < cut->count && cut->pieces[next].step == cut->pieces[i].step; next++) {
      const piece_t *p = &cut->pieces[next];
      uint32_t k = step.seq_count++;
      text_pages(r->texts, cut, p->text, pages[k]);
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
        memcpy(x + (step.token_count + at) * hidden, row_at(r->in, p->text, p->start + at), hidden * sizeof *x);
      move_ids(d, r, &seqs[k], true);
      step.token_count += p->count;
    }
    if (r->in) drive_feed(d, x, step.token_count);
    status = drive_step(d, &step);
    for (uint32_t k = 0; status == MOB_OK && k < step.seq_count; k++) take_rows(d, r, &seqs[k]);
  }
  free(x);
  return status;
}

static mob_status run_once(drive_t *d, const run_t *r, cut_kind kind) {
  cut_t cut = make_cut(kind, r->texts);
  const mob_status status = run_cut(d, r, &cut);
  free(cut.pieces);
  return status;
}

// ------------------------------------------------------------------------------------------ runners

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
  (*out)->ops = &moved_ops;
  return MOB_OK;
}
static mob_backend_t moved_cpu;
static void make_moved(void) {
  moved_ops = mob_cpu_ops_scalar;
  moved_ops.rmsnorm = moved_rmsnorm;
  moved_cpu = mob_backend_cpu;
  moved_cpu.open = open_moved;
}

static drive_config_t config_of(const check_t *c, const check_model_t *m, runner_t runner, check_shape_t s, const texts_t *t) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, make_moved);
  return (drive_config_t){.backend = runner == RUN_CPU ? &mob_backend_cpu : runner == RUN_MOVED ? &moved_cpu : c->backend,
                          .model = m->model, .tp = s.tp, .expert_parallel = s.expert_parallel, .contract = runner != RUN_BACKEND,
                          .tensor_sums = !c->exact_sums, .max_tokens = t->count * (int)t->n, .max_len = (int)t->n, .pages = RUNS_PAGES};
}

bool runs_f8(const check_model_t *m) {
  const char *wish = getenv("MOB_CUDA_F8");
  return m->desc->quant_block_rows > 0 && !(wish && wish[0] == '0');
}

mob_status runs_drive(const check_t *c, const check_model_t *m, check_shape_t s, bool eager, const texts_t *t, cut_kind cut, drive_t **out) {
  drive_config_t config = config_of(c, m, RUN_BACKEND, s, t);
  config.pp = s.pp;
  config.eager = eager;
  drive_t *d;
  MOB_TRY(drive_open(&config, &d));
  const run_t run = {.texts = t};
  const mob_status status = run_once(d, &run, cut);
  if (status == MOB_OK) *out = d;
  else drive_close(d);
  return status;
}

// --------------------------------------------------------------------------------------------- memo

// What was computed of a model. One thread at a time.
typedef struct memo {
  tape_t tape;
  bool taped;
  const mob_model_desc_t *desc;
  uint32_t tokens;
  int texts;
  outcome_t *outcomes;
} memo_t;

static int32_t **make_ids(const check_model_t *m, const texts_t *t) {
  int32_t **ids = MOB_NEW_ARRAY(int32_t *, (size_t)m->desc->n_layers);
  for (int l = 0; l < m->desc->n_layers; l++)
    if (m->desc->is_moe[l]) ids[l] = MOB_NEW_ARRAY(int32_t, (size_t)t->count *t->n *(size_t)m->desc->top_k);
  return ids;
}

static void free_ids(int32_t **ids, int layers) {
  for (int l = 0; ids && l < layers; l++) free(ids[l]);
  free(ids);
}

static float **make_margins(const check_model_t *m, const texts_t *t) {
  float **margins = MOB_NEW_ARRAY(float *, (size_t)m->desc->n_layers);
  for (int l = 0; l < m->desc->n_layers; l++)
    if (m->desc->is_moe[l]) margins[l] = MOB_NEW_ARRAY(float, (size_t)t->count *t->n);
  return margins;
}

static void free_margins(float **margins, int layers) {
  for (int l = 0; margins && l < layers; l++) free(margins[l]);
  free(margins);
}

static void free_outcome(outcome_t *o, int layers) {
  if (!o) return;
  for (int l = 0; o->out && l < layers; l++) free(o->out[l].x);
  free(o->out);
  free_ids(o->chosen, layers);
  free_margins(o->margins, layers);
  for (int i = 0; i < RUNS_TEXTS; i++) free(o->places[i]);
  free(o);
}

static void forget(void *data) {
  memo_t *memo = data;
  const int layers = memo->desc->n_layers;
  for (int l = 0; memo->tape.in && l < layers; l++) {
    free(memo->tape.in[l].x);
  }
  free(memo->tape.in);
  free_margins(memo->tape.margins, layers);
  free(memo->tape.ties);
  free_ids(memo->tape.chosen, layers);
  texts_free(&memo->tape.texts);
  for (outcome_t *o = memo->outcomes, *next; o; o = next) {
    next = o->next;
    free_outcome(o, layers);
  }
  free(memo);
}

static memo_t *memo_of(const check_t *c, const check_model_t *m) {
  check_memo_t *keep = m->memo;
  memo_t *memo = keep->data;
  if (memo && memo->tokens == c->tokens && memo->texts == c->texts) return memo;
  if (memo) forget(memo);
  memo = MOB_NEW(memo_t);
  *memo = (memo_t){.desc = m->desc, .tokens = c->tokens, .texts = c->texts};
  memo->tape.texts = texts_make(c, m);
  keep->data = memo;
  keep->forget = forget;
  return memo;
}

const texts_t *runs_texts(const check_t *c, const check_model_t *m) { return &memo_of(c, m)->tape.texts; }

// --------------------------------------------------------------------------------------------- tape

// Of scores: what a layer's rows may be apart without a fault. In FP8 models twice the largest change of any row's distance from
// another choice between two runs of the CPU, where that is more.
static const double least_tie = 0.01;

static mob_status measure_tie(const check_t *c, const check_model_t *m, const tape_t *tape, int layer, double *tie) {
  const texts_t *t = &tape->texts;
  const size_t rows = (size_t)t->count * t->n;
  *tie = least_tie;
  if (!tape->margins[layer] || !runs_f8(m)) return MOB_OK;
  float *margins = MOB_NEW_ARRAY(float, rows);
  rows_t out = make_rows(t, m->desc->hidden);
  drive_config_t config = config_of(c, m, RUN_MOVED, (check_shape_t){1, 1, false}, t);
  config.first_layer = layer;
  config.last_layer = layer + 1;
  const run_t run = {.texts = t, .in = layer ? &tape->in[layer] : NULL, .out = layer + 1 < m->desc->n_layers ? &out : NULL,
                     .margins = margins};
  drive_t *d = NULL;
  mob_status status = drive_open(&config, &d);
  if (status == MOB_OK) status = run_once(d, &run, CUT_WHOLE);
  drive_close(d);
  for (size_t i = 0; i < rows && status == MOB_OK; i++) *tie = fmax(*tie, 2 * fabs((double)margins[i] - tape->margins[layer][i]));
  free(margins);
  free(out.x);
  return status;
}

static void take_embedding(drive_t *d, const tape_t *tape) {
  const mob_exec_t *exec = drive_exec(d, 0);
  for (int text = 0; text < tape->texts.count; text++)
    for (uint32_t at = 0; at < tape->texts.n; at++)
      exec->ops->row(&exec->ranks[0].weights.outer.m[MOB_W_EMBED], tape->texts.tokens[text][at], row_at(&tape->in[0], (uint32_t)text, at));
}

static mob_status tape_layer(const check_t *c, const check_model_t *m, tape_t *tape, int layer) {
  const int layers = m->desc->n_layers;
  drive_config_t config = config_of(c, m, RUN_CPU, (check_shape_t){1, 1, false}, &tape->texts);
  config.first_layer = layer;
  config.last_layer = layer + 1;
  config.routes = true;
  const run_t run = {.texts = &tape->texts, .first_layer = layer, .last_layer = layer + 1, .top_k = m->desc->top_k,
                     .in = layer ? &tape->in[layer] : NULL, .out = layer + 1 < layers ? &tape->in[layer + 1] : NULL,
                     .margins = tape->margins[layer], .chosen = tape->chosen};
  drive_t *d = NULL;
  mob_status status = drive_open(&config, &d);
  if (status == MOB_OK) status = run_once(d, &run, CUT_WHOLE);
  if (status == MOB_OK && layer == 0) take_embedding(d, tape);
  drive_close(d);
  return status == MOB_OK ? measure_tie(c, m, tape, layer, &tape->ties[layer]) : status;
}

mob_status runs_tape(const check_t *c, const check_model_t *m, const tape_t **out) {
  memo_t *memo = memo_of(c, m);
  tape_t *tape = &memo->tape;
  const int layers = m->desc->n_layers;
  if (!tape->in) {
    tape->in = MOB_NEW_ARRAY(rows_t, (size_t)layers);
    tape->margins = make_margins(m, &tape->texts);
    tape->ties = MOB_NEW_ARRAY(double, (size_t)layers);
    tape->chosen = make_ids(m, &tape->texts);
    for (int l = 0; l < layers; l++) tape->in[l] = make_rows(&tape->texts, m->desc->hidden);
  }
  for (int l = 0; l < layers && !memo->taped; l++) MOB_TRY(tape_layer(c, m, tape, l));
  memo->taped = true;
  *out = tape;
  return MOB_OK;
}

// ----------------------------------------------------------------------------------------- outcomes

static outcome_t *find(const memo_t *memo, runner_t runner, check_shape_t s, cut_kind cut, bool whole) {
  for (outcome_t *o = memo->outcomes; o; o = o->next)
    if (o->runner == runner && o->cut == cut && o->whole == whole && o->shape.tp == s.tp && o->shape.pp == s.pp &&
        o->shape.expert_parallel == s.expert_parallel)
      return o;
  return NULL;
}

static outcome_t *new_outcome(const check_model_t *m, const texts_t *t, runner_t runner, check_shape_t s, cut_kind cut, bool whole) {
  outcome_t *o = MOB_NEW(outcome_t);
  *o = (outcome_t){.runner = runner, .shape = s, .cut = cut, .whole = whole, .chosen = make_ids(m, t)};
  for (int i = 0; i < t->count; i++) o->places[i] = MOB_NEW_ARRAY(drive_place_t, t->n);
  if (whole) return o;
  if (runner == RUN_CPU) o->margins = make_margins(m, t);
  o->out = MOB_NEW_ARRAY(rows_t, (size_t)m->desc->n_layers);
  for (int l = 0; l + 1 < m->desc->n_layers; l++) o->out[l] = make_rows(t, m->desc->hidden);
  return o;
}

static void take_places(const drive_t *d, const texts_t *t, outcome_t *o) {
  for (int i = 0; i < t->count; i++) memcpy(o->places[i], drive_places(d, (uint32_t)i), t->n * sizeof *o->places[i]);
}

// A layer by all the cuts that `made` has, one behind the other.
static mob_status run_layer(const check_t *c, const check_model_t *m, const tape_t *tape, int layer, outcome_t **made) {
  const bool last = layer + 1 == m->desc->n_layers;
  drive_t *d = NULL;
  mob_status status = MOB_OK;
  for (int k = 0; k < CUT_KINDS && status == MOB_OK; k++) {
    if (!made[k]) continue;
    drive_config_t config = config_of(c, m, made[k]->runner, made[k]->shape, &tape->texts);
    config.first_layer = layer;
    config.last_layer = layer + 1;
    config.replay = true;
    if (!d) status = drive_open(&config, &d);
    const run_t run = {.texts = &tape->texts, .first_layer = layer, .last_layer = layer + 1, .top_k = m->desc->top_k,
                       .in = layer ? &tape->in[layer] : NULL, .out = last ? NULL : &made[k]->out[layer], .given = tape->chosen,
                       .margins = made[k]->margins ? made[k]->margins[layer] : NULL,
                       .chosen = made[k]->chosen};
    if (status == MOB_OK) status = run_once(d, &run, (cut_kind)k);
    if (status == MOB_OK && last) take_places(d, &tape->texts, made[k]);
  }
  drive_close(d);
  return status;
}

mob_status runs_layers(const check_t *c, const check_model_t *m, runner_t runner, check_shape_t s, cut_kind cut, unsigned cuts,
                       const outcome_t **out) {
  const tape_t *tape;
  MOB_TRY(runs_tape(c, m, &tape));
  memo_t *memo = memo_of(c, m);
  const int layers = m->desc->n_layers;
  s.pp = 1;
  if (!find(memo, runner, s, cut, false)) {
    outcome_t *made[CUT_KINDS] = {NULL};
    for (int k = 0; k < CUT_KINDS; k++)
      if (((cuts | 1u << cut) >> k & 1) && !find(memo, runner, s, (cut_kind)k, false))
        made[k] = new_outcome(m, &tape->texts, runner, s, (cut_kind)k, false);
    mob_status status = MOB_OK;
    for (int l = 0; l < layers && status == MOB_OK; l++) status = run_layer(c, m, tape, l, made);
    for (int k = 0; k < CUT_KINDS; k++) {
      if (!made[k]) continue;
      if (status != MOB_OK) {
        free_outcome(made[k], layers);
        continue;
      }
      made[k]->next = memo->outcomes;
      memo->outcomes = made[k];
    }
    MOB_TRY(status);
  }
  *out = find(memo, runner, s, cut, false);
  return MOB_OK;
}

mob_status runs_engine(const check_t *c, const check_model_t *m, runner_t runner, check_shape_t s, const outcome_t **out) {
  memo_t *memo = memo_of(c, m);
  const texts_t *t = &memo->tape.texts;
  if (runner != RUN_BACKEND) s.pp = 1; // stages change nothing on the CPU
  outcome_t *o = find(memo, runner, s, CUT_BATCH, true);
  *out = o;
  if (o) return MOB_OK;
  const outcome_t *cpu = NULL; // whose experts the others take
  if (runner != RUN_CPU) MOB_TRY(runs_engine(c, m, RUN_CPU, s, &cpu));
  o = new_outcome(m, t, runner, s, CUT_BATCH, true);
  drive_config_t config = config_of(c, m, runner, s, t);
  config.pp = s.pp;
  config.routes = true;
  config.replay = cpu != NULL;
  const run_t run = {.texts = t, .first_layer = 0, .last_layer = m->desc->n_layers, .top_k = m->desc->top_k,
                     .given = cpu ? cpu->chosen : NULL, .chosen = o->chosen};
  drive_t *d = NULL;
  mob_status status = drive_open(&config, &d);
  if (status == MOB_OK) status = run_once(d, &run, CUT_BATCH);
  if (status == MOB_OK) take_places(d, t, o);
  drive_close(d);
  if (status != MOB_OK) {
    free_outcome(o, m->desc->n_layers);
    return status;
  }
  o->next = memo->outcomes;
  memo->outcomes = o;
  *out = o;
  return MOB_OK;
}
