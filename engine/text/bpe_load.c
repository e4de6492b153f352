// Reading the "model" object of tokenizer.json. Every id, size and reference is checked: the file
// comes from outside.
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine/text/bpe.h"
#include "engine/text/byte_level.h"
#include "runtime/base/utf8.h"

#define MAX_ID (1 << 24)      // no vocabulary is near 16 million
#define MAX_MERGES (1u << 25) // nor has one this many merges
#define MAX_TOKEN 65536       // bytes

void mob__bpe_free(mob__bpe_t *bpe) {
  mob_vec_free(&bpe->tokens);
  mob_buf_free(&bpe->bytes);
  mob_map_free(&bpe->ids);
  free(bpe->merges);
  free(bpe->words);
  *bpe = (mob__bpe_t){0};
}

int32_t mob__bpe_id_of(const mob__bpe_t *bpe, const char *text, size_t len) {
  return (int32_t)(uintptr_t)mob_map_get(&bpe->ids, text, len) - 1;
}

mob_status mob__bpe_set_token(mob__bpe_t *bpe, int32_t id, const char *text, size_t len) {
  if (id < 0 || id >= MAX_ID) {
    return mob_fail(MOB_E_FORMAT, "token '%.100s' has id %d; ids go from 0 to %d", text, id,
                    MAX_ID - 1);
  }
  if (len > MAX_TOKEN) {
    return mob_fail(MOB_E_FORMAT, "token %d is %zu bytes long; at most %d are allowed", id, len,
                    MAX_TOKEN);
  }
  while (bpe->tokens.len <= (size_t)id) mob_vec_push(&bpe->tokens);
  mob__token_t *t = &bpe->tokens.at[id];
  size_t offset = bpe->bytes.len;
  bool decoded = mob__byte_level_decode(text, len, &bpe->bytes);
  if (!decoded) mob_buf_append(&bpe->bytes, text, len);
  t->offset = offset;
  t->len = (uint32_t)(bpe->bytes.len - offset);
  t->present = true;
  t->word = decoded;
  mob_map_put(&bpe->ids, text, len, (void *)(uintptr_t)(id + 1));
  return MOB_OK;
}

static mob_status load_vocab(mob__bpe_t *bpe, const json_t *model) {
  json_t *vocab = json_object_get(model, "vocab"), *value;
  if (!json_is_object(vocab)) return mob_fail(MOB_E_FORMAT, "model.vocab is not an object");
  const char *key;
  json_object_foreach(vocab, key, value) {
    json_int_t id = json_integer_value(value);
    if (!json_is_integer(value) || id < 0 || id >= MAX_ID) {
      return mob_fail(MOB_E_FORMAT,
                      "model.vocab: the id of '%.100s' is not a whole number from 0 to %d", key,
                      MAX_ID - 1);
    }
    if ((size_t)id < bpe->tokens.len && bpe->tokens.at[id].present) {
      return mob_fail(MOB_E_FORMAT,
                      "model.vocab: id %d is given twice, the second time to '%.100s'", (int)id,
                      key);
    }
    MOB_TRY(mob__bpe_set_token(bpe, (int32_t)id, key, strlen(key)));
  }
  bpe->model_count = json_object_size(vocab);
  for (int b = 0; b < 256; b++) {
    char text[4];
    bpe->byte_id[b] =
        mob__bpe_id_of(bpe, text, mob_utf8_encode(mob__byte_level_char((uint8_t)b), text));
  }
  return MOB_OK;
}

static void add_merge(mob__bpe_t *bpe, uint64_t pair, uint32_t rank, uint32_t id) {
  size_t mask = ((size_t)1 << (64 - bpe->merge_shift)) - 1;
  size_t i = pair * 0x9E3779B97F4A7C15u >> bpe->merge_shift;
  while (bpe->merges[i].pair != UINT64_MAX && bpe->merges[i].pair != pair) i = (i + 1) & mask;
  bpe->merges[i] =
      (mob__merge_t){.pair = pair, .rank = rank, .id = id}; // the last of equal pairs counts
}

// The two sides of a merge: ["a", "b"], or "a b" in older files.
static bool split_merge(json_t *merge, const char **left, size_t *left_len, const char **right,
                        size_t *right_len) {
  if (json_is_string(merge)) {
    *left = json_string_value(merge);
    const char *space = strchr(*left, ' ');
    if (!space || strchr(space + 1, ' ')) return false;
    *left_len = (size_t)(space - *left);
    *right = space + 1;
    *right_len = strlen(*right);
    return true;
  }
  json_t *a = json_array_get(merge, 0), *b = json_array_get(merge, 1);
  if (json_array_size(merge) != 2 || !json_is_string(a) || !json_is_string(b)) return false;
  *left = json_string_value(a);
  *left_len = json_string_length(a);
  *right = json_string_value(b);
  *right_len = json_string_length(b);
  return true;
}

static mob_status load_merges(mob__bpe_t *bpe, const json_t *model) {
  json_t *merges = json_object_get(model, "merges");
  if (!json_is_array(merges)) return mob_fail(MOB_E_FORMAT, "model.merges is not a list");
  size_t count = json_array_size(merges);
  if (count > MAX_MERGES) return mob_fail(MOB_E_FORMAT, "model.merges has %zu entries", count);
  unsigned bits = 4;
  while (((size_t)1 << bits) < count * 2) bits++;
  bpe->merge_shift = 64 - bits;
  bpe->merges = mob_malloc(sizeof *bpe->merges << bits);
  memset(bpe->merges, 0xFF, sizeof *bpe->merges << bits);
  mob_status status = MOB_OK;
  mob_buf_t both = {0};
  uint32_t rank = 0;
  for (size_t i = 0; i < count; i++) {
    json_t *merge = json_array_get(merges, i);
    const char *a, *b;
    size_t a_len, b_len;
    if (json_is_string(merge) && strncmp(json_string_value(merge), "#version", 8) == 0) continue;
    if (!split_merge(merge, &a, &a_len, &b, &b_len)) {
      status = mob_fail(MOB_E_FORMAT, "model.merges[%zu] is neither \"a b\" nor [\"a\", \"b\"]", i);
      break;
    }
    both.len = 0;
    mob_buf_append(&both, a, a_len);
    mob_buf_append(&both, b, b_len);
    int32_t left = mob__bpe_id_of(bpe, a, a_len), right = mob__bpe_id_of(bpe, b, b_len);
    int32_t id = mob__bpe_id_of(bpe, mob_buf_cstr(&both), both.len);
    if (left < 0 || right < 0 || id < 0) {
      status =
          mob_fail(MOB_E_FORMAT, "model.merges[%zu]: '%.*s' + '%.*s': %s is not in model.vocab", i,
                   (int)(a_len < 100 ? a_len : 100), a, (int)(b_len < 100 ? b_len : 100), b,
                   left < 0    ? "the left side"
                   : right < 0 ? "the right side"
                               : "the result");
      break;
    }
    add_merge(bpe, (uint64_t)(uint32_t)left << 32 | (uint32_t)right, rank++, (uint32_t)id);
  }
  mob_buf_free(&both);
  return status;
}

static void index_words(mob__bpe_t *bpe) {
  size_t slots = 16;
  while (slots < bpe->tokens.len * 2) slots *= 2;
  bpe->words = MOB_NEW_ARRAY(uint32_t, slots);
  bpe->word_mask = slots - 1;
  for (size_t id = 0; id < bpe->tokens.len; id++) {
    const mob__token_t *t = &bpe->tokens.at[id];
    if (!t->word) continue;
    size_t i = XXH3_64bits(bpe->bytes.data + t->offset, t->len) & bpe->word_mask;
    while (bpe->words[i]) i = (i + 1) & bpe->word_mask;
    bpe->words[i] = (uint32_t)id + 1;
  }
}

static bool is_set(json_t *value) {
  return value && !json_is_null(value) && !json_is_false(value) &&
         !(json_is_string(value) && json_string_length(value) == 0) &&
         !(json_is_number(value) && json_number_value(value) == 0);
}

mob_status mob__bpe_load(mob__bpe_t *bpe, const json_t *model) {
  if (!json_is_object(model)) return mob_fail(MOB_E_FORMAT, "\"model\" is not an object");
  const char *type = json_string_value(json_object_get(model, "type"));
  if (type && strcmp(type, "BPE") != 0) {
    return mob_fail(MOB_E_UNSUPPORTED, "model type '%.100s' is not supported; BPE is", type);
  }
  static const char *const refused[] = {"dropout", "continuing_subword_prefix",
                                        "end_of_word_suffix", "byte_fallback"};
  for (size_t i = 0; i < MOB_LEN(refused); i++) {
    if (is_set(json_object_get(model, refused[i]))) {
      return mob_fail(MOB_E_UNSUPPORTED, "model.%s is not supported", refused[i]);
    }
  }
  MOB_TRY(load_vocab(bpe, model));
  MOB_TRY(load_merges(bpe, model));
  bpe->unk = -1;
  json_t *unk = json_object_get(model, "unk_token");
  if (is_set(unk)) {
    if (!json_is_string(unk)) return mob_fail(MOB_E_FORMAT, "model.unk_token is not a string");
    bpe->unk = mob__bpe_id_of(bpe, json_string_value(unk), json_string_length(unk));
    if (bpe->unk < 0) {
      return mob_fail(MOB_E_FORMAT, "model.unk_token '%.100s' is not in model.vocab",
                      json_string_value(unk));
    }
  }
  bpe->fuse_unk = is_set(json_object_get(model, "fuse_unk"));
  bpe->ignore_merges = is_set(json_object_get(model, "ignore_merges"));
  if (bpe->ignore_merges) index_words(bpe);
  return MOB_OK;
}
