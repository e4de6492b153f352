// Tests: value is name(arguments).
#include <math.h>
#include <string.h>

#include "engine/text/jinja.h"

typedef enum test {
  T_DEFINED,
  T_UNDEFINED,
  T_NONE,
  T_STRING,
  T_MAPPING,
  T_ITERABLE,
  T_SEQUENCE,
  T_NUMBER,
  T_INTEGER,
  T_FLOAT,
  T_BOOLEAN,
  T_TRUE,
  T_FALSE,
  T_SAMEAS,
  T_IN,
  T_EQ,
  T_NE,
  T_LT,
  T_LE,
  T_GT,
  T_GE,
  T_EVEN,
  T_ODD,
  T_DIVISIBLE,
  T_CALLABLE,
  T_LOWER,
  T_UPPER,
  T_FILTER,
  T_TEST,
  T_ESCAPED,
} test_t;

static const struct {
  const char *name;
  test_t test;
} tests[] = {
    {"defined", T_DEFINED},
    {"undefined", T_UNDEFINED},
    {"none", T_NONE},
    {"string", T_STRING},
    {"mapping", T_MAPPING},
    {"iterable", T_ITERABLE},
    {"sequence", T_SEQUENCE},
    {"number", T_NUMBER},
    {"integer", T_INTEGER},
    {"float", T_FLOAT},
    {"boolean", T_BOOLEAN},
    {"true", T_TRUE},
    {"false", T_FALSE},
    {"sameas", T_SAMEAS},
    {"in", T_IN},
    {"eq", T_EQ},
    {"equalto", T_EQ},
    {"==", T_EQ},
    {"ne", T_NE},
    {"!=", T_NE},
    {"lt", T_LT},
    {"lessthan", T_LT},
    {"<", T_LT},
    {"le", T_LE},
    {"<=", T_LE},
    {"gt", T_GT},
    {"greaterthan", T_GT},
    {">", T_GT},
    {"ge", T_GE},
    {">=", T_GE},
    {"even", T_EVEN},
    {"odd", T_ODD},
    {"divisibleby", T_DIVISIBLE},
    {"callable", T_CALLABLE},
    {"lower", T_LOWER},
    {"upper", T_UPPER},
    {"filter", T_FILTER},
    {"test", T_TEST},
    {"escaped", T_ESCAPED},
};

bool mob__jinja_is_test(mob__jstring_t name) {
  for (size_t i = 0; i < MOB_LEN(tests); i++) {
    if (mob__jstr_is(name, tests[i].name)) return true;
  }
  return false;
}

static bool has_argument(test_t t) {
  return (t >= T_SAMEAS && t <= T_GE) || t == T_DIVISIBLE;
}

static bool same(mob__jvalue_t a, mob__jvalue_t b) {
  if (a.type != b.type) return false;
  if (a.type == MOB__J_LIST || a.type == MOB__J_TUPLE || a.type == MOB__J_DICT)
    return a.u.list == b.u.list;
  return mob__j_equal(a, b);
}

static mob_status remainder_of(mob__jinja_t *r, mob__jvalue_t v, mob__jvalue_t by, double *out) {
  mob__jvalue_t rest;
  MOB_TRY(mob__j_binary(r, '%', v, by, &rest));
  if (!mob__j_is_number(rest))
    return mob_fail(MOB_E_INVALID, "a test needs a number, not %s", mob__j_type_name(v));
  *out = mob__j_number(rest);
  return MOB_OK;
}

static mob_status letter_case(mob__jinja_t *r, mob__jvalue_t v, const char *method, bool *out) {
  mob__jstring_t s;
  mob__jvalue_t yes;
  MOB_TRY(mob__j_to_string(r, v, &s));
  MOB_TRY(mob__jinja_string_method(r, s, (mob__jstring_t){method, strlen(method)},
                                   &(mob__jargs_t){0}, &yes));
  *out = yes.u.b;
  return MOB_OK;
}

static mob_status ordered(test_t t, mob__jvalue_t v, mob__jvalue_t a, bool *out) {
  int order;
  MOB_TRY(mob__j_compare(v, a, &order));
  *out = t == T_LT ? order < 0 : t == T_LE ? order <= 0 : t == T_GT ? order > 0 : order >= 0;
  return MOB_OK;
}

mob_status mob__jinja_test(mob__jinja_t *r, mob__jstring_t name, mob__jvalue_t v,
                           const mob__jargs_t *args, bool *out) {
  size_t i = 0;
  while (i < MOB_LEN(tests) && !mob__jstr_is(name, tests[i].name)) i++;
  if (i == MOB_LEN(tests))
    return mob_fail(MOB_E_UNSUPPORTED, "there is no test named '%.*s'", (int)name.len, name.text);
  test_t t = tests[i].test;
  if (has_argument(t) ? args->len != 1 : args->len > 0) {
    return mob_fail(MOB_E_INVALID, "the test '%s' takes %s argument", tests[i].name,
                    has_argument(t) ? "one" : "no");
  }
  mob__jvalue_t a = args->len ? args->at[0] : mob__j_none();
  double rest = 0;
  bool container = v.type == MOB__J_STRING || v.type == MOB__J_LIST || v.type == MOB__J_TUPLE ||
                   v.type == MOB__J_DICT;
  switch (t) {
  case T_DEFINED:
    *out = v.type != MOB__J_UNDEFINED;
    break;
  case T_UNDEFINED:
    *out = v.type == MOB__J_UNDEFINED;
    break;
  case T_NONE:
    *out = v.type == MOB__J_NONE;
    break;
  case T_STRING:
    *out = v.type == MOB__J_STRING;
    break;
  case T_MAPPING:
    *out = v.type == MOB__J_DICT;
    break;
  case T_ITERABLE:
    *out = container || v.type == MOB__J_UNDEFINED || v.type == MOB__J_LOOP;
    break;
  case T_SEQUENCE:
    *out = container || v.type == MOB__J_UNDEFINED;
    break;
  case T_NUMBER:
    *out = mob__j_is_number(v);
    break;
  case T_INTEGER:
    *out = v.type == MOB__J_INT;
    break;
  case T_FLOAT:
    *out = v.type == MOB__J_FLOAT;
    break;
  case T_BOOLEAN:
    *out = v.type == MOB__J_BOOL;
    break;
  case T_TRUE:
    *out = v.type == MOB__J_BOOL && v.u.b;
    break;
  case T_FALSE:
    *out = v.type == MOB__J_BOOL && !v.u.b;
    break;
  case T_SAMEAS:
    *out = same(v, a);
    break;
  case T_IN:
    return mob__j_contains(r, v, a, out);
  case T_EQ:
    *out = mob__j_equal(v, a);
    break;
  case T_NE:
    *out = !mob__j_equal(v, a);
    break;
  case T_LT:
  case T_LE:
  case T_GT:
  case T_GE:
    return ordered(t, v, a, out);
  case T_EVEN:
  case T_ODD:
    MOB_TRY(remainder_of(r, v, mob__j_int(2), &rest));
    *out = t == T_EVEN ? rest == 0 : rest == 1;
    break;
  case T_DIVISIBLE:
    MOB_TRY(remainder_of(r, v, a, &rest));
    *out = rest == 0;
    break;
  case T_CALLABLE:
    *out = v.type == MOB__J_METHOD || v.type == MOB__J_FUNCTION || v.type == MOB__J_MACRO;
    break;
  case T_LOWER:
    return letter_case(r, v, "islower", out);
  case T_UPPER:
    return letter_case(r, v, "isupper", out);
  case T_FILTER:
    *out = v.type == MOB__J_STRING && mob__jinja_is_filter(v.u.s);
    break;
  case T_TEST:
    *out = v.type == MOB__J_STRING && mob__jinja_is_test(v.u.s);
    break;
  case T_ESCAPED:
    *out = false;
    break;
  }
  return MOB_OK;
}
