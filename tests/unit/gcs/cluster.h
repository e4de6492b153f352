// A GCS, a client of it and nodes that are played by the test, all on one loop.
#ifndef TESTS_GCS_CLUSTER_H
#define TESTS_GCS_CLUSTER_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdbool.h>

#include "ray/autoscaler.pb-c.h"
#include "ray/core_worker.pb-c.h"
#include "ray/gcs_service.pb-c.h"
#include "ray/node_manager.pb-c.h"
#include "ray/ray_syncer.pb-c.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/gcs/gcs.h"
#include "runtime/gcs/ids.h"
#include "runtime/gcs/resources.h"

typedef struct cluster {
  uv_loop_t loop;
  uv_timer_t tick;
  mob_rpc_t *rpc;
  mob_gcs_t *gcs;
  mob_rpc_client_t *client;
  int port;
  bool closed;
} cluster_t;

void cluster_open(cluster_t *c);
void cluster_open_with(cluster_t *c, mob_store_t *store);
void cluster_close(cluster_t *c); // and checks that nothing is left on the loop
// Runs the loop until the condition holds; fails the test after 10 s.
#define WAIT_FOR(c, condition)                                                                     \
  do {                                                                                             \
    uint64_t wait_deadline_ = mob_now_ms() + 10000;                                                \
    while (!(condition)) {                                                                         \
      if (mob_now_ms() > wait_deadline_) fail_msg("waited in vain for: %s", #condition);           \
      uv_run(&(c)->loop, UV_RUN_ONCE);                                                             \
    }                                                                                              \
  } while (0)
void run_for(cluster_t *c, uint64_t ms);

// Calls and waits; the reply is the caller's (mob_pb_free). Fails the test unless gRPC says OK.
void *ask(cluster_t *c, const char *path, const void *request,
          const ProtobufCMessageDescriptor *reply);
// The same, without waiting.
typedef struct answer {
  bool done;
  grpc_status_code code;
  void *reply; // a copy
} answer_t;
mob_rpc_pending_t *ask_later(cluster_t *c, const char *path, const void *request,
                             const ProtobufCMessageDescriptor *reply, answer_t *out);

// A node manager, and the only worker process it ever has, played by the test.
typedef struct fake_node {
  cluster_t *c;
  uint8_t id[MOB_NODE_ID_SIZE];
  mob_rpc_server_t *server;
  mob_rpc_client_t *client; // its own connection to the GCS
  mob_rpc_stream_t *stream;
  int port;
  mob_resources_t total, available;
  int64_t version;
  bool stream_closed;
  // What was asked of it, and how it answers.
  size_t prepared, committed, cancelled, leased, pushed, killed, returned;
  bool refuse_prepare, hold_prepare, fail_constructor, reject_lease, hold_push, silent, raylet;
  int serving; // what a raylet's health service says: 1, 0, or -1 for nothing at all
  size_t load_asked;
  // After a restart of the GCS: with `keep_id` it joins under the id that stands in `id`.
  bool keep_id;
  size_t restart_told, workers_in_use, bundles_in_use;
  mob_rpc_call_t *held_prepare, *held_push;
  uint8_t worker_id[MOB_WORKER_ID_SIZE]; // of the newest lease
  uint8_t killed_actor[MOB_ACTOR_ID_SIZE];
  char lease_resources[512];
} fake_node_t;

void node_join(cluster_t *c, fake_node_t *node, const char *ip, const char *resources, bool head);
void node_say(fake_node_t *node); // sends its view
void node_leave(fake_node_t *node, bool orderly);
void node_worker_dies(fake_node_t *node, Ray__Rpc__WorkerExitType how, const char *detail);
bool node_alive(cluster_t *c, const fake_node_t *node);

mob_resources_t parse_resources(const char *text); // "CPU=4 GPU=8"

// Requests.
void add_job(cluster_t *c, uint32_t number, const char *name_space);
typedef struct pg_id {
  uint8_t bytes[MOB_PG_ID_SIZE];
} pg_id_t;
pg_id_t create_group(cluster_t *c, const char *name, Ray__Rpc__PlacementStrategy strategy,
                     size_t count, const char *const *bundles, bool detached, int *code);
Ray__Rpc__GetPlacementGroupReply *get_group(cluster_t *c, const pg_id_t *id);
bool group_is(cluster_t *c, const pg_id_t *id,
              Ray__Rpc__PlacementGroupTableData__PlacementGroupState state);

typedef struct actor_id {
  uint8_t bytes[MOB_ACTOR_ID_SIZE];
} actor_id_t;
typedef struct actor_args {
  const char *name, *name_space, *resources;
  int64_t max_restarts;
  bool detached;
  const pg_id_t *group;
  int64_t bundle;
  uint32_t job;
} actor_args_t;
// Registers and starts the creation, whose answer goes to `created`. Returns the registration's
// status.
int create_actor(cluster_t *c, const actor_args_t *args, actor_id_t *id, answer_t *created);
Ray__Rpc__GetActorInfoReply *get_actor(cluster_t *c, const actor_id_t *id);
bool actor_is(cluster_t *c, const actor_id_t *id, Ray__Rpc__ActorTableData__ActorState state);

#endif
