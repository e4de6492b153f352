// Shared between the files of runtime/actor.
#ifndef MOB_ACTOR_INTERNAL_H
#define MOB_ACTOR_INTERNAL_H

#include "ray/core_worker.pb-c.h"
#include "runtime/actor/actor.h"
#include "runtime/actor/gcs_client.h"
#include "runtime/base/vec.h"
#include "runtime/rpc/rpc.h"

#define MOB_JOB_ID_LEN 4
#define MOB_TASK_ID_LEN 24
#define MOB_WORKER_ID_LEN 28
#define MOB_PUSH_TASK "/ray.rpc.CoreWorkerService/PushTask"
#define MOB_STREAM_PATH "/mobula.rpc.ActorService/Stream"
#define MOB_HOLD_PATH "/mobula.Driver/Hold"
#define MOB_HEARTBEAT_MS 500
#define MOB_SILENCE_MS 4500

// gRPC for a loop, shared by everything of this module on that loop.
mob_status mob__actor_rpc_acquire(uv_loop_t *loop, mob_rpc_t **out);
void mob__actor_rpc_release(mob_rpc_t *rpc); // the last one closes it

// -------------------------------------------------------------------------------------------
// cluster

typedef struct mob__deferred mob__deferred_t;

struct mob_cluster {
  uv_loop_t *loop;
  mob_rpc_t *rpc;
  mob_gcs_client_t *gcs;
  const mob_cluster_events_t *events;
  void *owner;
  bool connected, lost, closing, end_job;
  char *lost_why;
  uint8_t job_id[MOB_JOB_ID_LEN];
  uint8_t worker_id[MOB_WORKER_ID_LEN];
  char *name_space;
  char *ip; // of this process, as the GCS sees its owner
  mob_done_fn connect_done, close_done;
  void *connect_arg, *close_arg;
  mob_rpc_stream_t *hold; // tells the GCS that this driver lives, and this driver that its GCS does
  uv_timer_t heartbeat;
  uint64_t heard_ms;
  MOB_VEC(mob_actor_t *) actors;
  struct mob__node *nodes; // known nodes
  size_t node_count;
  unsigned users; // operations under way
};

typedef struct mob__node {
  uint8_t id[MOB_NODE_ID_LEN];
  char *ip;
  bool alive;
} mob__node_t;

// An operation that ends with `done` keeps the cluster's memory until then.
void mob__cluster_enter(mob_cluster_t *cluster);
void mob__cluster_leave(mob_cluster_t *cluster);
// Runs `fn` on a later turn of the loop.
void mob__defer(mob_cluster_t *cluster, void (*fn)(void *arg), void *arg);
// `done` with a failure, on a later turn.
void mob__defer_done(mob_cluster_t *cluster, mob_done_fn done, void *arg, mob_status status,
                     const char *why);
// NULL when operations may start; else why they may not.
const char *mob__cluster_broken(const mob_cluster_t *cluster);
void mob__cluster_address(const mob_cluster_t *cluster, Ray__Rpc__Address *out); // borrows

// --------------------------------------------------------------------------------------------
// actors

void mob__handle_on_table(mob_cluster_t *cluster, const Ray__Rpc__ActorTableData *data);
void mob__handle_lost(mob_actor_t *actor, mob_status status,
                      const char *why); // cluster closed or lost

// -------------------------------------------------------------------------------------------
// streams

// The client's end; `rpc` must be unlistened.
mob_stream_t *mob__stream_client(mob_rpc_client_t *rpc, const uint8_t *actor_id, const char *method,
                                 const mob_stream_events_t *events, void *owner);
// The actor's end. `accept` gets the stream once the first frame has told its method, and listens;
// it returns an error text to refuse. NULL `actor_id` while no actor is there.
typedef struct mob__stream_host {
  const uint8_t *(*actor_id)(void *host);
  const char *(*accept)(void *host, mob_stream_t *stream, const char *method);
  void *host;
} mob__stream_host_t;
void mob__stream_serve(mob_rpc_stream_t *rpc, const mob__stream_host_t *host);

#endif
