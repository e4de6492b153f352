// Expressions to values.
#include <stdio.h>
#include <string.h>

#include "engine/text/jinja.h"
#include "runtime/base/utf8.h"

mob_status mob__jinja_enter(mob__jinja_t *r) {
  if (r->depth >= MOB__JINJA_MAX_DEPTH)
    return mob_fail(MOB_E_INVALID, "the template recurses too deeply");
  if (++r->steps > MOB__JINJA_MAX_STEPS)
    return mob_fail(MOB_E_INVALID, "the template takes too long");
  if (r->memory > MOB__JINJA_MAX_MEMORY)
    return mob_fail(MOB_E_INVALID, "the template takes too much memory");
  if (r->too_deep) {
    return mob_fail(MOB_E_INVALID, "the template nests values more than %d levels deep",
                    MOB__JINJA_MAX_DATA_DEPTH);
  }
  r->depth++;
  return MOB_OK;
}

void mob__jinja_leave(mob__jinja_t *r) {
  r->depth--;
}

static mob_status name(mob__jinja_t *r, mob__jstring_t n, mob__jvalue_t *out) {
  const char *function;
  if (mob__jinja_lookup(r->scope, n, out)) return MOB_OK;
  if (mob__jinja_is_function(n, &function)) {
    *out = (mob__jvalue_t){.type = MOB__J_FUNCTION, .u.name = function};
    return MOB_OK;
  }
  *out = mob__j_undefined(r, "'%.*s' is undefined", (int)(n.len < 100 ? n.len : 100), n.text);
  return MOB_OK;
}

static bool loop_attr(mob__jinja_t *r, const mob__jloop_t *loop, mob__jstring_t name_,
                      mob__jvalue_t *out) {
  int64_t i = (int64_t)loop->index, n = (int64_t)loop->items->len;
  if (mob__jstr_is(name_, "index"))
    *out = mob__j_int(i + 1);
  else if (mob__jstr_is(name_, "index0"))
    *out = mob__j_int(i);
  else if (mob__jstr_is(name_, "revindex"))
    *out = mob__j_int(n - i);
  else if (mob__jstr_is(name_, "revindex0"))
    *out = mob__j_int(n - i - 1);
  else if (mob__jstr_is(name_, "first"))
    *out = mob__j_bool(i == 0);
  else if (mob__jstr_is(name_, "last"))
    *out = mob__j_bool(i + 1 == n);
  else if (mob__jstr_is(name_, "length"))
    *out = mob__j_int(n);
  else if (mob__jstr_is(name_, "depth"))
    *out = mob__j_int((int64_t)loop->depth);
  else if (mob__jstr_is(name_, "depth0"))
    *out = mob__j_int((int64_t)loop->depth - 1);
  else if (mob__jstr_is(name_, "previtem")) {
    *out = i > 0 ? loop->items->at[i - 1] : mob__j_undefined(r, "there is no previous item");
  } else if (mob__jstr_is(name_, "nextitem")) {
    *out = i + 1 < n ? loop->items->at[i + 1] : mob__j_undefined(r, "there is no next item");
  } else {
    return false;
  }
  return true;
}

// How Jinja names a value in its errors.
static const char *object_name(mob__jvalue_t v, char out[64]) {
  if (v.type == MOB__J_NONE) return "None";
  snprintf(out, 64, "%s object", mob__j_type_name(v));
  return out;
}

static mob__jvalue_t missing(mob__jinja_t *r, mob__jvalue_t v, mob__jstring_t key) {
  char name_[64];
  return mob__j_undefined(r, "'%s' has no attribute '%.*s'", object_name(v, name_),
                          (int)(key.len < 100 ? key.len : 100), key.text);
}

// a.name: an attribute or method, then an item.
mob_status mob__jinja_get_attr(mob__jinja_t *r, mob__jvalue_t v, mob__jstring_t n,
                               mob__jvalue_t *out) {
  MOB_TRY(mob__j_defined(v));
  if (v.type == MOB__J_LOOP && loop_attr(r, v.u.loop, n, out)) return MOB_OK;
  if (v.type == MOB__J_MACRO && mob__jstr_is(n, "name")) {
    *out = mob__j_string(v.u.macro->node->name);
    return MOB_OK;
  }
  if (mob__jinja_has_method(v, n)) {
    mob__jmethod_t *m = mob__j_alloc(r, sizeof *m);
    *m = (mob__jmethod_t){v, n};
    *out = (mob__jvalue_t){.type = MOB__J_METHOD, .u.method = m};
    return MOB_OK;
  }
  if (v.type == MOB__J_DICT || v.type == MOB__J_NAMESPACE) {
    r->steps += v.u.dict->len / 16;
    mob__jvalue_t *item = mob__j_dict_gets(v.u.dict, n);
    if (item) {
      *out = *item;
      return MOB_OK;
    }
  }
  *out = missing(r, v, n);
  return MOB_OK;
}

static size_t length_of(mob__jvalue_t v) {
  return v.type == MOB__J_STRING ? mob_utf8_count(v.u.s.text, v.u.s.len) : v.u.list->len;
}

// Byte where character `index` of a text starts.
static size_t byte_of(mob__jstring_t s, size_t index) {
  size_t i = 0, width;
  for (; index > 0 && i < s.len; index--, i += width) mob_utf8_decode(s.text + i, &width);
  return i;
}

mob_status mob__jinja_get_item(mob__jinja_t *r, mob__jvalue_t v, mob__jvalue_t key,
                               mob__jvalue_t *out) {
  char text[64];
  MOB_TRY(mob__j_defined(v));
  if (v.type == MOB__J_DICT) {
    r->steps += v.u.dict->len / 16;
    mob__jvalue_t *item = mob__j_dict_get(v.u.dict, key);
    if (item) {
      *out = *item;
      return MOB_OK;
    }
  } else if ((v.type == MOB__J_STRING || v.type == MOB__J_LIST || v.type == MOB__J_TUPLE) &&
             (key.type == MOB__J_INT || key.type == MOB__J_BOOL)) {
    if (v.type == MOB__J_STRING) r->steps += v.u.s.len / 64;
    int64_t n = (int64_t)length_of(v), i = key.type == MOB__J_INT ? key.u.i : key.u.b;
    if (i < 0) i += n;
    if (i < 0 || i >= n) {
      *out = mob__j_undefined(r, "%s has no element %lld", object_name(v, text),
                              (long long)(key.type == MOB__J_INT ? key.u.i : key.u.b));
    } else if (v.type == MOB__J_STRING) {
      size_t at = byte_of(v.u.s, (size_t)i), width;
      mob_utf8_decode(v.u.s.text + at, &width);
      *out = mob__j_string((mob__jstring_t){v.u.s.text + at, width});
    } else {
      *out = v.u.list->at[i];
    }
    return MOB_OK;
  }
  if (key.type == MOB__J_STRING) return mob__jinja_get_attr(r, v, key.u.s, out);
  if (key.type == MOB__J_INT) {
    *out = mob__j_undefined(r, "%s has no element %lld", object_name(v, text), (long long)key.u.i);
  } else {
    *out = mob__j_undefined(r, "%s has no such element", object_name(v, text));
  }
  return MOB_OK;
}

// One bound of a slice; `absent` when it is not given or none.
static mob_status bound(mob__jinja_t *r, const mob__jnode_t *node, int64_t absent, int64_t *out,
                        bool *given) {
  mob__jvalue_t v;
  *out = absent;
  *given = false;
  if (!node) return MOB_OK;
  MOB_TRY(mob__jinja_eval(r, node, &v));
  if (v.type == MOB__J_NONE) return MOB_OK;
  if (v.type != MOB__J_INT && v.type != MOB__J_BOOL) {
    return mob_fail(MOB_E_INVALID, "slice indices must be integers or None, not %s",
                    mob__j_type_name(v));
  }
  *given = true;
  *out = v.type == MOB__J_INT ? v.u.i : v.u.b;
  return MOB_OK;
}

static int64_t clamp(int64_t i, int64_t n, int64_t low, int64_t high) {
  if (i < 0)
    i = i < -n ? -1 : i + n;
  else if (i > n)
    i = n;
  return i < low ? low : i > high ? high : i;
}

static mob_status slice(mob__jinja_t *r, const mob__jnode_t *node, mob__jvalue_t v,
                        mob__jvalue_t *out) {
  MOB_TRY(mob__j_defined(v));
  if (v.type != MOB__J_STRING && v.type != MOB__J_LIST && v.type != MOB__J_TUPLE) {
    *out = mob__j_undefined(r, "%s object cannot be sliced", mob__j_type_name(v));
    return MOB_OK;
  }
  int64_t start, stop, step;
  bool has_start, has_stop, has_step;
  MOB_TRY(bound(r, node->items.at[2], 1, &step, &has_step));
  MOB_TRY(bound(r, node->items.at[0], 0, &start, &has_start));
  MOB_TRY(bound(r, node->items.at[1], 0, &stop, &has_stop));
  if (step == 0) return mob_fail(MOB_E_INVALID, "slice step cannot be zero");
  int64_t n = (int64_t)length_of(v);
  if (v.type == MOB__J_STRING) r->steps += v.u.s.len / 64;
  int64_t low = step > 0 ? 0 : -1, high = step > 0 ? n : n - 1;
  start = has_start ? clamp(start, n, low, high) : step > 0 ? 0 : n - 1;
  stop = has_stop ? clamp(stop, n, low, high) : step > 0 ? n : -1;
  if (v.type == MOB__J_STRING && step == 1) { // no copy
    if (stop < start) stop = start;
    size_t from = byte_of(v.u.s, (size_t)start);
    mob__jstring_t rest = {v.u.s.text + from, v.u.s.len - from};
    *out = mob__j_string((mob__jstring_t){rest.text, byte_of(rest, (size_t)(stop - start))});
    return MOB_OK;
  }
  mob__jlist_t *all;
  mob_buf_t text = {0};
  mob__jvalue_t part = mob__j_new_list(r, v.type == MOB__J_TUPLE ? MOB__J_TUPLE : MOB__J_LIST);
  MOB_TRY(mob__j_iterate(r, v, &all));
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (v.type == MOB__J_STRING)
      mob_buf_append(&text, all->at[i].u.s.text, all->at[i].u.s.len);
    else
      mob__j_push(r, part.u.list, all->at[i]);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  if (v.type == MOB__J_STRING) return mob__j_take(r, &text, out);
  *out = part;
  return MOB_OK;
}

static void add_arg(mob__jinja_t *r, mob__jargs_t *args, size_t *cap, const mob__jstring_t *name_,
                    mob__jvalue_t v) {
  if (args->len + args->named_len == *cap) {
    size_t grown = *cap * 2 + 4;
    mob__jvalue_t *at = mob__j_alloc(r, grown * sizeof *at);
    mob__jvariable_t *named = mob__j_alloc(r, grown * sizeof *named);
    if (args->len) memcpy(at, args->at, args->len * sizeof *at);
    if (args->named_len) memcpy(named, args->named, args->named_len * sizeof *named);
    args->at = at;
    args->named = named;
    *cap = grown;
  }
  if (name_)
    args->named[args->named_len++] = (mob__jvariable_t){*name_, v};
  else
    args->at[args->len++] = v;
}

mob_status mob__jinja_eval_args(mob__jinja_t *r, const mob__jnode_t *node, mob__jargs_t *out) {
  size_t cap = 0;
  *out = (mob__jargs_t){0};
  for (size_t i = 0; i < node->arg_count; i++) {
    const mob__jarg_t *arg = &node->args[i];
    mob__jvalue_t v;
    mob__jlist_t *list;
    MOB_TRY(mob__jinja_eval(r, arg->value, &v));
    if (!arg->spread) {
      add_arg(r, out, &cap, arg->name.text ? &arg->name : NULL, v);
    } else if (arg->spread == '*') {
      MOB_TRY(mob__j_defined(v));
      MOB_TRY(mob__j_iterate(r, v, &list));
      for (size_t k = 0; k < list->len; k++) add_arg(r, out, &cap, NULL, list->at[k]);
    } else {
      if (v.type != MOB__J_DICT)
        return mob_fail(MOB_E_INVALID, "argument after ** must be a mapping, not %s",
                        mob__j_type_name(v));
      for (size_t k = 0; k < v.u.dict->len; k++) {
        if (v.u.dict->at[k].key.type != MOB__J_STRING)
          return mob_fail(MOB_E_INVALID, "keywords must be strings");
        add_arg(r, out, &cap, &v.u.dict->at[k].key.u.s, v.u.dict->at[k].value);
      }
    }
  }
  return MOB_OK;
}

static mob_status compare(mob__jinja_t *r, const mob__jnode_t *node, mob__jvalue_t *out) {
  mob__jvalue_t left, right;
  MOB_TRY(mob__jinja_eval(r, node->a, &left));
  for (size_t i = 0; i < node->items.len; i++, left = right) {
    bool holds = false;
    int order;
    MOB_TRY(mob__jinja_eval(r, node->items.at[i], &right));
    switch (node->ops[i]) {
    case '=':
      holds = mob__j_equal(left, right);
      break;
    case '!':
      holds = !mob__j_equal(left, right);
      break;
    case 'i':
      MOB_TRY(mob__j_contains(r, left, right, &holds));
      break;
    case 'n':
      MOB_TRY(mob__j_contains(r, left, right, &holds));
      holds = !holds;
      break;
    default:
      MOB_TRY(mob__j_compare(left, right, &order));
      holds = node->ops[i] == '<'   ? order < 0
              : node->ops[i] == 'l' ? order <= 0
              : node->ops[i] == '>' ? order > 0
                                    : order >= 0;
    }
    *out = mob__j_bool(holds);
    if (!holds) return MOB_OK;
  }
  return MOB_OK;
}

static mob_status negate(mob__jvalue_t v, bool minus, mob__jvalue_t *out) {
  MOB_TRY(mob__j_defined(v));
  if (!mob__j_is_number(v)) {
    return mob_fail(MOB_E_INVALID, "bad operand type for unary %c: '%s'", minus ? '-' : '+',
                    mob__j_type_name(v));
  }
  if (v.type == MOB__J_FLOAT) {
    *out = mob__j_float(minus ? -v.u.f : v.u.f);
  } else {
    int64_t i = v.type == MOB__J_INT ? v.u.i : v.u.b;
    if (minus && i == INT64_MIN)
      return mob_fail(MOB_E_INVALID, "a whole number in the template does not fit in 64 bits");
    *out = mob__j_int(minus ? -i : i);
  }
  return MOB_OK;
}

static mob_status collection(mob__jinja_t *r, const mob__jnode_t *node, mob__jvalue_t *out) {
  mob__jvalue_t v, key;
  if (node->kind == MOB__JE_DICT) {
    *out = mob__j_new_dict(r, MOB__J_DICT);
    for (size_t i = 0; i < node->items.len; i += 2) {
      MOB_TRY(mob__jinja_eval(r, node->items.at[i], &key));
      MOB_TRY(mob__jinja_eval(r, node->items.at[i + 1], &v));
      if (key.type == MOB__J_LIST || key.type == MOB__J_DICT) {
        return mob_fail(MOB_E_INVALID, "unhashable type: '%s'", mob__j_type_name(key));
      }
      mob__j_dict_put(r, out->u.dict, key, v);
    }
    return MOB_OK;
  }
  *out = mob__j_new_list(r, node->kind == MOB__JE_LIST ? MOB__J_LIST : MOB__J_TUPLE);
  for (size_t i = 0; i < node->items.len; i++) {
    MOB_TRY(mob__jinja_eval(r, node->items.at[i], &v));
    mob__j_push(r, out->u.list, v);
  }
  return MOB_OK;
}

static mob_status condition(mob__jinja_t *r, const mob__jnode_t *node, mob__jvalue_t *out) {
  mob__jvalue_t v;
  MOB_TRY(mob__jinja_eval(r, node->b, &v));
  if (mob__j_truth(v)) return mob__jinja_eval(r, node->a, out);
  if (node->c) return mob__jinja_eval(r, node->c, out);
  *out = mob__j_undefined(
      r, "the inline if-expression on line %d evaluated to false and no else section was defined",
      node->line);
  return MOB_OK;
}

static mob_status call(mob__jinja_t *r, const mob__jnode_t *node, mob__jvalue_t *out) {
  mob__jvalue_t v;
  mob__jargs_t args;
  bool yes;
  if (node->kind == MOB__JE_TEST && mob__jstr_is(node->name, "defined")) {
    MOB_TRY(mob__jinja_eval(r, node->a, &v));
    *out = mob__j_bool((v.type != MOB__J_UNDEFINED) != node->negated);
    return MOB_OK;
  }
  MOB_TRY(mob__jinja_eval(r, node->a, &v));
  MOB_TRY(mob__jinja_eval_args(r, node, &args));
  if (node->kind == MOB__JE_CALL) return mob__jinja_call(r, v, &args, out);
  if (node->kind == MOB__JE_FILTER) return mob__jinja_filter(r, node->name, v, &args, out);
  MOB_TRY(mob__jinja_test(r, node->name, v, &args, &yes));
  *out = mob__j_bool(yes != node->negated);
  return MOB_OK;
}

static mob_status eval(mob__jinja_t *r, const mob__jnode_t *node, mob__jvalue_t *out) {
  mob__jvalue_t a, b;
  switch (node->kind) {
  case MOB__JE_CONST:
    *out = node->value;
    return MOB_OK;
  case MOB__JE_NAME:
    return name(r, node->name, out);
  case MOB__JE_LIST:
  case MOB__JE_TUPLE:
  case MOB__JE_DICT:
    return collection(r, node, out);
  case MOB__JE_ATTR:
    MOB_TRY(mob__jinja_eval(r, node->a, &a));
    return mob__jinja_get_attr(r, a, node->name, out);
  case MOB__JE_ITEM:
    MOB_TRY(mob__jinja_eval(r, node->a, &a));
    MOB_TRY(mob__jinja_eval(r, node->b, &b));
    return mob__jinja_get_item(r, a, b, out);
  case MOB__JE_SLICE:
    MOB_TRY(mob__jinja_eval(r, node->a, &a));
    return slice(r, node, a, out);
  case MOB__JE_CALL:
  case MOB__JE_FILTER:
  case MOB__JE_TEST:
    return call(r, node, out);
  case MOB__JE_NOT:
    MOB_TRY(mob__jinja_eval(r, node->a, &a));
    *out = mob__j_bool(!mob__j_truth(a));
    return MOB_OK;
  case MOB__JE_NEG:
  case MOB__JE_POS:
    MOB_TRY(mob__jinja_eval(r, node->a, &a));
    return negate(a, node->kind == MOB__JE_NEG, out);
  case MOB__JE_AND:
  case MOB__JE_OR:
    MOB_TRY(mob__jinja_eval(r, node->a, out));
    if (mob__j_truth(*out) == (node->kind == MOB__JE_OR)) return MOB_OK;
    return mob__jinja_eval(r, node->b, out);
  case MOB__JE_BINARY:
    MOB_TRY(mob__jinja_eval(r, node->a, &a));
    MOB_TRY(mob__jinja_eval(r, node->b, &b));
    return mob__j_binary(r, node->op, a, b, out);
  case MOB__JE_COMPARE:
    return compare(r, node, out);
  case MOB__JE_COND:
    return condition(r, node, out);
  default:
    return mob_fail(MOB_E_INTERNAL, "a statement where an expression belongs");
  }
}

mob_status mob__jinja_eval(mob__jinja_t *r, const mob__jnode_t *node, mob__jvalue_t *out) {
  MOB_TRY(mob__jinja_enter(r));
  mob_status status = eval(r, node, out);
  mob__jinja_leave(r);
  return status;
}
