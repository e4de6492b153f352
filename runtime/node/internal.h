// Shared between the files of runtime/node.
#ifndef MOB_NODE_INTERNAL_H
#define MOB_NODE_INTERNAL_H

#include "ray/node_manager.pb-c.h"
#include "runtime/actor/gcs_client.h"
#include "runtime/gcs/gcs.h"
#include "runtime/node/child.h"
#include "runtime/node/detect.h"
#include "runtime/node/node.h"
#include "runtime/node/resources.h"
#include "runtime/node/telemetry.h"
#include "runtime/rpc/rpc.h"

#define MOB_NODE_ID_BYTES 28
#define MOB_NODE_HEARTBEAT_MS 500 // promised to the GCS: never silent for longer
#define MOB_NODE_SILENCE_MS 4500  // of the GCS, after which it is lost

typedef struct mob_worker mob_worker_t; // one actor process

typedef enum mob_node_phase {
  MOB_NODE_JOINING,
  MOB_NODE_READY,
  MOB_NODE_STOPPING,
  MOB_NODE_ENDING
} mob_node_phase_t;

struct mob_node {
  uv_loop_t *loop;
  const mob_start_options_t *options;
  const mob_node_events_t *events;
  void *owner;
  mob_node_phase_t phase;
  int exit_code;
  char *why;

  char *ip, *node_name, *temp_dir, *session_dir, *record_path;
  char *gcs_address; // "ip:port"
  char *gcs_host;
  uint8_t id[MOB_NODE_ID_BYTES];
  char id_hex[2 * MOB_NODE_ID_BYTES + 1];
  int port; // of the agent

  mob_rpc_t *rpc;
  mob_rpc_server_t *server;
  mob_gcs_t *gcs; // the head's
  mob_gcs_client_t *client;
  mob_children_t *children;
  uv_getaddrinfo_t resolve;
  uv_timer_t timer; // heartbeats, and the grace of a stop
  bool resolving;

  mob_rpc_stream_t *sync;
  int64_t view_version;
  uint64_t heard_ms, ticked_ms, sent_ms;
  uint64_t idle_since_ms;
  bool heard; // the head, on this stream
  bool view_queued;
  // How long a head that keeps its state may be away; 0: it keeps none, and is lost at once.
  uint64_t patience_ms, away_since;                       // away_since 0: it is there
  MOB_VEC(Ray__Rpc__ReportWorkerFailureRequest *) unsent; // ends that it was not told of
  bool draining;
  int64_t drain_deadline_ms;
  uv_prepare_t flush; // sends a changed view before the loop sleeps

  mob_ledger_t ledger;
  mob_node_gpus_t gpus;
  mob_telemetry_t *telemetry; // once it was asked for
  MOB_VEC(mob_worker_t *) workers;
  int next_port; // of --min-worker-port..
  int pending_closes;
};

// node.c
void mob__node_fail(mob_node_t *node, const char *why); // ends the node with exit code 1
void mob__node_changed(mob_node_t *node);               // its resources: tell the GCS
void mob__node_workers_gone(mob_node_t *node);          // the last worker has ended

// sync.c
void mob__sync_open(mob_node_t *node);
void mob__sync_close(mob_node_t *node);
void mob__sync_flush(mob_node_t *node);                    // sends the view if it changed
void mob__sync_tick(mob_node_t *node);                     // every heartbeat
void mob__sync_missing(mob_node_t *node, const char *why); // the head cannot be reached

// agent.c
mob_status mob__agent_listen(mob_node_t *node);

// worker_pool.c: `call` is answered when the process can be called, or cannot be started.
void mob__node_worker_lease(mob_node_t *node, mob_rpc_call_t *call,
                            const Ray__Rpc__RequestWorkerLeaseRequest *request);
mob_worker_t *mob__node_worker_by_id(mob_node_t *node, ProtobufCBinaryData worker_id);
mob_worker_t *mob__node_worker_by_lease(mob_node_t *node, ProtobufCBinaryData lease_id);
bool mob__node_worker_in_bundle(const mob_worker_t *worker, const uint8_t *pg, int index);
pid_t mob__node_worker_pid(const mob_worker_t *worker);
// Without `force` SIGTERM first, and SIGKILL after some seconds.
void mob__node_worker_end(mob_worker_t *worker, bool force, const char *why);
void mob__node_workers_end_all(mob_node_t *node, bool force, const char *why);
void mob__node_workers_report_unsent(mob_node_t *node); // the head is there again
void mob__node_workers_free(mob_node_t *node);          // kills and forgets what is left

#endif
