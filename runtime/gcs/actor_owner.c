// The owner of an actor is the worker that created it. One that serves CoreWorkerService (Ray's own
// workers do; a driver of ours does not and is watched by its job's stream) is asked to tell when
// the last reference to the actor is gone; when that call breaks, the owner is dead.
#define MOB_LOG_COMPONENT "gcs"
#include <stdlib.h>
#include <string.h>

#include "runtime/base/log.h"
#include "runtime/gcs/actors.h"
#include "runtime/gcs/node_calls.h"

typedef struct mob__owner_watch {
  mob_gcs_t *gcs;
  mob_rpc_client_t *client;
  uint8_t actor_id[MOB_ACTOR_ID_SIZE];
  uint8_t worker_id[MOB_WORKER_ID_SIZE];
  bool forgotten;
} watch_t;

static void on_deleted(void *arg, grpc_status_code code, const char *why, const void *reply) {
  (void)reply;
  watch_t *watch = arg;
  mob_gcs_t *gcs = watch->gcs;
  if (!watch->forgotten && !gcs->closing) {
    mob__actor_t *actor = mob__actor_find(gcs, watch->actor_id, sizeof watch->actor_id);
    actor->owner = NULL;
    mob_rpc_client_close(watch->client);
    if (code == GRPC_STATUS_OK) {
      Ray__Rpc__ActorDeathCause cause;
      Ray__Rpc__ActorDiedErrorContext context;
      mob__actor_died(actor, &cause, &context,
                      RAY__RPC__ACTOR_DIED_ERROR_CONTEXT__REASON__REF_DELETED,
                      "The actor is dead because all references to the actor were removed.");
      actor->kill_gently = true;
      mob__actor_die(actor, &cause);
    } else {
      MOB_INFO("the owner of actor %.8s does not answer: %s", actor->hex, why);
      mob__actor_owner_died(gcs, watch->worker_id, sizeof watch->worker_id,
                            "The actor is dead because its owner has died.");
    }
  }
  free(watch);
  mob__gcs_release(gcs);
}

void mob__actor_watch_owner(mob__actor_t *actor) {
  const Ray__Rpc__Address *owner = actor->data->owner_address;
  if (owner->port <= 0 || owner->worker_id.len != MOB_WORKER_ID_SIZE) return;
  char *address = mob_sprintf(strchr(owner->ip_address, ':') ? "[%s]:%d" : "%s:%d",
                              owner->ip_address, owner->port);
  watch_t *watch = MOB_NEW(watch_t);
  watch->gcs = actor->gcs;
  memcpy(watch->actor_id, actor->id, sizeof watch->actor_id);
  memcpy(watch->worker_id, owner->worker_id.data, sizeof watch->worker_id);
  mob_status status = mob_rpc_client_new(actor->gcs->rpc, address, NULL, &watch->client);
  free(address);
  if (status != MOB_OK) {
    MOB_WARN("actor %.8s has an owner of no usable address: %s", actor->hex, mob_errmsg());
    free(watch);
    return;
  }
  actor->owner = watch;
  mob__gcs_hold(actor->gcs);
  mob_rpc_client_set_metadata(watch->client, "ray_cluster_id", actor->gcs->cluster_id_hex);
  Ray__Rpc__WaitForActorRefDeletedRequest request =
      RAY__RPC__WAIT_FOR_ACTOR_REF_DELETED_REQUEST__INIT;
  request.intended_worker_id = owner->worker_id;
  request.actor_id = actor->data->actor_id;
  mob_rpc_call(watch->client, MOB__CORE_WORKER "WaitForActorRefDeleted", &request,
               &ray__rpc__wait_for_actor_ref_deleted_reply__descriptor, 0, on_deleted, watch);
}

void mob__actor_forget_owner(mob__actor_t *actor) {
  if (!actor->owner) return;
  actor->owner->forgotten = true;
  mob_rpc_client_close(actor->owner->client); // its call ends, which frees the watch
  actor->owner = NULL;
}
