#include "engine/api/json_out.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A bracket, a colon or a blank (of "data: ") at the end means that the value is the first one.
static void separate(mob_buf_t *out) {
  if (out->len == 0) return;
  char last = (char)out->data[out->len - 1];
  if (last != '{' && last != '[' && last != ':' && last != ' ') mob_buf_putc(out, ',');
}

void mob_json_open(mob_buf_t *out, char bracket) {
  separate(out);
  mob_buf_putc(out, bracket);
}

void mob_json_close(mob_buf_t *out, char bracket) {
  mob_buf_putc(out, bracket);
}

static void put_quoted(mob_buf_t *out, const char *text, size_t len) {
  static const char hex[] = "0123456789abcdef";
  mob_buf_putc(out, '"');
  size_t from = 0;
  for (size_t i = 0; i < len; i++) {
    unsigned char c = (unsigned char)text[i];
    if (c >= 0x20 && c != '"' && c != '\\') continue;
    mob_buf_append(out, text + from, i - from);
    from = i + 1;
    char escape[6] = {'\\', 'u', '0', '0', hex[c >> 4], hex[c & 15]};
    size_t n = 2;
    switch (c) {
    case '"':
    case '\\':
      escape[1] = (char)c;
      break;
    case '\n':
      escape[1] = 'n';
      break;
    case '\r':
      escape[1] = 'r';
      break;
    case '\t':
      escape[1] = 't';
      break;
    case '\b':
      escape[1] = 'b';
      break;
    case '\f':
      escape[1] = 'f';
      break;
    default:
      n = 6;
    }
    mob_buf_append(out, escape, n);
  }
  mob_buf_append(out, text + from, len - from);
  mob_buf_putc(out, '"');
}

void mob_json_text(mob_buf_t *out, const char *text, size_t len) {
  separate(out);
  put_quoted(out, text, len);
}

void mob_json_key(mob_buf_t *out, const char *key) {
  mob_json_text(out, key, strlen(key));
  mob_buf_putc(out, ':');
}

void mob_json_int(mob_buf_t *out, int64_t value) {
  separate(out);
  mob_buf_printf(out, "%lld", (long long)value);
}

void mob_json_double(mob_buf_t *out, double value) {
  separate(out);
  if (isfinite(value))
    mob_json_float(out, value);
  else
    mob_buf_puts(out, "null");
}

void mob_json_bool(mob_buf_t *out, bool value) {
  separate(out);
  mob_buf_puts(out, value ? "true" : "false");
}

void mob_json_null(mob_buf_t *out) {
  separate(out);
  mob_buf_puts(out, "null");
}

void mob_json_raw(mob_buf_t *out, const char *json, size_t len) {
  separate(out);
  mob_buf_append(out, json, len);
}

void mob_json_put_text(mob_buf_t *out, const char *key, const char *text) {
  mob_json_key(out, key);
  if (text)
    mob_json_text(out, text, strlen(text));
  else
    mob_json_null(out);
}

void mob_json_put_int(mob_buf_t *out, const char *key, int64_t value) {
  mob_json_key(out, key);
  mob_json_int(out, value);
}

void mob_json_put_bool(mob_buf_t *out, const char *key, bool value) {
  mob_json_key(out, key);
  mob_json_bool(out, value);
}

void mob_json_put_null(mob_buf_t *out, const char *key) {
  mob_json_key(out, key);
  mob_json_null(out);
}

// -------------------------------------------------------------------------------------------
// Python

void mob_json_float(mob_buf_t *out, double value) {
  if (isnan(value)) return mob_buf_puts(out, "nan");
  if (isinf(value)) return mob_buf_puts(out, value < 0 ? "-inf" : "inf");
  char text[40];
  int digits = 1; // the fewest that read back
  do snprintf(text, sizeof text, "%.*e", digits - 1, value);
  while (strtod(text, NULL) != value && ++digits <= 17);
  int exponent = atoi(strchr(text, 'e') + 1);
  if (exponent < -4 ||
      exponent >= 16) { // d.ddde-05: %e's form, without a point when there is one digit
    mob_buf_puts(out, text);
    return;
  }
  int decimals = digits - 1 - exponent;
  snprintf(text, sizeof text, "%.*f", decimals < 1 ? 1 : decimals, value);
  mob_buf_puts(out, text);
}

void mob_json_ascii(mob_buf_t *out, const char *text, size_t len) {
  mob_buf_t quoted = {0};
  put_quoted(&quoted, text, len);
  for (size_t i = 1; i + 1 < quoted.len;) {
    unsigned char c = quoted.data[i];
    if (c < 0x80) {
      mob_buf_putc(out, (char)c);
      i++;
      continue;
    }
    size_t n = c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
    uint32_t point = c & (0x7fu >> n);
    for (size_t k = 1; k < n && i + k < quoted.len; k++)
      point = point << 6 | (quoted.data[i + k] & 0x3f);
    if (point >= 0x10000) {
      point -= 0x10000;
      mob_buf_printf(out, "\\u%04x\\u%04x", 0xd800 + (point >> 10), 0xdc00 + (point & 0x3ff));
    } else {
      mob_buf_printf(out, "\\u%04x", point);
    }
    i += n;
  }
  mob_buf_free(&quoted);
}

void mob_py_repr_text(mob_buf_t *out, const char *text, size_t len) {
  char quote = memchr(text, '\'', len) && !memchr(text, '"', len) ? '"' : '\'';
  mob_buf_putc(out, quote);
  for (size_t i = 0; i < len; i++) {
    unsigned char c = (unsigned char)text[i];
    if (c == '\n')
      mob_buf_puts(out, "\\n");
    else if (c == '\r')
      mob_buf_puts(out, "\\r");
    else if (c == '\t')
      mob_buf_puts(out, "\\t");
    else if (c < 0x20 || c == 0x7f)
      mob_buf_printf(out, "\\x%02x", c);
    else {
      if (c == '\\' || c == (unsigned char)quote) mob_buf_putc(out, '\\');
      mob_buf_putc(out, (char)c);
    }
  }
  mob_buf_putc(out, quote);
}

static void repr(mob_buf_t *out, const json_t *value, size_t limit) {
  if (out->len > limit) return;
  const char *key;
  json_t *member;
  size_t i;
  bool first = true;
  switch (json_typeof(value)) {
  case JSON_OBJECT:
    mob_buf_putc(out, '{');
    json_object_foreach((json_t *)value, key, member) {
      if (!first) mob_buf_puts(out, ", ");
      first = false;
      mob_py_repr_text(out, key, strlen(key));
      mob_buf_puts(out, ": ");
      repr(out, member, limit);
    }
    mob_buf_putc(out, '}');
    break;
  case JSON_ARRAY:
    mob_buf_putc(out, '[');
    json_array_foreach((json_t *)value, i, member) {
      if (i) mob_buf_puts(out, ", ");
      repr(out, member, limit);
      if (out->len > limit) break;
    }
    mob_buf_putc(out, ']');
    break;
  case JSON_STRING:
    mob_py_repr_text(out, json_string_value(value), json_string_length(value));
    break;
  case JSON_INTEGER:
    mob_buf_printf(out, "%lld", (long long)json_integer_value(value));
    break;
  case JSON_REAL:
    mob_json_float(out, json_real_value(value));
    break;
  case JSON_TRUE:
    mob_buf_puts(out, "True");
    break;
  case JSON_FALSE:
    mob_buf_puts(out, "False");
    break;
  case JSON_NULL:
    mob_buf_puts(out, "None");
    break;
  }
}

void mob_py_repr(mob_buf_t *out, const json_t *value) {
  enum { LONGEST = 4096 }; // an error need not give a whole long prompt back
  size_t begin = out->len;
  repr(out, value, begin + LONGEST);
  if (out->len <= begin + LONGEST) return;
  out->len = begin + LONGEST;
  while (out->len > begin && (out->data[out->len - 1] & 0xc0) == 0x80)
    out->len--; // not inside a character
  if (out->len > begin && out->data[out->len - 1] >= 0xc0) out->len--;
  mob_buf_puts(out, "...");
}
