// The stream that is the node's life: its resource view goes out, the GCS's heartbeats come in.
#define MOB_LOG_COMPONENT "node"

#include <stdlib.h>
#include <string.h>

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

static uint64_t patience_ms(void) {
  const char *text = getenv("RAY_gcs_rpc_server_reconnect_timeout_s");
  char *end;
  if (!text || !*text) return 60000;
  unsigned long seconds = strtoul(text, &end, 10);
  if (!*end && *text != '-' && seconds <= 86400) return seconds * 1000;
  MOB_WARN("RAY_gcs_rpc_server_reconnect_timeout_s=%s is no number of seconds: 60 is used", text);
  return 60000;
}

// The head was heard on this stream, for the first time.
static void on_there(mob_node_t *node, mob_rpc_stream_t *stream) {
  if (node->away_since) {
    MOB_INFO("the head at %s is back after %.1f s", node->gcs_address,
             (double)(uv_now(node->loop) - node->away_since) / 1e3);
    node->away_since = 0;
    mob__node_workers_report_unsent(node);
  }
  // The head's own daemon holds the GCS: they go together.
  const char *store = mob_rpc_stream_metadata(stream, "mob_gcs_store");
  if (!store || node->options->head || node->patience_ms) return;
  node->patience_ms = patience_ms();
  MOB_INFO("the head keeps its state (%s): this node waits for it up to %llu s when it is away",
           store, (unsigned long long)node->patience_ms / 1000);
  mob_gcs_client_set_patience(node->client, node->patience_ms);
}

static void on_message(void *owner, mob_rpc_stream_t *stream, const uint8_t *data, size_t len) {
  mob_node_t *node = owner;
  if (!node->heard) on_there(node, stream);
  node->heard = true;
  (void)data; // other nodes' views, for schedulers that spill; the GCS alone places here
  (void)len;
  node->heard_ms = uv_now(node->loop);
}

static void fail_lost(mob_node_t *node, const char *why) {
  char *text = mob_sprintf("the head at %s is gone: %s", node->gcs_address, why);
  mob__node_fail(node, text);
  free(text);
}

void mob__sync_missing(mob_node_t *node, const char *why) {
  uint64_t now = uv_now(node->loop);
  mob__sync_close(node);
  if (!node->patience_ms) { // or 0 was asked for
    fail_lost(node, why);
  } else if (!node->away_since) {
    node->away_since = now ? now : 1;
    MOB_WARN("the head at %s cannot be reached (%s): as it keeps its state, this node waits up to "
             "%llu s for it to come back",
             node->gcs_address, why, (unsigned long long)node->patience_ms / 1000);
  } else if (now - node->away_since >= node->patience_ms) {
    fail_lost(node, why);
  }
}

static void on_close(void *owner, mob_rpc_stream_t *stream, grpc_status_code code,
                     const char *why) {
  mob_node_t *node = owner;
  if (node->sync != stream) return; // closed from here
  node->sync = NULL;
  if (!why || !*why) why = "it ended this node's stream";
  // UNAVAILABLE: it is not there. Anything else is what it says, e.g. that this node is dead.
  if (code == GRPC_STATUS_UNAVAILABLE && node->phase == MOB_NODE_READY) {
    mob__sync_missing(node, why);
  } else {
    fail_lost(node, why);
  }
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
  node->heard = false;
  node->heard_ms = node->ticked_ms = uv_now(node->loop);
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
  if (node->away_since && now - node->away_since >= node->patience_ms) {
    char *text = mob_sprintf("it stayed away for %.0f s", (double)(now - node->away_since) / 1e3);
    fail_lost(node, text);
    free(text);
    return;
  }
  if (node->away_since && !node->sync && mob_rpc_client_up(mob_gcs_client_rpc(node->client)))
    mob__sync_open(node);
  if (!node->sync) return;
  // After a pause of this process the GCS's messages wait in the socket: they are heard first.
  if (now - node->ticked_ms > MOB_NODE_SILENCE_MS / 2) node->heard_ms = now;
  node->ticked_ms = now;
  if (now - node->heard_ms > MOB_NODE_SILENCE_MS) {
    char *text = mob_sprintf("it kept silent for %.1f s", (double)(now - node->heard_ms) / 1e3);
    mob__sync_missing(node, text);
    free(text);
    return;
  }
  send_view(node);
}
