// Placement groups and actors on nodes that the test plays: two-phase reservation, refusals,
// deaths.
#include "tests/unit/gcs/cluster.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/hex.h"

#define PG(name) RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__PLACEMENT_GROUP_STATE__##name
#define ACTOR(name) RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__##name

static const char *const two_stages[] = {"GPU=8", "GPU=8"};

static void wait_later(cluster_t *c, const pg_id_t *id, answer_t *out) {
  Ray__Rpc__WaitPlacementGroupUntilReadyRequest request =
      RAY__RPC__WAIT_PLACEMENT_GROUP_UNTIL_READY_REQUEST__INIT;
  request.placement_group_id = mob_pb_bytes(id->bytes, sizeof id->bytes);
  ask_later(c, "/ray.rpc.PlacementGroupInfoGcsService/WaitPlacementGroupUntilReady", &request,
            &ray__rpc__wait_placement_group_until_ready_reply__descriptor, out);
}

static void remove_group(cluster_t *c, const pg_id_t *id) {
  Ray__Rpc__RemovePlacementGroupRequest request = RAY__RPC__REMOVE_PLACEMENT_GROUP_REQUEST__INIT;
  request.placement_group_id = mob_pb_bytes(id->bytes, sizeof id->bytes);
  mob_pb_free(ask(c, "/ray.rpc.PlacementGroupInfoGcsService/RemovePlacementGroup", &request,
                  &ray__rpc__remove_placement_group_reply__descriptor));
}

static int wait_code(answer_t *out) {
  int code = ((Ray__Rpc__WaitPlacementGroupUntilReadyReply *)out->reply)->status->code;
  mob_pb_free(out->reply);
  return code;
}

// Infeasible until a second node joins, and it says why; then placed at once.
static void test_placed_when_a_node_joins(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0}, b = {0};
  cluster_open(&c);
  add_job(&c, 1, "ns");
  node_join(&c, &a, "10.0.0.1", "CPU=4 GPU=8", true);
  pg_id_t id = create_group(&c, "stages", RAY__RPC__PLACEMENT_STRATEGY__STRICT_SPREAD, 2,
                            two_stages, false, NULL);
  answer_t ready;
  wait_later(&c, &id, &ready);
  run_for(&c, 50);
  assert_false(ready.done);
  Ray__Rpc__GetPlacementGroupReply *got = get_group(&c, &id);
  assert_int_equal(got->placement_group_table_data->state, PG(PENDING));
  assert_int_equal(got->placement_group_table_data->stats->scheduling_state,
                   RAY__RPC__PLACEMENT_GROUP_STATS__SCHEDULING_STATE__INFEASIBLE);
  assert_non_null(strstr(got->status->message, "2 bundles (STRICT_SPREAD) ask for {GPU: 16}"));
  assert_string_equal(got->placement_group_table_data->ray_namespace, "ns");
  mob_pb_free(got);
  uint64_t start = mob_now_ms();
  node_join(&c, &b, "10.0.0.2", "CPU=4 GPU=8", false);
  WAIT_FOR(&c, ready.done);
  assert_true(mob_now_ms() - start < 1000);
  assert_int_equal(wait_code(&ready), 0);
  assert_int_equal(a.prepared + b.prepared, 2);
  assert_int_equal(a.committed, 1);
  assert_int_equal(b.committed, 1);
  // A name is taken as long as its group lives.
  int code;
  create_group(&c, "stages", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, two_stages, false, &code);
  assert_int_equal(code, 4);
  remove_group(&c, &id);
  WAIT_FOR(&c, a.cancelled == 1 && b.cancelled == 1);
  assert_true(group_is(&c, &id, PG(REMOVED)));
  wait_later(&c, &id, &ready);
  WAIT_FOR(&c, ready.done);
  assert_int_equal(wait_code(&ready), 17);
  pg_id_t again =
      create_group(&c, "stages", RAY__RPC__PLACEMENT_STRATEGY__PACK, 2, two_stages, false, NULL);
  WAIT_FOR(&c, group_is(&c, &again, PG(CREATED)));
  node_leave(&a, true);
  node_leave(&b, true);
  cluster_close(&c);
}

static void test_refusal_gives_back(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0}, b = {0};
  cluster_open(&c);
  add_job(&c, 1, "");
  node_join(&c, &a, "10.0.0.1", "GPU=8", true);
  node_join(&c, &b, "10.0.0.2", "GPU=8", false);
  b.refuse_prepare = true;
  pg_id_t id =
      create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__SPREAD, 2, two_stages, false, NULL);
  WAIT_FOR(&c, a.cancelled >= 1); // what a had set aside
  assert_int_equal(a.committed, 0);
  assert_true(group_is(&c, &id, PG(PENDING)));
  b.refuse_prepare = false;
  WAIT_FOR(&c, group_is(&c, &id, PG(CREATED))); // tried again by itself
  assert_int_equal(mob_resources_get(&a.available, "GPU"), 0);
  assert_int_equal(mob_resources_get(&b.available, "GPU"), 0);
  node_leave(&a, false);
  node_leave(&b, false);
  cluster_close(&c);
}

// A node dies while its bundle is being set aside, and after.
static void test_node_death(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0}, b = {0}, d = {0};
  cluster_open(&c);
  add_job(&c, 1, "");
  node_join(&c, &a, "10.0.0.1", "GPU=8", true);
  node_join(&c, &b, "10.0.0.2", "GPU=8", false);
  b.hold_prepare = true;
  pg_id_t id =
      create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__SPREAD, 2, two_stages, false, NULL);
  WAIT_FOR(&c, b.held_prepare != NULL);
  mob_rpc_call_t *held = b.held_prepare;
  mob_rpc_client_close(b.client);
  WAIT_FOR(&c, !node_alive(&c, &b));
  mob_rpc_reply_status(held, GRPC_STATUS_CANCELLED, "");
  mob_rpc_server_close(b.server, 0, NULL, NULL);
  WAIT_FOR(&c, a.cancelled == 1);
  assert_true(group_is(&c, &id, PG(PENDING)));
  node_join(&c, &d, "10.0.0.3", "GPU=8", false);
  WAIT_FOR(&c, group_is(&c, &id, PG(CREATED)));
  // Now a placed bundle is lost: only that one moves.
  size_t prepared = a.prepared;
  mob_resources_free(&b.total);
  mob_resources_free(&b.available);
  b = (fake_node_t){0};
  node_leave(&d, false);
  WAIT_FOR(&c, group_is(&c, &id, PG(RESCHEDULING)));
  node_join(&c, &b, "10.0.0.4", "GPU=8", false);
  WAIT_FOR(&c, group_is(&c, &id, PG(CREATED)));
  assert_int_equal(a.prepared, prepared);
  assert_int_equal(b.committed, 1);
  node_leave(&a, true);
  node_leave(&b, true);
  cluster_close(&c);
}

// Removed while a node is still to answer: what it then holds is given back.
static void test_removed_under_way(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0};
  cluster_open(&c);
  add_job(&c, 1, "");
  node_join(&c, &a, "10.0.0.1", "GPU=8", true);
  a.hold_prepare = true;
  pg_id_t id = create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, two_stages, false, NULL);
  answer_t ready;
  wait_later(&c, &id, &ready);
  WAIT_FOR(&c, a.held_prepare != NULL);
  remove_group(&c, &id);
  WAIT_FOR(&c, ready.done);
  assert_int_equal(wait_code(&ready), 17);
  Ray__Rpc__PrepareBundleResourcesReply reply = RAY__RPC__PREPARE_BUNDLE_RESOURCES_REPLY__INIT;
  reply.success = true;
  mob_rpc_reply(a.held_prepare, &reply);
  WAIT_FOR(&c, a.cancelled == 1);
  assert_int_equal(a.committed, 0);
  node_leave(&a, true);
  cluster_close(&c);
}

static void test_bad_groups(void **state) {
  (void)state;
  cluster_t c;
  cluster_open(&c);
  int code;
  create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 0, NULL, false, &code);
  assert_int_equal(code, 4);
  create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, (const char *[]){"CPU=0"}, false,
               &code);
  assert_int_equal(code, 4);
  create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, (const char *[]){"CPU=-1"}, false,
               &code);
  assert_int_equal(code, 4);
  create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, (const char *[]){"CPU=nan"}, false,
               &code);
  assert_int_equal(code, 4);
  create_group(&c, "", (Ray__Rpc__PlacementStrategy)9, 1, (const char *[]){"CPU=1"}, false, &code);
  assert_int_equal(code, 4);
  cluster_close(&c);
}

// ------------------------------------------------------------------------------------------ actors

static void test_actor_in_group(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0};
  cluster_open(&c);
  add_job(&c, 1, "ns");
  node_join(&c, &a, "10.0.0.1", "CPU=4 GPU=8", true);
  pg_id_t id = create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, two_stages, false, NULL);
  actor_id_t actor;
  answer_t created;
  actor_args_t args = {.name = "stage0", .name_space = "ns", .resources = "GPU=8", .group = &id};
  assert_int_equal(create_actor(&c, &args, &actor, &created), 0); // before the group is placed
  WAIT_FOR(&c, created.done);
  Ray__Rpc__CreateActorReply *reply = created.reply;
  assert_int_equal(reply->status->code, 0);
  assert_int_equal(reply->actor_address->port, a.port);
  mob_pb_free(reply);
  char hex[2 * MOB_PG_ID_SIZE + 1];
  mob_hex(id.bytes, sizeof id.bytes, hex);
  char expect[128];
  static const char *const asked[] = {"GPU_group_%s: 8", "GPU_group_0_%s: 8",
                                      "bundle_group_%s: 0.001", "bundle_group_0_%s: 0.001"};
  for (size_t i = 0; i < MOB_LEN(asked); i++) {
    snprintf(expect, sizeof expect, asked[i], hex);
    assert_non_null(strstr(a.lease_resources, expect));
  }
  Ray__Rpc__GetActorInfoReply *info = get_actor(&c, &actor);
  assert_int_equal(info->actor_table_data->state, ACTOR(ALIVE));
  assert_int_equal(info->actor_table_data->pid, 4711);
  assert_string_equal(info->actor_table_data->class_name, "Stage");
  mob_pb_free(info);
  // The same name again is refused, in another namespace not.
  actor_id_t other;
  assert_int_equal(create_actor(&c, &args, &other, NULL), 20);
  args.name_space = "elsewhere";
  assert_int_equal(create_actor(&c, &args, &other, NULL), 0);
  remove_group(&c, &id); // takes its actors along
  WAIT_FOR(&c, actor_is(&c, &actor, ACTOR(DEAD)));
  WAIT_FOR(&c, a.killed == 1);
  assert_memory_equal(a.killed_actor, actor.bytes, sizeof actor.bytes);
  node_leave(&a, true);
  cluster_close(&c);
}

static void test_failing_constructor(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0};
  cluster_open(&c);
  add_job(&c, 1, "");
  node_join(&c, &a, "10.0.0.1", "CPU=4", true);
  a.fail_constructor = true;
  actor_id_t actor;
  answer_t created;
  assert_int_equal(
      create_actor(&c, &(actor_args_t){.resources = "CPU=1", .max_restarts = 5}, &actor, &created),
      0);
  WAIT_FOR(&c, created.done);
  Ray__Rpc__CreateActorReply *reply = created.reply;
  assert_int_equal(reply->status->code, 19);
  assert_string_equal(reply->status->message, "no such model");
  assert_int_equal(reply->death_cause->context_case,
                   RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_CREATION_TASK_FAILURE_CONTEXT);
  mob_pb_free(reply);
  assert_true(actor_is(&c, &actor, ACTOR(DEAD))); // no restart
  node_leave(&a, true);
  cluster_close(&c);
}

static void test_restarts(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0}, b = {0};
  cluster_open(&c);
  add_job(&c, 1, "");
  node_join(&c, &a, "10.0.0.1", "CPU=4", true);
  actor_id_t actor;
  answer_t created;
  assert_int_equal(
      create_actor(&c, &(actor_args_t){.resources = "CPU=1", .max_restarts = 2}, &actor, &created),
      0);
  WAIT_FOR(&c, created.done);
  mob_pb_free(created.reply);
  node_worker_dies(&a, RAY__RPC__WORKER_EXIT_TYPE__SYSTEM_ERROR, "killed by signal 9");
  WAIT_FOR(&c, a.pushed == 2 && actor_is(&c, &actor, ACTOR(ALIVE)));
  // Its node dies: it starts again on another.
  node_join(&c, &b, "10.0.0.2", "CPU=4", false);
  node_leave(&a, false);
  WAIT_FOR(&c, b.pushed == 1 && actor_is(&c, &actor, ACTOR(ALIVE)));
  node_worker_dies(&b, RAY__RPC__WORKER_EXIT_TYPE__SYSTEM_ERROR, "killed by signal 9");
  WAIT_FOR(&c, actor_is(&c, &actor, ACTOR(DEAD))); // the budget is spent
  Ray__Rpc__GetActorInfoReply *info = get_actor(&c, &actor);
  assert_int_equal(info->actor_table_data->num_restarts, 2);
  assert_non_null(
      strstr(info->actor_table_data->death_cause->actor_died_error_context->error_message,
             "killed by signal 9"));
  mob_pb_free(info);
  node_leave(&b, true);
  cluster_close(&c);
}

static void test_intended_exit_and_kill(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0};
  cluster_open(&c);
  add_job(&c, 1, "");
  node_join(&c, &a, "10.0.0.1", "CPU=4", true);
  actor_id_t actor;
  answer_t created;
  actor_args_t args = {.resources = "CPU=1", .max_restarts = -1};
  assert_int_equal(create_actor(&c, &args, &actor, &created), 0);
  WAIT_FOR(&c, created.done);
  mob_pb_free(created.reply);
  node_worker_dies(&a, RAY__RPC__WORKER_EXIT_TYPE__INTENDED_USER_EXIT, "exit 0");
  WAIT_FOR(&c, actor_is(&c, &actor, ACTOR(DEAD)));
  // Killed while its constructor runs: DEAD, and the worker is killed.
  a.hold_push = true;
  assert_int_equal(create_actor(&c, &args, &actor, &created), 0);
  WAIT_FOR(&c, a.held_push != NULL);
  Ray__Rpc__KillActorViaGcsRequest kill = RAY__RPC__KILL_ACTOR_VIA_GCS_REQUEST__INIT;
  kill.actor_id = mob_pb_bytes(actor.bytes, sizeof actor.bytes);
  kill.force_kill = kill.no_restart = true;
  mob_pb_free(ask(&c, "/ray.rpc.ActorInfoGcsService/KillActorViaGcs", &kill,
                  &ray__rpc__kill_actor_via_gcs_reply__descriptor));
  WAIT_FOR(&c, created.done);
  assert_int_equal(((Ray__Rpc__CreateActorReply *)created.reply)->status->code, 19);
  mob_pb_free(created.reply);
  WAIT_FOR(&c, a.killed == 1);
  mob_rpc_reply_status(a.held_push, GRPC_STATUS_CANCELLED, "");
  kill.actor_id = mob_pb_bytes("0123456789abcdef", 16);
  Ray__Rpc__KillActorViaGcsReply *reply =
      ask(&c, "/ray.rpc.ActorInfoGcsService/KillActorViaGcs", &kill,
          &ray__rpc__kill_actor_via_gcs_reply__descriptor);
  assert_int_equal(reply->status->code, 17);
  mob_pb_free(reply);
  node_leave(&a, true);
  cluster_close(&c);
}

// No node has room: it waits and says why; then one refuses once.
static void test_waits_for_room(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0};
  cluster_open(&c);
  add_job(&c, 1, "");
  actor_id_t actor;
  answer_t created;
  assert_int_equal(create_actor(&c, &(actor_args_t){.resources = "GPU=1"}, &actor, &created), 0);
  run_for(&c, 30);
  Ray__Rpc__GetActorInfoReply *info = get_actor(&c, &actor);
  assert_int_equal(info->actor_table_data->state, ACTOR(PENDING_CREATION));
  assert_string_equal(info->status->message,
                      "it asks for {GPU: 1}; the cluster's nodes have: no node");
  mob_pb_free(info);
  a.reject_lease = true;
  node_join(&c, &a, "10.0.0.1", "GPU=1", true);
  run_for(&c, 300);
  assert_int_equal(a.pushed, 0);
  a.reject_lease = false;
  node_say(&a);
  WAIT_FOR(&c, created.done);
  assert_int_equal(((Ray__Rpc__CreateActorReply *)created.reply)->status->code, 0);
  mob_pb_free(created.reply);
  node_leave(&a, true);
  cluster_close(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_placed_when_a_node_joins),
      cmocka_unit_test(test_refusal_gives_back),
      cmocka_unit_test(test_node_death),
      cmocka_unit_test(test_removed_under_way),
      cmocka_unit_test(test_bad_groups),
      cmocka_unit_test(test_actor_in_group),
      cmocka_unit_test(test_failing_constructor),
      cmocka_unit_test(test_restarts),
      cmocka_unit_test(test_intended_exit_and_kill),
      cmocka_unit_test(test_waits_for_room),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
