// Steps as a scheduler makes them: many sequences at once, prompts in chunks beside decodes,
// failures.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/cpu/exec.h"
#include "engine/cpu/amx.h"
#include "golden_case.h"
#include "harness.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

static golden_t golden;

static int set_up(void **state) {
  (void)state;
  golden_load(MOB_SOURCE_DIR "/tests/golden/deepseek_v3/base_fp8.json", &golden);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  golden_free(&golden);
  return 0;
}

static bool fast; // the arithmetic of `auto` instead of exact

static harness_t *open_engine(int tp, int pp) {
  harness_config_t config = {.dir = golden.dir, .tp = tp, .pp = pp, .fast = fast};
  harness_t *h;
  if (harness_open(&config, &h) != MOB_OK) fail_msg("%s", mob_errmsg());
  return h;
}

static mob_sampling_t greedy(void) {
  return (mob_sampling_t){
      .top_p = 1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1};
}

enum { SEQS = 5, GENERATE = 12 };

// Five prompts of different length, prefilled in chunks of `chunk` tokens while those that are
// ready decode.
static void run_batch(harness_t *h, uint32_t chunk, mob_sampling_t sampling,
                      int32_t out[SEQS][GENERATE]) {
  uint32_t lengths[SEQS] = {3, 17, 64, 65, 130}, at[SEQS] = {0}, made[SEQS] = {0}, closed = 0;
  uint32_t pages[SEQS][4];
  uint64_t id = 0;
  for (uint32_t s = 0; s < SEQS; s++)
    for (uint32_t p = 0; p < 4; p++) pages[s][p] = (p * 11 + s * 3) % 64;
  while (closed < SEQS) {
    mob_seq_open_t open[SEQS];
    mob_seq_step_t seqs[SEQS];
    int32_t previous = MOB_TOKEN_PREVIOUS;
    uint32_t close[SEQS];
    mob_step_t step = {.id = ++id, .open = open, .seqs = seqs, .close = close};
    for (uint32_t s = 0; s < SEQS; s++) {
      if (made[s] == GENERATE || (s > 0 && at[s - 1] == 0)) continue; // one starts after the other
      mob_seq_step_t *seq = &seqs[step.seq_count++];
      uint32_t left = lengths[s] > at[s] ? lengths[s] - at[s] : 0;
      *seq = (mob_seq_step_t){.slot = s,
                              .row = step.token_count,
                              .start = at[s],
                              .pages = pages[s],
                              .count = left > chunk ? chunk
                                       : left       ? left
                                                    : 1,
                              .tokens = left ? golden.prompt + at[s] : &previous,
                              .sample = left <= chunk};
      if (at[s] == 0) {
        sampling.seed = 100 + s;
        open[step.open_count++] = (mob_seq_open_t){
            .slot = s, .sampling = sampling, .prompt = golden.prompt, .prompt_count = lengths[s]};
      }
      at[s] += seq->count;
      seq->page_count = (at[s] + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS;
      step.token_count += seq->count;
      if (seq->sample && ++made[s] == GENERATE) {
        close[step.close_count++] = s;
        closed++;
      }
    }
    assert_int_equal(harness_submit(h, &step), MOB_OK); // never waits: ids stay inside
  }
  if (harness_wait(h, id) != MOB_OK) fail_msg("%s", mob_errmsg());
  for (uint32_t s = 0; s < SEQS; s++) {
    uint32_t count;
    const int32_t *tokens = harness_tokens(h, s, &count);
    assert_int_equal(count, GENERATE);
    memcpy(out[s], tokens, sizeof out[s]);
  }
}

static void test_batches_of_any_shape_agree(void **state) {
  (void)state;
  static const int ways[][3] = {{1, 1, 200}, {1, 1, 7},  {1, 2, 32},
                                {2, 1, 32},  {4, 2, 50}, {1, 4, 13}};
  mob_sampling_t sampling = greedy();
  for (int random = 0; random < 2; random++) {
    int32_t expected[SEQS][GENERATE], got[SEQS][GENERATE];
    if (random) {
      sampling.temperature = 0.8f;
      sampling.top_p = 0.9f;
      sampling.frequency_penalty = 0.5f;
    }
    for (size_t i = 0; i < MOB_LEN(ways); i++) {
      harness_t *h = open_engine(ways[i][0], ways[i][1]);
      run_batch(h, (uint32_t)ways[i][2], sampling, i ? got : expected);
      if (i) assert_memory_equal(got, expected, sizeof got);
      harness_close(h);
    }
  }
}

static void test_a_batch_gives_each_sequence_what_it_gets_alone(void **state) {
  (void)state;
  harness_t *h = open_engine(1, 1);
  int32_t batch[SEQS][GENERATE], alone[GENERATE];
  run_batch(h, 200, greedy(), batch);
  harness_close(h);
  uint32_t lengths[SEQS] = {3, 17, 64, 65, 130};
  h = open_engine(1, 1);
  for (uint32_t s = 0; s < SEQS; s++) {
    harness_run_t run = {.prompt = golden.prompt,
                         .prompt_count = lengths[s],
                         .generate = GENERATE,
                         .tokens = alone,
                         .slot = s,
                         .first_page = s};
    assert_int_equal(harness_generate(h, &run), MOB_OK);
    assert_memory_equal(alone, batch[s], sizeof alone);
  }
  harness_close(h);
}

static void test_prompt_logprobs(void **state) {
  (void)state;
  harness_t *h = open_engine(2, 2);
  mob_sampling_t sampling = greedy();
  sampling.prompt_logprobs = 2;
  sampling.logprobs = 4;
  uint32_t pages[] = {5, 6, 7};
  mob_seq_open_t open = {.slot = 3,
                         .sampling = sampling,
                         .prompt = golden.prompt,
                         .prompt_count = golden.prompt_count};
  uint64_t id = 0;
  for (uint32_t at = 0; at < golden.prompt_count; at += 60) {
    uint32_t n = golden.prompt_count - at < 60 ? golden.prompt_count - at : 60;
    mob_seq_step_t seq = {.slot = 3,
                          .start = at,
                          .count = n,
                          .tokens = golden.prompt + at,
                          .pages = pages,
                          .page_count = 3,
                          .sample = at + n == golden.prompt_count};
    mob_step_t step = {.id = ++id,
                       .token_count = n,
                       .seq_count = 1,
                       .seqs = &seq,
                       .open = &open,
                       .open_count = at == 0};
    assert_int_equal(harness_submit(h, &step), MOB_OK);
  }
  assert_int_equal(harness_wait(h, id), MOB_OK);
  uint32_t count;
  const mob_prompt_logprob_t *p = harness_prompt(h, &count);
  assert_int_equal(count, golden.prompt_count - 1); // all but the first
  for (uint32_t i = 0; i < count; i++) {
    assert_int_equal(p[i].position, i + 1);
    assert_int_equal(p[i].chosen.token, golden.prompt[i + 1]);
    assert_true(p[i].chosen.logprob < 0 && p[i].chosen.rank >= 1);
  }
  // The sampled token's against transformers' logits of that row.
  const mob_sampled_t *last = harness_last(h);
  double sum = 0;
  for (int i = 0; i < golden.vocab; i++) sum += exp(golden.logits[i]);
  assert_int_equal(last->token, golden.tokens[0]);
  assert_int_equal(last->chosen.rank, 1);
  assert_true(fabs(last->chosen.logprob - (golden.logits[last->token] - log(sum))) < 1e-3);
  assert_int_equal(last->top_count, 4);
  assert_int_equal(last->top[0].token, last->token);
  assert_true(last->top[1].logprob <= last->top[0].logprob &&
              last->top[3].logprob <= last->top[2].logprob);
  harness_close(h);
}

static void test_malformed_steps_are_refused_and_do_no_harm(void **state) {
  (void)state;
  harness_t *h = open_engine(1, 1);
  int32_t token = 5, outside = 512, negative = -7, previous = MOB_TOKEN_PREVIOUS,
          two[] = {3, MOB_TOKEN_PREVIOUS};
  uint32_t page = 0, far = 256;
  mob_seq_step_t good = {.slot = 0, .count = 1, .tokens = &token, .pages = &page, .page_count = 1};
  struct {
    mob_seq_step_t seq;
    uint32_t tokens;
    const char *says;
  } bad[] = {
      {good, 2, "its sequences have 1 tokens, it says 2"},
      {good, 1000, "the limit is 512"},
      {good, 1, "slot 99 is not below 16"},
      {good, 1, "token id 512"},
      {good, 1, "token id -7"},
      {good, 1, "page 256 is not below 256"},
      {good, 1, "1 pages do not cover 65 tokens"},
      {good, 2, "token id -1"},
      {good, 1, "grows to 5001 tokens"},
      {good, 1, "at row 4, expected row 0"},
  };
  bad[2].seq.slot = 99;
  bad[3].seq.tokens = &outside;
  bad[4].seq.tokens = &negative;
  bad[5].seq.pages = &far;
  bad[6].seq.start = 64;
  bad[7].seq.tokens = two;
  bad[7].seq.count = 2;
  bad[8].seq.start = 5000;
  bad[9].seq.row = 4;
  for (size_t i = 0; i < MOB_LEN(bad); i++) {
    mob_step_t step = {.id = 1, .token_count = bad[i].tokens, .seq_count = 1, .seqs = &bad[i].seq};
    assert_int_equal(harness_submit(h, &step), MOB_E_INVALID);
    if (!strstr(mob_errmsg(), bad[i].says))
      fail_msg("\"%s\" does not say \"%s\"", mob_errmsg(), bad[i].says);
  }
  int32_t tokens[4];
  harness_run_t run = {.prompt = golden.prompt,
                       .prompt_count = golden.prompt_count,
                       .generate = 4,
                       .tokens = tokens};
  assert_int_equal(harness_generate(h, &run), MOB_OK); // still works
  assert_memory_equal(tokens, golden.tokens, sizeof tokens);
  // A slot that nobody opened ends everything: the stages no longer agree about what happened.
  good.tokens = &previous;
  mob_step_t step = {.id = 100, .token_count = 1, .seq_count = 1, .seqs = &good};
  assert_int_equal(harness_submit(h, &step), MOB_OK);
  assert_int_equal(harness_wait(h, 1000), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "slot 0, which no step opened"));
  harness_close(h);
}

typedef struct aborter {
  mob_exec_t *exec;
  useconds_t after;
} aborter_t;

static void *abort_later(void *arg) {
  aborter_t *a = arg;
  usleep(a->after);
  mob_backend_cpu.abort(a->exec);
  return NULL;
}

// A stage that gets no input waits on its link, its followers on rank 0: abort() ends all.
static void test_abort_ends_every_wait_at_once(void **state) {
  (void)state;
  for (int round = 0; round < 4; round++) {
    harness_t *h = open_engine(4, 2);
    aborter_t a = {harness_exec(h, round % 2), (useconds_t)(round * 3000)};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, abort_later, &a), 0);
    int32_t tokens[400];
    harness_run_t run = {.prompt = golden.prompt,
                         .prompt_count = golden.prompt_count,
                         .generate = 400,
                         .queue = true,
                         .tokens = tokens};
    uint64_t begin = mob_now_ms();
    mob_status status = harness_generate(h, &run);
    pthread_join(thread, NULL);
    assert_true(status == MOB_E_ABORTED || status == MOB_E_UNAVAILABLE);
    harness_close(h);
    assert_true(mob_now_ms() - begin < 3000);
  }
}

static void test_idle_executor_closes_and_aborts(void **state) {
  (void)state;
  harness_t *h = open_engine(8, 1);
  mob_backend_cpu.abort(harness_exec(h, 0));
  mob_backend_cpu.abort(harness_exec(h, 0));
  harness_close(h);
  harness_close(open_engine(3 - 1, 2)); // never used
}

static void test_closing_while_steps_wait_for_a_peer(void **state) {
  (void)state;
  harness_t *h = open_engine(2, 2);
  int32_t token = 5;
  uint32_t page = 0;
  mob_seq_open_t open = {.sampling = greedy(), .prompt = &token, .prompt_count = 1};
  mob_seq_step_t seq = {
      .count = 1, .tokens = &token, .pages = &page, .page_count = 1, .sample = true};
  mob_step_t step = {
      .id = 1, .token_count = 1, .seq_count = 1, .seqs = &seq, .open = &open, .open_count = 1};
  harness_submit_to(h, 1, &step); // the first stage never hears of it
  uint64_t begin = mob_now_ms();
  harness_close(h);
  assert_true(mob_now_ms() - begin < 2000);
}

static void test_dummy_weights_are_cut_like_real_ones(void **state) {
  (void)state;
  int32_t tokens[3][8];
  static const int ways[3][2] = {{1, 1}, {4, 1}, {2, 2}};
  for (int i = 0; i < 3; i++) {
    harness_config_t config = {
        .dir = golden.dir, .tp = ways[i][0], .pp = ways[i][1], .dummy = true};
    harness_t *h;
    if (harness_open(&config, &h) != MOB_OK) fail_msg("%s", mob_errmsg());
    harness_run_t run = {
        .prompt = golden.prompt, .prompt_count = 40, .generate = 8, .tokens = tokens[i]};
    if (harness_generate(h, &run) != MOB_OK) fail_msg("%s", mob_errmsg());
    harness_close(h);
    assert_memory_equal(tokens[i], tokens[0], sizeof tokens[0]);
  }
}

static void test_plan_says_what_fits(void **state) {
  (void)state;
  harness_t *h = open_engine(2, 1);
  mob_memory_plan_t plan;
  assert_int_equal(mob_backend_cpu.plan(harness_exec(h, 0), &plan), MOB_OK);
  const mob_model_desc_t *d = harness_desc(h);
  assert_int_equal(plan.page_bytes,
                   (uint64_t)d->n_layers * 64 * (uint64_t)(d->kv_lora + d->qk_rope) * 4);
  assert_true(plan.pages > 0 && plan.weights > 0 && plan.workspace > 0);
  assert_non_null(strstr(plan.text, "pages"));
  harness_close(h);
}

static void test_what_does_not_divide_is_named(void **state) {
  (void)state;
  static const struct {
    int tp;
    bool experts;
    const char *says;
  } cases[] = {{3, false, "8 attention heads do not divide over 3"},
               {16, false, "do not divide over 16"}};
  for (size_t i = 0; i < MOB_LEN(cases); i++) {
    harness_config_t config = {
        .dir = golden.dir, .tp = cases[i].tp, .pp = 1, .expert_parallel = cases[i].experts};
    harness_t *h;
    assert_int_equal(harness_open(&config, &h), MOB_E_INVALID);
    if (!strstr(mob_errmsg(), cases[i].says)) fail_msg("\"%s\"", mob_errmsg());
  }
}

static void test_resumed_sequence_goes_on_as_if_never_stopped(void **state) {
  (void)state;
  mob_sampling_t sampling = greedy();
  sampling.temperature = 1;
  sampling.seed = 7;
  sampling.presence_penalty = 1;
  int32_t tokens[8];
  for (int resumed = 0; resumed < 2; resumed++) {
    harness_t *h = open_engine(1, 1);
    uint32_t pages[] = {1, 2, 3}, length = 20, count;
    int32_t history[40];
    memcpy(history, golden.prompt, length * sizeof *history);
    if (resumed) {
      memcpy(history + length, tokens, 4 * sizeof *history);
      length += 4;
    }
    mob_seq_open_t open = {.sampling = sampling,
                           .prompt = history,
                           .prompt_count = length,
                           .generated = resumed ? 4 : 0};
    mob_seq_step_t seq = {
        .count = length, .tokens = history, .pages = pages, .page_count = 3, .sample = true};
    mob_step_t step = {.id = 1,
                       .token_count = length,
                       .seq_count = 1,
                       .seqs = &seq,
                       .open = &open,
                       .open_count = 1};
    assert_int_equal(harness_submit(h, &step), MOB_OK);
    int32_t previous = MOB_TOKEN_PREVIOUS;
    uint64_t last = resumed ? 4 : 8;
    for (uint64_t id = 2; id <= last; id++) {
      seq = (mob_seq_step_t){.start = length + (uint32_t)id - 2,
                             .count = 1,
                             .tokens = &previous,
                             .pages = pages,
                             .page_count = 3,
                             .sample = true};
      step = (mob_step_t){.id = id, .token_count = 1, .seq_count = 1, .seqs = &seq};
      assert_int_equal(harness_submit(h, &step), MOB_OK);
    }
    assert_int_equal(harness_wait(h, last), MOB_OK);
    const int32_t *got = harness_tokens(h, 0, &count);
    if (resumed)
      assert_memory_equal(got, tokens + 4, 4 * sizeof *got);
    else
      memcpy(tokens, got, sizeof tokens);
    harness_close(h);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_batches_of_any_shape_agree),
      cmocka_unit_test(test_a_batch_gives_each_sequence_what_it_gets_alone),
      cmocka_unit_test(test_prompt_logprobs),
      cmocka_unit_test(test_malformed_steps_are_refused_and_do_no_harm),
      cmocka_unit_test(test_abort_ends_every_wait_at_once),
      cmocka_unit_test(test_idle_executor_closes_and_aborts),
      cmocka_unit_test(test_closing_while_steps_wait_for_a_peer),
      cmocka_unit_test(test_dummy_weights_are_cut_like_real_ones),
      cmocka_unit_test(test_plan_says_what_fits),
      cmocka_unit_test(test_what_does_not_divide_is_named),
      cmocka_unit_test(test_resumed_sequence_goes_on_as_if_never_stopped),
  };
  const struct CMUnitTest with_tiles[] = {
      cmocka_unit_test(test_batches_of_any_shape_agree),
      cmocka_unit_test(test_a_batch_gives_each_sequence_what_it_gets_alone),
  };
  int failed = cmocka_run_group_tests_name("exact", tests, set_up, tear_down);
  fast = true;
  return mob_amx_usable()
             ? failed + cmocka_run_group_tests_name("auto", with_tiles, set_up, tear_down)
             : failed;
}
