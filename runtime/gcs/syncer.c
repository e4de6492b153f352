// ray.rpc.syncer.RaySyncer: every node keeps a stream to the GCS and says on it what it has. For
// nodes that ask for it (metadata mob_heartbeat_ms) the stream is also the proof of life, see
// README.md.
#define MOB_LOG_COMPONENT "gcs"
#include <stdlib.h>
#include <string.h>

#include "ray/ray_syncer.pb-c.h"
#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/gcs/internal.h"

enum { SILENCE_MS = 4500, BEAT_MS = 500 };

struct mob__syncer {
  mob_gcs_t *gcs;
  uint64_t beat_at;
};

// One node's end of a stream; lives as long as the stream.
typedef struct link {
  mob_gcs_t *gcs;
  uint8_t node_id[MOB_NODE_ID_SIZE];
} link_t;

static void take_view(mob_gcs_t *gcs, mob__node_t *node,
                      const Ray__Rpc__Syncer__RaySyncMessage *message) {
  if (node->view_at && message->version <= node->view_version) return;
  Ray__Rpc__Syncer__ResourceViewSyncMessage *view = NULL;
  if (mob_pb_unpack(&ray__rpc__syncer__resource_view_sync_message__descriptor,
                    message->sync_message.data, message->sync_message.len, &view) != MOB_OK) {
    MOB_WARN("node %.8s sent a resource view that cannot be read: %s", node->hex, mob_errmsg());
    return;
  }
  mob_resources_t total = {0}, available = {0};
  mob_resources_read(&total, view->resources_total, view->n_resources_total);
  mob_resources_read(&available, view->resources_available, view->n_resources_available);
  bool changed = !node->view_at || !mob_resources_equal(&total, &node->total) ||
                 !mob_resources_equal(&available, &node->available) ||
                 node->draining != view->is_draining;
  mob_resources_free(&node->total);
  mob_resources_free(&node->available);
  node->total = total;
  node->available = available;
  node->view_version = message->version;
  node->view_at = mob_now_ms();
  node->idle_ms = view->idle_duration_ms;
  node->pulls_queued = view->object_pulls_queued;
  node->draining = view->is_draining;
  node->drain_deadline_ms = view->draining_deadline_timestamp_ms;
  for (size_t i = 0; i < node->activity.len; i++) free(node->activity.at[i]);
  node->activity.len = 0;
  for (size_t i = 0; i < view->n_node_activity; i++) {
    *mob_vec_push(&node->activity) = mob_strdup(view->node_activity[i]);
  }
  mob_pb_free(view);
  if (changed) mob__gcs_schedule_soon(gcs);
}

typedef struct broadcast {
  const mob__node_t *from;
  Ray__Rpc__Syncer__RaySyncMessageBatch *batch;
} broadcast_t;

static void pass_on(void *arg, mob__node_t *node) {
  broadcast_t *b = arg;
  // Raylets redirect leases by what they know of each other; nodes of ours leave placement to the
  // GCS.
  if (node == b->from || !node->alive || !node->stream || node->heartbeat_ms) return;
  mob_rpc_stream_send_message(node->stream, &b->batch->base);
}

static void on_message(void *owner, mob_rpc_stream_t *stream, const uint8_t *data, size_t len) {
  link_t *link = owner;
  mob__node_t *node = mob__node_alive(link->gcs, link->node_id, sizeof link->node_id);
  if (!node || node->stream != stream) return;
  node->heard_at = mob_now_ms();
  Ray__Rpc__Syncer__RaySyncMessageBatch *batch = NULL;
  if (mob_pb_unpack(&ray__rpc__syncer__ray_sync_message_batch__descriptor, data, len, &batch) !=
      MOB_OK) {
    MOB_WARN("node %.8s sent a batch that cannot be read: %s", node->hex, mob_errmsg());
    return;
  }
  for (size_t i = 0; i < batch->n_messages; i++) {
    const Ray__Rpc__Syncer__RaySyncMessage *message = batch->messages[i];
    if (message->message_type != RAY__RPC__SYNCER__MESSAGE_TYPE__RESOURCE_VIEW ||
        !mob_pb_bytes_equal(message->node_id, node->id, sizeof node->id)) {
      continue;
    }
    take_view(link->gcs, node, message);
  }
  broadcast_t b = {node, batch};
  if (batch->n_messages) mob__nodes_each(link->gcs, pass_on, &b);
  mob_pb_free(batch);
}

static void on_close(void *owner, mob_rpc_stream_t *stream, grpc_status_code code,
                     const char *why) {
  (void)code, (void)why;
  link_t *link = owner;
  mob_gcs_t *gcs = link->gcs;
  mob__node_t *node = mob__node_find(gcs, link->node_id, sizeof link->node_id);
  if (node && node->stream == stream) {
    node->stream = NULL;
    if (node->alive && node->heartbeat_ms && !gcs->closing) {
      mob__node_die(gcs, node, RAY__RPC__NODE_DEATH_INFO__REASON__UNEXPECTED_TERMINATION,
                    "its connection to the head is closed: the node's daemon died or was killed");
    }
  }
  free(link);
}

static const mob_rpc_stream_events_t events = {on_message, on_close, NULL};

// What the others last said, for a raylet that has just joined.
static void send_known(void *arg, mob__node_t *node) {
  mob_rpc_stream_t *stream = arg;
  if (!node->alive || !node->view_at || node->stream == stream) return;
  Ray__Rpc__Syncer__ResourceViewSyncMessage view =
      RAY__RPC__SYNCER__RESOURCE_VIEW_SYNC_MESSAGE__INIT;
  mob_resources_write(&node->total, &view.resources_total, &view.n_resources_total);
  mob_resources_write(&node->available, &view.resources_available, &view.n_resources_available);
  view.idle_duration_ms = node->idle_ms;
  view.is_draining = node->draining;
  view.draining_deadline_timestamp_ms = node->drain_deadline_ms;
  view.labels = node->info->labels;
  view.n_labels = node->info->n_labels;
  Ray__Rpc__Syncer__RaySyncMessage message = RAY__RPC__SYNCER__RAY_SYNC_MESSAGE__INIT;
  message.version = node->view_version;
  message.node_id = mob_pb_bytes(node->id, sizeof node->id);
  message.sync_message.data = mob_pb_pack(&view, &message.sync_message.len);
  Ray__Rpc__Syncer__RaySyncMessage *list[] = {&message};
  Ray__Rpc__Syncer__RaySyncMessageBatch batch = RAY__RPC__SYNCER__RAY_SYNC_MESSAGE_BATCH__INIT;
  batch.n_messages = 1;
  batch.messages = list;
  mob_rpc_stream_send_message(stream, &batch.base);
  free(message.sync_message.data);
  mob_pb_double_clear(&view.resources_total, &view.n_resources_total);
  mob_pb_double_clear(&view.resources_available, &view.n_resources_available);
}

static void on_open(void *owner, mob_rpc_stream_t *stream) {
  mob_gcs_t *gcs = ((mob__syncer_t *)owner)->gcs;
  char nil_hex[2 * MOB_NODE_ID_SIZE + 1];
  memset(nil_hex, '0', sizeof nil_hex - 1); // the GCS's own id in this protocol
  nil_hex[sizeof nil_hex - 1] = 0;
  mob_rpc_stream_set_metadata(stream, "node_id", nil_hex);
  // A node that knows that the state is kept waits for a GCS that is away.
  if (gcs->store->persistent)
    mob_rpc_stream_set_metadata(stream, "mob_gcs_store", gcs->store->name);
  const char *hex = mob_rpc_stream_metadata(stream, "node_id");
  const char *beat = mob_rpc_stream_metadata(stream, "mob_heartbeat_ms");
  link_t *link = MOB_NEW(link_t);
  link->gcs = gcs;
  mob_rpc_stream_listen(stream, &events, link);
  if (!hex || mob_unhex(hex, link->node_id, sizeof link->node_id) != MOB_OK) {
    mob_rpc_stream_close(stream, GRPC_STATUS_INVALID_ARGUMENT,
                         "the metadata holds no node_id of 56 hex digits");
    return;
  }
  mob__node_t *node = mob__node_alive(gcs, link->node_id, sizeof link->node_id);
  if (!node) node = mob__node_return(gcs, link->node_id, sizeof link->node_id);
  if (!node) {
    mob_rpc_stream_close(stream, GRPC_STATUS_NOT_FOUND,
                         "no living node is registered under this id");
    return;
  }
  mob_rpc_stream_t *former = node->stream;
  node->stream = stream;
  if (former) mob_rpc_stream_close(former, GRPC_STATUS_ABORTED, "the node opened another stream");
  node->heartbeat_ms = beat ? (uint32_t)strtoul(beat, NULL, 10) : 0;
  node->heard_at = mob_now_ms();
  if (node->heartbeat_ms) {
    mob__health_forget(gcs, node);
    Ray__Rpc__Syncer__RaySyncMessageBatch empty = RAY__RPC__SYNCER__RAY_SYNC_MESSAGE_BATCH__INIT;
    mob_rpc_stream_send_message(stream, &empty.base); // it hears at once that it is heard
  } else {
    mob__nodes_each(gcs, send_known, stream);
  }
}

typedef struct silent {
  uint64_t now;
  mob__node_t *node;
  bool beat;
} silent_t;

static void look(void *arg, mob__node_t *node) {
  silent_t *s = arg;
  if (!node->alive || !node->stream || !node->heartbeat_ms) return;
  uint64_t limit = node->heartbeat_ms * 3 > SILENCE_MS ? node->heartbeat_ms * 3 : SILENCE_MS;
  if (s->now - node->heard_at > limit) s->node = node;
  if (!s->beat) return;
  Ray__Rpc__Syncer__RaySyncMessageBatch empty = RAY__RPC__SYNCER__RAY_SYNC_MESSAGE_BATCH__INIT;
  // A peer that takes nothing any more is not sent more and more.
  if (mob_rpc_stream_queued(node->stream) == 0)
    mob_rpc_stream_send_message(node->stream, &empty.base);
}

void mob__syncer_tick(mob_gcs_t *gcs) {
  silent_t s = {.now = mob_now_ms()};
  s.beat = s.now >= gcs->syncer->beat_at;
  if (s.beat) gcs->syncer->beat_at = s.now + BEAT_MS;
  do { // one at a time: a death changes the list
    s.node = NULL;
    mob__nodes_each(gcs, look, &s);
    s.beat = false;
    if (!s.node) continue;
    char *why =
        mob_sprintf("nothing was heard of it for %llu ms: the process hangs or the network is down",
                    (unsigned long long)(s.now - s.node->heard_at));
    mob__node_die(gcs, s.node, RAY__RPC__NODE_DEATH_INFO__REASON__UNEXPECTED_TERMINATION, why);
    free(why);
  } while (s.node);
}

mob__syncer_t *mob__syncer_new(mob_gcs_t *gcs) {
  mob__syncer_t *syncer = MOB_NEW(mob__syncer_t);
  syncer->gcs = gcs;
  mob_rpc_server_add_stream(gcs->server, "/ray.rpc.syncer.RaySyncer/StartSync", on_open, syncer);
  return syncer;
}

void mob__syncer_free(mob__syncer_t *syncer) {
  free(syncer);
}
