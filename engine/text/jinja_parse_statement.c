// Statements: text, {{ }}, and the blocks.
#include <string.h>

#include "engine/text/jinja.h"

static mob_status parse_body(mob__jparser_t *p, const char *const *ends, mob__jnodes_t *body);

static mob_status end_block(mob__jparser_t *p) {
  if (p->token->type != MOB__JT_BLOCK_END) return mob__jinja_syntax_error(p, "expected '%}'");
  p->token++;
  return MOB_OK;
}

static mob_status expect_name(mob__jparser_t *p, mob__jstring_t *out) {
  if (p->token->type != MOB__JT_NAME) return mob__jinja_syntax_error(p, "expected a name");
  *out = (p->token++)->s;
  return MOB_OK;
}

// The body up to {% NAME %}, which is eaten.
static mob_status body_until(mob__jparser_t *p, const char *name, mob__jnodes_t *body) {
  const char *const ends[] = {name, NULL};
  MOB_TRY(parse_body(p, ends, body));
  p->token++;
  return MOB_OK;
}

static mob_status target(mob__jparser_t *p, bool attributes, mob__jnode_t **out);

static mob_status one_target(mob__jparser_t *p, bool attributes, mob__jnode_t **out) {
  if (mob__jinja_is_op(p, "(")) { // a, (b, c)
    if (p->depth >= MOB__JINJA_MAX_NESTING)
      return mob__jinja_syntax_error(p, "expected less nesting");
    p->depth++;
    mob_status status = target(p, attributes, out);
    p->depth--;
    return status;
  }
  mob__jnode_t *node = mob__jinja_node(p, MOB__JE_NAME);
  MOB_TRY(expect_name(p, &node->name));
  static const char *const constants[] = {"true", "false", "none", "True", "False", "None"};
  for (size_t i = 0; i < MOB_LEN(constants); i++) {
    if (mob__jstr_is(node->name, constants[i])) {
      return mob_fail(MOB_E_FORMAT, "template line %d: cannot assign to '%s'", node->line,
                      constants[i]);
    }
  }
  if (attributes && mob__jinja_skip_op(p, ".")) {
    mob__jnode_t *attribute = mob__jinja_node(p, MOB__JE_ATTR);
    attribute->a = node;
    MOB_TRY(expect_name(p, &attribute->name));
    node = attribute;
  }
  *out = node;
  return MOB_OK;
}

// What is assigned to: a name, ns.name where allowed, or names with commas between, in parentheses
// or not.
static mob_status target(mob__jparser_t *p, bool attributes, mob__jnode_t **out) {
  bool parentheses = mob__jinja_skip_op(p, "(");
  MOB_TRY(one_target(p, attributes, out));
  if (mob__jinja_is_op(p, ",")) {
    mob__jnode_t *tuple = mob__jinja_node(p, MOB__JE_TUPLE), *item;
    mob__jinja_add(p, &tuple->items, *out);
    while (mob__jinja_skip_op(p, ",")) {
      if ((p->token->type != MOB__JT_NAME && !mob__jinja_is_op(p, "(")) ||
          mob__jinja_is_name(p, "in"))
        break;
      MOB_TRY(one_target(p, attributes, &item));
      mob__jinja_add(p, &tuple->items, item);
    }
    *out = tuple;
  }
  if (parentheses && !mob__jinja_skip_op(p, ")")) return mob__jinja_syntax_error(p, "expected ')'");
  return MOB_OK;
}

static mob_status parse_if(mob__jparser_t *p, mob__jnode_t *node) {
  static const char *const ends[] = {"elif", "else", "endif", NULL};
  mob__jnode_t *branch = node;
  for (;;) {
    branch->kind = MOB__JS_IF;
    MOB_TRY(mob__jinja_expressions(p, false, &branch->a));
    MOB_TRY(end_block(p));
    MOB_TRY(parse_body(p, ends, &branch->body));
    if (!mob__jinja_skip_name(p, "elif")) break;
    // A long chain of elifs is walked, not recursed into: exec follows orelse.
    mob__jnode_t *next = mob__jinja_node(p, MOB__JS_IF);
    mob__jinja_add(p, &branch->orelse, next);
    branch = next;
  }
  if (mob__jinja_skip_name(p, "else")) {
    MOB_TRY(end_block(p));
    return body_until(p, "endif", &branch->orelse);
  }
  p->token++; // endif
  return MOB_OK;
}

static mob_status parse_for(mob__jparser_t *p, mob__jnode_t *node) {
  static const char *const ends[] = {"else", "endfor", NULL};
  MOB_TRY(target(p, false, &node->a));
  if (!mob__jinja_skip_name(p, "in")) return mob__jinja_syntax_error(p, "expected 'in'");
  MOB_TRY(mob__jinja_expressions(p, false, &node->b));
  if (mob__jinja_skip_name(p, "if")) MOB_TRY(mob__jinja_expression(p, true, &node->c));
  if (mob__jinja_is_name(p, "recursive")) {
    return mob_fail(MOB_E_UNSUPPORTED, "template line %d: recursive loops are not supported",
                    node->line);
  }
  MOB_TRY(end_block(p));
  p->loops++;
  mob_status status = parse_body(p, ends, &node->body);
  p->loops--;
  if (status != MOB_OK) return status;
  if (mob__jinja_skip_name(p, "else")) {
    MOB_TRY(end_block(p));
    return body_until(p, "endfor", &node->orelse);
  }
  p->token++;
  return MOB_OK;
}

static mob_status parse_set(mob__jparser_t *p, mob__jnode_t *node) {
  MOB_TRY(target(p, true, &node->a));
  if (mob__jinja_skip_op(p, "=")) return mob__jinja_expressions(p, true, &node->b);
  node->kind = MOB__JS_SET_BLOCK;
  if (node->a->kind == MOB__JE_TUPLE) return mob__jinja_syntax_error(p, "expected '='");
  if (mob__jinja_is_op(p, "|")) MOB_TRY(mob__jinja_filters(p, NULL, false, &node->b));
  MOB_TRY(end_block(p));
  return body_until(p, "endset", &node->body);
}

// (a, b=1): the parameters of a macro.
static mob_status parameters(mob__jparser_t *p, mob__jnode_t *node) {
  size_t cap = 0;
  if (!mob__jinja_skip_op(p, "(")) return mob__jinja_syntax_error(p, "expected '('");
  while (!mob__jinja_skip_op(p, ")")) {
    if (node->arg_count && !mob__jinja_skip_op(p, ","))
      return mob__jinja_syntax_error(p, "expected ','");
    if (node->arg_count && mob__jinja_skip_op(p, ")")) break;
    if (node->arg_count == cap) {
      cap = cap ? cap * 2 : 4;
      mob__jarg_t *grown = MOB_ARENA_ARRAY(p->arena, mob__jarg_t, cap);
      if (node->arg_count) memcpy(grown, node->args, node->arg_count * sizeof *grown);
      node->args = grown;
    }
    mob__jarg_t *arg = &node->args[node->arg_count];
    MOB_TRY(expect_name(p, &arg->name));
    if (mob__jinja_skip_op(p, "=")) {
      MOB_TRY(mob__jinja_expression(p, true, &arg->value));
    } else if (node->arg_count && arg[-1].value) {
      return mob__jinja_syntax_error(p, "expected a default value");
    }
    node->arg_count++;
  }
  return MOB_OK;
}

static mob_status parse_macro(mob__jparser_t *p, mob__jnode_t *node) {
  int loops = p->loops;
  MOB_TRY(expect_name(p, &node->name));
  MOB_TRY(parameters(p, node));
  MOB_TRY(end_block(p));
  p->loops = 0; // no break out of a macro
  mob_status status = body_until(p, "endmacro", &node->body);
  p->loops = loops;
  return status;
}

static mob_status parse_call(mob__jparser_t *p, mob__jnode_t *node) {
  int loops = p->loops;
  if (mob__jinja_is_op(p, "(")) MOB_TRY(parameters(p, node));
  MOB_TRY(mob__jinja_expression(p, false, &node->a));
  if (node->a->kind != MOB__JE_CALL) return mob__jinja_syntax_error(p, "expected a call");
  MOB_TRY(end_block(p));
  p->loops = 0;
  mob_status status = body_until(p, "endcall", &node->body);
  p->loops = loops;
  return status;
}

static mob_status parse_with(mob__jparser_t *p, mob__jnode_t *node) {
  while (p->token->type != MOB__JT_BLOCK_END) {
    mob__jnode_t *name, *value;
    if (node->items.len && !mob__jinja_skip_op(p, ","))
      return mob__jinja_syntax_error(p, "expected ','");
    MOB_TRY(target(p, false, &name));
    if (!mob__jinja_skip_op(p, "=")) return mob__jinja_syntax_error(p, "expected '='");
    MOB_TRY(mob__jinja_expression(p, true, &value));
    mob__jinja_add(p, &node->items, name);
    mob__jinja_add(p, &node->items, value);
  }
  MOB_TRY(end_block(p));
  return body_until(p, "endwith", &node->body);
}

static mob_status parse_loop_control(mob__jparser_t *p, mob__jnode_t *node) {
  (void)node;
  if (p->loops == 0) return mob__jinja_syntax_error(p, "break and continue stand in a loop");
  return MOB_OK;
}

static mob_status parse_filter_block(mob__jparser_t *p, mob__jnode_t *node) {
  MOB_TRY(mob__jinja_filters(p, NULL, true, &node->b));
  MOB_TRY(end_block(p));
  return body_until(p, "endfilter", &node->body);
}

// {% generation %} marks what the assistant said, for training; it changes no text.
static mob_status parse_generation(mob__jparser_t *p, mob__jnode_t *node) {
  MOB_TRY(end_block(p));
  return body_until(p, "endgeneration", &node->body);
}

static const struct {
  const char *name;
  mob__jkind_t kind;
  mob_status (*parse)(mob__jparser_t *p, mob__jnode_t *node);
} statements[] = {
    {"if", MOB__JS_IF, parse_if},
    {"for", MOB__JS_FOR, parse_for},
    {"set", MOB__JS_SET, parse_set},
    {"macro", MOB__JS_MACRO, parse_macro},
    {"call", MOB__JS_CALL, parse_call},
    {"with", MOB__JS_WITH, parse_with},
    {"filter", MOB__JS_FILTER_BLOCK, parse_filter_block},
    {"generation", MOB__JS_WITH, parse_generation},
    {"break", MOB__JS_BREAK, parse_loop_control},
    {"continue", MOB__JS_CONTINUE, parse_loop_control},
};

static mob_status statement(mob__jparser_t *p, mob__jnodes_t *body) {
  mob__jstring_t name = p->token->s;
  for (size_t i = 0; i < MOB_LEN(statements); i++) {
    if (!mob__jinja_is_name(p, statements[i].name)) continue;
    mob__jnode_t *node = mob__jinja_node(p, statements[i].kind);
    p->token++;
    if (p->depth >= MOB__JINJA_MAX_NESTING)
      return mob__jinja_syntax_error(p, "expected less nesting");
    p->depth++;
    mob_status status = statements[i].parse(p, node);
    p->depth--;
    if (status != MOB_OK) return status;
    mob__jinja_add(p, body, node);
    return end_block(p);
  }
  return mob_fail(MOB_E_UNSUPPORTED,
                  "template line %d: '%.*s' is not a block that is supported here", p->token->line,
                  (int)(name.len < 60 ? name.len : 60), name.text);
}

static bool at_end(const mob__jparser_t *p, const char *const *ends) {
  for (; *ends; ends++) {
    if (mob__jinja_is_name(p, *ends)) return true;
  }
  return false;
}

// Up to a block that starts with one of `ends` (the current token is then that name), or with NULL
// to the end.
static mob_status parse_body(mob__jparser_t *p, const char *const *ends, mob__jnodes_t *body) {
  for (;;) {
    mob__jnode_t *node;
    switch (p->token->type) {
    case MOB__JT_END:
      if (!ends) return MOB_OK;
      return mob_fail(MOB_E_FORMAT, "template line %d: {%% %s %%} is missing", p->token->line,
                      ends[1] ? (ends[2] ? ends[2] : ends[1]) : ends[0]);
    case MOB__JT_DATA:
      node = mob__jinja_node(p, MOB__JS_TEXT);
      node->value = mob__j_string((p->token++)->s);
      mob__jinja_add(p, body, node);
      break;
    case MOB__JT_VAR_BEGIN:
      node = mob__jinja_node(p, MOB__JS_PRINT);
      p->token++;
      MOB_TRY(mob__jinja_expressions(p, true, &node->a));
      if (p->token->type != MOB__JT_VAR_END) return mob__jinja_syntax_error(p, "expected '}}'");
      p->token++;
      mob__jinja_add(p, body, node);
      break;
    case MOB__JT_BLOCK_BEGIN:
      p->token++;
      if (ends && at_end(p, ends)) return MOB_OK;
      MOB_TRY(statement(p, body));
      break;
    default:
      return mob__jinja_syntax_error(p, "expected text or a tag");
    }
  }
}

mob_status mob__jinja_parse(mob__jparser_t *p, mob__jnodes_t *body) {
  return parse_body(p, NULL, body);
}
