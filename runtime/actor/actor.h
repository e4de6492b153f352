// The actor API: create processes on a cluster's nodes, call them, stream to them, learn of their death.
//
// Two sides share this header.
//  * The class side: an actor class is a table of functions in a shared object (or linked into the
//    executable). One actor is one process; everything of it runs on that process's libuv loop.
//  * The client side: a driver (any program with a libuv loop) connects to a cluster by the address of
//    its GCS, places and creates actors, and talks to them.
// All functions are called on the loop's thread and never block; results come through callbacks on the
// loop. A callback's pointers live until it returns. Callbacks of a failed operation get a status other than MOB_OK
// and a message; a lost connection is MOB_E_UNAVAILABLE. Every operation ends: with its result, its
// failure, or MOB_E_ABORTED when the cluster handle closes.
#ifndef MOB_ACTOR_ACTOR_H
#define MOB_ACTOR_ACTOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/base/status.h"

#define MOB_ACTOR_ABI 1
#define MOB_ACTOR_ID_LEN 16 // Ray's: 12 unique bytes + job id
#define MOB_PG_ID_LEN 18    // Ray's: 14 random bytes + job id
#define MOB_NODE_ID_LEN 28

typedef struct mob_bytes {
  const void *data;
  size_t len;
} mob_bytes_t;

// ------------------------------------------------------------------------------------------ streams

// A bidirectional stream of messages between a client and an actor, one gRPC stream underneath.
// Messages arrive whole and in order. Both sides see `on_close` exactly once: MOB_OK after the peer's
// orderly close, MOB_E_UNAVAILABLE when the peer or the link died.
typedef struct mob_stream mob_stream_t;

typedef struct mob_stream_events {
  void (*on_message)(void *owner, mob_stream_t *stream, mob_bytes_t message);
  // The stream is freed after this returns.
  void (*on_close)(void *owner, mob_stream_t *stream, mob_status status, const char *why);
} mob_stream_events_t;

void mob_stream_listen(mob_stream_t *stream, const mob_stream_events_t *events, void *owner);
void mob_stream_send(mob_stream_t *stream, mob_bytes_t message); // copies; queues without limit
size_t mob_stream_queued(const mob_stream_t *stream);            // bytes not yet handed to the transport
void mob_stream_close(mob_stream_t *stream, mob_status status, const char *why);

// --------------------------------------------------------------------------------------- class side

typedef struct mob_actor_ctx mob_actor_ctx_t; // the running actor; lives as long as the process
typedef struct mob_call mob_call_t;           // one call under way

typedef struct mob_actor_class {
  uint32_t abi;     // MOB_ACTOR_ABI
  const char *name; // unique in its library
  // Makes the actor's state. A failure makes the actor DEAD with the message as its cause.
  mob_status (*create)(mob_actor_ctx_t *ctx, mob_bytes_t args, void **self);
  // Answers with mob_call_reply() or mob_call_fail(), now or later.
  void (*call)(void *self, mob_call_t *call, const char *method, mob_bytes_t args);
  // A client opened a stream; the class calls mob_stream_listen() before it returns. NULL: no streams.
  void (*stream)(void *self, mob_stream_t *stream, const char *method);
  // Orderly end (kill without force, ray stop, SIGTERM): release and then call mob_actor_exit(ctx, 0).
  void (*stop)(void *self);
} mob_actor_class_t;

// Every shared object of actor classes exports this; the list ends with NULL.
#define MOB_ACTOR_CLASSES_SYMBOL "mob_actor_classes"
typedef const mob_actor_class_t *const *(*mob_actor_classes_fn)(void);

// Classes linked into the executable, registered before the worker's main loop starts.
void mob_actor_register_builtin(const mob_actor_class_t *cls);

void mob_call_reply(mob_call_t *call, mob_bytes_t result); // frees the call
void mob_call_fail(mob_call_t *call, mob_status code, const char *message);

uv_loop_t *mob_actor_loop(mob_actor_ctx_t *ctx);
const char *mob_actor_name(mob_actor_ctx_t *ctx);    // "" when unnamed
const char *mob_actor_node_ip(mob_actor_ctx_t *ctx); // the address peers reach this node at
// The indices of the GPUs that the actor's bundle holds on this node, ascending; count in *n.
const int *mob_actor_gpu_ids(mob_actor_ctx_t *ctx, size_t *n);
// Ends the process with `code` after flushing what is queued. A code other than 0 counts as a failure.
void mob_actor_exit(mob_actor_ctx_t *ctx, int code, const char *why);

// -------------------------------------------------------------------------------------- client side

typedef struct mob_cluster mob_cluster_t;
typedef struct mob_actor mob_actor_t; // a handle; the actor lives on when the handle is released

// `why` is NULL when status is MOB_OK.
typedef void (*mob_done_fn)(void *arg, mob_status status, const char *why);

// What a driver wants to know of the cluster while it is connected. Members may be NULL.
typedef struct mob_cluster_events {
  // A node died or left. `ip` and `node_id` name it; `why` is the cause as the GCS states it.
  void (*on_node_dead)(void *owner, const uint8_t node_id[MOB_NODE_ID_LEN], const char *ip,
                       const char *why);
  void (*on_node_alive)(void *owner, const uint8_t node_id[MOB_NODE_ID_LEN], const char *ip);
  // The connection to the GCS is gone for good (its process died, or it did not answer within 5 s).
  void (*on_lost)(void *owner, const char *why);
} mob_cluster_events_t;

// `address` is "host:port". The driver becomes a job of the cluster; its non-detached actors and
// placement groups end with it. `done` runs once.
mob_status mob_cluster_connect(uv_loop_t *loop, const char *address, const mob_cluster_events_t *events,
                               void *owner, mob_done_fn done, void *arg, mob_cluster_t **out);
// Ends the job: actors and placement groups of this driver are removed. `done` may be NULL.
void mob_cluster_close(mob_cluster_t *cluster, mob_done_fn done, void *arg);

typedef struct mob_node_info {
  uint8_t node_id[MOB_NODE_ID_LEN];
  const char *ip;
  const char *hostname;
  bool alive, is_head;
  double cpus, gpus;           // total
  double cpus_free, gpus_free; // available now
} mob_node_info_t;
typedef void (*mob_nodes_fn)(void *arg, mob_status status, const char *why,
                             const mob_node_info_t *nodes, size_t count);
void mob_cluster_nodes(mob_cluster_t *cluster, mob_nodes_fn done, void *arg);

typedef enum mob_pg_strategy { MOB_PACK, MOB_SPREAD, MOB_STRICT_PACK, MOB_STRICT_SPREAD } mob_pg_strategy_t;

typedef struct mob_resource {
  const char *name; // "CPU", "GPU", "node:10.0.0.1", ...
  double amount;
} mob_resource_t;

typedef struct mob_bundle {
  const mob_resource_t *resources;
  size_t count;
} mob_bundle_t;

// Reserves the bundles on nodes (two-phase prepare and commit at the GCS). `done` runs when the group
// is CREATED, or fails; an infeasible group stays pending until `timeout_ms`, and the message then says what is
// missing (resources asked, resources there). The id is valid at once.
void mob_pg_create(mob_cluster_t *cluster, const char *name, mob_pg_strategy_t strategy,
                   const mob_bundle_t *bundles, size_t count, uint64_t timeout_ms, mob_done_fn done,
                   void *arg, uint8_t id[MOB_PG_ID_LEN]);
void mob_pg_remove(mob_cluster_t *cluster, const uint8_t id[MOB_PG_ID_LEN], mob_done_fn done, void *arg);

typedef struct mob_actor_options {
  const char *library;    // path of the shared object on the node; NULL for a built-in class
  const char *class_name; // required
  const char *name;       // unique in the namespace; NULL for an unnamed actor
  const char *name_space; // NULL: the driver's own
  mob_bytes_t args;       // for the class's create()
  const uint8_t *pg_id;   // MOB_PG_ID_LEN bytes, or NULL: any node that has the resources
  int bundle_index;       // in that group; -1 for any
  const mob_resource_t *resources; // what the actor takes (of its bundle or of its node)
  size_t resource_count;
  int64_t max_restarts; // 0 none, -1 without limit
  bool detached;        // outlives the driver
  const char *const *env; // "NAME=value" strings, NULL-terminated, or NULL
} mob_actor_options_t;

typedef struct mob_actor_events {
  void (*on_alive)(void *owner, mob_actor_t *actor); // also after a restart
  // The actor is DEAD, or RESTARTING when `restarting`. `why` names process, node and cause.
  void (*on_dead)(void *owner, mob_actor_t *actor, bool restarting, const char *why);
} mob_actor_events_t;

// Exactly one of on_alive or on_dead comes first; more events follow as they happen.
mob_status mob_actor_create(mob_cluster_t *cluster, const mob_actor_options_t *options,
                            const mob_actor_events_t *events, void *owner, mob_actor_t **out);
// Finds a named actor.
mob_status mob_actor_find(mob_cluster_t *cluster, const char *name_space, const char *name,
                          const mob_actor_events_t *events, void *owner, mob_actor_t **out);
const uint8_t *mob_actor_id(const mob_actor_t *actor);
const char *mob_actor_ip(const mob_actor_t *actor); // once alive
int mob_actor_port(const mob_actor_t *actor);       // the actor's gRPC port, once alive
int mob_actor_pid(const mob_actor_t *actor);        // once alive

typedef void (*mob_result_fn)(void *arg, mob_status status, const char *why, mob_bytes_t result);
// Calls of one client reach one actor in their order. timeout_ms 0: none (death of the actor still ends it).
void mob_actor_call(mob_actor_t *actor, const char *method, mob_bytes_t args, uint64_t timeout_ms,
                    mob_result_fn done, void *arg);
// Opens a stream to a living actor; what is sent before the connection stands is queued.
mob_status mob_actor_stream(mob_actor_t *actor, const char *method, const mob_stream_events_t *events,
                            void *owner, mob_stream_t **out);
void mob_actor_kill(mob_actor_t *actor, bool force, mob_done_fn done, void *arg);
void mob_actor_release(mob_actor_t *actor); // the handle only

#endif
