// Values and what operators do with them, by Python's rules.
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/text/jinja.h"
#include "runtime/base/utf8.h"

bool mob__jstr_is(mob__jstring_t s, const char *text) {
  return strlen(text) == s.len && memcmp(s.text, text, s.len) == 0;
}

bool mob__jstr_eq(mob__jstring_t a, mob__jstring_t b) {
  return a.len == b.len && (a.len == 0 || memcmp(a.text, b.text, a.len) == 0);
}

mob__jvalue_t mob__j_string(mob__jstring_t s) {
  return (mob__jvalue_t){.type = MOB__J_STRING, .u.s = s};
}

mob__jvalue_t mob__j_int(int64_t i) {
  return (mob__jvalue_t){.type = MOB__J_INT, .u.i = i};
}

mob__jvalue_t mob__j_bool(bool b) {
  return (mob__jvalue_t){.type = MOB__J_BOOL, .u.b = b};
}

mob__jvalue_t mob__j_float(double f) {
  return (mob__jvalue_t){.type = MOB__J_FLOAT, .u.f = f};
}

mob__jvalue_t mob__j_none(void) {
  return (mob__jvalue_t){.type = MOB__J_NONE};
}

void *mob__j_alloc(mob__jinja_t *r, size_t size) {
  r->memory += size + 16;
  r->steps += size / 256;
  return mob_arena_alloc(&r->arena, size ? size : 1);
}

mob__jvalue_t mob__j_undefined(mob__jinja_t *r, const char *fmt, ...) {
  char text[256];
  va_list args;
  va_start(args, fmt);
  mob_utf8_vformat(text, sizeof text, fmt, args);
  va_end(args);
  size_t len = strlen(text);
  char *copy = mob__j_alloc(r, len + 1);
  memcpy(copy, text, len);
  return (mob__jvalue_t){.type = MOB__J_UNDEFINED, .u.s = {copy, len}};
}

mob__jvalue_t mob__j_new_list(mob__jinja_t *r, mob__jtype_t type) {
  return (mob__jvalue_t){.type = type, .u.list = mob__j_alloc(r, sizeof(mob__jlist_t))};
}

static void deepen(mob__jinja_t *r, uint32_t *depth, mob__jvalue_t v) {
  uint32_t inner = 0;
  if (v.type == MOB__J_LIST || v.type == MOB__J_TUPLE) inner = v.u.list->depth + 1;
  if (v.type == MOB__J_DICT || v.type == MOB__J_NAMESPACE) inner = v.u.dict->depth + 1;
  if (inner > *depth) *depth = inner;
  if (inner > MOB__JINJA_MAX_DATA_DEPTH) r->too_deep = true;
}

void mob__j_push(mob__jinja_t *r, mob__jlist_t *list, mob__jvalue_t v) {
  deepen(r, &list->depth, v);
  if (list->len == list->cap) {
    size_t cap = list->cap ? list->cap * 2 : 4;
    mob__jvalue_t *grown = mob__j_alloc(r, cap * sizeof *grown);
    if (list->len) memcpy(grown, list->at, list->len * sizeof *grown);
    list->at = grown;
    list->cap = cap;
  }
  list->at[list->len++] = v;
}

mob__jvalue_t mob__j_new_dict(mob__jinja_t *r, mob__jtype_t type) {
  return (mob__jvalue_t){.type = type, .u.dict = mob__j_alloc(r, sizeof(mob__jdict_t))};
}

mob__jvalue_t *mob__j_dict_get(const mob__jdict_t *dict, mob__jvalue_t key) {
  for (size_t i = 0; i < dict->len; i++) {
    if (mob__j_equal(dict->at[i].key, key)) return &dict->at[i].value;
  }
  return NULL;
}

mob__jvalue_t *mob__j_dict_gets(const mob__jdict_t *dict, mob__jstring_t key) {
  for (size_t i = 0; i < dict->len; i++) {
    if (dict->at[i].key.type == MOB__J_STRING && mob__jstr_eq(dict->at[i].key.u.s, key)) {
      return &dict->at[i].value;
    }
  }
  return NULL;
}

void mob__j_dict_put(mob__jinja_t *r, mob__jdict_t *dict, mob__jvalue_t key, mob__jvalue_t v) {
  r->steps += dict->len / 16;
  deepen(r, &dict->depth, v);
  mob__jvalue_t *former = mob__j_dict_get(dict, key);
  if (former) {
    *former = v;
    return;
  }
  if (dict->len == dict->cap) {
    size_t cap = dict->cap ? dict->cap * 2 : 4;
    mob__jentry_t *grown = mob__j_alloc(r, cap * sizeof *grown);
    if (dict->len) memcpy(grown, dict->at, dict->len * sizeof *grown);
    dict->at = grown;
    dict->cap = cap;
  }
  dict->at[dict->len++] = (mob__jentry_t){key, v};
}

mob_status mob__j_check_size(size_t len) {
  if (len <= MOB__JINJA_MAX_STRING) return MOB_OK;
  return mob_fail(MOB_E_INVALID, "the template makes a text of more than %zu bytes",
                  MOB__JINJA_MAX_STRING);
}

mob_status mob__j_take(mob__jinja_t *r, mob_buf_t *buf, mob__jvalue_t *out) {
  mob_status status = mob__j_check_size(buf->len);
  if (status == MOB_OK) {
    char *copy = mob__j_alloc(r, buf->len);
    if (buf->len) memcpy(copy, buf->data, buf->len);
    *out = mob__j_string((mob__jstring_t){copy, buf->len});
  }
  mob_buf_free(buf);
  return status;
}

const char *mob__j_type_name(mob__jvalue_t v) {
  static const char *const names[] = {
      "Undefined", "NoneType", "bool", "int",       "float",       "str",
      "list",      "tuple",    "dict", "Namespace", "LoopContext", "builtin_function_or_method",
      "function",  "Macro"};
  return names[v.type];
}

mob_status mob__j_defined(mob__jvalue_t v) {
  if (v.type != MOB__J_UNDEFINED) return MOB_OK;
  return mob_fail(MOB_E_INVALID, "%.*s", (int)v.u.s.len, v.u.s.text);
}

bool mob__j_truth(mob__jvalue_t v) {
  switch (v.type) {
  case MOB__J_UNDEFINED:
  case MOB__J_NONE:
    return false;
  case MOB__J_BOOL:
    return v.u.b;
  case MOB__J_INT:
    return v.u.i != 0;
  case MOB__J_FLOAT:
    return v.u.f != 0;
  case MOB__J_STRING:
    return v.u.s.len > 0;
  case MOB__J_LIST:
  case MOB__J_TUPLE:
    return v.u.list->len > 0;
  case MOB__J_DICT:
    return v.u.dict->len > 0;
  default:
    return true;
  }
}

bool mob__j_is_number(mob__jvalue_t v) {
  return v.type == MOB__J_INT || v.type == MOB__J_FLOAT || v.type == MOB__J_BOOL;
}

double mob__j_number(mob__jvalue_t v) {
  return v.type == MOB__J_FLOAT ? v.u.f : v.type == MOB__J_INT ? (double)v.u.i : v.u.b;
}

static int64_t whole(mob__jvalue_t v) {
  return v.type == MOB__J_INT ? v.u.i : v.u.b;
}

static bool is_sequence(mob__jvalue_t v) {
  return v.type == MOB__J_LIST || v.type == MOB__J_TUPLE;
}

static bool dict_equal(const mob__jdict_t *a, const mob__jdict_t *b) {
  if (a->len != b->len) return false;
  for (size_t i = 0; i < a->len; i++) {
    const mob__jvalue_t *other = mob__j_dict_get(b, a->at[i].key);
    if (!other || !mob__j_equal(a->at[i].value, *other)) return false;
  }
  return true;
}

// Values cannot hold themselves (nothing can be changed after it was made), and their depth is
// bounded where they come from outside or grow.
bool mob__j_equal(mob__jvalue_t a, mob__jvalue_t b) {
  if (mob__j_is_number(a) && mob__j_is_number(b)) {
    if (a.type == MOB__J_FLOAT || b.type == MOB__J_FLOAT)
      return mob__j_number(a) == mob__j_number(b);
    return whole(a) == whole(b);
  }
  if (a.type != b.type) return false;
  switch (a.type) {
  case MOB__J_UNDEFINED:
  case MOB__J_NONE:
    return true;
  case MOB__J_STRING:
    return mob__jstr_eq(a.u.s, b.u.s);
  case MOB__J_LIST:
  case MOB__J_TUPLE:
    if (a.u.list == b.u.list) return true;
    if (a.u.list->len != b.u.list->len) return false;
    for (size_t i = 0; i < a.u.list->len; i++) {
      if (!mob__j_equal(a.u.list->at[i], b.u.list->at[i])) return false;
    }
    return true;
  case MOB__J_DICT:
    return a.u.dict == b.u.dict || dict_equal(a.u.dict, b.u.dict);
  case MOB__J_FUNCTION:
    return a.u.name == b.u.name;
  default:
    return a.u.dict == b.u.dict; // the same object
  }
}

mob_status mob__j_compare(mob__jvalue_t a, mob__jvalue_t b, int *out) {
  if (mob__j_is_number(a) && mob__j_is_number(b)) {
    if (a.type == MOB__J_FLOAT || b.type == MOB__J_FLOAT) {
      double x = mob__j_number(a), y = mob__j_number(b);
      *out = (x > y) - (x < y);
    } else {
      *out = (whole(a) > whole(b)) - (whole(a) < whole(b));
    }
    return MOB_OK;
  }
  if (a.type == MOB__J_STRING && b.type == MOB__J_STRING) { // UTF-8 sorts as its characters do
    size_t n = a.u.s.len < b.u.s.len ? a.u.s.len : b.u.s.len;
    int order = n ? memcmp(a.u.s.text, b.u.s.text, n) : 0;
    *out = order ? order : (a.u.s.len > b.u.s.len) - (a.u.s.len < b.u.s.len);
    return MOB_OK;
  }
  if (is_sequence(a) && a.type == b.type) {
    for (size_t i = 0; i < a.u.list->len && i < b.u.list->len; i++) {
      if (!mob__j_equal(a.u.list->at[i], b.u.list->at[i])) {
        return mob__j_compare(a.u.list->at[i], b.u.list->at[i], out);
      }
    }
    *out = (a.u.list->len > b.u.list->len) - (a.u.list->len < b.u.list->len);
    return MOB_OK;
  }
  MOB_TRY(mob__j_defined(a));
  MOB_TRY(mob__j_defined(b));
  return mob_fail(MOB_E_INVALID, "values of type %s and %s have no order", mob__j_type_name(a),
                  mob__j_type_name(b));
}

mob_status mob__j_contains(mob__jinja_t *r, mob__jvalue_t needle, mob__jvalue_t hay, bool *out) {
  *out = false;
  switch (hay.type) {
  case MOB__J_UNDEFINED:
    return MOB_OK; // it iterates over nothing
  case MOB__J_STRING:
    if (needle.type != MOB__J_STRING) {
      return mob_fail(MOB_E_INVALID, "'in <string>' requires a string on its left, not %s",
                      mob__j_type_name(needle));
    }
    r->steps += hay.u.s.len / 256;
    *out = needle.u.s.len == 0 ||
           (hay.u.s.len && memmem(hay.u.s.text, hay.u.s.len, needle.u.s.text, needle.u.s.len));
    return MOB_OK;
  case MOB__J_LIST:
  case MOB__J_TUPLE:
    r->steps += hay.u.list->len / 4;
    for (size_t i = 0; i < hay.u.list->len && !*out; i++)
      *out = mob__j_equal(hay.u.list->at[i], needle);
    return MOB_OK;
  case MOB__J_DICT:
    r->steps += hay.u.dict->len / 4;
    *out = mob__j_dict_get(hay.u.dict, needle) != NULL;
    return MOB_OK;
  default:
    return mob_fail(MOB_E_INVALID, "argument of type '%s' is not iterable", mob__j_type_name(hay));
  }
}

static mob_status concat(mob__jinja_t *r, mob__jstring_t a, mob__jstring_t b, mob__jvalue_t *out) {
  MOB_TRY(mob__j_check_size(a.len + b.len));
  char *text = mob__j_alloc(r, a.len + b.len);
  if (a.len) memcpy(text, a.text, a.len);
  if (b.len) memcpy(text + a.len, b.text, b.len);
  *out = mob__j_string((mob__jstring_t){text, a.len + b.len});
  return MOB_OK;
}

static mob_status repeat(mob__jinja_t *r, mob__jvalue_t v, int64_t times, mob__jvalue_t *out) {
  size_t n = times < 0 ? 0 : (size_t)times;
  size_t len = v.type == MOB__J_STRING ? v.u.s.len : v.u.list->len * sizeof(mob__jvalue_t);
  if (len && n > MOB__JINJA_MAX_STRING / len) return mob__j_check_size(MOB__JINJA_MAX_STRING + 1);
  if (v.type == MOB__J_STRING) {
    char *text = mob__j_alloc(r, len * n);
    for (size_t i = 0; len && i < n; i++) memcpy(text + i * len, v.u.s.text, len);
    *out = mob__j_string((mob__jstring_t){text, len * n});
    return MOB_OK;
  }
  *out = mob__j_new_list(r, v.type);
  for (size_t i = 0; len && i < n; i++) {
    for (size_t k = 0; k < v.u.list->len; k++) mob__j_push(r, out->u.list, v.u.list->at[k]);
  }
  return MOB_OK;
}

static mob_status overflow(void) {
  return mob_fail(MOB_E_INVALID, "a whole number in the template does not fit in 64 bits");
}

static mob_status whole_arithmetic(char op, int64_t a, int64_t b, mob__jvalue_t *out) {
  int64_t n = 0;
  if ((op == 'f' || op == '%') && b == 0)
    return mob_fail(MOB_E_INVALID, "integer division or modulo by zero");
  switch (op) {
  case '+':
    if (__builtin_add_overflow(a, b, &n)) return overflow();
    break;
  case '-':
    if (__builtin_sub_overflow(a, b, &n)) return overflow();
    break;
  case '*':
    if (__builtin_mul_overflow(a, b, &n)) return overflow();
    break;
  case 'f': // rounds down
    if (a == INT64_MIN && b == -1) return overflow();
    n = a / b - (a % b != 0 && (a < 0) != (b < 0));
    break;
  case '%': // has the divisor's sign
    n = b == -1 ? 0 : a % b;
    if (n != 0 && (n < 0) != (b < 0)) n += b;
    break;
  default: // power, of a whole exponent
    n = 1;
    for (int64_t i = 0; i < b && n != 0; i++) {
      if (a == 1 || (a == -1 && (n = b % 2 ? -1 : 1, true))) break;
      if (__builtin_mul_overflow(n, a, &n)) return overflow();
    }
  }
  *out = mob__j_int(n);
  return MOB_OK;
}

static mob_status arithmetic(char op, mob__jvalue_t a, mob__jvalue_t b, mob__jvalue_t *out) {
  bool real = a.type == MOB__J_FLOAT || b.type == MOB__J_FLOAT || op == '/' ||
              (op == 'p' && mob__j_number(b) < 0);
  if (!real) return whole_arithmetic(op, whole(a), whole(b), out);
  double x = mob__j_number(a), y = mob__j_number(b), f = 0;
  if (y == 0 && (op == '/' || op == 'f' || op == '%'))
    return mob_fail(MOB_E_INVALID, "division by zero");
  switch (op) {
  case '+':
    f = x + y;
    break;
  case '-':
    f = x - y;
    break;
  case '*':
    f = x * y;
    break;
  case '/':
    f = x / y;
    break;
  case 'f':
    f = floor(x / y);
    break;
  case '%':
    f = fmod(x, y);
    if (f != 0 && (f < 0) != (y < 0)) f += y;
    break;
  default:
    f = pow(x, y);
  }
  *out = mob__j_float(f);
  return MOB_OK;
}

mob_status mob__j_binary(mob__jinja_t *r, char op, mob__jvalue_t a, mob__jvalue_t b,
                         mob__jvalue_t *out) {
  if (op == '~') {
    mob__jstring_t x, y;
    MOB_TRY(mob__j_to_string(r, a, &x));
    MOB_TRY(mob__j_to_string(r, b, &y));
    return concat(r, x, y, out);
  }
  MOB_TRY(mob__j_defined(a));
  MOB_TRY(mob__j_defined(b));
  if (mob__j_is_number(a) && mob__j_is_number(b)) return arithmetic(op, a, b, out);
  if (op == '%' && a.type == MOB__J_STRING) return mob__jinja_percent(r, a.u.s, b, out);
  if (op == '+' && a.type == MOB__J_STRING && b.type == MOB__J_STRING)
    return concat(r, a.u.s, b.u.s, out);
  if (op == '+' && is_sequence(a) && a.type == b.type) {
    *out = mob__j_new_list(r, a.type);
    for (size_t i = 0; i < a.u.list->len; i++) mob__j_push(r, out->u.list, a.u.list->at[i]);
    for (size_t i = 0; i < b.u.list->len; i++) mob__j_push(r, out->u.list, b.u.list->at[i]);
    return MOB_OK;
  }
  if (op == '*' && (a.type == MOB__J_STRING || is_sequence(a)) &&
      (b.type == MOB__J_INT || b.type == MOB__J_BOOL)) {
    return repeat(r, a, whole(b), out);
  }
  if (op == '*' && (b.type == MOB__J_STRING || is_sequence(b)) &&
      (a.type == MOB__J_INT || a.type == MOB__J_BOOL)) {
    return repeat(r, b, whole(a), out);
  }
  if (op == '+' && a.type == MOB__J_STRING) {
    return mob_fail(MOB_E_INVALID, "can only concatenate str (not \"%s\") to str",
                    mob__j_type_name(b));
  }
  const char *name = op == 'f' ? "//" : op == 'p' ? "**" : (char[2]){op, 0};
  return mob_fail(MOB_E_INVALID, "unsupported operand type(s) for %s: '%s' and '%s'", name,
                  mob__j_type_name(a), mob__j_type_name(b));
}

mob_status mob__j_iterate(mob__jinja_t *r, mob__jvalue_t v, mob__jlist_t **out) {
  if (v.type == MOB__J_LIST || v.type == MOB__J_TUPLE) {
    *out = v.u.list;
    return MOB_OK;
  }
  mob__jlist_t *list = *out = mob__j_new_list(r, MOB__J_LIST).u.list;
  switch (v.type) {
  case MOB__J_UNDEFINED:
    return MOB_OK;
  case MOB__J_STRING:
    if (v.u.s.len * sizeof(mob__jvalue_t) > MOB__JINJA_MAX_MEMORY / 4)
      return mob__j_check_size(SIZE_MAX);
    for (size_t i = 0, width; i < v.u.s.len; i += width) {
      mob_utf8_decode(v.u.s.text + i, &width);
      mob__j_push(r, list, mob__j_string((mob__jstring_t){v.u.s.text + i, width}));
    }
    return MOB_OK;
  case MOB__J_DICT:
    for (size_t i = 0; i < v.u.dict->len; i++) mob__j_push(r, list, v.u.dict->at[i].key);
    return MOB_OK;
  default:
    return mob_fail(MOB_E_INVALID, "'%s' object is not iterable", mob__j_type_name(v));
  }
}
