// gRPC on a libuv loop: servers, clients and streams whose callbacks all run on the loop's thread.
//
// One thread drains gRPC's completion queue and hands finished operations to the loop in batches;
// nothing else here is touched by it. Every function below is called on the loop's thread and
// returns at once; every callback runs on the loop's thread. Messages are protobuf-c's.
//
// What arrives is checked before a handler sees it: bytes that are no message of the method's type,
// strings that are not UTF-8 and strings with a NUL inside (protobuf-c would cut them) are refused
// with INVALID_ARGUMENT that names the field.
#ifndef MOB_RPC_RPC_H
#define MOB_RPC_RPC_H

#include <grpc/status.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/base/status.h"

// What one process uses of gRPC: a completion queue and its thread. One for each loop.
typedef struct mob_rpc mob_rpc_t;

mob_status mob_rpc_new(uv_loop_t *loop, mob_rpc_t **out);
uv_loop_t *mob_rpc_loop(mob_rpc_t *rpc);
// Closes what is still open (servers, clients, streams: their callbacks run with UNAVAILABLE or
// CANCELLED), joins the thread and frees all. `done` (may be NULL) runs last. The loop must run
// until then.
void mob_rpc_close(mob_rpc_t *rpc, void (*done)(void *arg), void *arg);

// The nearest mob_status of a gRPC status: UNAVAILABLE, TIMEOUT, ...
mob_status mob_rpc_to_status(grpc_status_code code);
grpc_status_code mob_rpc_from_status(mob_status status);

// ----------------------------------------------------------------------------------------- streams

// A bidirectional stream of messages, either end. Messages arrive whole and in order.
typedef struct mob_rpc_stream mob_rpc_stream_t;

typedef struct mob_rpc_stream_events {
  // The bytes live until it returns.
  void (*on_message)(void *owner, mob_rpc_stream_t *stream, const uint8_t *data, size_t len);
  // Exactly once, whatever ends the stream, also after mob_rpc_stream_close(). OK: orderly end (the
  // client closed, or the server answered OK). UNAVAILABLE: peer or link lost, and at the server
  // also a client that gave up. CANCELLED: closed by this side. The stream is freed after it
  // returns.
  void (*on_close)(void *owner, mob_rpc_stream_t *stream, grpc_status_code code, const char *why);
  // The send queue has become empty. May be NULL.
  void (*on_drained)(void *owner, mob_rpc_stream_t *stream);
} mob_rpc_stream_events_t;

// Sets who listens. A server's open handler calls it before it returns.
void mob_rpc_stream_listen(mob_rpc_stream_t *stream, const mob_rpc_stream_events_t *events,
                           void *owner);
// Queue a message; the bytes are copied. One write is under way at a time, the rest waits in order.
// Ignored once the stream is closing.
void mob_rpc_stream_send(mob_rpc_stream_t *stream, const void *data, size_t len);
void mob_rpc_stream_send_message(mob_rpc_stream_t *stream, const ProtobufCMessage *message);
size_t
mob_rpc_stream_queued(const mob_rpc_stream_t *stream); // bytes not yet handed to the transport
// Stops and restarts reading: while paused at most one message is held, and flow control slows the
// peer.
void mob_rpc_stream_pause(mob_rpc_stream_t *stream);
void mob_rpc_stream_resume(mob_rpc_stream_t *stream);
// Server: sends what is queued, then the status. Client with OK: sends what is queued, half-closes
// and waits for the server's status; with another code: cancels at once. on_close follows.
void mob_rpc_stream_close(mob_rpc_stream_t *stream, grpc_status_code code, const char *why);
// Metadata that the peer sent at the start (server: the request's; client: the initial reply
// metadata). NULL when absent; owned by the stream.
const char *mob_rpc_stream_metadata(mob_rpc_stream_t *stream, const char *key);

// ------------------------------------------------------------------------------------------ server

typedef struct mob_rpc_server mob_rpc_server_t;
typedef struct mob_rpc_call mob_rpc_call_t; // one unary call under way at the server

// `request` is of the method's type and lives until the call is answered. The handler answers
// exactly once, now or later, with mob_rpc_reply() or mob_rpc_reply_status(); a cancelled call too.
typedef void (*mob_rpc_handler_fn)(void *owner, mob_rpc_call_t *call, const void *request);

typedef struct mob_rpc_method {
  const char *path; // "/package.Service/Method"
  const ProtobufCMessageDescriptor *request, *reply;
  mob_rpc_handler_fn handle;
} mob_rpc_method_t;

// MOB_RPC_METHOD("/ray.rpc.NodeInfoGcsService/GetClusterId", ray__rpc__get_cluster_id,
// on_get_cluster_id)
#define MOB_RPC_METHOD(path, stem, handler)                                                        \
  { path, &stem##_request__descriptor, &stem##_reply__descriptor, handler }

// Opens a stream: listens, and may send. `metadata` of the reply is set with
// mob_rpc_stream_set_metadata() before it returns.
typedef void (*mob_rpc_open_fn)(void *owner, mob_rpc_stream_t *stream);

// Looks at every call and stream before its handler. Anything but OK is answered with that status;
// `*why` must outlive the call of this function only.
typedef struct mob_rpc_gate_info {
  const char *path;
  const char *(*metadata)(const struct mob_rpc_gate_info *info, const char *key, char *buf,
                          size_t cap);
  const void *impl;
} mob_rpc_gate_info_t;
typedef grpc_status_code (*mob_rpc_gate_fn)(void *owner, const mob_rpc_gate_info_t *info,
                                            const char **why);

mob_status mob_rpc_server_new(mob_rpc_t *rpc, mob_rpc_server_t **out);
// Before listen. The tables must outlive the server.
void mob_rpc_server_add(mob_rpc_server_t *server, const mob_rpc_method_t *methods, size_t count,
                        void *owner);
void mob_rpc_server_add_stream(mob_rpc_server_t *server, const char *path, mob_rpc_open_fn open,
                               void *owner);
void mob_rpc_server_set_gate(mob_rpc_server_t *server, mob_rpc_gate_fn gate, void *owner);
// Adds a grpc.health.v1.Health service. `serving` tells whether the named service ("" is the
// server) is up: 1 SERVING, 0 NOT_SERVING, -1 unknown (answered NOT_FOUND).
typedef int (*mob_rpc_serving_fn)(void *owner, const char *service);
void mob_rpc_server_add_health(mob_rpc_server_t *server, mob_rpc_serving_fn serving, void *owner);
// Binds and starts. `ip` "0.0.0.0", "::" or one address; port 0 picks a free one.
// MOB_E_NO_RESOURCES when the port is taken. May be called once.
mob_status mob_rpc_server_listen(mob_rpc_server_t *server, const char *ip, int port, int *bound);
// Refuses new calls, gives those under way `grace_ms`, then cancels them. `done` (may be NULL) runs
// when the last is gone and the server is freed. Calls a handler still holds must still be
// answered.
void mob_rpc_server_close(mob_rpc_server_t *server, uint64_t grace_ms, void (*done)(void *arg),
                          void *arg);

void mob_rpc_reply(mob_rpc_call_t *call,
                   const void *message); // of the method's reply type; frees the call
void mob_rpc_reply_status(mob_rpc_call_t *call, grpc_status_code code,
                          const char *why); // frees it too
// Runs once if the client gives up or its connection dies before the answer. The call must still be
// answered (the answer is dropped). NULL takes the notice back.
void mob_rpc_call_on_cancel(mob_rpc_call_t *call, void (*fn)(void *arg, mob_rpc_call_t *call),
                            void *arg);
const char *mob_rpc_call_metadata(mob_rpc_call_t *call, const char *key); // NULL when absent
const char *mob_rpc_call_peer(mob_rpc_call_t *call);                      // "ipv4:10.0.0.1:4711"

// Sets one entry of a server stream's initial reply metadata. Only inside the open handler.
void mob_rpc_stream_set_metadata(mob_rpc_stream_t *stream, const char *key, const char *value);

// ------------------------------------------------------------------------------------------ client

// A connection to one "host:port" that is set up when first needed and again after it broke. The
// name is resolved with uv_getaddrinfo on every try. Calls made while it is not up wait in order
// for the try under way; when that try fails they fail with UNAVAILABLE and its cause. Calls of one
// client are started in the order in which they were made; gRPC does not promise that a server's
// handlers see calls under way at the same time in that order.
typedef struct mob_rpc_client mob_rpc_client_t;

typedef struct mob_rpc_client_options {
  // Ping the peer when nothing was heard for this long, and give the connection up when no answer
  // comes within keepalive_timeout_ms. 0: off.
  uint32_t keepalive_ms, keepalive_timeout_ms;
  uint32_t connect_timeout_ms; // of one try; 0: 3000
} mob_rpc_client_options_t;

mob_status mob_rpc_client_new(mob_rpc_t *rpc, const char *address,
                              const mob_rpc_client_options_t *options, mob_rpc_client_t **out);
const char *mob_rpc_client_address(const mob_rpc_client_t *client);
// Sent with every later call and stream, e.g. "ray_cluster_id". NULL value removes it.
void mob_rpc_client_set_metadata(mob_rpc_client_t *client, const char *key, const char *value);

// Keeps the connection up, trying again after 20-500 ms when it breaks, and tells of every change:
// `up` true when connected, false when a standing connection broke (a peer process that died is
// known within milliseconds; `why` says so) and, with `first` true, for every try that failed
// before it ever stood.
typedef void (*mob_rpc_state_fn)(void *owner, mob_rpc_client_t *client, bool up, const char *why);
void mob_rpc_client_watch(mob_rpc_client_t *client, mob_rpc_state_fn fn, void *owner);
bool mob_rpc_client_up(const mob_rpc_client_t *client);

// One unary call. `reply` is NULL unless code is OK, and lives until `done` returns. `why` is ""
// for OK.
typedef void (*mob_rpc_done_fn)(void *arg, grpc_status_code code, const char *why,
                                const void *reply);
typedef struct mob_rpc_pending mob_rpc_pending_t;

// timeout_ms 0: none. `done` always runs once, never before this returns. The result may be used
// for mob_rpc_cancel() until `done` has run.
mob_rpc_pending_t *mob_rpc_call(mob_rpc_client_t *client, const char *path, const void *request,
                                const ProtobufCMessageDescriptor *reply, uint64_t timeout_ms,
                                mob_rpc_done_fn done, void *arg);
void mob_rpc_cancel(mob_rpc_pending_t *pending); // `done` follows with CANCELLED

// Opens a stream; what is sent before the connection stands is queued. Streams have no deadline.
mob_rpc_stream_t *mob_rpc_stream_open(mob_rpc_client_t *client, const char *path,
                                      const mob_rpc_stream_events_t *events, void *owner);

// Cancels what is under way (callbacks run with CANCELLED) and frees the client afterwards; no
// callback of its own comes later than those. mob_rpc_client_watch's fn is not called any more.
void mob_rpc_client_close(mob_rpc_client_t *client);

#endif
