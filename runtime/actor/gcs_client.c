#define MOB_LOG_COMPONENT "gcs-client"
#include "runtime/actor/gcs_client.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/base/vec.h"
#include "runtime/rpc/message.h"

// A broken connection to a GCS that lives is set up again within one try; two failed tries mean
// that nobody listens there any more.
#define LOST_TRIES 2
#define LOST_PAUSE_MS 60
#define PATIENT_PAUSE_MS 250 // between tries while a GCS is waited for
// A GCS that keeps silent is given up after this: keepalive ping + its time-out, 4.5 s in all.
#define KEEPALIVE_MS 1500
#define KEEPALIVE_TIMEOUT_MS 3000

typedef struct subscription {
  Ray__Rpc__ChannelType channel;
  uint8_t key[32];
  size_t key_len;
} subscription_t;

struct mob_gcs_client {
  mob_rpc_client_t *rpc;
  const mob_gcs_client_events_t *events;
  void *owner;
  mob_gcs_done_fn done;
  void *arg;
  uv_timer_t timer; // the deadline of the connect, afterwards the pause between tries
  bool connected, lost, closed, probing, polling;
  int failures;
  uint64_t patience_ms, away_since; // away_since 0: it is there
  char *last_error;
  uint8_t cluster_id[MOB_CLUSTER_ID_LEN];
  uint8_t subscriber_id[28], publisher_id[28];
  size_t publisher_len;
  int64_t processed;
  MOB_VEC(subscription_t) subscriptions;
  unsigned users; // operations under way that point here; the last one of a closed client frees it
};

// One call under way.
typedef struct request {
  mob_gcs_client_t *client;
  const ProtobufCMessageDescriptor *reply;
  mob_gcs_reply_fn done;
  void *arg;
} request_t;

static void probe(mob_gcs_client_t *client);
static void poll(mob_gcs_client_t *client);

mob_status mob_gcs_status(int32_t code) {
  switch (code) {
  case 0:
    return MOB_OK;
  case 2:
  case 3:
  case 4:
  case 34:
    return MOB_E_INVALID;
  case 10:
    return MOB_E_UNSUPPORTED;
  case 5:
  case 11:
    return MOB_E_IO;
  case 12:
    return MOB_E_TIMEOUT;
  case 13:
  case 19:
    return MOB_E_ABORTED;
  case 17:
    return MOB_E_NOT_FOUND;
  case 18:
  case 30:
    return MOB_E_UNAVAILABLE;
  case 20:
    return MOB_E_EXISTS;
  case 1:
  case 28:
  case 31:
    return MOB_E_NO_RESOURCES;
  default:
    return MOB_E_INTERNAL;
  }
}

static void leave(mob_gcs_client_t *client) {
  if (--client->users) return;
  mob_vec_free(&client->subscriptions);
  free(client->last_error);
  free(client);
}

static void on_timer_closed(uv_handle_t *handle) {
  leave(handle->data);
}

// --------------------------------------------------------------------------------------------
// calls

static void on_reply(void *arg, grpc_status_code code, const char *why, const void *reply) {
  request_t *request = arg;
  mob_status status = mob_rpc_to_status(code);
  if (request->client->closed && status != MOB_OK) status = MOB_E_ABORTED;
  if (status == MOB_OK) {
    const ProtobufCFieldDescriptor *field =
        protobuf_c_message_descriptor_get_field_by_name(request->reply, "status");
    const Ray__Rpc__GcsStatus *inner =
        field && field->descriptor == &ray__rpc__gcs_status__descriptor
            ? *(Ray__Rpc__GcsStatus *const *)((const char *)reply + field->offset)
            : NULL;
    if (inner && inner->code) {
      status = mob_gcs_status(inner->code);
      why = inner->message;
    }
  }
  if (request->done) {
    request->done(request->arg, status, status == MOB_OK ? NULL : why,
                  status == MOB_OK ? reply : NULL);
  }
  leave(request->client);
  free(request);
}

void mob_gcs_call(mob_gcs_client_t *client, const char *path, const void *request,
                  const ProtobufCMessageDescriptor *reply, uint64_t timeout_ms,
                  mob_gcs_reply_fn done, void *arg) {
  request_t *r = MOB_NEW(request_t);
  *r = (request_t){client, reply, done, arg};
  client->users++;
  mob_rpc_call(client->rpc, path, request, reply, timeout_ms, on_reply, r);
}

// ------------------------------------------------------------------------------- connect, and
// losing it

static void lose(mob_gcs_client_t *client, const char *why) {
  if (client->lost || client->closed) return;
  client->lost = true;
  uv_timer_stop(&client->timer);
  if (client->events && client->events->on_lost) client->events->on_lost(client->owner, why);
}

static void finish_connect(mob_gcs_client_t *client, mob_status status, const char *why) {
  mob_gcs_done_fn done = client->done;
  client->done = NULL;
  uv_timer_stop(&client->timer);
  if (done) done(client->arg, status, why);
}

static void on_deadline(uv_timer_t *timer) {
  mob_gcs_client_t *client = timer->data;
  if (client->connected) {
    probe(client);
    return;
  }
  char *why = mob_sprintf("Timed out while waiting for GCS to become available at %s (%s)",
                          mob_rpc_client_address(client->rpc),
                          client->last_error ? client->last_error : "no answer");
  finish_connect(client, MOB_E_TIMEOUT, why);
  free(why);
}

static void resubscribe(mob_gcs_client_t *client);

static void on_cluster_id(void *arg, mob_status status, const char *why, const void *message) {
  mob_gcs_client_t *client = arg;
  const Ray__Rpc__GetClusterIdReply *reply = message;
  client->probing = false;
  if (client->closed || client->lost) return;
  if (status == MOB_OK && reply->cluster_id.len != MOB_CLUSTER_ID_LEN) {
    status = MOB_E_FORMAT;
    why = "its cluster id is not 28 bytes long";
  }
  if (!client->connected) {
    if (status != MOB_OK) {
      free(client->last_error);
      client->last_error = mob_strdup(why);
      if (!client->done) return;
      if (status == MOB_E_UNAVAILABLE || status == MOB_E_TIMEOUT) return; // the watch tries again
      finish_connect(client, status, why);
      return;
    }
    char hex[2 * MOB_CLUSTER_ID_LEN + 1];
    memcpy(client->cluster_id, reply->cluster_id.data, MOB_CLUSTER_ID_LEN);
    mob_rpc_client_set_metadata(client->rpc, "ray_cluster_id",
                                mob_hex(client->cluster_id, MOB_CLUSTER_ID_LEN, hex));
    client->connected = true;
    finish_connect(client, MOB_OK, NULL);
    return;
  }
  if (status == MOB_OK) {
    client->failures = 0;
    client->away_since = 0;
    if (memcmp(client->cluster_id, reply->cluster_id.data, MOB_CLUSTER_ID_LEN) != 0) {
      lose(client, "another GCS answers at its address");
      return;
    }
    if (client->events && client->events->on_restored) client->events->on_restored(client->owner);
    if (!client->closed && !client->lost) resubscribe(client);
    return;
  }
  uint64_t now = mob_now_ms();
  if (!client->away_since) client->away_since = now;
  if ((status == MOB_E_UNAVAILABLE || status == MOB_E_TIMEOUT) &&
      now - client->away_since < client->patience_ms) {
    uv_timer_start(&client->timer, on_deadline, PATIENT_PAUSE_MS, 0);
  } else if (status == MOB_E_TIMEOUT || ++client->failures >= LOST_TRIES) {
    lose(client, why);
  } else {
    uv_timer_start(&client->timer, on_deadline, LOST_PAUSE_MS, 0);
  }
}

static void probe(mob_gcs_client_t *client) {
  Ray__Rpc__GetClusterIdRequest request = RAY__RPC__GET_CLUSTER_ID_REQUEST__INIT;
  if (client->probing || client->closed || client->lost) return;
  client->probing = true;
  // The id that this client sends would be refused by another cluster's GCS, and that tells the
  // same.
  mob_gcs_call(client, "/ray.rpc.NodeInfoGcsService/GetClusterId", &request,
               &ray__rpc__get_cluster_id_reply__descriptor, 3000, on_cluster_id, client);
}

static void on_state(void *owner, mob_rpc_client_t *rpc, bool up, const char *why) {
  mob_gcs_client_t *client = owner;
  (void)rpc;
  if (client->closed || client->lost) return;
  if (!up) {
    free(client->last_error);
    client->last_error = mob_strdup(why ? why : "");
    if (client->connected) MOB_DEBUG("the connection to the GCS broke: %s", client->last_error);
  }
  if (up || client->connected) probe(client);
}

mob_status mob_gcs_client_new(mob_rpc_t *rpc, const char *address, uint64_t timeout_ms,
                              const mob_gcs_client_events_t *events, void *owner,
                              mob_gcs_done_fn done, void *arg, mob_gcs_client_t **out) {
  mob_rpc_client_options_t options = {KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS, 0};
  mob_gcs_client_t *client = MOB_NEW(mob_gcs_client_t);
  mob_status status = mob_rpc_client_new(rpc, address, &options, &client->rpc);
  if (status != MOB_OK) {
    free(client);
    return status;
  }
  client->events = events;
  client->owner = owner;
  client->done = done;
  client->arg = arg;
  client->users = 1;
  mob_random(client->subscriber_id, sizeof client->subscriber_id);
  uv_timer_init(mob_rpc_loop(rpc), &client->timer);
  client->timer.data = client;
  if (timeout_ms) uv_timer_start(&client->timer, on_deadline, timeout_ms, 0);
  mob_rpc_client_watch(client->rpc, on_state, client);
  *out = client;
  return MOB_OK;
}

void mob_gcs_client_close(mob_gcs_client_t *client) {
  client->closed = true;
  client->done = NULL;
  uv_timer_stop(&client->timer);
  mob_rpc_client_close(client->rpc);
  uv_close((uv_handle_t *)&client->timer, on_timer_closed);
}

void mob_gcs_client_set_patience(mob_gcs_client_t *client, uint64_t ms) {
  client->patience_ms = ms;
}

const char *mob_gcs_client_address(const mob_gcs_client_t *client) {
  return mob_rpc_client_address(client->rpc);
}

mob_rpc_client_t *mob_gcs_client_rpc(mob_gcs_client_t *client) {
  return client->rpc;
}

// ----------------------------------------------------------------------------------------------
// pubsub

static void on_poll(void *arg, mob_status status, const char *why, const void *message) {
  mob_gcs_client_t *client = arg;
  const Ray__Rpc__GcsSubscriberPollReply *reply = message;
  (void)why;
  client->polling = false;
  if (client->closed || client->lost) return;
  if (status != MOB_OK) return; // the state watch decides; on_restored polls again
  if (reply->publisher_id.len <= sizeof client->publisher_id) {
    bool same = client->publisher_len == reply->publisher_id.len &&
                memcmp(client->publisher_id, reply->publisher_id.data, client->publisher_len) == 0;
    if (!same) client->processed = 0;
    client->publisher_len = reply->publisher_id.len;
    if (client->publisher_len)
      memcpy(client->publisher_id, reply->publisher_id.data, client->publisher_len);
  }
  client->users++; // a message's handler may close the client
  for (size_t i = 0; i < reply->n_pub_messages && !client->closed; i++) {
    const Ray__Rpc__PubMessage *m = reply->pub_messages[i];
    if (m->sequence_id <= client->processed && m->sequence_id) continue;
    client->processed = m->sequence_id;
    if (client->events && client->events->on_message) client->events->on_message(client->owner, m);
  }
  if (!client->closed && !client->lost) poll(client);
  leave(client);
}

static void poll(mob_gcs_client_t *client) {
  Ray__Rpc__GcsSubscriberPollRequest request = RAY__RPC__GCS_SUBSCRIBER_POLL_REQUEST__INIT;
  if (client->polling || client->closed || client->lost) return;
  client->polling = true;
  request.subscriber_id = mob_pb_bytes(client->subscriber_id, sizeof client->subscriber_id);
  request.max_processed_sequence_id = client->processed;
  request.publisher_id = mob_pb_bytes(client->publisher_id, client->publisher_len);
  mob_gcs_call(client, "/ray.rpc.InternalPubSubGcsService/GcsSubscriberPoll", &request,
               &ray__rpc__gcs_subscriber_poll_reply__descriptor, 0, on_poll, client);
}

static void send_command(mob_gcs_client_t *client, const subscription_t *subscription,
                         bool subscribe, mob_gcs_reply_fn done, void *arg) {
  Ray__Rpc__GcsSubscriberCommandBatchRequest request =
      RAY__RPC__GCS_SUBSCRIBER_COMMAND_BATCH_REQUEST__INIT;
  Ray__Rpc__Command command = RAY__RPC__COMMAND__INIT, *commands[] = {&command};
  Ray__Rpc__SubMessage sub = RAY__RPC__SUB_MESSAGE__INIT;
  Ray__Rpc__UnsubscribeMessage unsub = RAY__RPC__UNSUBSCRIBE_MESSAGE__INIT;
  command.channel_type = subscription->channel;
  command.key_id = mob_pb_bytes(subscription->key, subscription->key_len);
  if (subscribe) {
    command.command_message_one_of_case =
        RAY__RPC__COMMAND__COMMAND_MESSAGE_ONE_OF_SUBSCRIBE_MESSAGE;
    command.subscribe_message = &sub;
  } else {
    command.command_message_one_of_case =
        RAY__RPC__COMMAND__COMMAND_MESSAGE_ONE_OF_UNSUBSCRIBE_MESSAGE;
    command.unsubscribe_message = &unsub;
  }
  request.subscriber_id = mob_pb_bytes(client->subscriber_id, sizeof client->subscriber_id);
  request.commands = commands;
  request.n_commands = 1;
  mob_gcs_call(client, "/ray.rpc.InternalPubSubGcsService/GcsSubscriberCommandBatch", &request,
               &ray__rpc__gcs_subscriber_command_batch_reply__descriptor, 10000, done, arg);
}

void mob_gcs_subscribe(mob_gcs_client_t *client, Ray__Rpc__ChannelType channel, const void *key,
                       size_t key_len, mob_gcs_reply_fn done, void *arg) {
  subscription_t *subscription = mob_vec_push(&client->subscriptions);
  MOB_ASSERT(key_len <= sizeof subscription->key);
  subscription->channel = channel;
  subscription->key_len = key_len;
  if (key_len) memcpy(subscription->key, key, key_len);
  send_command(client, subscription, true, done, arg);
  poll(client);
}

static bool same_subscription(const subscription_t *subscription, Ray__Rpc__ChannelType channel,
                              const void *key, size_t key_len) {
  return subscription->channel == channel && subscription->key_len == key_len &&
         (!key_len || memcmp(subscription->key, key, key_len) == 0);
}

static bool subscribed(const mob_gcs_client_t *client, const subscription_t *like) {
  for (size_t i = 0; i < client->subscriptions.len; i++) {
    if (same_subscription(&client->subscriptions.at[i], like->channel, like->key, like->key_len))
      return true;
  }
  return false;
}

void mob_gcs_unsubscribe(mob_gcs_client_t *client, Ray__Rpc__ChannelType channel, const void *key,
                         size_t key_len) {
  for (size_t i = 0; i < client->subscriptions.len; i++) {
    subscription_t subscription = client->subscriptions.at[i];
    if (!same_subscription(&subscription, channel, key, key_len)) continue;
    mob_vec_remove(&client->subscriptions, i);
    if (!subscribed(client, &subscription)) send_command(client, &subscription, false, NULL, NULL);
    return;
  }
}

// After a break: the GCS may have forgotten this subscriber.
static void resubscribe(mob_gcs_client_t *client) {
  for (size_t i = 0; i < client->subscriptions.len; i++) {
    send_command(client, &client->subscriptions.at[i], true, NULL, NULL);
  }
  if (client->subscriptions.len) poll(client);
}
