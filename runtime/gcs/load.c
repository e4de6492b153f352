// What waits for room. The GCS knows the actors that it has to place itself; raylets queue more on
// their own (tasks), and are asked for that once a second, as Ray's GCS does.
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/gcs/node_calls.h"

enum { PERIOD_MS = 1000, TIMEOUT_MS = 5000 };

typedef struct asked {
  mob_gcs_t *gcs;
  uint8_t node_id[MOB_NODE_ID_SIZE];
} asked_t;

static void on_load(void *arg, grpc_status_code code, const char *why, const void *reply) {
  (void)why;
  asked_t *asked = arg;
  mob_gcs_t *gcs = asked->gcs;
  mob__node_t *node = mob__node_alive(gcs, asked->node_id, sizeof asked->node_id);
  if (node) {
    node->asking_load = false;
    const Ray__Rpc__GetResourceLoadReply *answer = reply;
    const Ray__Rpc__ResourceLoad *load = code == GRPC_STATUS_OK && answer->resources
                                             ? answer->resources->resource_load_by_shape
                                             : NULL;
    mob_pb_free(node->load);
    node->load = load && load->n_resource_demands ? mob_pb_clone(load) : NULL;
  }
  free(asked);
  mob__gcs_release(gcs);
}

static void ask(void *arg, mob__node_t *node) {
  mob_gcs_t *gcs = arg;
  // A raylet that opened its stream; nodes of ours queue nothing themselves.
  if (!node->alive || !node->stream || node->heartbeat_ms || node->asking_load) return;
  asked_t *asked = MOB_NEW(asked_t);
  asked->gcs = gcs;
  memcpy(asked->node_id, node->id, sizeof asked->node_id);
  node->asking_load = true;
  mob__gcs_hold(gcs);
  Ray__Rpc__GetResourceLoadRequest request = RAY__RPC__GET_RESOURCE_LOAD_REQUEST__INIT;
  mob_rpc_call(mob__node_client(gcs, node), MOB__NODE_MANAGER "GetResourceLoad", &request,
               &ray__rpc__get_resource_load_reply__descriptor, TIMEOUT_MS, on_load, asked);
}

void mob__load_tick(mob_gcs_t *gcs) {
  uint64_t now = mob_now_ms();
  if (now < gcs->load_at) return;
  gcs->load_at = now + PERIOD_MS;
  mob__nodes_each(gcs, ask, gcs);
}

typedef struct demand {
  mob__demand_fn fn;
  void *arg;
} demand_t;

static void pass_on(void *arg, mob__node_t *node) {
  demand_t *d = arg;
  if (!node->alive || !node->load) return;
  for (size_t i = 0; i < node->load->n_resource_demands; i++) {
    const Ray__Rpc__ResourceDemand *row = node->load->resource_demands[i];
    int64_t count = (int64_t)row->num_ready_requests_queued +
                    (int64_t)row->num_infeasible_requests_queued + row->backlog_size;
    if (count <= 0) continue;
    mob_resources_t shape = {0};
    mob_resources_read(&shape, row->shape, row->n_shape);
    d->fn(d->arg, &shape, count);
    mob_resources_free(&shape);
  }
}

void mob__gcs_demand(mob_gcs_t *gcs, mob__demand_fn fn, void *arg) {
  mob__actors_demand(gcs, fn, arg);
  demand_t d = {fn, arg};
  mob__nodes_each(gcs, pass_on, &d);
}
