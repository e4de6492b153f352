// The CPU backend against Hugging Face transformers (tests/golden, made by tools/golden/engine.py).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "golden_case.h"
#include "engine/cpu/amx.h"
#include "harness.h"
#include "runtime/base/mem.h"

// Sanitizer builds are ten times slower: they see fewer cases and tokens.
#if defined(MOB_TSAN)
enum { EVERY = 14, TOKENS = 4 };
#elif defined(MOB_ASAN)
enum { EVERY = 4, TOKENS = 33 };
#else
enum { EVERY = 1, TOKENS = 64 };
#endif

static bool fast; // the arithmetic of `auto` instead of exact

// Logits [count][vocab] of the greedy path of a golden; the caller frees them. With a rounded
// cache the path is forced to transformers' tokens, because a small difference may tip a near tie.
static float *compute(const golden_t *g, mob_dtype_t kv, uint32_t count, int32_t *tokens) {
  harness_config_t config = {.dir = g->dir, .tp = 1, .pp = 1, .kv_dtype = kv, .fast = fast};
  harness_t *h;
  if (harness_open(&config, &h) != MOB_OK) fail_msg("%s: %s", g->path, mob_errmsg());
  float *logits = MOB_NEW_ARRAY(float, TOKENS *(size_t)g->vocab);
  harness_run_t run = {.prompt = g->prompt,
                       .prompt_count = g->prompt_count,
                       .generate = count,
                       .forced = kv == MOB_DT_COUNT ? NULL : g->tokens,
                       .logits = logits,
                       .tokens = tokens};
  if (harness_generate(h, &run) != MOB_OK) fail_msg("%s: %s", g->path, mob_errmsg());
  harness_close(h);
  return logits;
}

static void test_logits_and_tokens_of_transformers(void **state) {
  (void)state;
  char paths[64][512];
  int count = golden_list(paths, 64);
  assert_in_range(count, 10, 64);
  for (int i = 0; i < count; i += EVERY) {
    golden_t g;
    int32_t tokens[TOKENS];
    golden_load(paths[i], &g);
    float *logits = compute(&g, MOB_DT_COUNT, TOKENS, tokens), worst = 0;
    for (uint32_t r = 0; r < g.row_count && g.rows[r] < TOKENS; r++) {
      float error = harness_max_error(logits + g.rows[r] * (size_t)g.vocab,
                                      g.logits + r * (size_t)g.vocab, (size_t)g.vocab);
      if (!(error <= worst)) worst = error; // a NaN stays
    }
    print_message("%-24s largest difference of a logit %.1e\n", strrchr(paths[i], '/') + 1,
                  (double)worst);
    assert_true(worst < 1e-4f);
    assert_memory_equal(tokens, g.tokens, sizeof tokens);
    free(logits);
    golden_free(&g);
  }
}

// The scalar operations are the specification: they must have these logits too, and so must every
// other set.
static void test_every_instruction_set(void **state) {
  (void)state;
  static const char *const names[] = {"scalar", "avx2", "avx512"};
  char paths[64][512];
  int count = golden_list(paths, 64);
  for (int i = 0; i < count; i += EVERY) {
    golden_t g;
    golden_load(paths[i], &g);
    for (size_t n = 0; n < MOB_LEN(names); n++) {
      int32_t tokens[TOKENS];
      if (!mob_cpu_ops_named(names[n])) continue; // not on this CPU
      setenv("MOB_CPU_ISA", names[n], 1);
      float *logits = compute(&g, MOB_DT_COUNT, 2, tokens);
      unsetenv("MOB_CPU_ISA");
      float worst = harness_max_error(logits, g.logits, 2 * (size_t)g.vocab); // rows 0 and 1
      if (!(worst < 1e-4f)) fail_msg("%s, %s: %g", paths[i], names[n], (double)worst);
      assert_memory_equal(tokens, g.tokens, 2 * sizeof *tokens);
      free(logits);
    }
    golden_free(&g);
  }
}

// Kullback-Leibler divergence of softmax(b) from softmax(a), and the cosine of the logits.
static void compare(const float *a, const float *b, int n, double *divergence, double *cosine) {
  double sum_a = 0, sum_b = 0, ab = 0, aa = 0, bb = 0;
  for (int i = 0; i < n; i++) {
    sum_a += exp(a[i]);
    sum_b += exp(b[i]);
    ab += (double)a[i] * b[i];
    aa += (double)a[i] * a[i];
    bb += (double)b[i] * b[i];
  }
  *divergence = 0;
  for (int i = 0; i < n; i++)
    *divergence += exp(a[i]) / sum_a * (a[i] - b[i] - log(sum_a) + log(sum_b));
  *cosine = ab / sqrt(aa * bb);
}

// bf16 and fp16 caches, where no router can turn a rounding into another expert.
static void test_rounded_cache_is_close_to_transformers(void **state) {
  (void)state;
  char paths[64][512];
  int count = golden_list(paths, 64), same = 0, all = 0;
  for (int i = 0; i < count; i++) {
    golden_t g;
    int32_t tokens[TOKENS];
    if (strstr(paths[i], "moe") || (strstr(paths[i], "deepseek") && !strstr(paths[i], "dense")))
      continue;
    golden_load(paths[i], &g);
    float *logits = compute(&g, i % 2 ? MOB_DT_BF16 : MOB_DT_F16, TOKENS, tokens);
    for (uint32_t r = 0; r < g.row_count && g.rows[r] < TOKENS; r++) {
      double divergence, cosine;
      compare(g.logits + r * (size_t)g.vocab, logits + g.rows[r] * (size_t)g.vocab, g.vocab,
              &divergence, &cosine);
      if (!(cosine > 0.999 && divergence < 1e-2))
        fail_msg("%s, step %u: cosine %.5f, divergence %.4f", paths[i], g.rows[r], cosine,
                 divergence);
    }
    for (int t = 0; t < TOKENS; t++) same += tokens[t] == g.tokens[t];
    all += TOKENS;
    free(logits);
    golden_free(&g);
  }
  print_message("the best token agrees in %d of %d places\n", same, all);
  assert_true(same >= 0.99 * all);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_logits_and_tokens_of_transformers),
      cmocka_unit_test(test_every_instruction_set),
      cmocka_unit_test(test_rounded_cache_is_close_to_transformers),
  };
  const struct CMUnitTest with_tiles[] = {cmocka_unit_test(test_logits_and_tokens_of_transformers)};
  int failed = cmocka_run_group_tests_name("exact", tests, NULL, NULL);
  fast = true;
  return mob_amx_usable() ? failed + cmocka_run_group_tests_name("auto", with_tiles, NULL, NULL)
                          : failed;
}
