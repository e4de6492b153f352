// A GCS that starts on the state of a former one, with nodes that the test plays.
#include "tests/unit/gcs/cluster.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/rpc/message.h"
#include "tests/unit/gcs/kept_store.h"

#define PG(name) RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__PLACEMENT_GROUP_STATE__##name
#define ACTOR(name) RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__##name

static const char *const one_stage[] = {"GPU=8"};

static void test_groups_and_actors(void **state) {
  (void)state;
  kept_rows_t *store = kept_rows_new();
  cluster_t c;
  fake_node_t a = {0};
  answer_t running, under_way, waits;
  actor_id_t runs, half, queued;
  cluster_open_with(&c, kept_store(store, false));
  add_job(&c, 1, "ns");
  node_join(&c, &a, "127.0.0.1", "CPU=4 GPU=16", false);
  pg_id_t placed =
      create_group(&c, "placed", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, one_stage, true, NULL);
  WAIT_FOR(&c, group_is(&c, &placed, PG(CREATED)));
  create_actor(&c, &(actor_args_t){.name = "runs", .resources = "CPU=1", .detached = true}, &runs,
               &running);
  WAIT_FOR(&c, running.done);
  mob_pb_free(running.reply);
  a.hold_push = true;
  create_actor(&c, &(actor_args_t){.name = "half", .resources = "CPU=1", .detached = true}, &half,
               &under_way);
  WAIT_FOR(&c, a.held_push != NULL);
  create_actor(&c, &(actor_args_t){.name = "queued", .resources = "CPU=100", .detached = true},
               &queued, &waits);
  a.hold_prepare = true;
  pg_id_t begun =
      create_group(&c, "begun", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, one_stage, true, NULL);
  WAIT_FOR(&c, a.held_prepare != NULL);
  kept_rows_t *left = kept_rows_copy(store);
  // The former cluster goes; nothing of its leave-taking reaches what was left.
  Ray__Rpc__PushTaskReply pushed = RAY__RPC__PUSH_TASK_REPLY__INIT;
  Ray__Rpc__PrepareBundleResourcesReply prepared = RAY__RPC__PREPARE_BUNDLE_RESOURCES_REPLY__INIT;
  mob_rpc_reply(a.held_push, &pushed);
  mob_rpc_reply(a.held_prepare, &prepared);
  uint8_t node_id[MOB_NODE_ID_SIZE];
  memcpy(node_id, a.id, sizeof node_id);
  node_leave(&a, false);
  cluster_close(&c);
  if (under_way.reply) mob_pb_free(under_way.reply);
  if (waits.reply) mob_pb_free(waits.reply);

  fake_node_t b = {0};
  cluster_open_with(&c, kept_store(left, false));
  memcpy(b.id, node_id, sizeof node_id);
  assert_false(node_alive(&c, &b)); // expected, not there
  assert_true(actor_is(&c, &runs, ACTOR(ALIVE)));
  assert_true(actor_is(&c, &half, ACTOR(PENDING_CREATION)));
  assert_true(actor_is(&c, &queued, ACTOR(PENDING_CREATION)));
  assert_true(group_is(&c, &placed, PG(CREATED)));
  assert_true(group_is(&c, &begun, PG(PENDING)));
  b.keep_id = true;
  node_join(&c, &b, "127.0.0.1", "CPU=4 GPU=16", false);
  assert_true(node_alive(&c, &b));
  WAIT_FOR(&c, b.restart_told == 1 && b.workers_in_use && b.bundles_in_use);
  assert_int_equal(b.workers_in_use, 1); // of `runs`
  assert_int_equal(b.bundles_in_use, 1); // of `placed`
  WAIT_FOR(&c, actor_is(&c, &half, ACTOR(ALIVE)));
  WAIT_FOR(&c, group_is(&c, &begun, PG(CREATED)));
  assert_true(actor_is(&c, &runs, ACTOR(ALIVE)));
  assert_true(actor_is(&c, &queued, ACTOR(PENDING_CREATION)));
  assert_int_equal(b.committed, 1); // `begun` alone: `placed` is held as it was
  int code;
  create_group(&c, "placed", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, one_stage, true, &code);
  assert_int_equal(code, 4); // its name is taken still
  node_leave(&b, false);
  WAIT_FOR(&c, actor_is(&c, &runs, ACTOR(DEAD)));
  cluster_close(&c);
  kept_rows_free(store);
  kept_rows_free(left);
}

static void test_a_node_that_stays_away(void **state) {
  (void)state;
  kept_rows_t *store = kept_rows_new();
  cluster_t c;
  fake_node_t a = {0}, raylet = {.raylet = true, .serving = 1};
  answer_t created;
  actor_id_t actor;
  cluster_open_with(&c, kept_store(store, false));
  add_job(&c, 1, "");
  node_join(&c, &a, "127.0.0.1", "CPU=4 GPU=16", false);
  pg_id_t group =
      create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, one_stage, true, NULL);
  WAIT_FOR(&c, group_is(&c, &group, PG(CREATED)));
  create_actor(&c, &(actor_args_t){.resources = "CPU=1", .detached = true}, &actor, &created);
  WAIT_FOR(&c, created.done);
  mob_pb_free(created.reply);
  node_join(&c, &raylet, "127.0.0.1", "CPU=1", false);
  kept_rows_t *left = kept_rows_copy(store);
  node_leave(&a, false);
  node_leave(&raylet, false);
  cluster_close(&c);

  // Rows that are no messages are left out.
  kept_rows_put(left, MOB_TABLE_ACTOR, "0123456789abcdef", 16, "\xff\xff", 2);
  kept_rows_put(left, MOB_TABLE_NODE, "0123456789abcdef0123456789ab", 28, "\xff", 1);
  kept_rows_put(left, MOB_TABLE_JOB, "too long a key", 14, "", 0);
  uint64_t start = mob_now_ms();
  cluster_open_with(&c, kept_store(left, false));
  assert_true(node_alive(&c, &raylet)); // until health checks say otherwise
  assert_false(node_alive(&c, &a));
  assert_true(actor_is(&c, &actor, ACTOR(ALIVE)));
  // What is new need not wait for who may come back.
  fake_node_t e = {0};
  node_join(&c, &e, "127.0.0.1", "GPU=8", false);
  pg_id_t fresh =
      create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, one_stage, true, NULL);
  WAIT_FOR(&c, group_is(&c, &fresh, PG(CREATED)));
  assert_true(actor_is(&c, &actor, ACTOR(ALIVE)));
  WAIT_FOR(&c, actor_is(&c, &actor, ACTOR(DEAD)));
  assert_in_range(mob_now_ms() - start, 5000, 9000);
  assert_true(group_is(&c, &group, PG(RESCHEDULING)));
  fake_node_t d = {0};
  node_join(&c, &d, "127.0.0.1", "CPU=4 GPU=16", false); // another node takes the group
  WAIT_FOR(&c, group_is(&c, &group, PG(CREATED)));
  node_leave(&d, false);
  node_leave(&e, false);
  cluster_close(&c);
  kept_rows_free(store);
  kept_rows_free(left);
}

static void keep(kept_rows_t *rows, mob_table_t table, const char *key, const void *message) {
  size_t len;
  void *value = mob_pb_pack(message, &len);
  kept_rows_put(rows, table, key, strlen(key), value, len);
  free(value);
}

// Rows that are messages, but nothing that a GCS would have stored.
static void test_rows_out_of_range(void **state) {
  (void)state;
  static const actor_id_t actor = {"0123456789abcdef"};
  static const pg_id_t group = {"0123456789abcdefgh"};
  kept_rows_t *rows = kept_rows_new();
  Ray__Rpc__Bundle bundle = RAY__RPC__BUNDLE__INIT, *bundles[] = {&bundle};
  Ray__Rpc__DoubleEntry entry = RAY__RPC__DOUBLE_ENTRY__INIT, *need[] = {&entry};
  entry.key = "GPU";
  entry.value = 8;
  bundle.n_unit_resources = 1;
  bundle.unit_resources = need;
  Ray__Rpc__PlacementGroupTableData pg = RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__INIT;
  pg.n_bundles = 1;
  pg.bundles = bundles;
  keep(rows, MOB_TABLE_PLACEMENT_GROUP, "a good one........", &pg);
  pg.strategy = 99;
  keep(rows, MOB_TABLE_PLACEMENT_GROUP, "0123456789abcdefgh", &pg);
  Ray__Rpc__ActorTableData data = RAY__RPC__ACTOR_TABLE_DATA__INIT;
  data.num_restarts = INT64_MIN;
  keep(rows, MOB_TABLE_ACTOR, "0123456789abcdef", &data);
  cluster_t c;
  cluster_open_with(&c, kept_store(rows, false));
  WAIT_FOR(&c, group_is(&c, &(pg_id_t){"a good one........"}, PG(PENDING)));
  Ray__Rpc__GetPlacementGroupReply *no_group = get_group(&c, &group);
  assert_null(no_group->placement_group_table_data);
  mob_pb_free(no_group);
  Ray__Rpc__GetActorInfoReply *no_actor = get_actor(&c, &actor);
  assert_null(no_actor->actor_table_data);
  mob_pb_free(no_actor);
  cluster_close(&c);
  kept_rows_free(rows);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_groups_and_actors),
      cmocka_unit_test(test_a_node_that_stays_away),
      cmocka_unit_test(test_rows_out_of_range),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
