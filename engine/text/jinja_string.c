// The methods of strings, as Python's str has them.
#include <string.h>
#include <utf8proc.h>

#include "engine/text/jinja.h"
#include "runtime/base/utf8.h"

typedef mob_status (*method_fn)(mob__jinja_t *r, mob__jstring_t self, const mob__jargs_t *args,
                                mob__jvalue_t *out);

static bool is_space(uint32_t c) {
  if ((c >= 9 && c <= 13) || (c >= 0x1C && c <= 0x20) || c == 0x85) return true;
  if (c < 0x80) return false;
  utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)c);
  return cat == UTF8PROC_CATEGORY_ZS || cat == UTF8PROC_CATEGORY_ZL || cat == UTF8PROC_CATEGORY_ZP;
}

static bool is_alpha(uint32_t c) {
  utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)c);
  return cat >= UTF8PROC_CATEGORY_LU && cat <= UTF8PROC_CATEGORY_LO;
}

static bool is_digit(uint32_t c) {
  return utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_ND;
}

static bool is_cased(uint32_t c) {
  utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)c);
  return cat == UTF8PROC_CATEGORY_LU || cat == UTF8PROC_CATEGORY_LL || cat == UTF8PROC_CATEGORY_LT;
}

// Argument `i`, by place or under `name`; false when it is absent or none.
static bool argument(const mob__jargs_t *args, size_t i, const char *name, mob__jvalue_t *out) {
  bool given = i < args->len;
  if (given) *out = args->at[i];
  for (size_t k = 0; !given && k < args->named_len; k++) {
    given = mob__jstr_is(args->named[k].name, name);
    if (given) *out = args->named[k].value;
  }
  return given && out->type != MOB__J_NONE;
}

static mob_status string_argument(const mob__jargs_t *args, size_t i, const char *name,
                                  mob__jstring_t *out, bool *given) {
  mob__jvalue_t v;
  *given = argument(args, i, name, &v);
  if (!*given) return MOB_OK;
  if (v.type != MOB__J_STRING) {
    MOB_TRY(mob__j_defined(v));
    return mob_fail(MOB_E_INVALID, "a string's method needs a string, not '%s'",
                    mob__j_type_name(v));
  }
  *out = v.u.s;
  return MOB_OK;
}

static mob_status need_string(const mob__jargs_t *args, size_t i, const char *name,
                              mob__jstring_t *out) {
  bool given;
  MOB_TRY(string_argument(args, i, name, out, &given));
  if (!given) return mob_fail(MOB_E_INVALID, "a string's method lacks its argument '%s'", name);
  return MOB_OK;
}

static mob_status whole_argument(const mob__jargs_t *args, size_t i, const char *name,
                                 int64_t absent, int64_t *out) {
  mob__jvalue_t v;
  *out = absent;
  if (!argument(args, i, name, &v)) return MOB_OK;
  if (v.type != MOB__J_INT && v.type != MOB__J_BOOL) {
    return mob_fail(MOB_E_INVALID, "'%s' object cannot be interpreted as an integer",
                    mob__j_type_name(v));
  }
  *out = v.type == MOB__J_INT ? v.u.i : v.u.b;
  return MOB_OK;
}

static bool in_set(uint32_t c, mob__jstring_t set, bool given) {
  if (!given) return is_space(c);
  for (size_t i = 0, width; i < set.len; i += width) {
    if (mob_utf8_decode(set.text + i, &width) == c) return true;
  }
  return false;
}

static mob_status strip(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args, bool left,
                        bool right, mob__jvalue_t *out) {
  mob__jstring_t set = {0};
  bool given;
  size_t start = 0, end = s.len, width;
  MOB_TRY(string_argument(args, 0, "chars", &set, &given));
  while (left && start < end && in_set(mob_utf8_decode(s.text + start, &width), set, given))
    start += width;
  while (right && end > start) {
    size_t back = mob_utf8_back(s.text, end);
    if (!in_set(mob_utf8_decode(s.text + end - back, &width), set, given)) break;
    end -= back;
  }
  r->steps += (s.len - (end - start)) * (1 + set.len) / 64;
  *out = mob__j_string((mob__jstring_t){s.text + start, end - start});
  return MOB_OK;
}

static mob_status m_strip(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  return strip(r, s, args, true, true, out);
}

static mob_status m_lstrip(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  return strip(r, s, args, true, false, out);
}

static mob_status m_rstrip(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  return strip(r, s, args, false, true, out);
}

static void push_part(mob__jinja_t *r, mob__jlist_t *list, mob__jstring_t s, size_t start,
                      size_t end) {
  mob__j_push(r, list, mob__j_string((mob__jstring_t){s.text + start, end - start}));
}

// Without a separator: runs of white space separate, none at the ends.
static void split_space(mob__jinja_t *r, mob__jstring_t s, int64_t max, mob__jlist_t *out) {
  size_t i = 0, width;
  while (i < s.len) {
    while (i < s.len && is_space(mob_utf8_decode(s.text + i, &width))) i += width;
    if (i == s.len) break;
    size_t start = i;
    if (max == 0) {
      i = s.len;
      size_t end = s.len;
      while (end > start) {
        size_t back = mob_utf8_back(s.text, end);
        if (!is_space(mob_utf8_decode(s.text + end - back, &width))) break;
        end -= back;
      }
      push_part(r, out, s, start, end);
      break;
    }
    while (i < s.len && !is_space(mob_utf8_decode(s.text + i, &width))) i += width;
    push_part(r, out, s, start, i);
    max--;
  }
}

static mob_status m_split(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  mob__jstring_t sep = {0};
  bool given;
  int64_t max;
  MOB_TRY(string_argument(args, 0, "sep", &sep, &given));
  MOB_TRY(whole_argument(args, 1, "maxsplit", -1, &max));
  if (given && sep.len == 0) return mob_fail(MOB_E_INVALID, "empty separator");
  *out = mob__j_new_list(r, MOB__J_LIST);
  r->steps += s.len / 64;
  if (!given) {
    split_space(r, s, max, out->u.list);
    return MOB_OK;
  }
  size_t start = 0;
  while (max-- != 0) {
    const char *hit =
        s.len > start ? memmem(s.text + start, s.len - start, sep.text, sep.len) : NULL;
    if (!hit) break;
    push_part(r, out->u.list, s, start, (size_t)(hit - s.text));
    start = (size_t)(hit - s.text) + sep.len;
  }
  push_part(r, out->u.list, s, start, s.len);
  return MOB_OK;
}

static size_t find_last(mob__jstring_t s, size_t end, mob__jstring_t sep) {
  for (size_t i = end + 1; i-- > sep.len;) {
    if (memcmp(s.text + i - sep.len, sep.text, sep.len) == 0) return i - sep.len;
  }
  return SIZE_MAX;
}

static mob_status m_rsplit(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  mob__jstring_t sep = {0};
  int64_t max;
  mob__jvalue_t v;
  MOB_TRY(whole_argument(args, 1, "maxsplit", -1, &max));
  if (max < 0) return m_split(r, s, args, out);
  if (!argument(args, 0, "sep", &v))
    return mob_fail(MOB_E_UNSUPPORTED, "rsplit() without a separator is not supported");
  MOB_TRY(need_string(args, 0, "sep", &sep));
  if (sep.len == 0) return mob_fail(MOB_E_INVALID, "empty separator");
  mob__jlist_t *parts = mob__j_new_list(r, MOB__J_LIST).u.list;
  size_t end = s.len, at;
  r->steps += s.len / 16;
  while (max-- > 0 && (at = find_last(s, end, sep)) != SIZE_MAX) {
    push_part(r, parts, s, at + sep.len, end);
    end = at;
  }
  push_part(r, parts, s, 0, end);
  *out = mob__j_new_list(r, MOB__J_LIST);
  for (size_t i = parts->len; i-- > 0;) mob__j_push(r, out->u.list, parts->at[i]);
  return MOB_OK;
}

static mob_status m_splitlines(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                               mob__jvalue_t *out) {
  mob__jvalue_t v;
  bool keep = argument(args, 0, "keepends", &v) && mob__j_truth(v);
  *out = mob__j_new_list(r, MOB__J_LIST);
  size_t start = 0, width;
  for (size_t i = 0; i < s.len; i += width) {
    uint32_t c = mob_utf8_decode(s.text + i, &width);
    bool line_end =
        (c >= 10 && c <= 13) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
    if (!line_end) continue;
    size_t end = i;
    if (c == '\r' && i + 1 < s.len && s.text[i + 1] == '\n') width = 2;
    push_part(r, out->u.list, s, start, keep ? i + width : end);
    start = i + width;
  }
  if (start < s.len) push_part(r, out->u.list, s, start, s.len);
  r->steps += s.len / 32;
  return MOB_OK;
}

static mob_status affix(mob__jstring_t s, const mob__jargs_t *args, bool front,
                        mob__jvalue_t *out) {
  mob__jvalue_t v;
  bool yes = false;
  if (!argument(args, 0, "prefix", &v))
    return mob_fail(MOB_E_INVALID, "startswith() and endswith() need a string");
  mob__jlist_t one = {.at = &v, .len = 1}, *all = v.type == MOB__J_TUPLE ? v.u.list : &one;
  for (size_t i = 0; i < all->len && !yes; i++) {
    mob__jvalue_t a = all->at[i];
    MOB_TRY(mob__j_defined(a));
    if (a.type != MOB__J_STRING)
      return mob_fail(MOB_E_INVALID, "startswith() and endswith() need a string, not '%s'",
                      mob__j_type_name(a));
    yes = a.u.s.len <= s.len &&
          (a.u.s.len == 0 ||
           memcmp(front ? s.text : s.text + s.len - a.u.s.len, a.u.s.text, a.u.s.len) == 0);
  }
  *out = mob__j_bool(yes);
  return MOB_OK;
}

static mob_status m_startswith(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                               mob__jvalue_t *out) {
  (void)r;
  return affix(s, args, true, out);
}

static mob_status m_endswith(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                             mob__jvalue_t *out) {
  (void)r;
  return affix(s, args, false, out);
}

static mob_status m_removeprefix(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                                 mob__jvalue_t *out) {
  mob__jstring_t a;
  mob__jvalue_t yes;
  (void)r;
  MOB_TRY(need_string(args, 0, "prefix", &a));
  MOB_TRY(affix(s, args, true, &yes));
  *out = mob__j_string(yes.u.b ? (mob__jstring_t){s.text + a.len, s.len - a.len} : s);
  return MOB_OK;
}

static mob_status m_removesuffix(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                                 mob__jvalue_t *out) {
  mob__jstring_t a;
  mob__jvalue_t yes;
  (void)r;
  MOB_TRY(need_string(args, 0, "suffix", &a));
  MOB_TRY(affix(s, args, false, &yes));
  *out = mob__j_string(yes.u.b ? (mob__jstring_t){s.text, s.len - a.len} : s);
  return MOB_OK;
}

static mob_status m_replace(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                            mob__jvalue_t *out) {
  mob__jstring_t from, to;
  int64_t max;
  mob_buf_t buf = {0};
  MOB_TRY(need_string(args, 0, "old", &from));
  MOB_TRY(need_string(args, 1, "new", &to));
  MOB_TRY(whole_argument(args, 2, "count", -1, &max));
  r->steps += s.len / 64;
  size_t i = 0, width;
  while (max-- != 0) {
    if (from.len == 0) { // in front of every character, and at the end
      mob_buf_append(&buf, to.text, to.len);
      if (i == s.len) break;
      mob_utf8_decode(s.text + i, &width);
      mob_buf_append(&buf, s.text + i, width);
      i += width;
    } else {
      const char *hit = s.len > i ? memmem(s.text + i, s.len - i, from.text, from.len) : NULL;
      if (!hit) break;
      mob_buf_append(&buf, s.text + i, (size_t)(hit - s.text) - i);
      mob_buf_append(&buf, to.text, to.len);
      i = (size_t)(hit - s.text) + from.len;
    }
    mob_status status = mob__j_check_size(buf.len);
    if (status != MOB_OK) {
      mob_buf_free(&buf);
      return status;
    }
  }
  if (s.len > i) mob_buf_append(&buf, s.text + i, s.len - i);
  return mob__j_take(r, &buf, out);
}

static void append_cp(mob_buf_t *buf, uint32_t c) {
  char text[4];
  mob_buf_append(buf, text, mob_utf8_encode(c, text));
}

typedef enum letter_case { UPPER, LOWER, TITLE, CAPITALIZE, SWAP } letter_case_t;

static mob_status convert(mob__jinja_t *r, mob__jstring_t s, letter_case_t to, mob__jvalue_t *out) {
  mob_buf_t buf = {0};
  bool inside = false;
  r->steps += s.len / 16;
  for (size_t i = 0, width; i < s.len; i += width) {
    uint32_t c = mob_utf8_decode(s.text + i, &width);
    bool upper = to == UPPER || (to == TITLE && !inside) || (to == CAPITALIZE && i == 0) ||
                 (to == SWAP && utf8proc_category((utf8proc_int32_t)c) == UTF8PROC_CATEGORY_LL);
    inside = is_cased(c);
    if (upper && c == 0xDF) { // one of the few that become two letters
      mob_buf_puts(&buf, to == UPPER || to == SWAP ? "SS" : "Ss");
    } else if (upper) {
      append_cp(&buf,
                (uint32_t)(to == UPPER || to == SWAP ? utf8proc_toupper((utf8proc_int32_t)c)
                                                     : utf8proc_totitle((utf8proc_int32_t)c)));
    } else if (c == 0x130) { // dotted capital I
      mob_buf_puts(&buf, "i\xCC\x87");
    } else {
      append_cp(&buf, (uint32_t)utf8proc_tolower((utf8proc_int32_t)c));
    }
  }
  return mob__j_take(r, &buf, out);
}

static mob_status m_upper(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  (void)args;
  return convert(r, s, UPPER, out);
}

static mob_status m_lower(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  (void)args;
  return convert(r, s, LOWER, out);
}

static mob_status m_title(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  (void)args;
  return convert(r, s, TITLE, out);
}

static mob_status m_capitalize(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                               mob__jvalue_t *out) {
  (void)args;
  return convert(r, s, CAPITALIZE, out);
}

static mob_status m_swapcase(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                             mob__jvalue_t *out) {
  (void)args;
  return convert(r, s, SWAP, out);
}

// find, rfind, index, rindex, count: positions are in characters.
static mob_status search(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args, bool last,
                         mob__jvalue_t *out) {
  mob__jstring_t a;
  MOB_TRY(need_string(args, 0, "sub", &a));
  if (args->len > 1)
    return mob_fail(MOB_E_UNSUPPORTED, "find() and its like with a range are not supported");
  r->steps += s.len / 32;
  size_t at = SIZE_MAX;
  if (a.len == 0) {
    at = last ? s.len : 0;
  } else if (a.len <= s.len) {
    const char *hit = memmem(s.text, s.len, a.text, a.len);
    if (hit) at = last ? find_last(s, s.len, a) : (size_t)(hit - s.text);
  }
  *out = mob__j_int(at == SIZE_MAX ? -1 : (int64_t)mob_utf8_count(s.text, at));
  return MOB_OK;
}

static mob_status m_find(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                         mob__jvalue_t *out) {
  return search(r, s, args, false, out);
}

static mob_status m_rfind(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  return search(r, s, args, true, out);
}

static mob_status m_index(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  MOB_TRY(search(r, s, args, false, out));
  return out->u.i < 0 ? mob_fail(MOB_E_INVALID, "substring not found") : MOB_OK;
}

static mob_status m_count(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  mob__jstring_t a;
  int64_t n = 0;
  MOB_TRY(need_string(args, 0, "sub", &a));
  r->steps += s.len / 64;
  if (a.len == 0) n = (int64_t)mob_utf8_count(s.text, s.len) + 1;
  for (size_t i = 0; a.len && i < s.len; n++) {
    const char *hit = memmem(s.text + i, s.len - i, a.text, a.len);
    if (!hit) break;
    i = (size_t)(hit - s.text) + a.len;
  }
  *out = mob__j_int(n);
  return MOB_OK;
}

static mob_status m_join(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                         mob__jvalue_t *out) {
  mob__jlist_t *items;
  mob_buf_t buf = {0};
  if (args->len != 1) return mob_fail(MOB_E_INVALID, "join() takes one argument");
  MOB_TRY(mob__j_iterate(r, args->at[0], &items));
  for (size_t i = 0; i < items->len; i++) {
    mob__jvalue_t v = items->at[i];
    mob_status status =
        v.type == MOB__J_STRING
            ? mob__j_check_size(buf.len)
            : mob_fail(MOB_E_INVALID, "sequence item %zu: expected str instance, %s found", i,
                       mob__j_type_name(v));
    if (status != MOB_OK) {
      mob_buf_free(&buf);
      return status;
    }
    if (i) mob_buf_append(&buf, s.text, s.len);
    mob_buf_append(&buf, v.u.s.text, v.u.s.len);
  }
  return mob__j_take(r, &buf, out);
}

static mob_status m_format(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  return mob__jinja_str_format(r, s, args, out);
}

static mob_status all_of(mob__jstring_t s, bool (*is)(uint32_t), mob__jvalue_t *out) {
  bool all = s.len > 0;
  for (size_t i = 0, width; i < s.len && all; i += width)
    all = is(mob_utf8_decode(s.text + i, &width));
  *out = mob__j_bool(all);
  return MOB_OK;
}

static bool is_alnum(uint32_t c) {
  return is_alpha(c) || is_digit(c);
}

static mob_status m_isdigit(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                            mob__jvalue_t *out) {
  (void)r, (void)args;
  return all_of(s, is_digit, out);
}

static mob_status m_isalpha(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                            mob__jvalue_t *out) {
  (void)r, (void)args;
  return all_of(s, is_alpha, out);
}

static mob_status m_isalnum(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                            mob__jvalue_t *out) {
  (void)r, (void)args;
  return all_of(s, is_alnum, out);
}

static mob_status m_isspace(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                            mob__jvalue_t *out) {
  (void)r, (void)args;
  return all_of(s, is_space, out);
}

static mob_status cased(mob__jstring_t s, utf8proc_category_t wrong, mob__jvalue_t *out) {
  bool any = false, all = true;
  for (size_t i = 0, width; i < s.len; i += width) {
    uint32_t c = mob_utf8_decode(s.text + i, &width);
    any |= is_cased(c);
    all &= utf8proc_category((utf8proc_int32_t)c) != wrong &&
           utf8proc_category((utf8proc_int32_t)c) != UTF8PROC_CATEGORY_LT;
  }
  *out = mob__j_bool(any && all);
  return MOB_OK;
}

static mob_status m_isupper(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                            mob__jvalue_t *out) {
  (void)r, (void)args;
  return cased(s, UTF8PROC_CATEGORY_LL, out);
}

static mob_status m_islower(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                            mob__jvalue_t *out) {
  (void)r, (void)args;
  return cased(s, UTF8PROC_CATEGORY_LU, out);
}

static mob_status pad(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args, int side,
                      mob__jvalue_t *out) {
  int64_t width;
  mob__jstring_t fill = MOB__JSTR(" ");
  bool given;
  mob_buf_t buf = {0};
  MOB_TRY(whole_argument(args, 0, "width", 0, &width));
  MOB_TRY(string_argument(args, 1, "fillchar", &fill, &given));
  if (width > (int64_t)MOB__JINJA_MAX_STRING / 8) return mob__j_check_size(SIZE_MAX);
  int64_t n = width - (int64_t)mob_utf8_count(s.text, s.len);
  if (n < 0) n = 0;
  int64_t left = side < 0 ? 0 : side > 0 ? n : n / 2 + (n & width & 1);
  for (int64_t i = 0; i < left; i++) mob_buf_append(&buf, fill.text, fill.len);
  if (s.len) mob_buf_append(&buf, s.text, s.len);
  for (int64_t i = left; i < n; i++) mob_buf_append(&buf, fill.text, fill.len);
  return mob__j_take(r, &buf, out);
}

static mob_status m_ljust(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  return pad(r, s, args, -1, out);
}

static mob_status m_rjust(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                          mob__jvalue_t *out) {
  return pad(r, s, args, 1, out);
}

static mob_status m_center(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  return pad(r, s, args, 0, out);
}

static mob_status m_partition(mob__jinja_t *r, mob__jstring_t s, const mob__jargs_t *args,
                              mob__jvalue_t *out) {
  mob__jstring_t sep;
  MOB_TRY(need_string(args, 0, "sep", &sep));
  if (sep.len == 0) return mob_fail(MOB_E_INVALID, "empty separator");
  const char *hit = s.len ? memmem(s.text, s.len, sep.text, sep.len) : NULL;
  size_t at = hit ? (size_t)(hit - s.text) : s.len;
  *out = mob__j_new_list(r, MOB__J_TUPLE);
  push_part(r, out->u.list, s, 0, at);
  push_part(r, out->u.list, s, at, hit ? at + sep.len : at);
  push_part(r, out->u.list, s, hit ? at + sep.len : at, s.len);
  return MOB_OK;
}

static const struct {
  const char *name;
  method_fn call;
} methods[] = {
    {"strip", m_strip},
    {"lstrip", m_lstrip},
    {"rstrip", m_rstrip},
    {"split", m_split},
    {"rsplit", m_rsplit},
    {"splitlines", m_splitlines},
    {"startswith", m_startswith},
    {"endswith", m_endswith},
    {"removeprefix", m_removeprefix},
    {"removesuffix", m_removesuffix},
    {"replace", m_replace},
    {"upper", m_upper},
    {"lower", m_lower},
    {"title", m_title},
    {"capitalize", m_capitalize},
    {"swapcase", m_swapcase},
    {"find", m_find},
    {"rfind", m_rfind},
    {"index", m_index},
    {"count", m_count},
    {"join", m_join},
    {"format", m_format},
    {"isdigit", m_isdigit},
    {"isnumeric", m_isdigit},
    {"isdecimal", m_isdigit},
    {"isalpha", m_isalpha},
    {"isalnum", m_isalnum},
    {"isspace", m_isspace},
    {"isupper", m_isupper},
    {"islower", m_islower},
    {"ljust", m_ljust},
    {"rjust", m_rjust},
    {"center", m_center},
    {"partition", m_partition},
};

bool mob__jinja_is_string_method(mob__jstring_t name) {
  for (size_t i = 0; i < MOB_LEN(methods); i++) {
    if (mob__jstr_is(name, methods[i].name)) return true;
  }
  return false;
}

mob_status mob__jinja_string_method(mob__jinja_t *r, mob__jstring_t self, mob__jstring_t name,
                                    const mob__jargs_t *args, mob__jvalue_t *out) {
  for (size_t i = 0; i < MOB_LEN(methods); i++) {
    if (mob__jstr_is(name, methods[i].name)) return methods[i].call(r, self, args, out);
  }
  return mob_fail(MOB_E_INVALID, "'str' object has no attribute '%.*s'", (int)name.len, name.text);
}
