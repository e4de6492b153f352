// From tokenizer.json and tokenizer_config.json to a tokenizer.
#include <stdlib.h>
#include <string.h>

#include "engine/text/tokenizer_internal.h"
#define MOB_LOG_COMPONENT "text"
#include "runtime/base/log.h"
#include "runtime/base/utf8.h"

#define MAX_ADDED 1000000
#define MAX_DEPTH 8

// An added token like one of the same text that is there already replaces its flags. A new text
// that the vocabulary does not hold gets the first free id, which in a sound file is the one it
// declares.
static mob_status add_token(mob_tokenizer_t *tok, const char *text, size_t len,
                            mob__added_token_t flags) {
  if (len == 0) return MOB_OK;
  if (tok->added.len >= MAX_ADDED) return mob_fail(MOB_E_FORMAT, "too many added tokens");
  int32_t id = mob__bpe_id_of(&tok->bpe, text, len);
  if (id < 0) {
    id = (int32_t)tok->bpe.model_count;
    for (size_t i = 0; i < tok->added.len; i++) {
      if (tok->added.at[i].id >= id) id = tok->added.at[i].id + 1;
    }
    if ((size_t)id < tok->bpe.tokens.len && tok->bpe.tokens.at[id].present) {
      id = (int32_t)tok->bpe.tokens.len; // the vocabulary has holes: never take another token's id
    }
    bool word = false;
    MOB_TRY(mob__bpe_set_token(&tok->bpe, id, text, len));
    tok->bpe.tokens.at[id].word = word;
  }
  mob__token_t *token = &tok->bpe.tokens.at[id];
  token->added = true;
  token->special |= flags.special;
  flags.id = id;
  flags.len = len;
  for (size_t i = 0; i < tok->added.len; i++) {
    if (tok->added.at[i].id != id) continue;
    flags.content = tok->added.at[i].content;
    tok->added.at[i] = flags;
    return MOB_OK;
  }
  flags.content = mob_strndup(text, len);
  *mob_vec_push(&tok->added) = flags;
  return MOB_OK;
}

static mob_status flag_of(const json_t *json, const char *name, bool absent, bool *out) {
  json_t *value = json_object_get(json, name);
  if (value && !json_is_boolean(value)) {
    return mob_fail(MOB_E_FORMAT, "an added token's \"%s\" is not true or false", name);
  }
  *out = value ? json_is_true(value) : absent;
  return MOB_OK;
}

// `declared` is the id that the file gives, -1 for none.
static mob_status load_added_token(mob_tokenizer_t *tok, const json_t *json, json_int_t declared) {
  json_t *content = json_object_get(json, "content");
  if (!json_is_string(content)) {
    return mob_fail(MOB_E_FORMAT, "an added token's \"content\" is not a string");
  }
  mob__added_token_t t = {0};
  MOB_TRY(flag_of(json, "special", false, &t.special));
  MOB_TRY(flag_of(json, "single_word", false, &t.single_word));
  MOB_TRY(flag_of(json, "lstrip", false, &t.lstrip));
  MOB_TRY(flag_of(json, "rstrip", false, &t.rstrip));
  MOB_TRY(flag_of(json, "normalized", !t.special, &t.normalized));
  const char *text = json_string_value(content);
  size_t len = json_string_length(content);
  MOB_TRY(add_token(tok, text, len, t));
  int32_t id = mob__bpe_id_of(&tok->bpe, text, len);
  if (len && declared >= 0 && id != declared) {
    // `tokenizers` renumbers too, so models are trained with such ids.
    MOB_WARN("tokenizer.json: added token '%.100s' declares id %lld, but has id %d by its place",
             text, (long long)declared, id);
  }
  return MOB_OK;
}

static mob_status load_added_tokens(mob_tokenizer_t *tok, const json_t *json) {
  json_t *list = json_object_get(json, "added_tokens");
  if (!list || json_is_null(list)) return MOB_OK;
  if (!json_is_array(list)) return mob_fail(MOB_E_FORMAT, "\"added_tokens\" is not a list");
  size_t count = json_array_size(list);
  if (count > MAX_ADDED) return mob_fail(MOB_E_FORMAT, "too many added tokens: %zu", count);
  for (size_t i = 0; i < count; i++) {
    json_t *token = json_array_get(list, i), *id = json_object_get(token, "id");
    if (!json_is_integer(id) || json_integer_value(id) < 0) {
      return mob_fail(MOB_E_FORMAT, "added_tokens[%zu] has no \"id\" that is a whole number >= 0",
                      i);
    }
    MOB_TRY(load_added_token(tok, token, json_integer_value(id)));
  }
  return MOB_OK;
}

// A token in tokenizer_config.json: text, or an object with "content".
static const char *config_text(const json_t *config, const char *name, size_t *len) {
  json_t *value = json_object_get(config, name);
  if (json_is_object(value)) value = json_object_get(value, "content");
  if (len) *len = json_string_length(value);
  return json_string_value(value);
}

// transformers adds what the configuration knows and tokenizer.json does not.
static mob_status load_config_tokens(mob_tokenizer_t *tok, const json_t *config) {
  json_t *decoder = json_object_get(config, "added_tokens_decoder"), *value;
  const char *key;
  if (json_is_object(decoder)) {
    json_object_foreach(decoder, key, value) {
      json_t *content = json_object_get(value, "content");
      const char *text = json_string_value(content);
      if (!text) {
        return mob_fail(MOB_E_FORMAT,
                        "tokenizer_config.json: added_tokens_decoder['%.20s'] has no "
                        "\"content\"",
                        key);
      }
      // Of a token that is there already the configuration's flags count.
      MOB_TRY(load_added_token(tok, value, -1));
    }
  }
  static const char *const names[] = {"bos_token", "eos_token", "pad_token", "unk_token"};
  for (size_t i = 0; i < MOB_LEN(names); i++) {
    size_t len;
    const char *text = config_text(config, names[i], &len);
    if (!text || mob__bpe_id_of(&tok->bpe, text, len) >= 0) continue;
    MOB_TRY(add_token(tok, text, len, (mob__added_token_t){.special = true}));
  }
  return MOB_OK;
}

static mob_status append_ids(const json_t *special, const json_t *name, mob_ids_t *out,
                             size_t limit) {
  json_t *ids = json_object_get(json_object_get(special, json_string_value(name)), "ids");
  if (!json_is_string(name) || !json_is_array(ids)) {
    return mob_fail(MOB_E_FORMAT, "post_processor: special token '%.100s' is not in special_tokens",
                    json_is_string(name) ? json_string_value(name) : "");
  }
  for (size_t i = 0; i < json_array_size(ids); i++) {
    json_int_t id = json_integer_value(json_array_get(ids, i));
    if (!json_is_integer(json_array_get(ids, i)) || id < 0 || (size_t)id >= limit) {
      return mob_fail(MOB_E_FORMAT, "post_processor: the id of '%.100s' is not in the vocabulary",
                      json_string_value(name));
    }
    *mob_vec_push(out) = (int32_t)id;
  }
  return MOB_OK;
}

static mob_status load_template(mob_tokenizer_t *tok, const json_t *json) {
  json_t *single = json_object_get(json, "single");
  json_t *special = json_object_get(json, "special_tokens");
  if (!json_is_array(single)) {
    return mob_fail(MOB_E_FORMAT, "post_processor TemplateProcessing: \"single\" is not a list");
  }
  mob_status status = MOB_OK;
  mob_ids_t front = {0}, back = {0};
  int texts = 0;
  for (size_t i = 0; i < json_array_size(single); i++) {
    json_t *part = json_array_get(single, i);
    json_t *token = json_object_get(part, "SpecialToken"),
           *text = json_object_get(part, "Sequence");
    const char *which = json_string_value(json_object_get(text, "id"));
    if (token) {
      MOB_TRY_GOTO(append_ids(special, json_object_get(token, "id"), texts ? &back : &front,
                              tok->bpe.tokens.len),
                   status, done);
    } else if (which && strcmp(which, "A") == 0) {
      texts++;
    } else {
      texts = -1;
      break;
    }
  }
  if (texts != 1) {
    status = mob_fail(MOB_E_UNSUPPORTED,
                      "post_processor TemplateProcessing: \"single\" must hold sequence A once");
    goto done;
  }
  if (tok->prefix.len || tok->suffix.len) {
    status = mob_fail(MOB_E_UNSUPPORTED, "post_processor: more than one TemplateProcessing");
    goto done;
  }
  tok->prefix = front;
  tok->suffix = back;
  return MOB_OK;
done:
  mob_vec_free(&front);
  mob_vec_free(&back);
  return status;
}

static mob_status load_post_processor(mob_tokenizer_t *tok, const json_t *json, int depth) {
  if (!json || json_is_null(json)) return MOB_OK;
  const char *type = json_string_value(json_object_get(json, "type"));
  if (!type) return mob_fail(MOB_E_FORMAT, "post_processor has no \"type\"");
  if (depth > MAX_DEPTH) return mob_fail(MOB_E_FORMAT, "post_processor is nested too deeply");
  if (strcmp(type, "ByteLevel") == 0) return MOB_OK; // moves offsets, not ids
  if (strcmp(type, "TemplateProcessing") == 0) return load_template(tok, json);
  if (strcmp(type, "Sequence") == 0) {
    json_t *list = json_object_get(json, "processors");
    if (!json_is_array(list)) {
      return mob_fail(MOB_E_FORMAT, "post_processor Sequence: \"processors\" is not a list");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
      MOB_TRY(load_post_processor(tok, json_array_get(list, i), depth + 1));
    }
    return MOB_OK;
  }
  return mob_fail(
      MOB_E_UNSUPPORTED,
      "post_processor type '%.100s' is not supported; ByteLevel, TemplateProcessing and "
      "Sequence are",
      type);
}

static mob_status check_decoder(const json_t *json) {
  const char *type = json_string_value(json_object_get(json, "type"));
  if (type && strcmp(type, "Sequence") == 0) {
    json_t *list = json_object_get(json, "decoders");
    if (json_array_size(list) == 1) json = json_array_get(list, 0);
    type = json_string_value(json_object_get(json, "type"));
  }
  if (type && strcmp(type, "ByteLevel") == 0) return MOB_OK;
  return mob_fail(MOB_E_UNSUPPORTED, "decoder type '%.100s' is not supported; ByteLevel is",
                  type ? type : "none");
}

// add_bos_token and add_eos_token replace the post-processor. transformers does so whenever the
// configuration has one of them; its Llama classes (version 4) also without, with bos on and eos
// off.
static mob_status apply_config(mob_tokenizer_t *tok, const json_t *config) {
  size_t len;
  const char *bos = config_text(config, "bos_token", &len);
  if (bos) tok->bos = mob__bpe_id_of(&tok->bpe, bos, len);
  const char *eos = config_text(config, "eos_token", &len);
  if (eos) tok->eos = mob__bpe_id_of(&tok->bpe, eos, len);
  const char *class = json_string_value(json_object_get(config, "tokenizer_class"));
  bool llama =
      class && (strcmp(class, "LlamaTokenizer") == 0 || strcmp(class, "LlamaTokenizerFast") == 0);
  json_t *add_bos = json_object_get(config, "add_bos_token");
  json_t *add_eos = json_object_get(config, "add_eos_token");
  if (!llama && !json_is_boolean(add_bos) && !json_is_boolean(add_eos)) return MOB_OK;
  bool with_bos = json_is_boolean(add_bos) ? json_is_true(add_bos) : llama;
  tok->prefix.len = tok->suffix.len = 0;
  if (with_bos && tok->bos >= 0) *mob_vec_push(&tok->prefix) = tok->bos;
  if (json_is_true(add_eos) && tok->eos >= 0) *mob_vec_push(&tok->suffix) = tok->eos;
  return MOB_OK;
}

static mob_status index_added_tokens(mob_tokenizer_t *tok) {
  for (size_t i = 0; i < tok->added.len; i++) {
    const mob__added_token_t *t = &tok->added.at[i];
    if (!t->normalized) {
      mob__trie_add(&tok->raw, t->content, t->len, (int32_t)i);
      continue;
    }
    const char *text;
    size_t len;
    char *owned;
    MOB_TRY(mob__normalize(&tok->normalizer, t->content, t->len, &text, &len, &owned));
    mob__trie_add(&tok->normalized, text, len, (int32_t)i);
    free(owned);
  }
  return MOB_OK;
}

mob_status mob__tokenizer_load(mob_tokenizer_t *tok, const json_t *json, const json_t *config) {
  tok->bos = tok->eos = -1;
  mob__trie_init(&tok->raw);
  mob__trie_init(&tok->normalized);
  if (!json_is_object(json)) return mob_fail(MOB_E_FORMAT, "not a JSON object");
  MOB_TRY(mob__normalizer_load(&tok->normalizer, json_object_get(json, "normalizer")));
  MOB_TRY(mob__pretokenizer_load(&tok->pretokenizer, json_object_get(json, "pre_tokenizer")));
  MOB_TRY(check_decoder(json_object_get(json, "decoder")));
  MOB_TRY(mob__bpe_load(&tok->bpe, json_object_get(json, "model")));
  MOB_TRY(load_added_tokens(tok, json));
  MOB_TRY(load_post_processor(tok, json_object_get(json, "post_processor"), 0));
  if (config) {
    if (!json_is_object(config)) {
      return mob_fail(MOB_E_FORMAT, "tokenizer_config.json is not a JSON object");
    }
    MOB_TRY(load_config_tokens(tok, config));
    MOB_TRY(apply_config(tok, config));
  }
  return index_added_tokens(tok);
}
