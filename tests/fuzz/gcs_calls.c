#include "tests/fuzz/gcs_calls.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ray/gcs_service.pb-c.h"
#include "ray/node_manager.pb-c.h"
#include "ray/ray_syncer.pb-c.h"
#include "runtime/base/mem.h"
#include "runtime/gcs/ids.h"
#include "runtime/rpc/message.h"

enum { MANY = 4, ID_MOST = 32 };

// Ids of node, job, actor ... number k: bytes of k.
static uint8_t id_bytes[MANY + 1][ID_MOST];

static uint8_t one_of_many(source_t *in) {
  return (uint8_t)(1 + take_byte(in) % MANY);
}

static ProtobufCBinaryData id(uint8_t number, size_t size) {
  memset(id_bytes[number], number, ID_MOST);
  return mob_pb_bytes(id_bytes[number], size);
}

// Calls with a copy, so that what is made here may lie on the stack.
static void ask(mob_rpc_t *rpc, const void *request) {
  const ProtobufCMessageDescriptor *type = ((const ProtobufCMessage *)request)->descriptor;
  size_t method = 0;
  while (method < rpc_double_methods(rpc) && rpc_double_request(rpc, method) != type) method++;
  MOB_ASSERT(method < rpc_double_methods(rpc));
  rpc_double_call(rpc, method, mob_pb_clone(request));
}

// CPU and GPU of one amount each: in a message's map of two entries.
typedef struct amounts {
  Ray__Rpc__DoubleEntry entries[2], *list[2];
} amounts_t;

static Ray__Rpc__DoubleEntry **amounts(amounts_t *a, double cpu, double gpu) {
  for (int i = 0; i < 2; i++) {
    a->list[i] = &a->entries[i];
    ray__rpc__double_entry__init(a->list[i]);
  }
  a->entries[0].key = "CPU";
  a->entries[0].value = cpu;
  a->entries[1].key = "GPU";
  a->entries[1].value = gpu;
  return a->list;
}

static Ray__Rpc__Address address(uint8_t node, uint8_t worker) {
  static char ips[MANY + 1][16];
  snprintf(ips[node], sizeof ips[node], "10.0.0.%d", node);
  Ray__Rpc__Address a = RAY__RPC__ADDRESS__INIT;
  a.node_id = id(node, MOB_NODE_ID_SIZE);
  a.worker_id = id(worker, MOB_WORKER_ID_SIZE);
  a.ip_address = ips[node];
  a.port = 10000 + worker;
  return a;
}

static void node_joins(mob_rpc_t *rpc, source_t *in) {
  uint8_t k = one_of_many(in), how = take_byte(in);
  Ray__Rpc__Address at = address(k, k);
  amounts_t room;
  Ray__Rpc__GcsNodeInfo info = RAY__RPC__GCS_NODE_INFO__INIT;
  info.node_id = id(k, MOB_NODE_ID_SIZE);
  info.node_manager_address = at.ip_address;
  info.node_manager_port = 9000;
  info.is_head_node = k == 1 && how & 1;
  info.raylet_socket_name = how & 2 ? "/raylet" : "";
  Ray__Rpc__StringEntry label = RAY__RPC__STRING_ENTRY__INIT, *labels[] = {&label};
  label.key = "name";
  label.value = k % 2 ? "CPU" : "GPU";
  info.n_labels = 1;
  info.labels = labels;
  info.n_resources_total = 2;
  info.resources_total = amounts(&room, 4, k % 2 ? 8 : 0);
  Ray__Rpc__RegisterNodeRequest request = RAY__RPC__REGISTER_NODE_REQUEST__INIT;
  request.node_info = &info;
  ask(rpc, &request);
}

static void node_leaves(mob_rpc_t *rpc, source_t *in) {
  Ray__Rpc__UnregisterNodeRequest request = RAY__RPC__UNREGISTER_NODE_REQUEST__INIT;
  request.node_id = id(one_of_many(in), MOB_NODE_ID_SIZE);
  ask(rpc, &request);
}

static void job_begins(mob_rpc_t *rpc, source_t *in) {
  uint8_t k = one_of_many(in);
  Ray__Rpc__Address driver = address(one_of_many(in), k);
  Ray__Rpc__JobConfig config = RAY__RPC__JOB_CONFIG__INIT;
  config.ray_namespace = "default";
  Ray__Rpc__JobTableData data = RAY__RPC__JOB_TABLE_DATA__INIT;
  data.job_id = id(k, MOB_JOB_ID_SIZE);
  data.config = &config;
  data.driver_address = &driver;
  Ray__Rpc__AddJobRequest request = RAY__RPC__ADD_JOB_REQUEST__INIT;
  request.data = &data;
  ask(rpc, &request);
}

static void job_ends(mob_rpc_t *rpc, source_t *in) {
  Ray__Rpc__MarkJobFinishedRequest request = RAY__RPC__MARK_JOB_FINISHED_REQUEST__INIT;
  request.job_id = id(one_of_many(in), MOB_JOB_ID_SIZE);
  ask(rpc, &request);
}

static void actor_begins(mob_rpc_t *rpc, source_t *in, bool create) {
  uint8_t k = one_of_many(in), how = take_byte(in), group = one_of_many(in);
  Ray__Rpc__Address owner = address(one_of_many(in), k);
  amounts_t need;
  Ray__Rpc__ActorCreationTaskSpec creation = RAY__RPC__ACTOR_CREATION_TASK_SPEC__INIT;
  creation.actor_id = id(k, MOB_ACTOR_ID_SIZE);
  creation.name = how & 1 ? "name" : "";
  creation.ray_namespace = "default";
  creation.max_actor_restarts = how & 2 ? 1 : how & 4 ? -1 : 0;
  creation.is_detached = how >> 3 & 1;
  Ray__Rpc__PlacementGroupSchedulingStrategy within =
      RAY__RPC__PLACEMENT_GROUP_SCHEDULING_STRATEGY__INIT;
  within.placement_group_id = id(group, MOB_PG_ID_SIZE);
  within.placement_group_bundle_index = how & 32 ? -1 : 0;
  Ray__Rpc__SchedulingStrategy strategy = RAY__RPC__SCHEDULING_STRATEGY__INIT;
  strategy.scheduling_strategy_case =
      RAY__RPC__SCHEDULING_STRATEGY__SCHEDULING_STRATEGY_PLACEMENT_GROUP_SCHEDULING_STRATEGY;
  strategy.placement_group_scheduling_strategy = &within;
  Ray__Rpc__TaskSpec spec = RAY__RPC__TASK_SPEC__INIT;
  spec.type = RAY__RPC__TASK_TYPE__ACTOR_CREATION_TASK;
  spec.job_id = id(k, MOB_JOB_ID_SIZE);
  spec.caller_address = &owner;
  spec.actor_creation_task_spec = &creation;
  Ray__Rpc__SchedulingStrategy *other =
      make_message(&ray__rpc__scheduling_strategy__descriptor, in);
  spec.label_selector = make_message(&ray__rpc__label_selector__descriptor, in);
  spec.scheduling_strategy = how & 16 ? &strategy : other;
  spec.n_required_resources = 2;
  spec.required_resources = amounts(&need, 1, how & 64 ? 4 : how & 128 ? 100 : 0);
  if (create) {
    Ray__Rpc__CreateActorRequest request = RAY__RPC__CREATE_ACTOR_REQUEST__INIT;
    request.task_spec = &spec;
    ask(rpc, &request);
  } else {
    Ray__Rpc__RegisterActorRequest request = RAY__RPC__REGISTER_ACTOR_REQUEST__INIT;
    request.task_spec = &spec;
    ask(rpc, &request);
  }
  mob_pb_free(other);
  mob_pb_free(spec.label_selector);
}

static void actor_is_killed(mob_rpc_t *rpc, source_t *in) {
  uint8_t how = take_byte(in);
  Ray__Rpc__KillActorViaGcsRequest request = RAY__RPC__KILL_ACTOR_VIA_GCS_REQUEST__INIT;
  request.actor_id = id(one_of_many(in), MOB_ACTOR_ID_SIZE);
  request.force_kill = how & 1;
  request.no_restart = how >> 1 & 1;
  ask(rpc, &request);
}

static void worker_dies(mob_rpc_t *rpc, source_t *in) {
  Ray__Rpc__Address at = address(one_of_many(in), one_of_many(in));
  Ray__Rpc__WorkerTableData data = RAY__RPC__WORKER_TABLE_DATA__INIT;
  data.worker_address = &at;
  data.exit_type = take_byte(in) % 5;
  Ray__Rpc__ReportWorkerFailureRequest request = RAY__RPC__REPORT_WORKER_FAILURE_REQUEST__INIT;
  request.worker_failure = &data;
  ask(rpc, &request);
}

static void group_begins(mob_rpc_t *rpc, source_t *in) {
  uint8_t k = one_of_many(in), how = take_byte(in);
  amounts_t need[3];
  Ray__Rpc__Bundle bundles[3], *list[3];
  for (int i = 0; i < 3; i++) {
    list[i] = &bundles[i];
    ray__rpc__bundle__init(list[i]);
    bundles[i].n_unit_resources = 2;
    bundles[i].unit_resources = amounts(&need[i], 1, how & 64 ? 4 : how & 128 ? 100 : 0);
  }
  Ray__Rpc__PlacementGroupSpec spec = RAY__RPC__PLACEMENT_GROUP_SPEC__INIT;
  spec.placement_group_id = id(k, MOB_PG_ID_SIZE);
  spec.name = how & 1 ? "name" : "";
  spec.strategy = how >> 1 & 3;
  spec.is_detached = how >> 3 & 1;
  spec.creator_job_id = id(k, MOB_JOB_ID_SIZE);
  spec.creator_actor_id = id(k, MOB_ACTOR_ID_SIZE);
  spec.n_bundles = 1 + (how >> 4 & 3) % 3;
  spec.bundles = list;
  Ray__Rpc__CreatePlacementGroupRequest request = RAY__RPC__CREATE_PLACEMENT_GROUP_REQUEST__INIT;
  request.placement_group_spec = &spec;
  ask(rpc, &request);
}

static void group_ends(mob_rpc_t *rpc, source_t *in) {
  Ray__Rpc__RemovePlacementGroupRequest request = RAY__RPC__REMOVE_PLACEMENT_GROUP_REQUEST__INIT;
  request.placement_group_id = id(one_of_many(in), MOB_PG_ID_SIZE);
  ask(rpc, &request);
}

static void group_is_awaited(mob_rpc_t *rpc, source_t *in) {
  Ray__Rpc__WaitPlacementGroupUntilReadyRequest request =
      RAY__RPC__WAIT_PLACEMENT_GROUP_UNTIL_READY_REQUEST__INIT;
  request.placement_group_id = id(one_of_many(in), MOB_PG_ID_SIZE);
  ask(rpc, &request);
}

void gcs_call(mob_rpc_t *rpc, source_t *in) {
  switch (take_byte(in) % 12) {
  case 0:
    node_joins(rpc, in);
    break;
  case 1:
    node_leaves(rpc, in);
    break;
  case 2:
    job_begins(rpc, in);
    break;
  case 3:
    job_ends(rpc, in);
    break;
  case 4:
    actor_begins(rpc, in, false);
    break;
  case 5:
    actor_begins(rpc, in, true);
    break;
  case 6:
    actor_is_killed(rpc, in);
    break;
  case 7:
    worker_dies(rpc, in);
    break;
  case 8:
    group_begins(rpc, in);
    break;
  case 9:
    group_ends(rpc, in);
    break;
  case 10:
    group_is_awaited(rpc, in);
    break;
  default:
    node_joins(rpc, in);
  }
}

void gcs_open(mob_rpc_t *rpc, source_t *in) {
  static const char *const nodes[] = {"01010101010101010101010101010101010101010101010101010101",
                                      "02020202020202020202020202020202020202020202020202020202",
                                      "03030303030303030303030303030303030303030303030303030303",
                                      "0101", NULL};
  static const char *const beats[] = {NULL, "500", "0", "-1", "many"};
  static const char *const jobs[] = {"01010101", "02020202", "0x", NULL};
  uint8_t kind = take_byte(in), which = take_byte(in);
  const rpc_double_metadata_t node[] = {
      {"node_id", nodes[which % MOB_LEN(nodes)]},
      {"mob_heartbeat_ms", beats[take_byte(in) % MOB_LEN(beats)]}};
  const rpc_double_metadata_t driver[] = {{"job_id", jobs[which % MOB_LEN(jobs)]}, {"", NULL}};
  rpc_double_open(rpc, kind, kind % 2 ? driver : node);
}

static void *node_view(source_t *in) {
  uint8_t k = one_of_many(in);
  amounts_t all, left;
  Ray__Rpc__Syncer__ResourceViewSyncMessage view =
      RAY__RPC__SYNCER__RESOURCE_VIEW_SYNC_MESSAGE__INIT;
  view.n_resources_total = view.n_resources_available = 2;
  view.resources_total = amounts(&all, 4, 8);
  view.resources_available = amounts(&left, take_byte(in) % 5, 8);
  Ray__Rpc__Syncer__RaySyncMessage message = RAY__RPC__SYNCER__RAY_SYNC_MESSAGE__INIT,
                                   *list[] = {&message};
  message.version = take_byte(in);
  message.message_type = RAY__RPC__SYNCER__MESSAGE_TYPE__RESOURCE_VIEW;
  message.node_id = id(k, MOB_NODE_ID_SIZE);
  message.sync_message.data = mob_pb_pack(&view, &message.sync_message.len);
  Ray__Rpc__Syncer__RaySyncMessageBatch batch = RAY__RPC__SYNCER__RAY_SYNC_MESSAGE_BATCH__INIT;
  batch.n_messages = 1;
  batch.messages = list;
  void *copy = mob_pb_clone(&batch);
  free(message.sync_message.data);
  return copy;
}

void gcs_say(mob_rpc_t *rpc, source_t *in) {
  uint8_t which = take_byte(in);
  void *batch = take_byte(in) % 2
                    ? node_view(in)
                    : make_message(&ray__rpc__syncer__ray_sync_message_batch__descriptor, in);
  rpc_double_say(rpc, which, batch);
  mob_pb_free(batch);
}

void *gcs_good_reply(const ProtobufCMessageDescriptor *type, source_t *in) {
  if (type == &ray__rpc__prepare_bundle_resources_reply__descriptor) {
    Ray__Rpc__PrepareBundleResourcesReply reply = RAY__RPC__PREPARE_BUNDLE_RESOURCES_REPLY__INIT;
    reply.success = true;
    return mob_pb_clone(&reply);
  }
  if (type == &ray__rpc__request_worker_lease_reply__descriptor) {
    Ray__Rpc__Address at = address(one_of_many(in), one_of_many(in));
    Ray__Rpc__RequestWorkerLeaseReply reply = RAY__RPC__REQUEST_WORKER_LEASE_REPLY__INIT;
    if (take_byte(in) % 4)
      reply.worker_address = &at;
    else
      reply.retry_at_raylet_address = &at;
    return mob_pb_clone(&reply);
  }
  return NULL;
}
