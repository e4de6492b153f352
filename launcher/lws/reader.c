#include "launcher/lws/reader.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_MESSAGES 200

static void add_message(mob_lws_reader_t *r, mob_lws_at_t at, bool error, const char *fmt,
                        va_list args) {
  mob_lws_manifest_t *m = r->manifest;
  if (error) m->errors++;
  if (m->messages.len >= MAX_MESSAGES) return;
  char text[700];
  vsnprintf(text, sizeof text, fmt, args);
  const char *path = at.path && *at.path ? at.path : NULL;
  mob_lws_message_t *message = mob_vec_push(&m->messages);
  message->error = error;
  message->text = mob_arena_sprintf(&m->arena, "%s:%d: %s%s%s", r->file, at.line, path ? path : "",
                                    path ? ": " : "", text);
}

void mob__rd_error(mob_lws_reader_t *r, mob_lws_at_t at, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  add_message(r, at, true, fmt, args);
  va_end(args);
}

void mob__rd_warn(mob_lws_reader_t *r, mob_lws_at_t at, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  add_message(r, at, false, fmt, args);
  va_end(args);
}

mob_lws_at_t mob__rd_field(mob_lws_reader_t *r, mob_lws_at_t map, const char *key) {
  mob_lws_at_t at = {.line = map.line};
  at.path = *map.path ? mob_arena_sprintf(&r->manifest->arena, "%.400s.%.80s", map.path, key)
                      : mob_arena_strdup(&r->manifest->arena, key);
  if (!map.node || map.node->kind != MOB_YAML_MAP) return at;
  for (size_t i = 0; i < map.node->count; i++) {
    const mob_yaml_entry_t *entry = &map.node->entries[i];
    if (strcmp(entry->key, key) != 0) continue;
    at.line = entry->line;
    bool null =
        entry->value->kind == MOB_YAML_SCALAR && mob__yaml_type(entry->value) == MOB_YAML_NULL;
    if (!null) at.node = entry->value;
  }
  return at;
}

mob_lws_at_t mob__rd_item(mob_lws_reader_t *r, mob_lws_at_t list, size_t i) {
  const mob_yaml_node_t *node = list.node->items[i];
  return (mob_lws_at_t){node, mob_arena_sprintf(&r->manifest->arena, "%.480s[%zu]", list.path, i),
                        node->line};
}

static mob_lws_at_t typed(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, bool required,
                          mob_yaml_kind_t kind) {
  mob_lws_at_t at = mob__rd_field(r, map, key);
  if (!at.node) {
    if (required)
      mob__rd_error(r, at, "is missing, and a cluster refuses the object without it; add it");
    return at;
  }
  if (at.node->kind != kind) {
    mob__rd_error(r, at, "must be %s, here is %s", kind == MOB_YAML_MAP ? "a map" : "a list",
                  mob__yaml_describe(at.node));
    at.node = NULL;
  }
  return at;
}

mob_lws_at_t mob__rd_map(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, bool required) {
  return typed(r, map, key, required, MOB_YAML_MAP);
}

mob_lws_at_t mob__rd_list(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, bool required) {
  return typed(r, map, key, required, MOB_YAML_SEQ);
}

// The text of a string node, NULL and a message for anything else.
static const char *string_at(mob_lws_reader_t *r, mob_lws_at_t at) {
  if (at.node->kind != MOB_YAML_SCALAR) {
    mob__rd_error(r, at, "must be a string, here is %s", mob__yaml_describe(at.node));
    return NULL;
  }
  if (mob__yaml_type(at.node) != MOB_YAML_STRING) {
    mob__rd_error(r, at, "must be a string, but unquoted %.60s is %s; write \"%.60s\"",
                  at.node->text, mob__yaml_describe(at.node), at.node->text);
    return NULL;
  }
  return at.node->text;
}

const char *mob__rd_string(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, bool required) {
  mob_lws_at_t at = mob__rd_field(r, map, key);
  if (at.node) return string_at(r, at);
  if (required)
    mob__rd_error(r, at, "is missing, and a cluster refuses the object without it; add it");
  return NULL;
}

int64_t mob__rd_int(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, int64_t min,
                    int64_t max, int64_t fallback) {
  mob_lws_at_t at = mob__rd_field(r, map, key);
  if (!at.node) return fallback;
  int64_t value;
  if (!mob__yaml_int(at.node, &value)) {
    mob__rd_error(r, at, "must be an integer, here is %s%s%.60s", mob__yaml_describe(at.node),
                  at.node->kind == MOB_YAML_SCALAR ? " " : "",
                  at.node->kind == MOB_YAML_SCALAR ? at.node->text : "");
    return fallback;
  }
  if (value < min || value > max) {
    mob__rd_error(r, at, "must be from %lld to %lld, here is %lld", (long long)min, (long long)max,
                  (long long)value);
    return fallback;
  }
  return value;
}

bool mob__rd_bool(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, bool fallback) {
  mob_lws_at_t at = mob__rd_field(r, map, key);
  if (!at.node) return fallback;
  if (at.node->kind != MOB_YAML_SCALAR || mob__yaml_type(at.node) != MOB_YAML_BOOL) {
    mob__rd_error(r, at, "must be true or false, here is %s", mob__yaml_describe(at.node));
    return fallback;
  }
  return mob__yaml_bool(at.node);
}

int mob__rd_enum(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, const char *const *names,
                 int fallback) {
  const char *text = mob__rd_string(r, map, key, false);
  if (!text) return fallback;
  mob_buf_t all = {0};
  for (int i = 0; names[i]; i++) {
    if (strcmp(text, names[i]) == 0) {
      mob_buf_free(&all);
      return i;
    }
    mob_buf_printf(&all, "%s%s", i ? ", " : "", names[i]);
  }
  mob__rd_error(r, mob__rd_field(r, map, key), "is \"%.60s\"; it must be one of: %s", text,
                mob_buf_cstr(&all));
  mob_buf_free(&all);
  return fallback;
}

mob_lws_strings_t mob__rd_strings(mob_lws_reader_t *r, mob_lws_at_t map, const char *key) {
  mob_lws_strings_t list = {0};
  mob_lws_at_t at = mob__rd_list(r, map, key, false);
  if (!at.node) return list;
  list.at = MOB_ARENA_ARRAY(&r->manifest->arena, const char *, at.node->count + 1);
  for (size_t i = 0; i < at.node->count; i++) {
    const char *text = string_at(r, mob__rd_item(r, at, i));
    if (text) list.at[list.len++] = text;
  }
  return list;
}

mob_lws_pair_list_t mob__rd_pairs(mob_lws_reader_t *r, mob_lws_at_t map, const char *key) {
  mob_lws_pair_list_t list = {0};
  mob_lws_at_t at = mob__rd_map(r, map, key, false);
  if (!at.node) return list;
  mob_lws_pair_t *pairs = MOB_ARENA_ARRAY(&r->manifest->arena, mob_lws_pair_t, at.node->count);
  for (size_t i = 0; i < at.node->count; i++) {
    const mob_yaml_entry_t *entry = &at.node->entries[i];
    mob_lws_at_t value = {entry->value, mob__rd_field(r, at, entry->key).path, entry->line};
    const char *text = string_at(r, value);
    if (text) pairs[list.len++] = (mob_lws_pair_t){entry->key, text};
  }
  list.at = pairs;
  return list;
}

void mob__rd_port(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, int *port,
                  const char **name) {
  mob_lws_at_t at = mob__rd_field(r, map, key);
  if (!at.node) return;
  int64_t number;
  if (mob__yaml_int(at.node, &number)) {
    if (number < 1 || number > 65535) {
      mob__rd_error(r, at, "must be from 1 to 65535, here is %lld", (long long)number);
      return;
    }
    *port = (int)number;
    return;
  }
  const char *text = string_at(r, at);
  if (text && !mob__rd_is_name(text, false, 15)) {
    mob__rd_error(r, at, "\"%.60s\" is neither a port number nor a port name", text);
  } else if (text) {
    *name = text;
  }
}

static bool in_words(const char *words, const char *word) {
  size_t n = strlen(word);
  for (const char *p = words; n > 0 && (p = strstr(p, word)); p += n) {
    if ((p == words || p[-1] == ' ') && (p[n] == 0 || p[n] == ' ')) return true;
  }
  return false;
}

// Edit distance, given up above 3: enough to say "did you mean".
static size_t distance(const char *a, size_t n, const char *b, size_t m) {
  if (n > 40 || m > 40) return 99;
  size_t row[41];
  for (size_t j = 0; j <= m; j++) row[j] = j;
  for (size_t i = 1; i <= n; i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= m; j++) {
      size_t above = row[j];
      size_t best =
          diagonal + (tolower((unsigned char)a[i - 1]) != tolower((unsigned char)b[j - 1]));
      if (above + 1 < best) best = above + 1;
      if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
      row[j] = best;
      diagonal = above;
    }
  }
  return row[m];
}

static void closest(const char *words, const char *word, char *out, size_t size) {
  size_t best = 3;
  *out = 0;
  for (const char *p = words; *p;) {
    size_t n = strcspn(p, " ");
    size_t d = distance(word, strlen(word), p, n);
    if (d < best && n < size) {
      best = d;
      memcpy(out, p, n);
      out[n] = 0;
    }
    p += n + (p[n] == ' ');
  }
}

void mob__rd_keys(mob_lws_reader_t *r, mob_lws_at_t map, const char *known, const char *ignored) {
  if (!map.node || map.node->kind != MOB_YAML_MAP) return;
  for (size_t i = 0; i < map.node->count; i++) {
    const char *key = map.node->entries[i].key;
    mob_lws_at_t at = mob__rd_field(r, map, key);
    if (in_words(known, key)) continue;
    if (in_words(ignored, key)) {
      mob__rd_warn(r, at, "is not simulated here and has no effect");
      continue;
    }
    char near[48];
    closest(known, key, near, sizeof near);
    if (!*near) closest(ignored, key, near, sizeof near);
    if (*near) {
      mob__rd_error(r, at, "is an unknown field; did you mean %s?", near);
    } else {
      mob__rd_error(r, at, "is an unknown field, which a cluster refuses; remove it");
    }
  }
}

bool mob__rd_is_name(const char *text, bool letter_first, size_t max) {
  size_t n = strlen(text);
  if (n == 0 || n > max || text[0] == '-' || text[n - 1] == '-') return false;
  if (letter_first && !islower((unsigned char)text[0])) return false;
  for (size_t i = 0; i < n; i++) {
    if (!islower((unsigned char)text[i]) && !isdigit((unsigned char)text[i]) && text[i] != '-')
      return false;
  }
  return true;
}
