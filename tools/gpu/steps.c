#include "tools/gpu/steps.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

enum { WARM = 10, MAX_PROMPTS = 16 };

struct steps {
  const mob_backend_t *backend;
  mob_exec_t *exec;
  const mob_model_desc_t *desc;
  mob_routes_t routes; // off but in steps_experts()
  int decoded;         // steps since the prompts
  uint64_t queued, done; // steps; `done` behind the lock
  uint64_t compute_ns;   // of the last one
  pthread_mutex_t lock;
  pthread_cond_t wake;
};

static void on_done(void *arg, mob_status status, const char *why, const mob_step_result_t *result) {
  steps_t *s = arg;
  if (status != MOB_OK) {
    fprintf(stderr, "%s: a step failed: %s\n", s->backend->name, why);
    _exit(1);
  }
  pthread_mutex_lock(&s->lock);
  s->compute_ns = result->compute_ns;
  s->done++;
  pthread_cond_signal(&s->wake);
  pthread_mutex_unlock(&s->lock);
}

static void queue(steps_t *s, mob_step_t *step) {
  step->id = ++s->queued;
  STEPS_CHECK(s->backend->step(s->exec, step, on_done, s));
}

static uint64_t wait_for(steps_t *s, uint64_t step) {
  pthread_mutex_lock(&s->lock);
  while (s->done < step) pthread_cond_wait(&s->wake, &s->lock);
  const uint64_t ns = s->compute_ns;
  pthread_mutex_unlock(&s->lock);
  return ns;
}

mob_model_t *steps_model(const char *config_json) {
  char dir[] = "/tmp/shapes-XXXXXX", path[64];
  FILE *file = NULL;
  if (mkdtemp(dir)) {
    snprintf(path, sizeof path, "%s/config.json", dir);
    file = fopen(path, "w");
  }
  if (!file) {
    fprintf(stderr, "no temporary folder %s\n", dir);
    exit(1);
  }
  fputs(config_json, file);
  fclose(file);
  mob_model_t *model;
  const mob_model_options_t options = {.dummy = true};
  const mob_status status = mob_model_open(dir, &options, &model);
  unlink(path);
  rmdir(dir);
  STEPS_CHECK(status);
  return model;
}

steps_t *steps_open(const mob_model_t *model, int tp, int max_tokens) {
  steps_t *s = MOB_NEW(steps_t);
  pthread_mutex_init(&s->lock, NULL);
  pthread_cond_init(&s->wake, NULL);
  s->desc = mob_model_desc(model);
  s->routes.experts = MOB_NEW_ARRAY(int32_t, (size_t)s->desc->n_layers);
  STEPS_CHECK(mob_backend_find("cuda", &s->backend));
  const mob_exec_spec_t spec = {.model = model, .last_layer = mob_model_desc(model)->n_layers, .tp = tp, .dtype = MOB_DT_BF16,
                                .kv_dtype = MOB_DT_BF16, .max_tokens = max_tokens, .max_seqs = STEPS_BATCH,
                                .max_len = STEPS_PAGES * MOB_PAGE_TOKENS, .memory_share = 0.95, .routes = &s->routes};
  const uint64_t begin = mob_now_ns();
  STEPS_CHECK(s->backend->open(&spec, &s->exec));
  mob_memory_plan_t plan;
  STEPS_CHECK(s->backend->plan(s->exec, &plan));
  printf("%s: %s\n", s->backend->name, plan.text);
  const uint64_t opened = mob_now_ns();
  STEPS_CHECK(s->backend->load(s->exec, NULL, NULL));
  const uint64_t loaded = mob_now_ns();
  const int64_t wanted = STEPS_BATCH * STEPS_PAGES;
  STEPS_CHECK(s->backend->alloc_kv(s->exec, wanted < plan.pages ? wanted : plan.pages));
  printf("%s: opened in %.2f s, loaded in %.2f s (%.1f GB/s), pages in %.2f s\n", s->backend->name, (double)(opened - begin) / 1e9,
         (double)(loaded - opened) / 1e9, (double)mob_model_bytes(model) / (double)(loaded - opened),
         (double)(mob_now_ns() - loaded) / 1e9);
  fflush(stdout);
  return s;
}

void steps_close(steps_t *s) {
  s->backend->close(s->exec);
  pthread_mutex_destroy(&s->lock);
  pthread_cond_destroy(&s->wake);
  free(s->routes.experts);
  free(s);
}

static int by_value(const void *a, const void *b) {
  const double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *v, int n) {
  if (n == 0) return 0;
  qsort(v, (size_t)n, sizeof *v, by_value);
  return v[n / 2];
}

static void seq_pages(uint32_t seq, uint32_t *pages) {
  for (uint32_t i = 0; i < STEPS_PAGES; i++) pages[i] = seq * STEPS_PAGES + i;
}

double steps_prefill(steps_t *s, int count, int per_step, bool keep) {
  static int32_t tokens[MAX_PROMPTS][STEPS_CONTEXT];
  static uint32_t pages[MAX_PROMPTS][STEPS_PAGES];
  const mob_sampling_t greedy = {.top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1};
  uint32_t seed = 12345;
  double times[STEPS_BATCH];
  int n = 0;
  const int prompts = per_step / STEPS_CONTEXT;
  MOB_ASSERT(prompts >= 1 && prompts <= MAX_PROMPTS && count <= STEPS_BATCH);
  for (int from = 0; from < count; from += prompts) {
    mob_seq_step_t seq[MAX_PROMPTS];
    mob_seq_open_t open[MAX_PROMPTS];
    uint32_t close[MAX_PROMPTS];
    const int m = count - from < prompts ? count - from : prompts;
    for (int k = 0; k < m; k++) {
      const uint32_t slot = (uint32_t)(from + k);
      for (int i = 0; i < STEPS_CONTEXT; i++) tokens[k][i] = (int32_t)((seed = seed * 1664525u + 1013904223u) >> 8) % s->desc->vocab;
      seq_pages(slot, pages[k]);
      close[k] = slot;
      open[k] = (mob_seq_open_t){.slot = slot, .sampling = greedy, .prompt = tokens[k], .prompt_count = STEPS_CONTEXT};
      seq[k] = (mob_seq_step_t){.slot = slot, .row = (uint32_t)(k * STEPS_CONTEXT), .count = STEPS_CONTEXT, .tokens = tokens[k],
                                .pages = pages[k], .page_count = STEPS_CONTEXT / MOB_PAGE_TOKENS, .sample = true};
    }
    mob_step_t step = {.token_count = (uint32_t)(m * STEPS_CONTEXT), .seq_count = (uint32_t)m, .open_count = (uint32_t)m, .open = open,
                       .seqs = seq};
    if (!keep) step.close = close, step.close_count = (uint32_t)m;
    const uint64_t begin = mob_now_ns();
    queue(s, &step);
    wait_for(s, s->queued);
    if (m == prompts && from > 0) times[n++] = (double)(mob_now_ns() - begin) / 1e6;
  }
  return n >= 4 ? median(times, n) : 0;
}

static mob_step_t decode_step(int batch, int at, mob_seq_step_t *seq) {
  static uint32_t pages[STEPS_BATCH][STEPS_PAGES];
  static const int32_t previous = MOB_TOKEN_PREVIOUS;
  for (uint32_t k = 0; k < (uint32_t)batch; k++) {
    seq_pages(k, pages[k]);
    seq[k] = (mob_seq_step_t){.slot = k, .row = k, .start = (uint32_t)(STEPS_CONTEXT + at), .count = 1, .tokens = &previous,
                              .pages = pages[k], .page_count = STEPS_PAGES, .sample = true};
  }
  return (mob_step_t){.token_count = (uint32_t)batch, .seq_count = (uint32_t)batch, .seqs = seq};
}

double steps_decode(steps_t *s, int batch, int count, double *device) {
  static mob_seq_step_t seq[STEPS_BATCH];
  MOB_ASSERT(batch <= STEPS_BATCH && count + WARM + STEPS_COUNTED <= STEPS_PAGES * MOB_PAGE_TOKENS - STEPS_CONTEXT);
  double *ns = MOB_NEW_ARRAY(double, (size_t)count), *wall = MOB_NEW_ARRAY(double, (size_t)count);
  uint64_t last = 0;
  int n = 0;
  for (int i = 0; i < count + WARM; i++) {
    mob_step_t step = decode_step(batch, i, seq);
    queue(s, &step);
    if (i < 1) continue;
    const uint64_t compute = wait_for(s, s->queued - 1), now = mob_now_ns();
    if (i >= WARM) {
      ns[n] = (double)compute / 1e6;
      wall[n++] = (double)(now - last) / 1e6;
    }
    last = now;
  }
  wait_for(s, s->queued);
  s->decoded = count + WARM;
  const double ms = median(wall, n);
  *device = median(ns, n);
  free(ns);
  free(wall);
  return ms;
}

double steps_experts(steps_t *s, int batch) {
  static mob_seq_step_t seq[STEPS_BATCH];
  double sum = 0;
  int layers = 0;
  for (int l = 0; l < s->desc->n_layers; l++) layers += s->desc->is_moe[l];
  if (layers == 0) return 0;
  s->routes.on = true;
  for (int i = 0; i < STEPS_COUNTED; i++) {
    mob_step_t step = decode_step(batch, s->decoded + i, seq);
    queue(s, &step);
    wait_for(s, s->queued);
    for (int l = 0; l < s->desc->n_layers; l++) sum += s->desc->is_moe[l] ? s->routes.experts[l] : 0;
  }
  s->routes.on = false;
  s->decoded += STEPS_COUNTED;
  return sum / ((double)layers * STEPS_COUNTED);
}
