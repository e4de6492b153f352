#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/sampler.h"
#include "runtime/base/mem.h"

enum { VOCAB = 1000 };

static mob_sampling_t plain(void) {
  return (mob_sampling_t){
      .temperature = 1, .top_p = 1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1};
}

static void fill(float *logits) {
  for (int i = 0; i < VOCAB; i++)
    logits[i] = (float)((i * 7919) % VOCAB) * 0.01f; // all different, 0 .. 9.99
}

static int32_t token_at(int place) { // the place-th best of fill(); 0 is the best
  int value = VOCAB - 1 - place;
  for (int i = 0; i < VOCAB; i++)
    if ((i * 7919) % VOCAB == value) return i;
  return -1;
}

static int32_t sample(const mob_sample_input_t *in, mob_sample_output_t *out) {
  float logits[VOCAB];
  mob_sampler_t *s = mob_sampler_new(VOCAB);
  fill(logits);
  mob_sampler_run(s, logits, in, out);
  mob_sampler_free(s);
  return out->token;
}

static int32_t with(const mob_sampling_t *p) {
  mob_sample_output_t out;
  return sample(&(mob_sample_input_t){.params = p}, &out);
}

static void test_philox_is_the_published_generator(void **state) {
  (void)state;
  // Random123's known answer for philox4x32-10, counter and key zero: 6627e8d5 e169c58d ...
  double expected = (double)(((uint64_t)0x6627e8d5 << 32 | 0xe169c58d) >> 11) * 0x1p-53;
  assert_true(mob_philox_uniform(0, 0) == expected);
  double sum = 0;
  for (uint64_t i = 0; i < 10000; i++) sum += mob_philox_uniform(42, i);
  assert_true(fabs(sum / 10000 - 0.5) < 0.02);
}

static void test_greedy_takes_the_best_and_the_first_of_equals(void **state) {
  (void)state;
  mob_sampling_t p = plain();
  p.temperature = 0;
  assert_int_equal(with(&p), token_at(0));
  p.temperature = 1;
  p.top_k = 1;
  assert_int_equal(with(&p), token_at(0));
  float flat[VOCAB] = {0};
  mob_sample_output_t out;
  mob_sampler_t *s = mob_sampler_new(VOCAB);
  p.temperature = 0;
  mob_sampler_run(s, flat, &(mob_sample_input_t){.params = &p}, &out);
  assert_int_equal(out.token, 0);
  mob_sampler_free(s);
}

static void test_masks(void **state) {
  (void)state;
  mob_sampling_t p = plain();
  p.temperature = 0;
  mob_logit_bias_t bias[] = {{3, 100}, {-5, 1000}, {VOCAB, 1000}}; // ids outside are ignored
  p.bias = bias;
  p.bias_count = 3;
  assert_int_equal(with(&p), 3);
  int32_t allowed[] = {17, 18, 5000};
  p.bias_count = 0;
  p.allowed = allowed;
  p.allowed_count = 3;
  int32_t token = with(&p);
  assert_true(token == 17 || token == 18);
  p.allowed_count = 0;
  int32_t stop[] = {token_at(0), token_at(1)};
  p.stop_ids = stop;
  p.stop_id_count = 2;
  p.min_tokens = 1;
  assert_int_equal(with(&p), token_at(2));
  mob_sample_output_t out;
  int32_t history[] = {9};
  assert_int_equal(
      sample(&(mob_sample_input_t){.params = &p, .output = history, .output_count = 1}, &out),
      token_at(0));
}

static void test_penalties(void **state) {
  (void)state;
  mob_sampling_t p = plain();
  p.temperature = 0;
  int32_t best = token_at(0), prompt[] = {best, best}, output[] = {best, best, token_at(1)};
  mob_sample_output_t out;
  // frequency and presence do not look at the prompt
  p.frequency_penalty = 2;
  p.presence_penalty = 1;
  mob_sample_input_t in = {.params = &p, .prompt = prompt, .prompt_count = 2};
  assert_int_equal(sample(&in, &out), best);
  in.output = output;
  in.output_count = 3;
  assert_int_equal(sample(&in, &out), token_at(2)); // best - 5, second - 3
  // repetition does
  p = plain();
  p.temperature = 0;
  p.repetition_penalty = 2;
  in = (mob_sample_input_t){.params = &p, .prompt = prompt, .prompt_count = 2};
  assert_int_equal(sample(&in, &out), token_at(1));
  // and multiplies what is negative
  float logits[VOCAB];
  for (int i = 0; i < VOCAB; i++) logits[i] = -3;
  logits[4] = -1;
  int32_t four[] = {4};
  mob_sampler_t *s = mob_sampler_new(VOCAB);
  p.repetition_penalty = 4;
  mob_sampler_run(s, logits, &(mob_sample_input_t){.params = &p, .prompt = four, .prompt_count = 1},
                  &out);
  assert_int_equal(out.token, 0);
  mob_sampler_free(s);
}

// Draws many times and checks that only tokens of the best `expected` appear, and all of them when
// few.
static void assert_support(mob_sampling_t p, int expected) {
  bool seen[VOCAB] = {0};
  for (uint64_t i = 0; i < 3000; i++) {
    p.seed = i;
    seen[with(&p)] = true;
  }
  for (int place = expected; place < VOCAB; place++) assert_false(seen[token_at(place)]);
  for (int place = 0; place < expected && expected < 20; place++)
    assert_true(seen[token_at(place)]);
}

static void test_top_k_top_p_min_p(void **state) {
  (void)state;
  mob_sampling_t p = plain();
  p.top_k = 5;
  assert_support(p, 5);
  p.top_k = 0;
  // Neighbours differ by e^-0.01: the best k carry (1 - e^(-k/100)) of nearly 1, so 0.05 needs 6.
  p.top_p = 0.05f;
  assert_support(p, 6);
  p.top_p = 1;
  p.min_p = 0.95f; // e^-0.01k >= 0.95: k <= 5
  assert_support(p, 6);
  p.min_p = 0;
  p.temperature = 0.01f; // neighbours differ by e^-1 now
  p.top_p = 0.9f;        // 1 - e^-k >= 0.9: 3
  assert_support(p, 3);
  p.top_p = 0.99999f; // a nucleus beyond the first sorted part
  p.temperature = 1;
  assert_support(p, 1000);
}

static void test_frequencies_follow_the_probabilities(void **state) {
  (void)state;
  mob_sampling_t p = plain();
  p.top_k = 2;
  p.temperature = 0.02f; // the second is e^-0.5 as likely
  int first = 0;
  for (uint64_t i = 0; i < 4000; i++) {
    p.seed = i * 77;
    first += with(&p) == token_at(0);
  }
  assert_true(fabs(first / 4000.0 - 1 / (1 + exp(-0.5))) < 0.03);
}

static void test_draws_depend_on_seed_and_index_alone(void **state) {
  (void)state;
  mob_sampling_t p = plain();
  p.seed = 5;
  int32_t history[] = {1, 2, 3};
  mob_sample_output_t a, b, c;
  sample(&(mob_sample_input_t){.params = &p, .output = history, .output_count = 2}, &a);
  sample(
      &(mob_sample_input_t){
          .params = &p, .prompt = history, .prompt_count = 3, .output = history, .output_count = 2},
      &b);
  assert_int_equal(a.token, b.token);
  int changed = 0;
  for (uint32_t i = 0; i < 3; i++) {
    sample(&(mob_sample_input_t){.params = &p, .output = history, .output_count = i}, &c);
    changed += c.token != a.token;
  }
  assert_true(changed > 0);
}

// With temperature 0 they are of the logits after masks and penalties.
static void test_logprobs_of_greedy(void **state) {
  (void)state;
  mob_sampling_t p = plain();
  mob_logit_bias_t bias[] = {{token_at(10), 3}};
  p.bias = bias;
  p.bias_count = 1;
  p.temperature = 0;
  p.logprobs = 3;
  mob_sample_output_t out;
  int32_t token = sample(&(mob_sample_input_t){.params = &p}, &out);
  float logits[VOCAB];
  fill(logits);
  logits[token_at(10)] += 3;
  double sum = 0;
  int rank = 1;
  for (int i = 0; i < VOCAB; i++) {
    sum += exp(logits[i]);
    rank += logits[i] > logits[token];
  }
  assert_int_equal(rank, 1);
  assert_int_equal(out.chosen.rank, 1);
  assert_true(fabs(out.chosen.logprob - (logits[token] - log(sum))) < 1e-5);
  assert_int_equal(out.top_count, 3);
  for (int i = 0; i < 3; i++) assert_int_equal(out.top[i].rank, i + 1);
  assert_int_equal(out.top[0].token, token);
}

// Otherwise they are of what the token was drawn from: what top-k keeps, after the temperature.
static void test_logprobs_of_a_draw(void **state) {
  (void)state;
  mob_sampling_t p = plain();
  p.temperature = 0.5f;
  p.top_k = 3;
  p.logprobs = 4;
  p.prompt_logprobs = 2;
  mob_sample_output_t out;
  sample(&(mob_sample_input_t){.params = &p}, &out);
  float logits[VOCAB];
  fill(logits);
  double sum = 0;
  for (int i = 0; i < 3; i++) sum += exp(logits[token_at(i)] / 0.5);
  for (int i = 0; i < 3; i++) {
    assert_int_equal(out.top[i].token, token_at(i));
    assert_true(fabs(out.top[i].logprob - (logits[token_at(i)] / 0.5 - log(sum))) < 1e-5);
  }
  assert_true(out.top[3].logprob == -9999.0f);
  mob_sampler_t *s = mob_sampler_new(VOCAB);
  mob_sampler_prompt(s, logits, &p, token_at(1), &out);
  fill(logits);
  assert_true(fabs(out.chosen.logprob - (logits[token_at(1)] / 0.5 - log(sum))) < 1e-5);
  assert_int_equal(out.chosen.rank, 2);
  assert_int_equal(out.top_count, 2);
  mob_sampler_free(s);
}

static void test_numbers_that_are_none_do_not_break_it(void **state) {
  (void)state;
  float logits[VOCAB];
  mob_sample_output_t out;
  mob_sampler_t *s = mob_sampler_new(VOCAB);
  for (int kind = 0; kind < 2; kind++) {
    for (int i = 0; i < VOCAB; i++) logits[i] = kind ? NAN : -INFINITY;
    mob_sampling_t p = plain();
    p.top_p = 0.9f;
    p.top_k = 40;
    p.logprobs = 2;
    mob_sampler_run(s, logits, &(mob_sample_input_t){.params = &p}, &out);
    assert_in_range(out.token, 0, VOCAB - 1);
  }
  mob_sampler_free(s);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_philox_is_the_published_generator),
      cmocka_unit_test(test_greedy_takes_the_best_and_the_first_of_equals),
      cmocka_unit_test(test_masks),
      cmocka_unit_test(test_penalties),
      cmocka_unit_test(test_top_k_top_p_min_p),
      cmocka_unit_test(test_frequencies_follow_the_probabilities),
      cmocka_unit_test(test_draws_depend_on_seed_and_index_alone),
      cmocka_unit_test(test_logprobs_of_greedy),
      cmocka_unit_test(test_logprobs_of_a_draw),
      cmocka_unit_test(test_numbers_that_are_none_do_not_break_it),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
