// Holds the CUDA backend against the CPU backend and against itself, and times whole steps of a model's true shapes.
//   check_driver check [PART] [ROOT]  the checks of checks.h at every TP x PP that the host's GPUs allow, one table; PART: layers, cuts,
//                                     engines, graphs, failure, demo (default: all). ROOT: where tests/ and deploy/ lie (default .)
//   check_driver compare DIR [TOKENS [dummy]]  layers and engines of a model directory
//   check_driver bench DENSE MOE [MAX_TOKENS [BATCH [TP]]]  DeepSeek-R1's shapes with dummy weights: decode and prefill steps on TP GPUs
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/backend.h"
#include "runtime/base/clock.h"
#include "runtime/base/cpus.h"
#include "runtime/base/mem.h"
#include "tools/gpu/checks.h"
#include "tools/gpu/r1_config.h"
#include "tools/gpu/steps.h"

#define CHECK STEPS_CHECK

// ------------------------------------------------------------------------------------------- bench

static int bench_main(int dense, int moe, int max_tokens, int only, int tp) {
  static const int batches[] = {1, 2, 4, 8, 16, 32, 64, 128, STEPS_BATCH};
  char config[4096];
  snprintf(config, sizeof config, r1_config, dense + moe, dense);
  mob_model_t *model = steps_model(config);
  printf("DeepSeek-R1 shapes, %d dense + %d MoE layers, TP %d, dummy weights\n", dense, moe, tp);
  steps_t *s = steps_open(model, tp, max_tokens);
  const double prefill = steps_prefill(s, only ? (only + 1) / 2 * 2 : STEPS_BATCH, max_tokens, true);
  if (prefill > 0) printf("prefill %5d tokens: %8.3f ms a step (median, prompts of %d)\n", max_tokens, prefill, STEPS_CONTEXT);
  for (size_t i = 0; i < MOB_LEN(batches); i++) {
    if (only && only < batches[i]) break;
    double device;
    const double wall = steps_decode(s, batches[i], only ? 20 : 60, &device);
    printf("decode B=%-4d %8.3f ms a step (wall, median of %d), %8.3f ms on the device\n", batches[i], wall, only ? 20 : 60, device);
    fflush(stdout);
  }
  steps_close(s);
  mob_model_close(model);
  return 0;
}

// ------------------------------------------------------------------------------------------- check

static void print_line(void *arg, const check_line_t *l) {
  (void)arg;
  char limit[16];
  snprintf(limit, sizeof limit, l->limit < 0 ? "-" : "%.1e", l->limit);
  printf("%-42s %-34s %8.1e %8s %-6s %s\n", l->what, l->where, l->error, limit, l->limit < 0 ? "" : l->ok ? "ok" : "WRONG", l->note);
  fflush(stdout);
}

typedef mob_status (*check_fn)(check_t *c, const check_model_t *m, check_shape_t s);
typedef struct part {
  const char *name;
  check_fn fn;
  bool made_only; // not on the goldens
} part_t;

static const part_t parts[] = {
    {"layers", check_layers, false},  {"layers", check_layers_tp, false}, {"cuts", check_layers_cuts, true},
    {"engines", check_engine, false}, {"engines", check_pipeline, true},  {"graphs", check_graph, true},
    {"graphs", check_queue, true},    {"failure", check_abort, true},
};

// `wanted`: parts' names, or "all".
static bool is_wanted(const char *wanted, const char *part) { return strcmp(wanted, "all") == 0 || strstr(wanted, part); }

// A layer alone has no stages; a comparison with fewer ranks or stages needs more of them.
static bool applies(const part_t *p, const check_model_t *m, check_shape_t s) {
  const bool layers = p->fn == check_layers || p->fn == check_layers_tp || p->fn == check_layers_cuts;
  return (!p->made_only || m->made) && !(layers && s.pp > 1) && !(p->fn == check_layers_tp && s.tp == 1) &&
         !(p->fn == check_pipeline && s.pp == 1);
}

static void check_shape(check_t *c, const check_model_t *m, check_shape_t s, const char *wanted) {
  for (size_t i = 0; i < MOB_LEN(parts); i++) {
    const part_t *p = &parts[i];
    if (!is_wanted(wanted, p->name) || !applies(p, m, s)) continue;
    const mob_status status = p->fn(c, m, s);
    if (status == MOB_OK) continue;
    printf("%s, TP %d PP %d: %s\n", m->name, s.tp, s.pp, mob_errmsg());
    c->failures++;
  }
}

// Models in the order of the table. The CPU computes what they are held against on threads of its own, some models ahead.
enum { MAX_MODELS = 32, MAX_AHEAD = 8 };
typedef struct work {
  check_t check;
  const char *wanted;
  check_model_t models[MAX_MODELS];
  uint32_t tokens[MAX_MODELS];
  const char *parts[MAX_MODELS]; // wanted of each
  int count;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  int next;
  bool ready[MAX_MODELS];
} work_t;

typedef void (*shape_fn)(void *arg, const check_model_t *m, check_shape_t s, const char *wanted);
static void each_shape(const check_model_t *m, int devices, const char *wanted, shape_fn fn, void *arg) {
  for (int tp = 1; tp <= 8; tp *= 2)
    for (int pp = 1; pp <= 4; pp *= 2)
      for (int ep = 0; ep < 2; ep++) {
        const check_shape_t s = {tp, pp, ep};
        if (check_divides(m, s, devices)) fn(arg, m, s, wanted);
      }
}

static void do_reference(void *arg, const check_model_t *m, check_shape_t s, const char *wanted) {
  const bool layers = s.pp == 1 && (is_wanted(wanted, "layers") || (m->made && is_wanted(wanted, "cuts")));
  check_reference(arg, m, s, layers, is_wanted(wanted, "engines")); // what fails here fails again, and is told, where it is used
}
static void do_check(void *arg, const check_model_t *m, check_shape_t s, const char *wanted) { check_shape(arg, m, s, wanted); }

static void *reference_main(void *arg) {
  work_t *w = arg;
  pthread_mutex_lock(&w->lock);
  while (w->next < w->count) {
    const int i = w->next++;
    pthread_mutex_unlock(&w->lock);
    check_t with = w->check;
    with.tokens = w->tokens[i];
    each_shape(&w->models[i], with.devices, w->parts[i], do_reference, &with);
    pthread_mutex_lock(&w->lock);
    w->ready[i] = true;
    pthread_cond_broadcast(&w->wake);
  }
  pthread_mutex_unlock(&w->lock);
  return NULL;
}

static void check_model(work_t *w, int i) {
  pthread_mutex_lock(&w->lock);
  while (!w->ready[i]) pthread_cond_wait(&w->wake, &w->lock);
  pthread_mutex_unlock(&w->lock);
  const uint32_t tokens = w->check.tokens;
  w->check.tokens = w->tokens[i];
  each_shape(&w->models[i], w->check.devices, w->parts[i], do_check, &w->check);
  w->check.tokens = tokens;
}

// Checks the models of `w` and closes them. 1: a line is wrong.
static int check_work(work_t *w) {
  const uint64_t begin = mob_now_ms();
  pthread_t threads[MAX_AHEAD];
  int started = 0, ahead = mob_cpu_count() / 8; // threads of a reference, as drive.c has them
  pthread_mutex_init(&w->lock, NULL);
  pthread_cond_init(&w->wake, NULL);
  for (ahead = ahead < 1 ? 1 : ahead > MAX_AHEAD ? MAX_AHEAD : ahead; started < ahead; started++)
    if (pthread_create(&threads[started], NULL, reference_main, w) != 0) break;
  if (started == 0) reference_main(w);
  for (int i = 0; i < w->count; i++) check_model(w, i);
  for (int i = 0; i < started; i++) pthread_join(threads[i], NULL);
  for (int i = 0; i < w->count; i++) check_model_close(&w->models[i]);
  printf("%d of %d lines wrong, %.0f s\n", w->check.failures, w->check.lines, (double)(mob_now_ms() - begin) / 1e3);
  return w->check.failures != 0;
}

static mob_status open_check(check_t *c) {
  *c = (check_t){.line = print_line, .tokens = 200, .texts = 2};
  MOB_TRY(mob_backend_find("cuda", &c->backend));
  c->devices = c->backend->device_count();
  if (c->devices == 0) return MOB_E_UNSUPPORTED;
  printf("%d GPU%s\n%-42s %-34s %8s %8s\n", c->devices, c->devices > 1 ? "s" : "", "what", "model", "error", "limit");
  return MOB_OK;
}

static void add_model(work_t *w, uint32_t tokens, const char *wanted) {
  w->tokens[w->count] = tokens;
  w->parts[w->count++] = wanted;
}

static int compare_main(const char *dir, uint32_t tokens, bool dummy) {
  static work_t w;
  CHECK(open_check(&w.check));
  CHECK(check_model_open_dir(dir, dummy, &w.models[0]));
  add_model(&w, tokens, "layers engines");
  return check_work(&w);
}

static int check_main(const char *wanted, const char *root) {
  static work_t w;
  CHECK(open_check(&w.check));
  const char *const *lists[] = {check_made_models(), check_golden_models()};
  for (size_t k = 0; k < MOB_LEN(lists); k++)
    for (int i = 0; lists[k][i]; i++) {
      CHECK(check_model_open(root, lists[k][i], &w.models[w.count]));
      add_model(&w, w.check.tokens, wanted);
    }
  if (is_wanted(wanted, "demo")) {
    const char *other = getenv("MOB_DEMO_MODEL");
    char dir[1024];
    snprintf(dir, sizeof dir, "%s/deploy/demo-model", root);
    if (check_model_open_dir(other ? other : dir, false, &w.models[w.count]) == MOB_OK) add_model(&w, 250, "layers engines");
    else printf("demo model left out: %s\n", mob_errmsg());
  }
  return check_work(&w);
}

int main(int argc, char **argv) {
  if (argc >= 2 && strcmp(argv[1], "check") == 0) return check_main(argc > 2 ? argv[2] : "all", argc > 3 ? argv[3] : ".");
  if (argc >= 3 && strcmp(argv[1], "compare") == 0)
    return compare_main(argv[2], argc > 3 ? (uint32_t)atoi(argv[3]) : 250, argc > 4 && strcmp(argv[4], "dummy") == 0);
  if (argc >= 4 && strcmp(argv[1], "bench") == 0)
    return bench_main(atoi(argv[2]), atoi(argv[3]), argc > 4 ? atoi(argv[4]) : 2048, argc > 5 ? atoi(argv[5]) : 0,
                      argc > 6 ? atoi(argv[6]) : 1);
  fprintf(stderr, "usage: check_driver check [PART [ROOT]] | compare DIR [TOKENS [dummy]] | bench DENSE MOE [max_tokens [batch [tp]]]\n");
  return 2;
}
