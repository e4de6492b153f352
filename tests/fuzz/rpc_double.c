#include "tests/fuzz/rpc_double.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"
#include "runtime/base/vec.h"
#include "runtime/rpc/message.h"

struct mob_rpc_call {
  mob_rpc_server_t *server;
  const mob_rpc_method_t *method;
  void *request;
  void (*on_cancel)(void *arg, mob_rpc_call_t *call);
  void *cancel_arg;
};

struct mob_rpc_stream {
  mob_rpc_t *rpc;
  rpc_double_metadata_t metadata[RPC_DOUBLE_METADATA];
  const mob_rpc_stream_events_t *events;
  void *owner;
  bool ended; // its on_close comes with the next turn
  grpc_status_code code;
};

typedef struct served {
  const mob_rpc_method_t *method;
  void *owner;
} served_t;

typedef struct opener {
  mob_rpc_open_fn open;
  void *owner;
} opener_t;

struct mob_rpc_server {
  mob_rpc_t *rpc;
  MOB_VEC(served_t) methods;
  MOB_VEC(opener_t) openers;
  MOB_VEC(mob_rpc_call_t *) calls; // not answered yet
  bool closing;
  void (*closed)(void *arg);
  void *closed_arg;
};

struct mob_rpc_client {
  mob_rpc_t *rpc;
  bool closing;
};

struct mob_rpc_pending {
  mob_rpc_client_t *client;
  const ProtobufCMessageDescriptor *reply;
  mob_rpc_done_fn done;
  void *arg;
};

struct mob_rpc {
  uv_loop_t *loop;
  mob_rpc_server_t *server;
  MOB_VEC(mob_rpc_stream_t *) streams;
  MOB_VEC(mob_rpc_client_t *) clients;
  MOB_VEC(mob_rpc_pending_t *) pending;
};

mob_rpc_t *rpc_double_new(uv_loop_t *loop) {
  mob_rpc_t *rpc = MOB_NEW(mob_rpc_t);
  rpc->loop = loop;
  return rpc;
}

void rpc_double_free(mob_rpc_t *rpc) {
  MOB_ASSERT(!rpc->server && !rpc->streams.len && !rpc->pending.len && !rpc->clients.len);
  mob_vec_free(&rpc->streams);
  mob_vec_free(&rpc->clients);
  mob_vec_free(&rpc->pending);
  free(rpc);
}

uv_loop_t *mob_rpc_loop(mob_rpc_t *rpc) {
  return rpc->loop;
}

// ----------------------------------------------------------------------------------------- server

mob_status mob_rpc_server_new(mob_rpc_t *rpc, mob_rpc_server_t **out) {
  rpc->server = *out = MOB_NEW(mob_rpc_server_t);
  rpc->server->rpc = rpc;
  return MOB_OK;
}

void mob_rpc_server_add(mob_rpc_server_t *server, const mob_rpc_method_t *methods, size_t count,
                        void *owner) {
  for (size_t i = 0; i < count; i++)
    *mob_vec_push(&server->methods) = (served_t){&methods[i], owner};
}

void mob_rpc_server_add_stream(mob_rpc_server_t *server, const char *path, mob_rpc_open_fn open,
                               void *owner) {
  (void)path;
  *mob_vec_push(&server->openers) = (opener_t){open, owner};
}

void mob_rpc_server_set_gate(mob_rpc_server_t *server, mob_rpc_gate_fn gate, void *owner) {
  (void)server, (void)gate, (void)owner;
}

void mob_rpc_server_add_health(mob_rpc_server_t *server, mob_rpc_serving_fn serving, void *owner) {
  (void)server, (void)serving, (void)owner;
}

mob_status mob_rpc_server_listen(mob_rpc_server_t *server, const char *ip, int port, int *bound) {
  (void)server, (void)ip;
  *bound = port ? port : 1;
  return MOB_OK;
}

void mob_rpc_server_close(mob_rpc_server_t *server, uint64_t grace_ms, void (*done)(void *arg),
                          void *arg) {
  (void)grace_ms;
  server->closing = true;
  server->closed = done;
  server->closed_arg = arg;
}

static void free_server(mob_rpc_server_t *server) {
  server->rpc->server = NULL;
  mob_vec_free(&server->methods);
  mob_vec_free(&server->openers);
  mob_vec_free(&server->calls);
  void (*closed)(void *) = server->closed;
  void *arg = server->closed_arg;
  free(server);
  if (closed) closed(arg);
}

size_t rpc_double_methods(const mob_rpc_t *rpc) {
  return rpc->server->methods.len;
}

const ProtobufCMessageDescriptor *rpc_double_request(const mob_rpc_t *rpc, size_t method) {
  return rpc->server->methods.at[method].method->request;
}

void rpc_double_call(mob_rpc_t *rpc, size_t method, void *request) {
  served_t served = rpc->server->methods.at[method];
  mob_rpc_call_t *call = MOB_NEW(mob_rpc_call_t);
  *call = (mob_rpc_call_t){rpc->server, served.method, request, NULL, NULL};
  *mob_vec_push(&rpc->server->calls) = call;
  served.method->handle(served.owner, call, request);
}

static void end_call(mob_rpc_call_t *call) {
  mob_rpc_server_t *server = call->server;
  size_t i = 0;
  while (i < server->calls.len && server->calls.at[i] != call) i++;
  MOB_ASSERT(i < server->calls.len);
  mob_vec_remove(&server->calls, i);
  mob_pb_free(call->request);
  free(call);
}

void mob_rpc_reply(mob_rpc_call_t *call, const void *message) {
  const ProtobufCMessage *reply = message;
  MOB_ASSERT(reply->descriptor == call->method->reply);
  size_t len;
  void *bytes = mob_pb_pack(reply, &len);
  MOB_ASSERT(mob_pb_check(reply->descriptor, bytes, len) ==
             MOB_OK); // what other languages' clients read
  free(bytes);
  end_call(call);
}

void mob_rpc_reply_status(mob_rpc_call_t *call, grpc_status_code code, const char *why) {
  (void)code;
  MOB_ASSERT(why != NULL);
  end_call(call);
}

void mob_rpc_call_on_cancel(mob_rpc_call_t *call, void (*fn)(void *arg, mob_rpc_call_t *call),
                            void *arg) {
  call->on_cancel = fn;
  call->cancel_arg = arg;
}

static void give_up(mob_rpc_call_t *call) {
  void (*fn)(void *, mob_rpc_call_t *) = call->on_cancel;
  call->on_cancel = NULL;
  if (fn) fn(call->cancel_arg, call);
}

void rpc_double_give_up(mob_rpc_t *rpc, size_t which) {
  size_t n = rpc->server->calls.len;
  if (n) give_up(rpc->server->calls.at[which % n]);
}

// ---------------------------------------------------------------------------------------- streams

void rpc_double_open(mob_rpc_t *rpc, size_t kind,
                     const rpc_double_metadata_t metadata[RPC_DOUBLE_METADATA]) {
  opener_t opener = rpc->server->openers.at[kind % rpc->server->openers.len];
  mob_rpc_stream_t *stream = MOB_NEW(mob_rpc_stream_t);
  stream->rpc = rpc;
  memcpy(stream->metadata, metadata, sizeof stream->metadata);
  *mob_vec_push(&rpc->streams) = stream;
  opener.open(opener.owner, stream);
  MOB_ASSERT(stream->events != NULL);
}

static mob_rpc_stream_t *stream_of(mob_rpc_t *rpc, size_t which) {
  mob_rpc_stream_t *stream = rpc->streams.len ? rpc->streams.at[which % rpc->streams.len] : NULL;
  return stream && !stream->ended ? stream : NULL;
}

void rpc_double_say(mob_rpc_t *rpc, size_t which, const void *message) {
  mob_rpc_stream_t *stream = stream_of(rpc, which);
  if (!stream) return;
  size_t len;
  uint8_t *data = mob_pb_pack(message, &len);
  stream->events->on_message(stream->owner, stream, data, len);
  free(data);
}

static void end_stream(mob_rpc_stream_t *stream, grpc_status_code code) {
  if (stream->ended) return;
  stream->ended = true;
  stream->code = code;
}

void rpc_double_end(mob_rpc_t *rpc, size_t which) {
  mob_rpc_stream_t *stream = stream_of(rpc, which);
  if (stream) end_stream(stream, GRPC_STATUS_UNAVAILABLE);
}

void mob_rpc_stream_listen(mob_rpc_stream_t *stream, const mob_rpc_stream_events_t *events,
                           void *owner) {
  stream->events = events;
  stream->owner = owner;
}

void mob_rpc_stream_send(mob_rpc_stream_t *stream, const void *data, size_t len) {
  (void)stream, (void)data, (void)len;
}

void mob_rpc_stream_send_message(mob_rpc_stream_t *stream, const ProtobufCMessage *message) {
  (void)stream;
  size_t len;
  void *bytes = mob_pb_pack(message, &len);
  MOB_ASSERT(mob_pb_check(message->descriptor, bytes, len) == MOB_OK);
  free(bytes);
}

size_t mob_rpc_stream_queued(const mob_rpc_stream_t *stream) {
  (void)stream;
  return 0;
}

void mob_rpc_stream_close(mob_rpc_stream_t *stream, grpc_status_code code, const char *why) {
  (void)why;
  end_stream(stream, code == GRPC_STATUS_OK ? GRPC_STATUS_OK : GRPC_STATUS_CANCELLED);
}

const char *mob_rpc_stream_metadata(mob_rpc_stream_t *stream, const char *key) {
  for (size_t i = 0; i < RPC_DOUBLE_METADATA; i++)
    if (strcmp(stream->metadata[i].key, key) == 0) return stream->metadata[i].value;
  return NULL;
}

void mob_rpc_stream_set_metadata(mob_rpc_stream_t *stream, const char *key, const char *value) {
  (void)stream, (void)key;
  MOB_ASSERT(value != NULL);
}

// ----------------------------------------------------------------------------------------- client

mob_status mob_rpc_client_new(mob_rpc_t *rpc, const char *address,
                              const mob_rpc_client_options_t *options, mob_rpc_client_t **out) {
  (void)options;
  const char *colon = strrchr(address, ':'); // as client.c
  if (!colon || colon == address || !colon[1] || strlen(colon + 1) > 5 ||
      strspn(colon + 1, "0123456789") != strlen(colon + 1))
    return mob_fail(MOB_E_INVALID, "'%s' is not of the form host:port", address);
  mob_rpc_client_t *client = *out = MOB_NEW(mob_rpc_client_t);
  client->rpc = rpc;
  *mob_vec_push(&rpc->clients) = client;
  return MOB_OK;
}

void mob_rpc_client_set_metadata(mob_rpc_client_t *client, const char *key, const char *value) {
  (void)client, (void)key, (void)value;
}

void mob_rpc_client_close(mob_rpc_client_t *client) {
  MOB_ASSERT(!client->closing);
  client->closing = true;
}

mob_rpc_pending_t *mob_rpc_call(mob_rpc_client_t *client, const char *path, const void *request,
                                const ProtobufCMessageDescriptor *reply, uint64_t timeout_ms,
                                mob_rpc_done_fn done, void *arg) {
  (void)path, (void)timeout_ms;
  size_t len;
  void *bytes = mob_pb_pack(request, &len);
  MOB_ASSERT(mob_pb_check(((const ProtobufCMessage *)request)->descriptor, bytes, len) == MOB_OK);
  free(bytes);
  mob_rpc_pending_t *pending = MOB_NEW(mob_rpc_pending_t);
  *pending = (mob_rpc_pending_t){client, reply, done, arg};
  *mob_vec_push(&client->rpc->pending) = pending;
  return pending;
}

const ProtobufCMessageDescriptor *rpc_double_wanted(const mob_rpc_t *rpc, size_t which) {
  return rpc->pending.len ? rpc->pending.at[which % rpc->pending.len]->reply : NULL;
}

void rpc_double_answer(mob_rpc_t *rpc, size_t which, grpc_status_code code, const void *reply) {
  if (rpc->pending.len == 0) return;
  which %= rpc->pending.len;
  mob_rpc_pending_t pending = *rpc->pending.at[which];
  free(rpc->pending.at[which]);
  mob_vec_remove(&rpc->pending, which);
  pending.done(pending.arg, code, code == GRPC_STATUS_OK ? "" : "it failed", reply);
}

// ------------------------------------------------------------------------------------- what
// follows

static bool end_one_stream(mob_rpc_t *rpc) {
  for (size_t i = 0; i < rpc->streams.len; i++) {
    mob_rpc_stream_t *stream = rpc->streams.at[i];
    if (!stream->ended) continue;
    mob_vec_remove(&rpc->streams, i);
    stream->events->on_close(stream->owner, stream, stream->code, "it ended");
    free(stream);
    return true;
  }
  return false;
}

static bool free_one_client(mob_rpc_t *rpc) {
  for (size_t i = 0; i < rpc->clients.len; i++) {
    mob_rpc_client_t *client = rpc->clients.at[i];
    if (!client->closing) continue;
    for (size_t j = 0; j < rpc->pending.len; j++) {
      if (rpc->pending.at[j]->client != client) continue;
      rpc_double_answer(rpc, j, GRPC_STATUS_CANCELLED, NULL);
      return true;
    }
    mob_vec_remove(&rpc->clients, i);
    free(client);
    return true;
  }
  return false;
}

static bool close_server(mob_rpc_t *rpc) {
  mob_rpc_server_t *server = rpc->server;
  if (!server || !server->closing) return false;
  for (size_t i = 0; i < rpc->streams.len; i++)
    end_stream(rpc->streams.at[i], GRPC_STATUS_UNAVAILABLE);
  if (rpc->streams.len) return true;
  for (size_t i = 0; i < server->calls.len; i++) {
    if (!server->calls.at[i]->on_cancel) continue;
    give_up(server->calls.at[i]);
    return true;
  }
  if (server->calls.len) return false;
  free_server(server);
  return true;
}

bool rpc_double_turn(mob_rpc_t *rpc) {
  bool any = false;
  while (end_one_stream(rpc) || free_one_client(rpc) || close_server(rpc)) any = true;
  return any;
}
