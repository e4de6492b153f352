// Walks a serialized message along its descriptor and looks at every string. protobuf-c checks
// neither UTF-8 nor NULs, which every other implementation of proto3 refuses or keeps.
#include <string.h>

#include "runtime/rpc/message.h"

enum { MAX_DEPTH = 64 };

static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *value) {
  uint64_t v = 0;
  for (int shift = 0; shift < 64 && *at < end; shift += 7) {
    uint8_t byte = *(*at)++;
    v |= (uint64_t)(byte & 0x7f) << shift;
    if (!(byte & 0x80)) {
      *value = v;
      return true;
    }
  }
  return false;
}

// Well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates, at most U+10FFFF) without NUL.
static bool is_clean_text(const uint8_t *s, size_t len) {
  size_t i = 0;
  while (i < len) {
    uint8_t c = s[i];
    if (c == 0) return false;
    if (c < 0x80) {
      i++;
      continue;
    }
    size_t more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : 1;
    if (c < 0xc2 || c > 0xf4 || more >= len - i) return false;
    for (size_t k = 1; k <= more; k++) {
      if ((s[i + k] & 0xc0) != 0x80) return false;
    }
    uint8_t d = s[i + 1];
    if ((c == 0xe0 && d < 0xa0) || (c == 0xed && d > 0x9f) || (c == 0xf0 && d < 0x90) ||
        (c == 0xf4 && d > 0x8f)) {
      return false;
    }
    i += more + 1;
  }
  return true;
}

static mob_status malformed(const ProtobufCMessageDescriptor *desc) {
  return mob_fail(MOB_E_FORMAT, "the bytes are no message %s", desc->name);
}

static mob_status check(const ProtobufCMessageDescriptor *desc, const uint8_t *at,
                        const uint8_t *end, int depth) {
  if (depth > MAX_DEPTH) return mob_fail(MOB_E_FORMAT, "%s is nested too deeply", desc->name);
  while (at < end) {
    uint64_t tag, size;
    if (!read_varint(&at, end, &tag) || tag >> 3 == 0 || tag >> 3 > 0x1fffffff)
      return malformed(desc);
    switch (tag & 7) {
    case 0:
      if (!read_varint(&at, end, &size)) return malformed(desc);
      continue;
    case 1:
      size = 8;
      break;
    case 5:
      size = 4;
      break;
    case 2:
      if (!read_varint(&at, end, &size)) return malformed(desc);
      break;
    default:
      return malformed(desc);
    }
    if (size > (uint64_t)(end - at)) return malformed(desc);
    const ProtobufCFieldDescriptor *field = NULL;
    if ((tag & 7) == 2) field = protobuf_c_message_descriptor_get_field(desc, (unsigned)(tag >> 3));
    if (field && field->type == PROTOBUF_C_TYPE_STRING && !is_clean_text(at, size)) {
      return mob_fail(MOB_E_FORMAT, "%s.%s is not UTF-8 text without NUL", desc->name, field->name);
    }
    if (field && field->type == PROTOBUF_C_TYPE_MESSAGE) {
      MOB_TRY(check(field->descriptor, at, at + size, depth + 1));
    }
    at += size;
  }
  return MOB_OK;
}

mob_status mob_pb_check(const ProtobufCMessageDescriptor *desc, const void *data, size_t len) {
  if (len == 0) return MOB_OK; // `data` may be NULL
  return check(desc, data, (const uint8_t *)data + len, 0);
}
