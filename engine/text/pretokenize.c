#include "engine/text/pretokenize.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "runtime/base/utf8.h"

#define MAX_DEPTH 8
#define MAX_STEPS 64

#define GPT2_PATTERN                                                                               \
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

static const char *type_of(const json_t *json) {
  const char *type = json_string_value(json_object_get(json, "type"));
  return type ? type : "";
}

static mob_status add_split(mob__pretokenizer_t *p, const char *pattern, size_t len, bool literal,
                            mob__behavior_t behavior, bool invert) {
  if (p->steps.len >= MAX_STEPS) return mob_fail(MOB_E_FORMAT, "pre_tokenizer has too many steps");
  mob__regex_t *regex;
  MOB_TRY(mob__regex_compile(pattern, len, literal, &regex));
  *mob_vec_push(&p->steps) = (mob__step_t){.regex = regex, .behavior = behavior, .invert = invert};
  return MOB_OK;
}

static mob_status behavior_of(const json_t *json, mob__behavior_t *out) {
  static const char *const names[] = {"Isolated", "Removed", "MergedWithPrevious", "MergedWithNext",
                                      "Contiguous"};
  const char *name = json_string_value(json_object_get(json, "behavior"));
  for (size_t i = 0; name && i < MOB_LEN(names); i++) {
    if (strcmp(name, names[i]) == 0) {
      *out = (mob__behavior_t)i;
      return MOB_OK;
    }
  }
  return mob_fail(MOB_E_FORMAT, "pre_tokenizer: unknown behavior '%.100s'", name ? name : "");
}

static mob_status load_split(mob__pretokenizer_t *p, const json_t *json) {
  json_t *pattern = json_object_get(json, "pattern");
  json_t *regex = json_object_get(pattern, "Regex"), *string = json_object_get(pattern, "String");
  json_t *text = json_is_string(regex) ? regex : string;
  if (!json_is_string(text)) {
    return mob_fail(MOB_E_FORMAT, "pre_tokenizer Split: \"pattern\" is not {\"Regex\": text} or "
                                  "{\"String\": text}");
  }
  mob__behavior_t behavior;
  MOB_TRY(behavior_of(json, &behavior));
  return add_split(p, json_string_value(text), json_string_length(text), text == string, behavior,
                   json_is_true(json_object_get(json, "invert")));
}

static mob_status load_byte_level(mob__pretokenizer_t *p, const json_t *json) {
  if (json_is_true(json_object_get(json, "add_prefix_space"))) mob_vec_push(&p->steps);
  if (json_is_false(json_object_get(json, "use_regex"))) return MOB_OK; // true when it is absent
  return add_split(p, GPT2_PATTERN, strlen(GPT2_PATTERN), false, MOB__ISOLATED, false);
}

static mob_status load_step(mob__pretokenizer_t *p, const json_t *json, int depth,
                            bool *byte_level) {
  const char *type = type_of(json);
  if (depth > MAX_DEPTH) return mob_fail(MOB_E_FORMAT, "pre_tokenizer is nested too deeply");
  if (*byte_level) {
    return mob_fail(MOB_E_UNSUPPORTED, "pre_tokenizer '%.100s' after ByteLevel is not supported",
                    type);
  }
  if (strcmp(type, "Sequence") == 0) {
    json_t *list = json_object_get(json, "pretokenizers");
    if (!json_is_array(list)) {
      return mob_fail(MOB_E_FORMAT, "pre_tokenizer Sequence: \"pretokenizers\" is not a list");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
      MOB_TRY(load_step(p, json_array_get(list, i), depth + 1, byte_level));
    }
    return MOB_OK;
  }
  if (strcmp(type, "ByteLevel") == 0) {
    *byte_level = true;
    return load_byte_level(p, json);
  }
  if (strcmp(type, "Split") == 0) return load_split(p, json);
  if (strcmp(type, "Digits") == 0) {
    bool each = json_is_true(json_object_get(json, "individual_digits"));
    return add_split(p, "\\p{N}", 5, false, each ? MOB__ISOLATED : MOB__CONTIGUOUS, false);
  }
  if (strcmp(type, "Punctuation") == 0) {
    static const char pattern[] = "[!-/:-@\\[-`{-~\\p{P}]";
    mob__behavior_t behavior = MOB__ISOLATED;
    if (json_object_get(json, "behavior")) MOB_TRY(behavior_of(json, &behavior));
    return add_split(p, pattern, strlen(pattern), false, behavior, false);
  }
  if (strcmp(type, "WhitespaceSplit") == 0) {
    return add_split(p, "\\s", 2, false, MOB__REMOVED, false);
  }
  return mob_fail(
      MOB_E_UNSUPPORTED,
      "pre_tokenizer type '%.100s' is not supported; Sequence, Split, ByteLevel, Digits, "
      "Punctuation and WhitespaceSplit are",
      type);
}

mob_status mob__pretokenizer_load(mob__pretokenizer_t *p, const json_t *json) {
  bool byte_level = false;
  if (json_is_object(json)) MOB_TRY(load_step(p, json, 0, &byte_level));
  if (!byte_level) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "pre_tokenizer has no ByteLevel step: only byte-level BPE is supported");
  }
  return MOB_OK;
}

void mob__pretokenizer_free(mob__pretokenizer_t *p) {
  for (size_t i = 0; i < p->steps.len; i++) mob__regex_free(p->steps.at[i].regex);
  mob_vec_free(&p->steps);
}

static mob_status load_form(mob__normalizer_t *n, const json_t *json, int depth) {
  static const char *const names[] = {"NFC", "NFD", "NFKC", "NFKD"};
  const char *type = type_of(json);
  if (depth > MAX_DEPTH || n->forms.len > MAX_STEPS) {
    return mob_fail(MOB_E_FORMAT, "normalizer is nested too deeply");
  }
  if (strcmp(type, "Sequence") == 0) {
    json_t *list = json_object_get(json, "normalizers");
    if (!json_is_array(list)) {
      return mob_fail(MOB_E_FORMAT, "normalizer Sequence: \"normalizers\" is not a list");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
      MOB_TRY(load_form(n, json_array_get(list, i), depth + 1));
    }
    return MOB_OK;
  }
  for (size_t i = 0; i < MOB_LEN(names); i++) {
    if (strcmp(type, names[i]) == 0) {
      *mob_vec_push(&n->forms) = (mob__form_t)i;
      return MOB_OK;
    }
  }
  return mob_fail(
      MOB_E_UNSUPPORTED,
      "normalizer type '%.100s' is not supported; Sequence, NFC, NFD, NFKC and NFKD are", type);
}

mob_status mob__normalizer_load(mob__normalizer_t *n, const json_t *json) {
  if (!json || json_is_null(json)) return MOB_OK;
  return load_form(n, json, 0);
}

void mob__normalizer_free(mob__normalizer_t *n) {
  mob_vec_free(&n->forms);
}

mob_status mob__normalize(const mob__normalizer_t *n, const char *text, size_t len,
                          const char **out, size_t *out_len, char **owned) {
  static const utf8proc_option_t options[] = {
      UTF8PROC_STABLE | UTF8PROC_COMPOSE, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
      UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
      UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT};
  *out = text;
  *out_len = len;
  *owned = NULL;
  bool ascii = true;
  for (size_t i = 0; i < len && ascii; i++) ascii = (uint8_t)text[i] < 0x80;
  if (ascii) return MOB_OK; // ASCII is its own form in all four
  for (size_t i = 0; i < n->forms.len; i++) {
    utf8proc_uint8_t *result = NULL;
    utf8proc_ssize_t size = utf8proc_map((const utf8proc_uint8_t *)*out, (utf8proc_ssize_t)*out_len,
                                         &result, options[n->forms.at[i]]);
    if (size < 0) {
      free(*owned);
      *owned = NULL;
      return mob_fail(MOB_E_INVALID, "cannot normalize the text: %s", utf8proc_errmsg(size));
    }
    free(*owned);
    *owned = (char *)result;
    *out = *owned;
    *out_len = (size_t)size;
  }
  return MOB_OK;
}

void mob__pretokenize_scratch_free(mob__pretokenize_scratch_t *s) {
  mob__regex_scratch_free(&s->regex);
  mob_vec_free(&s->pieces);
  mob_vec_free(&s->next);
  for (size_t i = 0; i < s->owned.len; i++) free(s->owned.at[i]);
  mob_vec_free(&s->owned);
}

// Gives the parts of a piece, matched and not matched, one by one, their due place in `out`.
// MergedWithNext works from the right in `tokenizers`; from the left it is: a match waits for the
// part after it, and takes it in when that is no match.
typedef struct splitter {
  mob__pieces_t *out;
  size_t first; // index of the first piece that belongs to this text
  mob__behavior_t behavior;
  bool invert, previous;
} splitter_t;

static void take(splitter_t *sp, const char *text, size_t len, bool match) {
  match ^= sp->invert;
  mob__piece_t *last = sp->out->len > sp->first ? &sp->out->at[sp->out->len - 1] : NULL;
  bool join = false;
  switch (sp->behavior) {
  case MOB__ISOLATED:
    break;
  case MOB__REMOVED:
    if (match) return;
    break;
  case MOB__MERGED_WITH_PREVIOUS:
    join = match && !sp->previous;
    break;
  case MOB__MERGED_WITH_NEXT:
    join = !match && sp->previous;
    break;
  case MOB__CONTIGUOUS:
    join = match == sp->previous;
    break;
  }
  sp->previous = match;
  if (join && last) {
    last->len += len;
  } else {
    *mob_vec_push(sp->out) = (mob__piece_t){text, len};
  }
}

static mob_status split(const mob__step_t *step, mob__regex_scratch_t *scratch, const char *text,
                        size_t len, mob__pieces_t *out) {
  splitter_t sp = {
      .out = out, .first = out->len, .behavior = step->behavior, .invert = step->invert};
  size_t done = 0, from = 0, last_end = SIZE_MAX;
  while (from <= len) {
    bool found;
    size_t start, end;
    MOB_TRY(mob__regex_search(step->regex, scratch, text, len, from, &found, &start, &end));
    if (!found) break;
    from = end;
    if (start == end) { // an empty match: go on behind the next character
      size_t width = 1;
      if (end < len) mob_utf8_decode(text + end, &width);
      from = end + width;
      if (end == last_end) continue; // not right behind a match
    }
    last_end = end;
    if (start > done) take(&sp, text + done, start - done, false);
    take(&sp, text + start, end - start, true);
    done = end;
  }
  if (done < len) take(&sp, text + done, len - done, false);
  size_t kept = sp.first;
  for (size_t i = sp.first; i < out->len; i++) {
    if (out->at[i].len) out->at[kept++] = out->at[i];
  }
  out->len = kept;
  return MOB_OK;
}

static mob__piece_t with_space(mob__pretokenize_scratch_t *s, mob__piece_t piece) {
  if (piece.text[0] == ' ') return piece;
  char *copy = mob_malloc(piece.len + 1);
  copy[0] = ' ';
  memcpy(copy + 1, piece.text, piece.len);
  *mob_vec_push(&s->owned) = copy;
  return (mob__piece_t){copy, piece.len + 1};
}

mob_status mob__pretokenize(const mob__pretokenizer_t *p, mob__pretokenize_scratch_t *s,
                            const char *text, size_t len) {
  s->pieces.len = 0;
  if (len == 0) return MOB_OK;
  *mob_vec_push(&s->pieces) = (mob__piece_t){text, len};
  for (size_t i = 0; i < p->steps.len; i++) {
    const mob__step_t *step = &p->steps.at[i];
    s->next.len = 0;
    for (size_t k = 0; k < s->pieces.len; k++) {
      mob__piece_t piece = s->pieces.at[k];
      if (step->regex) {
        MOB_TRY(split(step, &s->regex, piece.text, piece.len, &s->next));
      } else {
        *mob_vec_push(&s->next) = with_space(s, piece);
      }
    }
    mob__pieces_t swap = s->pieces;
    s->pieces = s->next;
    s->next = swap;
  }
  return MOB_OK;
}
