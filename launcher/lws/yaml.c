#include "launcher/lws/yaml.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <yaml.h>

#include "runtime/base/map.h"
#include "runtime/base/vec.h"

#define MAX_DEPTH 64
#define MAX_WEIGHT 200000u // nodes of one stream with aliases expanded: a manifest has hundreds

typedef struct builder {
  mob_arena_t *arena;
  const char *file;
  yaml_parser_t parser;
  yaml_event_t event;
  bool have_event;
  mob_map_t anchors; // name -> finished node of the current document
  uint64_t weight;
} builder_t;

static int line_of(const yaml_event_t *event) {
  return (int)event->start_mark.line + 1;
}

static mob_status next_event(builder_t *b) {
  if (b->have_event) yaml_event_delete(&b->event);
  b->have_event = false;
  if (!yaml_parser_parse(&b->parser, &b->event)) {
    const yaml_parser_t *p = &b->parser;
    int line = (int)(p->problem_mark.line ? p->problem_mark.line : p->context_mark.line) + 1;
    return mob_fail(MOB_E_FORMAT, "%s:%d: not valid YAML: %s%s%s", b->file, line,
                    p->problem ? p->problem : "unreadable", p->context ? ", " : "",
                    p->context ? p->context : "");
  }
  b->have_event = true;
  return MOB_OK;
}

static mob_status build_node(builder_t *b, int depth, const mob_yaml_node_t **out);

static mob_status build_scalar(builder_t *b, mob_yaml_node_t *node) {
  const yaml_event_t *e = &b->event;
  const char *value = (const char *)e->data.scalar.value;
  size_t len = e->data.scalar.length;
  if (memchr(value, 0, len)) {
    return mob_fail(MOB_E_FORMAT, "%s:%d: a NUL character stands in this string; remove the \\0",
                    b->file, node->line);
  }
  node->kind = MOB_YAML_SCALAR;
  node->text = mob_arena_strndup(b->arena, value, len);
  node->plain = e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
  const char *tag = (const char *)e->data.scalar.tag;
  if (tag && strcmp(tag, "tag:yaml.org,2002:str") == 0) node->plain = false;
  return MOB_OK;
}

static mob_status build_seq(builder_t *b, int depth, mob_yaml_node_t *node) {
  MOB_VEC(const mob_yaml_node_t *) items = {0};
  mob_status status;
  for (;;) {
    MOB_TRY_GOTO(next_event(b), status, out);
    if (b->event.type == YAML_SEQUENCE_END_EVENT) break;
    const mob_yaml_node_t *item;
    MOB_TRY_GOTO(build_node(b, depth + 1, &item), status, out);
    *mob_vec_push(&items) = item;
    node->weight += item->weight;
  }
  node->kind = MOB_YAML_SEQ;
  node->count = items.len;
  node->items = MOB_ARENA_ARRAY(b->arena, const mob_yaml_node_t *, items.len);
  if (items.len) memcpy(node->items, items.at, items.len * sizeof *items.at);
out:
  mob_vec_free(&items);
  return status;
}

static mob_status build_map(builder_t *b, int depth, mob_yaml_node_t *node) {
  MOB_VEC(mob_yaml_entry_t) entries = {0};
  mob_map_t keys = {0};
  mob_status status;
  for (;;) {
    MOB_TRY_GOTO(next_event(b), status, out);
    if (b->event.type == YAML_MAPPING_END_EVENT) break;
    int line = line_of(&b->event);
    if (b->event.type != YAML_SCALAR_EVENT) {
      status =
          mob_fail(MOB_E_FORMAT, "%s:%d: a key must be a plain word or a string", b->file, line);
      goto out;
    }
    mob_yaml_node_t name = {.line = line};
    MOB_TRY_GOTO(build_scalar(b, &name), status, out);
    if (name.plain && strcmp(name.text, "<<") == 0) {
      status =
          mob_fail(MOB_E_FORMAT, "%s:%d: merge keys (<<) are not read here; write the fields out",
                   b->file, line);
      goto out;
    }
    if (mob_map_puts(&keys, name.text, b)) {
      status = mob_fail(MOB_E_FORMAT, "%s:%d: the key \"%s\" stands twice in this map; remove one",
                        b->file, line, name.text);
      goto out;
    }
    MOB_TRY_GOTO(next_event(b), status, out);
    const mob_yaml_node_t *value;
    MOB_TRY_GOTO(build_node(b, depth + 1, &value), status, out);
    *mob_vec_push(&entries) = (mob_yaml_entry_t){name.text, line, value};
    node->weight += 1 + value->weight;
  }
  node->kind = MOB_YAML_MAP;
  node->count = entries.len;
  mob_yaml_entry_t *copy = MOB_ARENA_ARRAY(b->arena, mob_yaml_entry_t, entries.len);
  if (entries.len) memcpy(copy, entries.at, entries.len * sizeof *copy);
  node->entries = copy;
out:
  mob_map_free(&keys);
  mob_vec_free(&entries);
  return status;
}

static mob_status build_alias(builder_t *b, const mob_yaml_node_t **out) {
  const char *name = (const char *)b->event.data.alias.anchor;
  // An anchor counts only once its node is complete, so no tree contains itself.
  *out = mob_map_gets(&b->anchors, name);
  if (!*out) {
    return mob_fail(MOB_E_FORMAT, "%s:%d: the alias *%s stands before its anchor &%s is complete",
                    b->file, line_of(&b->event), name, name);
  }
  b->weight += (*out)->weight;
  return MOB_OK;
}

// Builds the node that starts with the current event; ends with its last event current.
static mob_status build_node(builder_t *b, int depth, const mob_yaml_node_t **out) {
  const yaml_event_t *e = &b->event;
  int line = line_of(e);
  if (depth > MAX_DEPTH) {
    return mob_fail(MOB_E_FORMAT, "%s:%d: nested more than %d levels deep", b->file, line,
                    MAX_DEPTH);
  }
  const char *anchor = NULL;
  mob_yaml_node_t *node = MOB_ARENA_NEW(b->arena, mob_yaml_node_t);
  node->line = line;
  node->weight = 1;
  b->weight++;
  switch (e->type) {
  case YAML_ALIAS_EVENT:
    MOB_TRY(build_alias(b, out));
    break;
  case YAML_SCALAR_EVENT:
    anchor = (const char *)e->data.scalar.anchor;
    if (anchor) anchor = mob_arena_strdup(b->arena, anchor);
    MOB_TRY(build_scalar(b, node));
    *out = node;
    break;
  case YAML_SEQUENCE_START_EVENT:
    anchor = (const char *)e->data.sequence_start.anchor;
    if (anchor) anchor = mob_arena_strdup(b->arena, anchor);
    MOB_TRY(build_seq(b, depth, node));
    *out = node;
    break;
  case YAML_MAPPING_START_EVENT:
    anchor = (const char *)e->data.mapping_start.anchor;
    if (anchor) anchor = mob_arena_strdup(b->arena, anchor);
    MOB_TRY(build_map(b, depth, node));
    *out = node;
    break;
  default:
    return mob_fail(MOB_E_FORMAT, "%s:%d: unexpected YAML structure", b->file, line);
  }
  if (b->weight > MAX_WEIGHT) {
    return mob_fail(MOB_E_FORMAT,
                    "%s:%d: more than %u values, aliases expanded: no manifest is that large",
                    b->file, line, MAX_WEIGHT);
  }
  if (anchor) mob_map_puts(&b->anchors, anchor, (void *)*out);
  return MOB_OK;
}

mob_status mob__yaml_parse(mob_arena_t *arena, const char *file, const void *data, size_t len,
                           const mob_yaml_node_t ***docs, size_t *count) {
  builder_t b = {.arena = arena, .file = file};
  MOB_VEC(const mob_yaml_node_t *) roots = {0};
  *docs = NULL;
  *count = 0;
  if (!yaml_parser_initialize(&b.parser))
    return mob_fail(MOB_E_NO_RESOURCES, "libyaml: out of memory");
  yaml_parser_set_input_string(&b.parser, data, len);
  yaml_parser_set_encoding(&b.parser, YAML_UTF8_ENCODING);
  mob_status status;
  for (;;) {
    MOB_TRY_GOTO(next_event(&b), status, out);
    if (b.event.type == YAML_STREAM_END_EVENT) break;
    if (b.event.type == YAML_DOCUMENT_START_EVENT) {
      MOB_TRY_GOTO(next_event(&b), status, out);
      const mob_yaml_node_t *root;
      MOB_TRY_GOTO(build_node(&b, 0, &root), status, out);
      mob_map_free(&b.anchors);
      if (root->kind != MOB_YAML_SCALAR || mob__yaml_type(root) != MOB_YAML_NULL) {
        *mob_vec_push(&roots) = root;
      }
    }
  }
  *count = roots.len;
  *docs = MOB_ARENA_ARRAY(arena, const mob_yaml_node_t *, roots.len);
  if (roots.len) memcpy(*docs, roots.at, roots.len * sizeof *roots.at);
out:
  if (b.have_event) yaml_event_delete(&b.event);
  mob_map_free(&b.anchors);
  mob_vec_free(&roots);
  yaml_parser_delete(&b.parser);
  return status;
}

const mob_yaml_node_t *mob__yaml_get(const mob_yaml_node_t *map, const char *key) {
  if (!map || map->kind != MOB_YAML_MAP) return NULL;
  for (size_t i = 0; i < map->count; i++) {
    if (strcmp(map->entries[i].key, key) == 0) return map->entries[i].value;
  }
  return NULL;
}

static bool is_word(const char *text, const char *const *words, size_t count) {
  for (size_t i = 0; i < count; i++) {
    // "true", "True" and "TRUE" count, "tRue" does not.
    const char *word = words[i];
    size_t n = strlen(word);
    if (strcasecmp(text, word) != 0) continue;
    bool lower = true, upper = true, title = isupper((unsigned char)text[0]) != 0;
    for (size_t k = 0; k < n; k++) {
      if (isupper((unsigned char)text[k])) lower = false;
      if (islower((unsigned char)text[k])) upper = false;
      if (k > 0 && isupper((unsigned char)text[k])) title = false;
    }
    if (lower || upper || title) return true;
  }
  return false;
}

static const char *const true_words[] = {"true", "yes", "on"};
static const char *const false_words[] = {"false", "no", "off"};

bool mob__yaml_bool(const mob_yaml_node_t *scalar) {
  return is_word(scalar->text, true_words, 3);
}

// The whole text is one integer of YAML 1.1: decimal, 0x, 0o or a leading 0 for octal, _ between
// digits.
static bool int_text(const char *text, int64_t *out, bool *fits) {
  char digits[72];
  size_t n = 0;
  const char *p = text;
  if (*p == '-' || *p == '+') digits[n++] = *p++;
  int base = 10;
  if (p[0] == '0' && (p[1] == 'x' || p[1] == 'X')) {
    base = 16;
    p += 2;
  } else if (p[0] == '0' && p[1] == 'o') {
    base = 8;
    p += 2;
  } else if (p[0] == '0' && p[1] != 0) {
    base = 8;
  }
  if (!isxdigit((unsigned char)*p)) return false;
  for (; *p; p++) {
    if (*p == '_') continue;
    int digit = isdigit((unsigned char)*p)    ? *p - '0'
                : isxdigit((unsigned char)*p) ? tolower(*p) - 'a' + 10
                                              : 99;
    if (digit >= base) return false;
    if (n < sizeof digits - 1) digits[n++] = *p;
  }
  digits[n] = 0;
  errno = 0;
  *out = strtoll(digits, NULL, base);
  *fits = errno == 0;
  return true;
}

mob_yaml_type_t mob__yaml_type(const mob_yaml_node_t *scalar) {
  const char *text = scalar->text;
  if (!scalar->plain) return MOB_YAML_STRING;
  if (!*text || strcmp(text, "~") == 0 || is_word(text, (const char *const[]){"null"}, 1)) {
    return MOB_YAML_NULL;
  }
  if (is_word(text, true_words, 3) || is_word(text, false_words, 3)) return MOB_YAML_BOOL;
  int64_t ignored;
  bool fits;
  if (int_text(text, &ignored, &fits)) return MOB_YAML_INT;
  if (isdigit((unsigned char)*text) ||
      ((*text == '-' || *text == '+' || *text == '.') && text[1])) {
    char *end;
    strtod(text, &end);
    if (end != text && *end == 0 && !strpbrk(text, "nNxXpP")) return MOB_YAML_FLOAT;
  }
  return MOB_YAML_STRING;
}

bool mob__yaml_int(const mob_yaml_node_t *scalar, int64_t *out) {
  bool fits;
  return scalar->kind == MOB_YAML_SCALAR && scalar->plain && int_text(scalar->text, out, &fits) &&
         fits;
}

const char *mob__yaml_describe(const mob_yaml_node_t *node) {
  if (node->kind == MOB_YAML_MAP) return "a map";
  if (node->kind == MOB_YAML_SEQ) return "a list";
  switch (mob__yaml_type(node)) {
  case MOB_YAML_NULL:
    return "nothing";
  case MOB_YAML_BOOL:
    return "a boolean";
  case MOB_YAML_INT:
    return "an integer";
  case MOB_YAML_FLOAT:
    return "a number";
  default:
    return "a string";
  }
}
