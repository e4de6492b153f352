// Key-value pairs, nodes and their deaths, jobs and their drivers, publishing: over the wire.
#include "tests/unit/gcs/cluster.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/hex.h"
#include "runtime/rpc/ray_version.h"

#define KV "/ray.rpc.InternalKVGcsService/"
#define NODES "/ray.rpc.NodeInfoGcsService/"
#define ACTOR(name) RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__##name

static ProtobufCBinaryData text(const char *s) {
  return mob_pb_bytes(s, strlen(s));
}

// ------------------------------------------------------------------------------------------- pairs

static bool kv_put(cluster_t *c, const char *ns, const char *key, const char *value, bool overwrite,
                   int *code) {
  Ray__Rpc__InternalKVPutRequest request = RAY__RPC__INTERNAL_KVPUT_REQUEST__INIT;
  request.namespace_ = text(ns);
  request.key = text(key);
  request.value = text(value);
  request.overwrite = overwrite;
  Ray__Rpc__InternalKVPutReply *reply =
      ask(c, KV "InternalKVPut", &request, &ray__rpc__internal_kvput_reply__descriptor);
  bool added = reply->added;
  if (code) *code = reply->status->code;
  mob_pb_free(reply);
  return added;
}

// The value, or "(CODE MESSAGE)". Static.
static const char *kv_get(cluster_t *c, const char *ns, const char *key) {
  static char out[4096];
  Ray__Rpc__InternalKVGetRequest request = RAY__RPC__INTERNAL_KVGET_REQUEST__INIT;
  request.namespace_ = text(ns);
  request.key = text(key);
  Ray__Rpc__InternalKVGetReply *reply =
      ask(c, KV "InternalKVGet", &request, &ray__rpc__internal_kvget_reply__descriptor);
  if (reply->status->code) {
    snprintf(out, sizeof out, "(%d %s)", reply->status->code, reply->status->message);
  } else {
    snprintf(out, sizeof out, "%.*s", (int)reply->value.len, (char *)reply->value.data);
  }
  mob_pb_free(reply);
  return out;
}

static int kv_del(cluster_t *c, const char *ns, const char *key, bool prefix) {
  Ray__Rpc__InternalKVDelRequest request = RAY__RPC__INTERNAL_KVDEL_REQUEST__INIT;
  request.namespace_ = text(ns);
  request.key = text(key);
  request.del_by_prefix = prefix;
  Ray__Rpc__InternalKVDelReply *reply =
      ask(c, KV "InternalKVDel", &request, &ray__rpc__internal_kvdel_reply__descriptor);
  int n = reply->deleted_num;
  mob_pb_free(reply);
  return n;
}

static size_t kv_keys(cluster_t *c, const char *ns, const char *prefix) {
  Ray__Rpc__InternalKVKeysRequest request = RAY__RPC__INTERNAL_KVKEYS_REQUEST__INIT;
  request.namespace_ = text(ns);
  request.prefix = text(prefix);
  Ray__Rpc__InternalKVKeysReply *reply =
      ask(c, KV "InternalKVKeys", &request, &ray__rpc__internal_kvkeys_reply__descriptor);
  size_t n = reply->n_results;
  mob_pb_free(reply);
  return n;
}

static void test_kv(void **state) {
  (void)state;
  cluster_t c;
  cluster_open(&c);
  assert_string_equal(kv_get(&c, "ns", "a"), "(17 Failed to find the key)");
  assert_true(kv_put(&c, "ns", "a", "1", false, NULL));
  assert_false(kv_put(&c, "ns", "a", "2", false, NULL)); // there already, and kept
  assert_string_equal(kv_get(&c, "ns", "a"), "1");
  assert_false(kv_put(&c, "ns", "a", "3", true, NULL)); // replaced, not added
  assert_string_equal(kv_get(&c, "ns", "a"), "3");
  assert_string_equal(kv_get(&c, "other", "a"), "(17 Failed to find the key)");
  assert_true(kv_put(&c, "", "a", "", false, NULL)); // the empty namespace, an empty value
  assert_string_equal(kv_get(&c, "", "a"), "");
  int code;
  kv_put(&c, "", "@namespace_x:y", "1", true, &code);
  assert_int_equal(code, 2);
  assert_int_equal(strncmp(kv_get(&c, "", "@namespace_ns:a"), "(2 ", 3), 0);
  kv_put(&c, "ns", "ab", "1", true, NULL);
  kv_put(&c, "ns", "b", "1", true, NULL);
  assert_int_equal(kv_keys(&c, "ns", "a"), 2);
  assert_int_equal(kv_keys(&c, "ns", ""), 3);
  assert_int_equal(kv_keys(&c, "none", ""), 0);
  assert_int_equal(kv_del(&c, "ns", "a", false), 1);
  assert_int_equal(kv_del(&c, "ns", "a", false), 0);
  assert_int_equal(kv_del(&c, "ns", "", true), 2);
  assert_int_equal(kv_keys(&c, "ns", ""), 0);
  // What a head puts there.
  assert_string_equal(kv_get(&c, "cluster", "CLUSTER_METADATA"),
                      "{\"ray_version\": \"" MOB_RAY_VERSION "\", \"python_version\": \"3.11.7\", "
                      "\"ray_init_cluster\": false}");
  assert_string_equal(kv_get(&c, "session", "session_name"), "s");
  assert_string_equal(kv_get(&c, "__autoscaler", "__autoscaler_v2_enabled"), "0");
  cluster_close(&c);
}

static void test_multi_get(void **state) {
  (void)state;
  cluster_t c;
  cluster_open(&c);
  kv_put(&c, "ns", "a", "1", true, NULL);
  kv_put(&c, "ns", "c", "3", true, NULL);
  ProtobufCBinaryData keys[] = {text("a"), text("b"), text("c")};
  Ray__Rpc__InternalKVMultiGetRequest request = RAY__RPC__INTERNAL_KVMULTI_GET_REQUEST__INIT;
  request.namespace_ = text("ns");
  request.keys = keys;
  request.n_keys = 3;
  Ray__Rpc__InternalKVMultiGetReply *reply =
      ask(&c, KV "InternalKVMultiGet", &request, &ray__rpc__internal_kvmulti_get_reply__descriptor);
  assert_int_equal(reply->n_results, 2);
  assert_true(mob_pb_bytes_equal(reply->results[1]->value, "3", 1));
  mob_pb_free(reply);
  cluster_close(&c);
}

// The exact bytes of two answers: what the other implementations of this protocol send.
static void test_golden_bytes(void **state) {
  (void)state;
  Ray__Rpc__GcsStatus status = RAY__RPC__GCS_STATUS__INIT;
  Ray__Rpc__InternalKVGetReply missing = RAY__RPC__INTERNAL_KVGET_REPLY__INIT;
  missing.status = &status;
  status.code = 17;
  status.message = "Failed to find the key";
  char hex[256];
  size_t len;
  void *bytes = mob_pb_pack(&missing, &len);
  assert_string_equal(mob_hex(bytes, len, hex),
                      "0a1a081112164661696c656420746f2066696e6420746865206b6579");
  free(bytes);
  protobuf_c_boolean alive[] = {1, 0};
  Ray__Rpc__CheckAliveReply check = RAY__RPC__CHECK_ALIVE_REPLY__INIT;
  Ray__Rpc__GcsStatus ok = RAY__RPC__GCS_STATUS__INIT;
  check.status = &ok;
  check.ray_version = "2.55.0";
  check.raylet_alive = alive;
  check.n_raylet_alive = 2;
  bytes = mob_pb_pack(&check, &len);
  assert_string_equal(mob_hex(bytes, len, hex), "0a001206322e35352e301a020100");
  free(bytes);
  Ray__Rpc__GetAllNodeInfoRequest filter = RAY__RPC__GET_ALL_NODE_INFO_REQUEST__INIT;
  filter.opt_state_filter_case = RAY__RPC__GET_ALL_NODE_INFO_REQUEST__OPT_STATE_FILTER_STATE_FILTER;
  bytes = mob_pb_pack(&filter, &len);
  assert_string_equal(mob_hex(bytes, len, hex), "1800"); // present, though 0
  free(bytes);
}

// ------------------------------------------------------------------------------------------- nodes

// A status that is too long for the reply is cut between characters: clients refuse broken UTF-8.
static void test_long_names(void **state) {
  (void)state;
  cluster_t c;
  cluster_open(&c);
  char name[2 * 1024 + 2] = "";
  for (int front = 0; front < 2; front++) {
    strcpy(name, front ? "x" : "");
    for (int i = 0; i < 1024; i++) strcat(name, "\u00e9");
    Ray__Rpc__GetNamedActorInfoRequest request = RAY__RPC__GET_NAMED_ACTOR_INFO_REQUEST__INIT;
    request.name = name;
    Ray__Rpc__GetNamedActorInfoReply *reply =
        ask(&c, "/ray.rpc.ActorInfoGcsService/GetNamedActorInfo", &request,
            &ray__rpc__get_named_actor_info_reply__descriptor);
    assert_true(strlen(reply->status->message) > 1000);
    mob_pb_free(reply);
  }
  cluster_close(&c);
}

static void test_nodes(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0}, b = {0};
  cluster_open(&c);
  node_join(&c, &a, "10.0.0.1", "CPU=4 GPU=8", true);
  node_join(&c, &b, "10.0.0.2", "CPU=4", false);
  assert_true(node_alive(&c, &a));
  char hex[64];
  mob_hex(a.id, sizeof a.id, hex);
  assert_string_equal(kv_get(&c, "job", "head_node_id"), hex);
  uint64_t start = mob_now_ms();
  mob_rpc_client_close(b.client); // as if its process died
  WAIT_FOR(&c, !node_alive(&c, &b));
  assert_true(mob_now_ms() - start <= 100);
  mob_rpc_server_close(b.server, 0, NULL, NULL);
  Ray__Rpc__GetAllNodeInfoRequest request = RAY__RPC__GET_ALL_NODE_INFO_REQUEST__INIT;
  Ray__Rpc__GetAllNodeInfoReply *reply =
      ask(&c, NODES "GetAllNodeInfo", &request, &ray__rpc__get_all_node_info_reply__descriptor);
  assert_int_equal(reply->n_node_info_list, 2);
  assert_int_equal(reply->total, 2);
  const Ray__Rpc__GcsNodeInfo *dead = reply->node_info_list[1]; // the living come first
  assert_int_equal(dead->state, RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__DEAD);
  assert_int_equal(dead->death_info->reason,
                   RAY__RPC__NODE_DEATH_INFO__REASON__UNEXPECTED_TERMINATION);
  assert_true(dead->end_time_ms > 0);
  mob_pb_free(reply);
  request.opt_state_filter_case =
      RAY__RPC__GET_ALL_NODE_INFO_REQUEST__OPT_STATE_FILTER_STATE_FILTER;
  request.state_filter = RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__ALIVE;
  reply = ask(&c, NODES "GetAllNodeInfo", &request, &ray__rpc__get_all_node_info_reply__descriptor);
  assert_int_equal(reply->n_node_info_list, 1);
  assert_int_equal(reply->num_filtered, 1);
  mob_pb_free(reply);
  // A new head takes the place of the former.
  fake_node_t head = {0};
  node_join(&c, &head, "10.0.0.9", "CPU=1", true);
  WAIT_FOR(&c, !node_alive(&c, &a));
  assert_true(node_alive(&c, &head));
  mob_resources_free(&b.total);
  mob_resources_free(&b.available);
  node_leave(&a, false);
  node_leave(&head, true);
  assert_false(node_alive(&c, &head));
  // A dead id does not come back.
  Ray__Rpc__GcsNodeInfo info = RAY__RPC__GCS_NODE_INFO__INIT;
  Ray__Rpc__RegisterNodeRequest again = RAY__RPC__REGISTER_NODE_REQUEST__INIT;
  again.node_info = &info;
  info.node_id = mob_pb_bytes(head.id, sizeof head.id);
  info.node_manager_address = "10.0.0.9";
  Ray__Rpc__RegisterNodeReply *registered =
      ask(&c, NODES "RegisterNode", &again, &ray__rpc__register_node_reply__descriptor);
  assert_int_equal(registered->status->code, 4);
  mob_pb_free(registered);
  info.node_id = text("short");
  registered = ask(&c, NODES "RegisterNode", &again, &ray__rpc__register_node_reply__descriptor);
  assert_int_equal(registered->status->code, 4);
  mob_pb_free(registered);
  cluster_close(&c);
}

static void test_silent_node(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0}, b = {0};
  cluster_open(&c);
  node_join(&c, &a, "10.0.0.1", "CPU=4", true);
  node_join(&c, &b, "10.0.0.2", "CPU=4", false);
  run_for(&c, 600);
  uint64_t start = mob_now_ms();
  b.silent = true; // its connection stands
  WAIT_FOR(&c, !node_alive(&c, &b));
  assert_in_range(mob_now_ms() - start, 3500, 5000);
  assert_true(node_alive(&c, &a));
  WAIT_FOR(&c, b.stream_closed); // it is told
  node_leave(&a, true);
  node_leave(&b, false);
  cluster_close(&c);
}

// A node that keeps no heartbeat is asked for its health, and lives as long as it says so or talks.
static void test_raylet_health(void **state) {
  (void)state;
  setenv("RAY_health_check_initial_delay_ms", "0", 1);
  setenv("RAY_health_check_period_ms", "100", 1);
  setenv("RAY_health_check_timeout_ms", "500", 1);
  setenv("RAY_health_check_failure_threshold", "2", 1);
  cluster_t c;
  fake_node_t a = {.raylet = true, .serving = 1};
  cluster_open(&c);
  node_join(&c, &a, "10.0.0.1", "CPU=4", false);
  run_for(&c, 1500);
  assert_true(node_alive(&c, &a)); // silent on its stream, but healthy
  // What it queues is part of the demand.
  WAIT_FOR(&c, a.load_asked >= 1);
  run_for(&c, 30);
  Ray__Rpc__Autoscaler__GetClusterResourceStateRequest request =
      RAY__RPC__AUTOSCALER__GET_CLUSTER_RESOURCE_STATE_REQUEST__INIT;
  Ray__Rpc__Autoscaler__GetClusterResourceStateReply *reply =
      ask(&c, "/ray.rpc.autoscaler.AutoscalerStateService/GetClusterResourceState", &request,
          &ray__rpc__autoscaler__get_cluster_resource_state_reply__descriptor);
  assert_int_equal(reply->cluster_resource_state->n_pending_resource_requests, 1);
  assert_int_equal(reply->cluster_resource_state->pending_resource_requests[0]->count, 3);
  mob_pb_free(reply);
  // Its stream breaks: not its death, as with Ray.
  mob_rpc_stream_close(a.stream, GRPC_STATUS_CANCELLED, "");
  WAIT_FOR(&c, a.stream_closed);
  run_for(&c, 300);
  assert_true(node_alive(&c, &a));
  a.serving = 0;
  WAIT_FOR(&c, !node_alive(&c, &a));
  node_leave(&a, false);
  unsetenv("RAY_health_check_initial_delay_ms");
  unsetenv("RAY_health_check_period_ms");
  unsetenv("RAY_health_check_timeout_ms");
  unsetenv("RAY_health_check_failure_threshold");
  cluster_close(&c);
}

static void test_wrong_cluster(void **state) {
  (void)state;
  cluster_t c;
  cluster_open(&c);
  Ray__Rpc__GetClusterIdRequest request = RAY__RPC__GET_CLUSTER_ID_REQUEST__INIT;
  Ray__Rpc__GetClusterIdReply *reply =
      ask(&c, NODES "GetClusterId", &request, &ray__rpc__get_cluster_id_reply__descriptor);
  assert_int_equal(reply->cluster_id.len, 28);
  char hex[64];
  mob_hex(reply->cluster_id.data, 28, hex);
  mob_pb_free(reply);
  mob_rpc_client_set_metadata(c.client, "ray_cluster_id", hex);
  assert_string_equal(kv_get(&c, "session", "session_name"), "s");
  hex[0] = hex[0] == '0' ? '1' : '0';
  mob_rpc_client_set_metadata(c.client, "ray_cluster_id", hex);
  answer_t out;
  Ray__Rpc__InternalKVGetRequest get = RAY__RPC__INTERNAL_KVGET_REQUEST__INIT;
  ask_later(&c, KV "InternalKVGet", &get, &ray__rpc__internal_kvget_reply__descriptor, &out);
  WAIT_FOR(&c, out.done);
  assert_int_equal(out.code, GRPC_STATUS_UNAUTHENTICATED);
  cluster_close(&c);
}

static void test_status_report(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0};
  cluster_open(&c);
  node_join(&c, &a, "10.0.0.1", "CPU=4 GPU=8", true);
  create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, (const char *[]){"GPU=100"}, false,
               NULL);
  run_for(&c, 20);
  json_t *report = json_loads(kv_get(&c, "", "__autoscaling_status"), 0, NULL);
  assert_non_null(report);
  json_t *metrics = json_object_get(report, "load_metrics_report");
  assert_true(json_real_value(json_array_get(
                  json_object_get(json_object_get(metrics, "usage"), "GPU"), 1)) == 8.0);
  json_t *demand = json_object_get(metrics, "pg_demand");
  assert_int_equal(json_array_size(demand), 1);
  assert_string_equal(
      json_string_value(json_object_get(json_array_get(json_array_get(demand, 0), 0), "strategy")),
      "PACK");
  json_t *active = json_object_get(json_object_get(report, "autoscaler_report"), "active_nodes");
  assert_int_equal(json_object_size(active), 1);
  json_decref(report);
  node_leave(&a, true);
  cluster_close(&c);
}

// -------------------------------------------------------------------------------------------- jobs

typedef struct driver {
  mob_rpc_stream_t *stream;
  bool closed, beat, answer;
} driver_t;

static void on_driver_message(void *owner, mob_rpc_stream_t *stream, const uint8_t *data,
                              size_t len) {
  (void)data, (void)len;
  driver_t *d = owner;
  d->beat = true;
  if (d->answer) mob_rpc_stream_send(stream, "", 0);
}

static void on_driver_close(void *owner, mob_rpc_stream_t *stream, grpc_status_code code,
                            const char *why) {
  (void)stream, (void)code, (void)why;
  ((driver_t *)owner)->closed = true;
}

static const mob_rpc_stream_events_t driver_events = {on_driver_message, on_driver_close, NULL};

static bool job_dead(cluster_t *c, uint32_t number) {
  Ray__Rpc__GetAllJobInfoRequest request = RAY__RPC__GET_ALL_JOB_INFO_REQUEST__INIT;
  Ray__Rpc__GetAllJobInfoReply *reply = ask(c, "/ray.rpc.JobInfoGcsService/GetAllJobInfo", &request,
                                            &ray__rpc__get_all_job_info_reply__descriptor);
  bool dead = false;
  for (size_t i = 0; i < reply->n_job_info_list; i++) {
    if (mob_pb_bytes_equal(reply->job_info_list[i]->job_id, &number, sizeof number)) {
      dead = reply->job_info_list[i]->is_dead;
    }
  }
  mob_pb_free(reply);
  return dead;
}

// A driver's stream ends: what is not detached goes with it.
static void test_driver_gone(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0};
  cluster_open(&c);
  Ray__Rpc__GetNextJobIDRequest next = RAY__RPC__GET_NEXT_JOB_IDREQUEST__INIT;
  for (int i = 1; i <= 2; i++) {
    Ray__Rpc__GetNextJobIDReply *id = ask(&c, "/ray.rpc.JobInfoGcsService/GetNextJobID", &next,
                                          &ray__rpc__get_next_job_idreply__descriptor);
    assert_int_equal(id->job_id, i);
    mob_pb_free(id);
  }
  add_job(&c, 1, "ns");
  node_join(&c, &a, "10.0.0.1", "CPU=8", true);
  char address[64];
  snprintf(address, sizeof address, "127.0.0.1:%d", c.port);
  mob_rpc_client_t *client;
  assert_int_equal(mob_rpc_client_new(c.rpc, address, NULL, &client), MOB_OK);
  mob_rpc_client_set_metadata(client, "job_id", "01000000");
  driver_t driver = {.answer = true};
  driver.stream = mob_rpc_stream_open(client, "/mobula.Driver/Hold", &driver_events, &driver);
  WAIT_FOR(&c, driver.beat);
  const char *bundle[] = {"CPU=1"};
  pg_id_t own = create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, bundle, false, NULL);
  pg_id_t detached =
      create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1, bundle, true, NULL);
  actor_id_t mine, free_one;
  answer_t created[2];
  create_actor(&c, &(actor_args_t){.resources = "CPU=1"}, &mine, &created[0]);
  create_actor(&c, &(actor_args_t){.resources = "CPU=1", .detached = true}, &free_one, &created[1]);
  WAIT_FOR(&c, created[0].done && created[1].done);
  mob_pb_free(created[0].reply);
  mob_pb_free(created[1].reply);
  uint64_t start = mob_now_ms();
  mob_rpc_client_close(client); // the driver's process dies
  WAIT_FOR(&c, job_dead(&c, 1));
  assert_true(mob_now_ms() - start <= 100);
  WAIT_FOR(&c, actor_is(&c, &mine, ACTOR(DEAD)));
  assert_true(actor_is(&c, &free_one, ACTOR(ALIVE)));
  assert_true(
      group_is(&c, &own, RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__PLACEMENT_GROUP_STATE__REMOVED));
  assert_true(group_is(&c, &detached,
                       RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__PLACEMENT_GROUP_STATE__CREATED));
  WAIT_FOR(&c, a.killed == 1);
  node_leave(&a, true);
  cluster_close(&c);
}

static void test_driver_silent(void **state) {
  (void)state;
  cluster_t c;
  cluster_open(&c);
  add_job(&c, 1, "ns");
  mob_rpc_client_set_metadata(c.client, "job_id", "01000000");
  driver_t driver = {.answer = false}, stranger = {0};
  driver.stream = mob_rpc_stream_open(c.client, "/mobula.Driver/Hold", &driver_events, &driver);
  WAIT_FOR(&c, driver.beat);
  uint64_t start = mob_now_ms();
  WAIT_FOR(&c, job_dead(&c, 1));
  assert_in_range(mob_now_ms() - start, 3500, 5000);
  WAIT_FOR(&c, driver.closed);
  mob_rpc_client_set_metadata(c.client, "job_id", "77000000"); // no such job
  stranger.stream = mob_rpc_stream_open(c.client, "/mobula.Driver/Hold", &driver_events, &stranger);
  WAIT_FOR(&c, stranger.closed);
  cluster_close(&c);
}

// -------------------------------------------------------------------------------------- publishing

static void subscribe(cluster_t *c, const char *who, Ray__Rpc__ChannelType channel, const char *key,
                      bool on) {
  Ray__Rpc__SubMessage sub = RAY__RPC__SUB_MESSAGE__INIT;
  Ray__Rpc__UnsubscribeMessage unsub = RAY__RPC__UNSUBSCRIBE_MESSAGE__INIT;
  Ray__Rpc__Command command = RAY__RPC__COMMAND__INIT;
  command.channel_type = channel;
  command.key_id = text(key);
  if (on) {
    command.command_message_one_of_case =
        RAY__RPC__COMMAND__COMMAND_MESSAGE_ONE_OF_SUBSCRIBE_MESSAGE;
    command.subscribe_message = &sub;
  } else {
    command.command_message_one_of_case =
        RAY__RPC__COMMAND__COMMAND_MESSAGE_ONE_OF_UNSUBSCRIBE_MESSAGE;
    command.unsubscribe_message = &unsub;
  }
  Ray__Rpc__Command *list[] = {&command};
  Ray__Rpc__GcsSubscriberCommandBatchRequest request =
      RAY__RPC__GCS_SUBSCRIBER_COMMAND_BATCH_REQUEST__INIT;
  request.subscriber_id = text(who);
  request.commands = list;
  request.n_commands = 1;
  mob_pb_free(ask(c, "/ray.rpc.InternalPubSubGcsService/GcsSubscriberCommandBatch", &request,
                  &ray__rpc__gcs_subscriber_command_batch_reply__descriptor));
}

static mob_rpc_pending_t *poll_later(cluster_t *c, const char *who, int64_t upto,
                                     ProtobufCBinaryData publisher, answer_t *out) {
  Ray__Rpc__GcsSubscriberPollRequest request = RAY__RPC__GCS_SUBSCRIBER_POLL_REQUEST__INIT;
  request.subscriber_id = text(who);
  request.max_processed_sequence_id = upto;
  request.publisher_id = publisher;
  return ask_later(c, "/ray.rpc.InternalPubSubGcsService/GcsSubscriberPoll", &request,
                   &ray__rpc__gcs_subscriber_poll_reply__descriptor, out);
}

static void publish_error(cluster_t *c, const char *message) {
  Ray__Rpc__ErrorTableData error = RAY__RPC__ERROR_TABLE_DATA__INIT;
  error.job_id = text("\x01\x02\x03\x04");
  error.error_message = (char *)message;
  Ray__Rpc__ReportJobErrorRequest request = RAY__RPC__REPORT_JOB_ERROR_REQUEST__INIT;
  request.job_error = &error;
  mob_pb_free(ask(c, "/ray.rpc.JobInfoGcsService/ReportJobError", &request,
                  &ray__rpc__report_job_error_reply__descriptor));
}

static const char *nth(answer_t *out, size_t i) {
  Ray__Rpc__GcsSubscriberPollReply *reply = out->reply;
  assert_true(i < reply->n_pub_messages);
  return reply->pub_messages[i]->error_info_message->error_message;
}

static void test_pubsub(void **state) {
  (void)state;
  cluster_t c;
  cluster_open(&c);
  const Ray__Rpc__ChannelType errors = RAY__RPC__CHANNEL_TYPE__RAY_ERROR_INFO_CHANNEL;
  publish_error(&c, "before"); // nobody listens: lost
  subscribe(&c, "all", errors, "", true);
  subscribe(&c, "keyed", errors, "other", true);
  answer_t poll, other;
  mob_rpc_pending_t *waiting = poll_later(&c, "keyed", 0, text(""), &other);
  poll_later(&c, "all", 0, text(""), &poll);
  run_for(&c, 30);
  assert_false(poll.done); // it waits
  publish_error(&c, "one");
  WAIT_FOR(&c, poll.done);
  Ray__Rpc__GcsSubscriberPollReply *reply = poll.reply;
  assert_int_equal(reply->n_pub_messages, 1);
  assert_string_equal(nth(&poll, 0), "one");
  assert_int_equal(reply->publisher_id.len, 28);
  int64_t seen = reply->pub_messages[0]->sequence_id;
  uint8_t publisher[28];
  memcpy(publisher, reply->publisher_id.data, 28);
  mob_pb_free(reply);
  publish_error(&c, "two");
  publish_error(&c, "three");
  // Not confirmed: it comes again, in order, before the newer ones.
  poll_later(&c, "all", 0, mob_pb_bytes(publisher, 28), &poll);
  WAIT_FOR(&c, poll.done);
  assert_string_equal(nth(&poll, 0), "one");
  assert_string_equal(nth(&poll, 2), "three");
  mob_pb_free(poll.reply);
  poll_later(&c, "all", seen, mob_pb_bytes(publisher, 28), &poll);
  WAIT_FOR(&c, poll.done);
  assert_string_equal(nth(&poll, 0), "two");
  assert_int_equal(((Ray__Rpc__GcsSubscriberPollReply *)poll.reply)->n_pub_messages, 2);
  mob_pb_free(poll.reply);
  // Numbers of another publisher's confirm nothing.
  poll_later(&c, "all", 1000, text("0123456789012345678901234567"), &poll);
  WAIT_FOR(&c, poll.done);
  assert_string_equal(nth(&poll, 0), "two");
  mob_pb_free(poll.reply);
  assert_false(other.done); // another key
  mob_rpc_cancel(waiting);
  WAIT_FOR(&c, other.done);
  assert_int_equal(other.code, GRPC_STATUS_CANCELLED);
  subscribe(&c, "all", errors, "", false);
  poll_later(&c, "all", 1000, mob_pb_bytes(publisher, 28), &poll);
  publish_error(&c, "four");
  run_for(&c, 30);
  assert_false(poll.done);                                          // not subscribed any more
  poll_later(&c, "all", 1000, mob_pb_bytes(publisher, 28), &other); // ends the former, empty
  WAIT_FOR(&c, poll.done);
  assert_int_equal(((Ray__Rpc__GcsSubscriberPollReply *)poll.reply)->n_pub_messages, 0);
  mob_pb_free(poll.reply);
  cluster_close(&c); // the last poll is answered by the closing
  assert_true(other.done);
  assert_null(other.reply);
}

// A subscriber to one actor sees its states in order.
static void test_actor_channel(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0};
  cluster_open(&c);
  add_job(&c, 1, "");
  subscribe(&c, "me", RAY__RPC__CHANNEL_TYPE__GCS_ACTOR_CHANNEL, "", true);
  node_join(&c, &a, "10.0.0.1", "CPU=8", true);
  actor_id_t id;
  answer_t created;
  create_actor(&c, &(actor_args_t){.resources = "CPU=1", .max_restarts = 1}, &id, &created);
  WAIT_FOR(&c, created.done);
  mob_pb_free(created.reply);
  node_worker_dies(&a, RAY__RPC__WORKER_EXIT_TYPE__SYSTEM_ERROR, "x");
  WAIT_FOR(&c, actor_is(&c, &id, ACTOR(ALIVE)) && a.pushed == 2);
  node_worker_dies(&a, RAY__RPC__WORKER_EXIT_TYPE__SYSTEM_ERROR, "y");
  WAIT_FOR(&c, actor_is(&c, &id, ACTOR(DEAD)));
  answer_t poll;
  poll_later(&c, "me", 0, text(""), &poll);
  WAIT_FOR(&c, poll.done);
  Ray__Rpc__GcsSubscriberPollReply *reply = poll.reply;
  static const int expect[] = {ACTOR(PENDING_CREATION), ACTOR(ALIVE), ACTOR(RESTARTING),
                               ACTOR(ALIVE), ACTOR(DEAD)};
  assert_int_equal(reply->n_pub_messages, MOB_LEN(expect));
  for (size_t i = 0; i < MOB_LEN(expect); i++) {
    assert_int_equal(reply->pub_messages[i]->actor_message->state, expect[i]);
    if (i)
      assert_true(reply->pub_messages[i]->sequence_id > reply->pub_messages[i - 1]->sequence_id);
  }
  mob_pb_free(reply);
  node_leave(&a, true);
  cluster_close(&c);
}

static void test_drain(void **state) {
  (void)state;
  cluster_t c;
  fake_node_t a = {0};
  cluster_open(&c);
  add_job(&c, 1, "");
  node_join(&c, &a, "10.0.0.1", "CPU=8", true);
  Ray__Rpc__Autoscaler__DrainNodeRequest request = RAY__RPC__AUTOSCALER__DRAIN_NODE_REQUEST__INIT;
  request.node_id = mob_pb_bytes(a.id, sizeof a.id);
  Ray__Rpc__Autoscaler__DrainNodeReply *reply =
      ask(&c, "/ray.rpc.autoscaler.AutoscalerStateService/DrainNode", &request,
          &ray__rpc__autoscaler__drain_node_reply__descriptor);
  assert_true(reply->is_accepted);
  mob_pb_free(reply);
  pg_id_t id = create_group(&c, "", RAY__RPC__PLACEMENT_STRATEGY__PACK, 1,
                            (const char *[]){"CPU=1"}, false, NULL);
  run_for(&c, 30);
  assert_int_equal(a.prepared, 0); // nothing new is placed there
  assert_true(
      group_is(&c, &id, RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__PLACEMENT_GROUP_STATE__PENDING));
  Ray__Rpc__Autoscaler__GetClusterStatusRequest status =
      RAY__RPC__AUTOSCALER__GET_CLUSTER_STATUS_REQUEST__INIT;
  Ray__Rpc__Autoscaler__GetClusterStatusReply *got =
      ask(&c, "/ray.rpc.autoscaler.AutoscalerStateService/GetClusterStatus", &status,
          &ray__rpc__autoscaler__get_cluster_status_reply__descriptor);
  assert_int_equal(got->cluster_resource_state->n_node_states, 1);
  assert_int_equal(got->cluster_resource_state->node_states[0]->status,
                   RAY__RPC__AUTOSCALER__NODE_STATUS__DRAINING);
  assert_int_equal(got->cluster_resource_state->n_pending_gang_resource_requests, 1);
  mob_pb_free(got);
  node_leave(&a, true);
  cluster_close(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_kv),
      cmocka_unit_test(test_multi_get),
      cmocka_unit_test(test_golden_bytes),
      cmocka_unit_test(test_long_names),
      cmocka_unit_test(test_nodes),
      cmocka_unit_test(test_silent_node),
      cmocka_unit_test(test_raylet_health),
      cmocka_unit_test(test_wrong_cluster),
      cmocka_unit_test(test_status_report),
      cmocka_unit_test(test_driver_gone),
      cmocka_unit_test(test_driver_silent),
      cmocka_unit_test(test_pubsub),
      cmocka_unit_test(test_actor_channel),
      cmocka_unit_test(test_drain),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
