// Holds the CUDA backend against the CPU backend and against itself, and times whole steps of a model's true shapes.
//   check_driver check [PART] [ROOT]  the checks of checks.h at every TP x PP that the host's GPUs allow, one table; PART: layers, cuts,
//                                     engines, graphs, failure, demo (default: all). ROOT: where tests/ and deploy/ lie (default .)
//   check_driver compare DIR [TOKENS [dummy]]  layers and engines of a model directory
//   check_driver bench DENSE MOE [MAX_TOKENS [BATCH [TP]]]  DeepSeek-R1's shapes with dummy weights: decode and prefill steps on TP GPUs
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/backend.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tools/gpu/checks.h"
#include "tools/gpu/r1_config.h"

#define CHECK(expr)                                                                                \
  do {                                                                                             \
    if ((expr) != MOB_OK) {                                                                        \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, mob_errmsg());                            \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

// ---------------------------------------------------------------------------- one executor, blocking

typedef struct runner {
  const mob_backend_t *backend;
  mob_exec_t *exec;
  uint64_t step;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  uint64_t done;        // steps reported
  uint64_t compute_ns;  // of the last one
  int32_t tokens[256];  // sampled by the last one, by slot
} runner_t;

static void on_done(void *arg, mob_status status, const char *why, const mob_step_result_t *result) {
  runner_t *r = arg;
  if (status != MOB_OK) {
    fprintf(stderr, "%s: step failed: %s\n", r->backend->name, why);
    _exit(1);
  }
  pthread_mutex_lock(&r->lock);
  for (uint32_t i = 0; i < result->sampled_count; i++) {
    const mob_sampled_t *s = &result->sampled[i];
    r->tokens[s->slot & 255] = s->token;
  }
  r->compute_ns = result->compute_ns;
  r->done++;
  pthread_cond_signal(&r->wake);
  pthread_mutex_unlock(&r->lock);
}

static void queue(runner_t *r, mob_step_t *step) {
  step->id = ++r->step;
  CHECK(r->backend->step(r->exec, step, on_done, r));
}

static void wait_for(runner_t *r, uint64_t step) {
  pthread_mutex_lock(&r->lock);
  while (r->done < step) pthread_cond_wait(&r->wake, &r->lock);
  pthread_mutex_unlock(&r->lock);
}

static runner_t *open_runner(const char *name, const mob_model_t *model, int tp, int max_tokens, int max_seqs, int max_len,
                             bool eager, int64_t pages) {
  runner_t *r = MOB_NEW(runner_t);
  pthread_mutex_init(&r->lock, NULL);
  pthread_cond_init(&r->wake, NULL);
  CHECK(mob_backend_find(name, &r->backend));
  mob_exec_spec_t spec = {.model = model, .last_layer = mob_model_desc(model)->n_layers, .tp = tp, .dtype = MOB_DT_BF16,
                          .kv_dtype = MOB_DT_BF16, .max_tokens = max_tokens, .max_seqs = max_seqs, .max_len = max_len,
                          .eager = eager, .memory_share = 0.95};
  CHECK(r->backend->open(&spec, &r->exec));
  mob_memory_plan_t plan;
  CHECK(r->backend->plan(r->exec, &plan));
  printf("%s: %s\n", name, plan.text);
  uint64_t begin = mob_now_ns();
  CHECK(r->backend->load(r->exec, NULL, NULL));
  uint64_t loaded = mob_now_ns();
  CHECK(r->backend->alloc_kv(r->exec, pages < plan.pages ? pages : plan.pages));
  printf("%s: loaded in %.2f s (%.1f GB/s), pages in %.2f s\n", name, (double)(loaded - begin) / 1e9,
         (double)mob_model_bytes(model) / (double)(loaded - begin), (double)(mob_now_ns() - loaded) / 1e9);
  fflush(stdout);
  return r;
}

static void close_runner(runner_t *r) {
  r->backend->close(r->exec);
  free(r);
}

static mob_sampling_t greedy(int logprobs, int prompt_logprobs) {
  return (mob_sampling_t){.temperature = 0, .top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = logprobs,
                          .prompt_logprobs = prompt_logprobs};
}

// ------------------------------------------------------------------------------------------- bench

enum { CONTEXT = 1024, MAX_BATCH = 256, SEQ_PAGES = 20 };

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static double median(double *v, int n) {
  qsort(v, (size_t)n, sizeof *v, by_value);
  return v[n / 2];
}

static void seq_pages(uint32_t seq, uint32_t *pages) {
  for (uint32_t i = 0; i < SEQ_PAGES; i++) pages[i] = seq * SEQ_PAGES + i;
}

// Prompts of 1,024 random tokens into the slots [0, batch).
static void fill_contexts(runner_t *r, int batch, int per_step, int vocab) {
  static int32_t tokens[MAX_BATCH][CONTEXT];
  static uint32_t pages[MAX_BATCH][SEQ_PAGES];
  uint32_t seed = 12345;
  for (int s = 0; s < batch; s++) {
    for (int i = 0; i < CONTEXT; i++) tokens[s][i] = (int32_t)((seed = seed * 1664525u + 1013904223u) >> 8) % vocab;
    seq_pages((uint32_t)s, pages[s]);
  }
  double times[MAX_BATCH];
  int count = 0, seqs = per_step / CONTEXT;
  for (int s = 0; s < batch; s += seqs) {
    mob_seq_step_t seq[16];
    mob_seq_open_t open[16];
    int n = batch - s < seqs ? batch - s : seqs;
    for (int k = 0; k < n; k++) {
      open[k] = (mob_seq_open_t){.slot = (uint32_t)(s + k), .sampling = greedy(-1, -1), .prompt = tokens[s + k], .prompt_count = CONTEXT};
      seq[k] = (mob_seq_step_t){.slot = (uint32_t)(s + k), .row = (uint32_t)(k * CONTEXT), .count = CONTEXT, .tokens = tokens[s + k],
                                .pages = pages[s + k], .page_count = CONTEXT / 64, .sample = true};
    }
    mob_step_t step = {.token_count = (uint32_t)(n * CONTEXT), .seq_count = (uint32_t)n, .open_count = (uint32_t)n, .open = open,
                       .seqs = seq};
    uint64_t begin = mob_now_ns();
    queue(r, &step);
    wait_for(r, r->step);
    if (n == seqs) times[count++] = (double)(mob_now_ns() - begin) / 1e6;
  }
  if (count > 4)
    printf("prefill %5d tokens: %8.3f ms a step (median of %d, prompts of %d)\n", per_step, median(times + 1, count - 1), count - 1,
           CONTEXT);
  fflush(stdout);
}

// Decode steps of `batch` sequences, queued two ahead as the scheduler does.
static double decode(runner_t *r, int batch, int steps) {
  static uint32_t pages[MAX_BATCH][SEQ_PAGES];
  static int32_t previous = MOB_TOKEN_PREVIOUS;
  mob_seq_step_t seq[MAX_BATCH];
  double *device = MOB_NEW_ARRAY(double, (size_t)steps), *wall = MOB_NEW_ARRAY(double, (size_t)steps);
  uint64_t last = 0;
  int n = 0;
  for (int i = 0; i < steps + 10; i++) {
    for (int s = 0; s < batch; s++) {
      seq_pages((uint32_t)s, pages[s]);
      seq[s] = (mob_seq_step_t){.slot = (uint32_t)s, .row = (uint32_t)s, .start = (uint32_t)(CONTEXT + i), .count = 1,
                                .tokens = &previous, .pages = pages[s], .page_count = SEQ_PAGES, .sample = true};
    }
    mob_step_t step = {.token_count = (uint32_t)batch, .seq_count = (uint32_t)batch, .seqs = seq};
    queue(r, &step);
    if (i < 1) continue;
    wait_for(r, r->step - 1);
    uint64_t now = mob_now_ns();
    if (i >= 10) {
      device[n] = (double)r->compute_ns / 1e6;
      wall[n++] = (double)(now - last) / 1e6;
    }
    last = now;
  }
  wait_for(r, r->step);
  double d = median(device, n), w = median(wall, n);
  printf("decode B=%-4d %8.3f ms a step (wall, median of %d), %8.3f ms on the device\n", batch, w, n, d);
  fflush(stdout);
  free(device);
  free(wall);
  return w;
}

static int bench_main(int dense, int moe, int max_tokens, int batch_only, int tp) {
  char dir[] = "/tmp/r1-shapes-XXXXXX", path[64];
  if (!mkdtemp(dir)) return 1;
  snprintf(path, sizeof path, "%s/config.json", dir);
  FILE *file = fopen(path, "w");
  fprintf(file, r1_config, dense + moe, dense);
  fclose(file);
  mob_model_t *model;
  mob_model_options_t options = {.dummy = true};
  CHECK(mob_model_open(dir, &options, &model));
  printf("DeepSeek-R1 shapes, %d dense + %d MoE layers, TP %d, dummy weights\n", dense, moe, tp);
  runner_t *r = open_runner("cuda", model, tp, max_tokens, MAX_BATCH, SEQ_PAGES * 64, false, MAX_BATCH * SEQ_PAGES);
  fill_contexts(r, batch_only ? (batch_only + 1) / 2 * 2 : MAX_BATCH, max_tokens, 129280);
  static const int batches[] = {1, 2, 4, 8, 16, 32, 64, 128, 256};
  for (size_t i = 0; i < MOB_LEN(batches); i++)
    if (!batch_only || batch_only >= batches[i]) decode(r, batches[i], batch_only ? 20 : 60);
  close_runner(r);
  mob_model_close(model);
  unlink(path);
  rmdir(dir);
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

static void check_shape(check_t *c, const check_model_t *m, check_shape_t s, const char *wanted) {
  for (size_t i = 0; i < MOB_LEN(parts); i++) {
    const part_t *p = &parts[i];
    if ((strcmp(wanted, "all") != 0 && strcmp(wanted, p->name) != 0) || (p->made_only && !m->made)) continue;
    // A layer alone has no stages; a comparison with fewer ranks or stages needs more of them.
    const bool layers = p->fn == check_layers || p->fn == check_layers_tp || p->fn == check_layers_cuts;
    if ((layers && s.pp > 1) || (p->fn == check_layers_tp && s.tp == 1) || (p->fn == check_pipeline && s.pp == 1)) continue;
    const mob_status status = p->fn(c, m, s);
    if (status == MOB_OK) continue;
    printf("%s, TP %d PP %d: %s\n", m->name, s.tp, s.pp, mob_errmsg());
    c->failures++;
  }
}

// Texts of a model directory: layers and engines in every shape. The demo model is a trained one, whose routers do not hang on
// roundings as much as random ones.
static mob_status check_dir(check_t *c, const char *dir, uint32_t tokens, bool dummy) {
  check_model_t m = {.name = ""};
  const char *slash = strrchr(dir, '/');
  snprintf(m.name, sizeof m.name, "%s", slash && slash[1] ? slash + 1 : dir);
  mob_model_options_t options = {.dummy = dummy};
  MOB_TRY(mob_model_open(dir, &options, &m.model));
  m.desc = mob_model_desc(m.model);
  check_t with = *c;
  with.tokens = tokens;
  for (int tp = 1; tp <= 8; tp *= 2)
    for (int pp = 1; pp <= 4; pp *= 2)
      for (int ep = 0; ep < 2; ep++) {
        const check_shape_t s = {tp, pp, ep};
        if (!check_divides(&m, s, c->devices)) continue;
        check_shape(&with, &m, s, "layers");
        check_shape(&with, &m, s, "engines");
      }
  c->failures = with.failures;
  c->lines = with.lines;
  mob_model_close(m.model);
  return MOB_OK;
}

static mob_status open_check(check_t *c) {
  *c = (check_t){.line = print_line, .tokens = 200, .texts = 2};
  MOB_TRY(mob_backend_find("cuda", &c->backend));
  c->devices = c->backend->device_count();
  if (c->devices == 0) return MOB_E_UNSUPPORTED;
  printf("%d GPU%s\n%-42s %-34s %8s %8s\n", c->devices, c->devices > 1 ? "s" : "", "what", "model", "error", "limit");
  return MOB_OK;
}

static int compare_main(const char *dir, uint32_t tokens, bool dummy) {
  check_t c;
  CHECK(open_check(&c));
  CHECK(check_dir(&c, dir, tokens, dummy));
  printf("%d of %d lines wrong\n", c.failures, c.lines);
  return c.failures != 0;
}

static int check_main(const char *wanted, const char *root) {
  check_t c;
  CHECK(open_check(&c));
  const char *const *lists[] = {check_made_models(), check_golden_models()};
  for (size_t k = 0; k < MOB_LEN(lists); k++)
    for (int i = 0; lists[k][i]; i++) {
      check_model_t m;
      CHECK(check_model_open(root, lists[k][i], &m));
      for (int tp = 1; tp <= 8; tp *= 2)
        for (int pp = 1; pp <= 4; pp *= 2)
          for (int ep = 0; ep < 2; ep++) {
            const check_shape_t s = {tp, pp, ep};
            if (check_divides(&m, s, c.devices)) check_shape(&c, &m, s, wanted);
          }
      check_model_close(&m);
    }
  if (strcmp(wanted, "all") == 0 || strcmp(wanted, "demo") == 0) {
    const char *other = getenv("MOB_DEMO_MODEL");
    char dir[1024];
    snprintf(dir, sizeof dir, "%s/deploy/demo-model", root);
    if (check_dir(&c, other ? other : dir, 250, false) != MOB_OK) printf("demo model left out: %s\n", mob_errmsg());
  }
  printf("%d of %d lines wrong\n", c.failures, c.lines);
  return c.failures != 0;
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
