// What the pods of the group are doing, for /metrics: each node daemon's telemetry, asked for once
// a second; without a cluster, this process's own. Also tells the cluster where its gateway is,
// which is how `mobula status` finds it.
#ifndef MOB_API_PODS_H
#define MOB_API_PODS_H

#include <stdbool.h>
#include <uv.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

typedef struct mob_pods mob_pods_t;

// `cluster` is the GCS's address, NULL without one. MOBULA_TELEMETRY_MS is the period (1000; 0:
// never).
mob_status mob_pods_open(uv_loop_t *loop, const char *cluster, mob_pods_t **out);
// The API listens: `host` is NULL where it listens on every address. Written into the GCS's
// key-value store, namespace "mobula", key "gateway", as JSON.
void mob_pods_tell_gateway(mob_pods_t *pods, const char *host, int port, bool tls,
                           const char *model);
// Appends metrics in Prometheus' text format.
void mob_pods_write(const mob_pods_t *pods, mob_buf_t *out);
// The loop must run on for a while.
void mob_pods_close(mob_pods_t *pods); // may be NULL

#endif
