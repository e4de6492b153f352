// Calls: the global functions, macros, and the methods of lists, dicts and loops.
#include <string.h>
#include <time.h>

#include "engine/text/jinja.h"

static mob_status arity(const char *name, const mob__jargs_t *args, size_t low, size_t high) {
  if (args->len >= low && args->len <= high) return MOB_OK;
  return mob_fail(MOB_E_INVALID, "%s() takes %zu to %zu arguments, not %zu", name, low, high,
                  args->len);
}

static mob_status whole_arg(mob__jvalue_t v, int64_t *out) {
  if (v.type != MOB__J_INT && v.type != MOB__J_BOOL) {
    return mob_fail(MOB_E_INVALID, "'%s' object cannot be interpreted as an integer",
                    mob__j_type_name(v));
  }
  *out = v.type == MOB__J_INT ? v.u.i : v.u.b;
  return MOB_OK;
}

static mob_status copy_dict(mob__jinja_t *r, const mob__jargs_t *args, mob__jtype_t type,
                            mob__jvalue_t *out) {
  *out = mob__j_new_dict(r, type);
  for (size_t i = 0; i < args->len; i++) {
    mob__jlist_t *pairs;
    if (args->at[i].type == MOB__J_DICT) {
      const mob__jdict_t *d = args->at[i].u.dict;
      for (size_t k = 0; k < d->len; k++)
        mob__j_dict_put(r, out->u.dict, d->at[k].key, d->at[k].value);
      continue;
    }
    MOB_TRY(mob__j_iterate(r, args->at[i], &pairs));
    for (size_t k = 0; k < pairs->len; k++) {
      mob__jlist_t *pair;
      MOB_TRY(mob__j_iterate(r, pairs->at[k], &pair));
      if (pair->len != 2) return mob_fail(MOB_E_INVALID, "dict() needs pairs");
      mob__j_dict_put(r, out->u.dict, pair->at[0], pair->at[1]);
    }
  }
  for (size_t i = 0; i < args->named_len; i++) {
    mob__j_dict_put(r, out->u.dict, mob__j_string(args->named[i].name), args->named[i].value);
  }
  return MOB_OK;
}

static mob_status call_range(mob__jinja_t *r, const mob__jargs_t *args, mob__jvalue_t *out) {
  int64_t start = 0, stop = 0, step = 1;
  MOB_TRY(arity("range", args, 1, 3));
  MOB_TRY(whole_arg(args->at[0], &stop));
  if (args->len > 1) {
    start = stop;
    MOB_TRY(whole_arg(args->at[1], &stop));
  }
  if (args->len > 2) MOB_TRY(whole_arg(args->at[2], &step));
  if (step == 0) return mob_fail(MOB_E_INVALID, "range() arg 3 must not be zero");
  double count = step > 0 ? ((double)stop - (double)start) / (double)step
                          : ((double)start - (double)stop) / -(double)step;
  if (count > MOB__JINJA_MAX_RANGE)
    return mob_fail(MOB_E_INVALID, "range() of more than %d numbers", MOB__JINJA_MAX_RANGE);
  *out = mob__j_new_list(r, MOB__J_LIST);
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    mob__j_push(r, out->u.list, mob__j_int(i));
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return MOB_OK;
}

static mob_status call_raise(mob__jinja_t *r, const mob__jargs_t *args, mob__jvalue_t *out) {
  mob__jstring_t text;
  (void)out;
  MOB_TRY(arity("raise_exception", args, 1, 1));
  MOB_TRY(mob__j_to_string(r, args->at[0], &text));
  r->raised = true;
  return mob_fail(MOB_E_INVALID, "%.*s", (int)(text.len < 4000 ? text.len : 4000), text.text);
}

static mob_status call_strftime(mob__jinja_t *r, const mob__jargs_t *args, mob__jvalue_t *out) {
  char format[256], text[1024];
  MOB_TRY(arity("strftime_now", args, 1, 1));
  if (args->at[0].type != MOB__J_STRING || args->at[0].u.s.len >= sizeof format) {
    return mob_fail(MOB_E_INVALID, "strftime_now() needs a short format");
  }
  memcpy(format, args->at[0].u.s.text, args->at[0].u.s.len);
  format[args->at[0].u.s.len] = 0;
  time_t now = time(NULL);
  struct tm tm;
  localtime_r(&now, &tm);
  size_t n = strftime(text, sizeof text, format, &tm);
  mob_buf_t buf = {0};
  mob_buf_append(&buf, text, n);
  return mob__j_take(r, &buf, out);
}

static mob_status call_dict(mob__jinja_t *r, const mob__jargs_t *args, mob__jvalue_t *out) {
  return copy_dict(r, args, MOB__J_DICT, out);
}

static mob_status call_namespace(mob__jinja_t *r, const mob__jargs_t *args, mob__jvalue_t *out) {
  return copy_dict(r, args, MOB__J_NAMESPACE, out);
}

static const struct {
  const char *name;
  mob_status (*call)(mob__jinja_t *r, const mob__jargs_t *args, mob__jvalue_t *out);
} functions[] = {
    {"range", call_range},           {"dict", call_dict},
    {"namespace", call_namespace},   {"raise_exception", call_raise},
    {"strftime_now", call_strftime},
};

bool mob__jinja_is_function(mob__jstring_t name, const char **interned) {
  for (size_t i = 0; i < MOB_LEN(functions); i++) {
    if (mob__jstr_is(name, functions[i].name)) {
      *interned = functions[i].name;
      return true;
    }
  }
  return false;
}

bool mob__jinja_has_method(mob__jvalue_t v, mob__jstring_t name) {
  static const char *const dict[] = {"get", "items", "keys", "values", "copy", NULL};
  static const char *const list[] = {"index", "count", "copy", NULL};
  static const char *const loop[] = {"cycle", "changed", NULL};
  const char *const *names = v.type == MOB__J_DICT                             ? dict
                             : v.type == MOB__J_LIST || v.type == MOB__J_TUPLE ? list
                             : v.type == MOB__J_LOOP                           ? loop
                                                                               : NULL;
  if (v.type == MOB__J_STRING) return mob__jinja_is_string_method(name);
  for (; names && *names; names++) {
    if (mob__jstr_is(name, *names)) return true;
  }
  return false;
}

static mob_status dict_method(mob__jinja_t *r, mob__jvalue_t self, mob__jstring_t name,
                              const mob__jargs_t *args, mob__jvalue_t *out) {
  const mob__jdict_t *d = self.u.dict;
  if (mob__jstr_is(name, "get")) {
    MOB_TRY(arity("get", args, 1, 2));
    r->steps += d->len / 16;
    mob__jvalue_t *v = mob__j_dict_get(d, args->at[0]);
    *out = v ? *v : args->len > 1 ? args->at[1] : mob__j_none();
    for (size_t i = 0; !v && i < args->named_len; i++) *out = args->named[i].value; // default=
    return MOB_OK;
  }
  MOB_TRY(arity("a dict's method", args, 0, 0));
  if (mob__jstr_is(name, "copy"))
    return copy_dict(r, &(mob__jargs_t){.at = &self, .len = 1}, MOB__J_DICT, out);
  *out = mob__j_new_list(r, MOB__J_LIST);
  for (size_t i = 0; i < d->len; i++) {
    mob__jvalue_t item = mob__jstr_is(name, "keys") ? d->at[i].key : d->at[i].value;
    if (mob__jstr_is(name, "items")) {
      item = mob__j_new_list(r, MOB__J_TUPLE);
      mob__j_push(r, item.u.list, d->at[i].key);
      mob__j_push(r, item.u.list, d->at[i].value);
    }
    mob__j_push(r, out->u.list, item);
  }
  return MOB_OK;
}

static mob_status list_method(mob__jinja_t *r, mob__jvalue_t self, mob__jstring_t name,
                              const mob__jargs_t *args, mob__jvalue_t *out) {
  const mob__jlist_t *list = self.u.list;
  if (mob__jstr_is(name, "copy")) {
    *out = mob__j_new_list(r, MOB__J_LIST);
    for (size_t i = 0; i < list->len; i++) mob__j_push(r, out->u.list, list->at[i]);
    return MOB_OK;
  }
  MOB_TRY(arity("a list's method", args, 1, 1));
  int64_t count = 0, first = -1;
  r->steps += list->len / 4;
  for (size_t i = 0; i < list->len; i++) {
    if (!mob__j_equal(list->at[i], args->at[0])) continue;
    if (count++ == 0) first = (int64_t)i;
  }
  if (mob__jstr_is(name, "index") && first < 0)
    return mob_fail(MOB_E_INVALID, "the value is not in the list");
  *out = mob__j_int(mob__jstr_is(name, "index") ? first : count);
  return MOB_OK;
}

static mob_status loop_method(mob__jinja_t *r, mob__jloop_t *loop, mob__jstring_t name,
                              const mob__jargs_t *args, mob__jvalue_t *out) {
  if (mob__jstr_is(name, "cycle")) {
    if (args->len == 0) return mob_fail(MOB_E_INVALID, "no items for cycling given");
    *out = args->at[loop->index % args->len];
    return MOB_OK;
  }
  mob__jvalue_t now = mob__j_new_list(r, MOB__J_TUPLE);
  for (size_t i = 0; i < args->len; i++) mob__j_push(r, now.u.list, args->at[i]);
  *out = mob__j_bool(!loop->has_changed || !mob__j_equal(now, loop->changed));
  loop->changed = now;
  loop->has_changed = true;
  return MOB_OK;
}

mob_status mob__jinja_call(mob__jinja_t *r, mob__jvalue_t f, const mob__jargs_t *args,
                           mob__jvalue_t *out) {
  MOB_TRY(mob__j_defined(f));
  if (f.type == MOB__J_MACRO) return mob__jinja_call_macro(r, f.u.macro, args, out);
  if (f.type == MOB__J_FUNCTION) {
    for (size_t i = 0; i < MOB_LEN(functions); i++) {
      if (functions[i].name == f.u.name) return functions[i].call(r, args, out);
    }
  }
  if (f.type == MOB__J_METHOD) {
    mob__jvalue_t self = f.u.method->self;
    mob__jstring_t name = f.u.method->name;
    switch (self.type) {
    case MOB__J_STRING:
      return mob__jinja_string_method(r, self.u.s, name, args, out);
    case MOB__J_DICT:
      return dict_method(r, self, name, args, out);
    case MOB__J_LOOP:
      return loop_method(r, self.u.loop, name, args, out);
    default:
      return list_method(r, self, name, args, out);
    }
  }
  return mob_fail(MOB_E_INVALID, "'%s' object is not callable", mob__j_type_name(f));
}
