#include "golden_weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/ops.h"
#include "engine/model/family.h"
#include "engine/model/half.h"
#include "runtime/base/buf.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"

typedef struct writer {
  const mob_model_desc_t *desc;
  const char *dtype; // "f32", "bf16", "f16", "fp8"
  uint64_t seed;
  mob_buf_t header, data;
} writer_t;

static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

// Of a tensor; value_hash() of its elements.
static uint64_t name_hash(const char *name, uint64_t seed) {
  uint64_t h = 0xcbf29ce484222325u ^ seed;
  for (; *name; name++) h = (h ^ (uint8_t)*name) * 0x100000001b3u;
  return h;
}

static uint64_t value_hash(uint64_t tensor, int64_t i) {
  return mix(tensor + (uint64_t)i * 0xd1342543de82ef95u);
}

static int small_of(uint64_t hash) { // -7..7
  return (int)(hash & 7) + (int)(hash >> 3 & 7) - 7;
}

static bool ends(const char *text, const char *tail) {
  size_t n = strlen(text), m = strlen(tail);
  return n >= m && strcmp(text + n - m, tail) == 0;
}

static float scale_of(const mob_slot_t *slot) {
  if (slot->id == MOB_W_EMBED) return 1.0f / 32;
  double gain = slot->id == MOB_W_HEAD || slot->id == MOB_W_ROUTER ? 2.0 : 1.0;
  return (float)exp2(-nearbyint(log2(3.24 * sqrt((double)slot->cols) / gain)));
}

static void begin_tensor(writer_t *w, const char *name, const char *dtype, int64_t rows,
                         int64_t cols, size_t bytes) {
  mob_buf_printf(&w->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld",
                 w->header.len > 1 ? "," : "", name, dtype, (long long)rows);
  if (cols) mob_buf_printf(&w->header, ",%lld", (long long)cols);
  mob_buf_printf(&w->header, "],\"data_offsets\":[%zu,%zu]}", w->data.len, w->data.len + bytes);
}

static uint8_t e4m3_of(int k) { // -7..7, exact
  uint8_t sign = k < 0 ? 0x80 : 0;
  for (int code = 0; code < 127; code++)
    if (mob_e4m3_to_f32((uint8_t)code) == (float)abs(k)) return sign | (uint8_t)code;
  abort();
}

// As many bytes more of the file.
static uint8_t *grow(writer_t *w, size_t bytes) {
  mob_buf_reserve(&w->data, bytes);
  w->data.len += bytes;
  return (uint8_t *)w->data.data + w->data.len - bytes;
}

static void put_fp8(writer_t *w, const mob_slot_t *slot, float scale) {
  char name[160];
  uint8_t codes[15];
  int64_t rows = (slot->rows + 127) / 128, cols = (slot->cols + 127) / 128;
  int64_t count = slot->rows * slot->cols;
  uint64_t tensor = name_hash(slot->name, w->seed);
  for (int k = 0; k < 15; k++) codes[k] = e4m3_of(k - 7);
  begin_tensor(w, slot->name, "F8_E4M3", slot->rows, slot->cols, (size_t)count);
  uint8_t *to = grow(w, (size_t)count);
  for (int64_t i = 0; i < count; i++) to[i] = codes[small_of(value_hash(tensor, i)) + 7];
  snprintf(name, sizeof name, "%s_scale_inv", slot->name);
  tensor = name_hash(name, w->seed);
  begin_tensor(w, name, "F32", rows, cols, (size_t)(rows * cols) * 4);
  to = grow(w, (size_t)(rows * cols) * 4);
  for (int64_t i = 0; i < rows * cols; i++) {
    float value = (8.0f + (float)(value_hash(tensor, i) & 7)) / 8.0f * scale;
    memcpy(to + 4 * i, &value, 4);
  }
}

static mob_status write_slot(void *arg, const mob_slot_t *slot) {
  writer_t *w = arg;
  if (slot->optional) return MOB_OK; // tied
  bool vector = slot->cols == 1, bias = slot->id == MOB_W_ROUTER_BIAS;
  bool plain =
      vector || slot->id == MOB_W_EMBED || slot->id == MOB_W_HEAD || slot->id == MOB_W_ROUTER;
  bool fp8 = strcmp(w->dtype, "fp8") == 0;
  float scale = vector ? ends(slot->name, "norm.weight") ? 1 / 16.0f
                         : bias                          ? 1 / 64.0f
                                                         : 1 / 32.0f
                       : scale_of(slot);
  float base = vector && ends(slot->name, "norm.weight") ? 1.0f : 0.0f;
  if (fp8 && !plain) {
    put_fp8(w, slot, scale);
    return MOB_OK;
  }
  const char *dtype = bias || strcmp(w->dtype, "f32") == 0 ? "F32"
                      : strcmp(w->dtype, "f16") == 0       ? "F16"
                                                           : "BF16";
  bool f32 = strcmp(dtype, "F32") == 0, bf16 = strcmp(dtype, "BF16") == 0;
  int64_t count = slot->rows * slot->cols;
  size_t size = f32 ? 4 : 2;
  uint64_t tensor = name_hash(slot->name, w->seed);
  uint8_t *to;
  begin_tensor(w, slot->name, dtype, slot->rows, vector ? 0 : slot->cols, (size_t)count * size);
  to = grow(w, (size_t)count * size);
  for (int64_t i = 0; i < count; i++, to += size) {
    float value = base + scale * (float)small_of(value_hash(tensor, i));
    uint16_t half = f32 ? 0 : bf16 ? mob_f32_to_bf16(value) : mob_f32_to_f16(value);
    memcpy(to, f32 ? (void *)&value : (void *)&half, size);
  }
  return MOB_OK;
}

static mob_status write_file(const char *dir, const char *name, const void *data, size_t len) {
  char *path = mob_path_join(dir, name);
  mob_status status = mob_file_write(path, data, len);
  free(path);
  return status;
}

mob_status golden_write_model(const json_t *case_, const char *dir) {
  const json_t *config = json_object_get(case_, "config");
  mob_model_desc_t desc = {0};
  const mob_family_t *family;
  writer_t w = {.desc = &desc,
                .dtype = json_string_value(json_object_get(case_, "dtype")),
                .seed = (uint64_t)json_integer_value(json_object_get(case_, "seed"))};
  mob_status status;
  MOB_TRY_GOTO(mob_family_find(config, &family), status, done);
  MOB_TRY_GOTO(family->describe(config, &desc), status, done);
  mob_buf_putc(&w.header, '{');
  for (int layer = -1; layer < desc.n_layers; layer++)
    MOB_TRY_GOTO(family->slots(&desc, layer, write_slot, &w), status, done);
  mob_buf_putc(&w.header, '}');
  while (w.header.len % 8) mob_buf_putc(&w.header, ' ');
  mob_buf_t file = {0};
  uint64_t length = w.header.len;
  mob_buf_append(&file, &length, 8);
  mob_buf_append(&file, w.header.data, w.header.len);
  mob_buf_append(&file, w.data.data, w.data.len);
  status = write_file(dir, "model.safetensors", file.data, file.len);
  mob_buf_free(&file);
  if (status == MOB_OK) {
    char *text = json_dumps(config, 0);
    status = write_file(dir, "config.json", text, strlen(text));
    free(text);
  }
done:
  mob_buf_free(&w.header);
  mob_buf_free(&w.data);
  mob_model_desc_clear(&desc);
  return status;
}
