// Answers that wait for the store.
#define MOB_LOG_COMPONENT "gcs"
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "runtime/base/log.h"
#include "runtime/base/utf8.h"
#include "runtime/gcs/acknowledge.h"

Ray__Rpc__GcsStatus *mob__gcs_status(mob_gcs_t *gcs, int code, const char *fmt, ...) {
  ray__rpc__gcs_status__init(&gcs->status);
  gcs->status.code = code;
  va_list args;
  va_start(args, fmt);
  mob_utf8_vformat(gcs->status_text, sizeof gcs->status_text, fmt, args);
  va_end(args);
  if (gcs->status_text[0]) gcs->status.message = gcs->status_text;
  return &gcs->status;
}

typedef struct ack {
  mob_rpc_call_t *call;
  ProtobufCMessage *reply; // a copy, when the store did not answer at once
  mob_status status;
  char *why; // of a failure
  bool done;
} ack_t;

static void answer(ack_t *ack, const void *reply) {
  if (ack->status == MOB_OK) {
    mob_rpc_reply(ack->call, reply);
  } else {
    // UNAVAILABLE: clients try again. Whether the change will hold is not known.
    char *text = mob_sprintf("the GCS could not store the change: %s", ack->why);
    mob_rpc_reply_status(ack->call, GRPC_STATUS_UNAVAILABLE, text);
    free(text);
  }
  free(ack->why);
  mob_pb_free(ack->reply);
  free(ack);
}

static void on_stored(void *arg, mob_status status) {
  ack_t *ack = arg;
  ack->status = status;
  if (status != MOB_OK) ack->why = mob_strdup(mob_errmsg());
  ack->done = true;
  if (ack->reply) answer(ack, ack->reply);
}

static void finish(ack_t *ack, const void *reply) {
  if (ack->done) {
    answer(ack, reply);
  } else {
    ack->reply = mob_pb_clone(reply);
  }
}

static ack_t *new_ack(mob_rpc_call_t *call) {
  ack_t *ack = MOB_NEW(ack_t);
  ack->call = call;
  return ack;
}

void mob__gcs_put_bytes_reply(mob_gcs_t *gcs, mob_table_t table, const void *key, size_t key_len,
                              const void *value, size_t value_len, mob_rpc_call_t *call,
                              const void *reply) {
  ack_t *ack = new_ack(call);
  gcs->store->put(gcs->store, table, key, key_len, value, value_len, on_stored, ack);
  finish(ack, reply);
}

void mob__gcs_put_reply(mob_gcs_t *gcs, mob_table_t table, const void *key, size_t key_len,
                        const void *message, mob_rpc_call_t *call, const void *reply) {
  size_t len;
  void *value = mob_pb_pack(message, &len);
  mob__gcs_put_bytes_reply(gcs, table, key, key_len, value, len, call, reply);
  free(value);
}

void mob__gcs_del_reply(mob_gcs_t *gcs, mob_table_t table, const void *key, size_t key_len,
                        mob_rpc_call_t *call, const void *reply) {
  ack_t *ack = new_ack(call);
  gcs->store->del(gcs->store, table, key, key_len, on_stored, ack);
  finish(ack, reply);
}

void mob__gcs_reply_stored(mob_gcs_t *gcs, mob_rpc_call_t *call, const void *reply) {
  ack_t *ack = new_ack(call);
  gcs->store->sync(gcs->store, on_stored, ack);
  finish(ack, reply);
}

static void on_background(void *arg, mob_status status) {
  (void)arg;
  if (status != MOB_OK) MOB_WARN("a change is not stored yet: %s", mob_errmsg());
}

void mob__gcs_store_put(mob_gcs_t *gcs, mob_table_t table, const void *key, size_t key_len,
                        const void *message) {
  size_t len;
  void *value = mob_pb_pack(message, &len);
  gcs->store->put(gcs->store, table, key, key_len, value, len, on_background, NULL);
  free(value);
}

void mob__gcs_store_del(mob_gcs_t *gcs, mob_table_t table, const void *key, size_t key_len) {
  gcs->store->del(gcs->store, table, key, key_len, on_background, NULL);
}
