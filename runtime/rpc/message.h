// Helpers for protobuf-c messages: bytes, maps, copies, and the check of what arrived.
//
// A protobuf map is written in our .proto files as a repeated message of `1 key` and `2 value`; the
// entries of all string-to-double maps share one type, so one pair of helpers serves them all.
#ifndef MOB_RPC_MESSAGE_H
#define MOB_RPC_MESSAGE_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>

#include "ray/common.pb-c.h"
#include "ray/support.pb-c.h"
#include "runtime/base/status.h"

typedef Ray__Rpc__DoubleEntry mob_pb_double_t;
typedef Ray__Rpc__StringEntry mob_pb_string_t;

// Whether `data` is a well-formed message of type `desc` as far as strings go: all of them UTF-8
// without NUL, in nested messages too. MOB_E_FORMAT names the field.
mob_status mob_pb_check(const ProtobufCMessageDescriptor *desc, const void *data, size_t len);

// Checks and unpacks. Free with mob_pb_free().
mob_status mob_pb_unpack(const ProtobufCMessageDescriptor *desc, const void *data, size_t len,
                         void *out_message_pointer);
void mob_pb_free(void *message); // made by mob_pb_unpack() or mob_pb_clone(); NULL is allowed
void *mob_pb_clone(const void *message);
// The packed bytes; the caller frees them.
void *mob_pb_pack(const void *message, size_t *len);

static inline ProtobufCBinaryData mob_pb_bytes(const void *data, size_t len) {
  return (ProtobufCBinaryData){.len = len, .data = (uint8_t *)data};
}
bool mob_pb_bytes_equal(ProtobufCBinaryData a, const void *data, size_t len);
// An owned copy, for fields of a message that mob_pb_free() will free.
ProtobufCBinaryData mob_pb_bytes_dup(const void *data, size_t len);
void mob_pb_set_bytes(ProtobufCBinaryData *field, const void *data, size_t len); // frees the former
void mob_pb_set_string(char **field, const char *value);                         // frees the former

// Maps of a message that mob_pb_free() will free. A missing key reads as 0.
double mob_pb_double_get(mob_pb_double_t *const *entries, size_t n, const char *key);
bool mob_pb_double_has(mob_pb_double_t *const *entries, size_t n, const char *key);
void mob_pb_double_put(mob_pb_double_t ***entries, size_t *n, const char *key, double value);
void mob_pb_double_clear(mob_pb_double_t ***entries, size_t *n);
void mob_pb_double_copy(mob_pb_double_t ***entries, size_t *n, mob_pb_double_t *const *from,
                        size_t count);
const char *mob_pb_string_get(mob_pb_string_t *const *entries, size_t n,
                              const char *key); // or NULL
void mob_pb_string_put(mob_pb_string_t ***entries, size_t *n, const char *key, const char *value);
void mob_pb_string_clear(mob_pb_string_t ***entries, size_t *n);

// What an actor died of, in words; NULL where `cause` is NULL or says nothing.
const char *mob_pb_death_text(const Ray__Rpc__ActorDeathCause *cause);

#endif
