// What the node answers: Ray's NodeManagerService and the gRPC health service.
#define MOB_LOG_COMPONENT "node"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/node/internal.h"
#include "runtime/rpc/message.h"

#define SERVICE "/ray.rpc.NodeManagerService/"

// ----------------------------------------------------------------------------------------------
// bundles

static bool read_bundle(const Ray__Rpc__Bundle *bundle, const uint8_t **pg, int *index) {
  if (!bundle || !bundle->bundle_id || bundle->bundle_id->placement_group_id.len != MOB_NODE_PG_LEN)
    return false;
  *pg = bundle->bundle_id->placement_group_id.data;
  *index = bundle->bundle_id->bundle_index;
  return true;
}

static mob_status prepare(mob_node_t *node, const Ray__Rpc__Bundle *bundle) {
  const uint8_t *pg;
  int index;
  if (!read_bundle(bundle, &pg, &index)) return mob_fail(MOB_E_INVALID, "the bundle has no id");
  size_t n = bundle->n_unit_resources;
  mob_want_t *wants = MOB_NEW_ARRAY(mob_want_t, n + 1);
  for (size_t i = 0; i < n; i++) {
    wants[i] = (mob_want_t){bundle->unit_resources[i]->key, bundle->unit_resources[i]->value};
  }
  mob_status status = mob_ledger_prepare(&node->ledger, pg, index, wants, n);
  free(wants);
  return status;
}

// Ends the actors in a bundle and gives its resources back.
static void cancel_bundle(mob_node_t *node, const uint8_t *pg, int index) {
  for (size_t i = 0; i < node->workers.len; i++) {
    mob_worker_t *worker = node->workers.at[i];
    if (mob__node_worker_in_bundle(worker, pg, index)) {
      mob__node_worker_end(worker, true, "its placement group was removed");
    }
  }
  if (mob_ledger_cancel(&node->ledger, pg, index)) mob__node_changed(node);
}

static void on_prepare(void *owner, mob_rpc_call_t *call, const void *message) {
  mob_node_t *node = owner;
  const Ray__Rpc__PrepareBundleResourcesRequest *request = message;
  Ray__Rpc__PrepareBundleResourcesReply reply = RAY__RPC__PREPARE_BUNDLE_RESOURCES_REPLY__INIT;
  size_t before = node->ledger.bundles.len;
  reply.success = node->phase == MOB_NODE_READY && !node->draining;
  for (size_t i = 0; reply.success && i < request->n_bundle_specs; i++) {
    if (prepare(node, request->bundle_specs[i]) == MOB_OK) continue;
    MOB_DEBUG("a bundle cannot be prepared: %s", mob_errmsg());
    reply.success = false;
  }
  // All of one request or none; what an earlier one has prepared stays.
  if (!reply.success) mob_ledger_shrink(&node->ledger, before);
  mob_rpc_reply(call, &reply);
  mob__node_changed(node);
}

static void on_commit(void *owner, mob_rpc_call_t *call, const void *message) {
  mob_node_t *node = owner;
  const Ray__Rpc__CommitBundleResourcesRequest *request = message;
  Ray__Rpc__CommitBundleResourcesReply reply = RAY__RPC__COMMIT_BUNDLE_RESOURCES_REPLY__INIT;
  for (size_t i = 0; i < request->n_bundle_specs; i++) {
    const uint8_t *pg;
    int index;
    mob_status status = read_bundle(request->bundle_specs[i], &pg, &index)
                            ? mob_ledger_commit(&node->ledger, pg, index)
                            : mob_fail(MOB_E_INVALID, "the bundle has no id");
    if (status == MOB_OK) continue;
    mob_rpc_reply_status(call, GRPC_STATUS_FAILED_PRECONDITION, mob_errmsg());
    return;
  }
  mob_rpc_reply(call, &reply);
  mob__node_changed(node);
}

static void on_cancel(void *owner, mob_rpc_call_t *call, const void *message) {
  const Ray__Rpc__CancelResourceReserveRequest *request = message;
  Ray__Rpc__CancelResourceReserveReply reply = RAY__RPC__CANCEL_RESOURCE_RESERVE_REPLY__INIT;
  const uint8_t *pg;
  int index;
  if (read_bundle(request->bundle_spec, &pg, &index)) cancel_bundle(owner, pg, index);
  mob_rpc_reply(call, &reply);
}

static void on_release_bundles(void *owner, mob_rpc_call_t *call, const void *message) {
  mob_node_t *node = owner;
  const Ray__Rpc__ReleaseUnusedBundlesRequest *request = message;
  Ray__Rpc__ReleaseUnusedBundlesReply reply = RAY__RPC__RELEASE_UNUSED_BUNDLES_REPLY__INIT;
  for (size_t i = node->ledger.bundles.len; i-- > 0;) {
    mob_bundle_slot_t *slot = node->ledger.bundles.at[i];
    bool used = false;
    for (size_t j = 0; j < request->n_bundles_in_use && !used; j++) {
      const uint8_t *pg;
      int index;
      used = read_bundle(request->bundles_in_use[j], &pg, &index) && index == slot->index &&
             memcmp(pg, slot->pg, MOB_NODE_PG_LEN) == 0;
    }
    uint8_t pg[MOB_NODE_PG_LEN];
    memcpy(pg, slot->pg, sizeof pg);
    if (!used) cancel_bundle(node, pg, slot->index);
  }
  mob_rpc_reply(call, &reply);
}

// -----------------------------------------------------------------------------------------------
// workers

static void on_lease(void *owner, mob_rpc_call_t *call, const void *message) {
  mob__node_worker_lease(owner, call, message);
}

static void on_return(void *owner, mob_rpc_call_t *call, const void *message) {
  const Ray__Rpc__ReturnWorkerLeaseRequest *request = message;
  Ray__Rpc__ReturnWorkerLeaseReply reply = RAY__RPC__RETURN_WORKER_LEASE_REPLY__INIT;
  mob_worker_t *worker = mob__node_worker_by_lease(owner, request->lease_id);
  // A process serves one actor; there is nothing to return it to.
  if (worker) {
    const char *why = request->disconnect_worker_error_detail;
    mob__node_worker_end(worker, true, *why ? why : "its lease was returned");
  }
  mob_rpc_reply(call, &reply);
}

static void on_cancel_lease(void *owner, mob_rpc_call_t *call, const void *message) {
  const Ray__Rpc__CancelWorkerLeaseRequest *request = message;
  Ray__Rpc__CancelWorkerLeaseReply reply = RAY__RPC__CANCEL_WORKER_LEASE_REPLY__INIT;
  mob_worker_t *worker = mob__node_worker_by_lease(owner, request->lease_id);
  reply.success = worker != NULL;
  if (worker) mob__node_worker_end(worker, true, "its lease was cancelled");
  mob_rpc_reply(call, &reply);
}

static void on_kill(void *owner, mob_rpc_call_t *call, const void *message) {
  const Ray__Rpc__KillLocalActorRequest *request = message;
  Ray__Rpc__KillLocalActorReply reply = RAY__RPC__KILL_LOCAL_ACTOR_REPLY__INIT;
  mob_worker_t *worker = mob__node_worker_by_id(owner, request->worker_id);
  if (worker) mob__node_worker_end(worker, request->force_kill, "it was killed by request");
  mob_rpc_reply(call, &reply);
}

static void on_release_workers(void *owner, mob_rpc_call_t *call, const void *message) {
  mob_node_t *node = owner;
  const Ray__Rpc__ReleaseUnusedActorWorkersRequest *request = message;
  Ray__Rpc__ReleaseUnusedActorWorkersReply reply =
      RAY__RPC__RELEASE_UNUSED_ACTOR_WORKERS_REPLY__INIT;
  MOB_VEC(mob_worker_t *) used = {0};
  for (size_t i = 0; i < request->n_worker_ids_in_use; i++) {
    mob_worker_t *worker = mob__node_worker_by_id(node, request->worker_ids_in_use[i]);
    if (worker) *mob_vec_push(&used) = worker;
  }
  for (size_t i = 0; i < node->workers.len; i++) {
    bool found = false;
    for (size_t j = 0; j < used.len; j++) found = found || used.at[j] == node->workers.at[i];
    if (!found) mob__node_worker_end(node->workers.at[i], true, "no actor uses it");
  }
  mob_vec_free(&used);
  mob_rpc_reply(call, &reply);
}

static void on_is_dead(void *owner, mob_rpc_call_t *call, const void *message) {
  const Ray__Rpc__IsLocalWorkerDeadRequest *request = message;
  Ray__Rpc__IsLocalWorkerDeadReply reply = RAY__RPC__IS_LOCAL_WORKER_DEAD_REPLY__INIT;
  reply.is_dead = !mob__node_worker_by_id(owner, request->worker_id);
  mob_rpc_reply(call, &reply);
}

static void on_pids(void *owner, mob_rpc_call_t *call, const void *message) {
  mob_node_t *node = owner;
  Ray__Rpc__GetWorkerPIDsReply reply = RAY__RPC__GET_WORKER_PIDS_REPLY__INIT;
  (void)message;
  reply.pids = MOB_NEW_ARRAY(int32_t, node->workers.len + 1);
  for (; reply.n_pids < node->workers.len; reply.n_pids++) {
    reply.pids[reply.n_pids] = mob__node_worker_pid(node->workers.at[reply.n_pids]);
  }
  mob_rpc_reply(call, &reply);
  free(reply.pids);
}

static void on_stats(void *owner, mob_rpc_call_t *call, const void *message) {
  mob_node_t *node = owner;
  Ray__Rpc__GetNodeStatsReply reply = RAY__RPC__GET_NODE_STATS_REPLY__INIT;
  (void)message;
  reply.num_workers = (uint32_t)node->workers.len;
  mob_rpc_reply(call, &reply);
}

// ----------------------------------------------------------------------------------------------
// the node

static void put_load(void *arg, const char *name, double total, double free_now) {
  Ray__Rpc__ResourcesData *data = arg;
  mob_pb_double_put(&data->resources_total, &data->n_resources_total, name, total);
  if (free_now > 0)
    mob_pb_double_put(&data->resources_available, &data->n_resources_available, name, free_now);
}

static void on_load(void *owner, mob_rpc_call_t *call, const void *message) {
  mob_node_t *node = owner;
  Ray__Rpc__GetResourceLoadReply reply = RAY__RPC__GET_RESOURCE_LOAD_REPLY__INIT;
  Ray__Rpc__ResourcesData data = RAY__RPC__RESOURCES_DATA__INIT;
  (void)message;
  data.node_id = mob_pb_bytes(node->id, sizeof node->id);
  data.node_manager_address = node->ip;
  data.is_draining = node->draining;
  mob_ledger_view(&node->ledger, put_load, &data);
  reply.resources = &data;
  mob_rpc_reply(call, &reply);
  mob_pb_double_clear(&data.resources_total, &data.n_resources_total);
  mob_pb_double_clear(&data.resources_available, &data.n_resources_available);
}

static void on_drain(void *owner, mob_rpc_call_t *call, const void *message) {
  mob_node_t *node = owner;
  const Ray__Rpc__DrainRayletRequest *request = message;
  Ray__Rpc__DrainRayletReply reply = RAY__RPC__DRAIN_RAYLET_REPLY__INIT;
  bool idle_only = request->reason ==
                   RAY__RPC__AUTOSCALER__DRAIN_NODE_REASON__DRAIN_NODE_REASON_IDLE_TERMINATION;
  if (idle_only && (node->workers.len || node->ledger.bundles.len)) {
    reply.rejection_reason_message = "The node to be idle terminated is no longer idle.";
  } else {
    reply.is_accepted = true;
    node->draining = true;
    node->drain_deadline_ms = request->deadline_timestamp_ms;
    MOB_INFO("the node drains: %s", request->reason_message);
    mob__node_changed(node);
  }
  mob_rpc_reply(call, &reply);
}

static void on_shutdown(void *owner, mob_rpc_call_t *call, const void *message) {
  mob_node_t *node = owner;
  const Ray__Rpc__ShutdownRayletRequest *request = message;
  Ray__Rpc__ShutdownRayletReply reply = RAY__RPC__SHUTDOWN_RAYLET_REPLY__INIT;
  bool graceful = request->graceful;
  mob_rpc_reply(call, &reply);
  if (graceful) {
    mob_node_stop(node, "the GCS asked for it");
  } else {
    mob__node_fail(node, "the GCS shut this node down");
  }
}

static void on_restart_notice(void *owner, mob_rpc_call_t *call, const void *message) {
  Ray__Rpc__NotifyGCSRestartReply reply = RAY__RPC__NOTIFY_GCSRESTART_REPLY__INIT;
  (void)message;
  mob_rpc_reply(call, &reply);
  mob__node_changed(owner);
}

static void on_sample(void *arg, const mob_telemetry_reply_t *sample) {
  mob_rpc_call_t *call = arg;
  if (sample)
    mob_rpc_reply(call, sample);
  else
    mob_rpc_reply_status(call, GRPC_STATUS_UNAVAILABLE, "the first sample is not finished");
}

static void on_telemetry(void *owner, mob_rpc_call_t *call, const void *message) {
  mob_node_t *node = owner;
  (void)message;
  if (node->phase >= MOB_NODE_ENDING) {
    mob_rpc_reply_status(call, GRPC_STATUS_UNAVAILABLE, "the node is ending");
    return;
  }
  bool real = node->gpus.source == MOB_GPUS_REAL || node->gpus.source == MOB_GPUS_DECLARED;
  if (!node->telemetry) node->telemetry = mob_telemetry_new(node->loop, real);
  mob_telemetry_get(node->telemetry, on_sample, call);
}

static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(SERVICE "RequestWorkerLease", ray__rpc__request_worker_lease, on_lease),
    MOB_RPC_METHOD(SERVICE "ReturnWorkerLease", ray__rpc__return_worker_lease, on_return),
    MOB_RPC_METHOD(SERVICE "CancelWorkerLease", ray__rpc__cancel_worker_lease, on_cancel_lease),
    MOB_RPC_METHOD(SERVICE "KillLocalActor", ray__rpc__kill_local_actor, on_kill),
    MOB_RPC_METHOD(SERVICE "ReleaseUnusedActorWorkers", ray__rpc__release_unused_actor_workers,
                   on_release_workers),
    MOB_RPC_METHOD(SERVICE "IsLocalWorkerDead", ray__rpc__is_local_worker_dead, on_is_dead),
    MOB_RPC_METHOD(SERVICE "GetWorkerPIDs", ray__rpc__get_worker_pids, on_pids),
    MOB_RPC_METHOD(SERVICE "GetNodeStats", ray__rpc__get_node_stats, on_stats),
    MOB_RPC_METHOD(SERVICE "PrepareBundleResources", ray__rpc__prepare_bundle_resources,
                   on_prepare),
    MOB_RPC_METHOD(SERVICE "CommitBundleResources", ray__rpc__commit_bundle_resources, on_commit),
    MOB_RPC_METHOD(SERVICE "CancelResourceReserve", ray__rpc__cancel_resource_reserve, on_cancel),
    MOB_RPC_METHOD(SERVICE "ReleaseUnusedBundles", ray__rpc__release_unused_bundles,
                   on_release_bundles),
    MOB_RPC_METHOD(SERVICE "GetResourceLoad", ray__rpc__get_resource_load, on_load),
    MOB_RPC_METHOD(SERVICE "DrainRaylet", ray__rpc__drain_raylet, on_drain),
    MOB_RPC_METHOD(SERVICE "ShutdownRaylet", ray__rpc__shutdown_raylet, on_shutdown),
    MOB_RPC_METHOD(SERVICE "NotifyGCSRestart", ray__rpc__notify_gcsrestart, on_restart_notice),
    MOB_RPC_METHOD("/mobula.rpc.NodeService/GetTelemetry", mobula__rpc__get_telemetry,
                   on_telemetry),
};

static int serving(void *owner, const char *service) {
  const mob_node_t *node = owner;
  if (*service && strcmp(service, node->id_hex) != 0) return -1;
  return node->phase <= MOB_NODE_READY;
}

mob_status mob__agent_listen(mob_node_t *node) {
  bool loopback = strncmp(node->ip, "127.", 4) == 0 || strcmp(node->ip, "::1") == 0;
  const char *any = strchr(node->ip, ':') ? "::" : "0.0.0.0";
  MOB_TRY(mob_rpc_server_new(node->rpc, &node->server));
  mob_rpc_server_add(node->server, methods, MOB_LEN(methods), node);
  mob_rpc_server_add_health(node->server, serving, node);
  return mob_rpc_server_listen(node->server, loopback ? node->ip : any,
                               node->options->node_manager_port, &node->port);
}
