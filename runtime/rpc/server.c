// The server: method tables, arrival of calls, answers.
//
// Every method is registered with gRPC, so a unary call arrives together with its message: one
// operation for the arrival, one for the answer. A slot waits at gRPC for the next call of each
// method; the queue's thread replaces it the moment it is used, so that calls never wait for the
// loop to ask for more.
#include <arpa/inet.h>
#include <errno.h>
#include <grpc/grpc_security.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/log.h"
#include "runtime/rpc/internal.h"
#include "runtime/rpc/message.h"

typedef struct entry {
  mob_rpc_server_t *server;
  const mob_rpc_method_t *method; // NULL for a stream and for the catch-all
  const char *path;
  mob_rpc_open_fn open;
  void *owner;
  void *registered; // gRPC's handle; NULL for the catch-all
} entry_t;

struct mob_rpc_server {
  mob_rpc_t *rpc;
  mob__link_t link;
  grpc_server *impl;
  MOB_VEC(entry_t *) entries;
  MOB_VEC(void *) owned;
  mob_rpc_gate_fn gate;
  void *gate_owner;
  atomic_size_t slots; // waiting at gRPC, calls and streams under way
  atomic_bool stopping;
  bool started, stopped;
  mob__op_t stop_op;
  uv_timer_t *grace;
  void (*closed)(void *arg);
  void *closed_arg;
};

enum { INLINE_ARENA = 768 };

struct mob_rpc_call {
  mob__op_t op;       // arrival, then the answer
  mob__op_t close_op; // the notice of cancelling, when one was asked for
  entry_t *entry;
  grpc_call *impl;
  grpc_byte_buffer *payload;
  grpc_call_details details; // of the catch-all only
  grpc_metadata_array metadata;
  gpr_timespec deadline;
  void *request;
  int cancelled;
  bool watching, close_done, answered;
  uint8_t under_way; // batches at gRPC
  void (*on_cancel)(void *arg, mob_rpc_call_t *call);
  void *cancel_arg;
  MOB_VEC(char *) strings; // what metadata and peer were asked for
  mob__arena_t arena;
  _Alignas(16) uint8_t inline_arena[INLINE_ARENA];
};

// ----------------------------------------------------------------------------------------- arrival

static void on_arrived(mob__op_t *op, bool ok);
static void arrived_early(mob__op_t *op, bool ok);

static void ask_next(entry_t *entry) {
  mob_rpc_server_t *server = entry->server;
  mob_rpc_call_t *call = mob_malloc(sizeof *call);
  memset(call, 0, offsetof(mob_rpc_call_t, inline_arena));
  call->entry = entry;
  call->op.fn = on_arrived;
  call->op.early = arrived_early;
  grpc_metadata_array_init(&call->metadata);
  atomic_fetch_add(&server->slots, 1);
  grpc_completion_queue *cq = server->rpc->cq;
  grpc_call_error error;
  if (entry->registered) {
    error = grpc_server_request_registered_call(
        server->impl, entry->registered, &call->impl, &call->deadline, &call->metadata,
        entry->method ? &call->payload : NULL, cq, cq, &call->op);
  } else {
    grpc_call_details_init(&call->details);
    error = grpc_server_request_call(server->impl, &call->impl, &call->details, &call->metadata, cq,
                                     cq, &call->op);
  }
  MOB_ASSERT(error == GRPC_CALL_OK);
}

// On the queue's thread.
static void arrived_early(mob__op_t *op, bool ok) {
  mob_rpc_call_t *call = MOB__FROM(mob_rpc_call_t, op, op);
  op->early = NULL;
  if (ok && !atomic_load(&call->entry->server->stopping)) ask_next(call->entry);
}

static void try_free_server(mob_rpc_server_t *server);

static void slot_done(mob_rpc_server_t *server) {
  atomic_fetch_sub(&server->slots, 1);
  try_free_server(server);
}

static void free_call(mob_rpc_call_t *call) {
  mob_rpc_server_t *server = call->entry->server;
  if (call->payload) grpc_byte_buffer_destroy(call->payload);
  if (!call->entry->registered) grpc_call_details_destroy(&call->details);
  grpc_metadata_array_destroy(&call->metadata);
  if (call->impl) grpc_call_unref(call->impl);
  if (call->arena.allocator.alloc) mob__arena_free(&call->arena);
  for (size_t i = 0; i < call->strings.len; i++) free(call->strings.at[i]);
  mob_vec_free(&call->strings);
  free(call);
  slot_done(server);
}

static void on_stream_freed(void *arg) {
  slot_done(arg);
}

static bool gate_allows(mob_rpc_server_t *server, mob_rpc_call_t *call, grpc_status_code *code,
                        const char **why) {
  if (!server->gate) return true;
  mob_rpc_gate_info_t info = {call->entry->path, mob__metadata_peek, &call->metadata};
  *why = "";
  *code = server->gate(server->gate_owner, &info, why);
  return *code == GRPC_STATUS_OK;
}

static void start_stream(mob_rpc_call_t *call) {
  entry_t *entry = call->entry;
  grpc_status_code code;
  const char *why;
  bool allowed = gate_allows(entry->server, call, &code, &why);
  mob_rpc_stream_t *stream = mob__stream_accept(entry->server->rpc, call->impl, &call->metadata);
  mob__stream_on_free(stream, on_stream_freed, entry->server);
  if (allowed) {
    entry->open(entry->owner, stream);
    mob__stream_accepted(stream);
  } else {
    mob__stream_accepted(stream);
    mob_rpc_stream_close(stream, code, why);
  }
  free(call); // its slot lives on as the stream's
}

static void on_arrived(mob__op_t *op, bool ok) {
  mob_rpc_call_t *call = MOB__FROM(mob_rpc_call_t, op, op);
  entry_t *entry = call->entry;
  if (!ok) { // the server shuts down
    free_call(call);
    return;
  }
  if (!entry->registered) {
    mob_rpc_reply_status(call, GRPC_STATUS_UNIMPLEMENTED, "Method not found!");
    return;
  }
  if (!entry->method) {
    start_stream(call);
    return;
  }
  grpc_status_code code;
  const char *why;
  if (!gate_allows(entry->server, call, &code, &why)) {
    mob_rpc_reply_status(call, code, why);
    return;
  }
  grpc_slice bytes;
  if (!call->payload || !mob__buffer_view(call->payload, &bytes)) {
    mob_rpc_reply_status(call, GRPC_STATUS_INVALID_ARGUMENT, "the call carries no message");
    return;
  }
  const ProtobufCMessageDescriptor *desc = entry->method->request;
  const uint8_t *data = GRPC_SLICE_START_PTR(bytes);
  size_t len = GRPC_SLICE_LENGTH(bytes);
  mob__arena_init(&call->arena, call->inline_arena, sizeof call->inline_arena);
  mob_status status = mob_pb_check(desc, data, len);
  if (status == MOB_OK) {
    call->request = protobuf_c_message_unpack(desc, &call->arena.allocator, len, data);
    if (!call->request) {
      status = mob_fail(MOB_E_FORMAT, "%zu bytes are no message %s", len, desc->name);
    }
  }
  grpc_slice_unref(bytes);
  grpc_byte_buffer_destroy(call->payload);
  call->payload = NULL;
  if (status != MOB_OK) {
    mob_rpc_reply_status(call, GRPC_STATUS_INVALID_ARGUMENT, mob_errmsg());
    return;
  }
  entry->method->handle(entry->owner, call, call->request);
}

// ------------------------------------------------------------------------------------------ answer

static void batch_done(mob_rpc_call_t *call) {
  if (--call->under_way == 0 && call->answered) free_call(call);
}

static void on_answered(mob__op_t *op, bool ok) {
  (void)ok; // false: the client was gone
  batch_done(MOB__FROM(mob_rpc_call_t, op, op));
}

static void on_call_closed(mob__op_t *op, bool ok) {
  (void)ok;
  mob_rpc_call_t *call = MOB__FROM(mob_rpc_call_t, close_op, op);
  call->close_done = true;
  if (call->cancelled && !call->answered && call->on_cancel) {
    void (*fn)(void *, mob_rpc_call_t *) = call->on_cancel;
    call->on_cancel = NULL;
    fn(call->cancel_arg, call);
  }
  batch_done(call);
}

static void answer(mob_rpc_call_t *call, grpc_byte_buffer *message, grpc_status_code code,
                   const char *why) {
  MOB_ASSERT(!call->answered);
  call->answered = true;
  grpc_op ops[4] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}};
  size_t n = 1;
  if (message) {
    ops[n].op = GRPC_OP_SEND_MESSAGE;
    ops[n++].data.send_message.send_message = message;
  }
  grpc_slice details = grpc_empty_slice();
  if (why && *why) details = grpc_slice_from_copied_string(why);
  ops[n].op = GRPC_OP_SEND_STATUS_FROM_SERVER;
  ops[n].data.send_status_from_server.status = code;
  ops[n++].data.send_status_from_server.status_details = why && *why ? &details : NULL;
  if (!call->watching) {
    ops[n].op = GRPC_OP_RECV_CLOSE_ON_SERVER;
    ops[n++].data.recv_close_on_server.cancelled = &call->cancelled;
  }
  call->op.fn = on_answered;
  call->under_way++;
  grpc_call_error error = grpc_call_start_batch(call->impl, ops, n, &call->op, NULL);
  MOB_ASSERT(error == GRPC_CALL_OK);
  grpc_slice_unref(details);
  if (message) grpc_byte_buffer_destroy(message);
}

void mob_rpc_reply(mob_rpc_call_t *call, const void *message) {
  const ProtobufCMessage *reply = message;
  MOB_ASSERT(reply->descriptor == call->entry->method->reply);
  answer(call, mob__buffer_of_message(reply, NULL), GRPC_STATUS_OK, NULL);
}

void mob_rpc_reply_status(mob_rpc_call_t *call, grpc_status_code code, const char *why) {
  answer(call, NULL, code, why);
}

void mob_rpc_call_on_cancel(mob_rpc_call_t *call, void (*fn)(void *arg, mob_rpc_call_t *call),
                            void *arg) {
  call->on_cancel = fn;
  call->cancel_arg = arg;
  if (!fn || call->watching) return;
  call->watching = true;
  call->close_op.fn = on_call_closed;
  call->under_way++;
  grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
  close.data.recv_close_on_server.cancelled = &call->cancelled;
  grpc_call_error error = grpc_call_start_batch(call->impl, &close, 1, &call->close_op, NULL);
  MOB_ASSERT(error == GRPC_CALL_OK);
}

const char *mob_rpc_call_metadata(mob_rpc_call_t *call, const char *key) {
  char *value = mob__metadata_get(&call->metadata, key);
  if (value) *mob_vec_push(&call->strings) = value;
  return value;
}

const char *mob_rpc_call_peer(mob_rpc_call_t *call) {
  char *peer = grpc_call_get_peer(call->impl);
  char *copy = mob_strdup(peer ? peer : "");
  gpr_free(peer);
  *mob_vec_push(&call->strings) = copy;
  return copy;
}

// ------------------------------------------------------------------------------------------ server

mob_status mob_rpc_server_new(mob_rpc_t *rpc, mob_rpc_server_t **out) {
  MOB_ASSERT(!rpc->closing);
  grpc_arg list[] = {
      MOB__INT_ARG(GRPC_ARG_ALLOW_REUSEPORT, 0),
      MOB__INT_ARG(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, MOB__MAX_MESSAGE),
      MOB__INT_ARG(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, MOB__MAX_MESSAGE),
      // Clients may ping as often as they need to notice a silent server.
      MOB__INT_ARG(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0),
      MOB__INT_ARG(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 100),
      MOB__INT_ARG(GRPC_ARG_KEEPALIVE_TIME_MS, 10000),
      MOB__INT_ARG(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20000),
      MOB__INT_ARG(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
      MOB__INT_ARG(GRPC_ARG_MAX_CHANNEL_TRACE_EVENT_MEMORY_PER_NODE, 0),
      MOB__INT_ARG(GRPC_ARG_ENABLE_CHANNELZ, 0),
  };
  grpc_channel_args args = {MOB_LEN(list), list};
  mob_rpc_server_t *server = MOB_NEW(mob_rpc_server_t);
  server->rpc = rpc;
  server->impl = grpc_server_create(&args, NULL);
  grpc_server_register_completion_queue(server->impl, rpc->cq, NULL);
  mob__link_push(&rpc->servers, &server->link);
  mob__rpc_hold(rpc);
  *out = server;
  return MOB_OK;
}

static void add_entry(mob_rpc_server_t *server, const mob_rpc_method_t *method, const char *path,
                      mob_rpc_open_fn open, void *owner) {
  MOB_ASSERT(!server->started);
  entry_t *entry = MOB_NEW(entry_t);
  *entry = (entry_t){server, method, path, open, owner, NULL};
  entry->registered = grpc_server_register_method(
      server->impl, path, NULL,
      method ? GRPC_SRM_PAYLOAD_READ_INITIAL_BYTE_BUFFER : GRPC_SRM_PAYLOAD_NONE, 0);
  MOB_ASSERT(entry->registered != NULL); // NULL when the path was added before
  *mob_vec_push(&server->entries) = entry;
}

void mob_rpc_server_add(mob_rpc_server_t *server, const mob_rpc_method_t *methods, size_t count,
                        void *owner) {
  for (size_t i = 0; i < count; i++) add_entry(server, &methods[i], methods[i].path, NULL, owner);
}

void mob_rpc_server_add_stream(mob_rpc_server_t *server, const char *path, mob_rpc_open_fn open,
                               void *owner) {
  add_entry(server, NULL, path, open, owner);
}

void mob_rpc_server_set_gate(mob_rpc_server_t *server, mob_rpc_gate_fn gate, void *owner) {
  server->gate = gate;
  server->gate_owner = owner;
}

// gRPC reports a port that is taken as "no port", without the cause: try it first.
static mob_status probe_port(const char *ip, int port) {
  struct sockaddr_storage addr = {0};
  struct sockaddr_in *v4 = (struct sockaddr_in *)&addr;
  struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)&addr;
  socklen_t len;
  if (inet_pton(AF_INET, ip, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
    v4->sin_port = htons((uint16_t)port);
    len = sizeof *v4;
  } else if (inet_pton(AF_INET6, ip, &v6->sin6_addr) == 1) {
    v6->sin6_family = AF_INET6;
    v6->sin6_port = htons((uint16_t)port);
    len = sizeof *v6;
  } else {
    return mob_fail(MOB_E_INVALID, "'%s' is no IP address to listen on", ip);
  }
  int fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return mob_fail(MOB_E_IO, "socket: %s", strerror(errno));
  int one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  mob_status status = MOB_OK;
  if (bind(fd, (struct sockaddr *)&addr, len) != 0 || listen(fd, 1) != 0) {
    status = mob_fail(errno == EADDRINUSE ? MOB_E_NO_RESOURCES : MOB_E_IO,
                      "cannot listen on %s port %d: %s", ip, port, strerror(errno));
  }
  close(fd);
  return status;
}

mob_status mob_rpc_server_listen(mob_rpc_server_t *server, const char *ip, int port, int *bound) {
  MOB_ASSERT(!server->started);
  MOB_TRY(probe_port(ip, port));
  char *address = mob_sprintf(strchr(ip, ':') ? "[%s]:%d" : "%s:%d", ip, port);
  grpc_server_credentials *creds = grpc_insecure_server_credentials_create();
  *bound = grpc_server_add_http2_port(server->impl, address, creds);
  grpc_server_credentials_release(creds);
  free(address);
  if (*bound == 0) return mob_fail(MOB_E_NO_RESOURCES, "cannot listen on %s port %d", ip, port);
  grpc_server_start(server->impl);
  server->started = true;
  entry_t *others = MOB_NEW(entry_t);
  *others = (entry_t){.server = server, .path = ""};
  *mob_vec_push(&server->entries) = others;
  for (size_t i = 0; i < server->entries.len; i++) ask_next(server->entries.at[i]);
  return MOB_OK;
}

void mob__server_own(mob_rpc_server_t *server, void *memory) {
  *mob_vec_push(&server->owned) = memory;
}

static void on_grace_closed(uv_handle_t *handle) {
  free(handle);
}

static void stop_grace(mob_rpc_server_t *server) {
  if (!server->grace) return;
  uv_close((uv_handle_t *)server->grace, on_grace_closed);
  server->grace = NULL;
}

static void try_free_server(mob_rpc_server_t *server) {
  if (!server->stopped || atomic_load(&server->slots) > 0) return;
  stop_grace(server);
  grpc_server_destroy(server->impl);
  mob__link_drop(&server->link);
  for (size_t i = 0; i < server->entries.len; i++) free(server->entries.at[i]);
  mob_vec_free(&server->entries);
  for (size_t i = 0; i < server->owned.len; i++) free(server->owned.at[i]);
  mob_vec_free(&server->owned);
  mob_rpc_t *rpc = server->rpc;
  void (*closed)(void *) = server->closed;
  void *arg = server->closed_arg;
  free(server);
  if (closed) closed(arg);
  mob__rpc_drop(rpc);
}

static void on_stopped(mob__op_t *op, bool ok) {
  (void)ok;
  mob_rpc_server_t *server = MOB__FROM(mob_rpc_server_t, stop_op, op);
  server->stopped = true;
  try_free_server(server);
}

static void on_grace(uv_timer_t *timer) {
  mob_rpc_server_t *server = timer->data;
  grpc_server_cancel_all_calls(server->impl);
}

void mob_rpc_server_close(mob_rpc_server_t *server, uint64_t grace_ms, void (*done)(void *arg),
                          void *arg) {
  if (atomic_load(&server->stopping)) return;
  atomic_store(&server->stopping, true);
  server->closed = done;
  server->closed_arg = arg;
  server->stop_op.fn = on_stopped;
  if (!server->started)
    grpc_server_start(server->impl); // a server never started cannot be shut down
  grpc_server_shutdown_and_notify(server->impl, server->rpc->cq, &server->stop_op);
  if (grace_ms == 0) {
    grpc_server_cancel_all_calls(server->impl);
    return;
  }
  server->grace = MOB_NEW(uv_timer_t);
  uv_timer_init(server->rpc->loop, server->grace);
  server->grace->data = server;
  uv_timer_start(server->grace, on_grace, grace_ms, 0);
}

void mob__rpc_close_all(mob_rpc_t *rpc) {
  mob__link_t *next;
  for (mob__link_t *link = rpc->servers.next; link != &rpc->servers; link = next) {
    next = link->next;
    mob_rpc_server_close(MOB__FROM(mob_rpc_server_t, link, link), 0, NULL, NULL);
  }
  mob__rpc_close_clients(rpc);
}
