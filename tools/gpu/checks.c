#include "tools/gpu/checks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tools/gpu/runs.h"

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

// ------------------------------------------------------------------------------------------- layers

typedef struct error {
  double l2, worst;
  int counted, others, strangers; // rows; that chose other experts than the CPU in the same shape; of those, not near a tie
} error_t;

// What a layer adds to its input, b against a, of rows [from, n) of all texts but the first.
static void add_error(const rows_t *a, const rows_t *b, const rows_t *in, int texts, uint32_t from, error_t *out) {
  double d = 0, s = 0;
  for (int text = 0; text < texts; text++)
    for (uint32_t at = text ? from : 0; at < a->n; at++) {
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
    }
  const double l2 = isfinite(d) ? sqrt(d / s) : INFINITY;
  if (l2 > out->l2) out->l2 = l2;
}

// What b's routers chose beside what the CPU's did in the same shape: in another one a matrix may be cut where FP8's blocks are not, so that
// it and its inputs are bfloat16.
static void add_choices(const tape_t *tape, const outcome_t *cpu, const outcome_t *b, int layer, int top_k, uint32_t from, error_t *out) {
  const size_t each = (size_t)top_k;
  for (int text = 0; text < tape->texts.count; text++)
    for (uint32_t at = text ? from : 0; at < tape->texts.n; at++) {
      const size_t row = (size_t)text * tape->texts.n + at;
      out->counted++;
      if (memcmp(b->chosen[layer] + row * each, cpu->chosen[layer] + row * each, each * sizeof(int32_t)) == 0) continue;
      out->others++;
      out->strangers += cpu->margins[layer][row] >= tape->ties[layer];
    }
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

typedef struct places { // of each text
  const drive_place_t *at[RUNS_TEXTS];
} places_t;

static places_t places_of(const outcome_t *o) {
  places_t p = {{NULL}};
  for (int i = 0; i < RUNS_TEXTS; i++) p.at[i] = o->places[i];
  return p;
}

static places_t places_in(const drive_t *d, const texts_t *t) {
  places_t p = {{NULL}};
  for (int i = 0; i < t->count; i++) p.at[i] = drive_places(d, (uint32_t)i);
  return p;
}

static distance_t distance(places_t a, places_t b, const texts_t *t, uint32_t from) {
  distance_t d = {.same = true};
  double sums[3] = {0};
  int count[2] = {0};
  for (int text = 0; text < t->count; text++) {
    const uint32_t skip = text ? from : 0;
    add_distance(a.at[text] + skip, b.at[text] + skip, t->n - skip, &d, sums, count);
  }
  d.kl = d.n ? d.kl / d.n : INFINITY;
  if (d.kl < 0) d.kl = -d.kl;
  d.top1 = count[0] ? 100.0 * count[1] / count[0] : 100;
  d.cosine = sums[0] / sqrt(sums[1] * sums[2]);
  return d;
}

// Layer by layer on the tape's inputs and with its experts: errors of the rows that leave, and the divergence behind the last layer. `cpu`: b's
// shape on the CPU, to judge its choices by; NULL: they are not looked at.
static double compare_layers(const check_model_t *m, const tape_t *tape, const outcome_t *cpu, const outcome_t *a, const outcome_t *b, error_t *error) {
  const int layers = m->desc->n_layers;
  const uint32_t from = a->cut == CUT_HIT || b->cut == CUT_HIT ? RUNS_SHARED : 0; // rows of the first page are not computed again
  *error = (error_t){0};
  for (int l = 0; l < layers; l++) {
    if (l + 1 < layers) add_error(&a->out[l], &b->out[l], &tape->in[l], tape->texts.count, from, error);
    if (cpu && tape->chosen[l]) add_choices(tape, cpu, b, l, m->desc->top_k, from, error);
  }
  return distance(places_of(a), places_of(b), &tape->texts, from).kl;
}

// FP8 layers: `apart` times the distance between two runs of the CPU whose norms differ by one unit in the last place. Behind four
// quantisations little is left in common: changes of 1e-6, 1e-5 and 1e-4 of the norms carry no further than 1.25 times what
// 1e-7 does, and the rest is what 400 rows of luck make.
static const double layer_limit = 1e-2, apart = 1.5;
// Where sums are full fp32 ones as the CPU's are (exact_sums), only those FP8 rows differ whose norms a sum in another order rounds otherwise.
static const double exact_limit = 2.5e-2;

static bool wants_measure(const check_t *c, const check_model_t *m, const outcome_t *a) {
  return runs_f8(m) && !(c->exact_sums && a->runner == RUN_CPU);
}

static mob_status judge_layers(check_t *c, const char *what, const check_model_t *m, const outcome_t *a, const outcome_t *b) {
  const tape_t *tape;
  const outcome_t *cpu;
  MOB_TRY(runs_tape(c, m, &tape));
  if (a->runner == RUN_CPU) cpu = a;
  else MOB_TRY(runs_layers(c, m, RUN_CPU, b->shape, CUT_BATCH, 0, &cpu));
  error_t e, base = {0};
  char note[200];
  const double kl = compare_layers(m, tape, cpu, a, b, &e);
  const bool measure = wants_measure(c, m, a);
  if (measure) { // what the CPU makes of the same two shapes
    const outcome_t *first, *second;
    MOB_TRY(runs_layers(c, m, RUN_CPU, a->shape, CUT_BATCH, 0, &first));
    MOB_TRY(runs_layers(c, m, RUN_MOVED, b->shape, CUT_BATCH, 0, &second));
    compare_layers(m, tape, NULL, first, second, &base);
  }
  int at = snprintf(note, sizeof note, "worst row %.1e, logits %.0e", e.worst, kl);
  if (e.others) at += snprintf(note + at, sizeof note - (size_t)at, ", %d of %d choices are others", e.others, e.counted);
  if (e.strangers) at += snprintf(note + at, sizeof note - (size_t)at, ", %d NOT NEAR A TIE", e.strangers);
  if (measure) snprintf(note + at, sizeof note - (size_t)at, "; on the CPU %.1e", base.l2);
  const double limit = measure ? fmax(layer_limit, apart * base.l2) : runs_f8(m) ? exact_limit : layer_limit;
  const bool good = (kl < 1e-3 || limit > layer_limit) && !e.strangers;
  say(c, what, m, b->shape, good ? e.l2 : INFINITY, limit, note);
  return MOB_OK;
}

// A line that says what kept two ways from being compared.
static mob_status say_failed(check_t *c, const char *what, const check_model_t *m, check_shape_t s, double limit, mob_status status) {
  if (status != MOB_OK) say(c, what, m, s, INFINITY, limit, mob_errmsg());
  return MOB_OK;
}

static mob_status layers_against(check_t *c, const char *what, const check_model_t *m, check_shape_t s, runner_t runner, check_shape_t other,
                                 cut_kind kind, unsigned cuts) {
  const outcome_t *a, *b;
  // A cut decides what a row's keys were quantised for: the strict limits of exact sums want the same one on both sides.
  const cut_kind cut = runner == RUN_CPU && c->exact_sums ? kind : CUT_BATCH;
  MOB_TRY(runs_layers(c, m, runner, other, cut, 0, &a));
  MOB_TRY(runs_layers(c, m, RUN_BACKEND, s, kind, cuts, &b));
  return judge_layers(c, what, m, a, b);
}

mob_status check_layers(check_t *c, const check_model_t *m, check_shape_t s) {
  const char *what = "layers / CPU";
  return say_failed(c, what, m, s, layer_limit, layers_against(c, what, m, s, RUN_CPU, s, CUT_BATCH, 0));
}

mob_status check_layers_tp(check_t *c, const check_model_t *m, check_shape_t s) {
  const char *what = "layers / TP 1";
  const check_shape_t one = {1, 1, false};
  return say_failed(c, what, m, s, layer_limit, layers_against(c, what, m, s, RUN_BACKEND, one, CUT_BATCH, 0));
}

mob_status check_layers_cuts(check_t *c, const check_model_t *m, check_shape_t s) {
  for (int k = 0; k < CUT_KINDS; k++) {
    const cut_kind kind = (cut_kind)k;
    const unsigned all = c->cuts ? c->cuts : (1u << CUT_KINDS) - 1, cuts = c->exact_sums ? all & ~(1u << CUT_WHOLE) : all;
    if (kind == CUT_BATCH || !(cuts >> k & 1)) continue;
    char what[64];
    if (!c->exact_sums) { // else saved: at once is held against the same CPU
      snprintf(what, sizeof what, "layers, %s / at once", cut_name(kind));
      say_failed(c, what, m, s, layer_limit, layers_against(c, what, m, s, RUN_BACKEND, s, kind, cuts));
    }
    snprintf(what, sizeof what, "layers, %s / CPU", cut_name(kind));
    say_failed(c, what, m, s, layer_limit, layers_against(c, what, m, s, RUN_CPU, s, kind, cuts));
  }
  return MOB_OK;
}

// ------------------------------------------------------------------------------------------- engines

// How many of the choices of experts in a run differ from those it was given.
static int other_choices(const check_t *c, const check_model_t *m, const outcome_t *a, const outcome_t *b, int *all) {
  int others = 0;
  const size_t each = (size_t)m->desc->top_k;
  *all = 0;
  for (int l = 0; l < m->desc->n_layers; l++)
    for (size_t row = 0; a->chosen[l] && row < (size_t)c->texts * c->tokens; row++, ++*all)
      others += memcmp(a->chosen[l] + row * each, b->chosen[l] + row * each, each * sizeof(int32_t)) != 0;
  return others;
}

static mob_status judge_engine(check_t *c, const char *what, const check_model_t *m, check_shape_t s) {
  const texts_t *t = runs_texts(c, m);
  const outcome_t *cpu, *moved, *gpu;
  MOB_TRY(runs_engine(c, m, RUN_CPU, s, &cpu));
  MOB_TRY(runs_engine(c, m, RUN_MOVED, s, &moved));
  MOB_TRY(runs_engine(c, m, RUN_BACKEND, s, &gpu));
  const double floor = distance(places_of(cpu), places_of(moved), t, 0).kl;
  const distance_t d = distance(places_of(cpu), places_of(gpu), t, 0);
  char note[200];
  int all;
  const int others = other_choices(c, m, cpu, gpu, &all);
  const int at = snprintf(note, sizeof note, "best token %.1f %% (%d of %d near ties), cosine %.6f; norms a unit apart on the CPU: %.0e", d.top1,
                          d.ties, d.n, d.cosine, floor);
  if (others) snprintf(note + at, sizeof note - (size_t)at, "; %d of %d choices are others", others, all);
  const double limit = 4 * floor > 1e-3 ? 4 * floor : 1e-3;
  say(c, what, m, s, d.top1 >= 99 || floor > 1e-4 ? d.kl : INFINITY, limit, note);
  return MOB_OK;
}

mob_status check_engine(check_t *c, const check_model_t *m, check_shape_t s) {
  const char *what = "engine / CPU, divergence";
  return say_failed(c, what, m, s, 1e-3, judge_engine(c, what, m, s));
}

// Two runs of the backend under test that must be equal to the bit.
static void judge_same(check_t *c, const char *what, const check_model_t *m, check_shape_t s, const texts_t *t, check_shape_t other,
                       bool other_eager) {
  drive_t *a = NULL, *b = NULL;
  mob_status status = runs_drive(c, m, other, other_eager, t, CUT_DECODE, &a);
  if (status == MOB_OK) status = runs_drive(c, m, s, false, t, CUT_DECODE, &b);
  if (status != MOB_OK) say(c, what, m, s, INFINITY, 0, mob_errmsg());
  else {
    const distance_t d = distance(places_in(a, t), places_in(b, t), t, 0);
    say(c, what, m, s, d.same ? 0 : d.worst, 0, d.same ? "" : "log probabilities differ");
  }
  drive_close(a);
  drive_close(b);
}

mob_status check_pipeline(check_t *c, const check_model_t *m, check_shape_t s) {
  texts_t t = texts_make(c, m);
  judge_same(c, "engine / one stage, bitwise", m, s, &t, (check_shape_t){s.tp, 1, s.expert_parallel}, false);
  texts_free(&t);
  return MOB_OK;
}

mob_status check_graph(check_t *c, const check_model_t *m, check_shape_t s) {
  const int batches[] = {1, 2, 3, 8};
  for (size_t i = 0; i < MOB_LEN(batches); i++) {
    if (batches[i] > 2 * c->texts) break;
    check_t with = *c;
    with.texts = batches[i];
    texts_t t = texts_make(&with, m);
    char what[64];
    snprintf(what, sizeof what, "graph / eager, bitwise, %d sequence%s", batches[i], batches[i] > 1 ? "s" : "");
    judge_same(c, what, m, s, &t, s, true);
    texts_free(&t);
  }
  return MOB_OK;
}

mob_status check_reference(const check_t *c, const check_model_t *m, check_shape_t s, bool layers, bool engines) {
  const outcome_t *unused;
  const tape_t *tape;
  const check_shape_t one = {1, 1, false};
  if (layers) {
    MOB_TRY(runs_tape(c, m, &tape));
    MOB_TRY(runs_layers(c, m, RUN_CPU, s, CUT_BATCH, 0, &unused));
    if (runs_f8(m)) MOB_TRY(runs_layers(c, m, RUN_MOVED, s, CUT_BATCH, 0, &unused));
    if (runs_f8(m) && s.tp > 1) MOB_TRY(runs_layers(c, m, RUN_CPU, one, CUT_BATCH, 0, &unused));
  }
  if (!engines) return MOB_OK;
  MOB_TRY(runs_engine(c, m, RUN_CPU, s, &unused));
  return runs_engine(c, m, RUN_MOVED, s, &unused);
}

// ------------------------------------------------------------------------------------ queue and abort

enum { QUEUED = 12 };

// Greedy tokens of two texts; `queue`: every decode names the token before as MOB_TOKEN_PREVIOUS and waits for nothing.
static mob_status generate(const check_t *c, const check_model_t *m, check_shape_t s, const texts_t *t, bool queue, int32_t out[2][QUEUED]) {
  drive_config_t config = {.backend = c->backend, .model = m->model, .tp = s.tp, .pp = s.pp, .expert_parallel = s.expert_parallel,
                           .max_tokens = 256, .max_len = 256, .pages = RUNS_PAGES};
  drive_t *d;
  MOB_TRY(drive_open(&config, &d));
  mob_status status = MOB_OK;
  for (int at = 0; at < QUEUED && status == MOB_OK; at++) {
    mob_seq_step_t seqs[2];
    mob_seq_open_t open[2];
    uint32_t pages[2][RUNS_MOST_PAGES];
    int32_t previous[2];
    mob_step_t step = {.seq_count = 2, .seqs = seqs, .open = open, .open_count = at ? 0 : 2};
    for (uint32_t i = 0; i < 2; i++) {
      const uint32_t n = 70 + 3 * i;
      for (uint32_t p = 0; p < RUNS_MOST_PAGES; p++) pages[i][p] = (i + 2 * p) % RUNS_PAGES;
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
  texts_t t = texts_make(&with, m);
  int32_t one[2][QUEUED], all[2][QUEUED];
  mob_status status = generate(&with, m, s, &t, false, one);
  if (status == MOB_OK) status = generate(&with, m, s, &t, true, all);
  int differ = 0;
  for (int i = 0; i < 2 * QUEUED && status == MOB_OK; i++) differ += one[i / QUEUED][i % QUEUED] != all[i / QUEUED][i % QUEUED];
  say(c, "tokens, all steps queued / one by one", m, s, status == MOB_OK ? differ : INFINITY, 0, status == MOB_OK ? "" : mob_errmsg());
  texts_free(&t);
  return MOB_OK;
}

mob_status check_abort(check_t *c, const check_model_t *m, check_shape_t s) {
  const uint64_t limit_ms = 5000;
  texts_t t = texts_make(c, m);
  drive_config_t config = {.backend = c->backend, .model = m->model, .tp = s.tp, .pp = s.pp, .expert_parallel = s.expert_parallel,
                           .max_tokens = (int)t.n, .max_len = (int)t.n, .pages = RUNS_PAGES, .timeout_s = 20};
  drive_t *d;
  mob_status status = drive_open(&config, &d);
  if (status != MOB_OK) {
    say(c, "abort under way, ms", m, s, INFINITY, (double)limit_ms, mob_errmsg());
    texts_free(&t);
    return MOB_OK;
  }
  uint32_t pages[RUNS_MOST_PAGES];
  for (uint32_t i = 0; i < RUNS_MOST_PAGES; i++) pages[i] = i;
  mob_seq_open_t open = {.prompt = t.tokens[0], .prompt_count = t.n,
                         .sampling = {.top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1}};
  for (int i = 0; i < 3 && status == MOB_OK; i++) { // three whole prompts: the first is under way, the others wait
    open.slot = (uint32_t)i;
    mob_seq_step_t seq = {.slot = (uint32_t)i, .count = t.n, .tokens = t.tokens[0], .pages = pages, .page_count = (t.n + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS,
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
  texts_free(&t);
  return MOB_OK;
}
