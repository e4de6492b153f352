#include "engine/text/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine/text/tokenizer_internal.h"
#include "runtime/base/file.h"
#include "runtime/base/utf8.h"

#define MAX_FILE ((size_t)256 << 20)

void mob_tokenizer_close(mob_tokenizer_t *tok) {
  if (!tok) return;
  mob__bpe_free(&tok->bpe);
  mob__normalizer_free(&tok->normalizer);
  mob__pretokenizer_free(&tok->pretokenizer);
  for (size_t i = 0; i < tok->added.len; i++) free(tok->added.at[i].content);
  mob_vec_free(&tok->added);
  mob__trie_free(&tok->raw);
  mob__trie_free(&tok->normalized);
  mob_vec_free(&tok->prefix);
  mob_vec_free(&tok->suffix);
  free(tok);
}

static mob_status parse_json(const char *text, size_t len, const char *name, json_t **out) {
  json_error_t error;
  *out = json_loadb(text, len, JSON_ALLOW_NUL, &error);
  if (*out) return MOB_OK;
  return mob_fail(MOB_E_FORMAT, "%s line %d: %s", name, error.line, error.text);
}

mob_status mob_tokenizer_parse(const char *tokenizer_json, size_t len, const char *config_json,
                               size_t config_len, mob_tokenizer_t **out) {
  mob_status status = MOB_OK;
  json_t *json = NULL, *config = NULL;
  mob_tokenizer_t *tok = MOB_NEW(mob_tokenizer_t);
  MOB_TRY_GOTO(parse_json(tokenizer_json, len, "tokenizer.json", &json), status, done);
  if (config_json) {
    MOB_TRY_GOTO(parse_json(config_json, config_len, "tokenizer_config.json", &config), status,
                 done);
  }
  status = mob__tokenizer_load(tok, json, config);
  if (status != MOB_OK) mob_wrap(status, "tokenizer.json");
done:
  json_decref(json);
  json_decref(config);
  if (status != MOB_OK) {
    mob_tokenizer_close(tok);
    tok = NULL;
  }
  *out = tok;
  return status;
}

mob_status mob_tokenizer_open(const char *dir, mob_tokenizer_t **out) {
  mob_status status;
  mob_buf_t text = {0}, config = {0};
  char *path = mob_path_join(dir, "tokenizer.json");
  char *config_path = mob_path_join(dir, "tokenizer_config.json");
  *out = NULL;
  MOB_TRY_GOTO(mob_file_read(path, MAX_FILE, &text), status, done);
  if (mob_file_exists(config_path)) {
    MOB_TRY_GOTO(mob_file_read(config_path, MAX_FILE, &config), status, done);
  }
  status = mob_tokenizer_parse(mob_buf_cstr(&text), text.len,
                               config.len ? mob_buf_cstr(&config) : NULL, config.len, out);
  if (status != MOB_OK) mob_wrap(status, "%s", dir);
done:
  free(path);
  free(config_path);
  mob_buf_free(&text);
  mob_buf_free(&config);
  return status;
}

// Words repeat: the ids of those met in this call are copied from where they stand in the output.
typedef struct word_slot {
  const char *text;
  uint32_t len, count;
  size_t at; // index in the output
} word_slot_t;

typedef struct encoder {
  const mob_tokenizer_t *tok;
  mob__pretokenize_scratch_t pre;
  mob__bpe_scratch_t bpe;
  mob__segments_t raw, segments;
  word_slot_t *slots;
  size_t mask;
  MOB_VEC(char *) owned; // normalized texts: the slots point into them
} encoder_t;

static void encode_word(encoder_t *e, const char *word, size_t len, mob_ids_t *out) {
  if (len > 256) { // long words hardly repeat
    mob__bpe_encode(&e->tok->bpe, &e->bpe, word, len, out);
    return;
  }
  word_slot_t *slot = &e->slots[XXH3_64bits(word, len) & e->mask];
  if (slot->text && slot->len == len && memcmp(slot->text, word, len) == 0) {
    for (uint32_t i = 0; i < slot->count; i++) {
      int32_t id = out->at[slot->at + i];
      *mob_vec_push(out) = id;
    }
    return;
  }
  size_t at = out->len;
  mob__bpe_encode(&e->tok->bpe, &e->bpe, word, len, out);
  *slot = (word_slot_t){word, (uint32_t)len, (uint32_t)(out->len - at), at};
}

static mob_status encode_text(encoder_t *e, const char *text, size_t len, mob_ids_t *out) {
  MOB_TRY(mob__pretokenize(&e->tok->pretokenizer, &e->pre, text, len));
  for (size_t i = 0; i < e->pre.pieces.len; i++) {
    encode_word(e, e->pre.pieces.at[i].text, e->pre.pieces.at[i].len, out);
  }
  return MOB_OK;
}

static mob_status encode_raw(encoder_t *e, const char *text, size_t len, mob_ids_t *out) {
  const mob_tokenizer_t *tok = e->tok;
  const char *normal;
  size_t normal_len;
  char *owned;
  MOB_TRY(mob__normalize(&tok->normalizer, text, len, &normal, &normal_len, &owned));
  if (owned) *mob_vec_push(&e->owned) = owned;
  e->segments.len = 0;
  mob__added_tokens_split(&tok->added, &tok->normalized, normal, normal_len, &e->segments);
  for (size_t i = 0; i < e->segments.len; i++) {
    mob__segment_t s = e->segments.at[i];
    if (s.id >= 0) {
      *mob_vec_push(out) = s.id;
    } else {
      MOB_TRY(encode_text(e, s.text, s.len, out));
    }
  }
  return MOB_OK;
}

mob_status mob_tokenizer_encode(const mob_tokenizer_t *tok, const char *text, size_t len,
                                bool add_special, mob_ids_t *out) {
  size_t good = mob_utf8_valid_prefix(text, len);
  if (good != len) return mob_fail(MOB_E_INVALID, "the text is not UTF-8 at byte %zu", good);
  if (len > INT32_MAX) return mob_fail(MOB_E_INVALID, "a text of %zu bytes is too long", len);
  mob_status status = MOB_OK;
  encoder_t e = {.tok = tok};
  size_t slots = 64;
  while (slots < len / 8 && slots < 8192) slots *= 2;
  e.slots = MOB_NEW_ARRAY(word_slot_t, slots);
  e.mask = slots - 1;
  if (add_special) {
    for (size_t i = 0; i < tok->prefix.len; i++) *mob_vec_push(out) = tok->prefix.at[i];
  }
  mob__added_tokens_split(&tok->added, &tok->raw, text, len, &e.raw);
  for (size_t i = 0; i < e.raw.len; i++) {
    mob__segment_t s = e.raw.at[i];
    if (s.id >= 0) {
      *mob_vec_push(out) = s.id;
    } else {
      MOB_TRY_GOTO(encode_raw(&e, s.text, s.len, out), status, done);
    }
  }
  if (add_special) {
    for (size_t i = 0; i < tok->suffix.len; i++) *mob_vec_push(out) = tok->suffix.at[i];
  }
done:
  mob__pretokenize_scratch_free(&e.pre);
  mob__bpe_scratch_free(&e.bpe);
  mob_vec_free(&e.raw);
  mob_vec_free(&e.segments);
  for (size_t i = 0; i < e.owned.len; i++) free(e.owned.at[i]);
  mob_vec_free(&e.owned);
  free(e.slots);
  return status;
}

size_t mob_tokenizer_vocab_size(const mob_tokenizer_t *tok) {
  return tok->bpe.tokens.len;
}

int32_t mob_tokenizer_id_of(const mob_tokenizer_t *tok, const char *token) {
  return mob__bpe_id_of(&tok->bpe, token, strlen(token));
}

const char *mob_tokenizer_bytes_of(const mob_tokenizer_t *tok, int32_t id, size_t *len) {
  *len = 0;
  if (id < 0 || (size_t)id >= tok->bpe.tokens.len || !tok->bpe.tokens.at[id].present) return NULL;
  *len = tok->bpe.tokens.at[id].len;
  return (const char *)tok->bpe.bytes.data + tok->bpe.tokens.at[id].offset;
}

bool mob_tokenizer_is_special(const mob_tokenizer_t *tok, int32_t id) {
  return id >= 0 && (size_t)id < tok->bpe.tokens.len && tok->bpe.tokens.at[id].special;
}

int32_t mob_tokenizer_bos(const mob_tokenizer_t *tok) {
  return tok->bos;
}

int32_t mob_tokenizer_eos(const mob_tokenizer_t *tok) {
  return tok->eos;
}
