// What all nodes of a cluster are doing: asks the GCS who is there and each node's daemon for its
// telemetry, again and again. On the caller's loop; nothing blocks.
#ifndef MOB_NODE_TELEMETRY_WATCH_H
#define MOB_NODE_TELEMETRY_WATCH_H

#include <uv.h>

#include "ray/gcs.pb-c.h"
#include "runtime/actor/gcs_client.h"
#include "runtime/base/status.h"
#include "runtime/node/telemetry.h"

typedef struct mob_telemetry_watch mob_telemetry_watch_t;

typedef struct mob_watched_node {
  Ray__Rpc__GcsNodeInfo *info; // as the GCS has it
  bool alive;                  // as the GCS says
  // The last two samples, NULL while there are none; `before` is the older one.
  mob_telemetry_reply_t *now, *before;
  uint64_t heard_ms; // monotonic, when `now` came
  char *why;         // the last question's failure; NULL after an answer
  mob_rpc_client_t *client;
} mob_watched_node_t;

// After every round of questions: each is answered, or failed within a second. `why` is NULL, or
// why the GCS does not answer.
typedef void (*mob_telemetry_round_fn)(void *owner, const char *why);

// The first round begins as soon as the GCS answers, the others `period_ms` after one another.
mob_status mob_telemetry_watch_new(uv_loop_t *loop, const char *gcs_address, uint64_t period_ms,
                                   mob_telemetry_round_fn on_round, void *owner,
                                   mob_telemetry_watch_t **out);
// The nodes that live or died since the first round; valid until the next turn of the loop.
const mob_watched_node_t *mob_telemetry_watch_nodes(const mob_telemetry_watch_t *watch,
                                                    size_t *count);
// NULL before it is connected.
mob_gcs_client_t *mob_telemetry_watch_gcs(mob_telemetry_watch_t *watch);
// `done` (may be NULL) runs last. No round follows.
void mob_telemetry_watch_close(mob_telemetry_watch_t *watch, void (*done)(void *arg), void *arg);

#endif
