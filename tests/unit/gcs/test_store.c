// Nothing is acknowledged before the store holds it: with a store that answers when the test lets
// it.
#include "tests/unit/gcs/cluster.h"

#include <stdlib.h>
#include <string.h>

typedef struct waiting {
  mob_store_done_fn done;
  void *arg;
} waiting_t;

typedef struct slow_store {
  mob_store_t base;
  bool hold, fail;
  waiting_t waiting[64];
  size_t count;
  char last_key[256];
  size_t puts[MOB_TABLE_COUNT], dels[MOB_TABLE_COUNT];
  bool closed;
} slow_store_t;

static void finish(slow_store_t *s, mob_store_done_fn done, void *arg) {
  if (!done) return;
  if (!s->hold) {
    done(arg, s->fail ? mob_fail(MOB_E_IO, "disk full") : MOB_OK);
    return;
  }
  assert_true(s->count < MOB_LEN(s->waiting));
  s->waiting[s->count++] = (waiting_t){done, arg};
}

static void let_go(slow_store_t *s, mob_status status) {
  size_t n = s->count;
  s->count = 0;
  for (size_t i = 0; i < n; i++) s->waiting[i].done(s->waiting[i].arg, status);
}

static void put(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
                const void *value, size_t value_len, mob_store_done_fn done, void *arg) {
  (void)value, (void)value_len;
  slow_store_t *s = (slow_store_t *)store;
  s->puts[table]++;
  size_t len = key_len < sizeof s->last_key ? key_len : sizeof s->last_key - 1;
  memcpy(s->last_key, key, len);
  s->last_key[len] = 0;
  finish(s, done, arg);
}

static void del(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
                mob_store_done_fn done, void *arg) {
  (void)key, (void)key_len;
  ((slow_store_t *)store)->dels[table]++;
  finish((slow_store_t *)store, done, arg);
}

static void sync_store(mob_store_t *store, mob_store_done_fn done, void *arg) {
  finish((slow_store_t *)store, done, arg);
}

static mob_status load(mob_store_t *store, mob_table_t table, mob_store_each_fn each, void *arg) {
  (void)store, (void)table, (void)each, (void)arg;
  return MOB_OK;
}

static void close_store(mob_store_t *store, void (*done)(void *arg), void *arg) {
  ((slow_store_t *)store)->closed = true;
  if (done) done(arg);
}

static slow_store_t new_store(void) {
  return (slow_store_t){.base = {"slow", false, put, del, sync_store, load, close_store}};
}

static void put_later(cluster_t *c, const char *key, answer_t *out) {
  Ray__Rpc__InternalKVPutRequest request = RAY__RPC__INTERNAL_KVPUT_REQUEST__INIT;
  request.namespace_ = mob_pb_bytes("ns", 2);
  request.key = mob_pb_bytes(key, strlen(key));
  request.value = mob_pb_bytes("v", 1);
  ask_later(c, "/ray.rpc.InternalKVGcsService/InternalKVPut", &request,
            &ray__rpc__internal_kvput_reply__descriptor, out);
}

static void test_waits_for_the_store(void **state) {
  (void)state;
  slow_store_t store = new_store();
  cluster_t c;
  cluster_open_with(&c, &store.base);
  store.hold = true;
  answer_t out;
  put_later(&c, "a", &out);
  WAIT_FOR(&c, store.count == 1);
  assert_string_equal(store.last_key, "@namespace_ns:a"); // the key as Ray stores it
  run_for(&c, 30);
  assert_false(out.done);
  let_go(&store, MOB_OK);
  WAIT_FOR(&c, out.done);
  Ray__Rpc__InternalKVPutReply *reply = out.reply;
  assert_int_equal(out.code, GRPC_STATUS_OK);
  assert_true(reply->added);
  assert_int_equal(reply->status->code, 0);
  mob_pb_free(reply);
  // A placement group too.
  answer_t group;
  uint8_t id[MOB_PG_ID_SIZE] = {7};
  Ray__Rpc__DoubleEntry cpu = RAY__RPC__DOUBLE_ENTRY__INIT;
  cpu.key = "CPU";
  cpu.value = 1;
  Ray__Rpc__DoubleEntry *entries[] = {&cpu};
  Ray__Rpc__Bundle bundle = RAY__RPC__BUNDLE__INIT;
  bundle.unit_resources = entries;
  bundle.n_unit_resources = 1;
  Ray__Rpc__Bundle *bundles[] = {&bundle};
  Ray__Rpc__PlacementGroupSpec spec = RAY__RPC__PLACEMENT_GROUP_SPEC__INIT;
  spec.placement_group_id = mob_pb_bytes(id, sizeof id);
  spec.bundles = bundles;
  spec.n_bundles = 1;
  Ray__Rpc__CreatePlacementGroupRequest create = RAY__RPC__CREATE_PLACEMENT_GROUP_REQUEST__INIT;
  create.placement_group_spec = &spec;
  ask_later(&c, "/ray.rpc.PlacementGroupInfoGcsService/CreatePlacementGroup", &create,
            &ray__rpc__create_placement_group_reply__descriptor, &group);
  WAIT_FOR(&c, store.count > 0);
  run_for(&c, 30);
  assert_false(group.done);
  let_go(&store, MOB_OK);
  WAIT_FOR(&c, group.done);
  mob_pb_free(group.reply);
  assert_true(store.puts[MOB_TABLE_PLACEMENT_GROUP] >= 1);
  store.hold = false;
  cluster_close(&c);
  assert_true(store.closed);
}

static void test_a_store_that_fails(void **state) {
  (void)state;
  slow_store_t store = new_store();
  cluster_t c;
  cluster_open_with(&c, &store.base);
  answer_t out;
  store.fail = true;
  put_later(&c, "a", &out); // at once
  WAIT_FOR(&c, out.done);
  assert_int_equal(out.code, GRPC_STATUS_UNAVAILABLE);
  store.hold = true;
  put_later(&c, "b", &out); // later
  WAIT_FOR(&c, store.count == 1);
  let_go(&store, mob_fail(MOB_E_IO, "disk full"));
  WAIT_FOR(&c, out.done);
  assert_int_equal(out.code, GRPC_STATUS_UNAVAILABLE);
  store.hold = store.fail = false;
  cluster_close(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_waits_for_the_store),
      cmocka_unit_test(test_a_store_that_fails),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
