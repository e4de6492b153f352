// The client: a connection that this file sets up and watches itself (gRPC's own resolver and
// back-off are not used), calls and streams over it.
//
// State:  IDLE -> RESOLVING -> CONNECTING -> UP -> (broken) WAITING -> RESOLVING ...
// A failed try fails the calls that waited for it and goes to WAITING (50-500 ms) if anybody
// watches, else to IDLE.
#include <arpa/inet.h>
#include <grpc/grpc_security.h>
#include <netdb.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/rpc/internal.h"
#include "runtime/rpc/message.h"

enum { BACKOFF_FIRST_MS = 20, BACKOFF_MAX_MS = 500, CONNECT_TIMEOUT_MS = 3000 };

typedef enum state { IDLE, RESOLVING, CONNECTING, UP, WAITING } state_t;

// One try's channel. It outlives its client's interest until gRPC gives the watch back.
typedef struct conn {
  mob__op_t watch_op;
  mob_rpc_client_t *client; // NULL once given up
  mob_rpc_t *rpc;
  grpc_channel *channel;
  grpc_connectivity_state seen;
} conn_t;

struct mob_rpc_pending {
  mob__op_t op;
  mob__link_t link;
  mob_rpc_client_t *client;
  grpc_call *call; // NULL while it waits for the connection
  grpc_slice path;
  grpc_byte_buffer *request, *reply;
  const ProtobufCMessageDescriptor *reply_type;
  uint64_t deadline_ms; // mob_now_ms() clock; 0 none
  grpc_metadata_array initial, trailing;
  grpc_status_code code;
  grpc_slice details;
  mob_rpc_done_fn done;
  void *arg;
  bool failed; // `code` and `details` are set, the end is posted
};

typedef struct waiting_stream {
  mob__link_t link;
  mob_rpc_stream_t *stream;
  char *path;
} waiting_stream_t;

struct mob_rpc_client {
  mob_rpc_t *rpc;
  mob__link_t link;
  char *address, *host, *port;
  mob_rpc_client_options_t options;
  MOB_VEC(grpc_metadata) metadata;
  state_t state;
  conn_t *conn;
  uint64_t tries; // numbers the connections
  uint64_t backoff_ms;
  mob__link_t waiting;         // pending calls not started
  mob__link_t running;         // and started
  mob__link_t waiting_streams; // waiting_stream_t
  mob__link_t streams;         // every stream not freed, by its own link
  mob_rpc_state_fn on_state;
  void *state_owner;
  uv_getaddrinfo_t *resolve;
  uv_timer_t timer;       // back-off or connect time-out
  uv_timer_t queue_timer; // earliest deadline of a waiting call
  int handles;
  size_t refs; // the user's, calls, streams, a resolution, a probe
  bool closing;
};

static void begin_try(mob_rpc_client_t *c);

// ---------------------------------------------------------------------------------------- lifetime

static void on_handle_closed(uv_handle_t *handle) {
  mob_rpc_client_t *c = handle->data;
  if (--c->handles > 0) return;
  mob__link_drop(&c->link);
  for (size_t i = 0; i < c->metadata.len; i++) {
    grpc_slice_unref(c->metadata.at[i].key);
    grpc_slice_unref(c->metadata.at[i].value);
  }
  mob_vec_free(&c->metadata);
  free(c->address);
  free(c->host);
  free(c->port);
  mob_rpc_t *rpc = c->rpc;
  free(c);
  mob__rpc_drop(rpc);
}

static void unref(mob_rpc_client_t *c) {
  if (--c->refs > 0) return;
  uv_close((uv_handle_t *)&c->timer, on_handle_closed);
  uv_close((uv_handle_t *)&c->queue_timer, on_handle_closed);
}

static mob_status split_address(const char *address, char **host, char **port) {
  const char *colon = strrchr(address, ':');
  if (!colon || colon == address || !colon[1] || strlen(colon + 1) > 5 ||
      strspn(colon + 1, "0123456789") != strlen(colon + 1)) {
    return mob_fail(MOB_E_INVALID, "'%s' is not of the form host:port", address);
  }
  size_t len = (size_t)(colon - address);
  if (address[0] == '[' && len > 2 && address[len - 1] == ']') {
    address++;
    len -= 2;
  }
  *host = mob_strndup(address, len);
  *port = mob_strdup(colon + 1);
  return MOB_OK;
}

mob_status mob_rpc_client_new(mob_rpc_t *rpc, const char *address,
                              const mob_rpc_client_options_t *options, mob_rpc_client_t **out) {
  MOB_ASSERT(!rpc->closing);
  char *host = NULL, *port = NULL;
  MOB_TRY(split_address(address, &host, &port));
  mob_rpc_client_t *c = MOB_NEW(mob_rpc_client_t);
  c->rpc = rpc;
  c->address = mob_strdup(address);
  c->host = host;
  c->port = port;
  if (options) c->options = *options;
  if (!c->options.connect_timeout_ms) c->options.connect_timeout_ms = CONNECT_TIMEOUT_MS;
  c->backoff_ms = BACKOFF_FIRST_MS;
  mob__link_init(&c->waiting);
  mob__link_init(&c->running);
  mob__link_init(&c->waiting_streams);
  mob__link_init(&c->streams);
  uv_timer_init(rpc->loop, &c->timer);
  uv_timer_init(rpc->loop, &c->queue_timer);
  c->timer.data = c->queue_timer.data = c;
  c->handles = 2;
  c->refs = 1;
  mob__link_push(&rpc->clients, &c->link);
  mob__rpc_hold(rpc);
  *out = c;
  return MOB_OK;
}

const char *mob_rpc_client_address(const mob_rpc_client_t *client) {
  return client->address;
}

bool mob_rpc_client_up(const mob_rpc_client_t *client) {
  return client->state == UP;
}

void mob_rpc_client_set_metadata(mob_rpc_client_t *c, const char *key, const char *value) {
  for (size_t i = 0; i < c->metadata.len; i++) {
    if (grpc_slice_str_cmp(c->metadata.at[i].key, key) != 0) continue;
    grpc_slice_unref(c->metadata.at[i].key);
    grpc_slice_unref(c->metadata.at[i].value);
    mob_vec_remove(&c->metadata, i);
    break;
  }
  if (!value) return;
  grpc_metadata *entry = mob_vec_push(&c->metadata);
  entry->key = grpc_slice_from_copied_string(key);
  entry->value = grpc_slice_from_copied_string(value);
}

// ------------------------------------------------------------------------------------------- calls

static void on_queue_timer(uv_timer_t *timer);

static void finish_pending(mob_rpc_pending_t *p) {
  mob_rpc_client_t *c = p->client;
  mob__link_drop(&p->link);
  char *why =
      mob_strndup((const char *)GRPC_SLICE_START_PTR(p->details), GRPC_SLICE_LENGTH(p->details));
  ProtobufCMessage *reply = NULL;
  if (p->code == GRPC_STATUS_OK) {
    grpc_slice bytes;
    mob_status status = MOB_E_FORMAT;
    if (p->reply && mob__buffer_view(p->reply, &bytes)) {
      status = mob_pb_unpack(p->reply_type, GRPC_SLICE_START_PTR(bytes), GRPC_SLICE_LENGTH(bytes),
                             &reply);
      grpc_slice_unref(bytes);
    } else {
      mob_fail(MOB_E_FORMAT, "the answer carries no message");
    }
    if (status != MOB_OK) {
      p->code = GRPC_STATUS_INTERNAL;
      free(why);
      why = mob_sprintf("bad answer of %s: %s", c->address, mob_errmsg());
    }
  }
  p->done(p->arg, p->code, why, reply);
  mob_pb_free(reply);
  free(why);
  if (p->reply) grpc_byte_buffer_destroy(p->reply);
  if (p->request) grpc_byte_buffer_destroy(p->request);
  grpc_metadata_array_destroy(&p->initial);
  grpc_metadata_array_destroy(&p->trailing);
  grpc_slice_unref(p->details);
  grpc_slice_unref(p->path);
  if (p->call) grpc_call_unref(p->call);
  free(p);
  unref(c);
}

static void on_pending_done(mob__op_t *op, bool ok) {
  (void)ok;
  finish_pending(MOB__FROM(mob_rpc_pending_t, op, op));
}

// Ends a call that was not started.
static void fail_pending(mob_rpc_pending_t *p, grpc_status_code code, const char *why) {
  if (p->failed) return;
  p->failed = true;
  p->code = code;
  p->details = grpc_slice_from_copied_string(why);
  mob__link_drop(&p->link);
  mob__link_push(&p->client->running, &p->link);
  mob__rpc_post(p->client->rpc, &p->op);
}

static gpr_timespec deadline_of(uint64_t deadline_ms) {
  if (deadline_ms == 0) return gpr_inf_future(GPR_CLOCK_MONOTONIC);
  uint64_t now = mob_now_ms();
  uint64_t left = deadline_ms > now ? deadline_ms - now : 0;
  return gpr_time_add(gpr_now(GPR_CLOCK_MONOTONIC),
                      gpr_time_from_millis((int64_t)left, GPR_TIMESPAN));
}

static void start_pending(mob_rpc_pending_t *p) {
  mob_rpc_client_t *c = p->client;
  mob__link_drop(&p->link);
  mob__link_push(&c->running, &p->link);
  p->call = grpc_channel_create_call(c->conn->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->rpc->cq,
                                     p->path, NULL, deadline_of(p->deadline_ms), NULL);
  grpc_op ops[6] = {{.op = GRPC_OP_SEND_INITIAL_METADATA},  {.op = GRPC_OP_SEND_MESSAGE},
                    {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT}, {.op = GRPC_OP_RECV_INITIAL_METADATA},
                    {.op = GRPC_OP_RECV_MESSAGE},           {.op = GRPC_OP_RECV_STATUS_ON_CLIENT}};
  ops[0].data.send_initial_metadata.count = c->metadata.len;
  ops[0].data.send_initial_metadata.metadata = c->metadata.at;
  ops[1].data.send_message.send_message = p->request;
  ops[3].data.recv_initial_metadata.recv_initial_metadata = &p->initial;
  ops[4].data.recv_message.recv_message = &p->reply;
  ops[5].data.recv_status_on_client.trailing_metadata = &p->trailing;
  ops[5].data.recv_status_on_client.status = &p->code;
  ops[5].data.recv_status_on_client.status_details = &p->details;
  grpc_call_error error = grpc_call_start_batch(p->call, ops, MOB_LEN(ops), &p->op, NULL);
  MOB_ASSERT(error == GRPC_CALL_OK);
}

static void arm_queue_timer(mob_rpc_client_t *c) {
  uint64_t first = UINT64_MAX;
  for (mob__link_t *l = c->waiting.next; l != &c->waiting; l = l->next) {
    uint64_t deadline = MOB__FROM(mob_rpc_pending_t, link, l)->deadline_ms;
    if (deadline && deadline < first) first = deadline;
  }
  if (first == UINT64_MAX) {
    uv_timer_stop(&c->queue_timer);
    return;
  }
  uint64_t now = mob_now_ms();
  uv_update_time(c->rpc->loop);
  uv_timer_start(&c->queue_timer, on_queue_timer, first > now ? first - now : 0, 0);
}

static void on_queue_timer(uv_timer_t *timer) {
  mob_rpc_client_t *c = timer->data;
  uint64_t now = mob_now_ms();
  mob__link_t *next;
  for (mob__link_t *l = c->waiting.next; l != &c->waiting; l = next) {
    next = l->next;
    mob_rpc_pending_t *p = MOB__FROM(mob_rpc_pending_t, link, l);
    if (!p->deadline_ms || p->deadline_ms > now) continue;
    char *why = mob_sprintf("no connection to %s in time", c->address);
    fail_pending(p, GRPC_STATUS_DEADLINE_EXCEEDED, why);
    free(why);
  }
  arm_queue_timer(c);
}

mob_rpc_pending_t *mob_rpc_call(mob_rpc_client_t *c, const char *path, const void *request,
                                const ProtobufCMessageDescriptor *reply, uint64_t timeout_ms,
                                mob_rpc_done_fn done, void *arg) {
  mob_rpc_pending_t *p = MOB_NEW(mob_rpc_pending_t);
  p->client = c;
  p->op.fn = on_pending_done;
  p->path = grpc_slice_from_copied_string(path);
  p->request = mob__buffer_of_message(request, NULL);
  p->reply_type = reply;
  p->deadline_ms = timeout_ms ? mob_now_ms() + timeout_ms : 0;
  p->details = grpc_empty_slice();
  p->done = done;
  p->arg = arg;
  grpc_metadata_array_init(&p->initial);
  grpc_metadata_array_init(&p->trailing);
  c->refs++;
  mob__link_push(&c->waiting, &p->link);
  if (c->closing) {
    fail_pending(p, GRPC_STATUS_CANCELLED, "the client is closed");
  } else if (c->state == UP) {
    start_pending(p);
  } else {
    if (p->deadline_ms) arm_queue_timer(c);
    if (c->state == IDLE) begin_try(c);
  }
  return p;
}

void mob_rpc_cancel(mob_rpc_pending_t *p) {
  if (p->call) {
    grpc_call_cancel(p->call, NULL);
  } else {
    fail_pending(p, GRPC_STATUS_CANCELLED, "cancelled");
  }
}

// ----------------------------------------------------------------------------------------- streams

static void start_stream(mob_rpc_client_t *c, mob_rpc_stream_t *stream, const char *path) {
  grpc_slice method = grpc_slice_from_copied_string(path);
  grpc_call *call =
      grpc_channel_create_call(c->conn->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->rpc->cq, method,
                               NULL, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
  grpc_slice_unref(method);
  mob__stream_start(stream, call, c->metadata.at, c->metadata.len);
}

static waiting_stream_t *pop_waiting_stream(mob_rpc_client_t *c) {
  if (c->waiting_streams.next == &c->waiting_streams) return NULL;
  waiting_stream_t *w = MOB__FROM(waiting_stream_t, link, c->waiting_streams.next);
  mob__link_drop(&w->link);
  return w;
}

static void free_waiting_stream(waiting_stream_t *w) {
  free(w->path);
  free(w);
}

// A stream that its owner closed while it waited is ended already: it may not be started.
static void forget_waiting_stream(mob_rpc_client_t *c, mob_rpc_stream_t *stream) {
  for (mob__link_t *l = c->waiting_streams.next; l != &c->waiting_streams; l = l->next) {
    waiting_stream_t *w = MOB__FROM(waiting_stream_t, link, l);
    if (w->stream != stream) continue;
    mob__link_drop(l);
    free_waiting_stream(w);
    return;
  }
}

typedef struct opened {
  mob_rpc_client_t *client;
  mob_rpc_stream_t *stream;
} opened_t;

static void on_opened_freed(void *arg) {
  opened_t *opened = arg;
  forget_waiting_stream(opened->client, opened->stream);
  unref(opened->client);
  free(opened);
}

mob_rpc_stream_t *mob_rpc_stream_open(mob_rpc_client_t *c, const char *path,
                                      const mob_rpc_stream_events_t *events, void *owner) {
  mob_rpc_stream_t *stream = mob__stream_new(c->rpc, events, owner);
  opened_t *opened = MOB_NEW(opened_t);
  *opened = (opened_t){c, stream};
  c->refs++;
  mob__stream_on_free(stream, on_opened_freed, opened);
  mob__link_push(&c->streams, mob__stream_link(stream));
  if (c->closing) {
    mob__stream_abort(stream, GRPC_STATUS_CANCELLED, "the client is closed");
  } else if (c->state == UP) {
    start_stream(c, stream, path);
  } else {
    waiting_stream_t *w = MOB_NEW(waiting_stream_t);
    *w = (waiting_stream_t){.stream = stream, .path = mob_strdup(path)};
    mob__link_push(&c->waiting_streams, &w->link);
    if (c->state == IDLE) begin_try(c);
  }
  return stream;
}

// -------------------------------------------------------------------------------------- connection

static void drop_conn(mob_rpc_client_t *c) {
  conn_t *conn = c->conn;
  if (!conn) return;
  c->conn = NULL;
  conn->client = NULL;
  grpc_channel_destroy(conn->channel); // gives the watch back
  conn->channel = NULL;
}

static bool wanted(const mob_rpc_client_t *c) {
  return c->on_state || c->waiting.next != &c->waiting ||
         c->waiting_streams.next != &c->waiting_streams;
}

static void fail_waiting(mob_rpc_client_t *c, grpc_status_code code, const char *why) {
  while (c->waiting.next != &c->waiting) {
    fail_pending(MOB__FROM(mob_rpc_pending_t, link, c->waiting.next), code, why);
  }
  waiting_stream_t *w;
  while ((w = pop_waiting_stream(c))) {
    mob__stream_abort(w->stream, code, why);
    free_waiting_stream(w);
  }
  uv_timer_stop(&c->queue_timer);
}

static void on_backoff(uv_timer_t *timer) {
  mob_rpc_client_t *c = timer->data;
  c->state = IDLE;
  if (wanted(c)) begin_try(c);
}

static void back_off(mob_rpc_client_t *c) {
  c->state = WAITING;
  uv_update_time(c->rpc->loop);
  uv_timer_start(&c->timer, on_backoff, c->backoff_ms, 0);
  // Slow growth: a peer that starts at the same moment is found soon after it is there.
  c->backoff_ms = c->backoff_ms * 3 / 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : c->backoff_ms * 3 / 2;
}

static void try_failed(mob_rpc_client_t *c, const char *why) {
  char *text = mob_sprintf("cannot connect to %s: %s", c->address, why);
  drop_conn(c);
  back_off(c);
  fail_waiting(c, GRPC_STATUS_UNAVAILABLE, text);
  if (c->on_state) c->on_state(c->state_owner, c, false, text);
  free(text);
}

static void on_connect_timeout(uv_timer_t *timer) {
  mob_rpc_client_t *c = timer->data;
  char *why = mob_sprintf("no answer within %u ms", c->options.connect_timeout_ms);
  try_failed(c, why);
  free(why);
}

static void came_up(mob_rpc_client_t *c) {
  c->state = UP;
  c->backoff_ms = BACKOFF_FIRST_MS;
  uv_timer_stop(&c->timer);
  uv_timer_stop(&c->queue_timer);
  while (c->waiting.next != &c->waiting)
    start_pending(MOB__FROM(mob_rpc_pending_t, link, c->waiting.next));
  waiting_stream_t *w;
  while ((w = pop_waiting_stream(c))) {
    if (!mob__stream_ended(w->stream)) start_stream(c, w->stream, w->path);
    free_waiting_stream(w);
  }
  if (c->on_state) c->on_state(c->state_owner, c, true, "");
}

static void went_down(mob_rpc_client_t *c) {
  char *why = mob_sprintf("the connection to %s broke", c->address);
  drop_conn(c);
  back_off(c);
  if (c->on_state) c->on_state(c->state_owner, c, false, why);
  free(why);
}

// gRPC does not say why a connection failed, but a call over it does: it fails at once with the
// cause.
typedef struct probe {
  mob__op_t op;
  uint64_t try_number;
  mob_rpc_client_t *client;
  grpc_call *call;
  grpc_metadata_array trailing;
  grpc_status_code code;
  grpc_slice details;
} probe_t;

static void on_probed(mob__op_t *op, bool ok) {
  (void)ok;
  probe_t *probe = MOB__FROM(probe_t, op, op);
  mob_rpc_client_t *c = probe->client;
  char *why = mob_strndup((const char *)GRPC_SLICE_START_PTR(probe->details),
                          GRPC_SLICE_LENGTH(probe->details));
  // "failed to connect to all addresses; last error: UNKNOWN: ipv4:1.2.3.4:5: Failed to connect
  // ...: CAUSE"
  const char *cause = strrchr(why, ':');
  cause = cause && cause[1] == ' ' ? cause + 2 : why;
  if (!c->closing && c->tries == probe->try_number && c->state == CONNECTING) try_failed(c, cause);
  free(why);
  grpc_call_unref(probe->call);
  grpc_slice_unref(probe->details);
  grpc_metadata_array_destroy(&probe->trailing);
  free(probe);
  unref(c);
}

static void ask_cause(mob_rpc_client_t *c) {
  probe_t *probe = MOB_NEW(probe_t);
  probe->op.fn = on_probed;
  probe->try_number = c->tries;
  probe->client = c;
  c->refs++;
  probe->details = grpc_empty_slice();
  grpc_metadata_array_init(&probe->trailing);
  grpc_slice path = grpc_slice_from_static_string("/grpc.health.v1.Health/Check");
  probe->call =
      grpc_channel_create_call(c->conn->channel, NULL, GRPC_PROPAGATE_DEFAULTS, c->rpc->cq, path,
                               NULL, deadline_of(mob_now_ms() + 100), NULL);
  grpc_op ops[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_RECV_STATUS_ON_CLIENT}};
  ops[1].data.recv_status_on_client.trailing_metadata = &probe->trailing;
  ops[1].data.recv_status_on_client.status = &probe->code;
  ops[1].data.recv_status_on_client.status_details = &probe->details;
  grpc_call_error error = grpc_call_start_batch(probe->call, ops, 2, &probe->op, NULL);
  MOB_ASSERT(error == GRPC_CALL_OK);
}

static void watch(conn_t *conn) {
  grpc_channel_watch_connectivity_state(conn->channel, conn->seen,
                                        gpr_inf_future(GPR_CLOCK_MONOTONIC), conn->rpc->cq,
                                        &conn->watch_op);
}

static void on_watch(mob__op_t *op, bool ok) {
  (void)ok;
  conn_t *conn = MOB__FROM(conn_t, watch_op, op);
  mob_rpc_client_t *c = conn->client;
  if (!c) {
    mob_rpc_t *rpc = conn->rpc;
    free(conn);
    mob__rpc_drop(rpc);
    return;
  }
  conn->seen = grpc_channel_check_connectivity_state(conn->channel, 0);
  watch(conn);
  if (c->state == CONNECTING && conn->seen == GRPC_CHANNEL_READY) {
    came_up(c);
  } else if (c->state == CONNECTING && conn->seen == GRPC_CHANNEL_TRANSIENT_FAILURE) {
    ask_cause(c);
  } else if (c->state == UP && conn->seen != GRPC_CHANNEL_READY) {
    went_down(c);
  }
}

static void connect_to(mob_rpc_client_t *c, const char *target) {
  int keepalive = c->options.keepalive_ms ? (int)c->options.keepalive_ms : INT32_MAX;
  int keepalive_timeout =
      c->options.keepalive_timeout_ms ? (int)c->options.keepalive_timeout_ms : 20000;
  grpc_arg list[] = {
      MOB__INT_ARG(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, MOB__MAX_MESSAGE),
      MOB__INT_ARG(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, MOB__MAX_MESSAGE),
      MOB__INT_ARG(GRPC_ARG_ENABLE_HTTP_PROXY, 0),
      MOB__INT_ARG(GRPC_ARG_ENABLE_RETRIES, 0),
      MOB__INT_ARG(GRPC_ARG_SERVICE_CONFIG_DISABLE_RESOLUTION, 1),
      MOB__INT_ARG(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1),
      MOB__INT_ARG(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50),
      MOB__INT_ARG(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500),
      // The name misleads: it is the time that one connection attempt gets at least.
      MOB__INT_ARG(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, (int)c->options.connect_timeout_ms),
      MOB__INT_ARG(GRPC_ARG_KEEPALIVE_TIME_MS, keepalive),
      MOB__INT_ARG(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, keepalive_timeout),
      MOB__INT_ARG(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1),
      MOB__INT_ARG(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0),
      MOB__INT_ARG(GRPC_ARG_HTTP2_MIN_SENT_PING_INTERVAL_WITHOUT_DATA_MS, 100),
      MOB__INT_ARG(GRPC_ARG_MAX_CHANNEL_TRACE_EVENT_MEMORY_PER_NODE, 0),
      MOB__INT_ARG(GRPC_ARG_ENABLE_CHANNELZ, 0),
      MOB__INT_ARG(GRPC_ARG_CLIENT_IDLE_TIMEOUT_MS, INT32_MAX),
      {.type = GRPC_ARG_STRING, .key = GRPC_ARG_DEFAULT_AUTHORITY, .value.string = c->address},
  };
  grpc_channel_args args = {MOB_LEN(list), list};
  grpc_channel_credentials *creds = grpc_insecure_credentials_create();
  conn_t *conn = MOB_NEW(conn_t);
  conn->watch_op.fn = on_watch;
  conn->client = c;
  conn->rpc = c->rpc;
  mob__rpc_hold(c->rpc);
  conn->channel = grpc_channel_create(target, creds, &args);
  grpc_channel_credentials_release(creds);
  c->conn = conn;
  c->tries++;
  c->state = CONNECTING;
  conn->seen = grpc_channel_check_connectivity_state(conn->channel, 1);
  watch(conn);
  uv_update_time(c->rpc->loop);
  uv_timer_start(&c->timer, on_connect_timeout, c->options.connect_timeout_ms, 0);
}

// "ipv4:10.0.0.1:4711,10.0.0.2:4711": all addresses of the first one's family, which gRPC tries in
// order.
static char *target_of(const struct addrinfo *list) {
  mob_buf_t target = {0};
  int family = list->ai_family;
  mob_buf_puts(&target, family == AF_INET6 ? "ipv6:" : "ipv4:");
  bool first = true;
  for (const struct addrinfo *a = list; a; a = a->ai_next) {
    if (a->ai_family != family) continue;
    char ip[INET6_ADDRSTRLEN];
    if (family == AF_INET6) {
      const struct sockaddr_in6 *in = (const void *)a->ai_addr;
      inet_ntop(family, &in->sin6_addr, ip, sizeof ip);
      // The colons in brackets are written %5B..%5D: gRPC reads targets as URIs.
      mob_buf_printf(&target, "%s%%5B%s%%5D:%d", first ? "" : ",", ip, ntohs(in->sin6_port));
    } else {
      const struct sockaddr_in *in = (const void *)a->ai_addr;
      inet_ntop(family, &in->sin_addr, ip, sizeof ip);
      mob_buf_printf(&target, "%s%s:%d", first ? "" : ",", ip, ntohs(in->sin_port));
    }
    first = false;
  }
  return mob_buf_steal(&target);
}

static void on_resolved(uv_getaddrinfo_t *req, int error, struct addrinfo *list) {
  mob_rpc_client_t *c = req->data;
  c->resolve = NULL;
  free(req);
  if (!c->closing) {
    if (error) {
      try_failed(c, uv_strerror(error));
    } else {
      char *target = target_of(list);
      connect_to(c, target);
      free(target);
    }
  }
  uv_freeaddrinfo(list);
  unref(c);
}

static void begin_try(mob_rpc_client_t *c) {
  struct in_addr v4;
  if (inet_pton(AF_INET, c->host, &v4) == 1) { // no need of a resolver, nor of its threads
    char *target = mob_sprintf("ipv4:%s:%s", c->host, c->port);
    connect_to(c, target);
    free(target);
    return;
  }
  c->state = RESOLVING;
  struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  c->resolve = MOB_NEW(uv_getaddrinfo_t);
  c->resolve->data = c;
  c->refs++;
  int error = uv_getaddrinfo(c->rpc->loop, c->resolve, on_resolved, c->host, c->port, &hints);
  if (error == 0) return;
  free(c->resolve);
  c->resolve = NULL;
  c->refs--;
  try_failed(c, uv_strerror(error));
}

void mob_rpc_client_watch(mob_rpc_client_t *c, mob_rpc_state_fn fn, void *owner) {
  c->on_state = fn;
  c->state_owner = owner;
  if (fn && c->state == IDLE && !c->closing) begin_try(c);
}

// ----------------------------------------------------------------------------------------- closing

void mob_rpc_client_close(mob_rpc_client_t *c) {
  if (c->closing) return;
  c->closing = true;
  c->on_state = NULL;
  uv_timer_stop(&c->timer);
  if (c->resolve) uv_cancel((uv_req_t *)c->resolve);
  fail_waiting(c, GRPC_STATUS_CANCELLED, "the client is closed");
  for (mob__link_t *l = c->running.next; l != &c->running; l = l->next) {
    mob_rpc_pending_t *p = MOB__FROM(mob_rpc_pending_t, link, l);
    if (p->call)
      grpc_call_cancel_with_status(p->call, GRPC_STATUS_CANCELLED, "the client is closed", NULL);
  }
  mob__link_t *next;
  for (mob__link_t *l = c->streams.next; l != &c->streams; l = next) {
    next = l->next;
    mob__stream_abort(mob__stream_from_link(l), GRPC_STATUS_CANCELLED, "the client is closed");
  }
  drop_conn(c);
  c->state = IDLE;
  unref(c);
}

void mob__rpc_close_clients(mob_rpc_t *rpc) {
  mob__link_t *next;
  for (mob__link_t *link = rpc->clients.next; link != &rpc->clients; link = next) {
    next = link->next;
    mob_rpc_client_close(MOB__FROM(mob_rpc_client_t, link, link));
  }
}
