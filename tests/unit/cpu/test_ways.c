// Every way of cutting the work gives the same: tensor and pipeline parallel, whole experts, chunks
// of the prompt, both forms of latent attention, threads. And all of them give transformers'
// tokens.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/amx.h"
#include "golden_case.h"
#include "harness.h"
#include "runtime/base/mem.h"

// The ways are compared over few tokens, and in sanitizer builds on fewer cases: ThreadSanitizer is
// slowest with its many threads, and one case shows it all of them.
#if defined(MOB_TSAN)
enum { SHORT = 5, EVERY = 14 };
#elif defined(MOB_ASAN)
enum { SHORT = 8, EVERY = 6 };
#else
enum { SHORT = 20, EVERY = 1 };
#endif

typedef struct way {
  int tp, pp, threads;
  bool expert_parallel, queue;
  uint32_t chunk;
  const char *mla;
} way_t;

// The ways are held against each other by exact arithmetic, and once more by that of `auto` where
// this CPU has a tile unit.
static bool fast;

// Logits [count][vocab] of the greedy path of a golden, computed in one way; the caller frees them.
static float *compute(const golden_t *g, const way_t *way, uint32_t count) {
  harness_config_t config = {.dir = g->dir,
                             .tp = way->tp,
                             .pp = way->pp,
                             .threads = way->threads,
                             .fast = fast,
                             .expert_parallel = way->expert_parallel};
  harness_t *h;
  if (way->mla)
    setenv("MOB_CPU_MLA", way->mla, 1);
  else
    unsetenv("MOB_CPU_MLA");
  if (harness_open(&config, &h) != MOB_OK)
    fail_msg("%s tp %d pp %d: %s", g->path, way->tp, way->pp, mob_errmsg());
  float *logits = MOB_NEW_ARRAY(float, count *(size_t)g->vocab);
  int32_t tokens[count];
  harness_run_t run = {.prompt = g->prompt,
                       .prompt_count = g->prompt_count,
                       .chunk = way->chunk,
                       .generate = count,
                       .queue = way->queue,
                       .logits = logits,
                       .tokens = tokens};
  if (harness_generate(h, &run) != MOB_OK) fail_msg("%s: %s", g->path, mob_errmsg());
  for (uint32_t i = 0; i < count; i++)
    if (tokens[i] != g->tokens[i])
      fail_msg("%s: tp %d pp %d: token %u is %d, transformers has %d", g->path, way->tp, way->pp, i,
               tokens[i], g->tokens[i]);
  harness_close(h);
  return logits;
}

static bool divides(const golden_t *g, int tp, int pp) {
  const json_t *config = json_object_get(g->root, "config");
  int64_t heads = json_integer_value(json_object_get(config, "num_attention_heads"));
  int64_t layers = json_integer_value(json_object_get(config, "num_hidden_layers"));
  return heads % tp == 0 && pp <= layers;
}

static void test_parallel_ways_agree(void **state) {
  (void)state;
  static const way_t ways[] = {
      {2, 1, 1, false, false, 0, NULL}, {4, 1, 1, false, false, 0, NULL},
      {8, 1, 1, false, false, 0, NULL}, {1, 2, 1, false, false, 0, NULL},
      {1, 3, 1, false, false, 0, NULL}, {1, 4, 1, false, false, 0, NULL},
      {2, 2, 4, false, false, 0, NULL}, {8, 2, 1, false, false, 0, NULL},
      {2, 1, 1, true, false, 0, NULL},  {4, 2, 1, true, false, 0, NULL},
      {1, 1, 3, false, false, 0, NULL},
  };
  char paths[64][512];
  int count = golden_list(paths, 64);
  for (int i = 0; i < count; i += EVERY) {
    golden_t g;
    golden_load(paths[i], &g);
    size_t n = SHORT * (size_t)g.vocab;
    float *expected = compute(&g, &(way_t){.tp = 1, .pp = 1}, SHORT);
    for (size_t k = 0; k < MOB_LEN(ways); k++) {
      if (!divides(&g, ways[k].tp, ways[k].pp)) continue;
      float *logits = compute(&g, &ways[k], SHORT);
      // Stages and threads change no bit; tensor parallelism changes the order of sums.
      if (ways[k].tp == 1)
        assert_memory_equal(logits, expected, n * sizeof *logits);
      else
        assert_true(harness_max_error(logits, expected, n) < 1e-4f);
      free(logits);
    }
    // The same number of ranks over two stages: again the same bits.
    float *tp2 = compute(&g, &(way_t){.tp = 2, .pp = 1}, SHORT),
          *tp2pp2 = compute(&g, &(way_t){.tp = 2, .pp = 2}, SHORT);
    assert_memory_equal(tp2, tp2pp2, n * sizeof *tp2);
    free(tp2);
    free(tp2pp2);
    free(expected);
    golden_free(&g);
  }
}

static void test_chunks_and_forms_of_attention_agree(void **state) {
  (void)state;
  char paths[64][512];
  int count = golden_list(paths, 64);
  for (int i = 0; i < count; i += EVERY) {
    golden_t g;
    golden_load(paths[i], &g);
    size_t n = SHORT * (size_t)g.vocab;
    float *absorbed = compute(&g, &(way_t){.tp = 1, .pp = 1, .mla = "absorbed"}, SHORT);
    float *expanded = compute(&g, &(way_t){.tp = 1, .pp = 1, .mla = "expanded"}, SHORT);
    assert_true(harness_max_error(absorbed, expanded, n) < 1e-4f);
    for (uint32_t chunk = 1; chunk < 80; chunk = chunk * 3 + 2) {
      float *one =
          compute(&g, &(way_t){.tp = 1, .pp = 1, .chunk = chunk, .mla = "expanded"}, SHORT);
      float *two =
          compute(&g, &(way_t){.tp = 1, .pp = 1, .chunk = chunk, .mla = "absorbed"}, SHORT);
      if (fast) { // steps of few rows are computed by other instructions: engine/cpu/amx.h
        assert_true(harness_max_error(one, expanded, n) < 1e-4f);
        assert_true(harness_max_error(two, absorbed, n) < 1e-4f);
      } else {
        assert_memory_equal(one, expanded, n * sizeof *one);
        assert_memory_equal(two, absorbed, n * sizeof *two);
      }
      free(one);
      free(two);
    }
    free(absorbed);
    free(expanded);
    golden_free(&g);
  }
  unsetenv("MOB_CPU_MLA");
}

static void test_queued_steps_take_the_sampled_ids(void **state) {
  (void)state;
  golden_t g;
  golden_load(MOB_SOURCE_DIR "/tests/golden/deepseek_v3/base_fp8.json", &g);
  static const way_t ways[] = {{1, 1, 1, false, true, 0, NULL},
                               {2, 2, 1, false, true, 0, NULL},
                               {1, 4, 1, false, true, 16, NULL},
                               {8, 2, 1, false, true, 64, NULL}};
  for (size_t k = 0; k < MOB_LEN(ways); k++)
    free(compute(&g, &ways[k], SHORT)); // compares the tokens
  golden_free(&g);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_queued_steps_take_the_sampled_ids),
      cmocka_unit_test(test_parallel_ways_agree),
      cmocka_unit_test(test_chunks_and_forms_of_attention_agree),
  };
  int failed = cmocka_run_group_tests_name("exact", tests, NULL, NULL);
  fast = true;
  return mob_amx_usable() ? failed + cmocka_run_group_tests_name("auto", tests, NULL, NULL)
                          : failed;
}
