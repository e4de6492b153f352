// Filters: value | name(arguments).
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/jinja.h"
#include "runtime/base/utf8.h"

typedef mob_status (*filter_fn)(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                                mob__jvalue_t *out);

// Argument `i`, by place or name; false when absent.
static bool argument(const mob__jargs_t *args, size_t i, const char *name, mob__jvalue_t *out) {
  bool given = i < args->len;
  if (given) *out = args->at[i];
  for (size_t k = 0; !given && k < args->named_len; k++) {
    given = mob__jstr_is(args->named[k].name, name);
    if (given) *out = args->named[k].value;
  }
  return given;
}

static bool flag(const mob__jargs_t *args, size_t i, const char *name, bool absent) {
  mob__jvalue_t v;
  return argument(args, i, name, &v) ? mob__j_truth(v) : absent;
}

// Most string filters work on str(value).
static mob_status via_method(mob__jinja_t *r, mob__jvalue_t v, const char *name,
                             const mob__jargs_t *args, mob__jvalue_t *out) {
  mob__jstring_t s;
  MOB_TRY(mob__j_to_string(r, v, &s));
  return mob__jinja_string_method(r, s, (mob__jstring_t){name, strlen(name)}, args, out);
}

#define STRING_FILTER(function, method)                                                            \
  static mob_status function(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,           \
                             mob__jvalue_t *out) {                                                 \
    return via_method(r, v, method, args, out);                                                    \
  }
STRING_FILTER(f_upper, "upper")
STRING_FILTER(f_lower, "lower")
STRING_FILTER(f_capitalize, "capitalize")
STRING_FILTER(f_trim, "strip")
STRING_FILTER(f_replace, "replace")

static mob_status f_center(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  mob__jvalue_t width = mob__j_int(80);
  (void)argument(args, 0, "width", &width);
  return via_method(r, v, "center", &(mob__jargs_t){.at = &width, .len = 1}, out);
}

// Jinja's own title: a letter is capital at the start and behind - ( { [ < and white space.
static mob_status f_title(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  mob__jstring_t s;
  mob_buf_t buf = {0};
  (void)args;
  MOB_TRY(mob__j_to_string(r, v, &s));
  for (size_t start = 0; start < s.len;) {
    size_t end = start;
    bool separators = strchr("-({[< \t\n\r\f\v", s.text[start]) != NULL && s.text[start];
    while (end < s.len &&
           ((s.text[end] && strchr("-({[< \t\n\r\f\v", s.text[end])) != 0) == separators)
      end++;
    mob__jvalue_t part;
    mob_status status =
        mob__jinja_string_method(r, (mob__jstring_t){s.text + start, end - start},
                                 MOB__JSTR("capitalize"), &(mob__jargs_t){0}, &part);
    if (status != MOB_OK) {
      mob_buf_free(&buf);
      return status;
    }
    mob_buf_append(&buf, part.u.s.text, part.u.s.len);
    start = end;
  }
  return mob__j_take(r, &buf, out);
}

static mob_status f_string(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  mob__jstring_t s;
  (void)args;
  MOB_TRY(mob__j_to_string(r, v, &s));
  *out = mob__j_string(s);
  return MOB_OK;
}

static mob_status f_escape(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  mob__jstring_t s;
  mob_buf_t buf = {0};
  (void)args;
  MOB_TRY(mob__j_to_string(r, v, &s));
  for (size_t i = 0; i < s.len; i++) {
    char c = s.text[i];
    const char *text = c == '&'    ? "&amp;"
                       : c == '<'  ? "&lt;"
                       : c == '>'  ? "&gt;"
                       : c == '"'  ? "&#34;"
                       : c == '\'' ? "&#39;"
                                   : NULL;
    if (text)
      mob_buf_puts(&buf, text);
    else
      mob_buf_putc(&buf, c);
  }
  return mob__j_take(r, &buf, out);
}

static mob_status f_length(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  size_t n = 0;
  (void)args;
  switch (v.type) {
  case MOB__J_UNDEFINED:
    break;
  case MOB__J_STRING:
    n = mob_utf8_count(v.u.s.text, v.u.s.len);
    r->steps += v.u.s.len / 256;
    break;
  case MOB__J_LIST:
  case MOB__J_TUPLE:
    n = v.u.list->len;
    break;
  case MOB__J_DICT:
    n = v.u.dict->len;
    break;
  case MOB__J_LOOP:
    n = v.u.loop->items->len;
    break;
  default:
    return mob_fail(MOB_E_INVALID, "object of type '%s' has no len()", mob__j_type_name(v));
  }
  *out = mob__j_int((int64_t)n);
  return MOB_OK;
}

static mob_status f_default(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                            mob__jvalue_t *out) {
  mob__jvalue_t other = mob__j_string(MOB__JSTR(""));
  (void)r;
  (void)argument(args, 0, "default_value", &other);
  bool use = v.type == MOB__J_UNDEFINED || (flag(args, 1, "boolean", false) && !mob__j_truth(v));
  *out = use ? other : v;
  return MOB_OK;
}

static mob_status f_first(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  mob__jlist_t *items;
  (void)args;
  MOB_TRY(mob__j_iterate(r, v, &items));
  *out = items->len ? items->at[0] : mob__j_undefined(r, "No first item, sequence was empty.");
  return MOB_OK;
}

static mob_status f_last(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                         mob__jvalue_t *out) {
  mob__jlist_t *items;
  (void)args;
  MOB_TRY(mob__j_iterate(r, v, &items));
  *out = items->len ? items->at[items->len - 1]
                    : mob__j_undefined(r, "No last item, sequence was empty.");
  return MOB_OK;
}

static mob_status f_list(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                         mob__jvalue_t *out) {
  mob__jlist_t *items;
  (void)args;
  MOB_TRY(mob__j_iterate(r, v, &items));
  *out = (mob__jvalue_t){.type = MOB__J_LIST, .u.list = items}; // lists cannot be changed: no copy
  return MOB_OK;
}

static mob_status f_items(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  (void)args;
  *out = mob__j_new_list(r, MOB__J_LIST);
  if (v.type == MOB__J_UNDEFINED) return MOB_OK;
  if (v.type != MOB__J_DICT)
    return mob_fail(MOB_E_INVALID, "Can only get item pairs from a mapping.");
  for (size_t i = 0; i < v.u.dict->len; i++) {
    mob__jvalue_t pair = mob__j_new_list(r, MOB__J_TUPLE);
    mob__j_push(r, pair.u.list, v.u.dict->at[i].key);
    mob__j_push(r, pair.u.list, v.u.dict->at[i].value);
    mob__j_push(r, out->u.list, pair);
  }
  return MOB_OK;
}

// "a.b.0": the attribute of an attribute. An index for a number.
// `absent` (or NULL) stands in for what is not there.
static mob_status dotted_or(mob__jinja_t *r, mob__jvalue_t v, mob__jvalue_t path,
                            const mob__jvalue_t *absent, mob__jvalue_t *out) {
  *out = v;
  if (path.type != MOB__J_STRING) {
    MOB_TRY(mob__jinja_get_item(r, v, path, out));
    if (absent && out->type == MOB__J_UNDEFINED) *out = *absent;
    return MOB_OK;
  }
  mob__jstring_t s = path.u.s;
  for (size_t start = 0; start <= s.len;) {
    const char *dot = s.len > start ? memchr(s.text + start, '.', s.len - start) : NULL;
    size_t end = dot ? (size_t)(dot - s.text) : s.len;
    mob__jstring_t part = {s.text + start, end - start};
    bool number = part.len > 0 && part.len < 10;
    int64_t n = 0;
    for (size_t i = 0; i < part.len && number; i++) {
      number = part.text[i] >= '0' && part.text[i] <= '9';
      n = n * 10 + (part.text[i] - '0');
    }
    // As environment.getitem: an item first, then an attribute.
    MOB_TRY(mob__jinja_get_item(r, *out, number ? mob__j_int(n) : mob__j_string(part), out));
    if (absent && out->type == MOB__J_UNDEFINED) *out = *absent;
    start = end + 1;
  }
  return MOB_OK;
}

static mob_status dotted(mob__jinja_t *r, mob__jvalue_t v, mob__jvalue_t path, mob__jvalue_t *out) {
  return dotted_or(r, v, path, NULL, out);
}

static mob_status f_join(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                         mob__jvalue_t *out) {
  mob__jlist_t *items;
  mob__jvalue_t sep = mob__j_string(MOB__JSTR("")), attribute;
  mob__jstring_t between;
  mob_buf_t buf = {0};
  mob_status status = MOB_OK;
  (void)argument(args, 0, "d", &sep);
  bool by_attribute = argument(args, 1, "attribute", &attribute);
  MOB_TRY(mob__j_to_string(r, sep, &between));
  MOB_TRY(mob__j_iterate(r, v, &items));
  for (size_t i = 0; i < items->len && status == MOB_OK; i++) {
    mob__jvalue_t item = items->at[i];
    if (i && between.len) mob_buf_append(&buf, between.text, between.len);
    if (by_attribute) status = dotted(r, item, attribute, &item);
    if (status == MOB_OK) status = mob__j_print(r, item, &buf);
  }
  if (status == MOB_OK) return mob__j_take(r, &buf, out);
  mob_buf_free(&buf);
  return status;
}

static mob_status f_reverse(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                            mob__jvalue_t *out) {
  mob__jlist_t *items;
  (void)args;
  MOB_TRY(mob__j_iterate(r, v, &items));
  mob__jvalue_t list = mob__j_new_list(r, MOB__J_LIST);
  for (size_t i = items->len; i-- > 0;) mob__j_push(r, list.u.list, items->at[i]);
  if (v.type != MOB__J_STRING) {
    *out = list;
    return MOB_OK;
  }
  return f_join(r, list, &(mob__jargs_t){0}, out);
}

static mob_status f_tojson(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  // The order is that of transformers' own filter: ensure_ascii, indent, separators, sort_keys.
  mob__jjson_t style = {.item_separator = MOB__JSTR(", "), .key_separator = MOB__JSTR(": ")};
  mob__jvalue_t a;
  mob_buf_t buf = {0};
  char spaces[64];
  style.ensure_ascii = flag(args, 0, "ensure_ascii", false);
  if (argument(args, 1, "indent", &a) && a.type != MOB__J_NONE) {
    style.has_indent = true;
    style.item_separator = MOB__JSTR(",");
    if (a.type == MOB__J_STRING) {
      style.indent = a.u.s;
    } else if (a.type == MOB__J_INT || a.type == MOB__J_BOOL) {
      int64_t n = a.type == MOB__J_INT ? a.u.i : a.u.b;
      n = n < 0 ? 0 : n > (int64_t)sizeof spaces ? (int64_t)sizeof spaces : n;
      memset(spaces, ' ', sizeof spaces);
      style.indent = (mob__jstring_t){spaces, (size_t)n};
    } else {
      return mob_fail(MOB_E_INVALID, "tojson: indent is of type %s", mob__j_type_name(a));
    }
  }
  if (argument(args, 2, "separators", &a) && a.type != MOB__J_NONE) {
    mob__jlist_t *pair;
    MOB_TRY(mob__j_iterate(r, a, &pair));
    if (pair->len != 2 || pair->at[0].type != MOB__J_STRING || pair->at[1].type != MOB__J_STRING) {
      return mob_fail(MOB_E_INVALID, "tojson: separators must be two strings");
    }
    style.item_separator = pair->at[0].u.s;
    style.key_separator = pair->at[1].u.s;
  }
  style.sort_keys = flag(args, 3, "sort_keys", false);
  mob_status status = mob__j_json(r, v, &style, &buf);
  if (status == MOB_OK) return mob__j_take(r, &buf, out);
  mob_buf_free(&buf);
  return status;
}

static mob_status f_safe(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                         mob__jvalue_t *out) {
  return f_string(r, v, args, out);
}

static mob_status f_int(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                        mob__jvalue_t *out) {
  mob__jvalue_t other = mob__j_int(0);
  (void)argument(args, 0, "default", &other);
  (void)r;
  *out = other;
  if (v.type == MOB__J_INT || v.type == MOB__J_BOOL) {
    *out = mob__j_int(v.type == MOB__J_INT ? v.u.i : v.u.b);
  } else if (v.type == MOB__J_FLOAT && fabs(v.u.f) < 9e18) {
    *out = mob__j_int((int64_t)v.u.f);
  } else if (v.type == MOB__J_STRING && v.u.s.len && v.u.s.len < 64) {
    char text[64], *end;
    memcpy(text, v.u.s.text, v.u.s.len);
    text[v.u.s.len] = 0;
    text[strcspn(text, "xXnNpP_")] = 0; // no hexadecimal, no inf or nan
    long long n = strtoll(text, &end, 10);
    end += strspn(end, " \t\n\r\f\v");
    if (end != text && !*end && n > INT64_MIN && n < INT64_MAX) {
      *out = mob__j_int(n);
    } else {
      double f = strtod(text, &end);
      end += strspn(end, " \t\n\r\f\v");
      if (end != text && !*end && fabs(f) < 9e18) *out = mob__j_int((int64_t)f);
    }
  }
  return MOB_OK;
}

static mob_status f_float(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  mob__jvalue_t other = mob__j_float(0);
  (void)argument(args, 0, "default", &other);
  (void)r;
  *out = other;
  if (mob__j_is_number(v)) {
    *out = mob__j_float(mob__j_number(v));
  } else if (v.type == MOB__J_STRING && v.u.s.len && v.u.s.len < 64) {
    char text[64], *end;
    memcpy(text, v.u.s.text, v.u.s.len);
    text[v.u.s.len] = 0;
    double f = strtod(text, &end);
    end += strspn(end, " \t\n\r\f\v");
    if (end != text && !*end && !strpbrk(text, "xX")) *out = mob__j_float(f);
  }
  return MOB_OK;
}

static mob_status f_abs(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                        mob__jvalue_t *out) {
  (void)r, (void)args;
  if (!mob__j_is_number(v))
    return mob_fail(MOB_E_INVALID, "bad operand type for abs(): '%s'", mob__j_type_name(v));
  if (v.type == MOB__J_FLOAT)
    *out = mob__j_float(fabs(v.u.f));
  else
    *out = mob__j_int(v.type == MOB__J_BOOL            ? v.u.b
                      : v.u.i < 0 && v.u.i > INT64_MIN ? -v.u.i
                                                       : v.u.i);
  return MOB_OK;
}

static mob_status f_round(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  mob__jvalue_t precision = mob__j_int(0), method = mob__j_string(MOB__JSTR("common"));
  (void)r;
  (void)argument(args, 0, "precision", &precision);
  (void)argument(args, 1, "method", &method);
  if (!mob__j_is_number(v) || precision.type != MOB__J_INT || method.type != MOB__J_STRING) {
    return mob_fail(MOB_E_INVALID, "round needs numbers");
  }
  double f = mob__j_number(v), scale = pow(10, (double)precision.u.i);
  if (mob__jstr_is(method.u.s, "ceil"))
    f = ceil(f * scale) / scale;
  else if (mob__jstr_is(method.u.s, "floor"))
    f = floor(f * scale) / scale;
  else if (precision.u.i >= 0 &&
           precision.u.i <= 30) { // decimal digits, ties to even, as Python's round()
    char text[400];
    snprintf(text, sizeof text, "%.*f", (int)precision.u.i, f);
    f = strtod(text, NULL);
  } else
    f = nearbyint(f * scale) / scale;
  *out = v.type == MOB__J_FLOAT || !mob__jstr_is(method.u.s, "common") ? mob__j_float(f)
                                                                       : mob__j_int((int64_t)f);
  return MOB_OK;
}

static mob_status f_indent(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  mob__jvalue_t width = mob__j_int(4);
  mob__jstring_t s, pad = {0};
  mob_buf_t buf = {0}, spaces = {0};
  (void)argument(args, 0, "width", &width);
  bool first = flag(args, 1, "first", false), blank = flag(args, 2, "blank", false);
  MOB_TRY(mob__j_to_string(r, v, &s));
  if (width.type == MOB__J_STRING) {
    pad = width.u.s;
  } else if (width.type == MOB__J_INT && width.u.i >= 0 && width.u.i < 10000) {
    for (int64_t i = 0; i < width.u.i; i++) mob_buf_putc(&spaces, ' ');
    pad = (mob__jstring_t){mob_buf_cstr(&spaces), spaces.len};
  } else {
    return mob_fail(MOB_E_INVALID, "indent: bad width");
  }
  mob_status status = MOB_OK;
  for (size_t i = 0, line = 0; i <= s.len && status == MOB_OK; line++) {
    const char *newline = i < s.len ? memchr(s.text + i, '\n', s.len - i) : NULL;
    size_t end = newline ? (size_t)(newline - s.text) : s.len;
    if ((line ? blank || end > i : first) && pad.len) mob_buf_append(&buf, pad.text, pad.len);
    if (end > i) mob_buf_append(&buf, s.text + i, end - i);
    if (newline) mob_buf_putc(&buf, '\n');
    i = end + 1;
    status = mob__j_check_size(buf.len);
  }
  mob_buf_free(&spaces);
  if (status == MOB_OK) return mob__j_take(r, &buf, out);
  mob_buf_free(&buf);
  return status;
}

static mob_status f_wordcount(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                              mob__jvalue_t *out) {
  (void)args;
  mob__jvalue_t words;
  MOB_TRY(via_method(r, v, "split", &(mob__jargs_t){0}, &words));
  *out = mob__j_int((int64_t)words.u.list->len);
  return MOB_OK;
}

static mob_status f_format(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  mob__jstring_t s;
  mob__jvalue_t values = mob__j_new_list(r, MOB__J_TUPLE);
  MOB_TRY(mob__j_to_string(r, v, &s));
  for (size_t i = 0; i < args->len; i++) mob__j_push(r, values.u.list, args->at[i]);
  if (args->named_len) {
    values = mob__j_new_dict(r, MOB__J_DICT);
    for (size_t i = 0; i < args->named_len; i++)
      mob__j_dict_put(r, values.u.dict, mob__j_string(args->named[i].name), args->named[i].value);
  }
  return mob__jinja_percent(r, s, values, out);
}

static mob_status f_attr(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                         mob__jvalue_t *out) {
  mob__jvalue_t name;
  if (!argument(args, 0, "name", &name) || name.type != MOB__J_STRING)
    return mob_fail(MOB_E_INVALID, "attr needs a name");
  MOB_TRY(mob__j_defined(v));
  if (v.type == MOB__J_DICT) { // attributes only, no items
    *out = mob__j_undefined(r, "'dict object' has no attribute '%.*s'",
                            (int)(name.u.s.len < 100 ? name.u.s.len : 100), name.u.s.text);
    return MOB_OK;
  }
  return mob__jinja_get_attr(r, v, name.u.s, out);
}

static mob_status f_sum(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                        mob__jvalue_t *out) {
  mob__jlist_t *items;
  mob__jvalue_t attribute, start = mob__j_int(0);
  bool by_attribute = argument(args, 0, "attribute", &attribute) && attribute.type != MOB__J_NONE;
  (void)argument(args, 1, "start", &start);
  MOB_TRY(mob__j_iterate(r, v, &items));
  *out = start;
  for (size_t i = 0; i < items->len; i++) {
    mob__jvalue_t item = items->at[i];
    if (by_attribute) MOB_TRY(dotted(r, item, attribute, &item));
    MOB_TRY(mob__j_binary(r, '+', *out, item, out));
  }
  return MOB_OK;
}

// Sorting: values with their keys, lower case unless case_sensitive.
typedef struct sortable {
  mob__jvalue_t key, value;
  size_t index;
} sortable_t;

static int by_key(const void *a, const void *b) {
  const sortable_t *x = a, *y = b;
  int order = 0;
  (void)mob__j_compare(x->key, y->key, &order); // keys were checked to be comparable
  return order ? order : (x->index > y->index) - (x->index < y->index);
}

static mob_status sortables(mob__jinja_t *r, const mob__jlist_t *items,
                            const mob__jvalue_t *attribute, bool case_sensitive, sortable_t **out) {
  sortable_t *all = mob__j_alloc(r, (items->len + 1) * sizeof *all);
  int order;
  for (size_t i = 0; i < items->len; i++) {
    all[i] = (sortable_t){items->at[i], items->at[i], i};
    if (attribute) MOB_TRY(dotted(r, items->at[i], *attribute, &all[i].key));
    if (all[i].key.type == MOB__J_STRING && !case_sensitive)
      MOB_TRY(via_method(r, all[i].key, "lower", &(mob__jargs_t){0}, &all[i].key));
    if (i) MOB_TRY(mob__j_compare(all[0].key, all[i].key, &order));
  }
  r->steps += items->len * 4;
  *out = all;
  return MOB_OK;
}

static mob_status f_sort(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                         mob__jvalue_t *out) {
  mob__jlist_t *items;
  sortable_t *all;
  mob__jvalue_t attribute;
  bool by_attribute = argument(args, 2, "attribute", &attribute) && attribute.type != MOB__J_NONE;
  MOB_TRY(mob__j_iterate(r, v, &items));
  MOB_TRY(sortables(r, items, by_attribute ? &attribute : NULL,
                    flag(args, 1, "case_sensitive", false), &all));
  bool reverse = flag(args, 0, "reverse", false);
  for (size_t i = 0; reverse && i < items->len; i++)
    all[i].index = items->len - i; // equal ones keep their order
  qsort(all, items->len, sizeof *all, by_key);
  *out = mob__j_new_list(r, MOB__J_LIST);
  for (size_t i = 0; i < items->len; i++)
    mob__j_push(r, out->u.list, all[reverse ? items->len - 1 - i : i].value);
  return MOB_OK;
}

static mob_status f_dictsort(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                             mob__jvalue_t *out) {
  mob__jvalue_t pairs, by = mob__j_string(MOB__JSTR("key"));
  (void)argument(args, 1, "by", &by);
  bool value = by.type == MOB__J_STRING && mob__jstr_is(by.u.s, "value");
  MOB_TRY(f_items(r, v, &(mob__jargs_t){0}, &pairs));
  mob__jvariable_t named[] = {
      {MOB__JSTR("attribute"), mob__j_int(value)},
      {MOB__JSTR("case_sensitive"), mob__j_bool(flag(args, 0, "case_sensitive", false))},
      {MOB__JSTR("reverse"), mob__j_bool(flag(args, 2, "reverse", false))}};
  return f_sort(r, pairs, &(mob__jargs_t){.named = named, .named_len = 3}, out);
}

static mob_status extreme(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args, int sign,
                          mob__jvalue_t *out) {
  mob__jlist_t *items;
  sortable_t *all;
  mob__jvalue_t attribute;
  bool by_attribute = argument(args, 1, "attribute", &attribute) && attribute.type != MOB__J_NONE;
  MOB_TRY(mob__j_iterate(r, v, &items));
  MOB_TRY(sortables(r, items, by_attribute ? &attribute : NULL,
                    flag(args, 0, "case_sensitive", false), &all));
  size_t best = 0;
  int order;
  for (size_t i = 1; i < items->len; i++) {
    MOB_TRY(mob__j_compare(all[i].key, all[best].key, &order));
    if (order * sign > 0) best = i;
  }
  *out =
      items->len ? all[best].value : mob__j_undefined(r, "No aggregated item, sequence was empty.");
  return MOB_OK;
}

static mob_status f_min(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                        mob__jvalue_t *out) {
  return extreme(r, v, args, -1, out);
}

static mob_status f_max(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                        mob__jvalue_t *out) {
  return extreme(r, v, args, 1, out);
}

static mob_status f_unique(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  mob__jlist_t *items;
  mob__jvalue_t attribute;
  bool by_attribute = argument(args, 1, "attribute", &attribute) && attribute.type != MOB__J_NONE;
  bool case_sensitive = flag(args, 0, "case_sensitive", false);
  MOB_TRY(mob__j_iterate(r, v, &items));
  mob__jvalue_t seen = mob__j_new_list(r, MOB__J_LIST);
  *out = mob__j_new_list(r, MOB__J_LIST);
  for (size_t i = 0; i < items->len; i++) {
    mob__jvalue_t key = items->at[i];
    bool known;
    MOB_TRY(mob__jinja_enter(r));
    mob__jinja_leave(r);
    if (by_attribute) MOB_TRY(dotted(r, key, attribute, &key));
    if (key.type == MOB__J_STRING && !case_sensitive)
      MOB_TRY(via_method(r, key, "lower", &(mob__jargs_t){0}, &key));
    MOB_TRY(mob__j_contains(r, key, seen, &known));
    if (known) continue;
    mob__j_push(r, seen.u.list, key);
    mob__j_push(r, out->u.list, items->at[i]);
  }
  return MOB_OK;
}

// map(attribute=..., default=...) or map("filter", arguments...).
static mob_status f_map(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                        mob__jvalue_t *out) {
  mob__jlist_t *items;
  mob__jvalue_t attribute, item, other;
  static const mob__jargs_t none = {0};
  mob__jargs_t by_name = {.named = args->named, .named_len = args->named_len};
  bool by_attribute = args->len == 0 && argument(&by_name, 0, "attribute", &attribute);
  bool has_default = by_attribute && argument(&by_name, 0, "default", &other);
  if (!by_attribute && (args->len == 0 || args->at[0].type != MOB__J_STRING ||
                        !mob__jinja_is_filter(args->at[0].u.s))) {
    return mob_fail(MOB_E_INVALID, "map requires a filter argument");
  }
  mob__jargs_t rest =
      by_attribute ? none
                   : (mob__jargs_t){args->at + 1, args->len - 1, args->named, args->named_len};
  MOB_TRY(mob__j_iterate(r, v, &items));
  *out = mob__j_new_list(r, MOB__J_LIST);
  for (size_t i = 0; i < items->len; i++) {
    MOB_TRY(mob__jinja_enter(r));
    mob_status status =
        by_attribute ? dotted_or(r, items->at[i], attribute, has_default ? &other : NULL, &item)
                     : mob__jinja_filter(r, args->at[0].u.s, items->at[i], &rest, &item);
    mob__jinja_leave(r);
    if (status != MOB_OK) return status;
    mob__j_push(r, out->u.list, item);
  }
  return MOB_OK;
}

// select, reject, selectattr, rejectattr: with a test, or by truth.
static mob_status pick(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                       bool by_attribute, bool keep, mob__jvalue_t *out) {
  mob__jlist_t *items;
  size_t skip = by_attribute;
  if (args->len < skip) return mob_fail(MOB_E_INVALID, "selectattr needs an attribute");
  bool tested = args->len > skip;
  if (tested && (args->at[skip].type != MOB__J_STRING || !mob__jinja_is_test(args->at[skip].u.s))) {
    return mob_fail(MOB_E_INVALID, "select and its like need the name of a test");
  }
  mob__jargs_t rest = {0};
  if (tested)
    rest = (mob__jargs_t){args->at + skip + 1, args->len - skip - 1, args->named, args->named_len};
  MOB_TRY(mob__j_iterate(r, v, &items));
  *out = mob__j_new_list(r, MOB__J_LIST);
  for (size_t i = 0; i < items->len; i++) {
    mob__jvalue_t item = items->at[i];
    MOB_TRY(mob__jinja_enter(r));
    mob__jinja_leave(r);
    if (by_attribute) MOB_TRY(dotted(r, item, args->at[0], &item));
    bool yes = mob__j_truth(item);
    if (tested) MOB_TRY(mob__jinja_test(r, args->at[skip].u.s, item, &rest, &yes));
    if (yes == keep) mob__j_push(r, out->u.list, items->at[i]);
  }
  return MOB_OK;
}

static mob_status f_select(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  return pick(r, v, args, false, true, out);
}

static mob_status f_reject(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  return pick(r, v, args, false, false, out);
}

static mob_status f_selectattr(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                               mob__jvalue_t *out) {
  return pick(r, v, args, true, true, out);
}

static mob_status f_rejectattr(mob__jinja_t *r, mob__jvalue_t v, const mob__jargs_t *args,
                               mob__jvalue_t *out) {
  return pick(r, v, args, true, false, out);
}

static const struct {
  const char *name;
  filter_fn call;
} filters[] = {
    {"abs", f_abs},
    {"attr", f_attr},
    {"capitalize", f_capitalize},
    {"center", f_center},
    {"count", f_length},
    {"d", f_default},
    {"default", f_default},
    {"dictsort", f_dictsort},
    {"e", f_escape},
    {"escape", f_escape},
    {"first", f_first},
    {"float", f_float},
    {"format", f_format},
    {"indent", f_indent},
    {"int", f_int},
    {"items", f_items},
    {"join", f_join},
    {"last", f_last},
    {"length", f_length},
    {"list", f_list},
    {"lower", f_lower},
    {"map", f_map},
    {"max", f_max},
    {"min", f_min},
    {"reject", f_reject},
    {"rejectattr", f_rejectattr},
    {"replace", f_replace},
    {"reverse", f_reverse},
    {"round", f_round},
    {"safe", f_safe},
    {"select", f_select},
    {"selectattr", f_selectattr},
    {"sort", f_sort},
    {"string", f_string},
    {"sum", f_sum},
    {"title", f_title},
    {"tojson", f_tojson},
    {"trim", f_trim},
    {"unique", f_unique},
    {"upper", f_upper},
    {"wordcount", f_wordcount},
};

bool mob__jinja_is_filter(mob__jstring_t name) {
  for (size_t i = 0; i < MOB_LEN(filters); i++) {
    if (mob__jstr_is(name, filters[i].name)) return true;
  }
  return false;
}

mob_status mob__jinja_filter(mob__jinja_t *r, mob__jstring_t name, mob__jvalue_t v,
                             const mob__jargs_t *args, mob__jvalue_t *out) {
  for (size_t i = 0; i < MOB_LEN(filters); i++) {
    if (mob__jstr_is(name, filters[i].name)) return filters[i].call(r, v, args, out);
  }
  return mob_fail(MOB_E_UNSUPPORTED, "there is no filter named '%.*s'", (int)name.len, name.text);
}
