// mob_stream_t over one gRPC stream. Frames are mobula.rpc.StreamFrame; the common one, `data`, is
// read and written by hand, so that a message is not copied into a protobuf-c object and out of it.

#include <stdlib.h>
#include <string.h>

#include "mobula/actor.pb-c.h"
#include "runtime/actor/internal.h"
#include "runtime/base/buf.h"
#include "runtime/rpc/message.h"

#define DATA_TAG 0x0a // field 1, length-delimited

struct mob_stream {
  mob_rpc_stream_t *rpc;
  const mob_stream_events_t *events;
  void *owner;
  mob__stream_host_t host; // the actor's end, until the open frame
  bool opened;
  mob_buf_t frame; // reused
};

void mob_stream_listen(mob_stream_t *stream, const mob_stream_events_t *events, void *owner) {
  stream->events = events;
  stream->owner = owner;
}

void mob_stream_send(mob_stream_t *stream, mob_bytes_t message) {
  mob_buf_t *frame = &stream->frame;
  size_t n = message.len;
  frame->len = 0;
  mob_buf_reserve(frame, message.len + 11);
  mob_buf_putc(frame, DATA_TAG);
  for (; n >= 0x80; n >>= 7) mob_buf_putc(frame, (char)(n | 0x80));
  mob_buf_putc(frame, (char)n);
  mob_buf_append(frame, message.data, message.len);
  mob_rpc_stream_send(stream->rpc, frame->data, frame->len);
  if (frame->cap > 1 << 20) mob_buf_free(frame);
}

size_t mob_stream_queued(const mob_stream_t *stream) {
  return mob_rpc_stream_queued(stream->rpc);
}

void mob_stream_close(mob_stream_t *stream, mob_status status, const char *why) {
  mob_rpc_stream_close(stream->rpc, mob_rpc_from_status(status), why ? why : "");
}

// The payload of a frame that is one `data` field and nothing else.
static bool plain_data(const uint8_t *data, size_t len, mob_bytes_t *out) {
  size_t size = 0, i = 1;
  if (len < 2 || data[0] != DATA_TAG) return false;
  for (unsigned shift = 0; i < len && i < 10; shift += 7) {
    uint8_t byte = data[i++];
    size |= (size_t)(byte & 0x7f) << shift;
    if (!(byte & 0x80)) {
      *out = (mob_bytes_t){data + i, size};
      return size == len - i;
    }
  }
  return false;
}

// The actor's end: whom the stream is for.
static void on_open(mob_stream_t *stream, const Mobula__Rpc__StreamOpen *open) {
  const uint8_t *actor_id = stream->host.actor_id(stream->host.host);
  const char *error = NULL;
  grpc_status_code code = GRPC_STATUS_FAILED_PRECONDITION;
  if (!actor_id) {
    error = "this process holds no actor";
  } else if (!mob_pb_bytes_equal(open->actor_id, actor_id, MOB_ACTOR_ID_LEN)) {
    error = "this process holds another actor";
  } else {
    stream->opened = true;
    error = stream->host.accept(stream->host.host, stream, open->method);
    code = GRPC_STATUS_UNIMPLEMENTED;
  }
  if (error) mob_rpc_stream_close(stream->rpc, code, error);
}

static void on_message(void *owner, mob_rpc_stream_t *rpc, const uint8_t *data, size_t len) {
  mob_stream_t *stream = owner;
  mob_bytes_t bytes;
  Mobula__Rpc__StreamFrame *frame = NULL;
  if (stream->opened && plain_data(data, len, &bytes)) {
    if (stream->events) stream->events->on_message(stream->owner, stream, bytes);
    return;
  }
  if (mob_pb_unpack(&mobula__rpc__stream_frame__descriptor, data, len, &frame) != MOB_OK) {
    mob_rpc_stream_close(rpc, GRPC_STATUS_INVALID_ARGUMENT, mob_errmsg());
    return;
  }
  if (!stream->opened) {
    if (frame->frame_case == MOBULA__RPC__STREAM_FRAME__FRAME_OPEN) {
      on_open(stream, frame->open);
    } else {
      mob_rpc_stream_close(rpc, GRPC_STATUS_INVALID_ARGUMENT,
                           "the first frame must be an open frame");
    }
  } else if (frame->frame_case == MOBULA__RPC__STREAM_FRAME__FRAME_DATA) {
    bytes = (mob_bytes_t){frame->data.data, frame->data.len};
    if (stream->events) stream->events->on_message(stream->owner, stream, bytes);
  } else {
    mob_rpc_stream_close(rpc, GRPC_STATUS_INVALID_ARGUMENT, "a frame is neither data nor open");
  }
  mob_pb_free(frame);
}

static void on_close(void *owner, mob_rpc_stream_t *rpc, grpc_status_code code, const char *why) {
  mob_stream_t *stream = owner;
  (void)rpc;
  if (stream->events) {
    stream->events->on_close(stream->owner, stream, mob_rpc_to_status(code), code ? why : NULL);
  }
  mob_buf_free(&stream->frame);
  free(stream);
}

static const mob_rpc_stream_events_t rpc_events = {on_message, on_close, NULL};

mob_stream_t *mob__stream_client(mob_rpc_client_t *client, const uint8_t *actor_id,
                                 const char *method, const mob_stream_events_t *events,
                                 void *owner) {
  Mobula__Rpc__StreamOpen open = MOBULA__RPC__STREAM_OPEN__INIT;
  Mobula__Rpc__StreamFrame frame = MOBULA__RPC__STREAM_FRAME__INIT;
  mob_stream_t *stream = MOB_NEW(mob_stream_t);
  stream->events = events;
  stream->owner = owner;
  stream->opened = true;
  stream->rpc = mob_rpc_stream_open(client, MOB_STREAM_PATH, &rpc_events, stream);
  open.actor_id = mob_pb_bytes(actor_id, MOB_ACTOR_ID_LEN);
  open.method = (char *)method;
  frame.frame_case = MOBULA__RPC__STREAM_FRAME__FRAME_OPEN;
  frame.open = &open;
  mob_rpc_stream_send_message(stream->rpc, &frame.base);
  return stream;
}

void mob__stream_serve(mob_rpc_stream_t *rpc, const mob__stream_host_t *host) {
  mob_stream_t *stream = MOB_NEW(mob_stream_t);
  stream->rpc = rpc;
  stream->host = *host;
  mob_rpc_stream_listen(rpc, &rpc_events, stream);
}
