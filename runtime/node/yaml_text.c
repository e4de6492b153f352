#include "runtime/node/yaml_text.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"
#include "runtime/node/table.h"

static void put_scalar(mob_buf_t *out, const json_t *value) {
  char number[40];
  if (json_is_string(value)) {
    mob_buf_puts(out, json_string_value(value));
  } else if (json_is_integer(value)) {
    mob_buf_printf(out, "%lld", (long long)json_integer_value(value));
  } else if (json_is_real(value)) {
    mob_buf_puts(out, mob_py_float(json_real_value(value), number));
  } else if (json_is_boolean(value)) {
    mob_buf_puts(out, json_is_true(value) ? "True" : "False");
  } else if (!json_is_null(value)) {
    char *text = json_dumps(value, 0);
    mob_buf_puts(out, text);
    free(text);
  }
}

char *mob_cell_text(const json_t *value) {
  mob_buf_t out = {0};
  const char *name;
  json_t *inner;
  if (json_is_object(value)) {
    json_object_foreach((json_t *)value, name, inner) {
      mob_buf_printf(&out, "%s%s: ", out.len ? "\n" : "", name);
      put_scalar(&out, inner);
    }
  } else if (value) {
    put_scalar(&out, value);
  }
  if (!out.len) {
    mob_buf_free(&out);
    return NULL;
  }
  return mob_buf_steal(&out);
}

// Whether a plain scalar would be read as something else than this string, or not at all.
static bool needs_quotes(const char *text) {
  static const char *const words[] = {"null",  "Null",  "NULL",  "~",   "true", "True", "TRUE",
                                      "false", "False", "FALSE", "yes", "Yes",  "YES",  "no",
                                      "No",    "NO",    "on",    "On",  "ON",   "off",  "Off",
                                      "OFF",   "y",     "n",     "Y",   "N",    "="};
  if (!*text || strchr(" -?:,[]{}#&*!|>'\"%@`", *text) || text[strlen(text) - 1] == ' ' ||
      text[strlen(text) - 1] == ':') {
    return true;
  }
  if (strstr(text, ": ") || strstr(text, " #") || strpbrk(text, "\n\t")) return true;
  for (size_t i = 0; i < MOB_LEN(words); i++) {
    if (strcmp(text, words[i]) == 0) return true;
  }
  const char *p = text + (*text == '+' || *text == '-');
  size_t digits = strspn(p, "0123456789_");
  if (digits && !p[digits]) return true; // an integer
  if (p[0] == '0' && (p[1] == 'x' || p[1] == 'b' || p[1] == 'o')) return true;
  char *end;
  strtod(p, &end);
  return *p && !*end && strchr(p, '.'); // a float, which YAML 1.1 knows by its dot
}

static void put_yaml_scalar(mob_buf_t *out, const json_t *value) {
  if (json_is_null(value)) {
    mob_buf_puts(out, "null");
  } else if (json_is_boolean(value)) {
    mob_buf_puts(out, json_is_true(value) ? "true" : "false");
  } else if (json_is_string(value) && needs_quotes(json_string_value(value))) {
    if (strpbrk(json_string_value(value), "\n\t")) {
      char *text = json_dumps(value, JSON_ENCODE_ANY); // double quotes with escapes are YAML too
      mob_buf_puts(out, text);
      free(text);
      return;
    }
    mob_buf_putc(out, '\'');
    for (const char *p = json_string_value(value); *p; p++) {
      if (*p == '\'') mob_buf_putc(out, '\'');
      mob_buf_putc(out, *p);
    }
    mob_buf_putc(out, '\'');
  } else {
    put_scalar(out, value);
  }
}

static void put_map(mob_buf_t *out, const json_t *map, int indent, bool first_is_placed);

static void put_value(mob_buf_t *out, const json_t *value, int indent) {
  size_t i;
  json_t *inner;
  if (json_is_object(value) && json_object_size(value)) {
    mob_buf_putc(out, '\n');
    put_map(out, value, indent + 4, false);
  } else if (json_is_array(value) && json_array_size(value)) {
    mob_buf_putc(out, '\n');
    json_array_foreach((json_t *)value, i, inner) {
      mob_buf_printf(out, "%*s-   ", indent, "");
      if (json_is_object(inner) && json_object_size(inner)) {
        put_map(out, inner, indent + 4, true);
      } else {
        put_yaml_scalar(out, inner);
        mob_buf_putc(out, '\n');
      }
    }
  } else {
    mob_buf_putc(out, ' ');
    if (json_is_object(value)) {
      mob_buf_puts(out, "{}");
    } else if (json_is_array(value)) {
      mob_buf_puts(out, "[]");
    } else {
      put_yaml_scalar(out, value);
    }
    mob_buf_putc(out, '\n');
  }
}

static void put_map(mob_buf_t *out, const json_t *map, int indent, bool first_is_placed) {
  const char *name;
  json_t *value;
  json_object_foreach((json_t *)map, name, value) {
    mob_buf_printf(out, "%*s%s:", first_is_placed ? 0 : indent, "", name);
    first_is_placed = false;
    put_value(out, value, indent);
  }
}

void mob_yaml_list(mob_buf_t *out, const json_t *rows) {
  size_t i;
  json_t *row;
  mob_buf_puts(out, "---\n");
  json_array_foreach((json_t *)rows, i, row) {
    mob_buf_puts(out, "-   ");
    put_map(out, row, 4, true);
  }
  mob_buf_puts(out, "...\n");
}
