// A connection to a cluster's GCS: its cluster id, calls whose replies carry a GcsStatus, and what
// it publishes. Used by drivers, node agents and commands alike.
#ifndef MOB_ACTOR_GCS_CLIENT_H
#define MOB_ACTOR_GCS_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "ray/gcs.pb-c.h"
#include "ray/gcs_service.pb-c.h"
#include "ray/pubsub.pb-c.h"
#include "runtime/base/status.h"
#include "runtime/rpc/rpc.h"

#define MOB_CLUSTER_ID_LEN 28

typedef struct mob_gcs_client mob_gcs_client_t;

typedef struct mob_gcs_client_events {
  // The cluster is gone for good: its GCS ended, was replaced by another one, or keeps silent. Runs
  // once, and only after the connect succeeded. May be NULL.
  void (*on_lost)(void *owner, const char *why);
  // The connection stands again after a break that was not the end. May be NULL.
  void (*on_restored)(void *owner);
  // A message of a channel that was subscribed to. May be NULL.
  void (*on_message)(void *owner, const Ray__Rpc__PubMessage *message);
} mob_gcs_client_events_t;

typedef void (*mob_gcs_done_fn)(void *arg, mob_status status, const char *why);
// `reply` is of the method's type; NULL unless status is MOB_OK.
typedef void (*mob_gcs_reply_fn)(void *arg, mob_status status, const char *why, const void *reply);

// `address` is "host:port". Tries to connect until it succeeds or `timeout_ms` is over (0: no end);
// `done` runs once.
mob_status mob_gcs_client_new(mob_rpc_t *rpc, const char *address, uint64_t timeout_ms,
                              const mob_gcs_client_events_t *events, void *owner,
                              mob_gcs_done_fn done, void *arg, mob_gcs_client_t **out);
// No callback runs after this, but those of calls under way (with MOB_E_ABORTED).
void mob_gcs_client_close(mob_gcs_client_t *client);

// A GCS that keeps its state may come back: from now on one that cannot be reached is lost only
// when it stays away for this long.
void mob_gcs_client_set_patience(mob_gcs_client_t *client, uint64_t ms);

const char *mob_gcs_client_address(const mob_gcs_client_t *client);
mob_rpc_client_t *mob_gcs_client_rpc(mob_gcs_client_t *client);

// A call of a GCS service. A GcsStatus other than OK in the reply becomes a mob_status.
void mob_gcs_call(mob_gcs_client_t *client, const char *path, const void *request,
                  const ProtobufCMessageDescriptor *reply, uint64_t timeout_ms,
                  mob_gcs_reply_fn done, void *arg);

// Asks for a channel's messages, of one key or (key_len 0) of all. `done` may be NULL. Each
// subscribe is taken back by one unsubscribe.
void mob_gcs_subscribe(mob_gcs_client_t *client, Ray__Rpc__ChannelType channel, const void *key,
                       size_t key_len, mob_gcs_reply_fn done, void *arg);
void mob_gcs_unsubscribe(mob_gcs_client_t *client, Ray__Rpc__ChannelType channel, const void *key,
                         size_t key_len);

mob_status mob_gcs_status(int32_t code); // the nearest mob_status of a GcsStatus

#endif
