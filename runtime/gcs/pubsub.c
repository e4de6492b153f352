// InternalPubSubGcsService: subscribers poll for what is published on the channels they asked for.
// A poll without news waits; messages carry rising numbers and are kept until the subscriber has
// confirmed them.
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/gcs/internal.h"

enum { BATCH = 5000, SUBSCRIBER_TIMEOUT_MS = 300000, CHANNELS = 11 };

// Shared by the mailboxes of all who get it.
typedef struct shared {
  Ray__Rpc__PubMessage *message;
  size_t refs;
} shared_t;

typedef struct subscriber {
  mob__pubsub_t *pubsub;
  ProtobufCBinaryData id;
  struct {
    bool all;
    mob_map_t keys; // key -> this subscriber
  } channels[CHANNELS];
  MOB_VEC(shared_t *) mailbox;
  size_t head;          // of the mailbox: before it, confirmed
  mob_rpc_call_t *poll; // waiting
  uint64_t poll_at, seen_at;
} subscriber_t;

struct mob__pubsub {
  mob_gcs_t *gcs;
  uint8_t publisher_id[MOB_NODE_ID_SIZE]; // random: a restart of the GCS is seen by it
  int64_t sequence;
  mob_map_t subscribers;
};

static void drop_shared(shared_t *shared) {
  if (--shared->refs > 0) return;
  mob_pb_free(shared->message);
  free(shared);
}

static void free_subscriber(subscriber_t *s) {
  for (size_t i = s->head; i < s->mailbox.len; i++) drop_shared(s->mailbox.at[i]);
  mob_vec_free(&s->mailbox);
  for (int i = 0; i < CHANNELS; i++) mob_map_free(&s->channels[i].keys);
  free(s->id.data);
  free(s);
}

static subscriber_t *subscriber_of(mob__pubsub_t *pubsub, ProtobufCBinaryData id) {
  subscriber_t *s = mob_map_get(&pubsub->subscribers, id.data, id.len);
  if (!s) {
    s = MOB_NEW(subscriber_t);
    s->pubsub = pubsub;
    s->id = mob_pb_bytes_dup(id.data, id.len);
    mob_map_put(&pubsub->subscribers, id.data, id.len, s);
  }
  s->seen_at = mob_now_ms();
  return s;
}

// Answers the waiting poll with what there is, or with nothing when `force`.
static void answer(subscriber_t *s, bool force) {
  size_t n = s->mailbox.len - s->head;
  if (!s->poll || (n == 0 && !force)) return;
  if (n > BATCH) n = BATCH;
  Ray__Rpc__GcsSubscriberPollReply reply = RAY__RPC__GCS_SUBSCRIBER_POLL_REPLY__INIT;
  Ray__Rpc__PubMessage **messages = MOB_NEW_ARRAY(Ray__Rpc__PubMessage *, n + 1);
  for (size_t i = 0; i < n; i++) messages[i] = s->mailbox.at[s->head + i]->message;
  reply.pub_messages = messages;
  reply.n_pub_messages = n;
  reply.publisher_id = mob_pb_bytes(s->pubsub->publisher_id, sizeof s->pubsub->publisher_id);
  mob_rpc_call_t *poll = s->poll;
  s->poll = NULL;
  mob_rpc_reply(poll, &reply);
  free(messages);
}

// The subscriber's connection is gone, or it gave the poll up. What it asked for stays until it
// times out.
static void on_poll_cancelled(void *arg, mob_rpc_call_t *call) {
  subscriber_t *s = arg;
  if (s->poll == call) s->poll = NULL;
  mob_rpc_reply_status(call, GRPC_STATUS_CANCELLED, "");
}

static void confirm(subscriber_t *s, int64_t upto) {
  while (s->head < s->mailbox.len && s->mailbox.at[s->head]->message->sequence_id <= upto) {
    drop_shared(s->mailbox.at[s->head++]);
  }
  if (s->head * 2 > s->mailbox.len) {
    memmove(s->mailbox.at, s->mailbox.at + s->head,
            (s->mailbox.len - s->head) * sizeof *s->mailbox.at);
    s->mailbox.len -= s->head;
    s->head = 0;
  }
}

static void on_poll(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__pubsub_t *pubsub = owner;
  const Ray__Rpc__GcsSubscriberPollRequest *req = request;
  subscriber_t *s = subscriber_of(pubsub, req->subscriber_id);
  // Numbers of another publisher, a former GCS, say nothing here.
  if (mob_pb_bytes_equal(req->publisher_id, pubsub->publisher_id, sizeof pubsub->publisher_id)) {
    confirm(s, req->max_processed_sequence_id);
  }
  answer(s, true); // a former poll of the same subscriber ends empty-handed, or delivers
  s->poll = call;
  s->poll_at = mob_now_ms();
  answer(s, false);
  if (s->poll == call) mob_rpc_call_on_cancel(call, on_poll_cancelled, s);
}

static void run_command(subscriber_t *s, const Ray__Rpc__Command *command) {
  int channel = (int)command->channel_type;
  if (channel < 0 || channel >= CHANNELS) return;
  bool subscribe = command->command_message_one_of_case ==
                   RAY__RPC__COMMAND__COMMAND_MESSAGE_ONE_OF_SUBSCRIBE_MESSAGE;
  if (command->key_id.len == 0) {
    s->channels[channel].all = subscribe;
  } else if (subscribe) {
    mob_map_put(&s->channels[channel].keys, command->key_id.data, command->key_id.len, s);
  } else {
    mob_map_remove(&s->channels[channel].keys, command->key_id.data, command->key_id.len);
  }
}

static void on_commands(void *owner, mob_rpc_call_t *call, const void *request) {
  const Ray__Rpc__GcsSubscriberCommandBatchRequest *req = request;
  subscriber_t *s = subscriber_of(owner, req->subscriber_id);
  for (size_t i = 0; i < req->n_commands; i++) run_command(s, req->commands[i]);
  Ray__Rpc__GcsSubscriberCommandBatchReply reply =
      RAY__RPC__GCS_SUBSCRIBER_COMMAND_BATCH_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

static void deliver(mob__pubsub_t *pubsub, Ray__Rpc__PubMessage *message) {
  int channel = (int)message->channel_type;
  if (channel < 0 || channel >= CHANNELS) return;
  message->sequence_id = ++pubsub->sequence;
  shared_t *shared = NULL;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&pubsub->subscribers, e));) {
    subscriber_t *s = e->value;
    if (!s->channels[channel].all &&
        !mob_map_get(&s->channels[channel].keys, message->key_id.data, message->key_id.len)) {
      continue;
    }
    if (!shared) {
      shared = MOB_NEW(shared_t);
      shared->message = mob_pb_clone(message);
    }
    shared->refs++;
    *mob_vec_push(&s->mailbox) = shared;
    answer(s, false);
  }
}

static void on_publish(void *owner, mob_rpc_call_t *call, const void *request) {
  const Ray__Rpc__GcsPublishRequest *req = request;
  for (size_t i = 0; i < req->n_pub_messages; i++) {
    deliver(owner, req->pub_messages[i]); // numbered anew
  }
  Ray__Rpc__GcsPublishReply reply = RAY__RPC__GCS_PUBLISH_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

void mob__publish(mob_gcs_t *gcs, Ray__Rpc__ChannelType channel, const void *key, size_t key_len,
                  Ray__Rpc__PubMessage *message) {
  if (gcs->closing) return;
  message->channel_type = channel;
  message->key_id = mob_pb_bytes(key, key_len);
  deliver(gcs->pubsub, message);
}

void mob__publish_error(mob_gcs_t *gcs, const uint8_t *job_id, const char *type, const char *text) {
  static const uint8_t nil[MOB_JOB_ID_SIZE] = {0xff, 0xff, 0xff, 0xff};
  Ray__Rpc__ErrorTableData error = RAY__RPC__ERROR_TABLE_DATA__INIT;
  error.job_id = mob_pb_bytes(job_id ? job_id : nil, MOB_JOB_ID_SIZE);
  error.type = (char *)type;
  error.error_message = (char *)text;
  error.timestamp = mob_wall_seconds();
  Ray__Rpc__PubMessage message = RAY__RPC__PUB_MESSAGE__INIT;
  message.inner_message_case = RAY__RPC__PUB_MESSAGE__INNER_MESSAGE_ERROR_INFO_MESSAGE;
  message.error_info_message = &error;
  mob__publish(gcs, RAY__RPC__CHANNEL_TYPE__RAY_ERROR_INFO_CHANNEL, error.job_id.data,
               error.job_id.len, &message);
}

void mob__pubsub_tick(mob_gcs_t *gcs) {
  mob__pubsub_t *pubsub = gcs->pubsub;
  uint64_t now = mob_now_ms();
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&pubsub->subscribers, e));) {
    subscriber_t *s = e->value;
    if (s->poll) {
      s->seen_at = now;
      if (now - s->poll_at > SUBSCRIBER_TIMEOUT_MS) answer(s, true);
    } else if (now - s->seen_at > SUBSCRIBER_TIMEOUT_MS) {
      mob_map_remove(&pubsub->subscribers, s->id.data, s->id.len);
      free_subscriber(s);
    }
  }
}

#define PUBSUB "/ray.rpc.InternalPubSubGcsService/"
static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(PUBSUB "GcsPublish", ray__rpc__gcs_publish, on_publish),
    MOB_RPC_METHOD(PUBSUB "GcsSubscriberPoll", ray__rpc__gcs_subscriber_poll, on_poll),
    MOB_RPC_METHOD(PUBSUB "GcsSubscriberCommandBatch", ray__rpc__gcs_subscriber_command_batch,
                   on_commands),
};

mob__pubsub_t *mob__pubsub_new(mob_gcs_t *gcs) {
  mob__pubsub_t *pubsub = MOB_NEW(mob__pubsub_t);
  pubsub->gcs = gcs;
  mob_random(pubsub->publisher_id, sizeof pubsub->publisher_id);
  mob_rpc_server_add(gcs->server, methods, MOB_LEN(methods), pubsub);
  return pubsub;
}

void mob__pubsub_close(mob__pubsub_t *pubsub) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&pubsub->subscribers, e));) {
    subscriber_t *s = e->value;
    if (!s->poll) continue;
    mob_rpc_call_t *poll = s->poll;
    s->poll = NULL;
    mob_rpc_call_on_cancel(poll, NULL, NULL);
    mob_rpc_reply_status(poll, GRPC_STATUS_UNAVAILABLE, "the GCS is shutting down");
  }
}

void mob__pubsub_free(mob__pubsub_t *pubsub) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&pubsub->subscribers, e));)
    free_subscriber(e->value);
  mob_map_free(&pubsub->subscribers);
  free(pubsub);
}
