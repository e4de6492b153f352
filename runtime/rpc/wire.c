// Byte buffers, metadata and the arena of unpacked requests.
#include <string.h>

#include "runtime/rpc/internal.h"

bool mob__buffer_view(grpc_byte_buffer *buffer, grpc_slice *slice) {
  grpc_byte_buffer_reader reader;
  if (!grpc_byte_buffer_reader_init(&reader, buffer)) return false;
  grpc_slice *first = NULL;
  if (grpc_byte_buffer_length(reader.buffer_out) == 0) {
    *slice = grpc_empty_slice();
  } else if (grpc_byte_buffer_reader_peek(&reader, &first) &&
             GRPC_SLICE_LENGTH(*first) == grpc_byte_buffer_length(reader.buffer_out)) {
    *slice = grpc_slice_ref(*first);
  } else {
    grpc_byte_buffer_reader_destroy(&reader);
    if (!grpc_byte_buffer_reader_init(&reader, buffer)) return false;
    *slice = grpc_byte_buffer_reader_readall(&reader);
  }
  grpc_byte_buffer_reader_destroy(&reader);
  return true;
}

grpc_byte_buffer *mob__buffer_of(const void *data, size_t len) {
  grpc_slice slice = grpc_slice_from_copied_buffer(data, len);
  grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
  grpc_slice_unref(slice);
  return buffer;
}

grpc_byte_buffer *mob__buffer_of_message(const ProtobufCMessage *message, size_t *len) {
  size_t size = protobuf_c_message_get_packed_size(message);
  grpc_slice slice = grpc_slice_malloc(size);
  if (size) protobuf_c_message_pack(message, GRPC_SLICE_START_PTR(slice));
  grpc_byte_buffer *buffer = grpc_raw_byte_buffer_create(&slice, 1);
  grpc_slice_unref(slice);
  if (len) *len = size;
  return buffer;
}

static const grpc_slice *find(const grpc_metadata_array *array, const char *key) {
  size_t len = strlen(key);
  for (size_t i = 0; i < array->count; i++) {
    const grpc_slice *k = &array->metadata[i].key;
    if (GRPC_SLICE_LENGTH(*k) == len && memcmp(GRPC_SLICE_START_PTR(*k), key, len) == 0) {
      return &array->metadata[i].value;
    }
  }
  return NULL;
}

char *mob__metadata_get(const grpc_metadata_array *array, const char *key) {
  const grpc_slice *value = find(array, key);
  if (!value) return NULL;
  return mob_strndup((const char *)GRPC_SLICE_START_PTR(*value), GRPC_SLICE_LENGTH(*value));
}

const char *mob__metadata_peek(const mob_rpc_gate_info_t *info, const char *key, char *buf,
                               size_t cap) {
  const grpc_slice *value = find(info->impl, key);
  if (!value) return NULL;
  size_t len = GRPC_SLICE_LENGTH(*value);
  if (len >= cap) len = cap - 1;
  memcpy(buf, GRPC_SLICE_START_PTR(*value), len);
  buf[len] = 0;
  return buf;
}

struct mob__arena_block {
  mob__arena_block_t *next;
  _Alignas(16) uint8_t data[];
};

static void *arena_alloc(void *data, size_t size) {
  mob__arena_t *arena = data;
  size = (size + 15) & ~(size_t)15;
  if (size > (size_t)(arena->end - arena->at)) {
    size_t room = size > 4096 ? size : 4096;
    mob__arena_block_t *block = mob_malloc(sizeof *block + room);
    block->next = arena->blocks;
    arena->blocks = block;
    if (size > 4096) return block->data; // keeps the current block's rest in use
    arena->at = block->data;
    arena->end = block->data + room;
  }
  void *result = arena->at;
  arena->at += size;
  return result;
}

static void arena_keep(void *data, void *ptr) {
  (void)data;
  (void)ptr;
}

void mob__arena_init(mob__arena_t *arena, void *first, size_t size) {
  arena->allocator = (ProtobufCAllocator){arena_alloc, arena_keep, arena};
  arena->blocks = NULL;
  arena->at = first;
  arena->end = arena->at + size;
}

void mob__arena_free(mob__arena_t *arena) {
  while (arena->blocks) {
    mob__arena_block_t *next = arena->blocks->next;
    free(arena->blocks);
    arena->blocks = next;
  }
}
