// What the files of this folder share.
//
// An operation handed to gRPC is a mob__op_t, its address the completion queue's tag. The queue's
// thread pushes finished ones onto a lock-free stack; the loop takes the whole stack at once. So a
// burst costs one wake-up of the loop.
#ifndef MOB_RPC_INTERNAL_H
#define MOB_RPC_INTERNAL_H

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/slice.h>
#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <pthread.h>
#include <stdatomic.h>

#include "runtime/base/mem.h"
#include "runtime/base/vec.h"
#include "runtime/rpc/rpc.h"

enum { MOB__MAX_MESSAGE = 512 << 20 }; // bytes, as Ray's own

// An element of a channel's or a server's arguments.
#define MOB__INT_ARG(name, number)                                                                 \
  { .type = GRPC_ARG_INTEGER, .key = name, .value.integer = (number) }

typedef struct mob__op mob__op_t;
struct mob__op {
  mob__op_t *next;
  void (*fn)(mob__op_t *op, bool ok);    // on the loop's thread
  void (*early)(mob__op_t *op, bool ok); // on the queue's thread, before; NULL for most
  bool ok;
};

// Links of a doubly linked ring; the head is an element of its own.
typedef struct mob__link {
  struct mob__link *prev, *next;
} mob__link_t;

static inline void mob__link_init(mob__link_t *head) {
  head->prev = head->next = head;
}
static inline void mob__link_push(mob__link_t *head, mob__link_t *item) {
  item->prev = head->prev;
  item->next = head;
  head->prev->next = item;
  head->prev = item;
}
static inline void mob__link_drop(mob__link_t *item) {
  item->prev->next = item->next;
  item->next->prev = item->prev;
  item->prev = item->next = item;
}
#define MOB__FROM(type, member, ptr) ((type *)((char *)(ptr)-offsetof(type, member)))

struct mob_rpc {
  uv_loop_t *loop;
  grpc_completion_queue *cq;
  pthread_t thread;
  uv_async_t async;
  _Atomic(mob__op_t *) done_ops;
  size_t live; // servers and clients, their calls and streams included
  mob__link_t servers, clients;
  bool closing, draining;
  void (*closed)(void *arg);
  void *closed_arg;
};

void mob__rpc_post(mob_rpc_t *rpc,
                   mob__op_t *op); // runs op->fn(op, op->ok) on a later turn of the loop
void mob__rpc_hold(mob_rpc_t *rpc);
void mob__rpc_drop(mob_rpc_t *rpc); // the last one lets mob_rpc_close() finish

void mob__rpc_close_all(mob_rpc_t *rpc); // servers, then clients
void mob__rpc_close_clients(mob_rpc_t *rpc);
void mob__server_own(mob_rpc_server_t *server, void *memory); // freed with the server

// One contiguous view of a received buffer. `slice` is what the view points into.
bool mob__buffer_view(grpc_byte_buffer *buffer, grpc_slice *slice);
grpc_byte_buffer *mob__buffer_of(const void *data, size_t len);
grpc_byte_buffer *mob__buffer_of_message(const ProtobufCMessage *message, size_t *len);
// Looks a key up; NULL or a NUL-terminated copy that the caller frees.
char *mob__metadata_get(const grpc_metadata_array *array, const char *key);
const char *mob__metadata_peek(const mob_rpc_gate_info_t *info, const char *key, char *buf,
                               size_t cap);

// A bump allocator for unpacked requests: freed as a whole.
typedef struct mob__arena_block mob__arena_block_t;
typedef struct mob__arena {
  ProtobufCAllocator allocator;
  mob__arena_block_t *blocks;
  uint8_t *at, *end;
} mob__arena_t;
void mob__arena_init(mob__arena_t *arena, void *first,
                     size_t size); // `first` is used up before any malloc
void mob__arena_free(mob__arena_t *arena);

// Streams are made by the server (on arrival) and by the client (open).
mob_rpc_stream_t *mob__stream_accept(mob_rpc_t *rpc, grpc_call *call,
                                     grpc_metadata_array *metadata);
void mob__stream_accepted(mob_rpc_stream_t *stream);
mob_rpc_stream_t *mob__stream_new(mob_rpc_t *rpc, const mob_rpc_stream_events_t *events,
                                  void *owner);
void mob__stream_start(mob_rpc_stream_t *stream, grpc_call *call, grpc_metadata *metadata,
                       size_t count);
void mob__stream_abort(mob_rpc_stream_t *stream, grpc_status_code code, const char *why);
bool mob__stream_ended(const mob_rpc_stream_t *stream);
// `freed` runs when the stream is about to be freed.
void mob__stream_on_free(mob_rpc_stream_t *stream, void (*freed)(void *arg), void *arg);
mob__link_t *
mob__stream_link(mob_rpc_stream_t *stream); // for its client's list; dropped at the end
mob_rpc_stream_t *mob__stream_from_link(mob__link_t *link);

#endif
