// Generation through the engine's interface, with stages as threads of this process on the CPU
// backend.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>

#include "tiny.h"

enum { SEQS = 6, TOKENS = 24 };

typedef struct streams {
  int32_t tokens[SEQS][TOKENS];
} streams_t;

static mob_engine_stats_t last_stats;

// Several sequences of different lengths at once, greedy.
static streams_t generate(mob_engine_config_t config) {
  static const uint32_t lengths[SEQS] = {1, 5, 64, 65, 130, 200};
  tiny_t *t = MOB_NEW(tiny_t);
  streams_t out;
  tiny_start(t, config);
  for (uint32_t i = 0; i < SEQS; i++) tiny_add(t, lengths[i], i, TOKENS);
  tiny_wait_all(t);
  for (int i = 0; i < SEQS; i++) {
    assert_int_equal(t->gens[i].finish, MOB_FINISH_LENGTH);
    assert_int_equal(t->gens[i].count, TOKENS);
    memcpy(out.tokens[i], t->gens[i].tokens, sizeof out.tokens[i]);
  }
  mob_engine_stats(t->engine, &last_stats);
  assert_int_equal(last_stats.pages_used, 0);
  assert_int_equal(last_stats.generated_tokens, SEQS * TOKENS);
  tiny_stop(t);
  free(t);
  return out;
}

static void assert_same(const streams_t *a, const streams_t *b) {
  for (int i = 0; i < SEQS; i++)
    assert_memory_equal(a->tokens[i], b->tokens[i], sizeof a->tokens[i]);
}

static streams_t reference;

static int make_reference(void **state) {
  (void)state;
  reference = generate(tiny_config());
  return 0;
}

static void test_streams_are_not_trivial(void **state) {
  (void)state;
  for (int i = 0; i < SEQS; i++) {
    int different = 0;
    for (int j = 1; j < TOKENS; j++) different += reference.tokens[i][j] != reference.tokens[i][0];
    assert_true(different > 2);
  }
}

static void test_tensor_parallel_gives_the_same_tokens(void **state) {
  (void)state;
  for (int tp = 2; tp <= 8; tp *= 2) {
    mob_engine_config_t config = tiny_config();
    config.tp = tp;
    streams_t got = generate(config);
    assert_same(&got, &reference);
  }
}

static void test_pipeline_gives_the_same_tokens(void **state) {
  (void)state;
  for (int pp = 2; pp <= 4; pp++) {
    mob_engine_config_t config = tiny_config();
    config.pp = pp;
    config.tp = pp == 2 ? 2 : 1;
    streams_t got = generate(config);
    assert_same(&got, &reference);
  }
}

static void test_chunks_and_whole_prompts_give_the_same_tokens(void **state) {
  (void)state;
  mob_engine_config_t config = tiny_config();
  config.max_batched_tokens = 16;
  streams_t got = generate(config);
  assert_same(&got, &reference);
  config.max_batched_tokens = 512;
  config.chunked_prefill = false;
  got = generate(config);
  assert_same(&got, &reference);
}

static void test_preemption_gives_the_same_tokens(void **state) {
  (void)state;
  mob_engine_config_t config = tiny_config();
  config.pages = 5;
  config.prefix_cache = false;
  streams_t got = generate(config);
  assert_same(&got, &reference);
  config.pp = 2;
  got = generate(config);
  assert_same(&got, &reference);
}

static void test_prefix_hit_gives_the_same_tokens(void **state) {
  (void)state;
  tiny_t *t = MOB_NEW(tiny_t);
  tiny_start(t, tiny_config());
  tiny_gen_t *miss = tiny_add(t, 200, 3, 40);
  tiny_wait_all(t);
  tiny_gen_t *hit = tiny_add(t, 200, 3, 40);
  tiny_wait_all(t);
  assert_int_equal(miss->cached, 0);
  assert_int_equal(hit->cached, 192);
  assert_memory_equal(hit->tokens, miss->tokens, 40 * sizeof(int32_t));
  tiny_stop(t);
  free(t);
}

static void test_seeded_sampling_does_not_depend_on_the_batch(void **state) {
  (void)state;
  int32_t prompt[] = {5, 6, 7, 8, 9};
  mob_gen_request_t request = {.prompt = prompt,
                               .prompt_count = 5,
                               .max_tokens = 30,
                               .ignore_eos = true,
                               .sampling = {.temperature = 1,
                                            .top_p = 0.95f,
                                            .top_k = 40,
                                            .repetition_penalty = 1,
                                            .seed = 42,
                                            .logprobs = -1,
                                            .prompt_logprobs = -1}};
  tiny_t *t = MOB_NEW(tiny_t);
  tiny_start(t, tiny_config());
  tiny_gen_t *alone = tiny_request(t, &request);
  tiny_wait_all(t);
  tiny_add(t, 100, 1, 20);
  tiny_gen_t *together = tiny_request(t, &request);
  request.sampling.seed = 43;
  tiny_gen_t *other = tiny_request(t, &request);
  request.draw_seed = true;
  tiny_gen_t *drawn = tiny_request(t, &request), *drawn_again = tiny_request(t, &request);
  tiny_wait_all(t);
  assert_memory_equal(alone->tokens, together->tokens, 30 * sizeof(int32_t));
  assert_memory_not_equal(alone->tokens, other->tokens, 30 * sizeof(int32_t));
  assert_memory_not_equal(drawn->tokens, drawn_again->tokens, 30 * sizeof(int32_t));
  tiny_stop(t);
  free(t);
}

static void test_stop_ids_and_limits_end_a_sequence(void **state) {
  (void)state;
  tiny_t *t = MOB_NEW(tiny_t);
  mob_engine_config_t config = tiny_config();
  config.max_len = 40;
  tiny_start(t, config);
  tiny_gen_t *free_run = tiny_add(t, 20, 4, 500);
  tiny_wait_all(t);
  assert_int_equal(free_run->count, 20); // max_len
  assert_int_equal(free_run->finish, MOB_FINISH_LENGTH);
  int32_t prompt[20], stop[2] = {100000, free_run->tokens[9]};
  uint32_t first = 0;
  while (free_run->tokens[first] != stop[1]) first++;
  for (uint32_t i = 0; i < 20; i++) prompt[i] = (int32_t)(2 + (i * 7 + 4 * 31 + i * i % 13) % 250);
  mob_gen_request_t request = {
      .prompt = prompt,
      .prompt_count = 20,
      .max_tokens = 20,
      .ignore_eos = true,
      .stop_token_ids = stop,
      .stop_token_count = 2,
      .sampling = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1}};
  tiny_gen_t *stopped = tiny_request(t, &request);
  tiny_wait_all(t);
  assert_int_equal(stopped->finish, MOB_FINISH_STOP);
  assert_int_equal(stopped->count, first + 1);
  request.sampling.min_tokens = first + 3;
  tiny_gen_t *later = tiny_request(t, &request);
  tiny_wait_all(t);
  assert_true(later->count > first + 3 || later->finish == MOB_FINISH_LENGTH);
  tiny_stop(t);
  free(t);
}

static void test_prompt_logprobs_come_once_and_in_order(void **state) {
  (void)state;
  int32_t prompt[150];
  for (int i = 0; i < 150; i++) prompt[i] = 2 + i % 200;
  mob_gen_request_t request = {
      .prompt = prompt,
      .prompt_count = 150,
      .max_tokens = 30,
      .ignore_eos = true,
      .sampling = {.top_p = 1, .repetition_penalty = 1, .logprobs = 2, .prompt_logprobs = 1}};
  for (int few = 0; few < 2; few++) {
    tiny_t *t = MOB_NEW(tiny_t);
    mob_engine_config_t config = tiny_config();
    config.max_batched_tokens = 48;
    if (few) config.pages = 4; // the two are preempted in turn
    tiny_start(t, config);
    tiny_gen_t *a = tiny_request(t, &request), *b = tiny_request(t, &request);
    tiny_wait_all(t);
    assert_int_equal(a->prompt_logprobs, 149);
    assert_int_equal(b->prompt_logprobs, 149);
    assert_memory_equal(a->tokens, b->tokens, 30 * sizeof(int32_t));
    tiny_stop(t);
    free(t);
  }
}

static void test_abort_frees_its_pages(void **state) {
  (void)state;
  tiny_t *t = MOB_NEW(tiny_t);
  mob_engine_config_t config = tiny_config();
  config.pp = 2;
  tiny_start(t, config);
  tiny_gen_t *a = tiny_add(t, 100, 1, 300), *b = tiny_add(t, 100, 2, 40);
  a->abort_after = 5;
  tiny_wait_all(t);
  assert_int_equal(a->finish, MOB_FINISH_ABORT);
  assert_int_equal(a->count, 5);
  assert_int_equal(b->count, 40);
  tiny_gen_t *c = tiny_add(t, 10, 3, 2); // its steps bring the last over-run step home
  tiny_wait_all(t);
  assert_int_equal(c->count, 2);
  mob_engine_stats_t stats;
  mob_engine_stats(t->engine, &stats);
  assert_int_equal(stats.pages_used, 0);
  tiny_stop(t);
  free(t);
}

static void test_bad_requests_are_refused(void **state) {
  (void)state;
  tiny_t *t = MOB_NEW(tiny_t);
  tiny_start(t, tiny_config());
  int32_t prompt[600] = {1000};
  mob_gen_request_t request = {.prompt = prompt, .prompt_count = 1, .max_tokens = 5};
  mob_gen_events_t events = {0};
  mob_gen_t *gen;
  assert_int_equal(mob_engine_generate(t->engine, &request, &events, t, &gen), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "1000"));
  prompt[0] = 3;
  request.prompt_count = 600;
  assert_int_equal(mob_engine_generate(t->engine, &request, &events, t, &gen), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "512"));
  tiny_stop(t);
  free(t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_streams_are_not_trivial),
      cmocka_unit_test(test_tensor_parallel_gives_the_same_tokens),
      cmocka_unit_test(test_pipeline_gives_the_same_tokens),
      cmocka_unit_test(test_chunks_and_whole_prompts_give_the_same_tokens),
      cmocka_unit_test(test_preemption_gives_the_same_tokens),
      cmocka_unit_test(test_prefix_hit_gives_the_same_tokens),
      cmocka_unit_test(test_seeded_sampling_does_not_depend_on_the_batch),
      cmocka_unit_test(test_stop_ids_and_limits_end_a_sequence),
      cmocka_unit_test(test_prompt_logprobs_come_once_and_in_order),
      cmocka_unit_test(test_abort_frees_its_pages),
      cmocka_unit_test(test_bad_requests_are_refused),
  };
  return cmocka_run_group_tests(tests, make_reference, NULL);
}
