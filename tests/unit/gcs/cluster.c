#include "tests/unit/gcs/cluster.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/hex.h"

static void on_tick(uv_timer_t *timer) {
  (void)timer;
}

void cluster_open(cluster_t *c) {
  cluster_open_with(c, NULL);
}

void cluster_open_with(cluster_t *c, mob_store_t *store) {
  *c = (cluster_t){0};
  uv_loop_init(&c->loop);
  uv_timer_init(&c->loop, &c->tick);
  uv_timer_start(&c->tick, on_tick, 10, 10);
  assert_int_equal(mob_rpc_new(&c->loop, &c->rpc), MOB_OK);
  mob_gcs_config_t config = {.listen_ip = "127.0.0.1",
                             .session_name = "s",
                             .session_dir = "/nowhere",
                             .python_version = "3.11.7",
                             .store = store};
  assert_int_equal(mob_gcs_start(c->rpc, &config, &c->gcs, &c->port), MOB_OK);
  char address[64];
  snprintf(address, sizeof address, "127.0.0.1:%d", c->port);
  assert_int_equal(mob_rpc_client_new(c->rpc, address, NULL, &c->client), MOB_OK);
}

static void on_rpc_closed(void *arg) {
  ((cluster_t *)arg)->closed = true;
}

static void on_gcs_closed(void *arg) {
  cluster_t *c = arg;
  mob_rpc_close(c->rpc, on_rpc_closed, c);
}

void cluster_close(cluster_t *c) {
  mob_gcs_close(c->gcs, on_gcs_closed, c);
  WAIT_FOR(c, c->closed);
  uv_close((uv_handle_t *)&c->tick, NULL);
  uv_run(&c->loop, UV_RUN_DEFAULT);
  assert_int_equal(uv_loop_close(&c->loop), 0);
}

void run_for(cluster_t *c, uint64_t ms) {
  uint64_t until = mob_now_ms() + ms;
  while (mob_now_ms() < until) uv_run(&c->loop, UV_RUN_ONCE);
}

static void on_answer(void *arg, grpc_status_code code, const char *why, const void *reply) {
  answer_t *out = arg;
  (void)why;
  out->done = true;
  out->code = code;
  out->reply = reply ? mob_pb_clone(reply) : NULL;
}

mob_rpc_pending_t *ask_later(cluster_t *c, const char *path, const void *request,
                             const ProtobufCMessageDescriptor *reply, answer_t *out) {
  *out = (answer_t){0};
  return mob_rpc_call(c->client, path, request, reply, 0, on_answer, out);
}

void *ask(cluster_t *c, const char *path, const void *request,
          const ProtobufCMessageDescriptor *reply) {
  answer_t out;
  ask_later(c, path, request, reply, &out);
  WAIT_FOR(c, out.done);
  assert_int_equal(out.code, GRPC_STATUS_OK);
  return out.reply;
}

mob_resources_t parse_resources(const char *text) {
  mob_resources_t set = {0};
  char *copy = mob_strdup(text), *save = NULL;
  for (char *word = strtok_r(copy, " ", &save); word; word = strtok_r(NULL, " ", &save)) {
    char *equals = strchr(word, '=');
    *equals = 0;
    mob_resources_set(&set, word, mob_resource_fixed(strtod(equals + 1, NULL)));
  }
  free(copy);
  return set;
}

// ------------------------------------------------------------------------------------------- nodes

static void apply(fake_node_t *node, Ray__Rpc__Bundle **bundles, size_t n, int step) {
  for (size_t i = 0; i < n; i++) {
    mob_resources_t need = {0}, named = {0};
    mob_resources_read(&need, bundles[i]->unit_resources, bundles[i]->n_unit_resources);
    char hex[2 * MOB_PG_ID_SIZE + 1];
    mob_hex(bundles[i]->bundle_id->placement_group_id.data, MOB_PG_ID_SIZE, hex);
    mob_resources_of_bundle(&named, &need, hex, bundles[i]->bundle_id->bundle_index);
    if (step == 0) mob_resources_sub(&node->available, &need);
    if (step == 1) mob_resources_add(&node->available, &named);
    if (step == 1) mob_resources_add(&node->total, &named);
    if (step == 2) mob_resources_add(&node->available, &need);
    mob_resources_free(&need);
    mob_resources_free(&named);
  }
  node_say(node);
}

static void answer_prepare(fake_node_t *node, mob_rpc_call_t *call, bool success) {
  (void)node;
  Ray__Rpc__PrepareBundleResourcesReply reply = RAY__RPC__PREPARE_BUNDLE_RESOURCES_REPLY__INIT;
  reply.success = success;
  mob_rpc_reply(call, &reply);
}

static void on_prepare(void *owner, mob_rpc_call_t *call, const void *request) {
  fake_node_t *node = owner;
  const Ray__Rpc__PrepareBundleResourcesRequest *req = request;
  if (node->hold_prepare) {
    node->held_prepare = call;
    return;
  }
  if (!node->refuse_prepare) {
    node->prepared += req->n_bundle_specs;
    apply(node, req->bundle_specs, req->n_bundle_specs, 0);
  }
  answer_prepare(node, call, !node->refuse_prepare);
}

static void on_commit(void *owner, mob_rpc_call_t *call, const void *request) {
  fake_node_t *node = owner;
  const Ray__Rpc__CommitBundleResourcesRequest *req = request;
  node->committed += req->n_bundle_specs;
  apply(node, req->bundle_specs, req->n_bundle_specs, 1);
  Ray__Rpc__CommitBundleResourcesReply reply = RAY__RPC__COMMIT_BUNDLE_RESOURCES_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

static void on_cancel(void *owner, mob_rpc_call_t *call, const void *request) {
  fake_node_t *node = owner;
  const Ray__Rpc__CancelResourceReserveRequest *req = request;
  node->cancelled++;
  Ray__Rpc__Bundle *list[] = {req->bundle_spec};
  apply(node, list, 1, 2);
  Ray__Rpc__CancelResourceReserveReply reply = RAY__RPC__CANCEL_RESOURCE_RESERVE_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

static void on_lease(void *owner, mob_rpc_call_t *call, const void *request) {
  fake_node_t *node = owner;
  const Ray__Rpc__RequestWorkerLeaseRequest *req = request;
  assert_true(req->grant_or_reject);
  assert_int_equal(req->lease_spec->type, RAY__RPC__TASK_TYPE__ACTOR_CREATION_TASK);
  assert_int_equal(req->lease_spec->lease_id.len, MOB_LEASE_ID_SIZE);
  Ray__Rpc__RequestWorkerLeaseReply reply = RAY__RPC__REQUEST_WORKER_LEASE_REPLY__INIT;
  if (node->reject_lease) {
    reply.rejected = true;
    mob_rpc_reply(call, &reply);
    return;
  }
  node->leased++;
  mob_resources_t asked = {0};
  mob_buf_t text = {0};
  mob_resources_read(&asked, req->lease_spec->required_resources,
                     req->lease_spec->n_required_resources);
  mob_resources_print(&asked, &text);
  snprintf(node->lease_resources, sizeof node->lease_resources, "%s", mob_buf_cstr(&text));
  mob_buf_free(&text);
  mob_resources_sub(&node->available, &asked);
  mob_resources_free(&asked);
  mob_random(node->worker_id, sizeof node->worker_id);
  Ray__Rpc__Address address = RAY__RPC__ADDRESS__INIT;
  address.node_id = mob_pb_bytes(node->id, sizeof node->id);
  address.ip_address = "127.0.0.1";
  address.port = node->port;
  address.worker_id = mob_pb_bytes(node->worker_id, sizeof node->worker_id);
  reply.worker_address = &address;
  reply.worker_pid = 4711;
  mob_rpc_reply(call, &reply);
  node_say(node);
}

static void on_push(void *owner, mob_rpc_call_t *call, const void *request) {
  fake_node_t *node = owner;
  const Ray__Rpc__PushTaskRequest *req = request;
  assert_int_equal(req->intended_worker_id.len, MOB_WORKER_ID_SIZE);
  assert_int_equal(req->task_spec->type, RAY__RPC__TASK_TYPE__ACTOR_CREATION_TASK);
  node->pushed++;
  if (node->hold_push) {
    node->held_push = call;
    return;
  }
  Ray__Rpc__PushTaskReply reply = RAY__RPC__PUSH_TASK_REPLY__INIT;
  if (node->fail_constructor) {
    reply.is_application_error = true;
    reply.task_execution_error = "no such model";
  }
  mob_rpc_reply(call, &reply);
}

static void on_kill(void *owner, mob_rpc_call_t *call, const void *request) {
  fake_node_t *node = owner;
  const Ray__Rpc__KillLocalActorRequest *req = request;
  node->killed++;
  memcpy(node->killed_actor, req->intended_actor_id.data, MOB_ACTOR_ID_SIZE);
  Ray__Rpc__KillLocalActorReply reply = RAY__RPC__KILL_LOCAL_ACTOR_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

static void on_return(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  ((fake_node_t *)owner)->returned++;
  Ray__Rpc__ReturnWorkerLeaseReply reply = RAY__RPC__RETURN_WORKER_LEASE_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

static void on_drain(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)owner, (void)request;
  Ray__Rpc__DrainRayletReply reply = RAY__RPC__DRAIN_RAYLET_REPLY__INIT;
  reply.is_accepted = true;
  mob_rpc_reply(call, &reply);
}

static int serving(void *owner, const char *service) {
  fake_node_t *node = owner;
  char hex[2 * MOB_NODE_ID_SIZE + 1];
  return strcmp(service, mob_hex(node->id, sizeof node->id, hex)) == 0 ? node->serving : -1;
}

static void on_load(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  ((fake_node_t *)owner)->load_asked++;
  Ray__Rpc__DoubleEntry gpu = RAY__RPC__DOUBLE_ENTRY__INIT;
  gpu.key = "GPU";
  gpu.value = 2;
  Ray__Rpc__DoubleEntry *entries[] = {&gpu};
  Ray__Rpc__ResourceDemand demand = RAY__RPC__RESOURCE_DEMAND__INIT;
  demand.shape = entries;
  demand.n_shape = 1;
  demand.num_infeasible_requests_queued = 3;
  Ray__Rpc__ResourceDemand *demands[] = {&demand};
  Ray__Rpc__ResourceLoad load = RAY__RPC__RESOURCE_LOAD__INIT;
  load.resource_demands = demands;
  load.n_resource_demands = 1;
  Ray__Rpc__ResourcesData data = RAY__RPC__RESOURCES_DATA__INIT;
  data.resource_load_by_shape = &load;
  Ray__Rpc__GetResourceLoadReply reply = RAY__RPC__GET_RESOURCE_LOAD_REPLY__INIT;
  reply.resources = &data;
  mob_rpc_reply(call, &reply);
}

static void on_restart(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  ((fake_node_t *)owner)->restart_told++;
  Ray__Rpc__NotifyGCSRestartReply reply = RAY__RPC__NOTIFY_GCSRESTART_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

static void on_used_workers(void *owner, mob_rpc_call_t *call, const void *request) {
  const Ray__Rpc__ReleaseUnusedActorWorkersRequest *req = request;
  ((fake_node_t *)owner)->workers_in_use = req->n_worker_ids_in_use;
  Ray__Rpc__ReleaseUnusedActorWorkersReply reply =
      RAY__RPC__RELEASE_UNUSED_ACTOR_WORKERS_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

static void on_used_bundles(void *owner, mob_rpc_call_t *call, const void *request) {
  const Ray__Rpc__ReleaseUnusedBundlesRequest *req = request;
  ((fake_node_t *)owner)->bundles_in_use = req->n_bundles_in_use;
  Ray__Rpc__ReleaseUnusedBundlesReply reply = RAY__RPC__RELEASE_UNUSED_BUNDLES_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

#define NODE "/ray.rpc.NodeManagerService/"
static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(NODE "PrepareBundleResources", ray__rpc__prepare_bundle_resources, on_prepare),
    MOB_RPC_METHOD(NODE "CommitBundleResources", ray__rpc__commit_bundle_resources, on_commit),
    MOB_RPC_METHOD(NODE "CancelResourceReserve", ray__rpc__cancel_resource_reserve, on_cancel),
    MOB_RPC_METHOD(NODE "RequestWorkerLease", ray__rpc__request_worker_lease, on_lease),
    MOB_RPC_METHOD(NODE "ReturnWorkerLease", ray__rpc__return_worker_lease, on_return),
    MOB_RPC_METHOD(NODE "KillLocalActor", ray__rpc__kill_local_actor, on_kill),
    MOB_RPC_METHOD(NODE "GetResourceLoad", ray__rpc__get_resource_load, on_load),
    MOB_RPC_METHOD(NODE "NotifyGCSRestart", ray__rpc__notify_gcsrestart, on_restart),
    MOB_RPC_METHOD(NODE "ReleaseUnusedActorWorkers", ray__rpc__release_unused_actor_workers,
                   on_used_workers),
    MOB_RPC_METHOD(NODE "ReleaseUnusedBundles", ray__rpc__release_unused_bundles, on_used_bundles),
    MOB_RPC_METHOD(NODE "DrainRaylet", ray__rpc__drain_raylet, on_drain),
    MOB_RPC_METHOD("/ray.rpc.CoreWorkerService/PushTask", ray__rpc__push_task, on_push),
};

static void on_stream_message(void *owner, mob_rpc_stream_t *stream, const uint8_t *data,
                              size_t len) {
  (void)data, (void)len;
  fake_node_t *node = owner; // the GCS beats: the node beats back
  if (!node->silent) mob_rpc_stream_send(stream, "", 0);
}

static void on_stream_close(void *owner, mob_rpc_stream_t *stream, grpc_status_code code,
                            const char *why) {
  (void)stream, (void)code, (void)why;
  fake_node_t *node = owner;
  node->stream = NULL;
  node->stream_closed = true;
}

static const mob_rpc_stream_events_t stream_events = {on_stream_message, on_stream_close, NULL};

void node_say(fake_node_t *node) {
  if (!node->stream) return;
  Ray__Rpc__Syncer__ResourceViewSyncMessage view =
      RAY__RPC__SYNCER__RESOURCE_VIEW_SYNC_MESSAGE__INIT;
  mob_resources_write(&node->total, &view.resources_total, &view.n_resources_total);
  mob_resources_write(&node->available, &view.resources_available, &view.n_resources_available);
  Ray__Rpc__Syncer__RaySyncMessage message = RAY__RPC__SYNCER__RAY_SYNC_MESSAGE__INIT;
  message.version = ++node->version;
  message.node_id = mob_pb_bytes(node->id, sizeof node->id);
  message.sync_message.data = mob_pb_pack(&view, &message.sync_message.len);
  Ray__Rpc__Syncer__RaySyncMessage *list[] = {&message};
  Ray__Rpc__Syncer__RaySyncMessageBatch batch = RAY__RPC__SYNCER__RAY_SYNC_MESSAGE_BATCH__INIT;
  batch.messages = list;
  batch.n_messages = 1;
  mob_rpc_stream_send_message(node->stream, &batch.base);
  free(message.sync_message.data);
  mob_pb_double_clear(&view.resources_total, &view.n_resources_total);
  mob_pb_double_clear(&view.resources_available, &view.n_resources_available);
}

void node_join(cluster_t *c, fake_node_t *node, const char *ip, const char *resources, bool head) {
  node->c = c;
  if (!node->keep_id) mob_random(node->id, sizeof node->id);
  node->total = parse_resources(resources);
  mob_resources_copy(&node->available, &node->total);
  assert_int_equal(mob_rpc_server_new(c->rpc, &node->server), MOB_OK);
  mob_rpc_server_add(node->server, methods, MOB_LEN(methods), node);
  if (node->raylet) mob_rpc_server_add_health(node->server, serving, node);
  assert_int_equal(mob_rpc_server_listen(node->server, "127.0.0.1", 0, &node->port), MOB_OK);
  Ray__Rpc__GcsNodeInfo info = RAY__RPC__GCS_NODE_INFO__INIT;
  info.node_id = mob_pb_bytes(node->id, sizeof node->id);
  info.node_manager_address = "127.0.0.1";
  info.node_name = (char *)ip;
  info.node_manager_port = node->port;
  info.is_head_node = head;
  if (node->raylet) info.raylet_socket_name = "/tmp/raylet"; // a node of ours has none
  mob_resources_write(&node->total, &info.resources_total, &info.n_resources_total);
  Ray__Rpc__RegisterNodeRequest request = RAY__RPC__REGISTER_NODE_REQUEST__INIT;
  request.node_info = &info;
  Ray__Rpc__RegisterNodeReply *reply = ask(c, "/ray.rpc.NodeInfoGcsService/RegisterNode", &request,
                                           &ray__rpc__register_node_reply__descriptor);
  assert_int_equal(reply->status->code, 0);
  mob_pb_free(reply);
  mob_pb_double_clear(&info.resources_total, &info.n_resources_total);
  char address[64], hex[2 * MOB_NODE_ID_SIZE + 1];
  snprintf(address, sizeof address, "127.0.0.1:%d", c->port);
  assert_int_equal(mob_rpc_client_new(c->rpc, address, NULL, &node->client), MOB_OK);
  mob_rpc_client_set_metadata(node->client, "node_id", mob_hex(node->id, sizeof node->id, hex));
  if (!node->raylet) mob_rpc_client_set_metadata(node->client, "mob_heartbeat_ms", "500");
  node->stream = mob_rpc_stream_open(node->client, "/ray.rpc.syncer.RaySyncer/StartSync",
                                     &stream_events, node);
  node_say(node);
  WAIT_FOR(c, mob_rpc_stream_metadata(node->stream, "node_id") != NULL);
}

void node_leave(fake_node_t *node, bool orderly) {
  if (orderly) {
    Ray__Rpc__UnregisterNodeRequest request = RAY__RPC__UNREGISTER_NODE_REQUEST__INIT;
    Ray__Rpc__NodeDeathInfo info = RAY__RPC__NODE_DEATH_INFO__INIT;
    info.reason = RAY__RPC__NODE_DEATH_INFO__REASON__EXPECTED_TERMINATION;
    info.reason_message = "ray stop";
    request.node_id = mob_pb_bytes(node->id, sizeof node->id);
    request.node_death_info = &info;
    mob_pb_free(ask(node->c, "/ray.rpc.NodeInfoGcsService/UnregisterNode", &request,
                    &ray__rpc__unregister_node_reply__descriptor));
  }
  if (node->client) {
    mob_rpc_client_close(node->client);
    WAIT_FOR(node->c, node->stream_closed);
    mob_rpc_server_close(node->server, 0, NULL, NULL);
  }
  node->client = NULL;
  mob_resources_free(&node->total);
  mob_resources_free(&node->available);
}

void node_worker_dies(fake_node_t *node, Ray__Rpc__WorkerExitType how, const char *detail) {
  Ray__Rpc__Address address = RAY__RPC__ADDRESS__INIT;
  address.node_id = mob_pb_bytes(node->id, sizeof node->id);
  address.worker_id = mob_pb_bytes(node->worker_id, sizeof node->worker_id);
  address.ip_address = "127.0.0.1";
  Ray__Rpc__WorkerTableData data = RAY__RPC__WORKER_TABLE_DATA__INIT;
  data.worker_address = &address;
  data.opt_exit_type_case = RAY__RPC__WORKER_TABLE_DATA__OPT_EXIT_TYPE_EXIT_TYPE;
  data.exit_type = how;
  data.opt_exit_detail_case = RAY__RPC__WORKER_TABLE_DATA__OPT_EXIT_DETAIL_EXIT_DETAIL;
  data.exit_detail = (char *)detail;
  Ray__Rpc__ReportWorkerFailureRequest request = RAY__RPC__REPORT_WORKER_FAILURE_REQUEST__INIT;
  request.worker_failure = &data;
  mob_pb_free(ask(node->c, "/ray.rpc.WorkerInfoGcsService/ReportWorkerFailure", &request,
                  &ray__rpc__report_worker_failure_reply__descriptor));
}

bool node_alive(cluster_t *c, const fake_node_t *node) {
  ProtobufCBinaryData ids[] = {mob_pb_bytes(node->id, sizeof node->id)};
  Ray__Rpc__CheckAliveRequest request = RAY__RPC__CHECK_ALIVE_REQUEST__INIT;
  request.node_ids = ids;
  request.n_node_ids = 1;
  Ray__Rpc__CheckAliveReply *reply = ask(c, "/ray.rpc.NodeInfoGcsService/CheckAlive", &request,
                                         &ray__rpc__check_alive_reply__descriptor);
  assert_int_equal(reply->n_raylet_alive, 1);
  bool alive = reply->raylet_alive[0];
  mob_pb_free(reply);
  return alive;
}

// ---------------------------------------------------------------------------------------- requests

void add_job(cluster_t *c, uint32_t number, const char *name_space) {
  Ray__Rpc__JobConfig config = RAY__RPC__JOB_CONFIG__INIT;
  config.ray_namespace = (char *)name_space;
  Ray__Rpc__JobTableData data = RAY__RPC__JOB_TABLE_DATA__INIT;
  data.job_id = mob_pb_bytes(&number, sizeof number);
  data.config = &config;
  Ray__Rpc__AddJobRequest request = RAY__RPC__ADD_JOB_REQUEST__INIT;
  request.data = &data;
  Ray__Rpc__AddJobReply *reply =
      ask(c, "/ray.rpc.JobInfoGcsService/AddJob", &request, &ray__rpc__add_job_reply__descriptor);
  assert_int_equal(reply->status->code, 0);
  mob_pb_free(reply);
}

pg_id_t create_group(cluster_t *c, const char *name, Ray__Rpc__PlacementStrategy strategy,
                     size_t count, const char *const *bundles, bool detached, int *code) {
  pg_id_t id;
  uint32_t job = 1;
  mob_random(id.bytes, sizeof id.bytes);
  Ray__Rpc__PlacementGroupSpec spec = RAY__RPC__PLACEMENT_GROUP_SPEC__INIT;
  spec.placement_group_id = mob_pb_bytes(id.bytes, sizeof id.bytes);
  spec.name = (char *)name;
  spec.strategy = strategy;
  spec.is_detached = detached;
  spec.creator_job_id = mob_pb_bytes(&job, sizeof job);
  spec.n_bundles = count;
  spec.bundles = MOB_NEW_ARRAY(Ray__Rpc__Bundle *, count + 1);
  for (size_t i = 0; i < count; i++) {
    spec.bundles[i] = MOB_NEW(Ray__Rpc__Bundle);
    ray__rpc__bundle__init(spec.bundles[i]);
    mob_resources_t set = parse_resources(bundles[i]);
    mob_resources_write(&set, &spec.bundles[i]->unit_resources, &spec.bundles[i]->n_unit_resources);
    mob_resources_free(&set);
  }
  Ray__Rpc__CreatePlacementGroupRequest request = RAY__RPC__CREATE_PLACEMENT_GROUP_REQUEST__INIT;
  request.placement_group_spec = &spec;
  Ray__Rpc__CreatePlacementGroupReply *reply =
      ask(c, "/ray.rpc.PlacementGroupInfoGcsService/CreatePlacementGroup", &request,
          &ray__rpc__create_placement_group_reply__descriptor);
  if (code) {
    *code = reply->status->code;
  } else {
    assert_int_equal(reply->status->code, 0);
  }
  mob_pb_free(reply);
  for (size_t i = 0; i < count; i++) mob_pb_free(spec.bundles[i]);
  free(spec.bundles);
  return id;
}

Ray__Rpc__GetPlacementGroupReply *get_group(cluster_t *c, const pg_id_t *id) {
  Ray__Rpc__GetPlacementGroupRequest request = RAY__RPC__GET_PLACEMENT_GROUP_REQUEST__INIT;
  request.placement_group_id = mob_pb_bytes(id->bytes, sizeof id->bytes);
  return ask(c, "/ray.rpc.PlacementGroupInfoGcsService/GetPlacementGroup", &request,
             &ray__rpc__get_placement_group_reply__descriptor);
}

bool group_is(cluster_t *c, const pg_id_t *id,
              Ray__Rpc__PlacementGroupTableData__PlacementGroupState state) {
  Ray__Rpc__GetPlacementGroupReply *reply = get_group(c, id);
  bool is = reply->placement_group_table_data && reply->placement_group_table_data->state == state;
  mob_pb_free(reply);
  return is;
}

int create_actor(cluster_t *c, const actor_args_t *args, actor_id_t *id, answer_t *created) {
  mob_random(id->bytes, sizeof id->bytes);
  uint32_t job = args->job ? args->job : 1;
  Ray__Rpc__Address owner = RAY__RPC__ADDRESS__INIT;
  Ray__Rpc__CppFunctionDescriptor cpp = RAY__RPC__CPP_FUNCTION_DESCRIPTOR__INIT;
  cpp.class_name = "Stage";
  Ray__Rpc__FunctionDescriptor function = RAY__RPC__FUNCTION_DESCRIPTOR__INIT;
  function.function_descriptor_case =
      RAY__RPC__FUNCTION_DESCRIPTOR__FUNCTION_DESCRIPTOR_CPP_FUNCTION_DESCRIPTOR;
  function.cpp_function_descriptor = &cpp;
  Ray__Rpc__ActorCreationTaskSpec creation = RAY__RPC__ACTOR_CREATION_TASK_SPEC__INIT;
  creation.actor_id = mob_pb_bytes(id->bytes, sizeof id->bytes);
  creation.name = (char *)(args->name ? args->name : "");
  creation.ray_namespace = (char *)(args->name_space ? args->name_space : "");
  creation.max_actor_restarts = args->max_restarts;
  creation.is_detached = args->detached;
  Ray__Rpc__PlacementGroupSchedulingStrategy group =
      RAY__RPC__PLACEMENT_GROUP_SCHEDULING_STRATEGY__INIT;
  Ray__Rpc__SchedulingStrategy strategy = RAY__RPC__SCHEDULING_STRATEGY__INIT;
  Ray__Rpc__TaskSpec spec = RAY__RPC__TASK_SPEC__INIT;
  spec.type = RAY__RPC__TASK_TYPE__ACTOR_CREATION_TASK;
  spec.language = RAY__RPC__LANGUAGE__CPP;
  spec.job_id = mob_pb_bytes(&job, sizeof job);
  spec.caller_address = &owner;
  spec.function_descriptor = &function;
  spec.actor_creation_task_spec = &creation;
  if (args->group) {
    group.placement_group_id = mob_pb_bytes(args->group->bytes, sizeof args->group->bytes);
    group.placement_group_bundle_index = args->bundle;
    strategy.scheduling_strategy_case =
        RAY__RPC__SCHEDULING_STRATEGY__SCHEDULING_STRATEGY_PLACEMENT_GROUP_SCHEDULING_STRATEGY;
    strategy.placement_group_scheduling_strategy = &group;
    spec.scheduling_strategy = &strategy;
  }
  mob_resources_t set = parse_resources(args->resources ? args->resources : "");
  mob_resources_write(&set, &spec.required_resources, &spec.n_required_resources);
  mob_resources_free(&set);
  Ray__Rpc__RegisterActorRequest reg = RAY__RPC__REGISTER_ACTOR_REQUEST__INIT;
  reg.task_spec = &spec;
  Ray__Rpc__RegisterActorReply *reply = ask(c, "/ray.rpc.ActorInfoGcsService/RegisterActor", &reg,
                                            &ray__rpc__register_actor_reply__descriptor);
  int code = reply->status->code;
  mob_pb_free(reply);
  if (code == 0 && created) {
    Ray__Rpc__CreateActorRequest create = RAY__RPC__CREATE_ACTOR_REQUEST__INIT;
    create.task_spec = &spec;
    ask_later(c, "/ray.rpc.ActorInfoGcsService/CreateActor", &create,
              &ray__rpc__create_actor_reply__descriptor, created);
  }
  mob_pb_double_clear(&spec.required_resources, &spec.n_required_resources);
  return code;
}

Ray__Rpc__GetActorInfoReply *get_actor(cluster_t *c, const actor_id_t *id) {
  Ray__Rpc__GetActorInfoRequest request = RAY__RPC__GET_ACTOR_INFO_REQUEST__INIT;
  request.actor_id = mob_pb_bytes(id->bytes, sizeof id->bytes);
  return ask(c, "/ray.rpc.ActorInfoGcsService/GetActorInfo", &request,
             &ray__rpc__get_actor_info_reply__descriptor);
}

bool actor_is(cluster_t *c, const actor_id_t *id, Ray__Rpc__ActorTableData__ActorState state) {
  Ray__Rpc__GetActorInfoReply *reply = get_actor(c, id);
  bool is = reply->actor_table_data && reply->actor_table_data->state == state;
  mob_pb_free(reply);
  return is;
}
