#define MOB_LOG_COMPONENT "gcs"
#include "runtime/gcs/node_calls.h"

#include "runtime/base/log.h"

enum { TIMEOUT_MS = 30000 };

// For calls whose effect is seen elsewhere. `arg` names the call.
static void on_answered(void *arg, grpc_status_code code, const char *why, const void *reply) {
  (void)reply;
  if (code != GRPC_STATUS_OK && code != GRPC_STATUS_CANCELLED) {
    MOB_DEBUG("%s: %s", (const char *)arg, why);
  }
}

void mob__node_shut_down(mob_gcs_t *gcs, mob__node_t *node, mob_rpc_done_fn done) {
  Ray__Rpc__ShutdownRayletRequest request = RAY__RPC__SHUTDOWN_RAYLET_REQUEST__INIT;
  request.graceful = true;
  mob_rpc_call(mob__node_client(gcs, node), MOB__NODE_MANAGER "ShutdownRaylet", &request,
               &ray__rpc__shutdown_raylet_reply__descriptor, TIMEOUT_MS, done, NULL);
}

void mob__node_kill_actor(mob_gcs_t *gcs, mob__node_t *node, ProtobufCBinaryData actor_id,
                          ProtobufCBinaryData worker_id, bool force,
                          Ray__Rpc__ActorDeathCause *cause) {
  Ray__Rpc__KillLocalActorRequest request = RAY__RPC__KILL_LOCAL_ACTOR_REQUEST__INIT;
  request.intended_actor_id = actor_id;
  request.worker_id = worker_id;
  request.force_kill = force;
  request.death_cause = cause;
  mob_rpc_call(mob__node_client(gcs, node), MOB__NODE_MANAGER "KillLocalActor", &request,
               &ray__rpc__kill_local_actor_reply__descriptor, TIMEOUT_MS, on_answered,
               "killing an actor");
}

void mob__node_return_lease(mob_gcs_t *gcs, mob__node_t *node, ProtobufCBinaryData lease_id,
                            int port, bool disconnect, const char *why) {
  Ray__Rpc__ReturnWorkerLeaseRequest request = RAY__RPC__RETURN_WORKER_LEASE_REQUEST__INIT;
  request.worker_port = port;
  request.lease_id = lease_id;
  request.disconnect_worker = disconnect;
  request.disconnect_worker_error_detail = (char *)why;
  mob_rpc_call(mob__node_client(gcs, node), MOB__NODE_MANAGER "ReturnWorkerLease", &request,
               &ray__rpc__return_worker_lease_reply__descriptor, TIMEOUT_MS, on_answered,
               "returning a lease");
}

void mob__node_cancel_lease(mob_gcs_t *gcs, mob__node_t *node, ProtobufCBinaryData lease_id) {
  Ray__Rpc__CancelWorkerLeaseRequest request = RAY__RPC__CANCEL_WORKER_LEASE_REQUEST__INIT;
  request.lease_id = lease_id;
  mob_rpc_call(mob__node_client(gcs, node), MOB__NODE_MANAGER "CancelWorkerLease", &request,
               &ray__rpc__cancel_worker_lease_reply__descriptor, TIMEOUT_MS, on_answered,
               "cancelling a lease");
}

void mob__node_cancel_bundle(mob_gcs_t *gcs, mob__node_t *node, Ray__Rpc__Bundle *bundle) {
  Ray__Rpc__CancelResourceReserveRequest request = RAY__RPC__CANCEL_RESOURCE_RESERVE_REQUEST__INIT;
  request.bundle_spec = bundle;
  mob_rpc_call(mob__node_client(gcs, node), MOB__NODE_MANAGER "CancelResourceReserve", &request,
               &ray__rpc__cancel_resource_reserve_reply__descriptor, TIMEOUT_MS, on_answered,
               "giving a bundle back");
}
