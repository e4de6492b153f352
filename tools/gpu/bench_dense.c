// Times whole steps of Qwen2.5-7B's shapes (BF16, dummy weights) on one GPU, through the backend: tables to the device, graph, ids
// back. Decode at context 1k, greedy, distinct prompts, two steps queued as the scheduler does; prefill in steps of 2,048 tokens.
//   bench_dense [LAYERS [BATCH [STEPS]]]    28, all of 1 8 64 256, 120
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/backend.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

enum { CONTEXT = 1024, MAX_BATCH = 256, SEQ_PAGES = 20, PREFILL = 2048, WHOLE = 28, WARM = 10 };

static const char config[] =
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\",\"vocab_size\":152064,\"hidden_size\":3584,"
    "\"intermediate_size\":18944,\"num_hidden_layers\":%d,\"num_attention_heads\":28,\"num_key_value_heads\":4,\"hidden_act\":\"silu\","
    "\"rms_norm_eps\":1e-06,\"rope_theta\":1000000.0,\"max_position_embeddings\":32768,\"max_window_layers\":28,"
    "\"use_sliding_window\":false,\"tie_word_embeddings\":false,\"bos_token_id\":151643,\"eos_token_id\":151645,"
    "\"torch_dtype\":\"bfloat16\"}";

// Milliseconds a step of all 28 layers on one H200: what is wanted, what vLLM 0.26.0 takes, what reading weights and cache takes.
typedef struct goal {
  int batch;
  double wanted, vllm, floor;
} goal_t;
static const goal_t goals[] = {{1, 3.35, 4.457, 3.05}, {8, 3.5, 4.608, 3.14}, {64, 4.4, 5.699, 3.85}, {256, 9.0, 10.76, 7.8}};

#define CHECK(expr)                                                                                \
  do {                                                                                             \
    if ((expr) != MOB_OK) {                                                                        \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, mob_errmsg());                            \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

typedef struct runner {
  const mob_backend_t *backend;
  mob_exec_t *exec;
  uint64_t queued, done; // steps; `done` behind the lock
  uint64_t compute_ns;   // of the last one
  pthread_mutex_t lock;
  pthread_cond_t wake;
} runner_t;

static void on_done(void *arg, mob_status status, const char *why, const mob_step_result_t *result) {
  runner_t *r = arg;
  if (status != MOB_OK) {
    fprintf(stderr, "a step failed: %s\n", why);
    _exit(1);
  }
  pthread_mutex_lock(&r->lock);
  r->compute_ns = result->compute_ns;
  r->done++;
  pthread_cond_signal(&r->wake);
  pthread_mutex_unlock(&r->lock);
}

static void queue(runner_t *r, mob_step_t *step) {
  step->id = ++r->queued;
  CHECK(r->backend->step(r->exec, step, on_done, r));
}

static uint64_t wait_for(runner_t *r, uint64_t step) {
  pthread_mutex_lock(&r->lock);
  while (r->done < step) pthread_cond_wait(&r->wake, &r->lock);
  uint64_t ns = r->compute_ns;
  pthread_mutex_unlock(&r->lock);
  return ns;
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *v, int n) {
  if (n == 0) return 0;
  qsort(v, (size_t)n, sizeof *v, by_value);
  return v[n / 2];
}

static void seq_pages(uint32_t seq, uint32_t *pages) {
  for (uint32_t i = 0; i < SEQ_PAGES; i++) pages[i] = seq * SEQ_PAGES + i;
}

// Prompts of 1,024 random tokens into the slots [0, batch), two a step.
static void prefill(runner_t *r, int batch, int vocab) {
  static int32_t tokens[2][CONTEXT];
  static uint32_t pages[2][SEQ_PAGES];
  uint32_t seed = 12345;
  double times[MAX_BATCH];
  int count = 0;
  for (int s = 0; s < batch; s += 2) {
    mob_seq_step_t seq[2];
    mob_seq_open_t open[2];
    uint32_t n = batch - s < 2 ? 1 : 2;
    for (uint32_t k = 0; k < n; k++) {
      uint32_t slot = (uint32_t)s + k;
      for (int i = 0; i < CONTEXT; i++) tokens[k][i] = (int32_t)((seed = seed * 1664525u + 1013904223u) >> 8) % vocab;
      seq_pages(slot, pages[k]);
      open[k] = (mob_seq_open_t){.slot = slot, .prompt = tokens[k], .prompt_count = CONTEXT,
                                 .sampling = {.top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1}};
      seq[k] = (mob_seq_step_t){.slot = slot, .row = k * CONTEXT, .count = CONTEXT, .tokens = tokens[k], .pages = pages[k],
                                .page_count = CONTEXT / 64, .sample = true};
    }
    mob_step_t step = {.token_count = n * CONTEXT, .seq_count = n, .open_count = n, .open = open, .seqs = seq};
    uint64_t begin = mob_now_ns();
    queue(r, &step);
    wait_for(r, r->queued);
    if (n == 2 && s > 0) times[count++] = (double)(mob_now_ns() - begin) / 1e6;
  }
  if (count >= 4) printf("prefill %d tokens %9.3f ms a step (median of %d)\n", PREFILL, median(times, count), count);
  fflush(stdout);
}

static void decode(runner_t *r, const goal_t *goal, int layers, int steps) {
  static uint32_t pages[MAX_BATCH][SEQ_PAGES];
  static const int32_t previous = MOB_TOKEN_PREVIOUS;
  static mob_seq_step_t seq[MAX_BATCH];
  double *device = MOB_NEW_ARRAY(double, (size_t)steps), *wall = MOB_NEW_ARRAY(double, (size_t)steps);
  uint64_t last = 0;
  int n = 0;
  for (int i = 0; i < steps + WARM; i++) {
    for (uint32_t s = 0; s < (uint32_t)goal->batch; s++) {
      seq_pages(s, pages[s]);
      seq[s] = (mob_seq_step_t){.slot = s, .row = s, .start = (uint32_t)(CONTEXT + i), .count = 1, .tokens = &previous,
                                .pages = pages[s], .page_count = SEQ_PAGES, .sample = true};
    }
    mob_step_t step = {.token_count = (uint32_t)goal->batch, .seq_count = (uint32_t)goal->batch, .seqs = seq};
    queue(r, &step);
    if (i < 1) continue;
    uint64_t ns = wait_for(r, r->queued - 1), now = mob_now_ns();
    if (i >= WARM) {
      device[n] = (double)ns / 1e6;
      wall[n++] = (double)(now - last) / 1e6;
    }
    last = now;
  }
  wait_for(r, r->queued);
  double ms = median(wall, n);
  printf("decode B=%-4d %8.3f ms a step (median of %d), %8.3f ms on the device", goal->batch, ms, n, median(device, n));
  if (layers == WHOLE)
    printf("   goal %.2f %s, vLLM %.3f, floor %.2f", goal->wanted, ms <= goal->wanted ? "met" : "MISSED", goal->vllm, goal->floor);
  printf("\n");
  fflush(stdout);
  free(device);
  free(wall);
}

static void open_runner(runner_t *r, const mob_model_t *model, int layers) {
  pthread_mutex_init(&r->lock, NULL);
  pthread_cond_init(&r->wake, NULL);
  CHECK(mob_backend_find("cuda", &r->backend));
  mob_exec_spec_t spec = {.model = model, .last_layer = layers, .tp = 1, .dtype = MOB_DT_BF16, .kv_dtype = MOB_DT_BF16,
                          .max_tokens = PREFILL, .max_seqs = MAX_BATCH, .max_len = SEQ_PAGES * 64, .memory_share = 0.95};
  CHECK(r->backend->open(&spec, &r->exec));
  mob_memory_plan_t plan;
  CHECK(r->backend->plan(r->exec, &plan));
  printf("%s\n", plan.text);
  uint64_t begin = mob_now_ns();
  CHECK(r->backend->load(r->exec, NULL, NULL));
  printf("loaded in %.2f s\n", (double)(mob_now_ns() - begin) / 1e9);
  fflush(stdout);
  CHECK(r->backend->alloc_kv(r->exec, MAX_BATCH * SEQ_PAGES));
}

int main(int argc, char **argv) {
  int layers = argc > 1 ? atoi(argv[1]) : WHOLE, only = argc > 2 ? atoi(argv[2]) : 0, steps = argc > 3 ? atoi(argv[3]) : 120;
  if (layers < 1 || steps < 1 || steps > SEQ_PAGES * 64 - CONTEXT - WARM) {
    fprintf(stderr, "usage: bench_dense [LAYERS [BATCH (0: 1, 8, 64, 256) [STEPS (up to %d)]]]\n", SEQ_PAGES * 64 - CONTEXT - WARM);
    return 2;
  }
  char dir[] = "/tmp/dense-shapes-XXXXXX", path[64];
  if (!mkdtemp(dir)) return 1;
  snprintf(path, sizeof path, "%s/config.json", dir);
  FILE *file = fopen(path, "w");
  if (!file) return 1;
  fprintf(file, config, layers);
  fclose(file);
  mob_model_t *model;
  mob_model_options_t options = {.dummy = true};
  mob_status status = mob_model_open(dir, &options, &model);
  unlink(path);
  rmdir(dir);
  CHECK(status);
  printf("Qwen2.5-7B shapes, %d layers, BF16, dummy weights, context %d\n", layers, CONTEXT);
  runner_t r = {0};
  open_runner(&r, model, layers);
  int most = 0;
  for (size_t i = 0; i < MOB_LEN(goals); i++)
    if (!only || only == goals[i].batch) most = goals[i].batch;
  prefill(&r, most, mob_model_desc(model)->vocab);
  for (size_t i = 0; i < MOB_LEN(goals); i++)
    if (!only || only == goals[i].batch) decode(&r, &goals[i], layers, steps);
  r.backend->close(r.exec);
  mob_model_close(model);
  return 0;
}
