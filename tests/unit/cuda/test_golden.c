// The CUDA backend, run on the emulated GPU, against Hugging Face transformers (tests/golden): whole models, a prompt and then one
// token after the other. bf16 matrices and activations stand where transformers computed in fp32, so that log probabilities are
// compared, not bits; the prompt is fed in two chunks and the tokens are transformers', so that a near tie does not lead astray.
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/model/model.h"
#include "tests/unit/cpu/golden_case.h"
#include "tools/gpu/drive.h"

#ifdef MOB_ASAN
enum { SHORT = 2, LONG = 2 };
#else
enum { SHORT = 2, LONG = 32 }; // tokens put out
#endif

static const mob_backend_t *backend;

static int find_emulated(void **state) {
  (void)state;
  const char *path = MOB_BINARY_DIR "/bin/libmobula_cuda_emu.so";
  if (access(path, F_OK) != 0) return 0; // not built here: tests/emu/CMakeLists.txt
  setenv("MOBULA_CUDA_PLUGIN", path, 1);
  setenv("MOB_EMU_DEVICES", "4", 1);
  if (mob_backend_find("cuda", &backend) != MOB_OK) {
    print_error("%s\n", mob_errmsg());
    return -1;
  }
  return 0;
}

static double log_sum(const float *logits, int n) {
  double top = -INFINITY, sum = 0;
  for (int i = 0; i < n; i++) top = fmax(top, logits[i]);
  for (int i = 0; i < n; i++) sum += exp(logits[i] - top);
  return top + log(sum);
}

static void step(drive_t *d, const golden_t *g, uint32_t start, const int32_t *tokens, uint32_t count, bool open, bool sample) {
  static uint32_t pages[8];
  for (uint32_t i = 0; i < 8; i++) pages[i] = 7 - i;
  const mob_seq_open_t opened = {.prompt = g->prompt,
                                 .prompt_count = g->prompt_count,
                                 .sampling = {.top_p = 1, .top_k = -1, .repetition_penalty = 1, .logprobs = 20, .prompt_logprobs = -1}};
  const mob_seq_step_t seq = {.start = start, .count = count, .tokens = tokens, .pages = pages,
                              .page_count = (start + count + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS, .sample = sample};
  mob_step_t s = {.token_count = count, .seq_count = 1, .seqs = &seq, .open_count = open, .open = &opened};
  if (drive_step(d, &s) != MOB_OK) fail_msg("%s: %s", g->path, mob_errmsg());
}

// The largest difference of a log probability among the 20 best of the steps whose logits are known.
static double worst_of(const golden_t *g, const drive_config_t *way, uint32_t tokens) {
  mob_model_t *model;
  drive_t *d;
  drive_config_t config = *way;
  if (mob_model_open(g->dir, NULL, &model) != MOB_OK) fail_msg("%s: %s", g->path, mob_errmsg());
  config.backend = backend;
  config.model = model;
  config.max_tokens = 128;
  if (drive_open(&config, &d) != MOB_OK) fail_msg("%s: %s", g->path, mob_errmsg());
  const uint32_t n = g->prompt_count, half = n > 128 ? n - 70 : n / 3;
  step(d, g, 0, g->prompt, half, true, false);
  step(d, g, half, g->prompt + half, n - half, false, true);
  for (uint32_t i = 0; i + 1 < tokens; i++) step(d, g, n + i, &g->tokens[i], 1, false, true);
  double worst = 0;
  for (uint32_t r = 0; r < g->row_count; r++) {
    if (g->rows[r] >= tokens) continue;
    const float *logits = g->logits + r * (size_t)g->vocab;
    const drive_place_t *place = &drive_places(d, 0)[n + g->rows[r]];
    const double all = log_sum(logits, g->vocab);
    assert_true(place->known);
    assert_int_equal(place->top_count, 20);
    for (uint32_t i = 0; i < 20; i++) {
      const double error = fabs(place->top[i].logprob - (logits[place->top[i].token] - all));
      if (!(error <= worst)) worst = error;
    }
  }
  drive_close(d);
  mob_model_close(model);
  return worst;
}

static void check(const char *name, drive_config_t way, uint32_t tokens, double limit) {
  golden_t g;
  char path[512];
  if (!backend) skip();
  snprintf(path, sizeof path, MOB_SOURCE_DIR "/tests/golden/%s.json", name);
  golden_load(path, &g);
  const double worst = worst_of(&g, &way, tokens);
  print_message("%-28s largest difference of a log probability %.3f\n", name, worst);
  golden_free(&g);
  assert_true(worst < limit);
}

static void latent_attention(void **state) {
  (void)state;
  check("deepseek_v3/dense_bf16", (drive_config_t){.tp = 1}, SHORT, 0.1);
}
static void without_graphs(void **state) {
  (void)state;
  check("deepseek_v3/wide_bf16", (drive_config_t){.tp = 1, .eager = true}, SHORT, 0.1);
}
static void grouped_queries(void **state) {
  (void)state;
  check("llama/llama3_bf16", (drive_config_t){.tp = 1}, LONG, 0.1);
}
static void grouped_queries_with_experts(void **state) {
  (void)state;
  check("qwen3_moe/qwen3_moe_bf16", (drive_config_t){.tp = 1}, SHORT, 0.1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(latent_attention),
      cmocka_unit_test(without_graphs),   cmocka_unit_test(grouped_queries),
      cmocka_unit_test(grouped_queries_with_experts),
  };
  return cmocka_run_group_tests(tests, find_emulated, NULL);
}
