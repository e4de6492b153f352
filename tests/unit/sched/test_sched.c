#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <string.h>

#include "device.h"

typedef struct bench {
  mob_sched_t *sched;
  device_t device;
} bench_t;

static mob_sched_config_t defaults(void) {
  return (mob_sched_config_t){.pages = 16,
                              .max_seqs = 4,
                              .max_tokens = 128,
                              .max_len = 1000,
                              .stages = 1,
                              .depth = 2,
                              .ids_on_device = true,
                              .chunked_prefill = true,
                              .prefix_cache = true};
}

static bench_t start(mob_sched_config_t config) {
  bench_t b = {0};
  assert_int_equal(mob_sched_new(&config, &b.sched), MOB_OK);
  device_init(&b.device, &config);
  return b;
}

static void finish(bench_t *b) {
  device_free(&b->device);
  mob_sched_free(b->sched);
}

static mob_sched_seq_t *add(bench_t *b, uint32_t prompt, uint32_t max_tokens, int priority) {
  int32_t tokens[1000];
  for (uint32_t i = 0; i < prompt; i++) tokens[i] = (int32_t)(i % 41);
  mob_sched_request_t r = {.prompt = tokens,
                           .prompt_count = prompt,
                           .max_tokens = max_tokens,
                           .ignore_eos = true,
                           .priority = priority,
                           .sampling = {.logprobs = -1, .prompt_logprobs = -1}};
  mob_sched_seq_t *seq = NULL;
  assert_int_equal(mob_sched_add(b->sched, &r, b, &seq), MOB_OK);
  return seq;
}

static const mob_step_t *plan(bench_t *b) {
  const mob_step_t *step = mob_sched_plan(b->sched);
  if (step) device_push(&b->device, step);
  return step;
}

static uint32_t complete(bench_t *b) {
  mob_step_result_t result = device_pop(&b->device);
  const mob_sched_event_t *events;
  uint32_t count;
  assert_int_equal(mob_sched_complete(b->sched, &result, &events, &count), MOB_OK);
  return count;
}

static mob_sched_stats_t stats(const bench_t *b) {
  mob_sched_stats_t s;
  mob_sched_stats(b->sched, &s);
  return s;
}

static void test_next_step_is_planned_before_the_token_is_known(void **state) {
  (void)state;
  bench_t b = start(defaults());
  add(&b, 10, 3, 0);
  const mob_step_t *step = plan(&b);
  assert_int_equal(step->open_count, 1);
  assert_int_equal(step->seqs[0].count, 10);
  assert_true(step->seqs[0].sample);
  step = plan(&b);
  assert_int_equal(step->seqs[0].tokens[0], MOB_TOKEN_PREVIOUS);
  assert_int_equal(step->seqs[0].start, 10);
  assert_null(plan(&b)); // two are under way
  assert_int_equal(complete(&b), 1);
  step = plan(&b);
  assert_int_equal(step->seqs[0].start, 11);
  complete(&b);
  assert_null(plan(&b)); // max_tokens is on its way: nothing is computed for the bin
  complete(&b);
  assert_int_equal(stats(&b).running, 0);
  finish(&b);
}

static void test_without_ids_on_device_the_token_comes_first(void **state) {
  (void)state;
  mob_sched_config_t config = defaults();
  config.ids_on_device = false;
  bench_t b = start(config);
  add(&b, 10, 3, 0);
  plan(&b);
  assert_null(plan(&b));
  complete(&b);
  assert_int_not_equal(plan(&b)->seqs[0].tokens[0], MOB_TOKEN_PREVIOUS);
  finish(&b);
}

static void test_decodes_come_before_prompt_chunks(void **state) {
  (void)state;
  bench_t b = start(defaults());
  add(&b, 20, 50, 0);
  plan(&b);
  complete(&b);
  add(&b, 300, 5, 0);
  const mob_step_t *step = plan(&b);
  assert_int_equal(step->seq_count, 2);
  assert_int_equal(step->seqs[0].count, 1);
  assert_int_equal(step->seqs[1].count, 127);
  assert_false(step->seqs[1].sample);
  step = plan(&b);
  assert_int_equal(step->seqs[1].start, 127);
  assert_int_equal(step->token_count, 128);
  finish(&b);
}

static void test_without_chunks_a_prompt_has_its_own_step(void **state) {
  (void)state;
  mob_sched_config_t config = defaults();
  config.chunked_prefill = false;
  bench_t b = start(config);
  add(&b, 20, 50, 0);
  plan(&b);
  complete(&b);
  add(&b, 128, 5, 0);
  const mob_step_t *step = plan(&b);
  assert_int_equal(step->seq_count, 1);
  assert_int_equal(step->seqs[0].count, 128);
  assert_int_equal(plan(&b)->seq_count, 2);
  finish(&b);
}

static void test_stages_serve_different_sequences(void **state) {
  (void)state;
  mob_sched_config_t config = defaults();
  config.stages = 2;
  config.depth = 3;
  bench_t b = start(config);
  for (int i = 0; i < 4; i++) add(&b, 8, 50, 0);
  for (int i = 0; i < 6; i++) {
    if (i >= 3) complete(&b);
    plan(&b);
  }
  // From now on every step has half of the sequences, and neighbours have none in common.
  for (int i = 0; i < 8; i++) {
    complete(&b);
    const mob_step_t *step = plan(&b);
    assert_int_equal(step->seq_count, 2);
    const device_step_t *before = &b.device.queue.at[b.device.queue.len - 2];
    for (size_t x = 0; x < before->seqs.len; x++)
      for (uint32_t y = 0; y < step->seq_count; y++)
        assert_int_not_equal(before->seqs.at[x].slot, step->seqs[y].slot);
  }
  finish(&b);
}

static void test_prefix_is_shared_and_counted(void **state) {
  (void)state;
  bench_t b = start(defaults());
  add(&b, 128, 1, 0);
  plan(&b);
  complete(&b);
  mob_sched_seq_t *seq = add(&b, 140, 1, 0);
  const mob_step_t *step = plan(&b);
  assert_int_equal(step->seqs[0].start, 128);
  assert_int_equal(step->seqs[0].count, 12);
  assert_int_equal(mob_sched_cached_tokens(seq), 128);
  complete(&b);
  add(&b, 128, 1,
      0); // the whole prompt is cached: its last page is computed again for a token to sample from
  assert_int_equal(plan(&b)->seqs[0].start, 64);
  assert_int_equal(stats(&b).prefix_hits, 192);
  assert_int_equal(stats(&b).prefix_queries, 128 + 140 + 128);
  finish(&b);
}

static void test_abort_keeps_pages_while_a_step_uses_them(void **state) {
  (void)state;
  mob_sched_config_t config = defaults();
  config.prefix_cache = false;
  bench_t b = start(config);
  mob_sched_seq_t *seq = add(&b, 100, 50, 0);
  plan(&b);
  plan(&b);
  mob_sched_abort(b.sched, seq);
  assert_int_equal(stats(&b).running, 0);
  assert_int_equal(stats(&b).pages_used, 2);
  assert_int_equal(complete(&b), 0);
  assert_int_equal(stats(&b).pages_used, 2);
  assert_int_equal(complete(&b), 0);
  assert_int_equal(stats(&b).pages_used, 0);
  add(&b, 10, 1, 0);
  const mob_step_t *step = plan(&b); // and the slot is closed with the next step
  assert_int_equal(step->close_count, 1);
  assert_int_not_equal(step->close[0], step->open[0].slot);
  finish(&b);
}

static void test_urgent_work_takes_the_pages_of_lower_priority(void **state) {
  (void)state;
  mob_sched_config_t config = defaults();
  config.policy = MOB_SCHED_PRIORITY;
  config.pages = 4;
  config.depth = 1;
  config.prefix_cache = false;
  bench_t b = start(config);
  add(&b, 200, 40, 5);
  plan(&b);
  complete(&b);
  plan(&b);
  complete(&b);
  add(&b, 120, 2, 1);
  while (stats(&b).preemptions == 0) {
    assert_non_null(plan(&b));
    complete(&b);
  }
  for (int i = 0; i < 200 && stats(&b).running + stats(&b).waiting > 0; i++) {
    plan(&b);
    complete(&b);
  }
  assert_int_equal(stats(&b).running + stats(&b).waiting, 0);
  assert_int_equal(stats(&b).generated_tokens, 42);
  finish(&b);
}

static void test_impossible_requests_are_refused(void **state) {
  (void)state;
  mob_sched_config_t config = defaults();
  config.pages = 2;
  bench_t b = start(config);
  int32_t tokens[1000] = {0};
  mob_sched_seq_t *seq;
  mob_sched_request_t r = {.prompt = tokens, .prompt_count = 0, .max_tokens = 1};
  assert_int_equal(mob_sched_add(b.sched, &r, NULL, &seq), MOB_E_INVALID);
  r.prompt_count = 1000;
  assert_int_equal(mob_sched_add(b.sched, &r, NULL, &seq), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "1000"));
  r.prompt_count = 129;
  assert_int_equal(mob_sched_add(b.sched, &r, NULL, &seq), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "128"));
  r.prompt_count = 10;
  r.max_tokens = 0;
  assert_int_equal(mob_sched_add(b.sched, &r, NULL, &seq), MOB_E_INVALID);
  finish(&b);
}

static void test_results_that_do_not_fit_are_refused(void **state) {
  (void)state;
  bench_t b = start(defaults());
  const mob_sched_event_t *events;
  uint32_t count;
  mob_step_result_t result = {.id = 1};
  assert_int_equal(mob_sched_complete(b.sched, &result, &events, &count), MOB_E_FORMAT);
  add(&b, 10, 5, 0);
  const mob_step_t *step = plan(&b);
  assert_int_equal(mob_sched_complete(b.sched, &result, &events, &count), MOB_E_FORMAT); // no token
  mob_sampled_t wrong = {.slot = step->seqs[0].slot + 1, .token = 4};
  result.sampled = &wrong;
  result.sampled_count = 1;
  assert_int_equal(mob_sched_complete(b.sched, &result, &events, &count), MOB_E_FORMAT);
  wrong = (mob_sampled_t){.slot = step->seqs[0].slot, .token = -1};
  assert_int_equal(mob_sched_complete(b.sched, &result, &events, &count), MOB_E_FORMAT);
  wrong.token = 4;
  result.id = 2;
  assert_int_equal(mob_sched_complete(b.sched, &result, &events, &count), MOB_E_FORMAT);
  result.id = 1;
  assert_int_equal(mob_sched_complete(b.sched, &result, &events, &count), MOB_OK);
  assert_int_equal(count, 1);
  finish(&b);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_next_step_is_planned_before_the_token_is_known),
      cmocka_unit_test(test_without_ids_on_device_the_token_comes_first),
      cmocka_unit_test(test_decodes_come_before_prompt_chunks),
      cmocka_unit_test(test_without_chunks_a_prompt_has_its_own_step),
      cmocka_unit_test(test_stages_serve_different_sequences),
      cmocka_unit_test(test_prefix_is_shared_and_counted),
      cmocka_unit_test(test_abort_keeps_pages_while_a_step_uses_them),
      cmocka_unit_test(test_urgent_work_takes_the_pages_of_lower_priority),
      cmocka_unit_test(test_impossible_requests_are_refused),
      cmocka_unit_test(test_results_that_do_not_fit_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
