// One node of a cluster: registers with the GCS (which it hosts, as the head), holds the stream
// that is its life, reserves resources, and starts, watches and ends actor processes.
#ifndef MOB_NODE_NODE_H
#define MOB_NODE_NODE_H

#include <uv.h>

#include "runtime/base/status.h"
#include "runtime/node/options.h"

typedef struct mob_node mob_node_t;

typedef struct mob_node_events {
  // The node is registered and serves.
  void (*on_ready)(void *owner, mob_node_t *node);
  // The end has begun: its actors are dead or dying, its connections close. May be NULL.
  void (*on_ending)(void *owner, mob_node_t *node, int code, const char *why);
  // The node has ended; all that it started is gone. `code` is the exit code for its process: 0
  // after mob_node_stop(), 1 otherwise, with the cause in `why`. The node is freed when it returns.
  void (*on_end)(void *owner, mob_node_t *node, int code, const char *why);
} mob_node_events_t;

// Every failure comes through on_end, also that of the start itself. `connect_timeout_ms` limits
// how long the head of a worker may be unreachable. Takes over SIGCHLD of the process. The options
// must live as long as the node.
mob_node_t *mob_node_start(uv_loop_t *loop, const mob_start_options_t *options,
                           uint64_t connect_timeout_ms, const mob_node_events_t *events,
                           void *owner);
// Orderly end: actors get SIGTERM and some seconds, the GCS is told. Safe to repeat.
void mob_node_stop(mob_node_t *node, const char *why);

// Once ready.
const char *mob_node_ip_address(const mob_node_t *node);
const char *mob_node_gcs_address(const mob_node_t *node); // "ip:port"
const char *mob_node_session_dir(const mob_node_t *node);
const char *mob_node_id_hex(const mob_node_t *node);

// The daemon's program: `mobula node [flags of ray start]`. In front of the terminal or pod, or
// started by `ray start`, to which it reports on --ready-fd.
int mob_node_main(int argc, char **argv);

// The same, already parsed: stays until the node ends and returns the exit code. `on_ready` may be
// NULL.
int mob_node_run(const mob_start_options_t *options, uint64_t connect_timeout_ms,
                 void (*on_ready)(void *arg, mob_node_t *node), void *arg, char **why);

#endif
