#include "harness.h"

#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tests/support/daemon.h"

// ----------------------------------------------------------------------------------------- daemons

char temp_dir[64];

void start_daemon(daemon_t *daemon, const char *ip, const char *head, const char *extra) {
  json_t *said = start_node_daemon(temp_dir, ip, head, extra, &daemon->pid);
  snprintf(daemon->address, sizeof daemon->address, "%s",
           json_string_value(json_object_get(said, "address")));
  snprintf(daemon->node_id, sizeof daemon->node_id, "%s",
           json_string_value(json_object_get(said, "node_id")));
  json_decref(said);
}

int end_daemon(daemon_t *daemon, int sig) {
  int status = 0;
  if (daemon->pid <= 0) return 0;
  kill(daemon->pid, sig);
  waitpid(daemon->pid, &status, 0);
  daemon->pid = 0;
  return status;
}

// ------------------------------------------------------------------------------- the driver's
// world

world_t world;

static void on_node_dead(void *owner, const uint8_t *id, const char *ip, const char *why) {
  (void)owner;
  (void)id;
  (void)why;
  (void)ip;
  world.nodes_dead++;
}

static void on_node_alive(void *owner, const uint8_t *id, const char *ip) {
  (void)owner;
  (void)id;
  (void)ip;
  world.nodes_alive++;
}

static void on_lost(void *owner, const char *why) {
  (void)owner;
  (void)why;
  world.lost = true;
}

static const mob_cluster_events_t cluster_events = {on_node_dead, on_node_alive, on_lost};

static void on_timeout(uv_timer_t *timer) {
  *(bool *)timer->data = true;
}

// Runs the loop until *flag is set; false after the deadline.
bool run_until(const int *counter, int wanted, uint64_t timeout_ms) {
  uv_timer_t timer;
  bool over = false;
  uv_timer_init(&world.loop, &timer);
  timer.data = &over;
  uv_timer_start(&timer, on_timeout, timeout_ms, 0);
  while (!over && *counter < wanted) uv_run(&world.loop, UV_RUN_ONCE);
  uv_close((uv_handle_t *)&timer, NULL);
  uv_run(&world.loop, UV_RUN_NOWAIT);
  return *counter >= wanted;
}

void on_done(void *arg, mob_status status, const char *why) {
  outcome_t *outcome = arg;
  outcome->done++;
  outcome->status = status;
  outcome->at_ns = mob_now_ns();
  snprintf(outcome->text, sizeof outcome->text, "%s", why ? why : "");
}

void on_result(void *arg, mob_status status, const char *why, mob_bytes_t result) {
  outcome_t *outcome = arg;
  on_done(arg, status, why);
  outcome->len = result.len;
  if (status == MOB_OK) {
    size_t n = result.len < sizeof outcome->text - 1 ? result.len : sizeof outcome->text - 1;
    if (n) memcpy(outcome->text, result.data, n);
    outcome->text[n] = 0;
  }
}

void connect_driver(void) {
  outcome_t outcome = {0};
  assert_int_equal(mob_cluster_connect(&world.loop, world.head.address, &cluster_events, NULL,
                                       on_done, &outcome, &world.cluster),
                   MOB_OK);
  assert_true(run_until(&outcome.done, 1, DEADLINE_MS));
  if (outcome.status != MOB_OK) print_error("%s\n", outcome.text);
  assert_int_equal(outcome.status, MOB_OK);
}

void close_driver(void) {
  outcome_t outcome = {0};
  mob_cluster_close(world.cluster, on_done, &outcome);
  assert_true(run_until(&outcome.done, 1, DEADLINE_MS));
  world.cluster = NULL;
}

static void on_alive(void *owner, mob_actor_t *actor) {
  actor_state_t *state = owner;
  (void)actor;
  state->alive++;
  state->alive_ns = mob_now_ns();
}

static void on_dead(void *owner, mob_actor_t *actor, bool restarting, const char *why) {
  actor_state_t *state = owner;
  (void)actor;
  state->dead++;
  state->restarting = restarting;
  state->dead_ns = mob_now_ns();
  snprintf(state->why, sizeof state->why, "%s", why);
}

const mob_actor_events_t actor_events = {on_alive, on_dead};

mob_actor_options_t options_for(const char *class_name) {
  return (mob_actor_options_t){.library = LIBRARY, .class_name = class_name, .bundle_index = -1};
}

void create(actor_state_t *state, const mob_actor_options_t *options) {
  memset(state, 0, sizeof *state);
  assert_int_equal(mob_actor_create(world.cluster, options, &actor_events, state, &state->actor),
                   MOB_OK);
}

void create_alive(actor_state_t *state, const mob_actor_options_t *options) {
  create(state, options);
  assert_true(run_until(&state->alive, 1, DEADLINE_MS));
  if (state->dead) print_error("%s\n", state->why);
  assert_int_equal(state->dead, 0);
}

outcome_t call_timed(actor_state_t *state, const char *method, const char *args,
                     uint64_t timeout_ms) {
  outcome_t outcome = {0};
  mob_actor_call(state->actor, method, (mob_bytes_t){args, strlen(args)}, timeout_ms, on_result,
                 &outcome);
  assert_int_equal(outcome.done, 0);
  assert_true(run_until(&outcome.done, 1, DEADLINE_MS));
  assert_int_equal(outcome.done, 1);
  return outcome;
}

outcome_t call(actor_state_t *state, const char *method, const char *args) {
  return call_timed(state, method, args, 0);
}

void kill_actor(actor_state_t *state) {
  outcome_t outcome = {0};
  mob_actor_kill(state->actor, true, on_done, &outcome);
  assert_true(run_until(&outcome.done, 1, DEADLINE_MS));
  assert_int_equal(outcome.status, MOB_OK);
  assert_true(run_until(&state->dead, 1, DEADLINE_MS));
  mob_actor_release(state->actor);
}
