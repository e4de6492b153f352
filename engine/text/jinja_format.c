// Formatting: "text" % values and "text".format(values). Of the format language: fill, alignment,
// sign, 0, width, comma, precision and the types s d f F e E g G x X o b %.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/jinja.h"
#include "runtime/base/utf8.h"

typedef struct spec {
  char fill[4];
  size_t fill_len;
  char align, sign, type; // 0 where not given
  bool zero, comma, alternate;
  int width, precision; // precision -1 when not given
} spec_t;

static mob_status unsupported(mob__jstring_t text) {
  return mob_fail(MOB_E_UNSUPPORTED, "the format '%.*s' is not supported",
                  (int)(text.len < 60 ? text.len : 60), text.text);
}

static int number_at(mob__jstring_t s, size_t *i) {
  int n = 0;
  while (*i < s.len && s.text[*i] >= '0' && s.text[*i] <= '9') {
    if (n < 100000) n = n * 10 + (s.text[*i] - '0');
    (*i)++;
  }
  return n;
}

static void group_thousands(char *digits, size_t cap) {
  size_t len = strlen(digits);
  for (size_t at = strspn(digits, "0123456789"); at > 3 && len + 2 <= cap; len++) {
    at -= 3;
    memmove(digits + at + 1, digits + at, len - at + 1);
    digits[at] = ',';
  }
}

// The digits of a number, without its sign.
static mob_status digits_of(mob__jvalue_t v, const spec_t *f, char *out, size_t cap) {
  bool real = strchr("fFeEgG%", f->type ? f->type : 'd') != NULL;
  if (v.type != MOB__J_FLOAT && !real) {
    int64_t i = v.type == MOB__J_INT ? v.u.i : v.u.b;
    uint64_t n = i < 0 ? -(uint64_t)i : (uint64_t)i;
    if (f->type == 'x')
      snprintf(out, cap, f->alternate ? "0x%llx" : "%llx", (unsigned long long)n);
    else if (f->type == 'X')
      snprintf(out, cap, f->alternate ? "0X%llX" : "%llX", (unsigned long long)n);
    else if (f->type == 'o')
      snprintf(out, cap, f->alternate ? "0o%llo" : "%llo", (unsigned long long)n);
    else if (f->type == 'b') {
      size_t k = 0;
      int bit = 63;
      while (bit > 0 && !(n >> bit & 1)) bit--;
      for (; bit >= 0; bit--) out[k++] = n >> bit & 1 ? '1' : '0';
      out[k] = 0;
    } else
      snprintf(out, cap, "%llu", (unsigned long long)n);
  } else {
    double x = mob__j_number(v);
    if (x < 0) x = -x;
    char format[16], type = f->type ? f->type : 'g';
    int precision = f->precision < 0 ? 6 : f->precision > 60 ? 60 : f->precision;
    if (!real && f->type)
      return mob_fail(MOB_E_INVALID, "Unknown format code '%c' for object of type 'float'",
                      f->type);
    if (!f->type && f->precision < 0) {
      mob_buf_t text = {0};
      mob__j_print_float(x, &text);
      snprintf(out, cap, "%s", mob_buf_cstr(&text));
      mob_buf_free(&text);
    } else {
      snprintf(format, sizeof format, "%%.%d%c", precision, type == '%' ? 'f' : type);
      snprintf(out, cap, format, type == '%' ? x * 100 : x);
      if (type == '%') snprintf(out + strlen(out), cap - strlen(out), "%%");
    }
  }
  if (f->comma) group_thousands(out, cap);
  return MOB_OK;
}

static void padded(const char *sign, mob__jstring_t body, const spec_t *f, char align,
                   mob_buf_t *out) {
  size_t have = strlen(sign) + mob_utf8_count(body.text, body.len);
  size_t n = f->width > 0 && (size_t)f->width > have ? (size_t)f->width - have : 0;
  size_t left = align == '<' ? 0 : align == '^' ? n / 2 : n;
  if (align == '=') mob_buf_puts(out, sign);
  for (size_t i = 0; i < left; i++) mob_buf_append(out, f->fill, f->fill_len);
  if (align != '=') mob_buf_puts(out, sign);
  if (body.len) mob_buf_append(out, body.text, body.len);
  for (size_t i = left; i < n; i++) mob_buf_append(out, f->fill, f->fill_len);
}

static mob_status formatted(mob__jinja_t *r, mob__jvalue_t v, const spec_t *f, mob_buf_t *out) {
  if (mob__j_is_number(v) && f->type != 's' && !(v.type == MOB__J_BOOL && !f->type)) {
    char digits[512];
    bool negative = v.type == MOB__J_FLOAT ? v.u.f < 0 : v.type == MOB__J_INT && v.u.i < 0;
    const char *sign = negative ? "-" : f->sign == '+' ? "+" : f->sign == ' ' ? " " : "";
    MOB_TRY(digits_of(v, f, digits, sizeof digits));
    padded(sign, (mob__jstring_t){digits, strlen(digits)}, f,
           f->align  ? f->align
           : f->zero ? '='
                     : '>',
           out);
    return MOB_OK;
  }
  if (f->type && f->type != 's') {
    return mob_fail(MOB_E_INVALID, "Unknown format code '%c' for object of type '%s'", f->type,
                    mob__j_type_name(v));
  }
  mob__jstring_t text;
  MOB_TRY(mob__j_to_string(r, v, &text));
  if (f->precision >= 0) {
    size_t i = 0, width;
    for (int k = 0; k < f->precision && i < text.len; k++, i += width)
      mob_utf8_decode(text.text + i, &width);
    text.len = i;
  }
  padded("", text, f, f->align ? f->align : '<', out);
  return MOB_OK;
}

// [[fill]align][sign][#][0][width][,][.precision][type]
static mob_status parse_spec(mob__jstring_t s, spec_t *f) {
  size_t i = 0, width = 0;
  *f = (spec_t){.fill = " ", .fill_len = 1, .precision = -1};
  if (s.len) mob_utf8_decode(s.text, &width);
  if (s.len > width && strchr("<>^=", s.text[width])) {
    memcpy(f->fill, s.text, width);
    f->fill_len = width;
    f->align = s.text[width];
    i = width + 1;
  } else if (s.len && strchr("<>^=", s.text[0])) {
    f->align = s.text[i++];
  }
  if (i < s.len && strchr("+- ", s.text[i])) f->sign = s.text[i++];
  if (i < s.len && s.text[i] == '#') f->alternate = true, i++;
  if (i < s.len && s.text[i] == '0') {
    f->zero = true;
    if (!f->align) f->fill[0] = '0', f->fill_len = 1;
    i++;
  }
  f->width = number_at(s, &i);
  if (i < s.len && s.text[i] == ',') f->comma = true, i++;
  if (i < s.len && s.text[i] == '.') {
    i++;
    f->precision = number_at(s, &i);
  }
  if (i < s.len && s.text[i] && strchr("sdfFeEgGxXob%", s.text[i])) f->type = s.text[i++];
  return i == s.len ? MOB_OK : unsupported(s);
}

// The value a replacement field names: {} {0} {name} {0.attr} {name[key]}.
static mob_status field_value(mob__jinja_t *r, mob__jstring_t field, const mob__jargs_t *args,
                              size_t *next, mob__jvalue_t *out) {
  size_t i = 0;
  while (i < field.len && field.text[i] != '.' && field.text[i] != '[') i++;
  mob__jstring_t head = {field.text, i};
  size_t digits = 0, index = (size_t)number_at(head, &digits);
  if (head.len == 0 || digits == head.len) {
    if (head.len == 0) index = (*next)++;
    if (index >= args->len)
      return mob_fail(MOB_E_INVALID, "Replacement index %zu out of range for positional args tuple",
                      index);
    *out = args->at[index];
  } else {
    size_t k = 0;
    while (k < args->named_len && !mob__jstr_eq(args->named[k].name, head)) k++;
    if (k == args->named_len)
      return mob_fail(MOB_E_INVALID, "format() lacks '%.*s'", (int)head.len, head.text);
    *out = args->named[k].value;
  }
  while (i < field.len) {
    size_t start = i + 1;
    bool item = field.text[i] == '[';
    for (i = start; i < field.len &&
                    (item ? field.text[i] != ']' : field.text[i] != '.' && field.text[i] != '[');)
      i++;
    mob__jstring_t part = {field.text + start, i - start};
    size_t n = 0;
    int64_t number = number_at(part, &n);
    mob__jvalue_t key = item && n && n == part.len ? mob__j_int(number) : mob__j_string(part);
    if (item)
      MOB_TRY(mob__jinja_get_item(r, *out, key, out));
    else
      MOB_TRY(mob__jinja_get_attr(r, *out, part, out));
    MOB_TRY(mob__j_defined(*out));
    if (item) i++;
  }
  return MOB_OK;
}

static mob_status replacement(mob__jinja_t *r, mob__jstring_t field, const mob__jargs_t *args,
                              size_t *next, mob_buf_t *out) {
  size_t end = 0;
  char conversion = 0;
  spec_t f;
  mob__jvalue_t v;
  while (end < field.len && field.text[end] != ':' && field.text[end] != '!') end++;
  mob__jstring_t name = {field.text, end};
  if (end + 1 < field.len && field.text[end] == '!') {
    conversion = field.text[end + 1];
    end += 2;
  }
  if (end < field.len && field.text[end] != ':') return unsupported(field);
  if (end < field.len) end++;
  mob__jstring_t spec = {field.text + end, field.len - end};
  if (spec.len && memchr(spec.text, '{', spec.len)) return unsupported(field);
  MOB_TRY(parse_spec(spec, &f));
  MOB_TRY(field_value(r, name, args, next, &v));
  if (conversion == 'r') {
    mob_buf_t text = {0};
    mob_status status = mob__j_repr(r, v, &text);
    if (status != MOB_OK) {
      mob_buf_free(&text);
      return status;
    }
    MOB_TRY(mob__j_take(r, &text, &v));
  } else if (conversion == 's') {
    MOB_TRY(mob__j_to_string(r, v, &v.u.s));
    v.type = MOB__J_STRING;
  } else if (conversion) {
    return unsupported(field);
  }
  return formatted(r, v, &f, out);
}

mob_status mob__jinja_str_format(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                                 mob__jvalue_t *out) {
  mob_buf_t buf = {0};
  mob_status status = MOB_OK;
  size_t next = 0;
  for (size_t i = 0; i < s.len; i++) {
    char c = s.text[i];
    if ((c == '{' || c == '}') && i + 1 < s.len && s.text[i + 1] == c) {
      mob_buf_putc(&buf, c);
      i++;
    } else if (c == '{') {
      const char *close = memchr(s.text + i, '}', s.len - i);
      if (!close) {
        status = mob_fail(MOB_E_INVALID, "expected '}' before end of string");
        goto fail;
      }
      mob__jstring_t field = {s.text + i + 1, (size_t)(close - s.text) - i - 1};
      MOB_TRY_GOTO(replacement(r, field, args, &next, &buf), status, fail);
      MOB_TRY_GOTO(mob__j_check_size(buf.len), status, fail);
      i = (size_t)(close - s.text);
    } else if (c == '}') {
      status = mob_fail(MOB_E_INVALID, "Single '}' encountered in format string");
      goto fail;
    } else {
      mob_buf_putc(&buf, c);
    }
  }
  return mob__j_take(r, &buf, out);
fail:
  mob_buf_free(&buf);
  return status;
}

// One %... of a format; `i` is behind the percent sign.
static mob_status conversion(mob__jinja_t *r, mob__jstring_t s, size_t *i, mob__jvalue_t values,
                             size_t *next, mob_buf_t *out) {
  spec_t f = {.fill = " ", .fill_len = 1, .precision = -1, .align = '>'};
  mob__jvalue_t v;
  mob__jstring_t whole = {s.text + *i, s.len - *i};
  bool named = *i < s.len && s.text[*i] == '(';
  if (named) {
    const char *close = memchr(s.text + *i, ')', s.len - *i);
    if (!close) return unsupported(whole);
    mob__jstring_t key = {s.text + *i + 1, (size_t)(close - s.text) - *i - 1};
    MOB_TRY(mob__jinja_get_item(r, values, mob__j_string(key), &v));
    *i = (size_t)(close - s.text) + 1;
  }
  for (; *i < s.len && s.text[*i] && strchr("-+ 0#", s.text[*i]); (*i)++) {
    if (s.text[*i] == '-')
      f.align = '<';
    else if (s.text[*i] == '0')
      f.zero = true;
    else if (s.text[*i] != '#')
      f.sign = s.text[*i];
  }
  if (f.zero && f.align == '>') f.fill[0] = '0', f.align = '=';
  f.width = number_at(s, i);
  if (*i < s.len && s.text[*i] == '.') {
    (*i)++;
    f.precision = number_at(s, i);
  }
  if (*i >= s.len || !s.text[*i] || !strchr("sdifFeEgGxXor", s.text[*i])) return unsupported(whole);
  f.type = s.text[(*i)++];
  if (!named) {
    bool tuple = values.type == MOB__J_TUPLE;
    if (tuple ? *next >= values.u.list->len : *next > 0)
      return mob_fail(MOB_E_INVALID, "not enough arguments for format string");
    v = tuple ? values.u.list->at[*next] : values;
    (*next)++;
  }
  MOB_TRY(mob__j_defined(v));
  if (f.type == 'r') {
    mob_buf_t text = {0};
    mob_status status = mob__j_repr(r, v, &text);
    if (status != MOB_OK) {
      mob_buf_free(&text);
      return status;
    }
    MOB_TRY(mob__j_take(r, &text, &v));
    f.type = 's';
  }
  if (f.type == 's' && f.align == '=') f.align = '>', f.fill[0] = ' ';
  if (f.type == 'i') f.type = 'd';
  if (f.type == 'd' && v.type == MOB__J_FLOAT)
    v = mob__j_int((int64_t)(v.u.f > 9e18     ? 9e18
                             : v.u.f < -9e18  ? -9e18
                             : v.u.f == v.u.f ? v.u.f
                                              : 0));
  if (f.type != 's' && !mob__j_is_number(v)) {
    return mob_fail(MOB_E_INVALID, "%%%c format: a real number is required, not %s", f.type,
                    mob__j_type_name(v));
  }
  return formatted(r, v, &f, out);
}

mob_status mob__jinja_percent(mob__jinja_t *r, mob__jstring_t s, mob__jvalue_t values,
                              mob__jvalue_t *out) {
  mob_buf_t buf = {0};
  mob_status status = MOB_OK;
  size_t next = 0;
  for (size_t i = 0; i < s.len;) {
    if (s.text[i] != '%') {
      mob_buf_putc(&buf, s.text[i++]);
    } else if (i + 1 < s.len && s.text[i + 1] == '%') {
      mob_buf_putc(&buf, '%');
      i += 2;
    } else {
      i++;
      MOB_TRY_GOTO(conversion(r, s, &i, values, &next, &buf), status, fail);
      MOB_TRY_GOTO(mob__j_check_size(buf.len), status, fail);
    }
  }
  if (values.type == MOB__J_TUPLE
          ? next < values.u.list->len
          : next == 0 && values.type != MOB__J_DICT && values.type != MOB__J_LIST) {
    status = mob_fail(MOB_E_INVALID, "not all arguments converted during string formatting");
    goto fail;
  }
  return mob__j_take(r, &buf, out);
fail:
  mob_buf_free(&buf);
  return status;
}
