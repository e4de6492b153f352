#include "tests/fuzz/message_maker.h"

#include <math.h>
#include <string.h>

#include "ray/ray_syncer.pb-c.h"
#include "runtime/base/mem.h"
#include "runtime/gcs/ids.h"
#include "runtime/rpc/message.h"

enum { MAX_DEPTH = 8 };

static void fill(ProtobufCMessage *message, source_t *in, int depth);

static void *make(const ProtobufCMessageDescriptor *type, source_t *in, int depth) {
  ProtobufCMessage *message = mob_calloc(1, type->sizeof_message);
  protobuf_c_message_init(type, message);
  if (depth < MAX_DEPTH) fill(message, in, depth);
  return message;
}

void *make_message(const ProtobufCMessageDescriptor *type, source_t *in) {
  return make(type, in, 0);
}

// ---------------------------------------------------------------------------------------- scalars

static int64_t make_integer(source_t *in) {
  static const int64_t edges[] = {-1,         INT32_MAX, INT32_MIN,     INT64_MAX,     INT64_MIN,
                                  UINT32_MAX, 65535,     1000000000000, 1700000000000, 10000};
  uint8_t b = take_byte(in);
  return b < 128 ? b : edges[b % MOB_LEN(edges)];
}

static double make_double(source_t *in) {
  static const double edges[] = {-1, NAN, INFINITY, -INFINITY, 1e300, 1e-300, 9.2e14, 0.00001};
  uint8_t b = take_byte(in);
  return b < 192 ? b / 4.0 : edges[b % MOB_LEN(edges)];
}

static char *make_string(source_t *in) {
  static const char *const words[] = {
      "",       "CPU",         "GPU",  "memory",  "node:127.0.0.1", "bundle",       "127.0.0.1",
      "::1",    "default",     "name", "session", "cluster",        "{\"a\": [1]}", "in(\"a\",b)",
      "!in(x)", "h\xc3\xa9llo"};
  uint8_t b = take_byte(in);
  if (b < 192) return mob_strdup(words[b % MOB_LEN(words)]);
  if (b < 196) { // long, its letters of two bytes
    size_t len = (size_t)300 << 2 * (b - 192);
    char *text = mob_malloc(2 * len + 2);
    for (size_t i = 0; i < 2 * len; i += 2) memcpy(text + 1 + i, "\xc3\xa9", 2);
    text[0] = 'x';
    text[2 * len + 1] = 0;
    return text;
  }
  size_t len = b % 16;
  char *text = mob_malloc(len + 1);
  for (size_t i = 0; i < len; i++) text[i] = (char)(' ' + take_byte(in) % 95);
  text[len] = 0;
  return text;
}

static bool ends_with(const char *text, const char *end) {
  size_t a = strlen(text), b = strlen(end);
  return a >= b && strcmp(text + a - b, end) == 0;
}

static size_t id_size(const char *field, source_t *in) {
  static const struct {
    const char *end;
    size_t size;
  } sizes[] = {{"job_id", MOB_JOB_ID_SIZE},   {"actor_id", MOB_ACTOR_ID_SIZE},
               {"group_id", MOB_PG_ID_SIZE},  {"lease_id", MOB_LEASE_ID_SIZE},
               {"task_id", MOB_TASK_ID_SIZE}, {"node_id", MOB_NODE_ID_SIZE},
               {"_id", MOB_WORKER_ID_SIZE},   {"_ids", MOB_WORKER_ID_SIZE}};
  if (strcmp(field, "key_id") == 0 || strcmp(field, "id") == 0)
    return sizes[take_byte(in) % 6].size;
  for (size_t i = 0; i < MOB_LEN(sizes); i++)
    if (ends_with(field, sizes[i].end)) return sizes[i].size;
  return 0;
}

static ProtobufCBinaryData make_bytes(const char *field, source_t *in, int depth) {
  ProtobufCBinaryData out = {0};
  if (strcmp(field, "sync_message") == 0) {
    void *view = make(&ray__rpc__syncer__resource_view_sync_message__descriptor, in, depth + 1);
    out.data = mob_pb_pack(view, &out.len);
    mob_pb_free(view);
    return out;
  }
  out.len = id_size(field, in);
  uint8_t b = take_byte(in);
  if (b == 0xef &&
      strcmp(field, "key") == 0) { // the one key whose value is made anew for every reader
    out.data = (uint8_t *)mob_strdup("__autoscaling_status");
    out.len = strlen((char *)out.data);
    return out;
  }
  if (out.len == 0 || b >= 0xf0) out.len = b % 16; // no id, or one of a wrong length
  out.data = mob_malloc(out.len + 1);
  memset(out.data, b >= 0xe0 ? 0xff : 1 + b % 4, out.len);
  return out;
}

// ----------------------------------------------------------------------------------------- fields

static size_t size_of(ProtobufCType type) {
  switch (type) {
  case PROTOBUF_C_TYPE_SINT64:
  case PROTOBUF_C_TYPE_SFIXED64:
  case PROTOBUF_C_TYPE_INT64:
  case PROTOBUF_C_TYPE_UINT64:
  case PROTOBUF_C_TYPE_FIXED64:
  case PROTOBUF_C_TYPE_DOUBLE:
    return 8;
  case PROTOBUF_C_TYPE_STRING:
  case PROTOBUF_C_TYPE_MESSAGE:
    return sizeof(void *);
  case PROTOBUF_C_TYPE_BYTES:
    return sizeof(ProtobufCBinaryData);
  default:
    return 4; // 32 bits, floats, enums, protobuf_c_boolean
  }
}

static void make_value(const ProtobufCFieldDescriptor *field, void *to, source_t *in, int depth) {
  switch (field->type) {
  case PROTOBUF_C_TYPE_MESSAGE:
    *(void **)to = make(field->descriptor, in, depth + 1);
    return;
  case PROTOBUF_C_TYPE_STRING:
    *(char **)to = make_string(in);
    return;
  case PROTOBUF_C_TYPE_BYTES:
    *(ProtobufCBinaryData *)to = make_bytes(field->name, in, depth);
    return;
  case PROTOBUF_C_TYPE_BOOL:
    *(protobuf_c_boolean *)to = take_byte(in) & 1;
    return;
  case PROTOBUF_C_TYPE_DOUBLE:
    *(double *)to = make_double(in);
    return;
  case PROTOBUF_C_TYPE_FLOAT:
    *(float *)to = (float)make_double(in);
    return;
  case PROTOBUF_C_TYPE_ENUM: {
    const ProtobufCEnumDescriptor *values = field->descriptor;
    unsigned b = take_byte(in) % (values->n_values + 1); // the last: a value of a newer version
    *(int *)to = b < values->n_values ? values->values[b].value : 99;
    return;
  }
  default: {
    int64_t v = make_integer(in);
    memcpy(to, &v, size_of(field->type));
  }
  }
}

static void set_field(ProtobufCMessage *message, const ProtobufCFieldDescriptor *field,
                      source_t *in, int depth) {
  uint8_t *base = (uint8_t *)message, *member = base + field->offset;
  size_t size = size_of(field->type);
  if (field->label == PROTOBUF_C_LABEL_REPEATED) {
    size_t *n = (size_t *)(base + field->quantifier_offset);
    uint8_t **list = (uint8_t **)member;
    *list = mob_realloc(*list, (*n + 1) * size);
    make_value(field, *list + *n * size, in, depth);
    ++*n;
    return;
  }
  if (field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) {
    uint32_t *which = (uint32_t *)(base + field->quantifier_offset);
    if (*which) return;
    *which = field->id;
    memset(member, 0, size);
  } else if (field->type == PROTOBUF_C_TYPE_MESSAGE) {
    if (*(void **)member) return;
  } else if (field->type == PROTOBUF_C_TYPE_STRING) {
    if (*(char **)member && *(char **)member != (char *)protobuf_c_empty_string) return;
  } else if (field->type == PROTOBUF_C_TYPE_BYTES) {
    if (((ProtobufCBinaryData *)member)->data) return;
  }
  if (field->label == PROTOBUF_C_LABEL_OPTIONAL && !(field->flags & PROTOBUF_C_FIELD_FLAG_ONEOF) &&
      field->type != PROTOBUF_C_TYPE_MESSAGE && field->type != PROTOBUF_C_TYPE_STRING) {
    *(protobuf_c_boolean *)(base + field->quantifier_offset) = 1;
  }
  make_value(field, member, in, depth);
}

// How many fields, then each with its place in the descriptor.
static void fill(ProtobufCMessage *message, source_t *in, int depth) {
  const ProtobufCMessageDescriptor *type = message->descriptor;
  if (type->n_fields == 0) return;
  for (int left = take_byte(in) % 16; left > 0 && in->at < in->end; left--)
    set_field(message, &type->fields[take_byte(in) % type->n_fields], in, depth);
}
