#include "runtime/rpc/message.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"

mob_status mob_pb_unpack(const ProtobufCMessageDescriptor *desc, const void *data, size_t len,
                         void *out_message_pointer) {
  MOB_TRY(mob_pb_check(desc, data, len));
  ProtobufCMessage *message = protobuf_c_message_unpack(desc, NULL, len, data);
  if (!message) return mob_fail(MOB_E_FORMAT, "%zu bytes are no message %s", len, desc->name);
  *(void **)out_message_pointer = message;
  return MOB_OK;
}

void mob_pb_free(void *message) {
  if (message) protobuf_c_message_free_unpacked(message, NULL);
}

void *mob_pb_pack(const void *message, size_t *len) {
  *len = protobuf_c_message_get_packed_size(message);
  uint8_t *data = mob_malloc(*len + 1);
  protobuf_c_message_pack(message, data);
  return data;
}

void *mob_pb_clone(const void *message) {
  const ProtobufCMessage *from = message;
  size_t len;
  void *data = mob_pb_pack(from, &len);
  ProtobufCMessage *copy = protobuf_c_message_unpack(from->descriptor, NULL, len, data);
  MOB_ASSERT(copy != NULL);
  free(data);
  return copy;
}

bool mob_pb_bytes_equal(ProtobufCBinaryData a, const void *data, size_t len) {
  return a.len == len && (len == 0 || memcmp(a.data, data, len) == 0);
}

ProtobufCBinaryData mob_pb_bytes_dup(const void *data, size_t len) {
  ProtobufCBinaryData copy = {.len = len, .data = len ? mob_malloc(len) : NULL};
  if (len) memcpy(copy.data, data, len);
  return copy;
}

void mob_pb_set_bytes(ProtobufCBinaryData *field, const void *data, size_t len) {
  ProtobufCBinaryData copy = mob_pb_bytes_dup(data, len); // first: data may lie in field
  free(field->data);
  *field = copy;
}

void mob_pb_set_string(char **field, const char *value) {
  char *copy = mob_strdup(value ? value : "");
  if (*field != (char *)protobuf_c_empty_string) free(*field);
  *field = copy;
}

static mob_pb_double_t *find_double(mob_pb_double_t *const *entries, size_t n, const char *key) {
  for (size_t i = 0; i < n; i++) {
    if (strcmp(entries[i]->key, key) == 0) return entries[i];
  }
  return NULL;
}

double mob_pb_double_get(mob_pb_double_t *const *entries, size_t n, const char *key) {
  const mob_pb_double_t *entry = find_double(entries, n, key);
  return entry ? entry->value : 0;
}

bool mob_pb_double_has(mob_pb_double_t *const *entries, size_t n, const char *key) {
  return find_double(entries, n, key) != NULL;
}

void mob_pb_double_put(mob_pb_double_t ***entries, size_t *n, const char *key, double value) {
  mob_pb_double_t *entry = find_double(*entries, *n, key);
  if (!entry) {
    *entries = mob_realloc(*entries, (*n + 1) * sizeof **entries);
    entry = MOB_NEW(mob_pb_double_t);
    ray__rpc__double_entry__init(entry);
    entry->key = mob_strdup(key);
    (*entries)[(*n)++] = entry;
  }
  entry->value = value;
}

void mob_pb_double_clear(mob_pb_double_t ***entries, size_t *n) {
  for (size_t i = 0; i < *n; i++) mob_pb_free((*entries)[i]);
  free(*entries);
  *entries = NULL;
  *n = 0;
}

void mob_pb_double_copy(mob_pb_double_t ***entries, size_t *n, mob_pb_double_t *const *from,
                        size_t count) {
  mob_pb_double_clear(entries, n);
  for (size_t i = 0; i < count; i++) mob_pb_double_put(entries, n, from[i]->key, from[i]->value);
}

static mob_pb_string_t *find_string(mob_pb_string_t *const *entries, size_t n, const char *key) {
  for (size_t i = 0; i < n; i++) {
    if (strcmp(entries[i]->key, key) == 0) return entries[i];
  }
  return NULL;
}

const char *mob_pb_string_get(mob_pb_string_t *const *entries, size_t n, const char *key) {
  const mob_pb_string_t *entry = find_string(entries, n, key);
  return entry ? entry->value : NULL;
}

void mob_pb_string_put(mob_pb_string_t ***entries, size_t *n, const char *key, const char *value) {
  mob_pb_string_t *entry = find_string(*entries, *n, key);
  if (!entry) {
    *entries = mob_realloc(*entries, (*n + 1) * sizeof **entries);
    entry = MOB_NEW(mob_pb_string_t);
    ray__rpc__string_entry__init(entry);
    entry->key = mob_strdup(key);
    (*entries)[(*n)++] = entry;
  }
  mob_pb_set_string(&entry->value, value);
}

void mob_pb_string_clear(mob_pb_string_t ***entries, size_t *n) {
  for (size_t i = 0; i < *n; i++) mob_pb_free((*entries)[i]);
  free(*entries);
  *entries = NULL;
  *n = 0;
}

const char *mob_pb_death_text(const Ray__Rpc__ActorDeathCause *cause) {
  if (!cause) return NULL;
  switch (cause->context_case) {
  case RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_CREATION_TASK_FAILURE_CONTEXT:
    return cause->creation_task_failure_context->formatted_exception_string;
  case RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_RUNTIME_ENV_FAILED_CONTEXT:
    return cause->runtime_env_failed_context->error_message;
  case RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_ACTOR_DIED_ERROR_CONTEXT:
    return cause->actor_died_error_context->error_message;
  case RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_ACTOR_UNSCHEDULABLE_CONTEXT:
    return cause->actor_unschedulable_context->error_message;
  case RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_OOM_CONTEXT:
    return cause->oom_context->error_message;
  default:
    return NULL;
  }
}
