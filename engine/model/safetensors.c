#include "engine/model/safetensors.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"

enum { MAX_HEADER = 100000000 }; // as the reference implementation

// Every dtype of the format, and what it is here (MOB_DT_COUNT: cannot be a weight).
static const struct {
  const char *name;
  int bits;
  mob_dtype_t dtype;
} dtypes[] = {
    {"F32", 32, MOB_DT_F32},          {"BF16", 16, MOB_DT_BF16},
    {"F16", 16, MOB_DT_F16},          {"F8_E4M3", 8, MOB_DT_F8E4M3},
    {"BOOL", 8, MOB_DT_COUNT},        {"F4", 4, MOB_DT_COUNT},
    {"F6_E2M3", 6, MOB_DT_COUNT},     {"F6_E3M2", 6, MOB_DT_COUNT},
    {"U8", 8, MOB_DT_COUNT},          {"I8", 8, MOB_DT_COUNT},
    {"F8_E5M2", 8, MOB_DT_COUNT},     {"F8_E8M0", 8, MOB_DT_COUNT},
    {"F8_E4M3FNUZ", 8, MOB_DT_COUNT}, {"F8_E5M2FNUZ", 8, MOB_DT_COUNT},
    {"I16", 16, MOB_DT_COUNT},        {"U16", 16, MOB_DT_COUNT},
    {"I32", 32, MOB_DT_COUNT},        {"U32", 32, MOB_DT_COUNT},
    {"C64", 64, MOB_DT_COUNT},        {"F64", 64, MOB_DT_COUNT},
    {"I64", 64, MOB_DT_COUNT},        {"U64", 64, MOB_DT_COUNT},
};

typedef struct span {
  mob_tensor_t tensor;
  uint64_t begin, end;
} span_t;

static int by_begin(const void *a, const void *b) {
  const span_t *x = a, *y = b;
  if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
  if (x->end != y->end) return x->end < y->end ? -1 : 1;
  return strcmp(x->tensor.name, y->tensor.name);
}

// dtype, shape and the number of bytes that they make.
static mob_status read_type(const char *path, const char *name, const json_t *entry,
                            mob_tensor_t *tensor, uint64_t *bytes) {
  const json_t *dtype = json_object_get(entry, "dtype"), *shape = json_object_get(entry, "shape");
  if (!json_is_string(dtype))
    return mob_fail(MOB_E_FORMAT, "%s: tensor %s has no dtype string", path, name);
  size_t kind = 0;
  while (kind < MOB_LEN(dtypes) && strcmp(dtypes[kind].name, json_string_value(dtype)) != 0) kind++;
  if (kind == MOB_LEN(dtypes))
    return mob_fail(MOB_E_FORMAT, "%s: tensor %s has the unknown dtype %.32s", path, name,
                    json_string_value(dtype));
  if (!json_is_array(shape))
    return mob_fail(MOB_E_FORMAT, "%s: tensor %s has no shape array", path, name);
  tensor->dtype = dtypes[kind].dtype;
  tensor->dtype_name = dtypes[kind].name;
  tensor->rank = (int)json_array_size(shape);
  uint64_t count = 1;
  for (int i = 0; i < tensor->rank; i++) {
    const json_t *dim = json_array_get(shape, (size_t)i);
    if (!json_is_integer(dim) || json_integer_value(dim) < 0)
      return mob_fail(MOB_E_FORMAT, "%s: tensor %s: shape[%d] is not a size", path, name, i);
    if (i < 4) tensor->shape[i] = json_integer_value(dim);
    if (__builtin_mul_overflow(count, (uint64_t)json_integer_value(dim), &count))
      return mob_fail(MOB_E_FORMAT, "%s: tensor %s: its shape overflows 64 bits", path, name);
  }
  uint64_t bits;
  if (__builtin_mul_overflow(count, (uint64_t)dtypes[kind].bits, &bits) || bits % 8 != 0)
    return mob_fail(MOB_E_FORMAT,
                    "%s: tensor %s: its size is not a whole number of bytes or too large", path,
                    name);
  *bytes = bits / 8;
  return MOB_OK;
}

static mob_status read_entry(const char *path, const char *name, const json_t *entry, uint64_t room,
                             span_t *out) {
  if (!json_is_object(entry))
    return mob_fail(MOB_E_FORMAT, "%s: tensor %s is not described by an object", path, name);
  uint64_t bytes = 0;
  out->tensor.name = name;
  MOB_TRY(read_type(path, name, entry, &out->tensor, &bytes));
  const json_t *offsets = json_object_get(entry, "data_offsets");
  const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
  if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
      json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin))
    return mob_fail(MOB_E_FORMAT, "%s: tensor %s: data_offsets is not [begin, end]", path, name);
  out->begin = (uint64_t)json_integer_value(begin);
  out->end = (uint64_t)json_integer_value(end);
  if (out->end > room)
    return mob_fail(
        MOB_E_FORMAT,
        "%s: tensor %s ends at byte %llu of the data, but the file holds %llu: it is truncated",
        path, name, (unsigned long long)out->end, (unsigned long long)room);
  if (out->end - out->begin != bytes)
    return mob_fail(
        MOB_E_FORMAT, "%s: tensor %s: its shape and dtype take %llu bytes, its offsets give %llu",
        path, name, (unsigned long long)bytes, (unsigned long long)(out->end - out->begin));
  return MOB_OK;
}

static mob_status check_metadata(const char *path, const json_t *metadata) {
  if (!json_is_object(metadata))
    return mob_fail(MOB_E_FORMAT, "%s: __metadata__ is not an object", path);
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)metadata, key, value) {
    if (!json_is_string(value))
      return mob_fail(MOB_E_FORMAT, "%s: __metadata__ %s is not a string", path, key);
  }
  return MOB_OK;
}

// The spans must tile [0, room) exactly.
static mob_status check_tiling(const char *path, const span_t *spans, size_t count, uint64_t room) {
  uint64_t at = 0;
  for (size_t i = 0; i < count; i++) {
    if (spans[i].begin < at)
      return mob_fail(MOB_E_FORMAT, "%s: tensor %s overlaps the one before it", path,
                      spans[i].tensor.name);
    if (spans[i].begin > at)
      return mob_fail(MOB_E_FORMAT, "%s: there is a hole of %llu bytes before tensor %s", path,
                      (unsigned long long)(spans[i].begin - at), spans[i].tensor.name);
    at = spans[i].end;
  }
  if (at != room)
    return mob_fail(MOB_E_FORMAT, "%s: %llu bytes after the last tensor belong to none", path,
                    (unsigned long long)(room - at));
  return MOB_OK;
}

mob_status mob_safetensors_parse(const char *path, const void *bytes, size_t size,
                                 mob_safetensors_fn emit, void *arg) {
  const uint8_t *data = bytes;
  if (size < 8)
    return mob_fail(MOB_E_FORMAT, "%s: %zu bytes are too few for a safetensors file", path, size);
  static const char pointer[] = "version https://git-lfs.";
  if (size >= sizeof pointer - 1 && memcmp(data, pointer, sizeof pointer - 1) == 0) {
    return mob_fail(MOB_E_FORMAT,
                    "%s: this is a pointer of git-lfs, not the weights: run git lfs pull", path);
  }
  uint64_t length = 0;
  for (int i = 7; i >= 0; i--) length = length << 8 | data[i];
  if (length > MAX_HEADER || length > size - 8)
    return mob_fail(MOB_E_FORMAT, "%s: the header says it has %llu bytes, but the file has %zu%s",
                    path, (unsigned long long)length, size,
                    length > MAX_HEADER ? " (limit 100000000)" : "");
  if (length == 0 || data[8] != '{')
    return mob_fail(MOB_E_FORMAT, "%s: the header does not begin with '{'", path);

  json_error_t error;
  json_t *root = json_loadb((const char *)data + 8, (size_t)length, JSON_REJECT_DUPLICATES, &error);
  if (!json_is_object(root)) {
    json_decref(root);
    return mob_fail(MOB_E_FORMAT, "%s: header: %s", path, root ? "not an object" : error.text);
  }
  mob_status status = MOB_OK;
  span_t *spans = MOB_NEW_ARRAY(span_t, json_object_size(root) + 1);
  size_t count = 0;
  uint64_t room = size - 8 - length;
  const char *key;
  json_t *value;
  json_object_foreach(root, key, value) {
    if (strcmp(key, "__metadata__") == 0)
      MOB_TRY_GOTO(check_metadata(path, value), status, done);
    else
      MOB_TRY_GOTO(read_entry(path, key, value, room, &spans[count++]), status, done);
  }
  qsort(spans, count, sizeof *spans, by_begin);
  MOB_TRY_GOTO(check_tiling(path, spans, count, room), status, done);
  for (size_t i = 0; i < count; i++) {
    spans[i].tensor.offset = 8 + length + spans[i].begin;
    spans[i].tensor.data = data + spans[i].tensor.offset;
    spans[i].tensor.bytes = (size_t)(spans[i].end - spans[i].begin);
    MOB_TRY_GOTO(emit(arg, &spans[i].tensor), status, done);
  }
done:
  free(spans);
  json_decref(root);
  return status;
}
