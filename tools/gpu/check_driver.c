// Holds the CUDA backend against the CPU backend, and times whole steps of a model's true shapes.
//   check_driver compare DIR        teacher-forced log probabilities CPU / CUDA; whole = chunked, batch = single, graph = eager
//   check_driver bench DENSE MOE    DeepSeek-R1's shapes with dummy weights: decode and prefill steps on one GPU
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/backend.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

enum { TOP = 20 };

#define CHECK(expr)                                                                                \
  do {                                                                                             \
    if ((expr) != MOB_OK) {                                                                        \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, mob_errmsg());                            \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

// ---------------------------------------------------------------------------- one executor, blocking

typedef struct position {
  mob_token_logprob_t chosen, top[TOP];
  uint32_t top_count;
} position_t;

typedef struct runner {
  const mob_backend_t *backend;
  mob_exec_t *exec;
  uint64_t step;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  uint64_t done;        // steps reported
  uint64_t compute_ns;  // of the last one
  int32_t tokens[256];  // sampled by the last one, by slot
  position_t *positions; // where log probabilities of slot 0 go, by position predicted
  position_t sampled[256];
} runner_t;

static void copy_top(position_t *to, const mob_token_logprob_t *chosen, const mob_token_logprob_t *top, uint32_t count) {
  to->chosen = *chosen;
  to->top_count = count;
  if (count) memcpy(to->top, top, count * sizeof *top);
}

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
    copy_top(&r->sampled[s->slot], &s->chosen, s->top, s->top_count);
  }
  for (uint32_t i = 0; i < result->prompt_count; i++) {
    const mob_prompt_logprob_t *p = &result->prompt[i];
    if (r->positions && p->slot == 0) copy_top(&r->positions[p->position], &p->chosen, p->top, p->top_count);
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

static runner_t *open_runner(const char *name, const mob_model_t *model, int max_tokens, int max_seqs, int max_len, bool eager,
                             int64_t pages) {
  runner_t *r = MOB_NEW(runner_t);
  pthread_mutex_init(&r->lock, NULL);
  pthread_cond_init(&r->wake, NULL);
  CHECK(mob_backend_find(name, &r->backend));
  mob_exec_spec_t spec = {.model = model, .last_layer = mob_model_desc(model)->n_layers, .tp = 1, .dtype = MOB_DT_BF16,
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

// ----------------------------------------------------------------------------------------- compare

static mob_sampling_t greedy(int logprobs, int prompt_logprobs) {
  return (mob_sampling_t){.temperature = 0, .top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = logprobs,
                          .prompt_logprobs = prompt_logprobs};
}

// Log probabilities of every token of `tokens` but the first, in chunks of `chunk`; slot 0, pages from `page0`.
static void teacher_forced(runner_t *r, const int32_t *tokens, uint32_t n, uint32_t chunk, uint32_t page0, position_t *out) {
  uint32_t pages[256];
  for (uint32_t i = 0; i < 256; i++) pages[i] = page0 + i;
  r->positions = out;
  mob_seq_open_t open = {.slot = 0, .sampling = greedy(-1, TOP), .prompt = tokens, .prompt_count = n};
  uint32_t zero = 0;
  for (uint32_t from = 0; from < n; from += chunk) {
    uint32_t count = n - from < chunk ? n - from : chunk;
    mob_seq_step_t seq = {.slot = 0, .start = from, .count = count, .tokens = tokens + from, .pages = pages,
                          .page_count = (from + count + 63) / 64};
    mob_step_t step = {.token_count = count, .seq_count = 1, .seqs = &seq, .open = &open, .open_count = from == 0,
                       .close = &zero, .close_count = from + count == n};
    queue(r, &step);
    wait_for(r, r->step);
  }
  r->positions = NULL;
}

// The same, token by token: decode steps whose sampled row carries the log probabilities.
static void by_decode(runner_t *r, const int32_t *tokens, uint32_t n, uint32_t page0, position_t *out) {
  uint32_t pages[256], zero = 0;
  for (uint32_t i = 0; i < 256; i++) pages[i] = page0 + i;
  mob_seq_open_t open = {.slot = 0, .sampling = greedy(TOP, -1), .prompt = tokens, .prompt_count = 1};
  for (uint32_t at = 0; at + 1 < n; at++) {
    mob_seq_step_t seq = {.slot = 0, .start = at, .count = 1, .tokens = tokens + at, .pages = pages,
                          .page_count = at / 64 + 1, .sample = true};
    mob_step_t step = {.token_count = 1, .seq_count = 1, .seqs = &seq, .open = &open, .open_count = at == 0, .close = &zero,
                       .close_count = at + 2 == n};
    queue(r, &step);
    wait_for(r, r->step);
    out[at + 1] = r->sampled[0];
  }
}

// Continues tokens[0, from) to n tokens, sampled at temperature 1.
static void generate(runner_t *r, int32_t *tokens, uint32_t from, uint32_t n, uint64_t seed) {
  uint32_t pages[256], zero = 0;
  for (uint32_t i = 0; i < 256; i++) pages[i] = i;
  mob_seq_open_t open = {.slot = 0, .sampling = greedy(-1, -1), .prompt = tokens, .prompt_count = from};
  open.sampling.temperature = 1;
  open.sampling.seed = seed;
  for (uint32_t at = 0; at < n;) {
    uint32_t count = at ? 1 : from;
    mob_seq_step_t seq = {.slot = 0, .start = at, .count = count, .tokens = tokens + at, .pages = pages,
                          .page_count = (at + count + 63) / 64, .sample = true};
    mob_step_t step = {.token_count = count, .seq_count = 1, .seqs = &seq, .open = &open, .open_count = at == 0, .close = &zero,
                       .close_count = at + count >= n};
    queue(r, &step);
    wait_for(r, r->step);
    at += count;
    if (at < n) tokens[at] = r->tokens[0];
  }
}

typedef struct distance {
  double kl, top1, worst, cosine;
  int ties, n;
} distance_t;

// b against a: KL over a's best, agreement of the best outside near-ties, largest difference of the token's own.
static distance_t compare(const position_t *a, const position_t *b, uint32_t n, bool own) {
  distance_t d = {0};
  double xy = 0, xx = 0, yy = 0;
  int agree = 0, counted = 0;
  for (uint32_t i = 1; i < n; i++) {
    double kl = 0;
    for (uint32_t k = 0; k < a[i].top_count; k++)
      for (uint32_t m = 0; m < b[i].top_count; m++)
        if (a[i].top[k].token == b[i].top[m].token) {
          double p = a[i].top[k].logprob, q = b[i].top[m].logprob;
          kl += exp(p) * (p - q) - exp(p) + exp(q);
          xy += p * q, xx += p * p, yy += q * q;
        }
    d.kl += kl;
    bool tie = a[i].top_count > 1 && a[i].top[0].logprob - a[i].top[1].logprob < 0.05f;
    d.ties += tie;
    if (!tie) counted++, agree += a[i].top[0].token == b[i].top[0].token;
    double diff = own ? fabs((double)a[i].chosen.logprob - (double)b[i].chosen.logprob) : 0;
    if (diff > d.worst) d.worst = diff;
  }
  d.n = (int)n - 1;
  d.kl /= d.n;
  d.top1 = counted ? 100.0 * agree / counted : 100;
  d.cosine = xy / sqrt(xx * yy);
  return d;
}

static int failures;

// FP8 linears of the CUDA backend quantise their activations, those of the CPU backend do not: against the CPU, a run with them
// measures the quantisation and is not judged. MOB_CUDA_F8=0 takes it away, and then the limits must hold.
static bool quantised(void) {
  const char *wish = getenv("MOB_CUDA_F8");
  return !wish || wish[0] != '0';
}

static void print_distance(const char *what, distance_t d, bool exact) {
  bool judged = exact || !quantised() || !strstr(what, "cpu");
  bool ok = !judged || (exact ? d.worst == 0 && d.kl == 0 : d.kl < 1e-2 && d.top1 >= 99 && d.cosine > 0.999);
  if (!ok) failures++;
  printf("  %-44s KL %.2e  top-1 %.1f %% (%d near-ties of %d)  cosine %.6f  worst %.3f  %s\n", what, d.kl, d.top1, d.ties, d.n,
         d.cosine, d.worst, !judged ? "(not judged)" : ok ? "ok" : "WRONG");
  fflush(stdout);
}

static int compare_main(const char *dir, uint32_t n, bool dummy) {
  mob_model_t *model;
  mob_model_options_t options = {.dummy = dummy};
  CHECK(mob_model_open(dir, &options, &model));
  int vocab = mob_model_desc(model)->vocab;
  int32_t *tokens = MOB_NEW_ARRAY(int32_t, n);
  position_t *cpu = MOB_NEW_ARRAY(position_t, n), *gpu = MOB_NEW_ARRAY(position_t, n), *other = MOB_NEW_ARRAY(position_t, n);
  runner_t *c = open_runner("cpu", model, 512, 32, 1024, false, 64);
  // A text of the model's own: sampled at temperature 1 after a random start.
  uint32_t seed = (uint32_t)(mob_now_ns() / 1000), start = seed;
  for (uint32_t i = 0; i < 4; i++) tokens[i] = (int32_t)((seed = seed * 1664525u + 1013904223u) >> 8) % vocab;
  generate(c, tokens, 4, n, start);
  teacher_forced(c, tokens, n, n, 0, cpu);
  close_runner(c);
  printf("%s: %u tokens, seed %u\n", dir, n, start);
  position_t *eager_decode = MOB_NEW_ARRAY(position_t, n);
  for (int eager = 1; eager >= 0; eager--) {
    runner_t *g = open_runner("cuda", model, 512, 32, 1024, eager, 64);
    teacher_forced(g, tokens, n, n, 0, gpu);
    print_distance(eager ? "cuda / cpu, one prefill" : "cuda / cpu, with graphs", compare(cpu, gpu, n, true), false);
    teacher_forced(g, tokens, n, 37, 20, other);
    print_distance("chunks of 37 / one prefill", compare(gpu, other, n, true), false);
    by_decode(g, tokens, n, 40, eager ? eager_decode : other);
    print_distance(eager ? "decode / cpu" : "decode by graph / cpu", compare(cpu, eager ? eager_decode : other, n, false), false);
    if (!eager) print_distance("graph / eager, bitwise", compare(eager_decode, other, n, true), true);
    close_runner(g);
  }
  mob_model_close(model);
  printf("%s\n", failures ? "FAILED" : "all ok");
  return failures != 0;
}

// ------------------------------------------------------------------------------------------- bench

static const char r1_config[] =
    "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"deepseek_v3\",\"vocab_size\":129280,\"hidden_size\":7168,"
    "\"intermediate_size\":18432,\"moe_intermediate_size\":2048,\"num_hidden_layers\":%d,\"num_nextn_predict_layers\":0,"
    "\"num_attention_heads\":128,\"num_key_value_heads\":128,\"q_lora_rank\":1536,\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,"
    "\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":256,\"n_shared_experts\":1,\"num_experts_per_tok\":8,"
    "\"n_group\":8,\"topk_group\":4,\"topk_method\":\"noaux_tc\",\"scoring_func\":\"sigmoid\",\"norm_topk_prob\":true,"
    "\"routed_scaling_factor\":2.5,\"first_k_dense_replace\":%d,\"moe_layer_freq\":1,\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-06,"
    "\"rope_theta\":10000,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,\"original_max_position_embeddings\":4096,"
    "\"beta_fast\":32,\"beta_slow\":1,\"mscale\":1.0,\"mscale_all_dim\":1.0},\"max_position_embeddings\":163840,"
    "\"attention_bias\":false,\"tie_word_embeddings\":false,\"bos_token_id\":0,\"eos_token_id\":1,\"torch_dtype\":\"bfloat16\","
    "\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\","
    "\"weight_block_size\":[128,128]}}";

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

static int bench_main(int dense, int moe, int max_tokens, int batch_only) {
  char dir[] = "/tmp/r1-shapes-XXXXXX", path[64];
  if (!mkdtemp(dir)) return 1;
  snprintf(path, sizeof path, "%s/config.json", dir);
  FILE *file = fopen(path, "w");
  fprintf(file, r1_config, dense + moe, dense);
  fclose(file);
  mob_model_t *model;
  mob_model_options_t options = {.dummy = true};
  CHECK(mob_model_open(dir, &options, &model));
  printf("DeepSeek-R1 shapes, %d dense + %d MoE layers, dummy weights\n", dense, moe);
  runner_t *r = open_runner("cuda", model, max_tokens, MAX_BATCH, SEQ_PAGES * 64, false, MAX_BATCH * SEQ_PAGES);
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

int main(int argc, char **argv) {
  if (argc >= 3 && strcmp(argv[1], "compare") == 0) return compare_main(argv[2], argc > 3 ? (uint32_t)atoi(argv[3]) : 300, argc > 4);
  if (argc >= 4 && strcmp(argv[1], "bench") == 0)
    return bench_main(atoi(argv[2]), atoi(argv[3]), argc > 4 ? atoi(argv[4]) : 2048, argc > 5 ? atoi(argv[5]) : 0);
  fprintf(stderr, "usage: check_driver compare DIR [tokens [dummy]] | bench DENSE MOE [max_tokens [batch]]\n");
  return 2;
}
