// What the GCS asks of node managers, and of workers.
#ifndef MOB_GCS_NODE_CALLS_H
#define MOB_GCS_NODE_CALLS_H

#include "ray/core_worker.pb-c.h"
#include "ray/node_manager.pb-c.h"
#include "runtime/gcs/internal.h"

#define MOB__NODE_MANAGER "/ray.rpc.NodeManagerService/"
#define MOB__CORE_WORKER "/ray.rpc.CoreWorkerService/"

void mob__node_shut_down(mob_gcs_t *gcs, mob__node_t *node, mob_rpc_done_fn done);
// Kills a worker that runs an actor. Nobody waits for the answer: the worker's end is reported.
void mob__node_kill_actor(mob_gcs_t *gcs, mob__node_t *node, ProtobufCBinaryData actor_id,
                          ProtobufCBinaryData worker_id, bool force,
                          Ray__Rpc__ActorDeathCause *cause);
void mob__node_return_lease(mob_gcs_t *gcs, mob__node_t *node, ProtobufCBinaryData lease_id,
                            int port, bool disconnect, const char *why);
void mob__node_cancel_lease(mob_gcs_t *gcs, mob__node_t *node, ProtobufCBinaryData lease_id);
// Gives back what a bundle holds or has prepared on the node.
void mob__node_cancel_bundle(mob_gcs_t *gcs, mob__node_t *node, Ray__Rpc__Bundle *bundle);

#endif
