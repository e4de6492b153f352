#include "runtime/node/telemetry_watch.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/vec.h"
#include "runtime/rpc/message.h"

enum { CALL_TIMEOUT_MS = 1000, LIST_TIMEOUT_MS = 3000 };

struct mob_telemetry_watch {
  uv_loop_t *loop;
  mob_rpc_t *rpc;
  mob_gcs_client_t *gcs;
  mob_telemetry_round_fn on_round;
  void *owner;
  uint64_t period_ms, begun_ms;
  uv_timer_t timer;
  MOB_VEC(mob_watched_node_t) nodes;
  int asked; // questions of this round under way
  bool connected, closing;
  int closes;
  void (*closed)(void *arg);
  void *closed_arg;
};

// Node ids, since the list may grow or shrink while a question is under way.
typedef struct question {
  mob_telemetry_watch_t *watch;
  uint8_t id[64];
  size_t id_len;
} question_t;

static void forget(mob_watched_node_t *node) {
  if (node->client) mob_rpc_client_close(node->client);
  mob_pb_free(node->info);
  mob_pb_free(node->now);
  mob_pb_free(node->before);
  free(node->why);
}

static mob_watched_node_t *find(mob_telemetry_watch_t *w, const void *id, size_t len) {
  for (size_t i = 0; i < w->nodes.len; i++)
    if (mob_pb_bytes_equal(w->nodes.at[i].info->node_id, id, len)) return &w->nodes.at[i];
  return NULL;
}

static void begin_round(uv_timer_t *timer);

static void end_round(mob_telemetry_watch_t *w, const char *why) {
  uint64_t took = mob_now_ms() - w->begun_ms;
  uv_timer_start(&w->timer, begin_round, took < w->period_ms ? w->period_ms - took : 0, 0);
  w->on_round(w->owner, why);
}

static void on_telemetry(void *arg, grpc_status_code code, const char *why, const void *reply) {
  question_t *q = arg;
  mob_telemetry_watch_t *w = q->watch;
  mob_watched_node_t *node = w->closing ? NULL : find(w, q->id, q->id_len);
  const mob_telemetry_reply_t *sample = reply;
  free(q);
  if (node) {
    free(node->why);
    node->why = code == GRPC_STATUS_OK ? NULL : mob_strdup(why);
  }
  // The same sample twice tells no rates.
  if (node && code == GRPC_STATUS_OK) {
    if (node->now && node->now->taken_ms == sample->taken_ms) {
      mob_pb_free(node->now);
    } else {
      mob_pb_free(node->before);
      node->before = node->now;
    }
    node->now = mob_pb_clone(sample);
    node->heard_ms = mob_now_ms();
  }
  if (--w->asked == 0 && !w->closing) end_round(w, NULL);
}

static void ask(mob_telemetry_watch_t *w, mob_watched_node_t *node) {
  if (!node->client) {
    const char *ip = node->info->node_manager_address;
    char *address =
        mob_sprintf(strchr(ip, ':') ? "[%s]:%d" : "%s:%d", ip, node->info->node_manager_port);
    mob_status status = mob_rpc_client_new(w->rpc, address, NULL, &node->client);
    free(address);
    if (status != MOB_OK) {
      node->client = NULL;
      free(node->why);
      node->why = mob_strdup(mob_errmsg());
      return;
    }
  }
  question_t *q = MOB_NEW(question_t);
  q->watch = w;
  q->id_len = node->info->node_id.len < sizeof q->id ? node->info->node_id.len : sizeof q->id;
  memcpy(q->id, node->info->node_id.data, q->id_len);
  Mobula__Rpc__GetTelemetryRequest request = MOBULA__RPC__GET_TELEMETRY_REQUEST__INIT;
  w->asked++;
  mob_rpc_call(node->client, "/mobula.rpc.NodeService/GetTelemetry", &request,
               &mobula__rpc__get_telemetry_reply__descriptor, CALL_TIMEOUT_MS, on_telemetry, q);
}

static void take_list(mob_telemetry_watch_t *w, const Ray__Rpc__GetAllNodeInfoReply *reply) {
  for (size_t i = 0; i < w->nodes.len; i++) w->nodes.at[i].alive = false;
  for (size_t i = 0; i < reply->n_node_info_list; i++) {
    const Ray__Rpc__GcsNodeInfo *info = reply->node_info_list[i];
    bool alive = info->state == RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__ALIVE;
    mob_watched_node_t *node = find(w, info->node_id.data, info->node_id.len);
    if (!node && !alive) continue; // dead before anybody looked
    if (!node) node = mob_vec_push(&w->nodes);
    mob_pb_free(node->info);
    node->info = mob_pb_clone(info);
    node->alive = alive;
  }
  for (size_t i = 0; i < w->nodes.len; i++)
    if (w->nodes.at[i].alive) ask(w, &w->nodes.at[i]);
}

static void on_list(void *arg, mob_status status, const char *why, const void *reply) {
  mob_telemetry_watch_t *w = arg;
  w->asked--;
  if (w->closing) return;
  if (status == MOB_OK) take_list(w, reply);
  if (w->asked == 0) end_round(w, status == MOB_OK ? NULL : why);
}

static void begin_round(uv_timer_t *timer) {
  mob_telemetry_watch_t *w = timer->data;
  Ray__Rpc__GetAllNodeInfoRequest request = RAY__RPC__GET_ALL_NODE_INFO_REQUEST__INIT;
  w->begun_ms = mob_now_ms();
  w->asked++;
  mob_gcs_call(w->gcs, "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", &request,
               &ray__rpc__get_all_node_info_reply__descriptor, LIST_TIMEOUT_MS, on_list, w);
}

static void on_connected(void *arg, mob_status status, const char *why) {
  mob_telemetry_watch_t *w = arg;
  (void)why;
  if (w->closing || status != MOB_OK) return;
  w->connected = true;
  uv_timer_start(&w->timer, begin_round, 0, 0);
}

mob_status mob_telemetry_watch_new(uv_loop_t *loop, const char *gcs_address, uint64_t period_ms,
                                   mob_telemetry_round_fn on_round, void *owner,
                                   mob_telemetry_watch_t **out) {
  mob_telemetry_watch_t *w = MOB_NEW(mob_telemetry_watch_t);
  *w = (mob_telemetry_watch_t){
      .loop = loop, .on_round = on_round, .owner = owner, .period_ms = period_ms};
  mob_status status = mob_rpc_new(loop, &w->rpc);
  if (status == MOB_OK)
    status = mob_gcs_client_new(w->rpc, gcs_address, 0, NULL, NULL, on_connected, w, &w->gcs);
  if (status != MOB_OK) {
    if (w->rpc) mob_rpc_close(w->rpc, NULL, NULL);
    free(w);
    return status;
  }
  uv_timer_init(loop, &w->timer);
  w->timer.data = w;
  *out = w;
  return MOB_OK;
}

const mob_watched_node_t *mob_telemetry_watch_nodes(const mob_telemetry_watch_t *w, size_t *count) {
  *count = w->nodes.len;
  return w->nodes.at;
}

mob_gcs_client_t *mob_telemetry_watch_gcs(mob_telemetry_watch_t *w) {
  return w->connected && !w->closing ? w->gcs : NULL;
}

static void one_closed(mob_telemetry_watch_t *w) {
  if (--w->closes) return;
  void (*closed)(void *) = w->closed;
  void *arg = w->closed_arg;
  free(w);
  if (closed) closed(arg);
}

static void on_rpc_closed(void *arg) {
  one_closed(arg);
}

static void on_timer_closed(uv_handle_t *handle) {
  one_closed(handle->data);
}

void mob_telemetry_watch_close(mob_telemetry_watch_t *w, void (*done)(void *arg), void *arg) {
  w->closing = true;
  w->closed = done;
  w->closed_arg = arg;
  w->closes = 2;
  for (size_t i = 0; i < w->nodes.len; i++) forget(&w->nodes.at[i]);
  mob_vec_free(&w->nodes);
  mob_gcs_client_close(w->gcs);
  mob_rpc_close(w->rpc, on_rpc_closed, w);
  uv_close((uv_handle_t *)&w->timer, on_timer_closed);
}
