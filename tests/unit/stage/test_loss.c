// How the loss of a stage ends everything: its death, its silence, a failed step, a start that
// fails.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "engine/stage/runner.h"
#include "runtime/base/clock.h"
#include "tiny.h"

enum { STREAMS = 8 };

static tiny_t *start_busy(int pp) {
  tiny_t *t = MOB_NEW(tiny_t);
  mob_engine_config_t config = tiny_config();
  config.pp = pp;
  tiny_start(t, config);
  for (uint32_t i = 0; i < STREAMS; i++) tiny_add(t, 20, i, 480);
  while (t->gens[STREAMS - 1].count < 3) uv_run(&t->loop, UV_RUN_ONCE);
  return t;
}

static void check_lost(tiny_t *t, const char *cause, const char *const *words, uint64_t within_ms) {
  uint64_t start = mob_now_ms();
  tiny_wait(t, &t->lost);
  assert_true(mob_now_ms() - start <= within_ms);
  assert_string_equal(t->cause, cause);
  for (; *words; words++)
    if (!strstr(t->why, *words)) fail_msg("'%s' does not say '%s'", t->why, *words);
  for (int i = 0; i < t->gen_count; i++) {
    assert_null(t->gens[i].gen);
    assert_int_equal(t->gens[i].finish, MOB_FINISH_LOST);
    assert_string_equal(t->gens[i].why, t->why);
  }
  mob_stage_health_t health[4];
  assert_false(mob_engine_stages(t->engine, health, 4) > 0 && health[0].alive);
  mob_gen_t *gen;
  int32_t prompt = 2;
  mob_gen_request_t request = {.prompt = &prompt, .prompt_count = 1, .max_tokens = 1};
  mob_gen_events_t events = {0};
  assert_int_equal(mob_engine_generate(t->engine, &request, &events, t, &gen), MOB_E_UNAVAILABLE);
  tiny_stop(t);
  free(t);
}

static void test_death_of_a_stage_ends_everything_at_once(void **state) {
  (void)state;
  for (int stage = 0; stage < 2; stage++) {
    tiny_t *t = start_busy(2);
    mob__transport_local_fault(t->engine->link, stage, MOB__FAULT_DIE);
    const char *const words[] = {stage ? "stage 1 of 2" : "stage 0 of 2",
                                 "127.0.0.1",
                                 "pid",
                                 "epoch 1",
                                 "last heard of",
                                 NULL};
    check_lost(t, "actor_died", words, 1000);
  }
}

static void test_silence_of_a_stage_is_noticed_in_time(void **state) {
  (void)state;
  tiny_t *t = start_busy(2);
  mob__transport_local_fault(t->engine->link, 1, MOB__FAULT_FREEZE);
  const char *const words[] = {"stage 1 of 2", "no sign of life for 4", NULL};
  check_lost(t, "silent", words, 5000);
}

static void test_beats_keep_an_idle_group_alive(void **state) {
  (void)state;
  tiny_t *t = MOB_NEW(tiny_t);
  mob_engine_config_t config = tiny_config();
  config.pp = 2;
  tiny_start(t, config);
  uint64_t until = mob_now_ms() + 6000;
  while (mob_now_ms() < until) uv_run(&t->loop, UV_RUN_ONCE);
  assert_false(t->lost);
  mob_stage_health_t health[2];
  assert_int_equal(mob_engine_stages(t->engine, health, 2), 2);
  for (int s = 0; s < 2; s++) {
    assert_true(health[s].alive);
    assert_true(health[s].heard_ms < 2000);
    assert_int_equal(health[s].step_age_ms, 0);
    assert_string_equal(health[s].node_ip, "127.0.0.1");
  }
  tiny_add(t, 10, 1, 5);
  tiny_wait_all(t);
  assert_int_equal(t->gens[0].count, 5);
  tiny_stop(t);
  free(t);
}

static void test_stop_under_load_ends_every_sequence(void **state) {
  (void)state;
  tiny_t *t = start_busy(2);
  tiny_stop(t);
  for (int i = 0; i < t->gen_count; i++) assert_int_equal(t->gens[i].finish, MOB_FINISH_ABORT);
  assert_false(t->lost);
  free(t);
}

static void stop_at_the_end(void *owner, mob_gen_t *gen, const mob_sampled_t *token,
                            mob_finish_t finish, const char *why) {
  tiny_t *t = owner;
  (void)token;
  (void)why;
  if (finish == MOB_FINISH_NONE) return;
  t->alive--;
  if (finish != MOB_FINISH_LENGTH) return;
  mob_gen_abort(gen); // has ended: nothing happens
  t->lost = true;     // only to leave the loop
  mob_engine_stop(t->engine, NULL, NULL);
}

static void test_stop_from_a_last_event(void **state) {
  (void)state;
  tiny_t *t = MOB_NEW(tiny_t);
  tiny_start(t, tiny_config());
  mob_gen_events_t events = {.on_token = stop_at_the_end};
  int32_t prompt[3] = {2, 3, 4};
  mob_gen_request_t request = {
      .prompt = prompt,
      .prompt_count = 3,
      .max_tokens = 20,
      .ignore_eos = true,
      .sampling = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1}};
  for (int i = 0; i < 3; i++) {
    mob_gen_t *gen;
    assert_int_equal(mob_engine_generate(t->engine, &request, &events, t, &gen), MOB_OK);
    t->alive++;
  }
  tiny_wait(t, &t->lost);
  assert_int_equal(t->alive, 0); // each had one end, whoever came first
  while (uv_run(&t->loop, UV_RUN_NOWAIT)) {
  }
  assert_int_equal(uv_loop_close(&t->loop), 0);
  tiny_close_model(&t->model);
  free(t);
}

// ------------------------------------------------------------------- a backend that misbehaves on
// call

typedef enum vice {
  VICE_LOAD,
  VICE_STEP_FAILS,
  VICE_LINK_BREAKS,
  VICE_STEP_HANGS,
  VICE_NO_ROOM
} vice_t;
static vice_t vice;
static _Atomic int vice_steps;

static mob_status bad_plan(mob_exec_t *exec, mob_memory_plan_t *out) {
  MOB_TRY(mob_backend_cpu.plan(exec, out));
  if (vice == VICE_NO_ROOM) {
    out->pages = 0;
    snprintf(out->text, sizeof out->text, "1 GiB of weights, 0.5 GiB there");
  }
  return MOB_OK;
}

static mob_status bad_load(mob_exec_t *exec,
                           void (*progress)(void *arg, const mob_load_progress_t *p), void *arg) {
  if (vice == VICE_LOAD) return mob_fail(MOB_E_IO, "model.safetensors: Input/output error");
  return mob_backend_cpu.load(exec, progress, arg);
}

static mob_status bad_step(mob_exec_t *exec, const mob_step_t *step, mob_step_fn done, void *arg) {
  if (vice_steps++ < 5) return mob_backend_cpu.step(exec, step, done, arg);
  if (vice == VICE_STEP_FAILS) done(arg, MOB_E_INTERNAL, "a rank met a NaN", NULL);
  if (vice == VICE_LINK_BREAKS)
    done(arg, MOB_E_UNAVAILABLE, "receive: Connection reset by peer", NULL);
  return MOB_OK;
}

static mob_backend_t bad_backend(vice_t which) {
  mob_backend_t backend = mob_backend_cpu;
  backend.plan = bad_plan;
  backend.load = bad_load;
  backend.step = bad_step;
  vice = which;
  vice_steps = 0;
  return backend;
}

static void start_fails(vice_t which, const char *word) {
  mob_backend_t backend = bad_backend(which);
  tiny_t *t = MOB_NEW(tiny_t);
  mob_engine_config_t config = tiny_config();
  config.pp = 2;
  tiny_start_on(t, config, &backend);
  assert_false(t->ready);
  const char *const words[] = {"failed to start", word, NULL};
  check_lost(t, "start_failed", words, 1000);
}

static void test_failed_start_says_why(void **state) {
  (void)state;
  start_fails(VICE_LOAD, "model.safetensors: Input/output error");
  start_fails(VICE_NO_ROOM, "0.5 GiB there");
}

static void test_another_model_on_a_node_is_refused(void **state) {
  (void)state;
  tiny_t *t = MOB_NEW(tiny_t);
  mob_engine_config_t config = tiny_config();
  config.overrides =
      "{\"rope_theta\": 5000}"; // for the stages; the gateway opened the model without
  tiny_start_on(t, config, NULL);
  assert_false(t->ready);
  char fingerprint[32];
  snprintf(fingerprint, sizeof fingerprint, "%016llx",
           (unsigned long long)mob_model_fingerprint(t->model.model));
  const char *const words[] = {"not the same on all nodes", fingerprint, NULL};
  check_lost(t, "start_failed", words, 1000);
}

static void test_another_release_on_a_node_is_refused(void **state) {
  (void)state;
  Mobula__StageConfig config = MOBULA__STAGE_CONFIG__INIT;
  config.protocol = MOB__STAGE_PROTOCOL + 1;
  uint8_t bytes[256];
  size_t len = mobula__stage_config__pack(&config, bytes);
  uv_loop_t loop;
  uv_loop_init(&loop);
  mob__runner_spec_t spec = {.ip = "127.0.0.1"};
  mob__runner_events_t events = {0};
  mob__runner_t *runner;
  assert_int_equal(mob__runner_new(&loop, &spec, (mob_bytes_t){bytes, len}, &events, NULL, &runner),
                   MOB_E_UNSUPPORTED);
  char versions[2][16];
  for (int i = 0; i < 2; i++) {
    snprintf(versions[i], sizeof versions[i], "version %d", MOB__STAGE_PROTOCOL + i);
    assert_non_null(strstr(mob_errmsg(), versions[i]));
  }
  bytes[0] = 0xff;
  assert_int_equal(mob__runner_new(&loop, &spec, (mob_bytes_t){bytes, len}, &events, NULL, &runner),
                   MOB_E_FORMAT);
  uv_loop_close(&loop);
}

static void test_failed_step_ends_everything(void **state) {
  (void)state;
  mob_backend_t backend = bad_backend(VICE_STEP_FAILS);
  tiny_t *t = MOB_NEW(tiny_t);
  tiny_start_on(t, tiny_config(), &backend);
  assert_true(t->ready);
  tiny_add(t, 10, 1, 50);
  const char *const words[] = {"stage 0 of 1", "a rank met a NaN", NULL};
  check_lost(t, "actor_died", words, 1000);
}

// Both processes are well, but what one says of the other counts when nobody says more.
static void test_broken_link_ends_everything(void **state) {
  (void)state;
  mob_backend_t backend = bad_backend(VICE_LINK_BREAKS);
  tiny_t *t = MOB_NEW(tiny_t);
  mob_engine_config_t config = tiny_config();
  config.pp = 2;
  tiny_start_on(t, config, &backend);
  assert_true(t->ready);
  tiny_add(t, 10, 1, 50);
  const char *const words[] = {"of 2", "Connection reset by peer", NULL};
  check_lost(t, "actor_died", words, 1000);
}

static void test_hung_step_is_noticed_though_beats_go_on(void **state) {
  (void)state;
  mob_backend_t backend = bad_backend(VICE_STEP_HANGS);
  tiny_t *t = MOB_NEW(tiny_t);
  tiny_start_on(t, tiny_config(), &backend);
  assert_true(t->ready);
  tiny_add(t, 1, 1, 50);
  const char *const words[] = {"stage 0 of 1", "a step has been under way for 5", NULL};
  check_lost(t, "hung_step", words, 7000);
}

static void test_bad_layouts_are_refused(void **state) {
  (void)state;
  tiny_model_t model = tiny_open_model();
  mob_engine_config_t config = tiny_config();
  config.model = model.model;
  mob_engine_events_t events = {0};
  uv_loop_t loop;
  uv_loop_init(&loop);
  mob_engine_t *engine;
  config.pp = 5;
  assert_int_equal(mob_engine_start(&loop, &config, &events, NULL, &engine), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "4 layers"));
  config.pp = 2;
  config.layer_split = (const int[]){1, 2};
  assert_int_equal(mob_engine_start(&loop, &config, &events, NULL, &engine), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "3 layers"));
  uv_run(&loop, UV_RUN_DEFAULT);
  uv_loop_close(&loop);
  tiny_close_model(&model);
}

static void test_layers_are_balanced_by_bytes(void **state) {
  (void)state;
  int out[5];
  uint64_t even[] = {10, 10, 10, 10, 10};
  mob__split_balanced(even, 5, 2, out);
  assert_int_equal(out[1], 3); // the remainder goes to the front
  uint64_t r1[61]; // DeepSeek-R1: embedding and three dense layers in front, the head at the end
  for (int i = 0; i < 61; i++) r1[i] = i < 3 ? 58 : 1151;
  r1[0] += 185;
  r1[60] += 185;
  mob__split_balanced(r1, 61, 2, out);
  assert_int_equal(out[1], 32);
  uint64_t heavy[] = {100, 1, 1, 1, 1, 1};
  mob__split_balanced(heavy, 6, 3, out);
  assert_int_equal(out[1], 1);
  assert_true(out[2] > 1 && out[2] < 6 && out[3] == 6);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_death_of_a_stage_ends_everything_at_once),
      cmocka_unit_test(test_silence_of_a_stage_is_noticed_in_time),
      cmocka_unit_test(test_beats_keep_an_idle_group_alive),
      cmocka_unit_test(test_stop_under_load_ends_every_sequence),
      cmocka_unit_test(test_stop_from_a_last_event),
      cmocka_unit_test(test_failed_start_says_why),
      cmocka_unit_test(test_another_model_on_a_node_is_refused),
      cmocka_unit_test(test_another_release_on_a_node_is_refused),
      cmocka_unit_test(test_failed_step_ends_everything),
      cmocka_unit_test(test_broken_link_ends_everything),
      cmocka_unit_test(test_hung_step_is_noticed_though_beats_go_on),
      cmocka_unit_test(test_bad_layouts_are_refused),
      cmocka_unit_test(test_layers_are_balanced_by_bytes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
