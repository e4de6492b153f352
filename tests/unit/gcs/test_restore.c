// A GCS that starts on the state of a former one, with nodes that the test plays.
#include "tests/unit/gcs/cluster.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/map.h"

#define PG(name) RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__PLACEMENT_GROUP_STATE__##name
#define ACTOR(name) RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__##name

// A store that outlives the GCS, in memory.
typedef struct row {
  size_t len;
  uint8_t data[];
} row_t;

typedef struct kept {
  mob_store_t base;
  mob_map_t tables[MOB_TABLE_COUNT];
} kept_t;

static void put(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
                const void *value, size_t value_len, mob_store_done_fn done, void *arg) {
  row_t *row = mob_malloc(sizeof *row + value_len);
  row->len = value_len;
  if (value_len) memcpy(row->data, value, value_len);
  free(mob_map_put(&((kept_t *)store)->tables[table], key, key_len, row));
  if (done) done(arg, MOB_OK);
}

static void del(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
                mob_store_done_fn done, void *arg) {
  free(mob_map_remove(&((kept_t *)store)->tables[table], key, key_len));
  if (done) done(arg, MOB_OK);
}

static void sync_store(mob_store_t *store, mob_store_done_fn done, void *arg) {
  (void)store;
  done(arg, MOB_OK);
}

static mob_status load(mob_store_t *store, mob_table_t table, mob_store_each_fn each, void *arg) {
  for (int twice = 0; twice < 2; twice++) { // as a store may
    mob_map_t *map = &((kept_t *)store)->tables[table];
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(map, e));) {
      const row_t *row = e->value;
      each(arg, e->key, e->key_len, row->data, row->len);
    }
  }
  return MOB_OK;
}

static void close_store(mob_store_t *store, void (*done)(void *arg), void *arg) {
  (void)store;
  if (done) done(arg);
}

static kept_t new_store(void) {
  return (kept_t){.base = {"kept", true, put, del, sync_store, load, close_store}};
}

static void free_store(kept_t *kept) {
  for (int t = 0; t < MOB_TABLE_COUNT; t++) {
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(&kept->tables[t], e));) free(e->value);
    mob_map_free(&kept->tables[t]);
  }
}

// What a process that dies leaves: the store as it is before the GCS takes leave of anybody.
static kept_t copy_of(const kept_t *kept) {
  kept_t copy = new_store();
  for (int t = 0; t < MOB_TABLE_COUNT; t++) {
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(&kept->tables[t], e));) {
      const row_t *row = e->value;
      put(&copy.base, (mob_table_t)t, e->key, e->key_len, row->data, row->len, NULL, NULL);
    }
  }
  return copy;
}

static const char *const one_stage[] = {"GPU=8"};

static void test_groups_and_actors(void **state) {
  (void)state;
  kept_t store = new_store();
  cluster_t c;
  fake_node_t a = {0};
  answer_t running, under_way, waits;
  actor_id_t runs, half, queued;
  cluster_open_with(&c, &store.base);
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
  kept_t left = copy_of(&store);
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
  cluster_open_with(&c, &left.base);
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
  free_store(&store);
  free_store(&left);
}

static void test_a_node_that_stays_away(void **state) {
  (void)state;
  kept_t store = new_store();
  cluster_t c;
  fake_node_t a = {0}, raylet = {.raylet = true, .serving = 1};
  answer_t created;
  actor_id_t actor;
  cluster_open_with(&c, &store.base);
  add_job(&c, 1, "");
  node_join(&c, &a, "127.0.0.1", "CPU=4 GPU=16", false);
  pg_id_t group =
      create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, one_stage, true, NULL);
  WAIT_FOR(&c, group_is(&c, &group, PG(CREATED)));
  create_actor(&c, &(actor_args_t){.resources = "CPU=1", .detached = true}, &actor, &created);
  WAIT_FOR(&c, created.done);
  mob_pb_free(created.reply);
  node_join(&c, &raylet, "127.0.0.1", "CPU=1", false);
  kept_t left = copy_of(&store);
  node_leave(&a, false);
  node_leave(&raylet, false);
  cluster_close(&c);

  // Rows that are no messages are left out.
  put(&left.base, MOB_TABLE_ACTOR, "0123456789abcdef", 16, "\xff\xff", 2, NULL, NULL);
  put(&left.base, MOB_TABLE_NODE, "0123456789abcdef0123456789ab", 28, "\xff", 1, NULL, NULL);
  put(&left.base, MOB_TABLE_JOB, "too long a key", 14, "", 0, NULL, NULL);
  uint64_t start = mob_now_ms();
  cluster_open_with(&c, &left.base);
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
  free_store(&store);
  free_store(&left);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_groups_and_actors),
      cmocka_unit_test(test_a_node_that_stays_away),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
