// Actors on a real cluster: two node daemons on loopback addresses, each a process of this program,
// and this process as the driver.

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

#include "cluster/harness.h"
#include "runtime/actor/worker.h"
#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/node/node.h"

typedef struct nodes_seen {
  int done;
  size_t count, heads, alive;
  double gpus, gpus_free;
} nodes_seen_t;

static void on_nodes(void *arg, mob_status status, const char *why, const mob_node_info_t *nodes,
                     size_t count) {
  nodes_seen_t *seen = arg;
  (void)why;
  assert_int_equal(status, MOB_OK);
  *seen = (nodes_seen_t){.done = 1, .count = count};
  for (size_t i = 0; i < count; i++) {
    seen->heads += nodes[i].is_head;
    seen->alive += nodes[i].alive;
    if (!nodes[i].alive) continue;
    seen->gpus += nodes[i].gpus;
    seen->gpus_free += nodes[i].gpus_free;
  }
}

static nodes_seen_t look_at_nodes(void) {
  nodes_seen_t seen = {0};
  mob_cluster_nodes(world.cluster, on_nodes, &seen);
  assert_true(run_until(&seen.done, 1, DEADLINE_MS));
  return seen;
}

static void nodes_are_listed(void **state) {
  (void)state;
  nodes_seen_t seen = look_at_nodes();
  assert_int_equal(seen.count, 2);
  assert_int_equal(seen.alive, 2);
  assert_int_equal(seen.heads, 1);
  assert_true(seen.gpus == 16 && seen.gpus_free == 16);
}

static void calls_and_errors(void **state) {
  (void)state;
  actor_state_t echo;
  mob_actor_options_t options = options_for("Echo");
  const char *const env[] = {"GREETING=hallo welt", NULL};
  options.args = (mob_bytes_t){"good day", 8};
  options.env = env;
  create_alive(&echo, &options);
  assert_true(mob_actor_pid(echo.actor) > 0 && mob_actor_port(echo.actor) > 0);
  outcome_t r = call(&echo, "echo", "hello");
  assert_int_equal(r.status, MOB_OK);
  assert_string_equal(r.text, "hello");
  assert_string_equal(call(&echo, "greeting", "").text, "good day");
  assert_string_equal(call(&echo, "env", "GREETING").text, "hallo welt");
  assert_string_equal(call(&echo, "where", "").text, mob_actor_ip(echo.actor));
  r = call(&echo, "fail", "");
  assert_int_equal(r.status, MOB_E_INVALID);
  assert_string_equal(r.text, "as asked");
  r = call(&echo, "nothing", "");
  assert_int_equal(r.status, MOB_E_NOT_FOUND);
  r = call_timed(&echo, "slow", "60000", 50);
  assert_int_equal(r.status, MOB_E_TIMEOUT);
  assert_string_equal(call(&echo, "slow", "20").text, "late");
  kill_actor(&echo);
}

static void big_arguments(void **state) {
  (void)state;
  actor_state_t echo;
  mob_actor_options_t options = options_for("Echo");
  create_alive(&echo, &options);
  size_t len = 20 << 20;
  char *data = mob_malloc(len);
  outcome_t r = {0};
  memset(data, 'x', len);
  mob_actor_call(echo.actor, "echo", (mob_bytes_t){data, len}, 0, on_result, &r);
  assert_true(run_until(&r.done, 1, DEADLINE_MS));
  assert_int_equal(r.status, MOB_OK);
  assert_int_equal(r.len, len);
  free(data);
  kill_actor(&echo);
}

static void calls_keep_their_order(void **state) {
  (void)state;
  actor_state_t echo;
  outcome_t outcome = {0};
  mob_actor_options_t options = options_for("Echo");
  create(&echo, &options);
  mob_buf_t expected = {0};
  for (int i = 0; i < 300; i++) { // the first ones wait for the actor
    char text[16];
    int n = snprintf(text, sizeof text, "%d", i);
    mob_actor_call(echo.actor, "note", (mob_bytes_t){text, (size_t)n}, 0, on_result, &outcome);
    mob_buf_printf(&expected, "%d,", i);
    if (i % 50 == 49) run_until(&outcome.done, i - 20, DEADLINE_MS);
  }
  assert_true(run_until(&outcome.done, 300, DEADLINE_MS));
  outcome_t r = call(&echo, "log", "");
  size_t n = strlen(r.text);
  assert_true(n > 100);
  assert_int_equal(strncmp(r.text, mob_buf_cstr(&expected), n), 0);
  mob_buf_free(&expected);
  kill_actor(&echo);
}

static void creation_failures(void **state) {
  (void)state;
  actor_state_t a;
  static const struct {
    const char *library, *class_name, *text;
  } cases[] = {
      {LIBRARY, "Broken", "this class never works"},
      {LIBRARY, "Missing", "has no actor class 'Missing'"},
      {LIBRARY, "Old", "was built for version 2 of the actor interface"},
      {"/nonexistent.so", "Echo", "cannot load /nonexistent.so"},
      {NULL, "Echo", "there is no built-in actor class 'Echo'"},
  };
  for (size_t i = 0; i < MOB_LEN(cases); i++) {
    mob_actor_options_t options = {
        .library = cases[i].library, .class_name = cases[i].class_name, .bundle_index = -1};
    create(&a, &options);
    assert_true(run_until(&a.dead, 1, DEADLINE_MS));
    assert_int_equal(a.alive, 0);
    if (!strstr(a.why, cases[i].text)) print_error("%s\n", a.why);
    assert_non_null(strstr(a.why, cases[i].text));
    outcome_t r = call(&a, "echo", "x");
    assert_int_equal(r.status, MOB_E_UNAVAILABLE);
    mob_actor_release(a.actor);
  }
}

typedef struct stream_state {
  int messages, closed;
  size_t bytes;
  char last[64];
  mob_status status;
  uint64_t closed_ns;
} stream_state_t;

static void on_stream_message(void *owner, mob_stream_t *stream, mob_bytes_t message) {
  stream_state_t *s = owner;
  (void)stream;
  s->messages++;
  s->bytes += message.len;
  size_t n = message.len < sizeof s->last - 1 ? message.len : sizeof s->last - 1;
  if (n) memcpy(s->last, message.data, n);
  s->last[n] = 0;
}

static void on_stream_close(void *owner, mob_stream_t *stream, mob_status status, const char *why) {
  stream_state_t *s = owner;
  (void)stream;
  (void)why;
  s->closed++;
  s->status = status;
  s->closed_ns = mob_now_ns();
}

static const mob_stream_events_t stream_events = {on_stream_message, on_stream_close};

static void streams(void **state) {
  (void)state;
  actor_state_t echo;
  stream_state_t s = {0}, t = {0};
  mob_stream_t *stream;
  mob_actor_options_t options = options_for("Echo");
  create_alive(&echo, &options);
  assert_int_equal(mob_actor_stream(echo.actor, "echo", &stream_events, &s, &stream), MOB_OK);
  for (int i = 0; i < 500; i++) {
    char text[16];
    int n = snprintf(text, sizeof text, "m%d", i);
    mob_stream_send(stream, (mob_bytes_t){text, (size_t)n});
  }
  mob_stream_send(stream, (mob_bytes_t){0}); // an empty one is a message too
  assert_true(run_until(&s.messages, 501, DEADLINE_MS));
  char *big = mob_calloc(1, 3 << 20);
  s.bytes = 0;
  mob_stream_send(stream, (mob_bytes_t){big, 3 << 20});
  free(big);
  assert_true(run_until(&s.messages, 502, DEADLINE_MS));
  assert_int_equal(s.bytes, 3 << 20);
  mob_stream_send(stream, (mob_bytes_t){"stop", 4});
  assert_true(run_until(&s.closed, 1, DEADLINE_MS));
  assert_int_equal(s.status, MOB_OK);
  assert_int_equal(mob_actor_stream(echo.actor, "none", &stream_events, &t, &stream), MOB_OK);
  assert_true(run_until(&t.closed, 1, DEADLINE_MS));
  assert_int_equal(t.status, MOB_E_NOT_FOUND);
  memset(&s, 0, sizeof s);
  assert_int_equal(mob_actor_stream(echo.actor, "echo", &stream_events, &s, &stream), MOB_OK);
  mob_stream_close(stream, MOB_OK, NULL); // from this side
  assert_true(run_until(&s.closed, 1, DEADLINE_MS));
  assert_int_equal(s.status, MOB_OK);
  kill_actor(&echo);
}

static void death_is_told_at_once(void **state) {
  (void)state;
  actor_state_t echo;
  stream_state_t s = {0};
  mob_stream_t *stream;
  outcome_t slow = {0};
  mob_actor_options_t options = options_for("Echo");
  options.name = "victim";
  create_alive(&echo, &options);
  assert_int_equal(mob_actor_stream(echo.actor, "echo", &stream_events, &s, &stream), MOB_OK);
  mob_stream_send(stream, (mob_bytes_t){"x", 1});
  assert_true(run_until(&s.messages, 1, DEADLINE_MS));
  mob_actor_call(echo.actor, "slow", (mob_bytes_t){"60000", 5}, 0, on_result, &slow);
  assert_string_equal(call(&echo, "echo", "y").text, "y");
  uint64_t begin = mob_now_ns();
  kill(mob_actor_pid(echo.actor), SIGKILL);
  assert_true(run_until(&echo.dead, 1, DEADLINE_MS));
  assert_true(run_until(&slow.done, 1, DEADLINE_MS));
  assert_true(run_until(&s.closed, 1, DEADLINE_MS));
  double notice = (echo.dead_ns - begin) / 1e6, failed = (slow.at_ns - begin) / 1e6;
  double closed = (s.closed_ns - begin) / 1e6;
  print_message("kill -9 of an actor: notice %.1f ms, call failed %.1f ms, stream closed %.1f ms\n",
                notice, failed, closed);
  assert_true(notice < 100 && failed < 100 && closed < 100);
  assert_false(echo.restarting);
  assert_int_equal(slow.status, MOB_E_UNAVAILABLE);
  assert_int_equal(s.status, MOB_E_UNAVAILABLE);
  char pid[32];
  snprintf(pid, sizeof pid, "process %d on ", mob_actor_pid(echo.actor));
  assert_non_null(strstr(echo.why, "victim"));
  assert_non_null(strstr(echo.why, pid));
  assert_non_null(strstr(echo.why, "signal 9"));
  mob_actor_release(echo.actor);
}

static void silence_is_told_in_five_seconds(void **state) {
  (void)state;
  actor_state_t echo;
  stream_state_t s = {0};
  mob_stream_t *stream;
  outcome_t frozen = {0};
  mob_actor_options_t options = options_for("Echo");
  create_alive(&echo, &options);
  assert_int_equal(mob_actor_stream(echo.actor, "echo", &stream_events, &s, &stream), MOB_OK);
  mob_stream_send(stream, (mob_bytes_t){"x", 1});
  assert_true(run_until(&s.messages, 1, DEADLINE_MS));
  int pid = mob_actor_pid(echo.actor);
  kill(pid, SIGSTOP);
  uint64_t begin = mob_now_ns();
  mob_actor_call(echo.actor, "echo", (mob_bytes_t){"x", 1}, 0, on_result, &frozen);
  assert_true(run_until(&s.closed, 1, DEADLINE_MS));
  assert_true(run_until(&frozen.done, 1, DEADLINE_MS));
  double took = (s.closed_ns - begin) / 1e6;
  print_message("SIGSTOP of an actor: stream closed after %.0f ms\n", took);
  assert_int_equal(s.status, MOB_E_UNAVAILABLE);
  assert_int_equal(frozen.status, MOB_E_UNAVAILABLE);
  assert_true(took < 5000);
  kill(pid, SIGCONT); // it may come back: a frozen process is not a dead one
  uint64_t end = mob_now_ms() + DEADLINE_MS;
  outcome_t r = call(&echo, "echo", "again");
  // The first calls may still meet the connection that just broke; they end with an error of that
  // kind.
  while (r.status == MOB_E_UNAVAILABLE && mob_now_ms() < end) r = call(&echo, "echo", "again");
  assert_string_equal(r.text, "again");
  kill_actor(&echo);
}

static void an_actor_may_end_itself(void **state) {
  (void)state;
  actor_state_t echo;
  mob_actor_options_t options = options_for("Echo");
  create_alive(&echo, &options);
  assert_int_equal(call(&echo, "exit", "3").status, MOB_OK); // the reply is flushed
  assert_true(run_until(&echo.dead, 1, DEADLINE_MS));
  assert_non_null(strstr(echo.why, "exited with code 3: it was asked to"));
  mob_actor_release(echo.actor);
}

// Protobuf refuses what is no UTF-8: the head must hear of an end and of an error all the same.
static void words_that_are_no_utf8(void **state) {
  (void)state;
  actor_state_t echo;
  mob_actor_options_t options = options_for("Echo");
  create_alive(&echo, &options);
  outcome_t failed = call(&echo, "fail_because", "no caf\xe9");
  assert_int_equal(failed.status, MOB_E_INVALID);
  assert_non_null(strstr(failed.text, "no caf?"));
  assert_int_equal(call(&echo, "exit_because", "caf\xe9 is closed").status, MOB_OK);
  assert_true(run_until(&echo.dead, 1, DEADLINE_MS));
  assert_non_null(strstr(echo.why, "exited with code 1: caf? is closed"));
  mob_actor_release(echo.actor);
}

static void an_orderly_kill_lets_the_class_stop(void **state) {
  (void)state;
  actor_state_t echo;
  stream_state_t s = {0};
  mob_stream_t *stream;
  outcome_t killed = {0};
  mob_actor_options_t options = options_for("Echo");
  create_alive(&echo, &options);
  int pid = mob_actor_pid(echo.actor);
  assert_int_equal(mob_actor_stream(echo.actor, "echo", &stream_events, &s, &stream), MOB_OK);
  mob_actor_kill(echo.actor, false, on_done, &killed);
  assert_true(run_until(&killed.done, 1, DEADLINE_MS));
  assert_int_equal(killed.status, MOB_OK);
  assert_true(run_until(&echo.dead, 1, DEADLINE_MS));
  assert_true(run_until(&s.closed, 1, DEADLINE_MS));
  uint64_t end = mob_now_ms() + 3000;
  while (kill(pid, 0) == 0 && mob_now_ms() < end) usleep(1000);
  assert_int_equal(kill(pid, 0), -1);
  mob_actor_kill(echo.actor, true, on_done, &killed); // the dead stay dead
  assert_true(run_until(&killed.done, 2, DEADLINE_MS));
  assert_int_equal(killed.status, MOB_OK);
  mob_actor_release(echo.actor);
}

static void a_connect_may_be_given_up(void **state) {
  (void)state;
  mob_cluster_t *cluster;
  outcome_t connected = {0}, closed = {0};
  assert_int_equal(
      mob_cluster_connect(&world.loop, "127.0.0.1:1", NULL, NULL, on_done, &connected, &cluster),
      MOB_OK);
  run_until(&connected.done, 1, 100); // some tries fail meanwhile
  assert_int_equal(connected.done, 0);
  mob_cluster_close(cluster, on_done, &closed);
  assert_true(run_until(&closed.done, 1, DEADLINE_MS));
  assert_int_equal(connected.done, 1);
  assert_int_equal(connected.status, MOB_E_ABORTED);
}

static void restarts(void **state) {
  (void)state;
  actor_state_t echo;
  mob_actor_options_t options = options_for("Echo");
  options.max_restarts = 1;
  create_alive(&echo, &options);
  int first = mob_actor_pid(echo.actor);
  kill(first, SIGKILL);
  assert_true(run_until(&echo.dead, 1, DEADLINE_MS));
  assert_true(echo.restarting);
  outcome_t waiting = {0};
  mob_actor_call(echo.actor, "echo", (mob_bytes_t){"again", 5}, 0, on_result, &waiting);
  assert_true(run_until(&echo.alive, 2, DEADLINE_MS));
  assert_true(run_until(&waiting.done, 1, DEADLINE_MS));
  assert_string_equal(waiting.text, "again");
  assert_int_not_equal(mob_actor_pid(echo.actor), first);
  kill(mob_actor_pid(echo.actor), SIGKILL);
  assert_true(run_until(&echo.dead, 2, DEADLINE_MS));
  assert_false(echo.restarting);
  mob_actor_release(echo.actor);
}

static void names(void **state) {
  (void)state;
  actor_state_t a, b, found = {0}, none = {0};
  mob_actor_options_t options = options_for("Echo");
  options.name = "the-one";
  options.name_space = "ns";
  create_alive(&a, &options);
  create(&b, &options);
  assert_true(run_until(&b.dead, 1, DEADLINE_MS)); // taken
  assert_non_null(strstr(b.why, "the-one"));
  assert_int_equal(
      mob_actor_find(world.cluster, "ns", "the-one", &actor_events, &found, &found.actor), MOB_OK);
  assert_true(run_until(&found.alive, 1, DEADLINE_MS));
  assert_memory_equal(mob_actor_id(found.actor), mob_actor_id(a.actor), MOB_ACTOR_ID_LEN);
  assert_string_equal(call(&found, "echo", "hi").text, "hi");
  assert_int_equal(mob_actor_find(world.cluster, "ns", "nobody", &actor_events, &none, &none.actor),
                   MOB_OK);
  assert_true(run_until(&none.dead, 1, DEADLINE_MS));
  mob_actor_release(found.actor);
  mob_actor_release(none.actor);
  mob_actor_release(b.actor);
  kill_actor(&a);
}

static void placement(void **state) {
  (void)state;
  mob_resource_t gpus = {"GPU", 8};
  mob_bundle_t bundles[] = {{&gpus, 1}, {&gpus, 1}};
  uint8_t pg[MOB_PG_ID_LEN];
  outcome_t made = {0}, removed = {0};
  actor_state_t a[2];
  mob_pg_create(world.cluster, "stages", MOB_STRICT_SPREAD, bundles, 2, DEADLINE_MS, on_done, &made,
                pg);
  assert_true(run_until(&made.done, 1, DEADLINE_MS));
  if (made.status != MOB_OK) print_error("%s\n", made.text);
  assert_int_equal(made.status, MOB_OK);
  for (int i = 0; i < 2; i++) {
    mob_actor_options_t options = options_for("Echo");
    options.pg_id = pg;
    options.bundle_index = i;
    options.resources = &gpus;
    options.resource_count = 1;
    create_alive(&a[i], &options);
    assert_string_equal(call(&a[i], "gpus", "").text, "0,1,2,3,4,5,6,7");
  }
  assert_string_not_equal(mob_actor_ip(a[0].actor), mob_actor_ip(a[1].actor));
  assert_true(look_at_nodes().gpus_free == 0);
  mob_pg_remove(world.cluster, pg, on_done, &removed);
  assert_true(run_until(&removed.done, 1, DEADLINE_MS));
  assert_int_equal(removed.status, MOB_OK);
  for (int i = 0; i < 2; i++) {
    assert_true(run_until(&a[i].dead, 1, DEADLINE_MS)); // they end with their group
    mob_actor_release(a[i].actor);
  }
  uint64_t end = mob_now_ms() + 2000;
  while (look_at_nodes().gpus_free != 16 && mob_now_ms() < end) {
  }
  assert_true(look_at_nodes().gpus_free == 16);
}

static void a_group_that_does_not_fit(void **state) {
  (void)state;
  mob_resource_t gpus = {"GPU", 8};
  mob_bundle_t bundles[] = {{&gpus, 1}, {&gpus, 1}, {&gpus, 1}};
  uint8_t pg[MOB_PG_ID_LEN];
  outcome_t made = {0};
  mob_pg_create(world.cluster, "", MOB_PACK, bundles, 3, 300, on_done, &made, pg);
  assert_true(run_until(&made.done, 1, DEADLINE_MS));
  assert_int_equal(made.status, MOB_E_TIMEOUT);
  assert_non_null(strstr(made.text, "asked {GPU: 8} x 3 (PACK)"));
  assert_non_null(strstr(made.text, "127.0.0.2: 8 of 8 GPU"));
}

static void job_end_removes_its_actors(void **state) {
  (void)state;
  actor_state_t a, detached, found = {0};
  mob_actor_options_t options = options_for("Echo");
  create_alive(&a, &options);
  options.detached = true;
  options.name = "stays";
  options.name_space = "ns";
  create_alive(&detached, &options);
  int pid = mob_actor_pid(a.actor), kept = mob_actor_pid(detached.actor);
  outcome_t call_cut = {0};
  mob_actor_call(a.actor, "slow", (mob_bytes_t){"60000", 5}, 0, on_result, &call_cut);
  outcome_t closed = {0};
  mob_cluster_close(world.cluster, on_done, &closed);
  assert_true(run_until(&closed.done, 1, DEADLINE_MS));
  assert_true(run_until(&call_cut.done, 1, DEADLINE_MS));
  assert_int_equal(call_cut.status, MOB_E_ABORTED);
  assert_int_equal(a.dead, 1);
  mob_actor_release(a.actor);
  mob_actor_release(detached.actor);
  uint64_t end = mob_now_ms() + 5000;
  while (kill(pid, 0) == 0 && mob_now_ms() < end) usleep(1000);
  assert_int_equal(kill(pid, 0), -1);
  assert_int_equal(kill(kept, 0), 0);
  connect_driver();
  assert_int_equal(
      mob_actor_find(world.cluster, "ns", "stays", &actor_events, &found, &found.actor), MOB_OK);
  assert_true(run_until(&found.alive, 1, DEADLINE_MS));
  kill_actor(&found);
}

static void node_death_is_told_at_once(void **state) {
  (void)state;
  actor_state_t a;
  mob_actor_options_t options = options_for("Echo");
  mob_resource_t there = {"node:127.0.0.2", 0.001};
  options.resources = &there;
  options.resource_count = 1;
  create_alive(&a, &options);
  assert_string_equal(mob_actor_ip(a.actor), "127.0.0.2");
  int pid = mob_actor_pid(a.actor);
  world.nodes_dead = 0;
  uint64_t begin = mob_now_ns();
  end_daemon(&world.worker, SIGKILL);
  assert_true(run_until(&a.dead, 1, DEADLINE_MS));
  assert_true(run_until(&world.nodes_dead, 1, DEADLINE_MS));
  print_message("kill -9 of a node daemon: actor's death known after %.1f ms\n",
                (a.dead_ns - begin) / 1e6);
  assert_true(a.dead_ns - begin < 100 * 1000000ull);
  uint64_t end = mob_now_ms() + 2000;
  while (kill(pid, 0) == 0 && mob_now_ms() < end) usleep(1000);
  assert_int_equal(kill(pid, 0), -1); // it died with its daemon
  mob_actor_release(a.actor);
  world.nodes_alive = 0;
  start_daemon(&world.worker, "127.0.0.2", world.head.address, "--num-gpus=8");
  assert_true(run_until(&world.nodes_alive, 1, DEADLINE_MS));
}

static int open_files(pid_t pid) {
  char *command = mob_sprintf("ls /proc/%d/fd | wc -l", pid);
  char text[32] = "";
  FILE *pipe = popen(command, "r");
  assert_non_null(fgets(text, sizeof text, pipe));
  pclose(pipe);
  free(command);
  return atoi(text);
}

static void many_actors(void **state) {
  (void)state;
  enum { N = 16 };
  actor_state_t actors[N];
  mob_actor_options_t options = options_for("Echo");
  int files = 0;
  for (int round = 0; round < 2; round++) {
    outcome_t answers = {0};
    uint64_t begin = mob_now_ns();
    for (int i = 0; i < N; i++) {
      create(&actors[i], &options);
      mob_actor_call(actors[i].actor, "echo", (mob_bytes_t){"x", 1}, 0, on_result, &answers);
    }
    assert_true(run_until(&answers.done, N, DEADLINE_MS));
    assert_int_equal(answers.status, MOB_OK);
    print_message("%d actors at once: %.1f per second\n", N, N / ((mob_now_ns() - begin) / 1e9));
    for (int i = 0; i < N; i++) kill_actor(&actors[i]);
    // What the first round opened for good (connections) the second one may not open again.
    if (round == 0) files = open_files(world.head.pid);
  }
  uint64_t end = mob_now_ms() + 5000;
  while (open_files(world.head.pid) > files + 2 && mob_now_ms() < end) usleep(10000);
  assert_true(open_files(world.head.pid) <= files + 2);
}

static int compare_u64(const void *a, const void *b) {
  uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
  return x < y ? -1 : x > y;
}

static void speed(void **state) {
  (void)state;
  actor_state_t echo;
  mob_actor_options_t options = options_for("Echo");
  uint64_t begin = mob_now_ns();
  create_alive(&echo, &options);
  double creation = (echo.alive_ns - begin) / 1e6;
  enum { N = 1000 };
  uint64_t *times = MOB_NEW_ARRAY(uint64_t, N);
  for (int i = 0; i < N; i++) {
    outcome_t r = {0};
    uint64_t t = mob_now_ns();
    mob_actor_call(echo.actor, "echo", (mob_bytes_t){"x", 1}, 0, on_result, &r);
    while (!r.done) uv_run(&world.loop, UV_RUN_ONCE);
    times[i] = r.at_ns - t;
  }
  qsort(times, N, sizeof *times, compare_u64);
  outcome_t all = {0};
  begin = mob_now_ns();
  for (int i = 0; i < 5000; i++)
    mob_actor_call(echo.actor, "echo", (mob_bytes_t){"x", 1}, 0, on_result, &all);
  assert_true(run_until(&all.done, 5000, DEADLINE_MS));
  double rate = 5000 / ((all.at_ns - begin) / 1e9);
  mob_resource_t cpu = {"CPU", 0.01};
  mob_bundle_t bundle = {&cpu, 1};
  enum { GROUPS = 51 };
  uint64_t groups[GROUPS];
  for (int i = 0; i < GROUPS; i++) {
    outcome_t made = {0}, gone = {0};
    uint8_t pg[MOB_PG_ID_LEN];
    uint64_t t = mob_now_ns();
    mob_pg_create(world.cluster, "", MOB_PACK, &bundle, 1, DEADLINE_MS, on_done, &made, pg);
    assert_true(run_until(&made.done, 1, DEADLINE_MS));
    assert_int_equal(made.status, MOB_OK);
    groups[i] = made.at_ns - t;
    mob_pg_remove(world.cluster, pg, on_done, &gone);
    assert_true(run_until(&gone.done, 1, DEADLINE_MS));
  }
  qsort(groups, GROUPS, sizeof *groups, compare_u64);
  print_message("actor creation %.1f ms; call p50 %.0f us, p99 %.0f us; %.0f calls/s in flight; "
                "group p50 %.2f ms\n",
                creation, times[N / 2] / 1e3, times[N * 99 / 100] / 1e3, rate,
                groups[GROUPS / 2] / 1e6);
  free(times);
  kill_actor(&echo);
}

static void head_death_is_told_at_once(void **state) {
  (void)state;
  actor_state_t a;
  mob_actor_options_t options = options_for("Echo");
  create_alive(&a, &options);
  int lost = 0, status;
  uint64_t begin = mob_now_ns();
  end_daemon(&world.head, SIGKILL);
  for (uint64_t end = mob_now_ms() + 5000; !world.lost && mob_now_ms() < end;)
    run_until(&lost, 1, 1);
  double told = (mob_now_ns() - begin) / 1e6;
  assert_true(world.lost);
  assert_int_equal(a.dead, 1);
  waitpid(world.worker.pid, &status, 0);
  double gone = (mob_now_ns() - begin) / 1e6;
  world.worker.pid = 0;
  print_message("kill -9 of the head: the driver knew after %.1f ms, the other node had exited "
                "after %.1f ms\n",
                told, gone);
  assert_true(told < 500 && gone < 1000);
  assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 1);
  mob_actor_release(a.actor);
}

static int setup(void **state) {
  (void)state;
  snprintf(temp_dir, sizeof temp_dir, "/tmp/mob_cluster_XXXXXX");
  if (!mkdtemp(temp_dir)) return -1;
  uv_loop_init(&world.loop);
  start_daemon(&world.head, "127.0.0.1", NULL, "--num-gpus=8");
  start_daemon(&world.worker, "127.0.0.2", world.head.address, "--num-gpus=8");
  connect_driver();
  return 0;
}

static int teardown(void **state) {
  (void)state;
  if (world.cluster) close_driver();
  end_daemon(&world.worker, SIGTERM);
  end_daemon(&world.head, SIGTERM);
  for (int i = 0; i < 100 && uv_run(&world.loop, UV_RUN_NOWAIT); i++) usleep(1000);
  uv_loop_close(&world.loop);
  char *remove = mob_sprintf("rm -rf %s", temp_dir);
  int code = system(remove);
  free(remove);
  return code;
}

int main(int argc, char **argv) {
  if (argc > 1 && !strcmp(argv[1], "node")) return mob_node_main(argc - 1, argv + 1);
  if (argc > 1 && !strcmp(argv[1], "actor-worker"))
    return mob_actor_worker_main(argc - 1, argv + 1);
  if (argc > 1) cmocka_set_test_filter(argv[1]);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(nodes_are_listed),
      cmocka_unit_test(calls_and_errors),
      cmocka_unit_test(big_arguments),
      cmocka_unit_test(calls_keep_their_order),
      cmocka_unit_test(creation_failures),
      cmocka_unit_test(streams),
      cmocka_unit_test(death_is_told_at_once),
      cmocka_unit_test(silence_is_told_in_five_seconds),
      cmocka_unit_test(an_actor_may_end_itself),
      cmocka_unit_test(words_that_are_no_utf8),
      cmocka_unit_test(an_orderly_kill_lets_the_class_stop),
      cmocka_unit_test(a_connect_may_be_given_up),
      cmocka_unit_test(restarts),
      cmocka_unit_test(names),
      cmocka_unit_test(placement),
      cmocka_unit_test(a_group_that_does_not_fit),
      cmocka_unit_test(job_end_removes_its_actors),
      cmocka_unit_test(node_death_is_told_at_once),
      cmocka_unit_test(many_actors),
      cmocka_unit_test(speed),
      cmocka_unit_test(head_death_is_told_at_once),
  };
  return cmocka_run_group_tests(tests, setup, teardown);
}
