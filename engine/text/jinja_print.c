// Values as text: Python's str() and repr(), and JSON as json.dumps() writes it.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#include "engine/text/jinja.h"
#include "runtime/base/utf8.h"

// The shortest digits that read back as the same number; an exponent from 1e16 and below 1e-4.
void mob__j_print_float(double f, mob_buf_t *out) {
  char text[40];
  if (isnan(f)) return mob_buf_puts(out, "nan");
  if (isinf(f)) return mob_buf_puts(out, f < 0 ? "-inf" : "inf");
  int precision = 1;
  do {
    snprintf(text, sizeof text, "%.*e", precision - 1, f);
  } while (strtod(text, NULL) != f && ++precision <= 17);
  int exponent = atoi(strchr(text, 'e') + 1);
  if (f != 0 && (exponent < -4 || exponent >= 16)) {
    snprintf(text, sizeof text, "%.*e", precision - 1, f);
    mob_buf_puts(out, text);
    return;
  }
  int decimals = precision - 1 - exponent;
  mob_buf_printf(out, "%.*f", decimals < 1 ? 1 : decimals, f);
}

static bool printable(uint32_t c) {
  switch (utf8proc_category((utf8proc_int32_t)c)) {
  case UTF8PROC_CATEGORY_CC:
  case UTF8PROC_CATEGORY_CF:
  case UTF8PROC_CATEGORY_CS:
  case UTF8PROC_CATEGORY_CO:
  case UTF8PROC_CATEGORY_CN:
  case UTF8PROC_CATEGORY_ZL:
  case UTF8PROC_CATEGORY_ZP:
    return false;
  case UTF8PROC_CATEGORY_ZS:
    return c == ' ';
  default:
    return true;
  }
}

static void repr_string(mob__jstring_t s, mob_buf_t *out) {
  bool single = memchr(s.text ? s.text : "", '\'', s.len) && !memchr(s.text, '"', s.len);
  char quote = single ? '"' : '\'';
  mob_buf_putc(out, quote);
  for (size_t i = 0, width; i < s.len; i += width) {
    uint32_t c = mob_utf8_decode(s.text + i, &width);
    if (c == (uint32_t)quote || c == '\\') {
      mob_buf_putc(out, '\\');
      mob_buf_putc(out, (char)c);
    } else if (c == '\n') {
      mob_buf_puts(out, "\\n");
    } else if (c == '\r') {
      mob_buf_puts(out, "\\r");
    } else if (c == '\t') {
      mob_buf_puts(out, "\\t");
    } else if (printable(c)) {
      mob_buf_append(out, s.text + i, width);
    } else {
      mob_buf_printf(out, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
    }
  }
  mob_buf_putc(out, quote);
}

static mob_status repr_list(mob__jinja_t *r, mob__jvalue_t v, mob_buf_t *out) {
  const mob__jlist_t *list = v.u.list;
  bool tuple = v.type == MOB__J_TUPLE;
  mob_buf_putc(out, tuple ? '(' : '[');
  for (size_t i = 0; i < list->len; i++) {
    if (i) mob_buf_puts(out, ", ");
    MOB_TRY(mob__j_repr(r, list->at[i], out));
  }
  if (tuple && list->len == 1) mob_buf_putc(out, ',');
  mob_buf_putc(out, tuple ? ')' : ']');
  return MOB_OK;
}

static mob_status repr_dict(mob__jinja_t *r, const mob__jdict_t *dict, mob_buf_t *out) {
  mob_buf_putc(out, '{');
  for (size_t i = 0; i < dict->len; i++) {
    if (i) mob_buf_puts(out, ", ");
    MOB_TRY(mob__j_repr(r, dict->at[i].key, out));
    mob_buf_puts(out, ": ");
    MOB_TRY(mob__j_repr(r, dict->at[i].value, out));
  }
  mob_buf_putc(out, '}');
  return MOB_OK;
}

mob_status mob__j_repr(mob__jinja_t *r, mob__jvalue_t v, mob_buf_t *out) {
  mob_status status = mob__jinja_enter(r);
  if (status != MOB_OK) return status;
  status = mob__j_check_size(out->len);
  if (status != MOB_OK) goto done;
  switch (v.type) {
  case MOB__J_UNDEFINED:
    mob_buf_puts(out, "Undefined");
    break;
  case MOB__J_NONE:
    mob_buf_puts(out, "None");
    break;
  case MOB__J_BOOL:
    mob_buf_puts(out, v.u.b ? "True" : "False");
    break;
  case MOB__J_INT:
    mob_buf_printf(out, "%lld", (long long)v.u.i);
    break;
  case MOB__J_FLOAT:
    mob__j_print_float(v.u.f, out);
    break;
  case MOB__J_STRING:
    repr_string(v.u.s, out);
    break;
  case MOB__J_LIST:
  case MOB__J_TUPLE:
    status = repr_list(r, v, out);
    break;
  case MOB__J_DICT:
    status = repr_dict(r, v.u.dict, out);
    break;
  case MOB__J_NAMESPACE:
    mob_buf_puts(out, "<Namespace ");
    status = repr_dict(r, v.u.dict, out);
    mob_buf_putc(out, '>');
    break;
  default:
    mob_buf_printf(out, "<%s>", mob__j_type_name(v));
  }
done:
  mob__jinja_leave(r);
  return status;
}

mob_status mob__j_print(mob__jinja_t *r, mob__jvalue_t v, mob_buf_t *out) {
  if (v.type == MOB__J_UNDEFINED) return MOB_OK;
  if (v.type != MOB__J_STRING) return mob__j_repr(r, v, out);
  r->steps += v.u.s.len / 256;
  MOB_TRY(mob__j_check_size(out->len + v.u.s.len));
  if (v.u.s.len) mob_buf_append(out, v.u.s.text, v.u.s.len);
  return MOB_OK;
}

mob_status mob__j_to_string(mob__jinja_t *r, mob__jvalue_t v, mob__jstring_t *out) {
  if (v.type == MOB__J_STRING) {
    *out = v.u.s;
    return MOB_OK;
  }
  mob_buf_t buf = {0};
  mob_status status = mob__j_print(r, v, &buf);
  if (status != MOB_OK) {
    mob_buf_free(&buf);
    return status;
  }
  mob__jvalue_t text;
  MOB_TRY(mob__j_take(r, &buf, &text));
  *out = text.u.s;
  return MOB_OK;
}

static void json_string_to(mob__jstring_t s, bool ensure_ascii, mob_buf_t *out) {
  mob_buf_putc(out, '"');
  for (size_t i = 0, width; i < s.len; i += width) {
    uint32_t c = mob_utf8_decode(s.text + i, &width);
    static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
    const char *simple = c && c < 0x80 ? strchr(from, (int)c) : NULL;
    if (simple) {
      mob_buf_putc(out, '\\');
      mob_buf_putc(out, to[simple - from]);
    } else if (c < 0x20 || (ensure_ascii && c >= 0x7F && c < 0x10000)) {
      mob_buf_printf(out, "\\u%04x", c);
    } else if (ensure_ascii && c >= 0x10000) {
      c -= 0x10000;
      mob_buf_printf(out, "\\u%04x\\u%04x", 0xD800 + (c >> 10), 0xDC00 + (c & 0x3FF));
    } else {
      mob_buf_append(out, s.text + i, width);
    }
  }
  mob_buf_putc(out, '"');
}

typedef struct json_writer {
  mob__jinja_t *r;
  const mob__jjson_t *style;
  mob_buf_t *out;
  int level;
} json_writer_t;

static void json_newline(json_writer_t *w) {
  if (!w->style->has_indent) return;
  mob_buf_putc(w->out, '\n');
  for (int i = 0; i < w->level && w->style->indent.len; i++) {
    mob_buf_append(w->out, w->style->indent.text, w->style->indent.len);
  }
}

static void json_separator(json_writer_t *w, size_t index) {
  if (index) mob_buf_append(w->out, w->style->item_separator.text, w->style->item_separator.len);
  json_newline(w);
}

static mob_status json_value(json_writer_t *w, mob__jvalue_t v);

static mob_status json_list(json_writer_t *w, const mob__jlist_t *list) {
  if (list->len == 0) return mob_buf_puts(w->out, "[]"), MOB_OK;
  mob_buf_putc(w->out, '[');
  w->level++;
  for (size_t i = 0; i < list->len; i++) {
    json_separator(w, i);
    MOB_TRY(json_value(w, list->at[i]));
  }
  w->level--;
  json_newline(w);
  mob_buf_putc(w->out, ']');
  return MOB_OK;
}

static mob_status json_key(json_writer_t *w, mob__jvalue_t key) {
  mob_buf_t text = {0};
  mob_status status = MOB_OK;
  switch (key.type) {
  case MOB__J_STRING:
    json_string_to(key.u.s, w->style->ensure_ascii, w->out);
    break;
  case MOB__J_NONE:
    mob_buf_puts(w->out, "\"null\"");
    break;
  case MOB__J_BOOL:
    mob_buf_puts(w->out, key.u.b ? "\"true\"" : "\"false\"");
    break;
  case MOB__J_INT:
  case MOB__J_FLOAT:
    status = mob__j_repr(w->r, key, &text);
    mob_buf_printf(w->out, "\"%s\"", mob_buf_cstr(&text));
    break;
  default:
    status = mob_fail(MOB_E_INVALID, "tojson: a key is of type %s", mob__j_type_name(key));
  }
  mob_buf_free(&text);
  if (status == MOB_OK)
    mob_buf_append(w->out, w->style->key_separator.text, w->style->key_separator.len);
  return status;
}

static int by_key(const void *a, const void *b) {
  int order = 0;
  (void)mob__j_compare(((const mob__jentry_t *)a)->key, ((const mob__jentry_t *)b)->key, &order);
  return order;
}

static mob_status json_dict(json_writer_t *w, const mob__jdict_t *dict) {
  const mob__jentry_t *entries = dict->at;
  if (dict->len == 0) return mob_buf_puts(w->out, "{}"), MOB_OK;
  if (w->style->sort_keys) {
    mob__jentry_t *sorted = mob__j_alloc(w->r, dict->len * sizeof *sorted);
    memcpy(sorted, dict->at, dict->len * sizeof *sorted);
    qsort(sorted, dict->len, sizeof *sorted, by_key);
    entries = sorted;
  }
  mob_buf_putc(w->out, '{');
  w->level++;
  for (size_t i = 0; i < dict->len; i++) {
    json_separator(w, i);
    MOB_TRY(json_key(w, entries[i].key));
    MOB_TRY(json_value(w, entries[i].value));
  }
  w->level--;
  json_newline(w);
  mob_buf_putc(w->out, '}');
  return MOB_OK;
}

static mob_status json_value(json_writer_t *w, mob__jvalue_t v) {
  mob_status status = mob__jinja_enter(w->r);
  if (status != MOB_OK) return status;
  status = mob__j_check_size(w->out->len);
  if (status == MOB_OK) {
    switch (v.type) {
    case MOB__J_NONE:
      mob_buf_puts(w->out, "null");
      break;
    case MOB__J_BOOL:
      mob_buf_puts(w->out, v.u.b ? "true" : "false");
      break;
    case MOB__J_INT:
      mob_buf_printf(w->out, "%lld", (long long)v.u.i);
      break;
    case MOB__J_FLOAT:
      if (isfinite(v.u.f))
        mob__j_print_float(v.u.f, w->out);
      else
        mob_buf_puts(w->out, isnan(v.u.f) ? "NaN" : v.u.f < 0 ? "-Infinity" : "Infinity");
      break;
    case MOB__J_STRING:
      json_string_to(v.u.s, w->style->ensure_ascii, w->out);
      w->r->steps += v.u.s.len / 64;
      break;
    case MOB__J_LIST:
    case MOB__J_TUPLE:
      status = json_list(w, v.u.list);
      break;
    case MOB__J_DICT:
      status = json_dict(w, v.u.dict);
      break;
    default:
      status = mob_fail(MOB_E_INVALID, "Object of type %s is not JSON serializable",
                        mob__j_type_name(v));
    }
  }
  mob__jinja_leave(w->r);
  return status;
}

mob_status mob__j_json(mob__jinja_t *r, mob__jvalue_t v, const mob__jjson_t *style,
                       mob_buf_t *out) {
  json_writer_t w = {.r = r, .style = style, .out = out};
  return json_value(&w, v);
}

mob_status mob__j_from_json(mob__jinja_t *r, json_t *json, int depth, mob__jvalue_t *out) {
  if (depth > MOB__JINJA_MAX_DATA_DEPTH) {
    return mob_fail(MOB_E_INVALID, "the template's input is nested more than %d levels deep",
                    MOB__JINJA_MAX_DATA_DEPTH);
  }
  mob__jvalue_t item;
  switch (json_typeof(json)) {
  case JSON_NULL:
    *out = mob__j_none();
    break;
  case JSON_TRUE:
    *out = mob__j_bool(true);
    break;
  case JSON_FALSE:
    *out = mob__j_bool(false);
    break;
  case JSON_INTEGER:
    *out = mob__j_int(json_integer_value(json));
    break;
  case JSON_REAL:
    *out = mob__j_float(json_real_value(json));
    break;
  case JSON_STRING: // the text stays where it is
    *out = mob__j_string((mob__jstring_t){json_string_value(json), json_string_length(json)});
    break;
  case JSON_ARRAY: {
    *out = mob__j_new_list(r, MOB__J_LIST);
    for (size_t i = 0; i < json_array_size(json); i++) {
      MOB_TRY(mob__j_from_json(r, json_array_get(json, i), depth + 1, &item));
      mob__j_push(r, out->u.list, item);
    }
    break;
  }
  case JSON_OBJECT: {
    const char *key;
    json_t *value;
    size_t count = json_object_size(json), i = 0;
    *out = mob__j_new_dict(r, MOB__J_DICT);
    mob__jdict_t *dict = out->u.dict;
    dict->at = mob__j_alloc(r, count * sizeof *dict->at);
    dict->len = dict->cap = count; // keys are unique: no look-up for each
    json_object_foreach(json, key, value) {
      MOB_TRY(mob__j_from_json(r, value, depth + 1, &item));
      dict->at[i++] = (mob__jentry_t){mob__j_string((mob__jstring_t){key, strlen(key)}), item};
      uint32_t inner = item.type == MOB__J_LIST   ? item.u.list->depth + 1
                       : item.type == MOB__J_DICT ? item.u.dict->depth + 1
                                                  : 0;
      if (inner > dict->depth) dict->depth = inner;
    }
    break;
  }
  }
  return MOB_OK;
}
