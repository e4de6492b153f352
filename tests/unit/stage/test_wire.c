// Steps and results over the wire: what goes in comes out, and nonsense is refused by name.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "engine/stage/wire.h"
#include "runtime/rpc/message.h"

static const mob__step_limits_t limits = {
    .pages = 100, .max_tokens = 200, .max_len = 300, .vocab = 50};

typedef struct ends {
  mob__tables_t sender, receiver;
  mob_arena_t arena;
  Mobula__StageDown *down;
  mob_step_t step;
} ends_t;

static ends_t *new_ends(void) {
  ends_t *e = MOB_NEW(ends_t);
  mob__tables_init(&e->sender, 4);
  mob__tables_init(&e->receiver, 4);
  return e;
}

static void free_ends(ends_t *e) {
  mob__tables_free(&e->sender);
  mob__tables_free(&e->receiver);
  mob_arena_free(&e->arena);
  mob_pb_free(e->down);
  free(e);
}

static mob_status carry(ends_t *e, const mob_step_t *step) {
  mob_buf_t bytes = {0};
  mob__wire_plan(&e->sender, 7, step, &bytes);
  mob_arena_free(&e->arena);
  mob_pb_free(e->down);
  e->down = NULL;
  assert_int_equal(mob_pb_unpack(&mobula__stage_down__descriptor, bytes.data, bytes.len, &e->down),
                   MOB_OK);
  mob_buf_free(&bytes);
  assert_int_equal(e->down->message_case, MOBULA__STAGE_DOWN__MESSAGE_PLAN);
  assert_int_equal(e->down->plan->epoch, 7);
  return mob__wire_read_plan(&e->receiver, &limits, e->down->plan, &e->arena, &e->step);
}

static int32_t prompt[70];
static const uint32_t two_pages[] = {90, 3}, three_pages[] = {90, 3, 11}, others[] = {40, 41};

static mob_seq_open_t opening(uint32_t slot) {
  static const int32_t stops[] = {1, 2}, allowed[] = {5, 6, 7};
  static const mob_logit_bias_t bias[] = {{4, 1.5f}, {9, -100}};
  for (int i = 0; i < 70; i++) prompt[i] = i % 50;
  return (mob_seq_open_t){
      .slot = slot,
      .sampling = {.temperature = 0.6f,
                   .top_p = 0.95f,
                   .min_p = 0.01f,
                   .top_k = -1,
                   .repetition_penalty = 1.1f,
                   .frequency_penalty = -0.5f,
                   .presence_penalty = 0.25f,
                   .seed = 0xfedcba9876543210u,
                   .min_tokens = 3,
                   .stop_ids = stops,
                   .stop_id_count = 2,
                   .bias = bias,
                   .bias_count = 2,
                   .allowed = allowed,
                   .allowed_count = 3,
                   .logprobs = 0,
                   .prompt_logprobs = -1},
      .prompt = prompt,
      .prompt_count = 70,
      .generated = 4,
  };
}

static mob_seq_step_t prefill(uint32_t slot) {
  return (mob_seq_step_t){.slot = slot,
                          .count = 70,
                          .tokens = prompt,
                          .pages = two_pages,
                          .page_count = 2,
                          .sample = true};
}

static mob_step_t step_of(uint64_t id, mob_seq_open_t *open, mob_seq_step_t *seq, uint32_t *close) {
  return (mob_step_t){.id = id,
                      .token_count = seq ? seq->count : 0,
                      .open = open,
                      .open_count = open != NULL,
                      .seqs = seq,
                      .seq_count = seq != NULL,
                      .close = close,
                      .close_count = close != NULL};
}

static void test_plan_round_trip(void **state) {
  (void)state;
  ends_t *e = new_ends();
  mob_seq_open_t open = opening(2);
  mob_seq_step_t seq = prefill(2);
  mob_step_t step = step_of(1, &open, &seq, NULL);
  assert_int_equal(carry(e, &step), MOB_OK);
  const mob_seq_open_t *o = &e->step.open[0];
  assert_int_equal(o->slot, 2);
  assert_int_equal(o->prompt_count, 70);
  assert_int_equal(o->generated, 4);
  assert_memory_equal(o->prompt, prompt, sizeof prompt);
  const mob_sampling_t *a = &o->sampling, *b = &open.sampling;
  assert_true(a->temperature == b->temperature && a->top_p == b->top_p && a->min_p == b->min_p);
  assert_true(a->top_k == b->top_k && a->seed == b->seed && a->min_tokens == b->min_tokens);
  assert_true(a->repetition_penalty == b->repetition_penalty);
  assert_true(a->frequency_penalty == b->frequency_penalty &&
              a->presence_penalty == b->presence_penalty);
  assert_true(a->logprobs == 0 && a->prompt_logprobs == -1);
  assert_memory_equal(a->stop_ids, b->stop_ids, 8);
  assert_memory_equal(a->allowed, b->allowed, 12);
  assert_memory_equal(a->bias, b->bias, 2 * sizeof *b->bias);
  const mob_seq_step_t *q = &e->step.seqs[0];
  assert_true(q->slot == 2 && q->start == 0 && q->count == 70 && q->sample && q->page_count == 2);
  assert_memory_equal(q->tokens, prompt, sizeof prompt);
  assert_memory_equal(q->pages, two_pages, 8);
  free_ends(e);
}

static void test_block_tables_travel_as_changes(void **state) {
  (void)state;
  ends_t *e = new_ends();
  mob_seq_open_t open = opening(0);
  mob_seq_step_t seq = prefill(0);
  mob_step_t step = step_of(1, &open, &seq, NULL);
  assert_int_equal(carry(e, &step), MOB_OK);
  static const int32_t previous = MOB_TOKEN_PREVIOUS;
  mob_seq_step_t decode = {.slot = 0,
                           .start = 70,
                           .count = 1,
                           .tokens = &previous,
                           .pages = two_pages,
                           .page_count = 2,
                           .sample = true};
  step = step_of(2, NULL, &decode, NULL);
  assert_int_equal(carry(e, &step), MOB_OK);
  assert_int_equal(e->down->plan->sequences[0]->n_new_pages, 0);
  assert_int_equal(e->step.seqs[0].tokens[0], MOB_TOKEN_PREVIOUS);
  assert_int_equal(e->step.seqs[0].page_count, 2);
  mob_seq_step_t grown = {
      .slot = 0, .start = 128, .count = 2, .tokens = prompt, .pages = three_pages, .page_count = 3};
  step = step_of(3, NULL, &grown, NULL);
  assert_int_equal(carry(e, &step), MOB_OK);
  assert_int_equal(e->down->plan->sequences[0]->n_new_pages, 1);
  assert_memory_equal(e->step.seqs[0].pages, three_pages, 12);
  mob_seq_step_t moved = {
      .slot = 0, .count = 70, .tokens = prompt, .pages = others, .page_count = 2};
  step = step_of(4, NULL, &moved, NULL);
  assert_int_equal(carry(e, &step), MOB_OK);
  assert_memory_equal(e->step.seqs[0].pages, others, 8);
  uint32_t slot = 0;
  mob_seq_open_t again = opening(1);
  mob_seq_step_t next = prefill(1);
  step = step_of(5, &again, &next, &slot);
  assert_int_equal(carry(e, &step), MOB_OK);
  assert_int_equal(e->step.close[0], 0);
  assert_int_equal(carry(e, &step), MOB_E_FORMAT); // slot 1 is open, slot 0 closed
  free_ends(e);
}

static void refused(void (*spoil)(mob_seq_open_t *, mob_seq_step_t *), const char *name) {
  ends_t *e = new_ends();
  mob_seq_open_t open = opening(0);
  mob_seq_step_t seq = prefill(0);
  spoil(&open, &seq);
  mob_step_t step = step_of(1, &open, &seq, NULL);
  assert_int_equal(carry(e, &step), MOB_E_FORMAT);
  if (!strstr(mob_errmsg(), name)) fail_msg("'%s' does not name %s", mob_errmsg(), name);
  free_ends(e);
}

static const uint32_t far_pages[] = {1, 100};
static int32_t bad_tokens[201];

static void far_page(mob_seq_open_t *o, mob_seq_step_t *q) {
  (void)o;
  q->pages = far_pages;
}
static void few_pages(mob_seq_open_t *o, mob_seq_step_t *q) {
  (void)o;
  q->page_count = 1;
}
static void many_rows(mob_seq_open_t *o, mob_seq_step_t *q) {
  (void)o;
  memset(bad_tokens, 0, sizeof bad_tokens);
  q->tokens = bad_tokens;
  q->count = 201;
}
static void too_long(mob_seq_open_t *o, mob_seq_step_t *q) {
  (void)o;
  q->start = 250;
}
static void odd_token(mob_seq_open_t *o, mob_seq_step_t *q) {
  (void)o;
  memset(bad_tokens, 0, sizeof bad_tokens);
  bad_tokens[69] = 50;
  q->tokens = bad_tokens;
}
static void odd_prompt(mob_seq_open_t *o, mob_seq_step_t *q) {
  (void)q;
  memset(bad_tokens, 0, sizeof bad_tokens);
  bad_tokens[3] = -7;
  o->prompt = bad_tokens;
}
static void all_generated(mob_seq_open_t *o, mob_seq_step_t *q) {
  (void)q;
  o->generated = 70;
}
static void many_logprobs(mob_seq_open_t *o, mob_seq_step_t *q) {
  (void)q;
  o->sampling.logprobs = 21;
}
static void closed_slot(mob_seq_open_t *o, mob_seq_step_t *q) {
  (void)o;
  q->slot = 3;
}

static void test_bad_plans_are_refused_by_name(void **state) {
  (void)state;
  refused(far_page, "page 100");
  refused(few_pages, "pages of a sequence");
  refused(many_rows, "rows 201");
  refused(too_long, "length of a sequence 320");
  refused(odd_token, "token id 50");
  refused(odd_prompt, "prompt id");
  refused(all_generated, "generated");
  refused(many_logprobs, "logprobs 21");
  refused(closed_slot, "closed slot 3");
}

// Whatever bytes come: an error or a step within the limits, never a crash.
static void test_damaged_bytes(void **state) {
  (void)state;
  mob_seq_open_t open = opening(1);
  mob_seq_step_t seq = prefill(1);
  mob_step_t step = step_of(1, &open, &seq, NULL);
  mob__tables_t sender;
  mob__tables_init(&sender, 4);
  mob_buf_t good = {0};
  mob__wire_plan(&sender, 7, &step, &good);
  mob__tables_free(&sender);
  uint64_t random = 1;
  for (int round = 0; round < 20000; round++) {
    uint8_t *bytes = mob_malloc(good.len);
    memcpy(bytes, good.data, good.len);
    size_t len = good.len;
    for (int i = 0; i < 1 + round % 3; i++) {
      random = random * 6364136223846793005u + 1442695040888963407u;
      bytes[(random >> 20) % len] = (uint8_t)(random >> 50);
    }
    if (round % 5 == 0) len = (random >> 33) % len;
    Mobula__StageDown *down = NULL;
    if (mob_pb_unpack(&mobula__stage_down__descriptor, bytes, len, &down) == MOB_OK) {
      mob__tables_t tables;
      mob__tables_init(&tables, 4);
      mob_arena_t arena = {0};
      mob_step_t out;
      if (down->message_case == MOBULA__STAGE_DOWN__MESSAGE_PLAN &&
          mob__wire_read_plan(&tables, &limits, down->plan, &arena, &out) == MOB_OK) {
        assert_true(out.token_count > 0 && out.token_count <= limits.max_tokens);
        for (uint32_t i = 0; i < out.seqs[0].page_count; i++)
          assert_true(out.seqs[0].pages[i] < 100);
      }
      mob_arena_free(&arena);
      mob__tables_free(&tables);
      mob_pb_free(down);
    }
    free(bytes);
  }
  mob_buf_free(&good);
}

static void test_result_round_trip(void **state) {
  (void)state;
  mob_token_logprob_t top[2] = {{5, -0.5f, 1}, {6, -1.5f, 2}};
  mob_sampled_t sampled[2] = {
      {.slot = 3, .token = 6, .chosen = {6, -1.5f, 2}, .top = top, .top_count = 2},
      {.slot = 0, .token = 49}};
  mob_prompt_logprob_t before[1] = {
      {.slot = 1, .position = 9, .chosen = {7, -3, 17}, .top = top, .top_count = 1}};
  mob_step_result_t in = {.id = 44,
                          .sampled = sampled,
                          .sampled_count = 2,
                          .prompt = before,
                          .prompt_count = 1,
                          .compute_ns = 123456789};
  mob_buf_t bytes = {0};
  mob__wire_result(9, &in, &bytes);
  Mobula__StageUp *up = NULL;
  assert_int_equal(mob_pb_unpack(&mobula__stage_up__descriptor, bytes.data, bytes.len, &up),
                   MOB_OK);
  assert_int_equal(up->message_case, MOBULA__STAGE_UP__MESSAGE_RESULT);
  assert_int_equal(up->result->epoch, 9);
  mob_arena_t arena = {0};
  mob_step_result_t out;
  assert_int_equal(mob__wire_read_result(up->result, &arena, &out), MOB_OK);
  assert_true(out.id == 44 && out.sampled_count == 2 && out.prompt_count == 1 &&
              out.compute_ns == 123456789);
  assert_true(out.sampled[0].slot == 3 && out.sampled[0].token == 6 &&
              out.sampled[0].top_count == 2);
  assert_memory_equal(out.sampled[0].top, top, sizeof top);
  assert_true(out.sampled[0].chosen.rank == 2 && out.sampled[0].chosen.logprob == -1.5f);
  assert_true(out.sampled[1].slot == 0 && out.sampled[1].token == 49 &&
              out.sampled[1].top_count == 0);
  assert_true(out.prompt[0].position == 9 && out.prompt[0].chosen.rank == 17);
  mob_arena_free(&arena);
  mob_pb_free(up);
  mob_buf_free(&bytes);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_plan_round_trip),
      cmocka_unit_test(test_block_tables_travel_as_changes),
      cmocka_unit_test(test_bad_plans_are_refused_by_name),
      cmocka_unit_test(test_damaged_bytes),
      cmocka_unit_test(test_result_round_trip),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
