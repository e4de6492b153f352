// `mobula status`: what it knows is one JSON object (docs/api.md), which --json prints and the
// screen is drawn from.
//
//   {"address", "error", "nodes": [NODE...], "gateway": GATEWAY or null}
//   NODE:    {"ip", "hostname", "head", "up", "error", "clock_s", "age_s", "cpus", "cpu_s",
//             "memory_bytes", "memory_free_bytes", "gpus_total", "gpu_state", "driver",
//             "gpus": [...], "interfaces": [...], "rdma": [...]}
//   GATEWAY: {"url", "up", "error", "model", "requests_running", ..., "stages": [...]}
//
// What counts up (…_bytes of traffic, cpu_s, …_tokens) has a …_per_s beside it once there were two
// looks.
#ifndef MOB_LAUNCHER_STATUS_H
#define MOB_LAUNCHER_STATUS_H

#include <jansson.h>

#include "runtime/base/buf.h"
#include "runtime/node/telemetry_watch.h"

// From the node daemons.
json_t *mob__status_nodes(const mob_watched_node_t *nodes, size_t count);
// From a gateway's /metrics: {"gateway": {...}, "nodes": [...]}.
json_t *mob__status_metrics(char *text, const char *url);
// Puts rates into `now`, from what has grown since `before` (or NULL).
void mob__status_rates(json_t *now, const json_t *before);

void mob__status_screen(const json_t *status, mob_buf_t *out);

// GET of http://HOST[:PORT]/metrics, blocking, at most `timeout_ms`. `base` is "http://host:port".
mob_status mob__status_fetch(const char *base, uint64_t timeout_ms, mob_buf_t *body);

#endif
