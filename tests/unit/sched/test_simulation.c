// Random traffic against the scheduler, under every combination of its switches.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>

#include "device.h"

typedef struct request {
  mob_sched_seq_t *seq; // NULL when ended
  int32_t *prompt;
  uint32_t prompt_count, max_tokens, min_tokens;
  uint64_t seed;
  int priority;
  bool ignore_eos, prompt_logprobs, opened;
  uint64_t hash; // of prompt and outputs so far
  uint32_t outputs, logprobs_seen;
  int end; // mob_sched_finish_t, -1 aborted
} request_t;

typedef struct sim {
  mob_sched_config_t config;
  mob_sched_t *sched;
  device_t device;
  uint64_t random;
  MOB_VEC(request_t *) requests;
  size_t alive;
  uint64_t arrivals;
  uint64_t opened; // arrival number of the last sequence that got a slot
} sim_t;

static uint32_t draw(sim_t *sim, uint32_t below) {
  sim->random = sim->random * 6364136223846793005u + 1442695040888963407u;
  return (uint32_t)(sim->random >> 33) % below;
}

static void arrive(sim_t *sim) {
  request_t *r = MOB_NEW(request_t);
  // Many prompts share their beginning, so that the prefix cache has something to find.
  uint32_t longest = (uint32_t)sim->config.pages * MOB_PAGE_TOKENS;
  if (longest > 400) longest = 400;
  r->prompt_count = 1 + draw(sim, draw(sim, 4) ? longest / 3 : longest);
  r->prompt = MOB_NEW_ARRAY(int32_t, r->prompt_count);
  uint32_t common = draw(sim, 3) * 70, kind = draw(sim, 3);
  for (uint32_t i = 0; i < r->prompt_count; i++) {
    r->prompt[i] = (int32_t)(i < common ? (i * 7 + kind) % DEVICE_VOCAB : draw(sim, DEVICE_VOCAB));
    r->hash = device_hash(r->hash, r->prompt[i]);
  }
  r->max_tokens = 1 + draw(sim, 150);
  r->min_tokens = draw(sim, 4) ? 0 : draw(sim, 40);
  r->seed = ++sim->arrivals;
  r->ignore_eos = draw(sim, 2);
  r->prompt_logprobs = draw(sim, 8) == 0;
  r->priority = (int)draw(sim, 3);
  static const int32_t eos[] = {DEVICE_EOS};
  mob_sched_request_t request = {
      .prompt = r->prompt,
      .prompt_count = r->prompt_count,
      .max_tokens = r->max_tokens,
      .ignore_eos = r->ignore_eos,
      .eos_ids = eos,
      .eos_count = 1,
      .priority = r->priority,
      .sampling = {.seed = r->seed,
                   .min_tokens = r->min_tokens,
                   .logprobs = -1,
                   .prompt_logprobs = r->prompt_logprobs ? 0 : -1},
  };
  if (mob_sched_add(sim->sched, &request, r, &r->seq) != MOB_OK) {
    assert_true(r->prompt_count >= (uint32_t)sim->config.max_len);
    free(r->prompt);
    free(r);
    return;
  }
  *mob_vec_push(&sim->requests) = r;
  sim->alive++;
}

static void on_event(sim_t *sim, const mob_sched_event_t *e) {
  request_t *r = e->owner;
  assert_non_null(r->seq);
  for (uint32_t i = 0; i < e->prompt_count; i++) {
    assert_true(r->prompt_logprobs);
    assert_int_equal(e->prompt[i].position, ++r->logprobs_seen);
    assert_true(r->logprobs_seen < r->prompt_count);
    assert_int_equal(e->prompt[i].chosen.token, r->prompt[r->logprobs_seen]);
  }
  if (!e->token) return;
  if (r->prompt_logprobs) assert_true(r->logprobs_seen + 1 >= r->prompt_count);
  assert_int_equal(e->token->token, device_sample(r->hash, r->seed));
  r->hash = device_hash(r->hash, e->token->token);
  r->outputs++;
  bool stop = e->token->token == DEVICE_EOS && !r->ignore_eos && r->outputs > r->min_tokens;
  bool full = r->outputs == r->max_tokens ||
              r->prompt_count + r->outputs == (uint32_t)sim->config.max_len ||
              r->prompt_count + r->outputs == sim->config.pages * MOB_PAGE_TOKENS + 1;
  assert_int_equal(e->finish, stop ? MOB_SCHED_STOP : full ? MOB_SCHED_LENGTH : MOB_SCHED_RUNNING);
  if (e->finish == MOB_SCHED_RUNNING) return;
  r->end = (int)e->finish;
  r->seq = NULL;
  sim->alive--;
}

// First come, first served: nobody gets its first slot before an older sequence.
static void on_open(sim_t *sim, uint64_t arrival) {
  for (size_t i = 0; i < sim->requests.len; i++) {
    request_t *r = sim->requests.at[i];
    if (r->seed != arrival || r->opened) continue;
    r->opened = true;
    assert_true(arrival > sim->opened);
    sim->opened = arrival;
  }
}

static bool plan(sim_t *sim) {
  const mob_step_t *step = mob_sched_plan(sim->sched);
  if (!step) return false;
  if (sim->config.policy == MOB_SCHED_FCFS)
    for (uint32_t i = 0; i < step->open_count; i++) on_open(sim, step->open[i].sampling.seed);
  device_push(&sim->device, step);
  return true;
}

static void complete(sim_t *sim) {
  mob_step_result_t result = device_pop(&sim->device);
  const mob_sched_event_t *events;
  uint32_t count;
  assert_int_equal(mob_sched_complete(sim->sched, &result, &events, &count), MOB_OK);
  for (uint32_t i = 0; i < count; i++) on_event(sim, &events[i]);
}

static void abort_one(sim_t *sim) {
  if (!sim->requests.len) return;
  request_t *r = sim->requests.at[draw(sim, (uint32_t)sim->requests.len)];
  if (!r->seq) return;
  mob_sched_abort(sim->sched, r->seq);
  r->seq = NULL;
  r->end = -1;
  sim->alive--;
}

static void check_idle(sim_t *sim) {
  mob_sched_stats_t stats;
  mob_sched_stats(sim->sched, &stats);
  assert_int_equal(stats.running, 0);
  assert_int_equal(stats.waiting, 0);
  assert_int_equal(stats.in_flight, 0);
  assert_int_equal(stats.pages_used, 0);
}

static void simulate(const mob_sched_config_t *config, int events, uint64_t *preemptions,
                     uint64_t *hits) {
  sim_t sim = {.config = *config, .random = (uint64_t)config->pages * 31 + (uint64_t)config->depth};
  assert_int_equal(mob_sched_new(config, &sim.sched), MOB_OK);
  device_init(&sim.device, config);
  for (int i = 0; i < events; i++) {
    uint32_t what = draw(&sim, 100);
    if (what < 12 && sim.alive < 24)
      arrive(&sim);
    else if (what < 13)
      abort_one(&sim);
    else if (what < 60)
      plan(&sim);
    else if (sim.device.queue.len)
      complete(&sim);
  }
  // Every request ends: each turn plans or completes something.
  for (int turns = 0; sim.alive > 0 || sim.device.queue.len; turns++) {
    assert_true(turns < 100000);
    while (plan(&sim)) {
    }
    assert_true(sim.device.queue.len > 0);
    complete(&sim);
  }
  check_idle(&sim);
  mob_sched_stats_t stats;
  mob_sched_stats(sim.sched, &stats);
  *preemptions += stats.preemptions;
  *hits += stats.prefix_hits;
  for (size_t i = 0; i < sim.requests.len; i++) {
    free(sim.requests.at[i]->prompt);
    free(sim.requests.at[i]);
  }
  mob_vec_free(&sim.requests);
  device_free(&sim.device);
  mob_sched_free(sim.sched);
}

static void test_every_combination_gives_the_same_tokens(void **state) {
  (void)state;
  static const struct {
    int pages, max_seqs, max_tokens;
  } sizes[] = {{9, 8, 96}, {3, 1, 16}, {40, 12, 512}, {300, 16, 64}};
  uint64_t preemptions = 0, hits = 0;
  for (size_t z = 0; z < MOB_LEN(sizes); z++)
    for (int stages = 1; stages <= 3; stages++)
      for (int depth = 1; depth <= stages + 1; depth++)
        for (int bits = 0; bits < 16; bits++) {
          mob_sched_config_t config = {
              .pages = sizes[z].pages,
              .max_seqs = sizes[z].max_seqs,
              .max_tokens = sizes[z].max_tokens,
              .max_len = 450,
              .stages = stages,
              .depth = depth,
              .ids_on_device = bits & 1,
              .chunked_prefill = bits & 2,
              .prefix_cache = bits & 4,
              .policy = bits & 8 ? MOB_SCHED_PRIORITY : MOB_SCHED_FCFS,
              .hash_seed = 5,
          };
          simulate(&config, 700, &preemptions, &hits);
        }
  assert_true(preemptions > 100);
  assert_true(hits > 1000);
}

static void test_long_run(void **state) {
  (void)state;
  mob_sched_config_t config = {.pages = 24,
                               .max_seqs = 10,
                               .max_tokens = 128,
                               .max_len = 500,
                               .stages = 2,
                               .depth = 3,
                               .ids_on_device = true,
                               .chunked_prefill = true,
                               .prefix_cache = true};
  uint64_t preemptions = 0, hits = 0;
  simulate(&config, 60000, &preemptions, &hits);
  assert_true(preemptions > 0);
  assert_true(hits > 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_every_combination_gives_the_same_tokens),
      cmocka_unit_test(test_long_run),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
