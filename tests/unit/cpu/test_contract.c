// The numeric contract of the CUDA backend as the CPU computes it (engine/cpu/contract.h): its
// roundings, and what they do to whole models.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/contract.h"
#include "golden_case.h"
#include "engine/cpu/ops.h"
#include "harness.h"
#include "runtime/base/mem.h"

#ifdef MOB_ASAN
enum { TOKENS = 8 };
#else
enum { TOKENS = 16 };
#endif

// Logits along the golden's own tokens; the caller frees them.
static float *compute(const golden_t *g, uint32_t chunk, bool contract) {
  harness_config_t config = {
      .dir = g->dir, .tp = 1, .pp = 1, .contract = contract, .kv_dtype = MOB_DT_COUNT};
  harness_t *h;
  if (harness_open(&config, &h) != MOB_OK) fail_msg("%s: %s", g->path, mob_errmsg());
  float *logits = MOB_NEW_ARRAY(float, TOKENS *(size_t)g->vocab);
  int32_t tokens[TOKENS];
  harness_run_t run = {.prompt = g->prompt,
                       .prompt_count = g->prompt_count,
                       .chunk = chunk,
                       .generate = TOKENS,
                       .forced = g->tokens,
                       .logits = logits,
                       .tokens = tokens};
  if (harness_generate(h, &run) != MOB_OK) fail_msg("%s: %s", g->path, mob_errmsg());
  harness_close(h);
  return logits;
}

// Divergence of softmax(b) from softmax(a), mean over rows.
static double divergence(const float *a, const float *b, int rows, int n) {
  double mean = 0;
  for (int r = 0; r < rows; r++, a += n, b += n) {
    double sum_a = 0, sum_b = 0;
    for (int i = 0; i < n; i++) sum_a += exp(a[i]), sum_b += exp(b[i]);
    for (int i = 0; i < n; i++)
      mean += exp(a[i]) / sum_a * (a[i] - b[i] - log(sum_a) + log(sum_b)) / rows;
  }
  return mean;
}

static bool has_router(const char *path) {
  return strstr(path, "moe") || (strstr(path, "deepseek") && !strstr(path, "dense"));
}

// A router turns a rounding into another expert, and random networks have no reason to agree then:
// those are held against the CUDA backend layer by layer (tests/unit/cuda), not here.
static void test_dense_models_stay_near_plain_arithmetic(void **state) {
  (void)state;
  char paths[64][512];
  int count = golden_list(paths, 64), seen = 0;
  for (int i = 0; i < count; i++) {
    if (has_router(paths[i])) continue;
    golden_t g;
    golden_load(paths[i], &g);
    float *plain = compute(&g, 0, false), *contract = compute(&g, 0, true);
    double d = divergence(plain, contract, TOKENS, g.vocab);
    print_message("%-24s divergence %.1e\n", strrchr(paths[i], '/') + 1, d);
    assert_true(d < (strstr(paths[i], "fp8") ? 0.1 : 1e-3));
    assert_true(d > 0); // something was rounded
    seen++;
    free(plain);
    free(contract);
    golden_free(&g);
  }
  assert_in_range(seen, 5, 64);
}

// Row by row: how a prompt is cut changes no bit of what is not computed by tiles.
static void test_chunks_change_nothing(void **state) {
  (void)state;
  char paths[64][512];
  int count = golden_list(paths, 64);
  for (int i = 0; i < count; i += 3) {
    golden_t g;
    golden_load(paths[i], &g);
    float *whole = compute(&g, 0, true), *chunks = compute(&g, 17, true);
    assert_memory_equal(whole, chunks, TOKENS * (size_t)g.vocab * sizeof *whole);
    free(whole);
    free(chunks);
    golden_free(&g);
  }
}

// ------------------------------------------------------------------------------------------
// roundings

static void test_every_e4m3_value_stays(void **state) {
  (void)state;
  float x[256] = {0}, y[256];
  for (int half = 0; half < 2; half++)
    for (int code = 0; code < 127; code++)
      x[half * 128 + code] = mob_e4m3_to_f32((uint8_t)(half << 7 | code));
  mob__quantise_e4m3(x, 256, false, y); // the largest is 448: the scale is 1
  for (int i = 0; i < 256; i++) assert_true(x[i] == y[i]);
}

static void test_e4m3_ties_go_to_even(void **state) {
  (void)state;
  float x[128] = {448}, y[128];
  int n = 1;
  for (int code = 0; code < 126; code++) // halfway between neighbours
    x[n++] = (mob_e4m3_to_f32((uint8_t)code) + mob_e4m3_to_f32((uint8_t)(code + 1))) / 2;
  mob__quantise_e4m3(x, n, false, y);
  for (int code = 0; code < 126; code++)
    assert_true(y[code + 1] == mob_e4m3_to_f32((uint8_t)(code + (code & 1))));
}

static void test_scales(void **state) {
  (void)state;
  float zero[128] = {0}, x[200], y[200];
  mob__quantise_e4m3(zero, 128, false, y);
  for (int i = 0; i < 128; i++) assert_true(y[i] == 0);
  for (int i = 0; i < 200; i++) x[i] = i < 128 ? 3.0f : -1000.0f; // blocks of their own
  mob__quantise_e4m3(x, 200, false, y);
  for (int i = 0; i < 200; i++) assert_true(fabsf(y[i] - x[i]) <= fabsf(x[i]) * 1e-6f);
  // A power of two, rounded up: 3 / 448 becomes 2^-7, and 3 is 384 of them; 448 / 448 stays 1.
  mob__quantise_e4m3(x, 128, true, y);
  assert_true(y[0] == 3.0f);
  x[0] = 448;
  x[1] = 100;
  mob__quantise_e4m3(x, 128, true, y);
  assert_true(y[0] == 448 && y[1] == 96);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_e4m3_value_stays),
      cmocka_unit_test(test_e4m3_ties_go_to_even),
      cmocka_unit_test(test_scales),
      cmocka_unit_test(test_chunks_change_nothing),
      cmocka_unit_test(test_dense_models_stay_near_plain_arithmetic),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
