// Expressions: the precedence climb of Jinja's own parser.
#include <string.h>

#include "engine/text/jinja.h"

mob__jnode_t *mob__jinja_node(mob__jparser_t *p, mob__jkind_t kind) {
  mob__jnode_t *node = MOB_ARENA_NEW(p->arena, mob__jnode_t);
  node->kind = kind;
  node->line = p->token->line;
  return node;
}

void mob__jinja_add(mob__jparser_t *p, mob__jnodes_t *list, mob__jnode_t *node) {
  if (list->len == list->cap) {
    size_t cap = list->cap ? list->cap * 2 : 4;
    mob__jnode_t **grown = MOB_ARENA_ARRAY(p->arena, mob__jnode_t *, cap);
    if (list->len) memcpy(grown, list->at, list->len * sizeof *grown);
    list->at = grown;
    list->cap = cap;
  }
  list->at[list->len++] = node;
}

mob_status mob__jinja_syntax_error(const mob__jparser_t *p, const char *what) {
  const mob__jtoken_t *t = p->token;
  if (t->type == MOB__JT_END) {
    return mob_fail(MOB_E_FORMAT, "template line %d: %s, but the template ends", t->line, what);
  }
  return mob_fail(MOB_E_FORMAT, "template line %d: %s, not '%.*s'", t->line, what,
                  (int)(t->s.len < 40 ? t->s.len : 40), t->s.text);
}

bool mob__jinja_is_op(const mob__jparser_t *p, const char *op) {
  return p->token->type == MOB__JT_OP && mob__jstr_is(p->token->s, op);
}

bool mob__jinja_is_name(const mob__jparser_t *p, const char *name) {
  return p->token->type == MOB__JT_NAME && mob__jstr_is(p->token->s, name);
}

bool mob__jinja_skip_op(mob__jparser_t *p, const char *op) {
  if (!mob__jinja_is_op(p, op)) return false;
  p->token++;
  return true;
}

bool mob__jinja_skip_name(mob__jparser_t *p, const char *name) {
  if (!mob__jinja_is_name(p, name)) return false;
  p->token++;
  return true;
}

static mob_status expect_op(mob__jparser_t *p, const char *op) {
  char what[32];
  if (mob__jinja_skip_op(p, op)) return MOB_OK;
  snprintf(what, sizeof what, "expected '%s'", op);
  return mob__jinja_syntax_error(p, what);
}

static mob_status expect_name(mob__jparser_t *p, mob__jstring_t *out) {
  if (p->token->type != MOB__JT_NAME) return mob__jinja_syntax_error(p, "expected a name");
  *out = (p->token++)->s;
  return MOB_OK;
}

static mob__jnode_t *unary_node(mob__jparser_t *p, mob__jkind_t kind, mob__jnode_t *a) {
  mob__jnode_t *node = mob__jinja_node(p, kind);
  node->a = a;
  return node;
}

static mob__jnode_t *binary_node(mob__jparser_t *p, mob__jkind_t kind, char op, mob__jnode_t *a,
                                 mob__jnode_t *b) {
  mob__jnode_t *node = unary_node(p, kind, a);
  node->b = b;
  node->op = op;
  return node;
}

// The arguments of a call, the current token being the opening parenthesis.
static mob_status arguments(mob__jparser_t *p, mob__jnode_t *node) {
  size_t cap = 0;
  MOB_TRY(expect_op(p, "("));
  while (!mob__jinja_skip_op(p, ")")) {
    if (node->arg_count) {
      MOB_TRY(expect_op(p, ","));
      if (mob__jinja_skip_op(p, ")")) break;
    }
    if (node->arg_count == cap) {
      cap = cap ? cap * 2 : 4;
      mob__jarg_t *grown = MOB_ARENA_ARRAY(p->arena, mob__jarg_t, cap);
      if (node->arg_count) memcpy(grown, node->args, node->arg_count * sizeof *grown);
      node->args = grown;
    }
    mob__jarg_t *arg = &node->args[node->arg_count];
    if (mob__jinja_skip_op(p, "*")) {
      arg->spread = '*';
    } else if (mob__jinja_skip_op(p, "**")) {
      arg->spread = 'd';
    } else if (p->token->type == MOB__JT_NAME && p->token[1].type == MOB__JT_OP &&
               mob__jstr_is(p->token[1].s, "=")) {
      arg->name = p->token->s;
      p->token += 2;
    } else if (node->arg_count && (arg[-1].name.text || arg[-1].spread)) {
      return mob__jinja_syntax_error(p, "expected a named argument");
    }
    MOB_TRY(mob__jinja_expression(p, true, &arg->value));
    node->arg_count++;
  }
  return MOB_OK;
}

static mob_status dict_literal(mob__jparser_t *p, mob__jnode_t **out) {
  mob__jnode_t *node = mob__jinja_node(p, MOB__JE_DICT);
  p->token++;
  while (!mob__jinja_skip_op(p, "}")) {
    mob__jnode_t *key, *value;
    if (node->items.len) {
      MOB_TRY(expect_op(p, ","));
      if (mob__jinja_skip_op(p, "}")) break;
    }
    MOB_TRY(mob__jinja_expression(p, true, &key));
    MOB_TRY(expect_op(p, ":"));
    MOB_TRY(mob__jinja_expression(p, true, &value));
    mob__jinja_add(p, &node->items, key);
    mob__jinja_add(p, &node->items, value);
  }
  *out = node;
  return MOB_OK;
}

static mob_status list_literal(mob__jparser_t *p, mob__jnode_t **out) {
  mob__jnode_t *node = mob__jinja_node(p, MOB__JE_LIST);
  p->token++;
  while (!mob__jinja_skip_op(p, "]")) {
    mob__jnode_t *item;
    if (node->items.len) {
      MOB_TRY(expect_op(p, ","));
      if (mob__jinja_skip_op(p, "]")) break;
    }
    MOB_TRY(mob__jinja_expression(p, true, &item));
    mob__jinja_add(p, &node->items, item);
  }
  *out = node;
  return MOB_OK;
}

static mob_status parenthesis(mob__jparser_t *p, mob__jnode_t **out) {
  p->token++;
  if (mob__jinja_is_op(p, ")")) {
    *out = mob__jinja_node(p, MOB__JE_TUPLE);
  } else {
    MOB_TRY(mob__jinja_expressions(p, true, out));
  }
  return expect_op(p, ")");
}

static mob_status name_or_constant(mob__jparser_t *p, mob__jnode_t **out) {
  mob__jstring_t name = p->token->s;
  mob__jnode_t *node = mob__jinja_node(p, MOB__JE_CONST);
  if (mob__jstr_is(name, "true") || mob__jstr_is(name, "True")) {
    node->value = mob__j_bool(true);
  } else if (mob__jstr_is(name, "false") || mob__jstr_is(name, "False")) {
    node->value = mob__j_bool(false);
  } else if (mob__jstr_is(name, "none") || mob__jstr_is(name, "None")) {
    node->value = mob__j_none();
  } else {
    node->kind = MOB__JE_NAME;
    node->name = name;
  }
  p->token++;
  *out = node;
  return MOB_OK;
}

static mob_status primary(mob__jparser_t *p, mob__jnode_t **out) {
  const mob__jtoken_t *t = p->token;
  mob__jnode_t *node = mob__jinja_node(p, MOB__JE_CONST);
  switch (t->type) {
  case MOB__JT_NAME:
    return name_or_constant(p, out);
  case MOB__JT_INT:
    node->value = mob__j_int(t->i);
    break;
  case MOB__JT_FLOAT:
    node->value = mob__j_float(t->f);
    break;
  case MOB__JT_STRING: {
    mob__jstring_t s = t->s;
    if (t[1].type == MOB__JT_STRING) { // strings side by side are one
      size_t len = 0, n = 0;
      for (const mob__jtoken_t *k = t; k->type == MOB__JT_STRING; k++) len += k->s.len;
      char *text = mob_arena_alloc(p->arena, len + 1);
      for (; t->type == MOB__JT_STRING; n += (t++)->s.len) memcpy(text + n, t->s.text, t->s.len);
      s = (mob__jstring_t){text, len};
      p->token = t - 1;
    }
    node->value = mob__j_string(s);
    break;
  }
  default:
    if (mob__jinja_is_op(p, "(")) return parenthesis(p, out);
    if (mob__jinja_is_op(p, "[")) return list_literal(p, out);
    if (mob__jinja_is_op(p, "{")) return dict_literal(p, out);
    return mob__jinja_syntax_error(p, "expected an expression");
  }
  p->token++;
  *out = node;
  return MOB_OK;
}

static mob_status subscript(mob__jparser_t *p, mob__jnode_t *object, mob__jnode_t **out) {
  mob__jnode_t *parts[3] = {NULL, NULL, NULL};
  int part = 0;
  p->token++;
  while (!mob__jinja_is_op(p, "]")) {
    if (mob__jinja_skip_op(p, ":")) {
      if (++part > 2) return mob__jinja_syntax_error(p, "expected ']'");
    } else if (!parts[part]) {
      MOB_TRY(mob__jinja_expressions(p, true, &parts[part]));
    } else {
      break;
    }
  }
  if (part == 0 && !parts[0]) return mob__jinja_syntax_error(p, "expected an index");
  MOB_TRY(expect_op(p, "]"));
  mob__jnode_t *node = unary_node(p, part ? MOB__JE_SLICE : MOB__JE_ITEM, object);
  node->b = parts[0];
  if (part) {
    for (int i = 0; i < 3; i++) mob__jinja_add(p, &node->items, parts[i]);
  }
  *out = node;
  return MOB_OK;
}

mob_status mob__jinja_postfix(mob__jparser_t *p, mob__jnode_t *node, mob__jnode_t **out) {
  for (;;) {
    if (mob__jinja_skip_op(p, ".")) {
      node = unary_node(p, MOB__JE_ATTR, node);
      if (p->token->type == MOB__JT_INT) { // a.0 is a[0]
        node->kind = MOB__JE_ITEM;
        node->b = mob__jinja_node(p, MOB__JE_CONST);
        node->b->value = mob__j_int((p->token++)->i);
      } else {
        MOB_TRY(expect_name(p, &node->name));
      }
    } else if (mob__jinja_is_op(p, "[")) {
      MOB_TRY(subscript(p, node, &node));
    } else if (mob__jinja_is_op(p, "(")) {
      node = unary_node(p, MOB__JE_CALL, node);
      MOB_TRY(arguments(p, node));
    } else {
      *out = node;
      return MOB_OK;
    }
  }
}

mob_status mob__jinja_filters(mob__jparser_t *p, mob__jnode_t *node, bool first,
                              mob__jnode_t **out) {
  while (first || mob__jinja_skip_op(p, "|")) {
    first = false;
    node = unary_node(p, MOB__JE_FILTER, node);
    MOB_TRY(expect_name(p, &node->name));
    if (!mob__jinja_is_filter(node->name)) {
      return mob_fail(MOB_E_UNSUPPORTED, "template line %d: there is no filter named '%.*s'",
                      node->line, (int)(node->name.len < 60 ? node->name.len : 60),
                      node->name.text);
    }
    if (mob__jinja_is_op(p, "(")) MOB_TRY(arguments(p, node));
  }
  *out = node;
  return MOB_OK;
}

static bool starts_argument(const mob__jparser_t *p) {
  static const char *const words[] = {"else", "or", "and", "is", "if", "in", "not"};
  for (size_t i = 0; i < MOB_LEN(words); i++) {
    if (mob__jinja_is_name(p, words[i])) return false;
  }
  return (p->token->type >= MOB__JT_NAME && p->token->type <= MOB__JT_FLOAT) ||
         mob__jinja_is_op(p, "[") || mob__jinja_is_op(p, "{");
}

static mob_status test(mob__jparser_t *p, mob__jnode_t *a, mob__jnode_t **out) {
  mob__jnode_t *node = unary_node(p, MOB__JE_TEST, a);
  node->negated = mob__jinja_skip_name(p, "not");
  MOB_TRY(expect_name(p, &node->name));
  if (!mob__jinja_is_test(node->name)) {
    return mob_fail(MOB_E_UNSUPPORTED, "template line %d: there is no test named '%.*s'",
                    node->line, (int)(node->name.len < 60 ? node->name.len : 60), node->name.text);
  }
  if (mob__jinja_is_op(p, "(")) {
    MOB_TRY(arguments(p, node));
  } else if (starts_argument(p)) {
    node->args = MOB_ARENA_NEW(p->arena, mob__jarg_t);
    node->arg_count = 1;
    MOB_TRY(primary(p, &node->args[0].value));
    MOB_TRY(mob__jinja_postfix(p, node->args[0].value, &node->args[0].value));
  }
  *out = node;
  return MOB_OK;
}

static mob_status unary(mob__jparser_t *p, bool with_filter, mob__jnode_t **out) {
  if (p->depth >= MOB__JINJA_MAX_NESTING)
    return mob__jinja_syntax_error(p, "expected less nesting");
  p->depth++;
  mob_status status = MOB_OK;
  mob__jnode_t *node = NULL;
  if (mob__jinja_is_op(p, "-") || mob__jinja_is_op(p, "+")) {
    bool negative = mob__jinja_is_op(p, "-");
    p->token++;
    MOB_TRY_GOTO(unary(p, false, &node), status, done);
    node = unary_node(p, negative ? MOB__JE_NEG : MOB__JE_POS, node);
  } else {
    MOB_TRY_GOTO(primary(p, &node), status, done);
  }
  MOB_TRY_GOTO(mob__jinja_postfix(p, node, &node), status, done);
  while (with_filter) {
    if (mob__jinja_is_op(p, "|")) {
      MOB_TRY_GOTO(mob__jinja_filters(p, node, false, &node), status, done);
    } else if (mob__jinja_skip_name(p, "is")) {
      MOB_TRY_GOTO(test(p, node, &node), status, done);
    } else if (mob__jinja_is_op(p, "(")) {
      MOB_TRY_GOTO(mob__jinja_postfix(p, node, &node), status, done);
    } else {
      break;
    }
  }
done:
  p->depth--;
  *out = node;
  return status;
}

// Binary operators of one level: `ops` lists them, `codes` what the node says.
typedef struct level {
  const char *const *ops;
  const char *codes;
} level_t;

static const char *const power_ops[] = {"**", NULL};
static const char *const product_ops[] = {"*", "/", "//", "%", NULL};
static const char *const concat_ops[] = {"~", NULL};
static const char *const sum_ops[] = {"+", "-", NULL};
static const level_t levels[] = {
    {sum_ops, "+-"}, {concat_ops, "~"}, {product_ops, "*/f%"}, {power_ops, "p"}};

static mob_status binary(mob__jparser_t *p, size_t which, mob__jnode_t **out) {
  if (which == MOB_LEN(levels)) return unary(p, true, out);
  mob__jnode_t *left, *right;
  MOB_TRY(binary(p, which + 1, &left));
  for (;;) {
    size_t i = 0;
    while (levels[which].ops[i] && !mob__jinja_is_op(p, levels[which].ops[i])) i++;
    if (!levels[which].ops[i]) break;
    p->token++;
    MOB_TRY(binary(p, which + 1, &right));
    left = binary_node(p, MOB__JE_BINARY, levels[which].codes[i], left, right);
  }
  *out = left;
  return MOB_OK;
}

static char comparison(mob__jparser_t *p) {
  static const char *const ops[] = {"==", "!=", "<", "<=", ">", ">="};
  for (size_t i = 0; i < MOB_LEN(ops); i++) {
    if (mob__jinja_skip_op(p, ops[i])) return "=!<l>g"[i];
  }
  if (mob__jinja_skip_name(p, "in")) return 'i';
  if (mob__jinja_is_name(p, "not") && p->token[1].type == MOB__JT_NAME &&
      mob__jstr_is(p->token[1].s, "in")) {
    p->token += 2;
    return 'n';
  }
  return 0;
}

static mob_status compare(mob__jparser_t *p, mob__jnode_t **out) {
  mob__jnode_t *left, *right;
  char ops[MOB__JINJA_MAX_NESTING];
  size_t n = 0;
  MOB_TRY(binary(p, 0, &left));
  *out = left;
  for (char op; (op = comparison(p)) != 0;) {
    if (n == sizeof ops) return mob__jinja_syntax_error(p, "expected fewer comparisons");
    if (n == 0) *out = unary_node(p, MOB__JE_COMPARE, left);
    MOB_TRY(binary(p, 0, &right));
    mob__jinja_add(p, &(*out)->items, right);
    ops[n++] = op;
  }
  if (n) (*out)->ops = mob_arena_strndup(p->arena, ops, n);
  return MOB_OK;
}

static mob_status negation(mob__jparser_t *p, mob__jnode_t **out) {
  bool negated = false, any = false;
  for (; mob__jinja_skip_name(p, "not"); any = true) negated = !negated;
  MOB_TRY(compare(p, out));
  if (!any) return MOB_OK;
  *out = unary_node(p, MOB__JE_NOT, *out);
  if (!negated) *out = unary_node(p, MOB__JE_NOT, *out);
  return MOB_OK;
}

static mob_status conjunction(mob__jparser_t *p, mob__jnode_t **out) {
  mob__jnode_t *right;
  MOB_TRY(negation(p, out));
  while (mob__jinja_skip_name(p, "and")) {
    MOB_TRY(negation(p, &right));
    *out = binary_node(p, MOB__JE_AND, 0, *out, right);
  }
  return MOB_OK;
}

static mob_status disjunction(mob__jparser_t *p, mob__jnode_t **out) {
  mob__jnode_t *right;
  MOB_TRY(conjunction(p, out));
  while (mob__jinja_skip_name(p, "or")) {
    MOB_TRY(conjunction(p, &right));
    *out = binary_node(p, MOB__JE_OR, 0, *out, right);
  }
  return MOB_OK;
}

mob_status mob__jinja_expression(mob__jparser_t *p, bool conditional, mob__jnode_t **out) {
  if (p->depth >= MOB__JINJA_MAX_NESTING)
    return mob__jinja_syntax_error(p, "expected less nesting");
  p->depth++;
  mob_status status = disjunction(p, out);
  while (status == MOB_OK && conditional && mob__jinja_skip_name(p, "if")) {
    mob__jnode_t *node = unary_node(p, MOB__JE_COND, *out);
    status = disjunction(p, &node->b);
    if (status == MOB_OK && mob__jinja_skip_name(p, "else")) {
      status = mob__jinja_expression(p, true, &node->c);
    }
    *out = node;
  }
  p->depth--;
  return status;
}

static bool ends_tuple(const mob__jparser_t *p) {
  return p->token->type == MOB__JT_VAR_END || p->token->type == MOB__JT_BLOCK_END ||
         mob__jinja_is_op(p, ")") || mob__jinja_is_op(p, "]") || mob__jinja_is_name(p, "in");
}

mob_status mob__jinja_expressions(mob__jparser_t *p, bool conditional, mob__jnode_t **out) {
  MOB_TRY(mob__jinja_expression(p, conditional, out));
  if (!mob__jinja_is_op(p, ",")) return MOB_OK;
  mob__jnode_t *tuple = mob__jinja_node(p, MOB__JE_TUPLE), *item;
  mob__jinja_add(p, &tuple->items, *out);
  while (mob__jinja_skip_op(p, ",") && !ends_tuple(p)) {
    MOB_TRY(mob__jinja_expression(p, conditional, &item));
    mob__jinja_add(p, &tuple->items, item);
  }
  *out = tuple;
  return MOB_OK;
}
