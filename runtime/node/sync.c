// The stream that is the node's life: its resource view goes out, the GCS's heartbeats come in.
#define MOB_LOG_COMPONENT "node"

#include <stdlib.h>

#include "ray/ray_syncer.pb-c.h"
#include "runtime/base/log.h"
#include "runtime/node/internal.h"
#include "runtime/rpc/message.h"

#define SYNC_PATH "/ray.rpc.syncer.RaySyncer/StartSync"

typedef struct view {
  Ray__Rpc__Syncer__ResourceViewSyncMessage *message;
  MOB_VEC(char *) busy;
} view_t;

static void put_resource(void *arg, const char *name, double total, double free_now) {
  view_t *view = arg;
  Ray__Rpc__Syncer__ResourceViewSyncMessage *message = view->message;
  mob_pb_double_put(&message->resources_total, &message->n_resources_total, name, total);
  if (free_now > 0) {
    mob_pb_double_put(&message->resources_available, &message->n_resources_available, name,
                      free_now);
  }
  if (free_now < total)
    *mob_vec_push(&view->busy) = mob_sprintf("Resource: %s currently in use.", name);
}

static void send_view(mob_node_t *node) {
  Ray__Rpc__Syncer__ResourceViewSyncMessage resources =
      RAY__RPC__SYNCER__RESOURCE_VIEW_SYNC_MESSAGE__INIT;
  Ray__Rpc__Syncer__RaySyncMessage message = RAY__RPC__SYNCER__RAY_SYNC_MESSAGE__INIT;
  Ray__Rpc__Syncer__RaySyncMessage *messages[] = {&message};
  Ray__Rpc__Syncer__RaySyncMessageBatch batch = RAY__RPC__SYNCER__RAY_SYNC_MESSAGE_BATCH__INIT;
  view_t view = {.message = &resources};
  mob_ledger_view(&node->ledger, put_resource, &view);
  if (node->workers.len) *mob_vec_push(&view.busy) = mob_strdup("Busy workers on node.");
  if (view.busy.len) {
    node->idle_since_ms = uv_now(node->loop);
  } else {
    resources.idle_duration_ms = (int64_t)(uv_now(node->loop) - node->idle_since_ms);
  }
  resources.node_activity = view.busy.at;
  resources.n_node_activity = view.busy.len;
  resources.is_draining = node->draining;
  resources.draining_deadline_timestamp_ms = node->drain_deadline_ms;
  message.version = ++node->view_version;
  message.message_type = RAY__RPC__SYNCER__MESSAGE_TYPE__RESOURCE_VIEW;
  message.node_id = mob_pb_bytes(node->id, sizeof node->id);
  size_t len;
  void *packed = mob_pb_pack(&resources, &len);
  message.sync_message = mob_pb_bytes(packed, len);
  batch.messages = messages;
  batch.n_messages = 1;
  mob_rpc_stream_send_message(node->sync, &batch.base);
  node->sent_ms = uv_now(node->loop);
  node->view_queued = false;
  free(packed);
  mob_pb_double_clear(&resources.resources_total, &resources.n_resources_total);
  mob_pb_double_clear(&resources.resources_available, &resources.n_resources_available);
  for (size_t i = 0; i < view.busy.len; i++) free(view.busy.at[i]);
  mob_vec_free(&view.busy);
}

static void on_message(void *owner, mob_rpc_stream_t *stream, const uint8_t *data, size_t len) {
  mob_node_t *node = owner;
  (void)stream;
  (void)data; // other nodes' views, for schedulers that spill; the GCS alone places here
  (void)len;
  node->heard_ms = uv_now(node->loop);
}

static void on_close(void *owner, mob_rpc_stream_t *stream, grpc_status_code code,
                     const char *why) {
  mob_node_t *node = owner;
  (void)code;
  if (node->sync != stream) return; // closed from here
  node->sync = NULL;
  char *text = mob_sprintf("the head at %s is gone: %s", node->gcs_address,
                           why && *why ? why : "it ended this node's stream");
  mob__node_fail(node, text);
  free(text);
}

static const mob_rpc_stream_events_t events = {on_message, on_close, NULL};

void mob__sync_open(mob_node_t *node) {
  char heartbeat[16];
  mob_rpc_client_t *rpc = mob_gcs_client_rpc(node->client);
  snprintf(heartbeat, sizeof heartbeat, "%d", MOB_NODE_HEARTBEAT_MS);
  mob_rpc_client_set_metadata(rpc, "node_id", node->id_hex);
  mob_rpc_client_set_metadata(rpc, "mob_heartbeat_ms", heartbeat);
  node->sync = mob_rpc_stream_open(rpc, SYNC_PATH, &events, node);
  mob_rpc_client_set_metadata(rpc, "node_id", NULL);
  mob_rpc_client_set_metadata(rpc, "mob_heartbeat_ms", NULL);
  node->heard_ms = node->ticked_ms = node->idle_since_ms = uv_now(node->loop);
  send_view(node);
}

void mob__sync_close(mob_node_t *node) {
  mob_rpc_stream_t *stream = node->sync;
  node->sync = NULL;
  if (stream) mob_rpc_stream_close(stream, GRPC_STATUS_OK, "");
}

void mob__sync_flush(mob_node_t *node) {
  if (node->sync && node->view_queued) send_view(node);
}

void mob__sync_tick(mob_node_t *node) {
  uint64_t now = uv_now(node->loop);
  if (!node->sync) return;
  // After a pause of this process the GCS's messages wait in the socket: they are heard first.
  if (now - node->ticked_ms > MOB_NODE_SILENCE_MS / 2) node->heard_ms = now;
  node->ticked_ms = now;
  if (now - node->heard_ms > MOB_NODE_SILENCE_MS) {
    char *text = mob_sprintf("the head at %s is gone: it kept silent for %.1f s", node->gcs_address,
                             (double)(now - node->heard_ms) / 1e3);
    mob__node_fail(node, text);
    free(text);
    return;
  }
  send_view(node);
}
