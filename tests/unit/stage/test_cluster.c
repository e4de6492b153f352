// The engine on a real cluster: two node daemons on loopback addresses and the stages' processes
// are this program again; this process is the gateway. Each loss is done to a group that is busy
// with eight sequences.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/stage/stage.h"
#include "runtime/actor/worker.h"
#include "runtime/base/clock.h"
#include "runtime/node/node.h"
#include "tests/support/daemon.h"
#include "tiny.h"

#ifdef MOB_ASAN
enum { STREAMS = 8, AT_ONCE_MS = 2000 };
#else
enum { STREAMS = 8, AT_ONCE_MS = 100 };
#endif

// ---------------------------------------------------------------------------------------- daemons

typedef struct node {
  pid_t pid;
  char address[64];
} node_t;

static node_t head, worker;
static char temp_dir[64];

static void start_node(node_t *node, const char *ip) {
  json_t *said = start_node_daemon(temp_dir, ip, node == &head ? NULL : head.address,
                                   "--num-gpus=4", &node->pid);
  snprintf(node->address, sizeof node->address, "%s",
           json_string_value(json_object_get(said, "address")));
  json_decref(said);
}

static void end_node(node_t *node) {
  if (node->pid <= 0) return;
  kill(node->pid, SIGCONT);
  kill(node->pid, SIGTERM);
  waitpid(node->pid, NULL, 0);
  node->pid = 0;
}

static int start_nodes(void **state) {
  (void)state;
  strcpy(temp_dir, "/tmp/stage-cluster-XXXXXX");
  assert_non_null(mkdtemp(temp_dir));
  start_node(&head, "127.0.0.1");
  start_node(&worker, "127.0.0.2");
  return 0;
}

static int end_nodes(void **state) {
  (void)state;
  end_node(&worker);
  end_node(&head);
  char *command = mob_sprintf("rm -rf %s", temp_dir);
  int rc = system(command);
  free(command);
  return rc;
}

static mob_engine_config_t cluster_config(int tp, int pp) {
  mob_engine_config_t config = tiny_config();
  config.cluster = head.address;
  config.tp = tp;
  config.pp = pp;
  config.start_timeout_ms = 20000;
  return config;
}

// ---------------------------------------------------------------------------------------- serving

static void test_tokens_are_those_of_one_process(void **state) {
  (void)state;
  int32_t expected[STREAMS][30];
  for (int cluster = 0; cluster < 3; cluster++) {
    tiny_t *t = MOB_NEW(tiny_t);
    mob_engine_config_t config = cluster_config(cluster == 2 ? 4 : 2, cluster == 2 ? 2 : 1);
    if (!cluster) config.cluster = NULL;
    tiny_start(t, config);
    for (uint32_t i = 0; i < STREAMS; i++) tiny_add(t, 10 + 20 * i, i, 30);
    tiny_wait_all(t);
    for (int i = 0; i < STREAMS; i++) {
      assert_int_equal(t->gens[i].count, 30);
      if (!cluster) memcpy(expected[i], t->gens[i].tokens, sizeof expected[i]);
      assert_memory_equal(expected[i], t->gens[i].tokens, sizeof expected[i]);
    }
    mob_stage_health_t health[2];
    int stages = mob_engine_stages(t->engine, health, 2);
    if (cluster == 2) {
      assert_int_equal(stages, 2);
      assert_string_equal(health[0].node_ip, "127.0.0.1"); // stage 0 is on the head's node
      assert_string_equal(health[1].node_ip, "127.0.0.2");
      assert_true(health[0].pid != health[1].pid && health[0].pid != getpid());
    }
    tiny_stop(t);
    free(t);
  }
}

static void test_a_layout_that_does_not_fit_says_what_is_there(void **state) {
  (void)state;
  tiny_t *t = MOB_NEW(tiny_t);
  mob_engine_config_t config = cluster_config(8, 1);
  config.start_timeout_ms = 500;
  tiny_start_on(t, config, NULL);
  assert_true(t->lost);
  assert_string_equal(t->cause, "start_failed");
  if (!strstr(t->why, "GPU") || !strstr(t->why, "127.0.0.2")) fail_msg("%s", t->why);
  tiny_stop(t);
  free(t);
}

// ----------------------------------------------------------------------------------------- losing

typedef struct loss {
  bool dead_node; // the node's daemon, not the stage
  int stage;      // whose process or node
  int sig;
  uint64_t limit_ms;
  const char *cause, *word;
} loss_t;

static bool gone(pid_t pid) {
  char path[64], line[512] = "";
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  FILE *file = fopen(path, "re");
  if (!file) return true;
  const char *state = fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
  fclose(file);
  return !state || state[2] == 'Z';
}

static void lose(const loss_t *loss) {
  tiny_t *t = MOB_NEW(tiny_t);
  tiny_start(t, cluster_config(4, 2));
  for (uint32_t i = 0; i < STREAMS; i++) tiny_add(t, 20, i, 480);
  while (t->gens[STREAMS - 1].count < 3) uv_run(&t->loop, UV_RUN_ONCE);
  mob_stage_health_t health[2];
  mob_engine_stages(t->engine, health, 2);
  pid_t victim = loss->dead_node ? (loss->stage ? worker.pid : head.pid) : health[loss->stage].pid;
  uint64_t start = mob_now_ms();
  kill(victim, loss->sig);
  tiny_wait(t, &t->lost);
  uint64_t took = mob_now_ms() - start;
  print_message("%s: known after %llu ms: %s\n", t->cause, (unsigned long long)took, t->why);
  assert_string_equal(t->cause, loss->cause);
  assert_non_null(strstr(t->why, loss->word));
  assert_true(took <= loss->limit_ms);
  for (int i = 0; i < t->gen_count; i++) assert_int_equal(t->gens[i].finish, MOB_FINISH_LOST);
  tiny_stop(t);
  free(t);
  kill(victim, SIGCONT);
  // No stage outlives its group.
  for (int s = 0; s < 2; s++)
    for (uint64_t until = mob_now_ms() + 6000; !gone(health[s].pid);) {
      assert_true(mob_now_ms() < until);
      usleep(10000);
    }
}

static void test_death_of_a_stage(void **state) {
  (void)state;
  lose(&(loss_t){.stage = 1,
                 .sig = SIGKILL,
                 .limit_ms = AT_ONCE_MS,
                 .cause = "actor_died",
                 .word = "SIGKILL"});
  lose(&(loss_t){.stage = 0,
                 .sig = SIGKILL,
                 .limit_ms = AT_ONCE_MS,
                 .cause = "actor_died",
                 .word = "SIGKILL"});
}

static void test_silence_of_a_stage(void **state) {
  (void)state;
  lose(&(loss_t){
      .stage = 1, .sig = SIGSTOP, .limit_ms = 5000, .cause = "silent", .word = "no sign of life"});
}

static void test_death_of_a_node(void **state) {
  (void)state;
  lose(&(loss_t){.dead_node = true,
                 .stage = 1,
                 .sig = SIGKILL,
                 .limit_ms = AT_ONCE_MS,
                 .cause = "node_died",
                 .word = "127.0.0.2"});
  waitpid(worker.pid, NULL, 0);
  start_node(&worker, "127.0.0.2");
}

static void test_death_of_the_head(void **state) {
  (void)state;
  lose(&(loss_t){.dead_node = true,
                 .stage = 0,
                 .sig = SIGKILL,
                 .limit_ms = AT_ONCE_MS,
                 .cause = "gcs_lost",
                 .word = "head"});
  waitpid(head.pid, NULL, 0);
  waitpid(worker.pid, NULL, 0); // a worker's daemon does not outlive its head
  head.pid = worker.pid = 0;
}

int main(int argc, char **argv) {
  mob_stage_register();
  if (argc > 1 && strcmp(argv[1], "node") == 0) return mob_node_main(argc - 1, argv + 1);
  if (argc > 1 && strcmp(argv[1], "actor-worker") == 0)
    return mob_actor_worker_main(argc - 1, argv + 1);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_tokens_are_those_of_one_process),
      cmocka_unit_test(test_a_layout_that_does_not_fit_says_what_is_there),
      cmocka_unit_test(test_death_of_a_stage),
      cmocka_unit_test(test_silence_of_a_stage),
      cmocka_unit_test(test_death_of_a_node),
      cmocka_unit_test(test_death_of_the_head), // the last: it leaves no cluster
  };
  return cmocka_run_group_tests(tests, start_nodes, end_nodes);
}
