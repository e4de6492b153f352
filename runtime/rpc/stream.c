// Bidirectional streams, both ends. At most one read and one write are at gRPC at a time; a stream
// is freed when it has ended and gRPC has given every operation back.
#include <string.h>

#include "runtime/rpc/internal.h"

typedef struct outgoing {
  grpc_byte_buffer *buffer;
  size_t len;
} outgoing_t;

struct mob_rpc_stream {
  mob_rpc_t *rpc;
  mob__link_t link;
  grpc_call *call; // NULL at the client until the connection stands
  bool server, started;
  mob_rpc_stream_events_t events;
  void *owner;
  mob__op_t meta_op, recv_op, send_op, status_op, close_op, end_op;
  size_t under_way;             // of those
  grpc_metadata_array metadata; // what the peer sent
  grpc_metadata_array trailing;
  MOB_VEC(grpc_metadata) reply_metadata;
  MOB_VEC(char *) strings;
  grpc_byte_buffer *incoming;
  MOB_VEC(outgoing_t) queue;
  size_t queue_head, queued;
  bool sending, receiving, paused, read_done, write_failed;
  bool closing, status_sent; // no more sends; half-close or status is at gRPC
  bool ended;                // on_close has run
  grpc_status_code code;
  char *why;
  grpc_slice details;
  int cancelled;
  void (*freed)(void *arg);
  void *freed_arg;
};

static void start_batch(mob_rpc_stream_t *s, mob__op_t *op, void (*fn)(mob__op_t *, bool),
                        const grpc_op *ops, size_t n) {
  op->fn = fn;
  s->under_way++;
  grpc_call_error error = grpc_call_start_batch(s->call, ops, n, op, NULL);
  MOB_ASSERT(error == GRPC_CALL_OK);
}

static void clear_queue(mob_rpc_stream_t *s) {
  for (size_t i = s->queue_head; i < s->queue.len; i++)
    grpc_byte_buffer_destroy(s->queue.at[i].buffer);
  s->queue.len = s->queue_head = 0;
  s->queued = 0;
}

static void maybe_free(mob_rpc_stream_t *s) {
  if (!s->ended || s->under_way > 0) return;
  clear_queue(s);
  mob_vec_free(&s->queue);
  mob__link_drop(&s->link);
  if (s->incoming) grpc_byte_buffer_destroy(s->incoming);
  for (size_t i = 0; i < s->reply_metadata.len; i++) {
    grpc_slice_unref(s->reply_metadata.at[i].key);
    grpc_slice_unref(s->reply_metadata.at[i].value);
  }
  mob_vec_free(&s->reply_metadata);
  for (size_t i = 0; i < s->strings.len; i++) free(s->strings.at[i]);
  mob_vec_free(&s->strings);
  grpc_metadata_array_destroy(&s->metadata);
  grpc_metadata_array_destroy(&s->trailing);
  grpc_slice_unref(s->details);
  if (s->call) grpc_call_unref(s->call);
  free(s->why);
  if (s->freed) s->freed(s->freed_arg);
  free(s);
}

// The caller runs maybe_free() afterwards.
static void end(mob_rpc_stream_t *s, grpc_status_code code, const char *why) {
  if (s->ended) return;
  s->ended = true;
  s->closing = true;
  if (s->events.on_close) s->events.on_close(s->owner, s, code, why);
}

static void set_why(mob_rpc_stream_t *s, grpc_status_code code, const char *why) {
  s->code = code;
  free(s->why);
  s->why = mob_strdup(why ? why : "");
}

// ----------------------------------------------------------------------------------------- reading

static void deliver(mob_rpc_stream_t *s) {
  grpc_byte_buffer *buffer = s->incoming;
  s->incoming = NULL;
  grpc_slice bytes;
  if (!s->ended && s->events.on_message && mob__buffer_view(buffer, &bytes)) {
    s->events.on_message(s->owner, s, GRPC_SLICE_START_PTR(bytes), GRPC_SLICE_LENGTH(bytes));
    grpc_slice_unref(bytes);
  }
  grpc_byte_buffer_destroy(buffer);
}

static void pump_read(mob_rpc_stream_t *s);
static void pump_write(mob_rpc_stream_t *s);

static void on_received(mob__op_t *op, bool ok) {
  mob_rpc_stream_t *s = MOB__FROM(mob_rpc_stream_t, recv_op, op);
  s->under_way--;
  s->receiving = false;
  if (!ok || !s->incoming) {
    s->read_done = true;
    // The client has said all it will: the server's side ends too, after what it still has to send.
    if (s->server && !s->closing) mob_rpc_stream_close(s, GRPC_STATUS_OK, NULL);
  } else if (!s->paused) {
    deliver(s);
  }
  pump_read(s);
  maybe_free(s);
}

static void pump_read(mob_rpc_stream_t *s) {
  if (!s->started || s->receiving || s->read_done || s->ended || s->paused || s->incoming) return;
  s->receiving = true;
  grpc_op op = {.op = GRPC_OP_RECV_MESSAGE};
  op.data.recv_message.recv_message = &s->incoming;
  start_batch(s, &s->recv_op, on_received, &op, 1);
}

void mob_rpc_stream_pause(mob_rpc_stream_t *s) {
  s->paused = true;
}

void mob_rpc_stream_resume(mob_rpc_stream_t *s) {
  if (!s->paused) return;
  s->paused = false;
  if (s->incoming && !s->receiving) {
    s->under_way++; // the message's handler may end the stream
    deliver(s);
    s->under_way--;
  }
  pump_read(s);
}

// ----------------------------------------------------------------------------------------- writing

static void on_status_sent(mob__op_t *op, bool ok) {
  (void)ok;
  mob_rpc_stream_t *s = MOB__FROM(mob_rpc_stream_t, status_op, op);
  s->under_way--;
  maybe_free(s);
}

static void send_status(mob_rpc_stream_t *s) {
  s->status_sent = true;
  grpc_op op = {.op = GRPC_OP_SEND_CLOSE_FROM_CLIENT};
  grpc_slice details = grpc_slice_from_copied_string(s->why ? s->why : "");
  if (s->server) {
    op.op = GRPC_OP_SEND_STATUS_FROM_SERVER;
    op.data.send_status_from_server.status = s->code;
    op.data.send_status_from_server.status_details = &details;
  }
  start_batch(s, &s->status_op, on_status_sent, &op, 1);
  grpc_slice_unref(details);
}

static void on_sent(mob__op_t *op, bool ok) {
  mob_rpc_stream_t *s = MOB__FROM(mob_rpc_stream_t, send_op, op);
  s->under_way--;
  s->sending = false;
  outgoing_t *sent = &s->queue.at[s->queue_head++];
  s->queued -= sent->len;
  grpc_byte_buffer_destroy(sent->buffer);
  if (!ok) {
    s->write_failed = true; // the read side learns why
    clear_queue(s);
  }
  if (s->queue_head == s->queue.len) s->queue.len = s->queue_head = 0;
  pump_write(s);
  if (ok && s->queue.len == 0 && !s->closing && s->events.on_drained) {
    s->events.on_drained(s->owner, s);
  }
  maybe_free(s);
}

static void pump_write(mob_rpc_stream_t *s) {
  if (!s->started || s->sending || s->status_sent || s->ended) return;
  if (s->queue_head < s->queue.len && !s->write_failed) {
    s->sending = true;
    grpc_op op = {.op = GRPC_OP_SEND_MESSAGE};
    op.data.send_message.send_message = s->queue.at[s->queue_head].buffer;
    start_batch(s, &s->send_op, on_sent, &op, 1);
    return;
  }
  if (s->closing) send_status(s);
}

static void enqueue(mob_rpc_stream_t *s, grpc_byte_buffer *buffer, size_t len) {
  // Consumed entries are dropped once they are half of the vector.
  if (s->queue_head > 32 && s->queue_head * 2 > s->queue.len) {
    memmove(s->queue.at, s->queue.at + s->queue_head,
            (s->queue.len - s->queue_head) * sizeof *s->queue.at);
    s->queue.len -= s->queue_head;
    s->queue_head = 0;
  }
  *mob_vec_push(&s->queue) = (outgoing_t){buffer, len};
  s->queued += len;
  pump_write(s);
}

void mob_rpc_stream_send(mob_rpc_stream_t *s, const void *data, size_t len) {
  if (s->closing || s->write_failed) return;
  enqueue(s, mob__buffer_of(data, len), len);
}

void mob_rpc_stream_send_message(mob_rpc_stream_t *s, const ProtobufCMessage *message) {
  if (s->closing || s->write_failed) return;
  size_t len;
  grpc_byte_buffer *buffer = mob__buffer_of_message(message, &len);
  enqueue(s, buffer, len);
}

size_t mob_rpc_stream_queued(const mob_rpc_stream_t *s) {
  return s->queued;
}

// ------------------------------------------------------------------------------------------ ending

static void on_end_posted(mob__op_t *op, bool ok) {
  (void)ok;
  mob_rpc_stream_t *s = MOB__FROM(mob_rpc_stream_t, end_op, op);
  s->under_way--;
  end(s, s->code, s->why);
  maybe_free(s);
}

void mob__stream_abort(mob_rpc_stream_t *s, grpc_status_code code, const char *why) {
  if (s->ended || s->end_op.fn) return;
  s->closing = true;
  if (s->started) {
    grpc_call_cancel_with_status(s->call, code, why, NULL);
    return;
  }
  set_why(s, code, why);
  s->end_op.fn = on_end_posted;
  s->under_way++;
  mob__rpc_post(s->rpc, &s->end_op);
}

void mob_rpc_stream_close(mob_rpc_stream_t *s, grpc_status_code code, const char *why) {
  if (s->ended) return;
  if (!s->server && code != GRPC_STATUS_OK) {
    mob__stream_abort(s, code, why ? why : "");
    return;
  }
  if (s->closing) return;
  s->closing = true;
  set_why(s, code, why);
  pump_write(s);
}

// Client: the status has come. Server: the call is over, well or not.
static void on_closed(mob__op_t *op, bool ok) {
  (void)ok;
  mob_rpc_stream_t *s = MOB__FROM(mob_rpc_stream_t, close_op, op);
  s->under_way--;
  if (!s->server) {
    char *why =
        mob_strndup((const char *)GRPC_SLICE_START_PTR(s->details), GRPC_SLICE_LENGTH(s->details));
    end(s, s->code, why);
    free(why);
  } else if (s->cancelled) {
    end(s, GRPC_STATUS_UNAVAILABLE, "the client or its connection is gone");
  } else {
    end(s, s->code, s->why ? s->why : "");
  }
  maybe_free(s);
}

static void on_meta(mob__op_t *op, bool ok) {
  (void)ok;
  mob_rpc_stream_t *s = MOB__FROM(mob_rpc_stream_t, meta_op, op);
  s->under_way--;
  maybe_free(s);
}

// ---------------------------------------------------------------------------------------- starting

static mob_rpc_stream_t *new_stream(mob_rpc_t *rpc) {
  mob_rpc_stream_t *s = MOB_NEW(mob_rpc_stream_t);
  s->rpc = rpc;
  s->details = grpc_empty_slice();
  mob__link_init(&s->link);
  grpc_metadata_array_init(&s->metadata);
  grpc_metadata_array_init(&s->trailing);
  return s;
}

mob_rpc_stream_t *mob__stream_accept(mob_rpc_t *rpc, grpc_call *call,
                                     grpc_metadata_array *metadata) {
  mob_rpc_stream_t *s = new_stream(rpc);
  s->server = true;
  s->call = call;
  s->metadata = *metadata;
  grpc_metadata_array_init(metadata);
  return s;
}

void mob__stream_accepted(mob_rpc_stream_t *s) {
  grpc_op meta = {.op = GRPC_OP_SEND_INITIAL_METADATA};
  meta.data.send_initial_metadata.count = s->reply_metadata.len;
  meta.data.send_initial_metadata.metadata = s->reply_metadata.at;
  start_batch(s, &s->meta_op, on_meta, &meta, 1);
  grpc_op close = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER};
  close.data.recv_close_on_server.cancelled = &s->cancelled;
  start_batch(s, &s->close_op, on_closed, &close, 1);
  s->started = true;
  pump_write(s);
  pump_read(s);
}

mob_rpc_stream_t *mob__stream_new(mob_rpc_t *rpc, const mob_rpc_stream_events_t *events,
                                  void *owner) {
  mob_rpc_stream_t *s = new_stream(rpc);
  mob_rpc_stream_listen(s, events, owner);
  return s;
}

static void on_client_meta_sent(mob__op_t *op, bool ok) {
  on_meta(op, ok);
}

void mob__stream_start(mob_rpc_stream_t *s, grpc_call *call, grpc_metadata *metadata,
                       size_t count) {
  s->call = call;
  grpc_op meta[2] = {{.op = GRPC_OP_SEND_INITIAL_METADATA}, {.op = GRPC_OP_RECV_INITIAL_METADATA}};
  meta[0].data.send_initial_metadata.count = count;
  meta[0].data.send_initial_metadata.metadata = metadata;
  meta[1].data.recv_initial_metadata.recv_initial_metadata = &s->metadata;
  start_batch(s, &s->meta_op, on_client_meta_sent, meta, 2);
  grpc_op status = {.op = GRPC_OP_RECV_STATUS_ON_CLIENT};
  status.data.recv_status_on_client.trailing_metadata = &s->trailing;
  status.data.recv_status_on_client.status = &s->code;
  status.data.recv_status_on_client.status_details = &s->details;
  start_batch(s, &s->close_op, on_closed, &status, 1);
  s->started = true;
  pump_write(s);
  pump_read(s);
}

void mob_rpc_stream_listen(mob_rpc_stream_t *s, const mob_rpc_stream_events_t *events,
                           void *owner) {
  s->events = *events;
  s->owner = owner;
}

bool mob__stream_ended(const mob_rpc_stream_t *s) {
  return s->ended;
}

void mob__stream_on_free(mob_rpc_stream_t *s, void (*freed)(void *arg), void *arg) {
  s->freed = freed;
  s->freed_arg = arg;
}

mob__link_t *mob__stream_link(mob_rpc_stream_t *s) {
  return &s->link;
}

mob_rpc_stream_t *mob__stream_from_link(mob__link_t *link) {
  return MOB__FROM(mob_rpc_stream_t, link, link);
}

const char *mob_rpc_stream_metadata(mob_rpc_stream_t *s, const char *key) {
  char *value = mob__metadata_get(&s->metadata, key);
  if (value) *mob_vec_push(&s->strings) = value;
  return value;
}

void mob_rpc_stream_set_metadata(mob_rpc_stream_t *s, const char *key, const char *value) {
  MOB_ASSERT(s->server && !s->started);
  grpc_metadata *entry = mob_vec_push(&s->reply_metadata);
  entry->key = grpc_slice_from_copied_string(key);
  entry->value = grpc_slice_from_copied_string(value);
}
